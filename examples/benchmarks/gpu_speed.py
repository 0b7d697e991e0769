"""Speed on a GPU: ``transform`` and fit beside others, and the compiled backbone as a reference."""

from __future__ import annotations

import gc
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from common import alternate, encoder_flops, random_prefixes, timed
from fit import BATCH, READING, FineTuned, loop, own, peft_model
from gpu_part import Part, peak_megabytes
from gpu_shapes import SHAPES, make_shape, random_texts
from transform import sentence_transformers_sides
from transformers import AutoModel

from prefixembed import Prefix, PrefixBank, load_backbone, release_backbones
from prefixembed._embed.tokens import tokenize
from prefixembed._fit.examples import prepare, read_rows
from prefixembed.reading import Reading

Sides = Mapping[str, Callable[[], Any]]
_PEER = "sentence-transformers bfloat16"
# The ends first, for the case that time does not suffice for all.
_LENGTHS = (16, 512, 128, 32, 64, 256)
_SECONDS = 0.1  # that our bfloat16 side should take for the texts of a cell
_MOST_TEXTS = 16384


def gemm_peak(part: Part) -> float:
    """Measure the FLOP/s of a large product in bfloat16: the best of several sizes."""
    best = 0.0
    for width in (128,) if part.is_tiny else (4096, 8192):
        a, b = torch.randn(2, width, width, device=part.device).to(torch.bfloat16)
        n_times = 2 if part.is_tiny else 20

        def products(a: torch.Tensor = a, b: torch.Tensor = b, n_times: int = n_times) -> None:
            for _ in range(n_times):
                a @ b

        products()
        best = max(best, *(2 * width**3 * n_times / timed(products) for _ in range(3)))
    return best


def measure_transform(part: Part) -> None:
    """Measure ``transform`` beside sentence-transformers, by shape, length and prefixes."""
    peak = gemm_peak(part)
    part.note(bfloat16_tflops=peak / 1e12)
    with tempfile.TemporaryDirectory() as scratch:
        folders: dict[str, str] = {}
        # All shapes at two lengths, then all at the others: whatever there is time for.
        for lengths in ((16,),) if part.is_tiny else (_LENGTHS[:2], _LENGTHS[2:]):
            for name in SHAPES:
                if not part.has_time_for(f"{name}, {lengths} tokens"):
                    continue
                if name not in folders:
                    folders[name] = make_shape(Path(scratch), name, part.size)
                prefixes = _prefixes(folders[name], part.device)
                for length in lengths:
                    if part.has_time_for(f"{name}, {length} tokens"):
                        _measure_cell(part, name, folders[name], length, prefixes, peak)
                del prefixes
                _release()


def _prefixes(folder: str, device: str) -> dict[str, dict[str, Prefix]]:
    slots = random_prefixes(folder, 100, device=device)
    positions = random_prefixes(folder, 100, length=5, ffn_length=0, device=device)

    def first(n: int, some: dict[str, Prefix]) -> dict[str, Prefix]:
        return dict(list(some.items())[:n])

    return {
        "no prefix": {},
        "7 prefixes, slots": first(7, slots),
        "100 prefixes, slots": slots,
        "7 prefixes, positions": first(7, positions),
        "100 prefixes, positions": positions,
    }


def _measure_cell(
    part: Part,
    name: str,
    folder: str,
    length: int,
    prefixes: dict[str, dict[str, Prefix]],
    peak: float,
) -> None:
    """Measure all sides on texts of one length."""
    common = {"pooling": "mean", "max_length": length, "cache": None, "device": part.device}
    banks = {
        f"prefixembed {dtype}, {kind}": PrefixBank(
            prefixes[kind], backbone=folder, dtype=dtype, **common
        )
        for dtype, kinds in (("bfloat16", prefixes), ("float32", ["no prefix"]))
        for kind in kinds
    }
    texts = _enough_texts(part, banks["prefixembed bfloat16, no prefix"], length)
    ours = {side: lambda bank=bank: bank.transform(texts) for side, bank in banks.items()}
    sizes = (8,) if part.is_tiny else (32, 128, 512)
    theirs = sentence_transformers_sides(folder, texts, part.device, sizes, length)
    sides = _best_sizes(theirs) | ours
    seconds = alternate(sides, 1 if part.is_tiny else 3)
    backbone = load_backbone(folder, dtype="bfloat16", device=part.device)
    tokens = tokenize(backbone, texts, Reading("mean", length))
    flops = encoder_flops(backbone, int(tokens.lengths.sum()))
    medians = {side: float(np.median(values)) for side, values in seconds.items()}
    peer = next((value for side, value in medians.items() if side.startswith(_PEER)), None)
    exact = sides["prefixembed float32, no prefix"]()
    for side, run in sides.items():
        vectors: list[np.ndarray] = []
        memory = peak_megabytes(part.device, lambda run=run, found=vectors: found.append(run()))
        bare = "prefixes" not in side
        moving = None  # what each call takes to bring its prefixes to the device
        if not bare:
            combination = banks[side].combination()
            moving = timed(lambda some=combination: some.extension(backbone))
        part.add(
            shape=name, tokens=length, texts=len(texts), side=side,
            texts_per_second=len(texts) / medians[side],
            ratio=None if peer is None else peer / medians[side],
            spread=float(np.ptp(seconds[side]) / medians[side]),
            share_of_peak=flops / medians[side] / peak,
            peak_megabytes=memory,
            seconds_to_move_prefixes=moving,
            one_minus_cosine=_deviation(vectors[0], exact) if bare else None,
        )  # fmt: skip


