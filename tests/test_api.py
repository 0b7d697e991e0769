"""Every public name is documented, and its docstring says what its signature says."""

import importlib
import inspect
import re
from pathlib import Path

import pytest
from numpydoc.docscrape import FunctionDoc

import prefixembed

API = (Path(__file__).parents[1] / "docs" / "api.md").read_text(encoding="utf-8")
MODULES = ["cache", "displays", "inspection", "interop", "tasks"]
# What scikit-learn makes, or what there is no more to say of.
NOT_OURS = {"get_metadata_routing", "get_params", "set_params", "set_output"}


def public_objects():
    for name in prefixembed.__all__:
        if name != "__version__":
            yield name, getattr(prefixembed, name)
    for module_name in MODULES:
        module = importlib.import_module(f"prefixembed.{module_name}")
        names = getattr(module, "__all__", None) or [
            name
            for name, value in vars(module).items()
            if getattr(value, "__module__", None) == module.__name__ and not name.startswith("_")
        ]
        for name in names:
            value = getattr(module, name)
            if callable(value) and name not in prefixembed.__all__:
                yield f"{module_name}.{name}", value


def public_calls():
    for name, value in public_objects():
        if value is not prefixembed.Backbone:  # which load_backbone makes
            yield pytest.param(value, value.__doc__, id=name)
        if inspect.isclass(value):
            for method_name, method in vars(value).items():
                function = getattr(method, "__func__", method)
                ours = inspect.isfunction(function) and "prefixembed" in (function.__module__ or "")
                if (
                    ours
                    and not method_name.startswith(("_", "set_"))
                    and method_name not in NOT_OURS
                ):
                    yield pytest.param(
                        getattr(value, method_name), function.__doc__, id=f"{name}.{method_name}"
                    )


@pytest.mark.parametrize("name", [name for name, _ in public_objects()])
def test_is_in_the_documentation(name):
    assert re.search(rf"^   {re.escape(name)}$", API, flags=re.M), name


def shown(default):
    if isinstance(default, str):
        return f'"{default}"'
    return str(default)


@pytest.mark.parametrize(("called", "docstring"), public_calls())
def test_docstring_is_the_signature(called, docstring):
    assert docstring, called
    parsed = FunctionDoc(None, doc=docstring)
    documented = {}
    for parameter in parsed["Parameters"]:
        for name in parameter.name.split(", "):
            documented[name.lstrip("*")] = parameter
    parameters = {
        name: parameter
        for name, parameter in inspect.signature(called).parameters.items()
        if name not in ("self", "cls")
    }
    # What has one description may stand together.
    together = any(", " in parameter.name for parameter in parsed["Parameters"])
    assert sorted(documented) == sorted(parameters)
    assert together or list(documented) == list(parameters)
    for name, parameter in parameters.items():
        text = documented[name].type
        assert " ".join(documented[name].desc).strip(), name
        if parameter.default is inspect.Parameter.empty or "Ignored" in text:
            assert "default=" not in text or text.endswith("default={}"), (name, text)
        else:
            said = re.search(r"default=(.+)$", text)
            assert said, (name, text)
            default = parameter.default
            if repr(default) == "<factory>":
                default = called.__dataclass_fields__[name].default_factory()
            known = said[1] in (shown(default), str(default))
            assert known or eval(said[1]) == default, (name, text)


@pytest.mark.parametrize(("called", "docstring"), public_calls())
def test_what_is_given_back_is_documented(called, docstring):
    parsed = FunctionDoc(None, doc=docstring)
    assert "".join(parsed["Summary"]).endswith("."), called
    if inspect.isclass(called) or isinstance(called, property):
        return
    gives = inspect.signature(called).return_annotation
    if gives not in (None, "None", inspect.Signature.empty):
        assert parsed["Returns"] or parsed["Yields"] or "Always" in docstring, called
