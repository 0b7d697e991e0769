r"""Leave one source task out: which prefixes harm which target task, and what choosing gains.

For each target task, its score with the whole bank, and by how much it moves when one source
task's prefix is switched off. Then the bank whose prefixes are chosen: as long as
cross-validation on the target's training texts gets better, the prefix is switched off whose
absence helps most there. Nothing is trained but heads: a prefix is removed by not using it.

Arguments are those of ``reproduce_paper.py``, and what that script has learned under the same
``--out`` is used again::

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
    parse,
    read_arguments,
    run_target,
)

from prefixembed import Prefix, PrefixBank


def name_subset(combine: str, active: frozenset[str], everything: frozenset[str]) -> str:
    """Name a bank by what is switched off in it."""
    absent = sorted(everything - active)
    whole = "bank, concatenated (the paper)" if combine == "concat" else f"bank, {combine}"
    return whole + "".join(f", no {name}" for name in absent)


class Target:
    """The scores of one target task, by which prefixes are switched on."""

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
        """Give the scores of some subsets, of which those that are missing are run."""
        names = [name_subset(self.args.combine, some, self.everything) for some in subsets]
        banks = {
            name: PrefixBank(
                self.prefixes,
                backbone=self.args.backbone,
                active=sorted(subset),
                combine=self.args.combine,
                max_length=self.args.max_length,
                pairs=self.args.pairs,
                on_truncate="ignore",
                cache=None,
            )
            for name, subset in zip(names, subsets, strict=True)
        }
        run_target(self.args, self.seed, self.target, banks, self.results)
        return [self.results.get(self.seed, self.target, name) for name in names]

    def choose(self) -> frozenset[str]:
        """Switch prefixes off one by one, while cross-validation on training texts gains."""
        active = self.everything
        (best,) = self.get(active)
        while active:
            smaller = [active - {name} for name in sorted(active)]
            found = self.get(*smaller)
            k = int(np.argmax([some["training"] for some in found]))
            if found[k]["training"] <= best["training"]:
                break
            active, best = smaller[k], found[k]
        return active


def collect(
    args: argparse.Namespace, results: Results
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Give scores of the whole bank and of the chosen one, and moves without each prefix.

    They have the shapes (seed, target), (seed, target) and (seed, target, source).
    """
    shape = len(args.seeds), len(args.targets)
    whole, chosen = np.zeros(shape), np.zeros(shape)
    moves = np.zeros((*shape, len(args.sources)))
    for i, seed in enumerate(args.seeds):
        prefixes = learn_prefixes(args, seed, results)
        for j, target in enumerate(args.targets):
            some = Target(args, seed, target, prefixes, results)
            subsets = [some.everything, *(some.everything - {name} for name in args.sources)]
            subsets.append(some.choose())
            scores = np.array([main_score(found, target) for found in some.get(*subsets)])
            whole[i, j], moves[i, j], chosen[i, j] = (
                scores[0], scores[1:-1] - scores[0], scores[-1],
            )  # fmt: skip
    return whole, chosen, moves


def heatmap(args: argparse.Namespace, moves: np.ndarray, path: Path) -> None:
    """Draw by how much each target's score moves without each source: mean over seeds."""
    import matplotlib.pyplot as plt

    mean = moves.mean(axis=0)
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
    axes.set(xlabel="prefix switched off", ylabel="target task")
    figure.colorbar(image, label="move of the score")
    figure.savefig(path, dpi=120)
    plt.close(figure)


def main() -> None:
    """Run what is missing, write the table and draw the plot."""
    parser = parse(__doc__.splitlines()[0])
    parser.add_argument("--combine", choices=["concat", "mean"], default="concat")
    args, results = read_arguments(parser)
    whole, chosen, moves = collect(args, results)
    lines = [f"| target task | whole | {' | '.join(f'no {s}' for s in args.sources)} | chosen |"]
    lines.append("|---" * (len(args.sources) + 3) + "|")
    rows = [*zip(args.targets, whole.T, moves.transpose(1, 2, 0), chosen.T, strict=True)]
    rows.append(("average", whole.mean(1), moves.mean(1).T, chosen.mean(1)))
    for name, all_of_them, without, best in rows:
        cells = " | ".join(f"{some.mean():+.3f}" for some in without)
        lines.append(f"| {name} | {all_of_them.mean():.3f} | {cells} | {best.mean():.3f} |")
    table = "\n".join(lines)
    (args.out / f"leave_one_out_{args.combine}.md").write_text(table + "\n")
    heatmap(args, moves, args.out / f"leave_one_out_{args.combine}.png")
    gains = (chosen - whole).mean(axis=1)
    print(f"{table}\n\nchosen beyond whole, by seed: {', '.join(f'{g:+.3f}' for g in gains)}")


if __name__ == "__main__":
    main()
