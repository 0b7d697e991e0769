"""Stores of vectors: in memory, and in an SQLite file that several processes share."""

from __future__ import annotations

import hashlib
import itertools
import math
import os
import sqlite3
import time
from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager, suppress
from pathlib import Path
from typing import Protocol, TypeVar

import numpy as np
from filelock import FileLock, Timeout
from numpy.typing import NDArray

from prefixembed._files.atomic import file_lock, follow
from prefixembed._files.forks import gate, memory_lock
from prefixembed._utils.warnings import warn

_APPLICATION_ID = 0x70666578  # "pfex"
_VERSION = 1
_PAGE_BYTES = 16384
_TIMEOUT = 30.0  # seconds to wait for another process or thread
_TRY = 0.05  # seconds of one attempt, which forks wait for
_PAUSE = 0.01  # seconds between attempts
_KEYS_PER_QUERY = 500
# Bytes of a row besides its vector: in its page of the file, in the indices, and in memory (key,
# entry of the dict, tuple, header of the array).
_ROW_OVERHEAD, _INDEX_BYTES, _MEMORY_OVERHEAD = 80, 100, 300
_EMPTY_BYTES = 5 * _PAGE_BYTES  # size of an empty file, and allowance for pages that are not full
# Seconds. Reading counts as use, but not every read is worth a write.
_TOUCH_AFTER = 60.0
# Share of the bound that is freed at once.
_EVICTED = 0.1

_T = TypeVar("_T")
Row = tuple[NDArray[np.float32], bool]  # vector, and whether its text was truncated


class Store(Protocol):
    """Protocol of MemoryStore, DiskStore and VectorCache."""

    def get(self, keys: Sequence[bytes]) -> list[Row | None]:
        """Return the row of each key, or None where there is none."""

    def put(
        self, keys: Sequence[bytes], vectors: NDArray[np.float32], truncated: NDArray[np.bool_]
    ) -> None:
        """Add rows, or replace those with the same key."""


class MemoryStore:
    """Keep rows in memory, and evict the least recently used ones first."""

    def __init__(self, max_bytes: int) -> None:
        self.max_bytes = max_bytes
        self._rows: OrderedDict[bytes, Row] = OrderedDict()
        self._n_bytes = 0

    def get(self, keys: Sequence[bytes]) -> list[Row | None]:
        """Return the row of each key, or None where there is none."""
        with memory_lock:
            rows = [self._rows.get(key) for key in keys]
            for key, row in zip(keys, rows, strict=True):
                if row is not None:
                    self._rows.move_to_end(key)
        return rows

    def put(
        self, keys: Sequence[bytes], vectors: NDArray[np.float32], truncated: NDArray[np.bool_]
    ) -> None:
        """Add rows, or replace those with the same key."""
        # Copies: a row of the caller's array would keep the whole array alive.
        rows = [(vector.copy(), bool(cut)) for vector, cut in zip(vectors, truncated, strict=True)]
        with memory_lock:
            for key, row in zip(keys, rows, strict=True):
                if key in self._rows:
                    self._n_bytes -= _memory_bytes(self._rows.pop(key))
                self._rows[key] = row
                self._n_bytes += _memory_bytes(row)
                while self._n_bytes > self.max_bytes:
                    _, oldest = self._rows.popitem(last=False)
                    self._n_bytes -= _memory_bytes(oldest)

    def clear(self) -> None:
        """Remove all rows."""
        with memory_lock:
            self._rows.clear()
            self._n_bytes = 0

    def size(self) -> tuple[int, int]:
        """Return the number of rows, and the bytes that they take."""
        return len(self._rows), self._n_bytes


