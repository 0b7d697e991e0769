r"""Compare cutting long texts with reading them in overlapping windows.

A head for each target task is trained on vectors of the bare backbone, or of a bank of saved
prefixes. Each text of a pair is read by itself. At each length, longer texts are cut
(``on_truncate="ignore"``) or read in windows (``"window"``)::

    python examples/windows.py --data DIR --targets boolq multirc --lengths 64 128 256 \\
        --texts 600 --seeds 0 1 2

For the paper's backbone, from the Hub, with prefixes that ``reproduce_paper.py`` has learned::

    python examples/windows.py --backbone roberta-large --lengths 128 512 --texts 10000 \\
        --prefixes results/paper/sst2-0.safetensors results/paper/qnli-0.safetensors
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path

import numpy as np
from reproduce_paper import search_head

from prefixembed import Prefix, PrefixBank, load_backbone
from prefixembed.tasks import demo_backbone, fetch_task

WAYS = {"cut": "ignore", "windows": "window"}


def score(
    args: argparse.Namespace, target: str, length: int, way: str, seed: int
) -> tuple[float, float]:
    """Return the score of a head, and the seconds that its vectors took."""
    prefixes = {path.stem: Prefix.load(path) for path in args.prefixes}
    bank = PrefixBank(
        prefixes, backbone=args.backbone, max_length=length, on_truncate=WAYS[way], pairs="apart",
        cache=None,
    )  # fmt: skip
    train = fetch_task(target, "train", args.texts, args.data, seed)
    test = fetch_task(target, "test", args.texts, args.data, 0)
    started = time.perf_counter()
    vectors = [bank.transform(split.X) for split in (train, test)]
    seconds = time.perf_counter() - started
    head = search_head(train.info).fit(vectors[0], train.y)
    return test.score(head.predict(vectors[1]))[train.info.metrics[0]], seconds


def share_cut(args: argparse.Namespace, target: str, length: int) -> float:
    """Return the share of test pairs with a text that is longer than `length` tokens."""
    tokenizer = load_backbone(args.backbone).tokenizer(length)
    X = fetch_task(target, "test", args.texts, args.data, 0).X
    pairs = [tokenizer.encode_batch([str(text) for text in pair]) for pair in X]
    return float(np.mean([any(one.overflowing for one in pair) for pair in pairs]))


def main() -> None:
    """Measure each length and print a table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, help="folder of JSONL files (default: the Hub)")
    parser.add_argument("--backbone", default=None, help="default: demo_backbone()")
    parser.add_argument("--prefixes", type=Path, nargs="*", default=[], help="saved prefixes")
    parser.add_argument("--targets", nargs="+", default=["boolq", "multirc"])
    parser.add_argument("--lengths", type=int, nargs="+", default=[64, 128, 256])
    parser.add_argument("--texts", type=int, default=600)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    args = parser.parse_args()
    args.backbone = args.backbone or demo_backbone()

    print("| target task | tokens | longer | cut | windows | time of windows relative to cut |")
    print("|---" * 6 + "|")
    for target in args.targets:
        for length in args.lengths:
            found = np.array(
                [[score(args, target, length, way, s) for way in WAYS] for s in args.seeds]
            )  # (seed, way, score or seconds)
            spread = found[..., 0].std(axis=0, ddof=1) if len(args.seeds) > 1 else np.zeros(2)
            cells = [
                f"{mean:.3f} ± {sd:.3f}"
                for mean, sd in zip(found[..., 0].mean(axis=0), spread, strict=True)
            ]
            ratio = np.median(found[:, 1, 1] / found[:, 0, 1])
            longer = share_cut(args, target, length)
            row = [target, str(length), f"{longer:.0%}", *cells, f"{ratio:.2f}"]
            print(f"| {' | '.join(row)} |", flush=True)


if __name__ == "__main__":
    main()
