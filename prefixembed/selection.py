"""Which prefixes: selections of a bank for a grid search."""

from __future__ import annotations

from itertools import combinations

from prefixembed._parameters import Count, checked
from prefixembed.bank import PrefixBank


@checked(
    bank=[PrefixBank],
    min_size=[Count(0)],
    max_size=[Count(0), None],
)
def prefix_subsets(
    bank: PrefixBank, min_size: int = 0, max_size: int | None = None
) -> list[tuple[str, ...]]:
    """List selections of a bank's prefixes, to be tried as its ``active`` parameter.

    Parameters
    ----------
    bank : PrefixBank
        With n prefixes, active or not.
    min_size : int, default=0
        Smallest selection; 0 is the bare backbone.
    max_size : int, default=None
        Largest selection; None for all of them.

    Returns
    -------
    subsets : list of tuple of str
        Smaller ones first; ``2 ** n`` of them where sizes are not limited.

    Raises
    ------
    ValueError
        If sizes are not ``0 <= min_size <= max_size <= n``.

    Examples
    --------
    >>> from prefixembed import PrefixBank, prefix_subsets
    >>> prefix_subsets(PrefixBank({"a": None, "b": None}), min_size=1)
    [('a',), ('b',), ('a', 'b')]
    """
    names = list(bank)
    largest = len(names) if max_size is None else max_size
    if not 0 <= min_size <= largest <= len(names):
        raise ValueError(
            f"sizes must be 0 <= min_size <= max_size <= {len(names)}, "
            f"got min_size={min_size} and max_size={max_size}"
        )
    return [subset for size in range(min_size, largest + 1) for subset in combinations(names, size)]
