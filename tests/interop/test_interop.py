"""The public names of ``prefixembed.interop`` and what importing them needs."""

from helpers import run_python

from prefixembed import interop


def test_import_needs_no_optional_library():
    code = (
        "import sys\n"
        "sys.modules.update(dict.fromkeys(['adapters', 'mteb', 'peft', 'sentence_transformers']))\n"
        f"from prefixembed.interop import {', '.join(interop.__all__)}\n"
    )
    run_python(code)
