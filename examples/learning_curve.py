r"""Compare a bank with multi-task fine-tuning as source texts and the backbone grow.

The script runs ``reproduce_paper.py`` for several numbers of source texts. At the middle number,
it also runs it on the first few layers of the backbone. Finished results are kept in ``--out``::

    python examples/learning_curve.py --data DIR --sources sst2 sick stsb \\
        --targets mr cr rte mrpc --sizes 300 1000 3000 --layers 2 4 --pairs apart

At the size of the paper::

    python examples/learning_curve.py --backbone roberta-large --max-length 512 \\
        --sizes 1000 10000 100000 --layers 6 12 18 --target-texts 1000000
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
from reproduce_paper import BARE, CHOSEN, MULTITASK, Results, parse, run
from transformers import AutoModel, AutoTokenizer

from prefixembed.tasks import demo_backbone

SHOWN = [BARE, "bank, concatenated (the paper)", "bank, mean", CHOSEN, MULTITASK]


def shallow(backbone: str, n_layers: int, folder: Path) -> str:
    """Save the first layers of a backbone as a backbone of its own, and return its folder."""
    if not (folder / "config.json").exists():
        model = AutoModel.from_pretrained(backbone)
        model.encoder.layer = model.encoder.layer[:n_layers]
        model.config.num_hidden_layers = n_layers
        AutoTokenizer.from_pretrained(backbone).save_pretrained(folder)
        model.save_pretrained(folder)
    return str(folder)


def measure(args: argparse.Namespace, backbone: str, n_texts: int, name: str) -> np.ndarray:
    """Return the average over targets, of shape (representation, seed)."""
    changed = {"backbone": backbone, "source_texts": n_texts, "out": args.out / name}
    own = argparse.Namespace(**{**vars(args), **changed})
    own.out.mkdir(parents=True, exist_ok=True)
    scores = run(own, Results(own))
    print(f"{name}: done", flush=True)
    return np.array([scores[shown].mean(axis=1) for shown in SHOWN])


def plot(curves: dict[str, dict[int, np.ndarray]], path: Path) -> None:
    """Plot one panel per curve: mean and standard deviation over seeds."""
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(1, len(curves), figsize=(5 * len(curves), 4), sharey=True,
                                layout="constrained", squeeze=False)  # fmt: skip
    for panel, (label, points) in zip(axes[0], curves.items(), strict=True):
        values = np.array(list(points.values()))  # (point, representation, seed)
        for k, shown in enumerate(SHOWN):
            panel.errorbar(list(points), values[:, k].mean(axis=1), values[:, k].std(axis=1),
                           marker="o", capsize=3, label=shown)  # fmt: skip
        panel.set(xlabel=label)
        if max(points) > 10 * min(points):
            panel.set_xscale("log")
            panel.minorticks_off()
        panel.set_xticks(list(points), list(points))
        panel.grid(alpha=0.3)
    axes[0][0].set_ylabel("test score, average over targets")
    handles, labels = axes[0][0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=3, frameon=False)
    figure.savefig(path, dpi=120)
    plt.close(figure)


def main() -> None:
    """Run what is missing, print the tables, and plot them."""
    parser = parse(__doc__.splitlines()[0])
    parser.add_argument("--sizes", type=int, nargs="+", default=[300, 1000, 3000])
    parser.add_argument("--layers", type=int, nargs="+", default=[2, 4])
    parser.set_defaults(out=Path("results/learning_curve"))
    args = parser.parse_args()
    args.backbone = args.backbone or demo_backbone()
    middle = sorted(args.sizes)[len(args.sizes) // 2]
    sizes = {n: measure(args, args.backbone, n, f"texts-{n}") for n in args.sizes}
    layers = {
        n: measure(args, shallow(args.backbone, n, args.out / f"backbone-{n}"), middle,
                   f"layers-{n}")
        for n in args.layers
    }  # fmt: skip
    whole = AutoModel.from_pretrained(args.backbone).config.num_hidden_layers
    layers[whole] = sizes[middle]
    curves = {"texts per source task": sizes, f"layers ({middle} texts)": layers}
    for label, points in curves.items():
        print(f"\n| {label} | {' | '.join(SHOWN)} |\n{'|---' * (len(SHOWN) + 1)}|")
        for n, values in points.items():
            cells = " | ".join(f"{by_seed.mean():.3f}" for by_seed in values)
            print(f"| {n} | {cells} |")
    plot(curves, args.out / "learning_curve.png")


if __name__ == "__main__":
    main()
