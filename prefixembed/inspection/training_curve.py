"""Training curve: the loss of an encoder by step."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from sklearn.utils.validation import check_is_fitted

from prefixembed._utils.docstrings import substitute
from prefixembed.inspection.drawing import Display, class_colors, plain_labels, prepare_axes

if TYPE_CHECKING:
    from typing_extensions import Self


@substitute
class TrainingCurveDisplay(Display):
    """Plot training and validation loss by step.

    Read more in the :doc:`user guide </guide/inspection>`.

    .. versionadded:: 0.1

    Parameters
    ----------
    history : dict of str to list of float
        Attribute ``history_`` of a :class:`~prefixembed.PrefixEncoder` or a
        :class:`~prefixembed.MultiTaskEncoder`.

    Attributes
    ----------
    $ax_
    $figure_

    Examples
    --------
    >>> from prefixembed.inspection import TrainingCurveDisplay
    >>> display = TrainingCurveDisplay.from_estimator(encoder)  # doctest: +SKIP
    """

    def __init__(self, history: Mapping[str, Sequence[float]]) -> None:
        self.history = history

    @classmethod
    def from_estimator(cls, encoder: Any, *, ax: Any = None) -> Self:
        """Plot the training history of an encoder.

        Parameters
        ----------
        encoder : PrefixEncoder or MultiTaskEncoder
            Fitted encoder. A saved prefix has no history.
        $ax

        Returns
        -------
        $display
        """
        check_is_fitted(encoder, "history_")
        return cls(encoder.history_).plot(ax)

    def plot(self, ax: Any = None) -> Self:
        """Plot one line per loss, and mark the step whose state was kept.

        Parameters
        ----------
        $ax

        Returns
        -------
        $display
        """
        ax = prepare_axes(self, ax, 6.4, 3.6)
        steps = self.history["step"]
        tasks = [name for name in self.history if name.startswith("valid_loss[")]
        for name, label, color in (
            ("train_loss", "training", "tab:gray"),
            ("valid_loss", "validation, mean" if tasks else "validation", "tab:blue"),
        ):
            if name in self.history:
                ax.plot(
                    steps, self.history[name], marker="o", markersize=3, label=label, color=color
                )
        # The first colour is taken by the mean over tasks.
        for name, color in zip(tasks, class_colors(len(tasks) + 1)[1:], strict=True):
            task = name.removeprefix("valid_loss[").removesuffix("]")
            (line,) = ax.plot(steps, self.history[name], linewidth=1, linestyle="--", color=color)
            line.set_label(plain_labels([task])[0])
        if "valid_loss" in self.history:
            kept = steps[int(np.argmin(self.history["valid_loss"]))]
            ax.axvline(kept, color="0.7", linestyle=":", label="kept")
        ax.xaxis.get_major_locator().set_params(integer=True)
        ax.set(xlabel="step", ylabel="loss")
        ax.grid(alpha=0.3)
        # Lines are listed explicitly: a legend would leave out labels that start with "_".
        labels = [line.get_label() for line in ax.lines]
        ax.legend(ax.lines, labels, loc="center left", bbox_to_anchor=(1.0, 0.5), frameon=False)
        return self
