"""Vectors by content: a text that was encoded once is not encoded again."""

from __future__ import annotations

import hashlib
import json
import os
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass, field
from numbers import Integral
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from prefixembed._embed.texts import Text, Words
from prefixembed._files.vector_store import DiskStore, Row, at_work
from prefixembed._utils.parameters import PATH, checked

# What Python needs for a row beside its numbers: key, dict entry, tuple, array header.
_ROW_OVERHEAD = 300
_KEY_BYTES = 20


@dataclass(frozen=True)
class Representation:
    """Everything but the text that decides a vector.

    Parameters
    ----------
    fingerprint : str
        Of the backbone.
    prefixes : tuple of (str, float)
        Digest and weight of each active prefix. Their order does not count.
    combine : {"concat", "mean"}
        How they are combined.
    pooling : {"cls", "mean", "max", "last"}
        How token vectors become one.
    pooled_layers : int
        How many last layers are averaged.
    max_length : int
        Where texts are cut, in tokens.
    dtype : str
        What the backbone computes in.
    first_position : int, default=0
        Position of the first token.
    pairs : {"joint", "apart"}, default="joint"
        How pairs are read. It decides what is encoded for a pair, not the vector of a text.
    prompt : str, default=""
        What was put before each text.
    windows : bool, default=False
        Whether what is longer is read in windows rather than cut.
    """

    fingerprint: str
    prefixes: tuple[tuple[str, float], ...]
    combine: str
    pooling: str
    pooled_layers: int
    max_length: int
    dtype: str
    first_position: int = 0
    pairs: str = "joint"
    prompt: str = ""
    windows: bool = False
    _seed: Any = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        content = [
            self.fingerprint,
            sorted(self.prefixes),
            # One prefix is combined with nothing.
            self.combine if len(self.prefixes) > 1 else "",
            self.pooling,
            self.pooled_layers,
            self.max_length,
            self.dtype,
            self.first_position,
            *(["windows"] if self.windows else []),
            *(["prompt", self.prompt] if self.prompt else []),
        ]
        seed = hashlib.blake2b(json.dumps(content).encode(), digest_size=_KEY_BYTES)
        object.__setattr__(self, "_seed", seed)

    @property
    def digest(self) -> str:
        """Hexadecimal digest: equal where every text has an equal key."""
        return self._seed.hexdigest()

    def keys(self, texts: Sequence[Text]) -> list[bytes]:
        """Give the key of each vector of texts in this representation.

        Parameters
        ----------
        texts : sequence of str, of (str, str) or of Words
            Checked texts.

        Returns
        -------
        keys : list of bytes
            One a text, or one a word of sentences in words. Equal for equal texts only.
        """
        if len(texts) and isinstance(texts[0], Words):
            return [key for sentence in texts for key in self._word_keys(sentence)]
        return [self._key(text) for text in texts]

    def _word_keys(self, sentence: Text) -> list[bytes]:
        hashed = self._seed.copy()
        for word in sentence:
            content = word.encode("utf-8", "surrogatepass")
            hashed.update(b"word%d:" % len(content) + content)
        keys = []
        for k in range(len(sentence)):
            one = hashed.copy()
            one.update(b"%d" % k)
            keys.append(bytes(one.digest()))
        return keys

    def _key(self, text: Text) -> bytes:
        hashed = self._seed.copy()
        if isinstance(text, tuple):
            first = text[0].encode("utf-8", "surrogatepass")
            hashed.update(b"pair%d:" % len(first) + first)
            text = text[1]
        else:
            hashed.update(b"text:")
        hashed.update(text.encode("utf-8", "surrogatepass"))
        return bytes(hashed.digest())


@dataclass(frozen=True)
class CacheStats:
    """What a cache holds, and how often it was of use to this process.

    Parameters
    ----------
    hits, misses : int
        Vectors that were found, and that were not.
    n_vectors : int
        Vectors that it holds.
    n_bytes : int
        What they take, in memory or in the file.
    """

    hits: int
    misses: int
    n_vectors: int
    n_bytes: int


