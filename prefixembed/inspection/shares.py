"""Displays of shares by layer: of attention, and of the output of feed-forward layers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from prefixembed._utils.docstrings import substitute
from prefixembed.inspection.attention import attention_share
from prefixembed.inspection.drawing import Display, plain_labels, prepare_axes, write_cells
from prefixembed.inspection.slots import slot_share

if TYPE_CHECKING:
    from typing_extensions import Self


@substitute
class AttentionShareDisplay(Display):
    """Plot the share of attention that each prefix gets, by layer, or by layer and head.

    Read more in the :doc:`user guide </guide/inspection>`.

    .. versionadded:: 0.1

    Parameters
    ----------
    $names
    shares : ndarray of shape (n_layers, n_heads, n_prefixes)
        Share of attention of each prefix.

    Attributes
    ----------
    $ax_
    $figure_

    See Also
    --------
    prefixembed.inspection.attention_share : Computes the values.

    Examples
    --------
    >>> from prefixembed.inspection import AttentionShareDisplay
    >>> display = AttentionShareDisplay.from_estimator(bank, X)  # doctest: +SKIP
    """

    def __init__(self, names: Sequence[str], shares: NDArray[np.float64]) -> None:
        self.names, self.shares = names, shares

    @classmethod
    def from_estimator(
        cls, bank: Any, X: Any, *, prefix: str | None = None, ax: Any = None
    ) -> Self:
        """Measure the attention to the prefixes of a bank, and plot it.

        Parameters
        ----------
        $inspected_bank
        $X
        $shown_prefix
        $ax

        Returns
        -------
        $display
        """
        return cls(**attention_share(bank, X)).plot(ax, prefix=prefix)

    def plot(self, ax: Any = None, *, prefix: str | None = None) -> Self:
        """Plot a map with one row per layer, the first layer at the bottom.

        Parameters
        ----------
        $ax
        $shown_prefix

        Returns
        -------
        $display
        """
        names, legend = list(self.names), "share of attention (%)"
        if prefix is None:
            _plot_by_layer(self, ax, self.shares.mean(axis=1), legend, names)
        elif prefix in names:
            _plot_by_layer(self, ax, self.shares[:, :, names.index(prefix)], legend)
            self.ax_.set_title(plain_labels([f"prefix {prefix}"])[0])
        else:
            raise ValueError(f"prefix must be one of {names}, got {prefix!r}")
        return self


@substitute
class SlotShareDisplay(Display):
    """Plot how much the slots of each prefix add to feed-forward layers, by layer.

    Read more in the :doc:`user guide </guide/inspection>`.

    .. versionadded:: 0.1

    Parameters
    ----------
    $names
    shares : ndarray of shape (n_layers, n_prefixes)
        Norm of what each prefix adds, as a share of the norm of the output.

    Attributes
    ----------
    $ax_
    $figure_

    See Also
    --------
    prefixembed.inspection.slot_share : Computes the values.

    Examples
    --------
    >>> from prefixembed.inspection import SlotShareDisplay
    >>> display = SlotShareDisplay.from_estimator(bank, X)  # doctest: +SKIP
    """

    def __init__(self, names: Sequence[str], shares: NDArray[np.float64]) -> None:
        self.names, self.shares = names, shares

    @classmethod
    def from_estimator(cls, bank: Any, X: Any, *, ax: Any = None) -> Self:
        """Measure the slots of a bank, and plot how much they add.

        Parameters
        ----------
        $inspected_bank
        $X
        $ax

        Returns
        -------
        $display
        """
        return cls(**slot_share(bank, X)).plot(ax)

    def plot(self, ax: Any = None) -> Self:
        """Plot a map with one row per layer, the first layer at the bottom.

        Parameters
        ----------
        $ax

        Returns
        -------
        $display
        """
        _plot_by_layer(self, ax, self.shares, "share of the layer's output (%)", self.names)
        return self


def _plot_by_layer(
    display: Display,
    ax: Any,
    values: NDArray[np.float64],  # (layer, prefix) or (layer, head)
    legend: str,
    names: Sequence[str] | None = None,  # of prefixes; None: columns are heads
) -> None:
    """Plot a map of shares in percent, one row per layer, one column per prefix or head."""
    n_layers, n_columns = values.shape
    ax = prepare_axes(display, ax, 2.6 + 0.34 * n_columns, 1.8 + 0.28 * n_layers)
    image = ax.imshow(100 * values, origin="lower", aspect="auto", cmap="viridis", vmin=0)
    write_cells(ax, 100 * values, "{:.0f}", dark=values < 0.6 * (values.max() or 1))
    if names is None:
        ax.set_xticks(range(n_columns), [str(k + 1) for k in range(n_columns)])
    else:
        ax.set_xticks(range(n_columns), plain_labels(names), rotation=90)
    ax.set_yticks(range(n_layers), [str(k + 1) for k in range(n_layers)])
    ax.set(xlabel="head" if names is None else "prefix", ylabel="layer")
    ax.figure.colorbar(image, ax=ax, label=legend)
