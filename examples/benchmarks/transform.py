"""Compare the speed of ``transform`` with sentence-transformers and skrub.

All sides take turns in this process, on the same texts and threads. The script reports medians over
rounds. Peers run at the best of a few batch sizes. Sides that are not available (skrub for pairs,
packages that are not installed) are left out::

    pip install -e ".[demo,bench]"
    python examples/benchmarks/transform.py [--data DIR] [--model large] [--backends PYTHON]
"""

from __future__ import annotations

import argparse
import json
import tempfile
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
import torch
from common import (
    alternate,
    backend_sides,
    bars,
    encoder_flops,
    gemm_rate,
    machine,
    random_prefixes,
    read_texts,
    save_tokenizer,
    table,
)

from prefixembed import PrefixBank, load_backbone
from prefixembed._embed.tokens import tokenize
from prefixembed.reading import Reading
from prefixembed.tasks import demo_backbone

ENGINES = tuple(
    f"sentence-transformers {engine}"
    for engine in ("onnx", "onnx int8", "openvino", "openvino int8")
)


def large_backbone(folder: str, texts: list[str]) -> str:
    """Save a random model in the shape of RoBERTa-large, with a tokenizer for the texts."""
    from tokenizers import Tokenizer, models, pre_tokenizers, trainers
    from transformers import RobertaConfig, RobertaModel

    tokenizer = Tokenizer(models.BPE(unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel()
    special = ["<s>", "<pad>", "</s>", "<unk>"]
    trainer = trainers.BpeTrainer(vocab_size=20000, special_tokens=special, show_progress=False)
    tokenizer.train_from_iterator(texts, trainer)
    save_tokenizer(tokenizer, folder, "<s> $A </s> </s> $B </s>")
    config = RobertaConfig(
        vocab_size=20000, hidden_size=1024, num_hidden_layers=24, num_attention_heads=16,
        intermediate_size=4096, max_position_embeddings=514, type_vocab_size=1,
    )  # fmt: skip
    torch.manual_seed(0)
    RobertaModel(config).save_pretrained(folder)
    return folder


def sentence_transformers_sides(
    folder: str,
    texts: list[Any],
    device: str = "cpu",
    sizes: Sequence[int] = (16, 32),
    max_length: int = 256,
) -> dict[str, Callable[[], Any]]:
    """Return its sides: float32 and bfloat16, with a few batch sizes each."""
    try:
        from sentence_transformers import SentenceTransformer
        from sentence_transformers.models import Pooling, Transformer
    except ImportError:
        return {}
    inputs = [list(text) if isinstance(text, tuple) else text for text in texts]
    sides: dict[str, Callable[[], Any]] = {}
    for dtype in ("float32", "bfloat16"):
        transformer = Transformer(folder, model_kwargs={"dtype": getattr(torch, dtype)})
        width = transformer.model.config.hidden_size
        model = SentenceTransformer(modules=[transformer, Pooling(width)], device=device)
        model.max_seq_length = max_length
        for size in sizes:
            sides[f"sentence-transformers {dtype}, batch {size}"] = lambda model=model, size=size: (
                model.encode(
                    inputs, batch_size=size, convert_to_numpy=True, show_progress_bar=False
                ).astype(np.float32)
            )
    return sides


def skrub_side(folder: str, texts: list[Any]) -> dict[str, Callable[[], Any]]:
    """Return the side of skrub, which does not support pairs."""
    try:
        from skrub import TextEncoder
    except ImportError:
        return {}
    if isinstance(texts[0], tuple):
        return {}
    import pandas as pd

    column = pd.Series(texts, name="text")
    encoder = TextEncoder(folder, n_components=None, device="cpu")
    encoder.fit(column)
    return {"skrub TextEncoder": lambda: encoder.transform(column)}


def own_sides(folder: str, texts: list[Any]) -> dict[str, Callable[[], Any]]:
    """Return our sides: no prefix and seven prefixes, in float32 and the default dtype."""
    seven = random_prefixes(folder, 7)
    common = {"backbone": folder, "max_length": 256, "on_truncate": "ignore", "cache": None}
    common |= {"pairs": "joint"}
    sides: dict[str, Callable[[], Any]] = {}
    for dtype in ("float32", "auto"):
        for name, params in (
            ("no prefix", {"active": []}),
            ("seven prefixes", {}),
            ("seven prefixes, mean", {"combine": "mean"}),
        ):
            bank = PrefixBank(seven, dtype=dtype, device="cpu", **common, **params)
            sides[f"prefixembed {dtype}, {name}"] = lambda bank=bank: bank.transform(texts)
    return sides


def measure(
    folder: str, texts: list[Any], rounds: int, backends: str | None, running: ExitStack
) -> dict[str, Any]:
    """Measure all sides on some texts."""
    peers = sentence_transformers_sides(folder, texts) | skrub_side(folder, texts)
    if backends is not None:
        scratch = Path(running.enter_context(tempfile.TemporaryDirectory()))
        peers |= backend_sides(ENGINES, backends, folder, texts, scratch, running)
    sides = peers | own_sides(folder, texts)
    seconds = alternate(sides, rounds)
    best: dict[str, np.ndarray] = {}
    for name, times in seconds.items():
        short = name.split(", batch")[0]
        if short not in best or np.median(times) < np.median(best[short]):
            best[short] = times
    exact = sides["prefixembed float32, no prefix"]()
    deviation = {}
    for name in sides:
        vectors = np.asarray(sides[name]()) if "prefixes" not in name else None
        if vectors is not None and vectors.shape == exact.shape:
            norms = np.linalg.norm(vectors, axis=1) * np.linalg.norm(exact, axis=1)
            cosine = 1 - float(((vectors * exact).sum(axis=1) / norms).min())
            deviation[name.split(", batch")[0]] = max(cosine, 0.0)
    shares = {}
    for dtype, name in ((torch.float32, "float32"), (torch.bfloat16, "auto")):
        backbone = load_backbone(folder, device="cpu")
        tokens = tokenize(backbone, texts, Reading("mean", 256, pairs="joint"))
        flops = encoder_flops(backbone, int(tokens.lengths.sum()))
        rate = flops / np.median(best[f"prefixembed {name}, no prefix"])
        shares[name] = rate / gemm_rate(dtype, backbone.n_features)
    return {
        "texts_a_second": {k: len(texts) / float(np.median(v)) for k, v in best.items()},
        "spread": {k: float(np.ptp(v) / np.median(v)) for k, v in best.items()},
        "one_minus_cosine": deviation,
        "gemm_share": shares,
    }


def report(name: str, found: dict[str, Any], out: Path) -> None:
    """Print a table and plot it."""
    speed = found["texts_a_second"]
    base_name = "sentence-transformers float32"
    base = speed.get(base_name, speed["prefixembed float32, no prefix"])
    rows = [
        (
            side,
            f"{value:.1f}",
            f"{value / base:.2f}",
            f"{100 * found['spread'][side]:.0f} %",
            f"{found['one_minus_cosine'][side]:.0e}" if side in found["one_minus_cosine"] else "",
        )
        for side, value in speed.items()
    ]
    print(f"\n{name}")
    header = (
        "side",
        "texts per second",
        "ratio",
        "spread of rounds",
        "1 - cosine to float32, worst",
    )
    print(table(header, rows))
    shares = ", ".join(f"{dtype} {share:.0%}" for dtype, share in found["gemm_share"].items())
    print(f"share of the GEMM rate of this run, without prefixes: {shares}", flush=True)
    ratios = {side: value / base for side, value in speed.items()}
    bars(
        out / f"transform-{name.replace(' ', '-')}.png", ratios, f"texts per second, {name}: ratio"
    )


def main() -> None:
    """Measure one model on short texts and on pairs."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, help="folder of JSONL files (default: docstrings)")
    parser.add_argument("--model", choices=["minilm", "large"], default="minilm")
    parser.add_argument("--texts", type=int, help="default: 1000, or 64 for the large model")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--backends", help="Python of an environment for backends.py")
    parser.add_argument("--out", type=Path, default=Path("results/transform"))
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    limit = args.texts or (1000 if args.model == "minilm" else 64)
    print(machine())
    with tempfile.TemporaryDirectory() as temporary:
        short = read_texts(args.data, "short", 5000)
        large = args.model == "large"
        folder = large_backbone(temporary, short) if large else demo_backbone()
        for kind in ("short", "pairs"):
            texts = read_texts(args.data, kind, limit)
            with ExitStack() as running:
                found = measure(folder, texts, args.rounds, args.backends, running)
            name = f"{args.model} {kind}"
            report(name, found, args.out)
            path = args.out / f"{name.replace(' ', '-')}.json"
            path.write_text(json.dumps({"machine": machine(), **found}, indent=1))


if __name__ == "__main__":
    main()
