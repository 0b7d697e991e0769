"""Each private interface that the package uses exists, and docs/private-interfaces.md lists it."""

import ast
import importlib
import inspect
import pkgutil
import re
import sys
from pathlib import Path

import pytest
import torch
from transformers import AutoModel

import prefixembed
from prefixembed._model.families import SUPPORTED
from prefixembed._model.hook import hook_feed_forward

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "prefixembed"
PAGE = (ROOT / "docs" / "private-interfaces.md").read_text(encoding="utf-8")
ENTRY = re.compile(
    r"### (?P<title>[^\n]+)\n\n```text\n(?P<names>.+?)\n```\n\n"
    r"- Used in: (?P<files>.+?)\n- Why: .+?\n- When gone: (?P<advice>.+?)\n(?=\n|$)",
    flags=re.S,
)
ENTRIES = [match.groupdict() for match in ENTRY.finditer(PAGE)]
INTERFACES = {name: entry for entry in ENTRIES for name in entry["names"].splitlines()}
SOURCES = sorted(PACKAGE.rglob("*.py"))
TREES = {path: ast.parse(path.read_text(encoding="utf-8")) for path in SOURCES}


def resolve(interface):
    """Return what a dotted name stands for; what is set on instances is looked up in the source."""
    parts = interface.split(".")
    for k in range(len(parts), 0, -1):
        try:
            value = importlib.import_module(".".join(parts[:k]))
        except ImportError:
            continue
        for name in parts[k:]:
            is_set_later = inspect.isclass(value) and not hasattr(value, name)
            if is_set_later and re.search(rf"\b(self|cls)\.{name}\b", inspect.getsource(value)):
                return None
            value = getattr(value, name)
        return value
    raise ImportError(interface)


def parameters(called):
    if isinstance(called, torch._ops.OpOverloadPacket):
        return {argument.name for argument in called.default._schema.arguments}
    return set(inspect.signature(called).parameters)


def test_every_section_is_an_entry():
    assert [entry["title"] for entry in ENTRIES] == re.findall("^### (.+)$", PAGE, flags=re.M)


@pytest.mark.parametrize("interface", INTERFACES)
def test_interface_exists(interface):
    name, _, parameter = interface.rstrip(")").partition("(")
    try:
        value = resolve(name)
        exists = not parameter or parameter in parameters(value)
    except (AttributeError, ImportError):
        exists = False
    assert exists, f"{interface} is gone: {INTERFACES[interface]['advice']}"


@pytest.mark.parametrize("family", SUPPORTED)
def test_feed_forward_layers_have_their_names(family, tiny):
    advice = next(entry for entry in ENTRIES if entry["title"] == "Feed-forward layers")["advice"]
    model = AutoModel.from_pretrained(tiny(family))
    hook_feed_forward(model, family)
    n_hooks = sum(len(module._forward_hooks) for module in model.modules())
    # ALBERT has fewer modules than layers.
    config = model.config
    assert n_hooks == getattr(config, "num_hidden_groups", config.num_hidden_layers), advice


@pytest.mark.parametrize("entry", ENTRIES, ids=lambda entry: entry["title"])
def test_files_use_what_is_listed(entry):
    files = re.findall(r"`(\S+\.py)`", entry["files"])
    text = "".join((PACKAGE / file).read_text(encoding="utf-8") for file in files)
    assert files
    for name in entry["names"].splitlines():
        last = re.split(r"[.(]", name.rstrip(")"))[-1]
        assert last in text or last in ("forward", "is_satisfied_by"), name


def is_private(name):
    return any(part.startswith("_") and not part.endswith("__") for part in name.split("."))


def is_foreign(name):
    return name.partition(".")[0] not in {"prefixembed", *sys.stdlib_module_names}


def imported():
    """Name what the package imports from private modules, or from submodules of transformers."""
    for tree in TREES.values():
        for node in ast.walk(tree):
            names = []
            if isinstance(node, ast.ImportFrom):
                names = [f"{node.module}.{alias.name}" for alias in node.names]
            elif isinstance(node, ast.Import):
                names = [alias.name for alias in node.names]
            for name in names:
                of_submodule = name.startswith("transformers.") and name.count(".") > 1
                if is_foreign(name) and (is_private(name) or of_submodule):
                    yield name


def test_imports_are_listed():
    listed = {name.partition("(")[0] for name in INTERFACES}
    for name in imported():
        known = name in listed or any(one.startswith(f"{name}.") for one in listed)
        assert known, f"{name} is private and not in docs/private-interfaces.md"


def test_attributes_and_keywords_are_listed_or_ours():
    listed = {part for name in INTERFACES for part in re.split(r"[.()]", name)}
    nodes = [node for tree in TREES.values() for node in ast.walk(tree)]
    ours = {"_replace"}  # of named tuples, documented
    for node in nodes:
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            ours.add(node.name)
        elif isinstance(node, ast.arg):
            ours.add(node.arg)
        elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            ours.add(node.id)
        elif isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store):
            ours.add(node.attr)
    for node in nodes:
        used = getattr(node, "attr", None) or (isinstance(node, ast.keyword) and node.arg)
        if used and is_private(used):
            assert used in listed | ours, f"{used} is not in docs/private-interfaces.md"


def test_overridden_members_are_listed():
    listed = {part for name in INTERFACES for part in re.split(r"[.()]", name)}
    for module in pkgutil.walk_packages(prefixembed.__path__, "prefixembed."):
        try:
            members = vars(importlib.import_module(module.name)).values()
        except ImportError:
            continue  # of a library that is not installed
        for kind in filter(inspect.isclass, members):
            if not kind.__module__.startswith("prefixembed"):
                continue
            theirs = [base for base in kind.__mro__[1:] if is_foreign(base.__module__)]
            for name in vars(kind):
                inherited = any(name in vars(base) for base in theirs)
                if inherited and is_private(name) and not name.startswith("_abc_"):
                    assert name in listed, f"{kind.__name__}.{name} overrides a private member"
