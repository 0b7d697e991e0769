"""Every public object is documented, and its docstring agrees with its signature."""

import importlib
import inspect
import pkgutil
import re
from pathlib import Path

import pytest
from numpydoc.docscrape import FunctionDoc

import prefixembed
from prefixembed._utils.properties import cached_property

API = (Path(__file__).parents[1] / "docs" / "api.md").read_text(encoding="utf-8")
MODULES = [
    module.name
    for module in pkgutil.iter_modules(prefixembed.__path__)
    if not module.name.startswith("_")
]
# Methods that scikit-learn generates, or that are documented by the one they wrap.
NOT_OURS = {"get_metadata_routing", "get_params", "set_params", "set_output"}


def public_names(module):
    """Return `__all__` of a module, or its public classes if it has none."""
    classes = [
        name
        for name, value in vars(module).items()
        if inspect.isclass(value)
        and value.__module__ == module.__name__
        and not name.startswith("_")
    ]
    return getattr(module, "__all__", classes)


def public_objects():
    """Return public classes and functions, each with the names by which it can be imported."""
    found = [(name, getattr(prefixembed, name)) for name in prefixembed.__all__]
    for module_name in MODULES:
        module = importlib.import_module(f"prefixembed.{module_name}")
        names = public_names(module)
        found += [(f"{module_name}.{name}", getattr(module, name)) for name in names]
    objects = {}
    for name, value in found:
        if callable(value):
            objects.setdefault(value, []).append(name)
    return objects


OBJECTS = public_objects()
by_object = pytest.mark.parametrize(
    "value", [pytest.param(value, id=names[0]) for value, names in OBJECTS.items()]
)


def public_methods(kind):
    for name, method in vars(kind).items():
        # A classmethod has __func__, and a method that is available under a condition has fn.
        function = getattr(method, "__func__", getattr(method, "fn", method))
        ours = inspect.isfunction(function) and "prefixembed" in (function.__module__ or "")
        if ours and not name.startswith(("_", "set_")) and name not in NOT_OURS:
            yield name, function


def public_calls():
    for value, (name, *_) in OBJECTS.items():
        if value is not prefixembed.Backbone:  # only load_backbone creates one
            yield pytest.param(value, value.__doc__, id=name)
        if inspect.isclass(value):
            for method_name, function in public_methods(value):
                method = getattr(value, method_name)
                yield pytest.param(method, function.__doc__, id=f"{name}.{method_name}")


def public_properties():
    for value, (name, *_) in OBJECTS.items():
        for property_name, member in vars(value).items() if inspect.isclass(value) else ():
            is_property = isinstance(member, (property, cached_property))
            if is_property and not property_name.startswith("_"):
                yield pytest.param(inspect.getdoc(member), id=f"{name}.{property_name}")


@by_object
def test_object_is_in_the_documentation(value):
    names = OBJECTS[value]
    assert any(re.search(rf"^   {re.escape(name)}$", API, flags=re.M) for name in names), names


@pytest.mark.parametrize("name", re.findall(r"^   ([\w.]+)$", API, flags=re.M))
def test_name_in_the_documentation_exists(name):
    assert any(name in names for names in OBJECTS.values())


@by_object
def test_object_names_the_version_that_added_it(value):
    assert ".. versionadded:: " in value.__doc__


def check_summary(docstring):
    summary = " ".join(FunctionDoc(None, doc=docstring)["Summary"])
    assert summary.endswith(".")
    assert not summary.startswith(("Give", "Tell"))


@pytest.mark.parametrize(("called", "docstring"), public_calls())
def test_summary_of_a_callable_is_a_sentence(called, docstring):
    assert docstring, called
    check_summary(docstring)
    assert not re.search(r"^ *\$\w+$", docstring, flags=re.M), "a placeholder was not replaced"


@pytest.mark.parametrize("docstring", public_properties())
def test_summary_of_a_property_is_a_sentence(docstring):
    check_summary(docstring)


def shown(default):
    return f'"{default}"' if isinstance(default, str) else str(default)


@pytest.mark.parametrize(("called", "docstring"), public_calls())
def test_parameters_in_docstring_agree_with_the_signature(called, docstring):
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
    # Parameters that share a description may be out of order.
    shared = any(", " in parameter.name for parameter in parsed["Parameters"])
    assert sorted(documented) == sorted(parameters)
    assert shared or list(documented) == list(parameters)
    for name, parameter in parameters.items():
        text = documented[name].type
        assert " ".join(documented[name].desc).strip(), name
        if parameter.default is inspect.Parameter.empty or "Ignored" in text:
            assert "default=" not in text or text.endswith("default={}"), (name, text)
        else:
            match = re.search(r"default=(.+)$", text)
            assert match, (name, text)
            default = parameter.default
            if repr(default) == "<factory>":
                default = called.__dataclass_fields__[name].default_factory()
            is_shown = match[1] in (shown(default), str(default))
            assert is_shown or eval(match[1]) == default, (name, text)


@pytest.mark.parametrize(("called", "docstring"), public_calls())
def test_return_value_is_documented(called, docstring):
    if inspect.isclass(called):
        return
    parsed = FunctionDoc(None, doc=docstring)
    returned = inspect.signature(called).return_annotation
    if returned not in (None, "None", "NoReturn", inspect.Signature.empty):
        assert parsed["Returns"] or parsed["Yields"] or "Always" in docstring, called
