"""Checks on a GPU: tests that need CUDA, equality with the CPU, and a device that is too small."""

from __future__ import annotations

import subprocess
import sys
import tempfile
import xml.etree.ElementTree as ElementTree
from pathlib import Path
from typing import Any

import numpy as np
import torch
from common import random_prefixes, timed
from gpu_part import Part, Skipped
from gpu_shapes import make_shape, random_texts
from numpy.typing import NDArray

from prefixembed import MultiTaskEncoder, PrefixBank, PrefixEncoder, release_backbones

ROOT = Path(__file__).parents[2]
DTYPES = ("float32", "bfloat16", "float16")
# Largest allowed difference from float32 on the CPU. Vectors: length of the difference over the
# length of the vector. The backbones are tiny and their weights large, so that a fault shows and
# rounding does too. Training steps multiply what is rounded.
VECTOR_BOUNDS = {"float32": 1e-4, "bfloat16": 0.15, "float16": 0.02}
LOSS_BOUNDS = {"float32": 1e-3, "bfloat16": 0.05, "float16": 1e-3}  # fit computes in float32
SCORE_BOUNDS = {"float32": 0.03, "bfloat16": 0.1, "float16": 0.05}


def run_tests(part: Part) -> None:
    """Run the tests with the mark ``cuda``, and count them."""
    tests = ROOT / "tests"
    files = [p for p in sorted(tests.rglob("test_*.py")) if "pytest.mark.cuda" in p.read_text()]
    with tempfile.TemporaryDirectory() as scratch:
        record = Path(scratch) / "record.xml"
        command = [sys.executable, "-m", "pytest", "-m", "cuda", "-p", "no:cacheprovider"]
        command += [f"--junitxml={record}", *map(str, files)]
        # They end before this process is killed, which would leave them alone on the device.
        limit = max(1.0, part.left)
        try:
            done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=limit)
        except subprocess.TimeoutExpired as error:
            raise TimeoutError(f"tests did not end in {limit:.0f} seconds") from error
        part.note(output=done.stdout[-4000:])
        if "No module named pytest" in done.stderr:
            raise Skipped("pytest is not installed")
        suite = ElementTree.parse(record).getroot().find("testsuite")
    assert suite is not None
    counts = {name: int(suite.get(name, 0)) for name in ("tests", "failures", "errors", "skipped")}
    passed = counts["tests"] - counts["failures"] - counts["errors"] - counts["skipped"]
    ok = done.returncode == 0 and (passed > 0 or not part.on_cuda)
    part.add(**counts, passed=passed, exit_code=done.returncode, ok=ok)


def check_equality(part: Part) -> None:
    """Compare vectors, fits and searches on the device with float32 on the CPU."""
    sys.path.insert(0, str(ROOT / "tests"))
    from tiny_backbones import FAMILIES, make_backbone

    with tempfile.TemporaryDirectory() as scratch:
        folders = {f: make_backbone(Path(scratch) / f, f) for f in FAMILIES}
        for family, folder in folders.items():
            if part.has_time_for(f"vectors, {family}"):
                _compare_vectors(part, family, folder)
        # Steps take longer than vectors: one family of each kind of attention comes first.
        kinds = ["bert", "qwen3", "deberta-v2"]
        others = [] if part.is_tiny else [family for family in FAMILIES if family not in kinds]
        for family in ["bert"] if part.is_tiny else [*kinds, *others]:
            if part.has_time_for(f"fit, {family}"):
                _compare_fits(part, family, folders[family])
        if part.has_time_for("search"):
            _compare_searches(part, folders["bert"])


