"""Measure how the cost of a corpus grows with rows and prefixes, each in its own process.

python examples/benchmarks/scale.py [--rows 10000 100000] [--prefixes 0 1 10 100]
python examples/benchmarks/scale.py --overhead --rows 10000 100000 1000000 10000000 --prefixes 1

With ``--overhead``, the backbone has one layer of 32 features. The remaining cost of a row is
reading, tokenizing and writing.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import resource
import shutil
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from common import machine, random_prefixes, read_texts, table
from datasets import IterableDataset
from transformers import BertConfig, BertModel

from prefixembed import PrefixBank, embed_dataset
from prefixembed.tasks import demo_backbone

SHARD = 10_000


def make_rows(words: list[str], lengths: list[int], n_rows: int) -> Iterator[dict[str, Any]]:
    """Yield rows of distinct texts with real words and lengths."""
    rng = np.random.default_rng(0)
    for k in range(n_rows):
        chosen = rng.integers(len(words), size=lengths[k % len(lengths)])
        yield {"id": k, "text": " ".join(words[j] for j in chosen)}


def small_backbone(folder: str) -> str:
    """Save a backbone of negligible cost with the tokenizer of the demo backbone."""
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=30522, hidden_size=32, num_hidden_layers=1, num_attention_heads=1,
        intermediate_size=32,
    )  # fmt: skip
    BertModel(config).save_pretrained(folder)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(Path(demo_backbone()) / name, folder)
    return folder


def measure(
    n_rows: int, n_prefixes: int, overhead: bool, combine: str, data: Path | None, results: Any
) -> None:
    """Put the seconds, peak memory and size on disk of one corpus into a queue."""
    texts = read_texts(data, "short", 1000)
    words, lengths = " ".join(texts).split(), [len(text.split()) for text in texts]
    with tempfile.TemporaryDirectory() as folder:
        backbone = small_backbone(f"{folder}/small") if overhead else demo_backbone()
        prefixes = random_prefixes(backbone, n_prefixes)
        bank = PrefixBank(
            prefixes, backbone=backbone, combine=combine, device="cpu", on_truncate="ignore"
        )
        source = IterableDataset.from_generator(lambda: make_rows(words, lengths, n_rows))
        bank.transform(texts[:64])  # load the backbone before timing
        started = time.perf_counter()
        out = Path(folder, "out")
        embed_dataset(bank, source, "text", out, shard_size=SHARD)
        seconds = time.perf_counter() - started
        size = sum(file.stat().st_size for file in out.glob("part-*"))
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    results.put({"seconds": seconds, "peak_mb": peak, "disk_mb": size / 1e6})


def main() -> None:
    """Measure each number of rows with the first number of prefixes, and vice versa."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, help="folder of JSONL files (default: docstrings)")
    parser.add_argument("--rows", type=int, nargs="+", default=[10_000, 100_000])
    parser.add_argument("--prefixes", type=int, nargs="+", default=[1, 0, 10, 100])
    parser.add_argument("--combine", default="concat")
    parser.add_argument("--overhead", action="store_true")
    parser.add_argument("--out", type=Path, default=Path("results/scale"))
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    print(machine(), flush=True)
    cases = [(n, args.prefixes[0]) for n in args.rows]
    cases += [(args.rows[0], n) for n in args.prefixes[1:]]
    context = multiprocessing.get_context("spawn")
    found = []
    for n_rows, n_prefixes in cases:
        results = context.Queue()
        process = context.Process(
            target=measure,
            args=(n_rows, n_prefixes, args.overhead, args.combine, args.data, results),
        )
        process.start()
        found.append({"rows": n_rows, "prefixes": n_prefixes, **results.get()})
        process.join()
        print(found[-1], flush=True)
    kind = "overhead" if args.overhead else "demo"
    (args.out / f"{kind}.json").write_text(json.dumps(found, indent=1))
    cells = [
        (
            f"{case['rows']:,}",
            case["prefixes"],
            f"{case['seconds']:.1f}",
            f"{case['rows'] / case['seconds']:.0f}",
            f"{case['peak_mb']:.0f}",
            f"{case['disk_mb']:.0f}",
        )
        for case in found
    ]
    header = ("rows", "prefixes", "seconds", "rows per second", "peak memory, MB", "on disk, MB")
    print(table(header, cells))


if __name__ == "__main__":
    main()
