r"""Measure which prefixes harm which target task, and what choosing prefixes gains.

For each target task, the table shows the score of the whole bank, and how much it changes when
one prefix is inactive. It also shows the score of a chosen bank. Backward selection chooses it: as
long as cross-validation on the training texts improves, the prefix whose absence helps most is
made inactive. Only heads are trained.

The arguments are those of ``reproduce_paper.py``. Prefixes that it has learned in the same
``--out`` are used again::

    python examples/leave_one_out.py --data DIR --sources sst2 qnli sick cola stsb \\
        --targets mr cr mpqa rte mrpc boolq --target-texts 1000 --seeds 0 1 2

At the size of the paper::

    python examples/leave_one_out.py --backbone roberta-large --max-length 512 \\
        --source-texts 1000000 --target-texts 1000000
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
from reproduce_paper import (
    Results,
    learn_prefixes,
    main_score,
    make_encoder,
    parse,
    read_arguments,
    run_target,
)

from prefixembed import Prefix, PrefixBank


def name_subset(combine: str, active: frozenset[str], everything: frozenset[str]) -> str:
    """Return the name of a bank, which lists its inactive prefixes."""
    absent = sorted(everything - active)
    whole = "bank, concatenated (the paper)" if combine == "concat" else f"bank, {combine}"
    return whole + "".join(f", no {name}" for name in absent)


class Target:
    """Hold the scores of one target task, by active prefixes."""

    def __init__(
        self,
        args: argparse.Namespace,
        seed: int,
        target: str,
        prefixes: dict[str, Prefix],
        results: Results,
    ) -> None:
        self.args, self.seed, self.target = args, seed, target
        self.prefixes, self.results = prefixes, results
        self.everything = frozenset(prefixes)

    def get(self, *subsets: frozenset[str]) -> list[dict[str, float]]:
        """Return the scores of subsets of the prefixes, computing those that are missing."""
        names = [name_subset(self.args.combine, subset, self.everything) for subset in subsets]
        banks = {
            name: PrefixBank(
                self.prefixes,
                backbone=self.args.backbone,
                active=sorted(subset),
                combine=self.args.combine,
                max_length=self.args.max_length,
                pairs=make_encoder(self.args).pairs,
                on_truncate="ignore",
                cache=None,
            )
            for name, subset in zip(names, subsets, strict=True)
        }
        run_target(self.args, self.seed, self.target, banks, self.results)
        return [self.results.get(self.seed, self.target, name) for name in names]

    def choose(self) -> frozenset[str]:
        """Remove prefixes one by one as long as the cross-validated score improves."""
        active = self.everything
        (best,) = self.get(active)
        while active:
            smaller = [active - {name} for name in sorted(active)]
            found = self.get(*smaller)
            k = int(np.argmax([scores["training"] for scores in found]))
            if found[k]["training"] <= best["training"]:
                break
            active, best = smaller[k], found[k]
        return active


def collect(
    args: argparse.Namespace, results: Results
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return scores of the whole bank and of the chosen one, and the effects of leaving one out.

    Their shapes are (seed, target), (seed, target) and (seed, target, source).
    """
    shape = len(args.seeds), len(args.targets)
    whole, chosen = np.zeros(shape), np.zeros(shape)
    changes = np.zeros((*shape, len(args.sources)))
    for i, seed in enumerate(args.seeds):
        prefixes = learn_prefixes(args, seed, results)
        for j, target in enumerate(args.targets):
            by_subset = Target(args, seed, target, prefixes, results)
            everything = by_subset.everything
            subsets = [everything, *(everything - {name} for name in args.sources)]
            subsets.append(by_subset.choose())
            scores = np.array([main_score(found, target) for found in by_subset.get(*subsets)])
            whole[i, j], chosen[i, j] = scores[0], scores[-1]
            changes[i, j] = scores[1:-1] - scores[0]
    return whole, chosen, changes


def heatmap(args: argparse.Namespace, changes: np.ndarray, path: Path) -> None:
    """Plot how much the score of each target changes without each source, averaged over seeds."""
    import matplotlib.pyplot as plt

    mean = changes.mean(axis=0)
    limit = max(0.01, float(np.abs(mean).max()))
    figure, axes = plt.subplots(
        figsize=(2.5 + 0.9 * len(args.sources), 1.2 + 0.5 * len(args.targets)),
        layout="constrained",
    )
    image = axes.imshow(mean, cmap="RdBu", vmin=-limit, vmax=limit, aspect="auto")
    for (row, column), value in np.ndenumerate(mean):
        color = "white" if abs(value) > 0.6 * limit else "black"
        axes.text(column, row, f"{value:+.3f}", ha="center", va="center", color=color)
    axes.set_xticks(range(len(args.sources)), args.sources)
    axes.set_yticks(range(len(args.targets)), args.targets)
    axes.set(xlabel="inactive prefix", ylabel="target task")
    figure.colorbar(image, label="change of the score")
    figure.savefig(path, dpi=120)
    plt.close(figure)


def main() -> None:
    """Run what is missing, write the table, and plot it."""
    parser = parse(__doc__.splitlines()[0])
    parser.add_argument("--combine", choices=["concat", "mean"], default="concat")
    args, results = read_arguments(parser)
    whole, chosen, changes = collect(args, results)
    lines = [f"| target task | whole | {' | '.join(f'no {s}' for s in args.sources)} | chosen |"]
    lines.append("|---" * (len(args.sources) + 3) + "|")
    rows = [*zip(args.targets, whole.T, changes.transpose(1, 2, 0), chosen.T, strict=True)]
    rows.append(("average", whole.mean(1), changes.mean(1).T, chosen.mean(1)))
    for name, every, without, best in rows:
        cells = " | ".join(f"{by_seed.mean():+.3f}" for by_seed in without)
        lines.append(f"| {name} | {every.mean():.3f} | {cells} | {best.mean():.3f} |")
    table = "\n".join(lines)
    (args.out / f"leave_one_out_{args.combine}.md").write_text(table + "\n")
    heatmap(args, changes, args.out / f"leave_one_out_{args.combine}.png")
    gains = (chosen - whole).mean(axis=1)
    print(f"{table}\n\nchosen minus whole, by seed: {', '.join(f'{g:+.3f}' for g in gains)}")


if __name__ == "__main__":
    main()
