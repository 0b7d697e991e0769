"""Share texts, alternating runs, tables and plots among the benchmarks."""

from __future__ import annotations

import json
import platform
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
import torch

from prefixembed import Prefix, load_backbone
from prefixembed.reading import Reading
from prefixembed.slots import Slots
from prefixembed.tasks import load_docstring_task

_PEERS = ("sentence-transformers", "skrub", "full", "PEFT", "adapters", "cache=None",
          "Pipeline(memory=...),")  # fmt: skip


def read_texts(data: Path | None, kind: str, limit: int) -> list[Any]:
    """Return texts or pairs of a task in a folder, or of docstrings if there is no folder."""
    if data is None:
        task = load_docstring_task("package" if kind == "short" else "name")
        rows = [tuple(row) if kind == "pairs" else row for row in task.X_train]
    else:
        name = "mr" if kind == "short" else "mrpc"
        with open(data / f"{name}.train.jsonl", encoding="utf-8") as file:
            objects = [json.loads(line) for line in file]
        rows = [(o["text"], o["text_b"]) if kind == "pairs" else o["text"] for o in objects]
    return list(dict.fromkeys(rows))[:limit]


def random_prefixes(
    folder: str,
    n: int,
    length: int = 0,
    ffn_length: int = 16,
    seed: int = 0,
    scale: float = 0.1,
    device: str = "auto",
) -> dict[str, Prefix]:
    """Return random prefixes, which cost as much as learned ones; `scale` is that of slots."""
    backbone = load_backbone(folder, device=device)
    n_layers, n_heads, head_dim = backbone.layout
    rng = np.random.default_rng(seed)
    shape = (n_layers, 2, n_heads, length, head_dim)
    slots_shape = (n_layers, ffn_length, backbone.n_features)

    def random_slots() -> Slots | None:
        if not ffn_length:
            return None
        keys, values = rng.standard_normal((2, *slots_shape), dtype=np.float32)
        unit = backbone.n_features**-0.5
        return Slots(keys * unit, np.zeros(slots_shape[:2]), values * scale * unit)

    return {
        f"task {k}": Prefix(
            keys_values=rng.standard_normal(shape, dtype=np.float32),
            backbone=folder,
            fingerprint=backbone.fingerprint,
            n_features=backbone.n_features,
            reading=Reading("mean", backbone.max_length),
            slots=random_slots(),
        )
        for k in range(n)
    }


def alternate(sides: Mapping[str, Callable[[], Any]], rounds: int) -> dict[str, np.ndarray]:
    """Return the seconds of each side in each round, after a warm-up round."""
    for run in sides.values():
        timed(run)
    seconds: dict[str, list[float]] = {name: [] for name in sides}
    for k in range(rounds):
        # The order is reversed in every other round, so that no side benefits from it.
        for name in list(sides)[:: 1 if k % 2 else -1]:
            seconds[name].append(timed(sides[name]))
    return {name: np.array(by_round) for name, by_round in seconds.items()}  # (rounds,)


def timed(run: Callable[[], Any]) -> float:
    """Return the seconds that a call takes, with what it leaves in the queue of a device."""
    started = time.perf_counter()
    run()
    if torch.cuda.is_initialized():
        torch.cuda.synchronize()
    return time.perf_counter() - started


def backend_sides(
    backends: Sequence[str],
    python: str,
    folder: str,
    texts: list[Any],
    scratch: Path,
    running: ExitStack,
) -> dict[str, Callable[[], Any]]:
    """Return sides that run in processes of another environment."""
    path = scratch / "texts.json"
    path.write_text(json.dumps(texts), encoding="utf-8")
    script = Path(__file__).with_name("backends.py")
    sides: dict[str, Callable[[], Any]] = {}
    for name in backends:
        backend = name.removeprefix("sentence-transformers ")
        worker = subprocess.Popen(
            [python, "-W", "ignore", str(script), backend, folder, str(path), "16"],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True,
        )  # fmt: skip
        running.callback(worker.communicate)  # closes its input, which ends it
        vectors = path.with_suffix(f".{backend.replace(' ', '-')}.npy")

        def encode(worker: Any = worker, vectors: Path = vectors) -> np.ndarray:
            worker.stdin.write("encode\n")
            worker.stdin.flush()
            wait_for(worker, "done")
            return np.load(vectors)

        if wait_for(worker, "ready"):
            sides[name] = encode
    return sides