def _enough_texts(part: Part, bank: PrefixBank, length: int) -> list[str]:
    """Return as many texts as the bank encodes in a short time."""
    if part.is_tiny:
        return random_texts(16, length)
    texts = random_texts(_MOST_TEXTS, length)
    some = texts[: max(64, 32768 // length)]
    bank.transform(some)
    n_texts = int(len(some) * _SECONDS / timed(lambda: bank.transform(some)))
    return texts[: max(len(some), n_texts)]


def _best_sizes(sides: Sides) -> dict[str, Callable[[], Any]]:
    """Return each side at its fastest batch size; one that does not fit into memory is none."""
    best: dict[str, tuple[float, str]] = {}
    for name, run in sides.items():
        try:
            run()
            seconds = timed(run)
        except torch.OutOfMemoryError:
            continue
        short = name.split(", batch")[0]
        best[short] = min(best.get(short, (seconds, name)), (seconds, name))
    return {name: sides[name] for _, name in best.values()}


def _deviation(vectors: np.ndarray, exact: np.ndarray) -> float:
    norms = np.linalg.norm(vectors, axis=1) * np.linalg.norm(exact, axis=1)
    return max(0.0, 1 - float(((vectors * exact).sum(axis=1) / norms).min()))


def measure_fit(part: Part) -> None:
    """Measure a training step beside full fine-tuning and PEFT, by shape and dtype."""
    n_steps = 1 if part.is_tiny else 8
    with tempfile.TemporaryDirectory() as scratch:
        for name in ("MiniLM", "RoBERTa-large"):
            if not part.has_time_for(name):
                continue
            folder = make_shape(Path(scratch), name, part.size)
            texts = random_texts(n_steps * BATCH, 32 if part.is_tiny else READING.max_length)
            labels = np.random.default_rng(0).integers(2, size=len(texts))
            rows = read_rows("classification", texts, labels)
            backbone = load_backbone(folder, device=part.device)
            data = prepare(rows, backbone, READING, None, np.random.default_rng(0))
            for dtype in ("bfloat16", "float32"):
                if not part.has_time_for(f"{name}, {dtype}"):
                    continue
                half, pad_id = dtype == "bfloat16", backbone.pad_id
                full = loop(FineTuned(folder), data, pad_id, half, part.device)
                sides = {"full fine-tuning": full}
                if (peft := peft_model(folder)) is not None:
                    sides["PEFT prefix tuning"] = loop(peft, data, pad_id, half, part.device)
                sides["prefixembed"] = own(folder, data, dtype, part.device)
                medians = {
                    side: float(np.median(values))
                    for side, values in alternate(sides, 1 if part.is_tiny else 5).items()
                }
                for side, run in sides.items():
                    part.add(
                        shape=name, dtype=dtype, side=side,
                        milliseconds_per_step=1000 * medians[side] / n_steps,
                        ratio=medians[side] / medians["full fine-tuning"],
                        peak_megabytes=peak_megabytes(part.device, run),
                    )  # fmt: skip
                del sides, full, peft
                _release()


def measure_compiled(part: Part) -> None:
    """Measure the plain backbone on ready batches of one length: eager, and compiled.

    There is no tokenizer, padding or pooling: this is how fast the layers can run.
    """
    compiler = "eager" if part.is_tiny else "inductor"
    part.note(compiler=compiler)
    with tempfile.TemporaryDirectory() as scratch:
        for name in list(SHAPES)[:1] if part.is_tiny else SHAPES:
            if not part.has_time_for(name):
                continue
            folder = make_shape(Path(scratch), name, part.size)
            plain = AutoModel.from_pretrained(folder, dtype=torch.bfloat16)
            plain = plain.to(part.device).eval()
            compiled: Any = None
            for length in (16,) if part.is_tiny else (32, 128):
                if not part.has_time_for(f"{name}, {length} tokens"):
                    continue
                n_texts = 2 if part.is_tiny else 32768 // length
                ids = torch.randint(4, 8000, (n_texts, length), device=part.device)
                compiled = torch.compile(plain, dynamic=False, backend=compiler)

                def forward(model: Any, ids: torch.Tensor = ids) -> None:
                    with torch.inference_mode():
                        model(input_ids=ids, attention_mask=torch.ones_like(ids))

                first = timed(lambda run=forward, model=compiled: run(model))
                sides = {
                    "eager": lambda run=forward, model=plain: run(model),
                    "compiled": lambda run=forward, model=compiled: run(model),
                }
                medians = {k: float(np.median(v)) for k, v in alternate(sides, 5).items()}
                for side, value in medians.items():
                    part.add(
                        shape=name, tokens=length, side=side, texts_per_second=n_texts / value,
                        ratio=medians["eager"] / value,
                        seconds_of_first_call=first if side == "compiled" else None,
                    )  # fmt: skip
            torch._dynamo.reset()
            del plain, compiled
            _release()


def _release() -> None:
    release_backbones()
    gc.collect()
    if torch.cuda.is_initialized():
        torch.cuda.empty_cache()