def _compare_vectors(part: Part, family: str, folder: str) -> None:
    from tiny_backbones import PAIRS, TEXTS

    both = {"length": 5, "ffn_length": 16, "scale": 2.0, "device": "cpu"}
    prefixes = random_prefixes(folder, 2, **both)
    # From 100 positions on, a CPU computes in another way.
    many = random_prefixes(folder, 1, length=120, ffn_length=0, device="cpu")
    sentences = [text.split() for text in TEXTS]
    kinds: dict[str, tuple[dict[str, Any], Any, dict[str, Any]]] = {
        "bare": ({}, TEXTS, {}),
        "concat": (prefixes, TEXTS, {}),
        "mean": (prefixes, TEXTS, {"combine": "mean", "weights": 0.5}),
        "weights": (prefixes, TEXTS, {"weights": 0.5}),
        "120 positions": (many, TEXTS, {}),
        "pairs, joint": (prefixes, PAIRS, {"pairs": "joint"}),
        "pairs, apart": (prefixes, PAIRS, {"pairs": "apart"}),
        "words": (prefixes, sentences, {"output": "words"}),
        "windows": (prefixes, TEXTS, {"on_truncate": "window", "max_length": 16}),
        "cls": (prefixes, TEXTS, {"pooling": "cls"}),
        "two layers": (prefixes, TEXTS, {"pooled_layers": 2}),
    }

    def vectors(kind: str, dtype: str, device: str) -> NDArray[np.float32]:
        some, texts, params = kinds[kind]
        common = {"pooling": "mean", "max_length": 64, "cache": None, "on_truncate": "ignore"}
        bank = PrefixBank(some, backbone=folder, dtype=dtype, device=device, **common | params)
        return bank.transform(texts)

    if part.is_tiny and family != "bert":
        kinds = {kind: kinds[kind] for kind in ("bare", "concat", "mean", "120 positions")}
    expected = {kind: vectors(kind, "float32", "cpu") for kind in kinds}
    for dtype in DTYPES:
        # Without a device, one family in all dtypes and the others in one will do.
        if part.is_tiny and dtype != "bfloat16" and family != "bert":
            continue
        worst = {k: _difference(vectors(k, dtype, part.device), v) for k, v in expected.items()}
        largest = max(worst, key=lambda kind: worst[kind])
        _compare(part, f"vectors, {family}", dtype, worst[largest], VECTOR_BOUNDS, of=largest)
    release_backbones()


def _compare_fits(part: Part, family: str, folder: str) -> None:
    from helpers import make_encoder, make_multitask, reviews

    texts, labels = reviews()
    params = {"max_steps": 6, "early_stopping": False, "n_iter_no_change": 3, "ffn_length": 4}

    def fitted(dtype: str, device: str) -> PrefixEncoder:
        return make_encoder(folder, dtype=dtype, device=device, **params).fit(texts, labels)

    expected = fitted("float32", "cpu")
    for dtype in DTYPES:
        encoder = fitted(dtype, part.device)
        losses = [np.array(e.history_["train_loss"]) for e in (encoder, expected)]
        difference = float(np.abs(losses[0] - losses[1]).max())
        vectors = encoder.transform(texts)
        if not np.isfinite(vectors).all():
            difference = float("inf")
        _compare(part, f"fit, {family}", dtype, difference, LOSS_BOUNDS, of="train_loss")
    # Dropout draws other numbers on another device: it is enough that the loss is one.
    tasks = {"a": (texts, labels)}
    tuned: MultiTaskEncoder = make_multitask(folder, device=part.device, max_steps=6).fit(tasks)
    loss = tuned.history_["train_loss"][-1]
    part.add(what=f"fine-tuning, {family}", dtype="float32", of="train_loss is finite",
             difference=0.0, bound=0.0, ok=bool(np.isfinite(loss)))  # fmt: skip
    release_backbones()


