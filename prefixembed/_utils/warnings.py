"""Warnings that point at the user's code."""

from __future__ import annotations

import sys
import warnings
from types import FrameType

# This package, libraries that call it on behalf of the user, and what decorates its functions.
# Modules are told by their names: a folder of the user's may be called as a library is.
_CALLERS = {
    __name__.partition(".")[0], "contextlib", "sentence_transformers", "sklearn", "torch",
}  # fmt: skip


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
    while frame.f_back is not None and _is_inside(frame):
        frame = frame.f_back
        level += 1
    warnings.warn(message, category, stacklevel=level)


def _is_inside(frame: FrameType) -> bool:
    return str(frame.f_globals.get("__name__")).partition(".")[0] in _CALLERS