class DiskStore:
    """Keep rows in an SQLite file; problems with the file are warnings, never errors.

    Each call opens a connection of its own, so that threads and forked processes never share one:
    SQLite's locks are between threads as between processes. The least recently used rows are
    evicted first.
    """

    def __init__(self, path: Path, max_bytes: int) -> None:
        self.path = follow(path)  # absolute; the file is created on first use
        self.max_bytes = max_bytes  # SQLite's write-ahead log is not counted
        self._warned = False
        self._timed_out = False  # if the last call waited in vain, the next one does not wait

    def get(self, keys: Sequence[bytes]) -> list[Row | None]:
        """Return the row of each key, or None where there is none."""
        nothing: dict[bytes, tuple[Row, float]] = {}
        found = self._guarded(lambda db: _select(db, keys), nothing)
        now = time.time()
        stale = [(now, key) for key, (_, used) in found.items() if used < now - _TOUCH_AFTER]
        if stale:
            self._guarded(lambda db: _touch(db, stale), None)
        return [found[key][0] if key in found else None for key in keys]

    def put(
        self, keys: Sequence[bytes], vectors: NDArray[np.float32], truncated: NDArray[np.bool_]
    ) -> None:
        """Write rows in one transaction: the last ones if not all fit."""
        size = _row_bytes(vectors.shape[1])
        fit = max(0, int((1 - _EVICTED) * (self.max_bytes - _EMPTY_BYTES) / size))
        if not fit or not keys:
            return
        now = time.time()
        rows = [
            (key, vector.tobytes(), int(cut), _checksum(key, vector.tobytes(), int(cut)), now)
            for key, vector, cut in zip(
                keys[-fit:], np.ascontiguousarray(vectors[-fit:], "<f4"), truncated[-fit:],
                strict=True,
            )
        ]  # fmt: skip

        def write(db: sqlite3.Connection) -> None:
            with _transaction(db):
                _make_room(db, int(size * len(rows)), self.max_bytes)
                db.executemany("INSERT OR REPLACE INTO vectors VALUES (?, ?, ?, ?, ?)", rows)

        self._guarded(write, None)

    def clear(self) -> None:
        """Remove all rows and shrink the file."""

        def drop(db: sqlite3.Connection) -> None:
            db.execute("DELETE FROM vectors")
            db.execute("VACUUM")

        self._guarded(drop, None)

    def size(self) -> tuple[int, int]:
        """Return the number of rows, and the bytes of the file that are in use."""

        def measure(db: sqlite3.Connection) -> tuple[int, int]:
            (n_rows,) = db.execute("SELECT COUNT(*) FROM vectors").fetchone()
            return n_rows, _used_bytes(db)

        return self._guarded(measure, (0, 0))

    def _guarded(self, work: Callable[[sqlite3.Connection], _T], otherwise: _T) -> _T:
        """Return what `work` returns, or warn and return `otherwise` if the file is unusable."""
        identity = None

        def attempt() -> _T:
            nonlocal identity
            identity = self._prepare()
            with closing(self._connect()) as db:
                return work(db)

        try:
            return self._patiently(attempt)
        except (sqlite3.OperationalError, OSError) as error:
            self._warn_once(str(error))
        except (sqlite3.DatabaseError, UnicodeDecodeError) as error:
            # UnicodeDecodeError: a message of SQLite quotes damaged bytes.
            self._set_aside(identity, str(error))
        return otherwise

    def _patiently(self, attempt: Callable[[], _T]) -> _T:
        """Return what `attempt` returns; while others hold a lock, it is called again."""
        end = time.monotonic() + (0 if self._timed_out else _TIMEOUT)
        while True:
            with gate.call():
                if not gate.is_open:
                    raise OSError("this process was forked while another thread used a cache")
                try:
                    result = attempt()
                except (sqlite3.OperationalError, Timeout) as error:
                    if not isinstance(error, Timeout) and "locked" not in str(error):
                        raise
                    if time.monotonic() >= end:
                        self._timed_out = True
                        raise
                else:
                    self._timed_out = False
                    return result
            time.sleep(_PAUSE)

    def _connect(self) -> sqlite3.Connection:
        # mode=rw never creates a file: _create puts a whole one in place.
        db = sqlite3.connect(
            f"{self.path.as_uri()}?mode=rw", uri=True, timeout=_TRY, isolation_level=None
        )
        try:
            _check_origin(db)
            db.execute("PRAGMA synchronous=NORMAL")
        except BaseException:
            db.close()
            raise
        return db

    def _lock(self) -> FileLock:
        return file_lock(Path(f"{self.path}.lock"), _TRY)

    def _prepare(self) -> tuple[int, int]:
        """Create the file if it is missing, and return its device and inode.

        The file is not opened here: closing it would drop all locks that the process holds on
        it, including those of SQLite in other threads.
        """
        exists = self.path.exists()
        if exists and not self.path.is_file():
            raise OSError("it is not a regular file")
        if not exists or not self.path.stat().st_size:
            self._create()
        return _identity(self.path)

    def _create(self) -> None:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with self._lock():
            if self.path.exists() and self.path.stat().st_size:
                return
            temporary = Path(f"{self.path}.new")
            for left in (temporary, *_companions(self.path)):
                left.unlink(missing_ok=True)
            with closing(sqlite3.connect(temporary, isolation_level=None)) as db:
                db.execute(f"PRAGMA page_size={_PAGE_BYTES}")
                db.execute(f"PRAGMA application_id={_APPLICATION_ID}")
                db.execute(f"PRAGMA user_version={_VERSION}")
                db.execute(
                    "CREATE TABLE vectors (key BLOB PRIMARY KEY, vector BLOB NOT NULL, "
                    "truncated INTEGER NOT NULL, checksum BLOB NOT NULL, used REAL NOT NULL)"
                )
                db.execute("CREATE INDEX by_use ON vectors (used)")
                db.execute("PRAGMA journal_mode=WAL")
            os.replace(temporary, self.path)

    def _set_aside(self, identity: tuple[int, int] | None, problem: str) -> None:
        """Rename the file, unless another process has done so or it never was a cache."""
        if not Path(f"{self.path}.lock").exists():
            self._warn_once(f"the file was not created as a cache ({problem}) and is left alone")
            return

        def rename() -> Path | None:
            with self._lock():
                if not self.path.exists() or _identity(self.path) != identity:
                    return None
                taken = (Path(f"{self.path}.damaged{k}") for k in itertools.count(1))
                aside = next(path for path in taken if not path.exists())
                for part in _companions(self.path):
                    if part.exists():
                        os.replace(part, f"{aside}{part.name[len(self.path.name) :]}")
                os.replace(self.path, aside)
                return aside

        try:
            aside = self._patiently(rename)
        except OSError as error:
            self._warn_once(f"{problem}; the file could not be renamed: {error}")
            return
        if aside is not None:
            warn(
                f"cache {str(self.path)!r} is damaged or not a cache ({problem}): it was renamed "
                f"to {aside.name!r}, and a new one will be created"
            )

    def _warn_once(self, problem: str) -> None:
        if not self._warned:
            self._warned = True
            warn(f"cache {str(self.path)!r} cannot be used: {problem}; texts are encoded instead")


