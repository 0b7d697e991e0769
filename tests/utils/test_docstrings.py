"""Shared descriptions of parameters, and how they enter docstrings."""

import ast
import inspect
from pathlib import Path

import pytest
from sklearn.utils.metaestimators import available_if

import prefixembed
from prefixembed._utils import docstrings
from prefixembed._utils.docstrings import PARAMETER_GROUPS, SHARED, substitute

PACKAGE = Path(prefixembed.__file__).parent


@pytest.fixture(autouse=True)
def shared(monkeypatch):
    monkeypatch.setitem(SHARED, "one", "\none : int\n    A number:\n\n    $listed\n")
    monkeypatch.setitem(SHARED, "listed", "\n- ``1``: one;\n- ``2``: two.\n")


EXPECTED = """\
Do it.

Parameters
----------
one : int
    A number:

    - ``1``: one;
    - ``2``: two.
other : str
    The price is $one, or
    $one of many."""


def do(one, other):
    """Do it.

    Parameters
    ----------
    $one
    other : str
        The price is $one, or
        $one of many.
    """


def test_placeholders_alone_on_a_line_are_replaced_with_their_indentation():
    described = substitute(do)
    assert described is do
    assert inspect.getdoc(do).strip() == EXPECTED


class Described:
    """Hold it.

    Parameters
    ----------
    $one
    """

    def plain(self):
        """Do it.

        $one
        """

    @classmethod
    def of_class(cls):
        """Do it.

        $one
        """

    @staticmethod
    def static():
        """Do it.

        $one
        """

    @available_if(lambda self: True)
    def conditional(self):
        """Do it.

        $one
        """

    @property
    def value(self):
        """The value, $one."""

    undocumented = print


def test_methods_of_every_kind_are_included():
    assert substitute(Described) is Described
    own = vars(Described)
    functions = [
        own["plain"], own["of_class"].__func__, own["static"].__func__, own["conditional"].fn
    ]  # fmt: skip
    for described in (Described, *functions):
        assert "    - ``1``: one;" in described.__doc__ and "$" not in described.__doc__
    assert Described.value.__doc__ == "The value, $one."


def test_a_placeholder_without_a_description_is_refused():
    def undescribed():
        """Do it.

        $nothing_like_it
        """

    with pytest.raises(KeyError, match="nothing_like_it"):
        substitute(undescribed)


def test_what_has_no_docstring_is_left_alone():
    def bare():
        pass

    assert substitute(bare).__doc__ is None


def placeholders():
    """Return the names of the placeholders in docstrings of the package, and in descriptions."""
    found = set()
    for path in PACKAGE.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, (ast.ClassDef, ast.FunctionDef, ast.Module)):
                text = ast.get_docstring(node, clean=False) or ""
                found |= {match[2] for match in docstrings._PLACEHOLDER.finditer(text)}
    for text in SHARED.values():
        found |= {match[2] for match in docstrings._PLACEHOLDER.finditer(text)}
    return found


def test_each_description_is_used_and_each_placeholder_is_described():
    assert placeholders() == SHARED.keys() - {"one"}


def test_parameters_of_large_estimators_are_in_one_group_each():
    kinds = [prefixembed.PrefixEncoder, prefixembed.PrefixBank, prefixembed.MultiTaskEncoder]
    parameters = {name for kind in kinds for name in inspect.signature(kind).parameters}
    grouped = [name for names in PARAMETER_GROUPS.values() for name in names]
    assert sorted(grouped) == sorted(parameters)
