"""Vectors by content, so that no text is encoded twice."""

from __future__ import annotations

import functools
import os
from collections.abc import Sequence
from dataclasses import dataclass
from numbers import Integral
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from prefixembed._embed.representation import Representation
from prefixembed._files.forks import memory_lock
from prefixembed._files.vector_store import DiskStore, MemoryStore, Row
from prefixembed._utils.parameters import PATH, check_cache_name, checked

# Pickles and pages name what is public.
Representation.__module__ = __name__

__all__ = ["CacheStats", "Representation", "VectorCache", "open_cache"]


@dataclass(frozen=True)
class CacheStats:
    """Describe what a cache holds and how often this process found a vector in it.

    Read more in the :doc:`user guide </guide/cache>`.

    .. versionadded:: 0.1

    Parameters
    ----------
    hits, misses : int
        Number of vectors that were found, and that were not.
    n_vectors : int
        Number of vectors in the cache.
    n_bytes : int
        Bytes that they take, in memory or in the file.
    """

    hits: int
    misses: int
    n_vectors: int
    n_bytes: int


class VectorCache:
    """Keep vectors by content, in memory or in a file, within a bound in bytes.

    A vector is found again if everything that decides it is the same: the fingerprint of the
    backbone, the digests and weights of the active prefixes, how they are combined, how texts
    are read, the dtype, and the text or pair. The names and the order of prefixes do not matter.
    The device does not matter either; results differ between devices by rounding only. The
    least recently used vectors are evicted first.

    Estimators open a cache themselves; see their parameter ``cache``. Create one to set the
    bound, or to share it among some estimators only. Copies of a cache are the cache itself.
    Pickles hold its parameters, not its vectors.

    Read more in the :doc:`user guide </guide/cache>`.

    .. versionadded:: 0.1

    Parameters
    ----------
    path : str or path-like, default=None
        File for the vectors, which any number of processes can use at once. It is created if
        missing. None keeps vectors in memory.
    max_bytes : int, default=2**30
        Bound on the size in bytes. For a file, SQLite's write-ahead log is not counted.

    Raises
    ------
    ValueError
        If `path` is a folder, device, pipe or socket, or `max_bytes` is not an integer >= 0.

    See Also
    --------
    open_cache : Returns the cache that the parameter ``cache`` of an estimator names.
    fill_cache : Encodes in advance what a grid search will need.

    Notes
    -----
    The file is an SQLite database with a checksum for each vector. If it is damaged or was
    overwritten, it is renamed with a warning, and a new one is created. A file that was not
    created as a cache is left alone and not used. If the file cannot be read or written, a
    warning says so, and texts are encoded.

    Examples
    --------
    >>> from prefixembed import PrefixBank, VectorCache
    >>> from prefixembed.tasks import demo_backbone
    >>> cache = VectorCache(max_bytes=10**8)
    >>> bank = PrefixBank({}, backbone=demo_backbone(), cache=cache)
    >>> vectors = bank.transform(["a film", "a book"])
    >>> again = bank.transform(["a book", "a film", "a play"])
    >>> cache.stats().hits, cache.stats().misses
    (2, 3)
    """

    def __init__(
        self, path: str | os.PathLike[str] | None = None, *, max_bytes: int = 2**30
    ) -> None:
        given: Any = max_bytes
        if isinstance(given, bool) or not isinstance(given, Integral) or max_bytes < 0:
            raise ValueError(f"max_bytes must be an int >= 0, got {max_bytes!r}")
        if path is not None and os.path.exists(path) and not os.path.isfile(path):
            kind = "folder" if os.path.isdir(path) else "device, pipe or socket"
            raise ValueError(
                f"cache must be the path of a file, got the {kind} {os.fspath(path)!r}"
            )
        self.path = None if path is None else os.path.abspath(path)
        self.max_bytes = int(max_bytes)
        self._store: MemoryStore | DiskStore = (
            MemoryStore(max_bytes) if self.path is None else DiskStore(Path(self.path), max_bytes)
        )
        self._hits = self._misses = 0

    def get(self, keys: Sequence[bytes]) -> list[Row | None]:
        """Look vectors up.

        Parameters
        ----------
        keys : sequence of bytes
            Keys from :meth:`Representation.keys`.

        Returns
        -------
        rows : list of (ndarray of shape (n_features,), bool) or None
            Vector, and whether its text was truncated. None where there is no vector.
        """
        rows = self._store.get(keys)
        hits = sum(row is not None for row in rows)
        with memory_lock:
            self._hits += hits
            self._misses += len(rows) - hits
        return rows

    def put(
        self, keys: Sequence[bytes], vectors: NDArray[np.float32], truncated: NDArray[np.bool_]
    ) -> None:
        """Add vectors, as many as the bound allows.

        Parameters
        ----------
        keys : sequence of bytes
            Keys from :meth:`Representation.keys`.
        vectors : float32 ndarray of shape (n_keys, n_features)
            Vector of each key.
        truncated : bool ndarray of shape (n_keys,)
            Whether the text of each key was truncated.
        """
        self._store.put(keys, vectors, truncated)

    def clear(self) -> None:
        """Remove all vectors, including those of other processes, and reset hits and misses."""
        self._store.clear()
        with memory_lock:
            self._hits = self._misses = 0

    def stats(self) -> CacheStats:
        """Return what the cache holds now, and the hits and misses in this process.

        Returns
        -------
        stats : CacheStats
            Hits, misses, vectors and bytes.
        """
        return CacheStats(self._hits, self._misses, *self._store.size())

    def __copy__(self) -> VectorCache:
        return self

    def __deepcopy__(self, memo: dict[int, Any]) -> VectorCache:
        # sklearn.clone copies parameters, and clones must share the vectors.
        return self

    def __reduce__(self) -> tuple[Any, ...]:
        return functools.partial(VectorCache, max_bytes=self.max_bytes), (self.path,)

    def __repr__(self) -> str:
        path = "" if self.path is None else f"{self.path!r}, "
        return f"VectorCache({path}max_bytes={self.max_bytes})"


_opened: dict[str | None, VectorCache] = {}


@checked(cache=[*PATH, VectorCache])
def open_cache(cache: str | os.PathLike[str] | VectorCache = "memory") -> VectorCache:
    """Return the cache that the parameter ``cache`` of an estimator names.

    Read more in the :doc:`user guide </guide/cache>`.

    .. versionadded:: 0.1

    Parameters
    ----------
    cache : "memory", path or VectorCache, default="memory"
        Which cache to return:

        - ``"memory"``: the one in memory that all estimators of a process share;
        - the path of a file: the one of that file;
        - a :class:`VectorCache`: itself.

    Returns
    -------
    cache : VectorCache
        The same object for the same name.

    Raises
    ------
    ValueError
        If `cache` is the path of a folder, device, pipe or socket, or ``"none"`` in upper or
        lower case.

    Examples
    --------
    >>> from prefixembed.cache import open_cache
    >>> open_cache("memory")
    VectorCache(max_bytes=1073741824)
    """
    if isinstance(cache, VectorCache):
        return cache
    check_cache_name(cache)
    path = None if cache == "memory" else os.path.realpath(cache)
    if path not in _opened:
        _opened.setdefault(path, VectorCache(path))  # as one step: other threads open caches too
    return _opened[path]
