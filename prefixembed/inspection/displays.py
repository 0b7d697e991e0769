"""Plots of what prefixes do and of how they were learned, in scikit-learn's manner."""

from __future__ import annotations

import inspect
from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from sklearn.utils.validation import check_is_fitted

from prefixembed.inspection.functions import (
    attention_share,
    embedding_map,
    prefix_ablation,
    prefix_similarity,
)

if TYPE_CHECKING:
    from typing_extensions import Self

__all__ = [
    "AttentionShareDisplay",
    "EmbeddingMapDisplay",
    "PrefixAblationDisplay",
    "PrefixSimilarityDisplay",
    "TrainingCurveDisplay",
]

# Numbers are written into cells up to so many rows and columns; labels are listed up to so many.
_MOST_CELLS, _MOST_LABELS = 12, 20


class _Display(ABC):
    """What the displays share: axes of their own where none are given."""

    ax_: Any
    figure_: Any

    @classmethod
    def from_result(cls, result: Mapping[str, Any], *, ax: Any = None) -> Self:
        """Draw what was computed before.

        Parameters
        ----------
        result : Bunch
            As the function gives it that computes what is shown.
        ax : matplotlib Axes, default=None
            Where to draw. None for a new figure.

        Returns
        -------
        display : Display
            Drawn.
        """
        return cls(**{name: result[name] for name in inspect.signature(cls).parameters}).plot(ax)

    @abstractmethod
    def plot(self, ax: Any = None) -> Self:
        """Draw."""

    def _axes(self, ax: Any, width: float, height: float) -> Any:
        try:
            import matplotlib.pyplot as plt
        except ImportError as error:
            raise ImportError(
                f"{type(self).__name__}.plot needs matplotlib: pip install 'prefixembed[plot]'"
            ) from error
        if ax is None:
            _, ax = plt.subplots(figsize=(width, height), layout="constrained")
        self.ax_, self.figure_ = ax, ax.figure
        return ax


