"""Warnings point at the line of the user, whatever the user's folders are called."""

import importlib.util
import warnings

from hypothesis import given
from hypothesis import strategies as st

SOURCE = """\
from prefixembed._utils.warnings import warn
def call(function, *args): function(*args)
def end(): warn("here")
"""
OURS = ["prefixembed.bank", "prefixembed"]
CALLERS = ["torch", "torch.nn.modules", "sklearn.base", "sentence_transformers.models"]
USERS = ["__main__", "mine", "torch_utils", "my.torch", "sklearnish", "prefixembedded.a", "None"]
FOLDERS = ["torch", "sklearn", "sentence_transformers", "transformers", "prefixembed", "project"]


def module_of(folder, name):
    """Return a module of a name whose file lies in a folder."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{len(list(folder.iterdir()))}.py"
    path.write_text(SOURCE)
    spec = importlib.util.spec_from_file_location(name, path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@given(
    user=st.sampled_from(USERS),
    between=st.lists(st.sampled_from(OURS + CALLERS), max_size=3),
    parts=st.lists(st.sampled_from(FOLDERS), min_size=1, max_size=3),
)
def test_warning_points_at_the_innermost_module_of_the_user(tmp_path_factory, user, between, parts):
    folder = tmp_path_factory.mktemp("place").joinpath(*parts)
    outer, user, *libraries = (module_of(folder, name) for name in ("mine", user, *between))
    inner = module_of(folder, OURS[0])
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        outer.call(user.call, *(library.call for library in libraries), inner.end)
    assert [(one.filename, one.lineno) for one in caught] == [(user.__file__, 2)]
