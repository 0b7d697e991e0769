"""The prefixes that a bank holds, by name."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from sklearn.base import clone

from prefixembed.prefix import Prefix

if TYPE_CHECKING:
    from typing_extensions import Self


class PrefixMapping:
    """Provide dict access to the prefixes of a bank, and add and remove them.

    It is not a :class:`collections.abc.Mapping`, which would compare banks by their prefixes alone.
    """

    if TYPE_CHECKING:
        active: Sequence[str] | None
        weights: Any
        backbone: Any

        def combination(self) -> Any: ...

    @property
    def prefixes(self) -> dict[str, Prefix]:
        """Prefixes by name, active or not."""
        return self._prefixes

    @prefixes.setter
    def prefixes(self, prefixes: Any) -> None:
        self._prefixes = _to_values(prefixes)

    def _named(self) -> Mapping[Any, Any]:
        # The constructor takes any value, and dict access is refused where it makes no sense.
        return check_mapping(self._prefixes)

    def add(self, name: str, prefix: Any, *, activate: bool = True) -> Self:
        """Add a source task, or replace the one of that name.

        Parameters
        ----------
        name : str
            Name of the source task.
        prefix : PrefixEncoder or Prefix
            Fitted encoder or prefix.
        activate : bool, default=True
            Whether the prefix is used. If not, the vectors do not change, unless it replaces a
            prefix that was active.

        Returns
        -------
        self : PrefixBank
            The bank. The dict that the constructor got does not change.

        Raises
        ------
        ValueError
            If the prefix does not fit the others; the bank is then as it was before.
        """
        before = self._prefixes, self.active
        selection = list(self._named()) if self.active is None else list(self.active)
        self.prefixes = {**self._named(), name: prefix}
        if not activate:
            self.active = [other for other in selection if other != name]
        elif self.active is not None and name not in selection:
            self.active = [*selection, name]
        try:
            self.combination()
        except BaseException:
            self._prefixes, self.active = before
            raise
        return self

    def remove(self, *names: str) -> Self:
        """Remove source tasks.

        Parameters
        ----------
        *names : str
            Names of the source tasks. They leave `active` and `weights` too.

        Returns
        -------
        self : PrefixBank
            The bank. The dict that the constructor got does not change.

        Raises
        ------
        KeyError
            If there is no prefix of that name.
        ValueError
            If no prefix would be left to name the backbone, and `backbone` is None.
        """
        for name in names:
            self[name]
        left = {name: prefix for name, prefix in self._named().items() if name not in names}
        if not left and names and self.backbone is None:
            raise ValueError(
                f"removing {', '.join(map(repr, names))} leaves no prefix to name the backbone: "
                "set the bank's backbone parameter first, or use active=[]"
            )
        self.prefixes = left
        if self.active is not None:
            self.active = [name for name in self.active if name not in names]
        if isinstance(self.weights, dict):
            self.weights = {k: w for k, w in self.weights.items() if k not in names}
        return self

    def without(self, *names: str) -> Self:
        """Return a clone without some source tasks; the bank itself does not change.

        Parameters
        ----------
        *names : str
            Names of the source tasks, as in :meth:`remove`.

        Returns
        -------
        bank : PrefixBank
            A clone with fewer prefixes.
        """
        return clone(self).remove(*names)

    def __getitem__(self, name: str) -> Prefix:
        try:
            return self._named()[name]
        except KeyError:
            raise KeyError(f"no prefix {name!r}; there are {list(self._named())}") from None

    def __contains__(self, name: object) -> bool:
        return name in self._named()

    def __iter__(self) -> Iterator[str]:
        return iter(self._named())

    def __len__(self) -> int:
        return len(self._named())

    def __bool__(self) -> bool:
        # An empty bank is the bare backbone, not nothing.
        return True

    def keys(self) -> list[str]:
        """Return the names of the source tasks, active or not.

        Returns
        -------
        names : list of str
            In the order of the bank.
        """
        return list(self._named())

    def values(self) -> list[Prefix]:
        """Return the prefixes of the source tasks, active or not.

        Returns
        -------
        prefixes : list of Prefix
            In the order of the bank.
        """
        return list(self._named().values())

    def items(self) -> list[tuple[str, Prefix]]:
        """Return names and prefixes of the source tasks, active or not.

        Returns
        -------
        items : list of (str, Prefix)
            In the order of the bank.
        """
        return list(self._named().items())


def _to_values(prefixes: Any) -> Any:
    """Replace fitted encoders by their prefixes; `check_prefixes` refuses the rest later."""
    if not isinstance(prefixes, Mapping):
        return prefixes
    encoders = {n: v for n, v in prefixes.items() if isinstance(_last_prefix(v), Prefix)}
    if not encoders:
        return prefixes  # scikit-learn wants back the very object that it set
    values = dict(prefixes)
    for encoder in {id(encoder): encoder for encoder in encoders.values()}.values():
        names = [name for name, value in encoders.items() if value is encoder]
        fits = encoder.prefixes_ if len(names) > 1 else (encoder.prefix_,)
        if len(fits) == len(names):
            values.update(zip(names, fits, strict=True))
    return values


def _last_prefix(value: Any) -> Any:
    return None if isinstance(value, Prefix) else getattr(value, "prefix_", None)


def check_mapping(prefixes: Any) -> Mapping[Any, Any]:
    """Check that prefixes are a dict; its names and values may be wrong."""
    if not isinstance(prefixes, Mapping):
        raise ValueError(f"prefixes must be a dict of names to prefixes, got {prefixes!r}")
    return prefixes


def check_prefixes(prefixes: Mapping[Any, Any]) -> dict[str, Prefix]:
    """Check that all names are str and all values are prefixes, and return them."""
    for name, value in check_mapping(prefixes).items():
        if not isinstance(name, str):
            raise ValueError(f"prefixes must have names that are str, got {name!r}")
        if isinstance(value, Prefix):
            continue
        if _last_prefix(value) is not None:
            names = [other for other, one in prefixes.items() if one is value]
            raise ValueError(
                f"prefixes {names} are one {type(value).__name__}, which was not fitted once for "
                "each of them: pass the prefix_ of each fit, or fit clones"
            )
        if hasattr(value, "from_prefix"):
            raise ValueError(
                f"prefixes[{name!r}] is a {type(value).__name__} that was not fitted when the bank "
                "got it: fit it first, or pass its prefix_"
            )
        raise ValueError(
            f"prefixes[{name!r}] must be a PrefixEncoder or a Prefix, got {type(value).__name__}"
        )
    return dict(prefixes)
