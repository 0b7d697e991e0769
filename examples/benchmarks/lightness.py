"""Measure the size of a saved bank and the time of an import.

python examples/benchmarks/lightness.py
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
import time
from pathlib import Path

import joblib
import numpy as np
from common import machine, random_prefixes, table

from prefixembed import PrefixBank
from prefixembed.tasks import demo_backbone


def import_seconds(package: str) -> float:
    """Return the import time of a package in a new process, without the interpreter's start."""

    def run(code: str) -> float:
        started = time.perf_counter()
        subprocess.run([sys.executable, "-c", code], check=True)
        return time.perf_counter() - started

    return float(np.median([run(f"import {package}") - run("pass") for _ in range(7)]))


def main() -> None:
    """Measure size and time."""
    print(machine())
    rows = []
    for n in (1, 7, 30):
        bank = PrefixBank(random_prefixes(demo_backbone(), n))
        bank.transform(["a text"])
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "bank.joblib"
            joblib.dump(bank, path)
            size = path.stat().st_size
        n_bytes = sum(prefix.keys_values.nbytes for prefix in bank.values())
        rows.append((n, f"{n_bytes:,}", f"{size:,}", f"{size / n_bytes:.3f}"))
    print(table(("prefixes", "bytes of keys and values", "bytes of the dump", "ratio"), rows))
    for name in ("prefixembed", "sklearn"):
        import_seconds(name)
    seconds = {name: import_seconds(name) for name in ("prefixembed", "sklearn")}
    code = "import prefixembed, sys; print('torch' in sys.modules)"
    has_torch = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    print(
        f"\nimport prefixembed: {seconds['prefixembed'] / seconds['sklearn']:.2f} of "
        f"import sklearn ({seconds['prefixembed']:.3f} s and {seconds['sklearn']:.3f} s); "
        f"torch in sys.modules: {has_torch.stdout.strip()}"
    )


if __name__ == "__main__":
    main()
