"""Measure the size of a saved bank, the time of an import, and the time to the first vector.

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


# Two lines each; the backbone is in the file cache, and both read it in float32.
FIRST_VECTOR = {
    "prefixembed": (
        "from prefixembed import PrefixBank; "
        "PrefixBank({{}}, backbone={0!r}, dtype='float32', device='cpu').transform(['a text'])"
    ),
    "sentence-transformers": (
        "from sentence_transformers import SentenceTransformer; "
        "SentenceTransformer({0!r}, device='cpu').encode(['a text'])"
    ),
}


def first_vector_seconds(n_pairs: int) -> dict[str, list[float]]:
    """Return the seconds of whole processes that make one vector; the sides take turns."""
    seconds: dict[str, list[float]] = {name: [] for name in FIRST_VECTOR}
    for _ in range(n_pairs + 1):
        for name, code in FIRST_VECTOR.items():
            started = time.perf_counter()
            subprocess.run([sys.executable, "-c", code.format(demo_backbone())], check=True)
            seconds[name].append(time.perf_counter() - started)
    return {name: times[1:] for name, times in seconds.items()}  # the first pair warms caches


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
    ours, theirs = (np.array(times) for times in first_vector_seconds(5).values())
    print(
        f"first vector, whole process: {np.median(ours / theirs):.2f} of sentence-transformers "
        f"(ratios {', '.join(f'{ratio:.2f}' for ratio in ours / theirs)}; "
        f"{np.median(ours):.1f} s and {np.median(theirs):.1f} s)"
    )


if __name__ == "__main__":
    main()
