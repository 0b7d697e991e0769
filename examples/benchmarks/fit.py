"""Compare the time of a training step with full fine-tuning and with prefix tuning in PEFT.

All sides take turns with the same backbone, texts, batches, optimizer, dtype and number of steps::

    pip install -e ".[demo,bench]"
    python examples/benchmarks/fit.py [--data DIR]
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from common import alternate, bars, machine, read_texts, table
from transformers import AutoModel, AutoModelForSequenceClassification

from prefixembed import load_backbone
from prefixembed._embed.batches import pad_batch, shuffle_batches
from prefixembed._embed.encoding import resolve_batch_tokens
from prefixembed._fit.background import background_texts
from prefixembed._fit.examples import Examples, prepare, read_rows
from prefixembed._fit.learning import count_batches, train
from prefixembed._fit.optimization import Recipe
from prefixembed._fit.prefix_learner import PrefixLearner
from prefixembed._model.pooling import pool
from prefixembed.reading import Reading
from prefixembed.tasks import demo_backbone

READING = Reading("mean", 128)
BATCH = 32


class FineTuned(torch.nn.Module):
    """Combine the whole backbone with a linear head."""

    def __init__(self, folder: str) -> None:
        super().__init__()
        self.body = AutoModel.from_pretrained(folder, add_pooling_layer=False)
        self.head = torch.nn.Linear(self.body.config.hidden_size, 2)

    def forward(self, input_ids: Any, attention_mask: Any, token_type_ids: Any) -> Any:
        """Return logits."""
        hidden = self.body(
            input_ids=input_ids, attention_mask=attention_mask, token_type_ids=token_type_ids
        ).last_hidden_state
        return self.head(pool(hidden, attention_mask.bool(), "mean"))


def peft_model(folder: str) -> torch.nn.Module | None:
    """Return a model for prefix tuning in PEFT with five positions, or None without PEFT."""
    try:
        from peft import PrefixTuningConfig, TaskType, get_peft_model
    except ImportError:
        return None
    body = AutoModelForSequenceClassification.from_pretrained(folder, num_labels=2)
    config = PrefixTuningConfig(task_type=TaskType.SEQ_CLS, num_virtual_tokens=5)
    return get_peft_model(body, config)


def loop(
    model: torch.nn.Module, data: Examples, pad_id: int, bfloat16: bool, device: str = "cpu"
) -> Callable[[], None]:
    """Return a function that runs one pass of a plain training loop."""
    model.to(device)
    trained = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=1e-5)
    labels = torch.from_numpy(data.targets.values).to(device)
    model.train()

    def run_pass() -> None:
        rng = np.random.default_rng(0)
        for positions in shuffle_batches(data.tokens.lengths, BATCH, rng):
            batch = pad_batch(data.tokens, positions, pad_id)
            mask = np.ones(batch.ids.shape, bool) if batch.mask is None else batch.mask
            with torch.autocast(torch.device(device).type, torch.bfloat16, enabled=bfloat16):
                output = model(
                    input_ids=torch.from_numpy(batch.ids).to(device),
                    attention_mask=torch.from_numpy(mask).long().to(device),
                    token_type_ids=torch.from_numpy(batch.type_ids).to(device),
                )
                logits = getattr(output, "logits", output)
            where = torch.from_numpy(positions).to(device)
            loss = torch.nn.functional.cross_entropy(logits.float(), labels[where])
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            torch.nn.utils.clip_grad_norm_(trained, 1.0)
            optimizer.step()

    return run_pass


def own(folder: str, data: Examples, dtype: str, device: str = "cpu") -> Callable[[], None]:
    """Return a function that runs one pass of prefixembed."""
    backbone = load_backbone(folder, dtype=dtype, device=device)
    learner = PrefixLearner(
        backbone, data, READING, prefix_length=0, ffn_length=16, init="text", reparameterize=None,
        slot_rate=1.0, dropout=0.0, background=background_texts(), background_weight=10.0,
        rng=np.random.default_rng(0),
    )  # fmt: skip
    n_steps = count_batches(len(data.train), BATCH)
    recipe = Recipe(
        max_steps=n_steps, eval_steps=n_steps, batch_size=BATCH, learning_rate=1e-5,
        weight_decay=0.0, patience=None,
    )  # fmt: skip
    budget = resolve_batch_tokens("auto", backbone.device)

    def run_pass() -> None:
        rng = np.random.default_rng(0)
        train({"": data}, learner, recipe, batch_tokens=budget, rng=rng).reraise(None)

    return run_pass


def main() -> None:
    """Measure all sides, print a table, and plot it."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, help="folder of JSONL files (default: docstrings)")
    parser.add_argument("--steps", type=int, default=10)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--out", type=Path, default=Path("results/fit"))
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    folder = demo_backbone()
    backbone = load_backbone(folder, device="cpu")
    texts = read_texts(args.data, "short", args.steps * BATCH)
    labels = np.random.default_rng(0).integers(2, size=len(texts))
    rows = read_rows("classification", texts, labels)
    data = prepare(rows, backbone, READING, None, np.random.default_rng(0))
    sides = {}
    for bfloat16, dtype in ((False, "float32"), (True, "bfloat16")):
        sides[f"full fine-tuning {dtype}"] = loop(FineTuned(folder), data, 0, bfloat16)
        if (peft := peft_model(folder)) is not None:
            sides[f"PEFT prefix tuning {dtype}"] = loop(peft, data, 0, bfloat16)
        sides[f"prefixembed {dtype}"] = own(folder, data, dtype)
    seconds = {k: float(np.median(v)) for k, v in alternate(sides, args.rounds).items()}
    steps = -(-len(texts) // BATCH)
    cells = []
    for name, value in seconds.items():
        full = seconds[f"full fine-tuning {name.rpartition(' ')[2]}"]
        cells.append((name, f"{1000 * value / steps:.0f}", f"{value / full:.2f}"))
    print(machine())
    print(table(("side", "ms per step of 32 texts", "ratio to full fine-tuning"), cells))
    ratios = {name: float(ratio) for name, _, ratio in cells}
    bars(
        args.out / "fit.png", ratios, "time of a step, ratio to full fine-tuning in the same dtype"
    )
    (args.out / "fit.json").write_text(json.dumps({"machine": machine(), "seconds": seconds}))


if __name__ == "__main__":
    main()
