"""Displays: plots of what the functions of this package compute, after scikit-learn's pattern."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from prefixembed._utils.docstrings import substitute
from prefixembed.inspection.ablation import prefix_ablation
from prefixembed.inspection.drawing import (
    MAX_CLASSES,
    Display,
    class_colors,
    plain_labels,
    prepare_axes,
    write_cells,
)
from prefixembed.inspection.vectors import embedding_map, prefix_similarity

if TYPE_CHECKING:
    from typing_extensions import Self


@substitute
class PrefixAblationDisplay(Display):
    """Plot what each prefix adds to the score of a target task, with intervals.

    Read more in the :doc:`user guide </guide/inspection>`.

    .. versionadded:: 0.1

    Parameters
    ----------
    $names
    gain : ndarray of shape (n_prefixes, 3)
        Change of the score by each prefix alone: mean, lower and upper end.
    contribution : ndarray of shape (n_prefixes, 3)
        Change of the score by adding each prefix to all others: mean, lower and upper end.
    harmful : bool ndarray of shape (n_prefixes,)
        Whether each prefix lowers the score of the bank.

    Attributes
    ----------
    $ax_
    $figure_

    See Also
    --------
    prefixembed.inspection.prefix_ablation : Computes the values.

    Examples
    --------
    >>> from prefixembed.inspection import PrefixAblationDisplay
    >>> display = PrefixAblationDisplay.from_estimator(bank, X, y)  # doctest: +SKIP
    """

    def __init__(
        self,
        names: Sequence[str],
        gain: NDArray[np.float64],
        contribution: NDArray[np.float64],
        harmful: NDArray[np.bool_],
    ) -> None:
        self.names, self.gain = names, gain
        self.contribution, self.harmful = contribution, harmful

    @classmethod
    def from_estimator(
        cls, bank: Any, X: Any, y: ArrayLike, head: Any = None, *, ax: Any = None, **params: Any
    ) -> Self:
        """Score the prefixes of a bank on a target task, and plot the result.

        Parameters
        ----------
        $inspected_bank
        $X
        $target_labels
        $target_head
        $ax
        **params : dict
            Further parameters of :func:`~prefixembed.inspection.prefix_ablation`.

        Returns
        -------
        $display
        """
        return cls.from_result(prefix_ablation(bank, X, y, head, **params), ax=ax)

    def plot(self, ax: Any = None) -> Self:
        """Plot one row per prefix, the largest contribution on top.

        Parameters
        ----------
        $ax

        Returns
        -------
        $display
        """
        order = np.argsort(self.contribution[:, 0])
        rows = np.arange(len(order))
        ax = prepare_axes(self, ax, 6.4, 1.6 + 0.3 * len(order))
        for values, label, marker, color, shift in (
            (self.gain, "alone vs. bare backbone", "o", "tab:gray", -0.14),
            (self.contribution, "bank vs. bank without it", "s", "tab:blue", 0.14),
        ):
            mean, low, high = values[order].T
            ax.errorbar(
                mean, rows + shift, xerr=[mean - low, high - mean], fmt=marker, color=color,
                markersize=4, elinewidth=1.2, label=label,
            )  # fmt: skip
        harmful = np.flatnonzero(self.harmful[order])
        if len(harmful):
            ax.scatter(
                self.contribution[order][harmful, 0], harmful + 0.14, marker="s", s=30,
                color="tab:red", zorder=3, label="harmful",
            )  # fmt: skip
        ax.axvline(0, color="0.6", linewidth=0.8)
        ax.set_yticks(rows, plain_labels([self.names[k] for k in order]))
        ax.set_ylim(-0.6, len(rows) - 0.4)
        ax.set_xlabel("change of the score, with confidence interval")
        ax.grid(axis="x", alpha=0.3)
        ax.legend(loc="lower center", bbox_to_anchor=(0.5, 1.0), ncols=3, frameon=False, fontsize=8)
        return self


@substitute
class PrefixSimilarityDisplay(Display):
    """Plot how alike the effects of prefixes on vectors are.

    Read more in the :doc:`user guide </guide/inspection>`.

    .. versionadded:: 0.1

    Parameters
    ----------
    $names
    similarity : ndarray of shape (n_prefixes, n_prefixes)
        Cosine similarity of the effects of two prefixes.
    effect : ndarray of shape (n_prefixes,)
        Size of the effect of each prefix, as a share of the norm of the bare vector.

    Attributes
    ----------
    $ax_
    $figure_

    See Also
    --------
    prefixembed.inspection.prefix_similarity : Computes the values.

    Examples
    --------
    >>> from prefixembed.inspection import PrefixSimilarityDisplay
    >>> display = PrefixSimilarityDisplay.from_estimator(bank, X)  # doctest: +SKIP
    """

    def __init__(
        self, names: Sequence[str], similarity: NDArray[np.float64], effect: NDArray[np.float64]
    ) -> None:
        self.names, self.similarity, self.effect = names, similarity, effect

    @classmethod
    def from_estimator(cls, bank: Any, X: Any, *, ax: Any = None) -> Self:
        """Compare the prefixes of a bank, and plot the result.

        Parameters
        ----------
        $inspected_bank
        $X
        $ax

        Returns
        -------
        $display
        """
        return cls(**prefix_similarity(bank, X)).plot(ax)

    def plot(self, ax: Any = None) -> Self:
        """Plot a map with one row and one column per prefix.

        Parameters
        ----------
        $ax

        Returns
        -------
        $display
        """
        n = len(self.names)
        ax = prepare_axes(self, ax, 4.0 + 0.34 * n, 2.4 + 0.3 * n)
        image = ax.imshow(self.similarity, cmap="RdBu", vmin=-1, vmax=1)
        write_cells(ax, self.similarity, "{:.2f}", dark=np.abs(self.similarity) > 0.6)
        ax.set_xticks(range(n), plain_labels(self.names), rotation=90)
        labels = [f"{name} ({k:.0%})" for name, k in zip(self.names, self.effect, strict=True)]
        ax.set_yticks(range(n), plain_labels(labels))
        ax.set_ylabel("prefix (size of its effect)")
        ax.figure.colorbar(image, ax=ax, label="cosine similarity of effects")
        return self


@substitute
class EmbeddingMapDisplay(Display):
    """Plot the vectors of texts in two dimensions, coloured by label.

    Read more in the :doc:`user guide </guide/inspection>`.

    .. versionadded:: 0.1

    Parameters
    ----------
    points : ndarray of shape (n_texts, 2)
        Projected vectors.
    labels : ndarray of shape (n_texts,), default=None
        Classes or numbers. None to draw all points in one colour.

    Attributes
    ----------
    $ax_
    $figure_

    See Also
    --------
    prefixembed.inspection.embedding_map : Computes the points.

    Examples
    --------
    >>> from prefixembed.inspection import EmbeddingMapDisplay
    >>> display = EmbeddingMapDisplay.from_estimator(bank, X, y)  # doctest: +SKIP
    """

    def __init__(self, points: NDArray[np.float64], labels: NDArray[Any] | None = None) -> None:
        self.points, self.labels = points, labels

    @classmethod
    def from_estimator(
        cls, bank: Any, X: Any, y: ArrayLike | None = None, *, projector: Any = None, ax: Any = None
    ) -> Self:
        """Project the vectors of texts, and plot them.

        Parameters
        ----------
        bank : PrefixBank or PrefixEncoder
            Turns texts into vectors.
        $X
        y : array-like of shape (n_texts,), default=None
            Labels by which the points are coloured. None to draw all in one colour.
        projector : transformer, default=None
            Projects vectors to two features. None for the first two principal components.
        $ax

        Returns
        -------
        $display
        """
        return cls(**embedding_map(bank, X, y, projector)).plot(ax)

    def plot(self, ax: Any = None) -> Self:
        """Plot one point per text.

        Up to 20 classes get a legend; more classes, and floats, get a colour bar.

        Parameters
        ----------
        $ax

        Returns
        -------
        $display
        """
        ax = prepare_axes(self, ax, 6.4, 4.4)
        x, y = self.points.T
        style = {"s": float(np.clip(4000 / max(1, len(x)), 3, 24)), "alpha": 0.7, "linewidths": 0}
        ax.set_xticks([])
        ax.set_yticks([])
        if self.labels is None:
            ax.scatter(x, y, **style)
            return self
        labels = np.asarray(self.labels)
        if labels.dtype.kind == "O":
            labels = labels.astype(str)  # objects such as None cannot be sorted
        classes, codes = np.unique(labels, return_inverse=True)
        if labels.dtype.kind == "f" or len(classes) > MAX_CLASSES:
            values = labels if labels.dtype.kind in "fiu" else codes
            points = ax.scatter(x, y, c=values, **style)
            ax.figure.colorbar(points, ax=ax, label="label")
            return self
        drawn = [
            ax.scatter(x[codes == k], y[codes == k], color=color, **style)
            for k, color in enumerate(class_colors(len(classes)))
        ]
        # Points are listed explicitly: a legend would leave out labels that start with "_".
        ax.legend(
            drawn, plain_labels(classes), loc="center left", bbox_to_anchor=(1.0, 0.5),
            frameon=False, markerscale=1.5,
        )  # fmt: skip
        return self
