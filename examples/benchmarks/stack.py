"""Compare seven prefixes in one pass with ``Stack`` of adapters and with PEFT, in float32.

The peers run in an environment of their own and take turns with ours on the same texts and
prefixes. adapters concatenates prefixes as we do, so its vectors must agree. PEFT does not combine
prefixes: it gets one prefix as long as all seven. It also shifts the positions of tokens, so its
vectors differ::

    python -m venv peers && peers/bin/pip install adapters peft
    python examples/benchmarks/stack.py --backends peers/bin/python [--data DIR]
"""

from __future__ import annotations

import argparse
import json
import tempfile
from contextlib import ExitStack
from pathlib import Path

import numpy as np
from common import alternate, backend_sides, bars, machine, random_prefixes, read_texts, table

from prefixembed import PrefixBank
from prefixembed.tasks import demo_backbone

OURS = "prefixembed float32"


def main() -> None:
    """Measure all sides on short texts and on pairs."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--backends", required=True, help="Python of an environment for backends.py"
    )
    parser.add_argument("--data", type=Path, help="folder of JSONL files (default: docstrings)")
    parser.add_argument("--texts", type=int, default=400)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--out", type=Path, default=Path("results/stack"))
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    print(machine())
    folder = demo_backbone()
    prefixes = random_prefixes(folder, 7)
    found = {}
    for kind in ("short", "pairs"):
        texts = read_texts(args.data, kind, args.texts)
        bank = PrefixBank(
            prefixes, dtype="float32", device="cpu", cache=None, max_length=256, pairs="joint",
            on_truncate="ignore",
        )  # fmt: skip
        with ExitStack() as running:
            scratch = Path(running.enter_context(tempfile.TemporaryDirectory()))
            np.save(scratch / "prefixes.npy", np.stack([p.keys_values for p in prefixes.values()]))
            sides = backend_sides(
                ("adapters Stack", "PEFT"), args.backends, folder, texts, scratch, running
            )
            sides[OURS] = lambda bank=bank, texts=texts: bank.transform(texts)
            seconds = {k: float(np.median(v)) for k, v in alternate(sides, args.rounds).items()}
            exact = sides[OURS]()
            errors = {name: float(np.abs(run() - exact).max()) for name, run in sides.items()}
        speed = {name: len(texts) / s for name, s in seconds.items()}
        base = speed.get("adapters Stack", speed[OURS])
        rows = [
            (name, f"{s:.1f}", f"{s / base:.2f}", f"{errors[name]:.0e}")
            for name, s in speed.items()
        ]
        print(f"\n{len(texts)} {kind}")
        print(table(("side", "texts per second", "ratio", "largest difference"), rows), flush=True)
        ratios = {name: s / base for name, s in speed.items()}
        bars(args.out / f"stack-{kind}.png", ratios, "texts per second, ratio to adapters")
        found[kind] = {"texts_a_second": speed, "largest_difference": errors}
    (args.out / "stack.json").write_text(json.dumps({"machine": machine(), **found}, indent=1))


if __name__ == "__main__":
    main()
