"""Arguments that several functions take: the bank to inspect, and texts."""

from __future__ import annotations

from dataclasses import fields
from typing import Any

from sklearn.base import clone

from prefixembed._embed.texts import Text, check_texts, is_pairs
from prefixembed.bank import PrefixBank
from prefixembed.reading import Reading


def active_names(bank: PrefixBank) -> list[str]:
    """Return the names of the active prefixes, and check that there is at least one."""
    clone(bank).transform([])  # checks the parameters, and loads nothing
    if bank.output != "texts":
        raise ValueError(f"bank must have output='texts', got {bank.output!r}")
    names = list(bank.combination().names)
    if not names:
        raise ValueError("bank must have at least one active prefix, got none")
    return names


def reading_of(bank: PrefixBank, texts: list[Text]) -> Reading:
    """Return how a bank reads texts of this kind."""
    combination = bank.combination()
    return combination.pairs_reading() if is_pairs(texts) else combination.reading


def comparable_copy(bank: PrefixBank, texts: list[Text]) -> PrefixBank:
    """Return a copy that reads texts as `bank` does, whichever prefixes are made active.

    A bank reads as its active prefixes do. Vectors of different selections can be compared only
    if the reading stays the same.
    """
    reading, params = reading_of(bank, texts), bank.get_params(deep=False)
    values = {field.name: getattr(reading, field.name) for field in fields(reading)}
    pinned = {name: v for name, v in values.items() if name in params and v is not None}
    copy = clone(bank).set_output(transform="default")
    return copy.set_params(output_dtype="float32", **pinned)


def check_some_texts(X: Any) -> list[Text]:
    """Check texts, of which there must be at least one."""
    texts = check_texts(X)
    if not texts:
        raise ValueError("X must contain at least one text, got none")
    return texts
