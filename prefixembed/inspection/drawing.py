"""What all displays share: the base class, axes, labels, numbers in cells, and colours."""

from __future__ import annotations

import inspect
from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from prefixembed._utils.docstrings import substitute

if TYPE_CHECKING:
    from typing_extensions import Self

# Larger maps get no numbers in their cells: they would not be legible.
MAX_CELLS = 12
# Number of classes up to which a legend lists them.
MAX_CLASSES = 20


@substitute
class Display(ABC):
    """Base class of displays."""

    ax_: Any
    figure_: Any

    @classmethod
    def from_result(cls, result: Mapping[str, Any], *, ax: Any = None) -> Self:
        """Create a display from values that have been computed, and plot it.

        Parameters
        ----------
        result : mapping of str to object
            Values of the parameters of the class, such as the Bunch that the function of the same
            topic returns. Further keys are ignored.
        $ax

        Returns
        -------
        $display
        """
        return cls(**{name: result[name] for name in inspect.signature(cls).parameters}).plot(ax)

    @abstractmethod
    def plot(self, ax: Any = None) -> Self:
        """Plot on the given axes, or on axes in a new figure."""


def prepare_axes(display: Display, ax: Any, width: float, height: float) -> Any:
    """Set `ax_` and `figure_` of a display, and return its axes.

    A new figure has the given width and height in inches.
    """
    try:
        import matplotlib.pyplot as plt
    except ImportError as error:
        raise ImportError(
            f"{type(display).__name__}.plot requires matplotlib: pip install 'prefixembed[plot]'"
        ) from error
    if ax is None:
        _, ax = plt.subplots(figsize=(width, height), layout="constrained")
    display.ax_, display.figure_ = ax, ax.figure
    return ax


def plain_labels(names: Iterable[Any]) -> list[str]:
    """Return names as labels in which a dollar sign does not start a formula."""
    return [str(name).replace("$", r"\$") for name in names]


def write_cells(
    ax: Any, values: NDArray[np.float64], pattern: str, dark: NDArray[np.bool_]
) -> None:
    """Write the numbers of a small map into its cells, in white where a cell is dark."""
    if max(values.shape) > MAX_CELLS:
        return
    for (row, column), value in np.ndenumerate(values):
        ax.text(
            column, row, pattern.format(value), ha="center", va="center", fontsize=8,
            color="white" if dark[row, column] else "black",
        )  # fmt: skip


def class_colors(n: int) -> Any:
    """Return `n` colours that are easy to tell apart, up to `MAX_CLASSES`."""
    import matplotlib as mpl

    return mpl.colormaps["tab10" if n <= 10 else "tab20"](np.arange(n) % MAX_CLASSES)