class VectorCache:
    """Vectors by content, in memory or on disk, bounded in size.

    A vector is found again if everything that decides it is the same: the backbone's
    fingerprint, the digests and weights of the active prefixes, how they are combined, pooling,
    length limit, dtype, and the text or pair. Names and the order of prefixes do not count, nor
    does the device, whose rounding is that of the dtype. The vectors that were used least
    recently go first.

    Estimators make one themselves: see their parameter ``cache``. One made by hand sets the
    bound, or is shared by a few estimators only. Copies of a cache are the cache itself; a pickle
    carries its parameters and no vectors.

    Parameters
    ----------
    path : str or path-like, default=None
        File to keep vectors in, for any number of processes at once; made where there is none.
        It is an SQLite database, and each vector has a checksum. A cache that is damaged, or
        was overwritten with something else, is renamed with a warning, and a new one is begun; a
        file that never was one is left alone and not used. None for memory.
    max_bytes : int, default=2**30
        Bound on what it holds, in bytes; of a file, its write-ahead log not counted.

    See Also
    --------
    open_cache : The cache that an estimator's ``cache`` parameter names.
    fill_cache : Encodes ahead what a grid search will need.

    Notes
    -----
    Not being able to read or write the file is never an error of the work at hand: it warns, and
    encodes.

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
            raise ValueError(f"max_bytes must be an int of 0 or more, got {max_bytes!r}")
        if path is not None and os.path.isdir(path):
            raise ValueError(
                f"cache must be the path of a file, got the folder {os.fspath(path)!r}"
            )
        self.path = None if path is None else os.path.abspath(path)
        self.max_bytes = int(max_bytes)
        self._store: _MemoryStore | DiskStore = (
            _MemoryStore(max_bytes) if self.path is None else DiskStore(Path(self.path), max_bytes)
        )
        self._hits = self._misses = 0

    def get(self, keys: Sequence[bytes]) -> list[Row | None]:
        """Look vectors up.

        Parameters
        ----------
        keys : sequence of bytes
            As :meth:`Representation.keys` gives them.

        Returns
        -------
        rows : list of (ndarray of shape (n_features,), bool) or None
            Vector, and whether its text was cut; None for what is not here.
        """
        rows = self._store.get(keys)
        hits = sum(row is not None for row in rows)
        with at_work:
            self._hits += hits
            self._misses += len(rows) - hits
        return rows

    def put(
        self, keys: Sequence[bytes], vectors: NDArray[np.float32], truncated: NDArray[np.bool_]
    ) -> None:
        """Keep vectors, as far as there is room for them.

        Parameters
        ----------
        keys : sequence of bytes
            As :meth:`Representation.keys` gives them.
        vectors : float32 ndarray of shape (n_texts, n_features)
            In the order of `keys`.
        truncated : bool ndarray of shape (n_texts,)
            Whose texts were cut.
        """
        self._store.put(keys, vectors, truncated)

    def clear(self) -> None:
        """Drop all vectors, those of other processes too; counts of hits and misses start anew."""
        self._store.clear()
        with at_work:
            self._hits = self._misses = 0

    def stats(self) -> CacheStats:
        """Tell what the cache holds, and its hits and misses in this process.

        Returns
        -------
        stats : CacheStats
            Of this moment.
        """
        return CacheStats(self._hits, self._misses, *self._store.size())

    def __copy__(self) -> VectorCache:
        return self

    def __deepcopy__(self, memo: dict[int, Any]) -> VectorCache:
        # sklearn.clone copies parameters: clones are to share what was encoded.
        return self

    def __reduce__(self) -> tuple[Any, ...]:
        return _remake, (self.path, self.max_bytes)

    def __repr__(self) -> str:
        where = "" if self.path is None else f"{self.path!r}, "
        return f"VectorCache({where}max_bytes={self.max_bytes})"


def _remake(path: str | None, max_bytes: int) -> VectorCache:
    return VectorCache(path, max_bytes=max_bytes)


class _MemoryStore:
    def __init__(self, max_bytes: int) -> None:
        self.max_bytes = max_bytes
        self._rows: OrderedDict[bytes, Row] = OrderedDict()
        self._n_bytes = 0

    def get(self, keys: Sequence[bytes]) -> list[Row | None]:
        with at_work:
            rows = [self._rows.get(key) for key in keys]
            for key, row in zip(keys, rows, strict=True):
                if row is not None:
                    self._rows.move_to_end(key)
        return rows

    def put(
        self, keys: Sequence[bytes], vectors: NDArray[np.float32], truncated: NDArray[np.bool_]
    ) -> None:
        with at_work:
            for key, vector, cut in zip(keys, vectors, truncated, strict=True):
                if key not in self._rows:
                    self._n_bytes += vector.nbytes + _ROW_OVERHEAD
                # A copy: a row of the caller's array would keep all of that alive.
                self._rows[key] = vector.copy(), bool(cut)
                self._rows.move_to_end(key)
                while self._n_bytes > self.max_bytes:
                    _, (oldest, _) = self._rows.popitem(last=False)
                    self._n_bytes -= oldest.nbytes + _ROW_OVERHEAD

    def clear(self) -> None:
        with at_work:
            self._rows.clear()
            self._n_bytes = 0

    def size(self) -> tuple[int, int]:
        return len(self._rows), self._n_bytes


_opened: dict[str | None, VectorCache] = {}


@checked(cache=[*PATH, VectorCache])
def open_cache(cache: str | os.PathLike[str] | VectorCache = "memory") -> VectorCache:
    """Give the cache that an estimator's ``cache`` parameter names.

    Parameters
    ----------
    cache : "memory", path or VectorCache, default="memory"
        ``"memory"`` is the one in memory that all estimators of a process share.

    Returns
    -------
    cache : VectorCache
        The same object for the same name, to ask for :meth:`~VectorCache.stats` or to
        :meth:`~VectorCache.clear`.

    Raises
    ------
    ValueError
        If `cache` is the path of a folder.

    Examples
    --------
    >>> from prefixembed.cache import open_cache
    >>> open_cache("memory")
    VectorCache(max_bytes=1073741824)
    """
    if isinstance(cache, VectorCache):
        return cache
    path = None if cache == "memory" else os.path.realpath(cache)
    with at_work:
        if path not in _opened:
            _opened[path] = VectorCache(path)
        return _opened[path]
