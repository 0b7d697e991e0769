"""Caches in memory and on disk: bounds, eviction, damage, processes and kills."""

import copy
import os
import pickle
import re
import socket
import sqlite3
import stat
import time
import warnings
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from conftest import TEXTS
from helpers import kill, start_python
from sklearn.base import clone

from prefixembed import PrefixBank, VectorCache

CPU = {"dtype": "float32", "device": "cpu"}


def rows_of(n, start=0, n_features=4):
    keys = [b"%020d" % k for k in range(start, start + n)]
    vectors = np.arange(start, start + n, dtype=np.float32)[:, None] + np.zeros(
        n_features, np.float32
    )
    return keys, vectors, np.arange(start, start + n) % 3 == 0


def assert_holds(cache, keys, vectors, truncated):
    for row, vector, cut in zip(cache.get(keys), vectors, truncated, strict=True):
        assert row is not None
        np.testing.assert_array_equal(row[0], vector)
        assert row[1] == cut


@pytest.fixture(params=["memory", "disk"])
def make(request, tmp_path):
    """Return a function that makes a cache in memory or on disk."""

    def of(**params):
        path = None if request.param == "memory" else tmp_path / "c.db"
        return VectorCache(path, **params)

    return of


# Both stores


def test_get_returns_the_vectors_that_were_put(make):
    cache = make()
    keys, vectors, truncated = rows_of(1200)
    cache.put(keys, vectors, truncated)
    assert_holds(cache, keys, vectors, truncated)
    assert cache.get([b"no"]) == [None]
    stats = cache.stats()
    assert (stats.hits, stats.misses, stats.n_vectors) == (1200, 1, 1200)
    assert stats.n_bytes >= vectors.nbytes
    cache.put([], vectors[:0], truncated[:0])
    cache.put(keys[:1], vectors[1:2], truncated[:1])  # replaces the first vector
    assert_holds(cache, keys[:1], vectors[1:2], truncated[:1])
    assert cache.stats().n_vectors == 1200
    cache.clear()
    assert cache.get(keys[:2]) == [None, None]
    assert cache.stats().n_vectors == 0


@pytest.mark.parametrize("n_features", [256, 1024, 2048, 5000])
@pytest.mark.parametrize("max_bytes", [0, 100, 400_000, 3_000_000])
def test_size_stays_within_max_bytes(make, max_bytes, n_features):
    cache = make(max_bytes=max_bytes)
    largest = 0
    for start in range(0, 1200, 100):
        cache.put(*rows_of(100, start, n_features))
        largest = max(largest, cache.stats().n_bytes)
        if cache.path is not None:
            largest = max(largest, os.path.getsize(cache.path))
    smallest_file = 5 * 16384 if cache.path is not None else 0
    assert largest <= max(max_bytes, smallest_file)
    if max_bytes > 1e6:
        # Vectors take up a good part of the limit.
        assert cache.stats().n_vectors * n_features * 4 > 0.4 * max_bytes
        assert_holds(cache, *rows_of(10, 1190, n_features))


def test_least_recently_used_vectors_are_evicted_first(make, monkeypatch):
    clock = [1000.0]
    monkeypatch.setattr(time, "time", lambda: clock[0])
    cache = make(max_bytes=1_800_000)
    keys, vectors, truncated = rows_of(1600, n_features=256)
    for start in range(0, 1200, 100):
        part = slice(start, start + 100)
        cache.put(keys[part], vectors[part], truncated[part])
        clock[0] += 100
    cache.get(keys[:100])  # used again
    clock[0] += 100
    cache.put(keys[1200:], vectors[1200:], truncated[1200:])
    kept = [row is not None for row in cache.get(keys)]
    assert all(kept[:100]) and all(kept[1200:])
    assert not any(kept[100:200])


def test_threads_share_a_cache(make):
    cache = make()

    def work(k):
        part = rows_of(50, 25 * (k % 7))
        cache.put(*part)
        assert_holds(cache, *part)

    with ThreadPoolExecutor(8) as threads:
        list(threads.map(work, range(40)))
    assert cache.stats().n_vectors == 200