class PrefixAblationDisplay(_Display):
    """What each prefix adds to a target task's score, with intervals.

    Parameters
    ----------
    names : list of str
        The prefixes.
    gain, contribution : ndarray of shape (n_prefixes, 3)
        As :func:`~prefixembed.inspection.prefix_ablation` gives them.
    harmful : bool ndarray of shape (n_prefixes,)
        The same.

    Attributes
    ----------
    ax_ : matplotlib Axes
        Where it was drawn.
    figure_ : matplotlib Figure
        The figure of that.

    See Also
    --------
    prefixembed.inspection.prefix_ablation : Computes what is shown.

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
        self.names = names
        self.gain = gain
        self.contribution = contribution
        self.harmful = harmful

    @classmethod
    def from_estimator(
        cls, bank: Any, X: Any, y: ArrayLike, head: Any = None, *, ax: Any = None, **params: Any
    ) -> Self:
        """Compute and draw.

        Parameters
        ----------
        bank : PrefixBank
            Whose active prefixes are looked at.
        X : array-like of str of shape (n_texts,) or (n_texts, 2)
            Texts of the target task.
        y : array-like of shape (n_texts,)
            Labels.
        head : estimator, default=None
            What is trained on vectors.
        ax : matplotlib Axes, default=None
            Where to draw. None for a new figure.
        **params : dict
            Further parameters of :func:`~prefixembed.inspection.prefix_ablation`.

        Returns
        -------
        display : PrefixAblationDisplay
            Drawn.
        """
        return cls.from_result(prefix_ablation(bank, X, y, head, **params), ax=ax)

    def plot(self, ax: Any = None) -> Self:
        """Draw, the prefix that contributes most on top.

        Parameters
        ----------
        ax : matplotlib Axes, default=None
            Where to. None for a new figure, as high as the prefixes need.

        Returns
        -------
        display : PrefixAblationDisplay
            Itself.
        """
        order = np.argsort(self.contribution[:, 0])
        rows = np.arange(len(order))
        ax = self._axes(ax, 6.4, 1.6 + 0.3 * len(order))
        for values, label, marker, color, shift in (
            (self.gain, "alone, beyond the bare backbone", "o", "tab:gray", -0.14),
            (self.contribution, "in the bank, beyond the others", "s", "tab:blue", 0.14),
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
        ax.set_yticks(rows, _plain([self.names[k] for k in order]))
        ax.set_ylim(-0.6, len(rows) - 0.4)
        ax.set_xlabel("move of the score, with its interval over folds")
        ax.grid(axis="x", alpha=0.3)
        ax.legend(loc="lower center", bbox_to_anchor=(0.5, 1.0), ncols=3, frameon=False, fontsize=8)
        return self


class AttentionShareDisplay(_Display):
    """The share of attention that each prefix gets, by layer, or by layer and head.

    Parameters
    ----------
    names : list of str
        The prefixes.
    shares : ndarray of shape (n_layers, n_heads, n_prefixes)
        As :func:`~prefixembed.inspection.attention_share` gives them.

    Attributes
    ----------
    ax_ : matplotlib Axes
        Where it was drawn.
    figure_ : matplotlib Figure
        The figure of that.

    See Also
    --------
    prefixembed.inspection.attention_share : Computes what is shown.

    Examples
    --------
    >>> from prefixembed.inspection import AttentionShareDisplay
    >>> display = AttentionShareDisplay.from_estimator(bank, X)  # doctest: +SKIP
    """

    def __init__(self, names: Sequence[str], shares: NDArray[np.float64]) -> None:
        self.names = names
        self.shares = shares

    @classmethod
    def from_estimator(
        cls, bank: Any, X: Any, *, prefix: str | None = None, ax: Any = None
    ) -> Self:
        """Compute and draw.

        Parameters
        ----------
        bank : PrefixBank
            Whose active prefixes are looked at.
        X : array-like of str of shape (n_texts,) or (n_texts, 2)
            Texts.
        prefix : str, default=None
            As :meth:`plot` has it.
        ax : matplotlib Axes, default=None
            Where to draw. None for a new figure.

        Returns
        -------
        display : AttentionShareDisplay
            Drawn.
        """
        return cls(**attention_share(bank, X)).plot(ax, prefix=prefix)

    def plot(self, ax: Any = None, *, prefix: str | None = None) -> Self:
        """Draw a map, layers from the bottom up.

        Parameters
        ----------
        ax : matplotlib Axes, default=None
            Where to. None for a new figure.
        prefix : str, default=None
            The prefix to show head by head. None for all of them, heads averaged.

        Returns
        -------
        display : AttentionShareDisplay
            Itself.
        """
        if prefix is None:
            values, labels, what = self.shares.mean(axis=1), list(self.names), "prefix"
        else:
            if prefix not in self.names:
                raise ValueError(f"prefix must be one of {list(self.names)}, got {prefix!r}")
            values = self.shares[:, :, list(self.names).index(prefix)]
            labels, what = [str(k + 1) for k in range(values.shape[1])], "head"
        n_layers, n_columns = values.shape
        ax = self._axes(ax, 2.6 + 0.34 * n_columns, 1.8 + 0.28 * n_layers)
        image = ax.imshow(100 * values, origin="lower", aspect="auto", cmap="viridis", vmin=0)
        _write_cells(ax, 100 * values, "{:.0f}", dark_is_low=True)
        ax.set_xticks(range(n_columns), _plain(labels), rotation=0 if what == "head" else 90)
        ax.set_yticks(range(n_layers), [str(k + 1) for k in range(n_layers)])
        ax.set(xlabel=what, ylabel="layer", title=_plain([f"prefix {prefix}"])[0] if prefix else "")
        ax.figure.colorbar(image, ax=ax, label="share of attention, %")
        return self


class PrefixSimilarityDisplay(_Display):
    """How alike prefixes are in what they do to vectors.

    Parameters
    ----------
    names : list of str
        The prefixes.
    similarity : ndarray of shape (n_prefixes, n_prefixes)
        As :func:`~prefixembed.inspection.prefix_similarity` gives it.
    effect : ndarray of shape (n_prefixes,)
        The same; written behind the names.

    Attributes
    ----------
    ax_ : matplotlib Axes
        Where it was drawn.
    figure_ : matplotlib Figure
        The figure of that.

    See Also
    --------
    prefixembed.inspection.prefix_similarity : Computes what is shown.

    Examples
    --------
    >>> from prefixembed.inspection import PrefixSimilarityDisplay
    >>> display = PrefixSimilarityDisplay.from_estimator(bank, X)  # doctest: +SKIP
    """

    def __init__(
        self,
        names: Sequence[str],
        similarity: NDArray[np.float64],
        effect: NDArray[np.float64],
    ) -> None:
        self.names = names
        self.similarity = similarity
        self.effect = effect

    @classmethod
    def from_estimator(cls, bank: Any, X: Any, *, ax: Any = None) -> Self:
        """Compute and draw.

        Parameters
        ----------
        bank : PrefixBank
            Whose active prefixes are compared.
        X : array-like of str of shape (n_texts,) or (n_texts, 2)
            Texts.
        ax : matplotlib Axes, default=None
            Where to draw. None for a new figure.

        Returns
        -------
        display : PrefixSimilarityDisplay
            Drawn.
        """
        return cls(**prefix_similarity(bank, X)).plot(ax)

    def plot(self, ax: Any = None) -> Self:
        """Draw a map.

        Parameters
        ----------
        ax : matplotlib Axes, default=None
            Where to. None for a new figure.

        Returns
        -------
        display : PrefixSimilarityDisplay
            Itself.
        """
        n = len(self.names)
        ax = self._axes(ax, 4.0 + 0.34 * n, 2.4 + 0.3 * n)
        image = ax.imshow(self.similarity, cmap="RdBu", vmin=-1, vmax=1)
        _write_cells(ax, self.similarity, "{:.2f}", dark_is_low=False)
        ax.set_xticks(range(n), _plain(self.names), rotation=90)
        labels = [
            f"{name} ({100 * size:.0f} %)"
            for name, size in zip(self.names, self.effect, strict=True)
        ]
        ax.set_yticks(range(n), _plain(labels))
        ax.set_ylabel("prefix (length of its move)")
        ax.figure.colorbar(image, ax=ax, label="cosine of moves")
        return self


class EmbeddingMapDisplay(_Display):
    """Vectors of texts in two dimensions, coloured by label.

    Parameters
    ----------
    points : ndarray of shape (n_texts, 2)
        As :func:`~prefixembed.inspection.embedding_map` gives them.
    labels : ndarray of shape (n_texts,), default=None
        Classes, or numbers.

    Attributes
    ----------
    ax_ : matplotlib Axes
        Where it was drawn.
    figure_ : matplotlib Figure
        The figure of that.

    See Also
    --------
    prefixembed.inspection.embedding_map : Computes what is shown.

    Examples
    --------
    >>> from prefixembed.inspection import EmbeddingMapDisplay
    >>> display = EmbeddingMapDisplay.from_estimator(bank, X, y)  # doctest: +SKIP
    """

    def __init__(self, points: NDArray[np.float64], labels: NDArray[Any] | None = None) -> None:
        self.points = points
        self.labels = labels

    @classmethod
    def from_estimator(
        cls,
        bank: Any,
        X: Any,
        y: ArrayLike | None = None,
        *,
        projector: Any = None,
        ax: Any = None,
    ) -> Self:
        """Compute and draw.

        Parameters
        ----------
        bank : PrefixBank or PrefixEncoder
            Turns texts into vectors.
        X : array-like of str of shape (n_texts,) or (n_texts, 2)
            Texts.
        y : array-like of shape (n_texts,), default=None
            Labels.
        projector : transformer, default=None
            As :func:`~prefixembed.inspection.embedding_map` has it.
        ax : matplotlib Axes, default=None
            Where to draw. None for a new figure.

        Returns
        -------
        display : EmbeddingMapDisplay
            Drawn.
        """
        return cls(**embedding_map(bank, X, y, projector)).plot(ax)

    def plot(self, ax: Any = None) -> Self:
        """Draw a point a text.

        Parameters
        ----------
        ax : matplotlib Axes, default=None
            Where to. None for a new figure.

        Returns
        -------
        display : EmbeddingMapDisplay
            Itself.
        """
        ax = self._axes(ax, 6.4, 4.4)
        x, y = self.points.T
        size = float(np.clip(4000 / max(1, len(x)), 3, 24))
        labels = None if self.labels is None else np.asarray(self.labels)
        if labels is not None and labels.dtype.kind == "O":
            labels = np.array([str(label) for label in labels])  # None has no order
        classes = None if labels is None else np.unique(labels)
        if labels is None or classes is None:
            ax.scatter(x, y, s=size, alpha=0.7, linewidths=0)
        elif labels.dtype.kind == "f" or len(classes) > _MOST_LABELS:
            _, codes = np.unique(labels, return_inverse=True)
            values = labels if labels.dtype.kind in "fiu" else codes
            points = ax.scatter(x, y, c=values, s=size, alpha=0.7, linewidths=0)
            ax.figure.colorbar(points, ax=ax, label="label")
        else:
            colors = _colors(len(classes))
            drawn = []
            for label, color in zip(classes, colors, strict=True):
                inside = labels == label
                drawn.append(
                    ax.scatter(x[inside], y[inside], s=size, alpha=0.7, linewidths=0, color=color)
                )
            ax.legend(
                drawn, _plain(classes), loc="center left", bbox_to_anchor=(1.0, 0.5), frameon=False,
                markerscale=1.5,
            )  # fmt: skip
        ax.set_xticks([])
        ax.set_yticks([])
        return self


class TrainingCurveDisplay(_Display):
    """Training and validation loss, epoch by epoch.

    Parameters
    ----------
    history : dict of str to list of float
        ``history_`` of a :class:`PrefixEncoder` or a :class:`MultiTaskEncoder`.

    Attributes
    ----------
    ax_ : matplotlib Axes
        Where it was drawn.
    figure_ : matplotlib Figure
        The figure of that.

    Examples
    --------
    >>> from prefixembed.inspection import TrainingCurveDisplay
    >>> display = TrainingCurveDisplay.from_estimator(encoder)  # doctest: +SKIP
    """

    def __init__(self, history: Mapping[str, Sequence[float]]) -> None:
        self.history = history

    @classmethod
    def from_estimator(cls, encoder: Any, *, ax: Any = None) -> Self:
        """Draw the history of a fitted encoder.

        Parameters
        ----------
        encoder : PrefixEncoder or MultiTaskEncoder
            That was fitted here: a saved prefix has no history.
        ax : matplotlib Axes, default=None
            Where to draw. None for a new figure.

        Returns
        -------
        display : TrainingCurveDisplay
            Drawn.
        """
        check_is_fitted(encoder, "history_")
        return cls(encoder.history_).plot(ax)

    def plot(self, ax: Any = None) -> Self:
        """Draw a line a loss, and mark the epoch that was kept.

        Parameters
        ----------
        ax : matplotlib Axes, default=None
            Where to. None for a new figure.

        Returns
        -------
        display : TrainingCurveDisplay
            Itself.
        """
        ax = self._axes(ax, 6.4, 3.6)
        epochs = self.history["epoch"]
        tasks = [name for name in self.history if name.startswith("valid_loss[")]
        for name, label, color in (
            ("train_loss", "training", "tab:gray"),
            ("valid_loss", "validation" if not tasks else "validation, mean", "tab:blue"),
        ):
            if name in self.history:
                ax.plot(
                    epochs, self.history[name], marker="o", markersize=3, label=label, color=color
                )
        # The first colour is that of their mean.
        for name, color in zip(tasks, _colors(len(tasks) + 1)[1:], strict=True):
            task = name.removeprefix("valid_loss[").removesuffix("]")
            (line,) = ax.plot(epochs, self.history[name], linewidth=1, linestyle="--", color=color)
            line.set_label(_plain([task])[0])
        if "valid_loss" in self.history:
            kept = epochs[int(np.argmin(self.history["valid_loss"]))]
            ax.axvline(kept, color="0.7", linestyle=":", label="kept")
        ax.xaxis.get_major_locator().set_params(integer=True)
        ax.set(xlabel="epoch", ylabel="loss")
        ax.grid(alpha=0.3)
        labels = [line.get_label() for line in ax.lines]
        ax.legend(ax.lines, labels, loc="center left", bbox_to_anchor=(1.0, 0.5), frameon=False)
        return self


def _plain(names: Iterable[Any]) -> list[str]:
    # A dollar would begin mathematics.
    return [str(name).replace("$", r"\$") for name in names]


def _write_cells(ax: Any, values: NDArray[np.float64], pattern: str, dark_is_low: bool) -> None:
    if max(values.shape) > _MOST_CELLS:
        return
    top = np.abs(values).max() or 1.0
    for (row, column), value in np.ndenumerate(values):
        dark = value < 0.6 * top if dark_is_low else abs(value) > 0.6
        color = "white" if dark else "black"
        ax.text(
            column, row, pattern.format(value), ha="center", va="center", color=color, fontsize=8
        )


def _colors(n: int) -> Any:
    import matplotlib as mpl

    return mpl.colormaps["tab10" if n <= 10 else "tab20"](np.arange(n) % _MOST_LABELS)
