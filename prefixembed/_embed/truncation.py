"""What to do about texts that are longer than the limit."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

from prefixembed._utils.warnings import warn

# Collects the numbers of truncated texts for a caller that reports on many calls at once.
_counts: ContextVar[list[int] | None] = ContextVar("counts", default=None)


@contextmanager
def count_truncated() -> Iterator[list[int]]:
    """Collect the number of truncated texts of each call in this thread, without warnings."""
    counts: list[int] = []
    token = _counts.set(counts)
    try:
        yield counts
    finally:
        _counts.reset(token)


def report_truncated(n_truncated: int, n_texts: int, max_length: int, on_truncate: str) -> None:
    """Report texts that are longer than the limit.

    ``"window"`` also warns: training and `attention_share` cut in spite of it.
    """
    counts = _counts.get()
    if counts is not None and on_truncate != "raise":
        counts.append(n_truncated)
        return
    if not n_truncated or on_truncate == "ignore":
        return
    message = f"{n_truncated} of {n_texts} texts are longer than max_length={max_length} tokens"
    if on_truncate == "raise":
        raise ValueError(f"{message}; on_truncate='raise' refuses to cut them")
    warn(f"{message} and were cut")