def test_copy_is_the_cache_itself_and_pickle_holds_its_parameters(make):
    cache = make(max_bytes=10**7)
    cache.put(*rows_of(3))
    assert copy.deepcopy(cache) is cache
    assert clone(PrefixBank({}, cache=cache)).cache is cache
    other = pickle.loads(pickle.dumps(cache))
    assert (other.path, other.max_bytes) == (cache.path, cache.max_bytes)
    assert other.stats().n_vectors == (0 if cache.path is None else 3)


@pytest.mark.parametrize("max_bytes", [-1, 1.5, "1", True])
def test_invalid_max_bytes_is_refused(max_bytes):
    with pytest.raises(ValueError, match="max_bytes must be an int >= 0"):
        VectorCache(max_bytes=max_bytes)


# The file


CELLS = {
    "vector": "vector = zeroblob(256)",
    "type": "vector = 'text'",
    "flag": "truncated = 300",
    "used": "used = 'yesterday'",
}


def damage(path, kind):
    with open(path, "r+b") as file:
        size = file.seek(0, 2)
        if kind == "cut":
            file.truncate(size // 3)
        elif kind == "header":
            file.seek(0)
            file.write(b"\xff" * 64)
        elif kind == "tree":
            file.seek(16384)
            file.write(b"\xff" * 16384)
        elif kind == "text":
            file.truncate(0)
            file.seek(0)
            file.write(b"dear diary\n" * 99)
        elif kind == "version":
            file.seek(60)
            file.write((99).to_bytes(4, "big"))


DAMAGE = ["cut", "header", "tree", "text", "version", "foreign", "vector", "type", "flag", "used"]


@pytest.mark.parametrize("kind", DAMAGE)
def test_damaged_or_foreign_file_is_renamed(tmp_path, kind):
    path = tmp_path / "c.db"
    rows = rows_of(2000, n_features=64)
    VectorCache(path).put(*rows)
    if kind == "foreign":
        path.unlink()
        with sqlite3.connect(path) as db:
            db.execute("CREATE TABLE vectors (mine TEXT)")
        db.close()
    elif kind in CELLS:
        with sqlite3.connect(path) as db:
            db.execute(f"UPDATE vectors SET {CELLS[kind]} WHERE key = ?", rows[0][7:8])
        db.close()
    else:
        damage(path, kind)
    before = path.read_bytes()
    cache = VectorCache(path)
    with pytest.warns(UserWarning, match=r"damaged or not a cache .* renamed to 'c.db.damaged1'"):
        found = cache.get(rows[0])
    # No vector of the file is returned, and no byte of it is lost.
    assert found == [None] * 2000
    assert (tmp_path / "c.db.damaged1").read_bytes() == before
    cache.put(*rows)
    assert_holds(cache, *rows)
    assert_holds(VectorCache(path), *rows)


def test_flipped_bit_never_changes_a_returned_vector(tmp_path):
    path = tmp_path / "c.db"
    rows = rows_of(40, n_features=64)
    VectorCache(path).put(*rows)
    whole = path.read_bytes()
    rng = np.random.default_rng(0)
    n_noticed = 0
    for position in rng.integers(len(whole), size=150):
        broken = bytearray(whole)
        broken[position] ^= 1 << int(rng.integers(8))
        for left in tmp_path.iterdir():
            left.unlink()
        path.write_bytes(broken)
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            found = VectorCache(path).get(rows[0])
        n_noticed += bool(caught)
        for row, vector, cut in zip(found, *rows[1:], strict=True):
            if row is not None:
                np.testing.assert_array_equal(row[0], vector)
                assert row[1] == cut
    assert n_noticed > 10


def test_file_that_was_not_created_as_a_cache_is_left_alone(tmp_path, tiny):
    table = tmp_path / "table.csv"
    table.write_text("a,b\n" * 100)
    other = tmp_path / "other.db"
    with sqlite3.connect(other) as db:
        db.execute("CREATE TABLE mine (x)")
    db.close()
    expected = PrefixBank({}, backbone=tiny(), cache=None, **CPU).transform(TEXTS)
    for path in (table, other):
        before = path.read_bytes()
        bank = PrefixBank({}, backbone=tiny(), cache=path, **CPU)
        with pytest.warns(UserWarning, match="not created as a cache .* left alone") as caught:
            vectors = bank.transform(TEXTS)
        assert len(caught) == 1 and caught[0].filename == __file__
        np.testing.assert_array_equal(vectors, expected)
        assert path.read_bytes() == before
    assert sorted(p.name for p in tmp_path.iterdir()) == ["other.db", "table.csv"]


def test_empty_file_becomes_a_cache(tmp_path):
    (tmp_path / "c.db").touch()
    cache = VectorCache(tmp_path / "c.db")
    cache.put(*rows_of(3))
    assert_holds(cache, *rows_of(3))


def test_deleted_file_is_created_again(tmp_path):
    cache = VectorCache(tmp_path / "new" / "folder" / "c.db")
    cache.put(*rows_of(3))
    os.unlink(cache.path)
    assert cache.get(rows_of(3)[0]) == [None] * 3
    cache.put(*rows_of(3))
    assert_holds(cache, *rows_of(3))


@pytest.fixture
def no_waiting(monkeypatch):
    """Make it an error to wait for something."""

    def fail(seconds):
        raise AssertionError(f"waits {seconds} s")

    monkeypatch.setattr(time, "sleep", fail)


# Where no file can be created: below a file, in folders of the system, in one that is read-only.
NO_FILES = [
    "file/c.db",
    "/proc/c.db",
    "/proc/1/c.db",
    "/sys/c.db",
    "/proc/no/c.db",
    "read-only/c.db",
]


@pytest.mark.parametrize("place", NO_FILES)
@pytest.mark.usefixtures("no_waiting")
def test_place_that_holds_no_file_is_warned_about_once_and_at_once(tmp_path, tiny, place):
    path = tmp_path / place  # an absolute place stays as it is
    if place.startswith("/") and not os.path.isdir(path.parents[-2]):
        pytest.skip("this platform has no such folder")
    (tmp_path / "file").write_text("a file")
    (tmp_path / "read-only").mkdir(mode=0o500)
    if place == "read-only/c.db" and os.access(path.parent, os.W_OK):
        pytest.skip("permissions do not bind this user")
    expected = PrefixBank({}, backbone=tiny(), cache=None, **CPU).transform(TEXTS)
    bank = PrefixBank({}, backbone=tiny(), cache=path, **CPU)
    reason = (
        f"{re.escape(repr(str(path)))} cannot be used: .*(No such|Not a|denied|permitted|exists)"
    )
    with pytest.warns(UserWarning, match=reason) as caught:
        vectors = np.stack([bank.transform(TEXTS) for _ in range(2)])
    assert len(caught) == 1
    np.testing.assert_array_equal(vectors, [expected, expected])


@pytest.mark.parametrize("kind", ["device", "pipe", "socket"])
def test_what_is_no_regular_file_is_refused(tmp_path, tiny, kind):
    path = os.devnull if kind == "device" else str(tmp_path / "c.db")
    if kind == "pipe":
        os.mkfifo(path)
    elif kind == "socket":
        server = socket.socket(socket.AF_UNIX)
        server.bind(path)
        server.close()
    bank = PrefixBank({}, backbone=tiny(), cache=path, **CPU)
    with pytest.raises(ValueError, match=rf"cache must be the path of a file, got .* '{path}'"):
        bank.transform(TEXTS)
    assert not os.path.isfile(path)


@pytest.mark.usefixtures("no_waiting")
def test_path_that_became_a_pipe_is_left_alone(tmp_path):
    cache = VectorCache(tmp_path / "c.db")
    os.mkfifo(cache.path)
    with pytest.warns(UserWarning, match="it is not a regular file"):
        cache.put(*rows_of(3))
    assert stat.S_ISFIFO(os.stat(cache.path).st_mode)


def test_locked_file_is_waited_for_and_then_ignored(tmp_path, monkeypatch):
    monkeypatch.setattr("prefixembed._files.vector_store._TIMEOUT", 0.2)
    cache = VectorCache(tmp_path / "c.db")
    cache.put(*rows_of(3))
    other = sqlite3.connect(cache.path, isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    with pytest.warns(UserWarning, match="locked"):
        cache.put(*rows_of(3, start=9))
    # Whoever waited in vain does not wait again while nothing changes.
    with monkeypatch.context() as patch:
        patch.setattr("prefixembed._files.vector_store._TIMEOUT", 60.0)
        before = time.monotonic()
        cache.put(*rows_of(3, start=9))
        assert time.monotonic() - before < 10
    # A writer does not block readers, even if they try to record the time of use.
    monkeypatch.setattr("prefixembed._files.vector_store._TOUCH_AFTER", -1.0)
    assert_holds(cache, *rows_of(3))
    other.execute("ROLLBACK")
    other.close()
    cache.put(*rows_of(3, start=9))
    assert_holds(cache, *rows_of(3, start=9))


def test_no_files_stay_open(tmp_path):
    psutil = pytest.importorskip("psutil")
    cache = VectorCache(tmp_path / "c.db")
    cache.put(*rows_of(3))
    before = psutil.Process().num_fds()
    for _ in range(20):
        cache.get(rows_of(3)[0])
        cache.put(*rows_of(3))
    assert psutil.Process().num_fds() <= before


WRITER = """
import sys, numpy as np
from prefixembed import VectorCache
cache = VectorCache(sys.argv[1], max_bytes=3_000_000)
rng = np.random.default_rng(int(sys.argv[2]))
print("ready", flush=True)
for _ in range(int(sys.argv[3])):
    k = rng.integers(3000, size=64)
    keys = [b"%020d" % j for j in k]
    vectors = k[:, None].astype(np.float32) + np.zeros(256, np.float32)
    for row, vector in zip(cache.get(keys), vectors):
        assert row is None or (row[0] == vector).all()
    cache.put(keys, vectors, k % 2 == 0)
print(cache.stats().hits)
"""


def start(path, seed, n_rounds):
    return start_python(WRITER, path, seed, n_rounds, options=["-W", "error"])


def test_processes_share_a_file(tmp_path):
    path = str(tmp_path / "c.db")
    processes = [start(path, seed, 40) for seed in range(4)]
    for process in processes:
        out, err = process.communicate()
        assert process.returncode == 0, err
        assert int(out.split()[-1]) > 0
    assert os.path.getsize(path) < 4_500_000


def test_kill_at_any_moment_leaves_an_intact_file(tmp_path):
    path = str(tmp_path / "c.db")
    rng = np.random.default_rng(0)
    for seed in range(4):
        process = start(path, seed, 10**6)
        assert process.stdout.readline() == "ready\n"
        time.sleep(rng.uniform(0.02, 0.4))
        kill(process)
        process.communicate()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        cache = VectorCache(path)
        keys, vectors, _ = rows_of(3000, n_features=256)
        found = cache.get(keys)
    assert sum(row is not None for row in found) > 100
    for row, vector in zip(found, vectors, strict=True):
        assert row is None or (row[0] == vector).all()
    with sqlite3.connect(path) as db:
        assert db.execute("PRAGMA integrity_check").fetchone() == ("ok",)
    db.close()


TWO_THREADS = """
import sys, threading, time, numpy as np
from prefixembed import VectorCache
cache, me = VectorCache(sys.argv[1]), int(sys.argv[2])
done = threading.Event()

def read():
    while not done.is_set():
        cache.get([b"%020d" % (me * 10**9)])

reader = threading.Thread(target=read)
reader.start()
n, end = 0, time.time() + 3
while time.time() < end:
    keys = [b"%020d" % (me * 10**9 + n + k) for k in range(20)]
    cache.put(keys, np.full((20, 64), n, np.float32), np.zeros(20, bool))
    n += 20
done.set()
reader.join()
print(n)
"""


def test_processes_with_several_threads_lose_no_vector(tmp_path):
    # Closing a file drops all locks that the process holds on it. If the cache opened the file
    # itself, beside SQLite, one of these processes would delete the other's write-ahead log.
    path = tmp_path / "c.db"
    VectorCache(path).put(*rows_of(3))
    processes = [start_python(TWO_THREADS, path, k, options=["-W", "error"]) for k in (1, 2)]
    written = 0
    for process in processes:
        out, err = process.communicate()
        assert process.returncode == 0 and not err, err
        written += int(out)
    with sqlite3.connect(path) as db:
        assert db.execute("SELECT COUNT(*) FROM vectors").fetchone() == (written + 3,)
        assert db.execute("PRAGMA integrity_check").fetchone() == ("ok",)
    db.close()
    assert [p.name for p in tmp_path.iterdir() if "damaged" in p.name] == []
