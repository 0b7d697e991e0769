import pytest
from helpers import run_python

import prefixembed


def test_import_does_not_load_heavy_packages():
    heavy = ("torch", "transformers", "sklearn", "datasets")
    code = f"import prefixembed, sys; print([m for m in {heavy} if m in sys.modules])"
    out, _ = run_python(code)
    assert out.strip() == "[]"


def test_public_names_are_importable():
    for name in prefixembed.__all__:
        assert getattr(prefixembed, name).__doc__
        assert name in dir(prefixembed)
    with pytest.raises(AttributeError, match="no attribute 'PrefixBunk'"):
        prefixembed.PrefixBunk  # noqa: B018
