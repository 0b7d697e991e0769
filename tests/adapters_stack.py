"""Compare vectors of a bank with those of a ``Stack`` of the same prefixes in the library adapters.

adapters needs transformers 4 and this library transformers 5, so each half runs in an environment
of its own, and they exchange files. Run it by hand::

    python -m venv theirs && theirs/bin/pip install adapters
    python tests/adapters_stack.py theirs/bin/python

Their half draws flat prefixes of different lengths, stacks them, and averages the token vectors.
Our half loads the adapters that it saved. Both read the same token ids, so that versions of
tokenizers do not matter. The script fails if a vector differs by more than 1e-4.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
from dataclasses import replace
from pathlib import Path

import numpy as np

LENGTHS = (3, 5, 8)
TOLERANCE = 1e-4
TEXTS = [
    "a",
    "what a film",
    "dull, long and loud: a bore",
    "",
    "Zürich 中文 \U0001f600",
    "one two three four five six seven eight nine ten",
    *(f"text {k} " + "of some words " * (k % 4) for k in range(40)),
]


def their_half(folder):
    """Save adapters, and the vectors of the bare backbone, of each prefix and of their stack."""
    import adapters
    import torch
    from adapters.composition import Stack
    from transformers import AutoModel

    given = json.loads((folder / "given.json").read_text(encoding="utf-8"))
    model = AutoModel.from_pretrained(given["backbone"], dtype=torch.float32)
    adapters.init(model)
    torch.manual_seed(0)
    names = [f"p{k}" for k in range(len(LENGTHS))]
    for name, length in zip(names, LENGTHS, strict=True):
        model.add_adapter(name, adapters.PrefixTuningConfig(flat=True, prefix_length=length))
        model.save_adapter(str(folder / name), name)
    model.eval()
    longest = max(map(len, given["ids"]))
    ids = torch.full((len(given["ids"]), longest), given["pad_id"])
    mask = torch.zeros_like(ids)
    for row, text in enumerate(given["ids"]):
        ids[row, : len(text)] = torch.tensor(text)
        mask[row, : len(text)] = 1
    setups = {"bare": None, **{name: Stack(name) for name in names}, "stack": Stack(*names)}
    for setup, active in setups.items():
        model.set_active_adapters(active)
        with torch.no_grad():
            hidden = model(input_ids=ids, attention_mask=mask).last_hidden_state
        kept = mask[..., None]
        vectors = (hidden * kept).sum(1) / kept.sum(1)
        np.save(folder / f"{setup}.npy", vectors.numpy())


def our_half(folder, backbone, theirs):
    """Run their half and compare.

    Returns the largest difference of a feature in each setup, which must be small, and two effects
    that must be large.
    """
    from prefixembed import PrefixBank, load_backbone
    from prefixembed.interop import load_adapters

    loaded = load_backbone(backbone, dtype="float32", device="cpu")
    longest = loaded.max_length - sum(LENGTHS)  # leaves room for positions after the prefixes
    tokenizer = loaded.tokenizer(longest)
    given = {
        "backbone": backbone,
        "pad_id": loaded.pad_id,
        "ids": [tokenizer.encode(text).ids for text in TEXTS],
    }
    (folder / "given.json").write_text(json.dumps(given), encoding="utf-8")
    command = [theirs, __file__, theirs, "--their-half", str(folder)]
    alone = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    subprocess.run(command, check=True, env=alone, timeout=600)
    bank = PrefixBank(
        {}, backbone=backbone, pooling="mean", max_length=longest, dtype="float32", device="cpu",
        cache=None, on_truncate="ignore",
    )  # fmt: skip
    for k in range(len(LENGTHS)):
        state = read_adapter(folder / f"p{k}")
        bank.add(f"p{k}", load_adapters(state, backbone, max_length=longest))
    setups = {"bare": [], **{name: [name] for name in bank}, "stack": list(bank)}
    differences = {}
    for setup, active in setups.items():
        vectors = bank.set_params(active=active).transform(TEXTS)
        differences[setup] = float(np.abs(vectors - np.load(folder / f"{setup}.npy")).max())
    # The comparison must be able to fail: prefixes must matter, and so must positions, which PEFT
    # would shift.
    stacked = np.load(folder / "stack.npy")
    effect = float(np.abs(stacked - np.load(folder / "bare.npy")).max())
    moved = float(np.abs(shifted(bank).transform(TEXTS) - stacked).max())
    return differences, {"prefixes": effect, "positions": moved}


def shifted(bank):
    """Return a bank in which the first token of a text comes after all prefixes."""
    prefixes = {
        name: replace(prefix, reading=replace(prefix.reading, first_position=sum(LENGTHS)))
        for name, prefix in bank.items()
    }
    return type(bank)(**{**bank.get_params(deep=False), "prefixes": prefixes})


def read_adapter(folder):
    """Return the tensors of an adapter, from either format of its file."""
    import torch
    from safetensors.torch import load_file

    path = folder / "adapter.safetensors"
    if path.is_file():
        return load_file(path)
    return torch.load(folder / "pytorch_adapter.bin", weights_only=True)


def main():
    """Compare on tiny backbones of families that both libraries support, and on a real one."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("python", help="Python of the environment with adapters")
    parser.add_argument("--their-half", type=Path, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.their_half is not None:
        their_half(args.their_half)
        return
    from conftest import make_backbone

    from prefixembed.tasks import demo_backbone

    wrong = []
    with tempfile.TemporaryDirectory() as folder:
        backbones = {
            family: make_backbone(Path(folder) / family, family)
            for family in ("bert", "electra", "roberta", "xlm-roberta")
        }
        for name, backbone in {**backbones, "all-MiniLM-L6-v2": demo_backbone()}.items():
            work = Path(folder) / f"{name} work"
            work.mkdir()
            differences, effects = our_half(work, backbone, args.python)
            print(name, *(f"{key} {value:.1e}" for key, value in differences.items()), flush=True)
            print("   effect of", *(f"{key} {value:.1e}" for key, value in effects.items()))
            if max(differences.values()) > TOLERANCE or min(effects.values()) < 100 * TOLERANCE:
                wrong.append(name)
    if wrong:
        sys.exit(f"vectors of {', '.join(wrong)} differ")


if __name__ == "__main__":
    main()