def _companions(path: Path) -> list[Path]:
    # Files that SQLite keeps next to a database. It would apply them to any database of that name.
    return [Path(f"{path}-wal"), Path(f"{path}-shm"), Path(f"{path}-journal")]


def _identity(path: Path) -> tuple[int, int]:
    status = os.stat(path)
    return status.st_dev, status.st_ino


def _check_origin(db: sqlite3.Connection) -> None:
    """Refuse a database that is not a cache of this version."""
    (application,) = db.execute("PRAGMA application_id").fetchone()
    if application != _APPLICATION_ID:
        raise sqlite3.DatabaseError("it is a database of another application")
    (version,) = db.execute("PRAGMA user_version").fetchone()
    if version != _VERSION:
        raise sqlite3.DatabaseError(
            f"its version is {version}, this version of prefixembed reads {_VERSION}"
        )


def _checksum(key: bytes, vector: bytes, truncated: int) -> bytes:
    return hashlib.blake2b(key + bytes([truncated]) + vector, digest_size=8).digest()


def _select(db: sqlite3.Connection, keys: Sequence[bytes]) -> dict[bytes, tuple[Row, float]]:
    found: dict[bytes, tuple[Row, float]] = {}
    for start in range(0, len(keys), _KEYS_PER_QUERY):
        some = list(keys[start : start + _KEYS_PER_QUERY])
        marks = ",".join("?" * len(some))
        query = f"SELECT key, vector, truncated, checksum, used FROM vectors WHERE key IN ({marks})"
        for key, vector, truncated, checksum, used in db.execute(query, some):
            # A flipped bit can change the type of a cell, too.
            whole = isinstance(vector, bytes) and truncated in (0, 1) and isinstance(used, float)
            if not whole or _checksum(key, vector, truncated) != checksum:
                raise sqlite3.DatabaseError("the checksum of a vector is wrong")
            numbers = np.frombuffer(vector, "<f4").astype(np.float32, copy=False)
            found[key] = (numbers, bool(truncated)), used
    return found


def _touch(db: sqlite3.Connection, stale: Sequence[tuple[float, bytes]]) -> None:
    # Not worth waiting for: times of use only decide what is evicted first.
    with suppress(sqlite3.OperationalError), _transaction(db):
        db.executemany("UPDATE vectors SET used = ? WHERE key = ?", stale)


def _memory_bytes(row: Row) -> int:
    return row[0].nbytes + _MEMORY_OVERHEAD


@contextmanager
def _transaction(db: sqlite3.Connection) -> Iterator[None]:
    # After an error, closing the connection rolls back.
    db.execute("BEGIN IMMEDIATE")
    yield
    db.execute("COMMIT")


def _row_bytes(n_features: int) -> float:
    """Return the bytes that a row takes in the file, with its share of unused space."""
    row = 4 * n_features + _ROW_OVERHEAD
    per_page = _PAGE_BYTES // row
    pages = 1 / per_page if per_page else math.ceil(row / _PAGE_BYTES)
    return pages * _PAGE_BYTES + _INDEX_BYTES


def _used_bytes(db: sqlite3.Connection) -> int:
    (pages,) = db.execute("PRAGMA page_count").fetchone()
    (free,) = db.execute("PRAGMA freelist_count").fetchone()
    (page_bytes,) = db.execute("PRAGMA page_size").fetchone()
    return int((pages - free) * page_bytes)


def _make_room(db: sqlite3.Connection, n_bytes: int, max_bytes: int) -> None:
    used = _used_bytes(db) + _EMPTY_BYTES
    if used + n_bytes <= max_bytes:
        return
    (n_rows,) = db.execute("SELECT COUNT(*) FROM vectors").fetchone()
    surplus = used + n_bytes - (1 - _EVICTED) * max_bytes
    share = surplus / max(1, used - 2 * _EMPTY_BYTES)  # of the bytes that rows take
    n_evicted = min(n_rows, int(share * n_rows) + 1)
    db.execute(
        "DELETE FROM vectors WHERE rowid IN (SELECT rowid FROM vectors ORDER BY used LIMIT ?)",
        (n_evicted,),
    )