def _compare_searches(part: Part, folder: str) -> None:
    from helpers import reviews
    from sklearn.linear_model import LogisticRegression
    from sklearn.model_selection import GridSearchCV
    from sklearn.pipeline import make_pipeline

    texts, labels = reviews()
    prefixes = random_prefixes(folder, 2, length=5, scale=2.0, device="cpu")
    grid = {
        "prefixbank__active": [[], ["task 0"], ["task 0", "task 1"]],
        "logisticregression__C": [0.1, 1.0],
    }

    def scores(dtype: str, device: str) -> NDArray[np.float64]:
        bank = PrefixBank(prefixes, backbone=folder, dtype=dtype, device=device)
        search = GridSearchCV(make_pipeline(bank, LogisticRegression()), grid, cv=3)
        return search.fit(texts, labels).cv_results_["mean_test_score"]

    expected = scores("float32", "cpu")
    for dtype in DTYPES:
        difference = float(np.abs(scores(dtype, part.device) - expected).max())
        _compare(part, "search, bert", dtype, difference, SCORE_BOUNDS, of="mean_test_score")


def _compare(
    part: Part, what: str, dtype: str, difference: float, bounds: dict[str, float], of: str
) -> None:
    part.add(what=what, dtype=dtype, of=of, difference=difference, bound=bounds[dtype],
             ok=bool(difference <= bounds[dtype]))  # fmt: skip


def _difference(vectors: NDArray[np.float32], expected: NDArray[np.float32]) -> float:
    """Return the largest length of a difference over the length of the vector; zeros are equal."""
    if vectors.shape != expected.shape or not np.isfinite(vectors).all():
        return float("inf")
    lengths = np.linalg.norm(expected, axis=1)
    differences = np.linalg.norm(vectors - expected, axis=1)
    return float((differences / np.where(lengths > 0, lengths, 1)).max())


def exceed_memory(part: Part) -> None:
    """Compute in batches that do not fit into memory, and show that work goes on."""
    if not part.on_cuda:
        raise Skipped("a CPU's memory is that of everybody")
    total = torch.cuda.get_device_properties(part.device).total_memory
    with tempfile.TemporaryDirectory() as scratch:
        folder = make_shape(Path(scratch), "MiniLM", part.size)
        texts = random_texts(4096, 256)
        texts[-1] = random_texts(1, 512, seed=1)[0]
        prefixes = random_prefixes(folder, 7, device=part.device)
        common = {"cache": None, "dtype": "float32", "device": part.device}

        def embed(batch_tokens: int | str) -> tuple[NDArray[np.float32], float]:
            found: list[NDArray[np.float32]] = []
            bank = PrefixBank(prefixes, batch_tokens=batch_tokens, **common)
            seconds = timed(lambda: found.append(bank.transform(texts)))
            return found[0], seconds

        def fit(batch_tokens: int | str) -> tuple[NDArray[np.float32], float]:
            encoder = PrefixEncoder(
                folder, batch_tokens=batch_tokens, batch_size=2048, max_steps=2, background=None,
                early_stopping=False, random_state=0, dtype="float32", device=part.device,
            )  # fmt: skip
            labels = np.arange(2048) % 2
            seconds = timed(lambda: encoder.fit(texts[:2048], labels))
            return np.array([encoder.history_["train_loss"]], dtype=np.float32), seconds

        for what, run in (("transform", embed), ("fit", fit)):
            if not part.has_time_for(what):
                continue
            run("auto")  # a first run also creates handles
            expected, usual = run("auto")
            torch.cuda.empty_cache()
            allowed = torch.cuda.memory_reserved() + 2**29
            torch.cuda.set_per_process_memory_fraction(min(1.0, allowed / total))
            before = torch.cuda.memory_stats().get("num_ooms", 0)
            try:
                found, seconds = run(2**30)
            finally:
                torch.cuda.set_per_process_memory_fraction(1.0)
            n_times = torch.cuda.memory_stats().get("num_ooms", 0) - before
            difference = _difference(found, expected)
            part.add(
                what=what, megabytes_left=2**29 // 10**6, times_out_of_memory=n_times,
                seconds=seconds, seconds_of_auto=usual, difference=difference,
                ok=n_times > 0 and difference < 1e-3,
            )  # fmt: skip