def save_tokenizer(tokenizer: Any, folder: Any, pair: str, **params: Any) -> None:
    """Save a tokenizer of ``tokenizers`` with special tokens as RoBERTa has them."""
    from tokenizers import processors
    from transformers import PreTrainedTokenizerFast

    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>", pair=pair, special_tokens=[("<s>", 0), ("</s>", 2)]
    )
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token="<s>", cls_token="<s>", eos_token="</s>",
        sep_token="</s>", pad_token="<pad>", unk_token="<unk>", model_max_length=512, **params,
    ).save_pretrained(folder)  # fmt: skip


def wait_for(worker: Any, word: str) -> bool:
    """Read the output of a worker until it prints a word; return False if it ends first."""
    return any(line.strip() == word for line in iter(worker.stdout.readline, ""))


def gemm_rate(dtype: torch.dtype, width: int, n_tokens: int = 1024) -> float:
    """Measure the FLOP/s of the matrix products of a layer."""
    shapes = [(width, width)] * 4 + [(width, 4 * width), (4 * width, width)]
    pairs = [(torch.randn(n_tokens, k).to(dtype), torch.randn(p, k).to(dtype)) for k, p in shapes]
    rates = []
    for _ in range(12):
        started = time.perf_counter()
        for x, w in pairs:
            torch.nn.functional.linear(x, w)
        flops = sum(2 * n_tokens * k * p for k, p in shapes)
        rates.append(flops / (time.perf_counter() - started))
    return float(np.median(rates))


def encoder_flops(backbone: Any, n_tokens: int) -> float:
    """Count the FLOPs of linear layers. Attention is left out, which is to our disadvantage."""
    weights = sum(
        module.weight.numel()
        for module in backbone.model.modules()
        if isinstance(module, torch.nn.Linear)
    )
    return 2.0 * weights * n_tokens


def table(header: Sequence[str], rows: Sequence[Sequence[Any]]) -> str:
    """Return a Markdown table."""
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join("| " + " | ".join(str(cell) for cell in line) + " |" for line in lines)


def bars(path: Path, values: Mapping[str, float], label: str, reference: float = 1.0) -> None:
    """Plot one bar per side, with peers in grey."""
    import matplotlib.pyplot as plt

    names = list(values)[::-1]
    height = 1.2 + 0.32 * len(names)
    figure, axes = plt.subplots(figsize=(7.5, height), layout="constrained")
    colors = ["0.7" if name.split()[0] in _PEERS else "tab:blue" for name in names]
    container = axes.barh(names, [values[name] for name in names], color=colors)
    axes.bar_label(container, fmt="%.2f", padding=3)
    axes.axvline(reference, color="0.4", linestyle="--", linewidth=1)
    axes.set_xlabel(label)
    axes.margins(x=0.1)
    axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(path, dpi=120)
    plt.close(figure)


def machine() -> str:
    """Return the CPU, GPU, number of threads and versions of this run."""
    import transformers

    cpu = platform.processor() or platform.machine()
    if Path("/proc/cpuinfo").exists():
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        cpu = next((line.split(": ")[1] for line in lines if line.startswith("model name")), cpu)
    capabilities = [name for name, has in torch.cpu.get_capabilities().items() if has is True]
    fast = [name for name in capabilities if "bf16" in name or "vnni" in name]
    gpu = f", {torch.cuda.get_device_name()}" if torch.cuda.is_available() else ""
    return (
        f"{cpu} ({', '.join(fast) or 'no bf16'}), {torch.get_num_threads()} threads{gpu}, "
        f"torch {torch.__version__}, transformers {transformers.__version__}"
    )
