"""Warnings that point at the line of the user."""

from __future__ import annotations

import sys
import warnings
from pathlib import Path

_HERE = Path(__file__).parent
# Calls go through their code on the way to ours.
_CALLERS = {"sentence_transformers", "sklearn", "torch"}


def warn(message: str, category: type[Warning] = UserWarning) -> None:
    """Warn at the first frame outside this package and the libraries that call it.

    Parameters
    ----------
    message : str
        What to say.
    category : type, default=UserWarning
        Of the warning.
    """
    level = 2
    frame = sys._getframe(1)
    while frame.f_back is not None and _is_inside(frame.f_code.co_filename):
        frame = frame.f_back
        level += 1
    warnings.warn(message, category, stacklevel=level)


def _is_inside(filename: str) -> bool:
    path = Path(filename)
    return path.is_relative_to(_HERE) or not _CALLERS.isdisjoint(path.parts)
