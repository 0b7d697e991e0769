"""Warnings that point at the user's code."""

from __future__ import annotations

import sys
import warnings
from pathlib import Path

_PACKAGE = Path(__file__).parents[1]
# Libraries that call this package on behalf of the user, and what decorates its functions.
_CALLERS = {"contextlib.py", "sentence_transformers", "sklearn", "torch"}


def warn(message: str, category: type[Warning] = UserWarning) -> None:
    """Issue a warning at the innermost line outside this package and the libraries that call it.

    Parameters
    ----------
    message : str
        Text of the warning.
    category : type, default=UserWarning
        Class of the warning.
    """
    level = 2
    frame = sys._getframe(1)
    while frame.f_back is not None and _is_inside(frame.f_code.co_filename):
        frame = frame.f_back
        level += 1
    warnings.warn(message, category, stacklevel=level)


def _is_inside(filename: str) -> bool:
    path = Path(filename)
    return path.is_relative_to(_PACKAGE) or not _CALLERS.isdisjoint(path.parts)
