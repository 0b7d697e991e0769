"""The public names of ``prefixembed.interop`` and what importing them needs."""

import subprocess
import sys

from prefixembed import interop


def test_import_needs_no_optional_library():
    code = (
        "import sys\n"
        "sys.modules.update(dict.fromkeys(['adapters', 'mteb', 'peft', 'sentence_transformers']))\n"
        f"from prefixembed.interop import {', '.join(interop.__all__)}\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
