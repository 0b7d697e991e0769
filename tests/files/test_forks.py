"""What a fork waits for, and caches in forked children."""

import multiprocessing
import os
import threading
import time
import warnings

import numpy as np
import pytest
from helpers import run_python

from prefixembed import VectorCache
from prefixembed._files import forks
from prefixembed._files.forks import ForkGate


def rows_of(n):
    keys = [b"%020d" % k for k in range(n)]
    vectors = np.arange(n, dtype=np.float32)[:, None] + np.zeros(4, np.float32)
    return keys, vectors, np.zeros(n, np.bool_)


@pytest.fixture
def gate():
    return ForkGate()


class Caller:
    """A call in another thread, from `enter` to `leave`."""

    def __init__(self, gate):
        self.inside, self.leaving = threading.Event(), threading.Event()
        self.thread = threading.Thread(target=self.run, args=(gate,), daemon=True)

    def run(self, gate):
        with gate.call():
            self.inside.set()
            self.leaving.wait(60)

    def enter(self):
        self.thread.start()
        return self

    def leave(self):
        self.leaving.set()
        self.thread.join(60)
        assert not self.thread.is_alive()


def test_fork_waits_for_calls_and_calls_wait_for_the_fork(gate):
    running = [Caller(gate).enter() for _ in range(3)]  # at once
    assert all(caller.inside.wait(60) for caller in running)
    forked, go_on = threading.Event(), threading.Event()

    def fork():
        gate.before_fork()
        forked.set()
        go_on.wait(60)
        gate.after_in_parent()

    forking = threading.Thread(target=fork, daemon=True)
    forking.start()
    for caller in running:
        assert not forked.wait(0.05)
        caller.leave()
    assert forked.wait(60)
    late = Caller(gate).enter()
    assert not late.inside.wait(0.05)
    assert forks.memory_lock.locked()
    go_on.set()
    forking.join(60)
    assert late.inside.wait(60)
    late.leave()
    assert not forks.memory_lock.locked()


def test_fork_that_has_waited_long_enough_leaves_a_child_without_files(gate, monkeypatch):
    monkeypatch.setattr(forks, "PATIENCE", 0.05)
    caller = Caller(gate).enter()
    assert caller.inside.wait(60)
    gate.before_fork()
    gate.after_in_child()
    assert not gate.is_open
    with gate.call():  # who asks does not hang
        pass
    # So are its own children.
    gate.before_fork()
    gate.after_in_child()
    assert not gate.is_open


def test_calls_do_not_overtake_a_fork_that_waits(gate):
    """Calls without a break, one after the other in two threads, cannot keep a fork waiting."""
    done = threading.Event()

    def call():
        while not done.is_set():
            with gate.call():
                time.sleep(0.002)

    threads = [threading.Thread(target=call, daemon=True) for _ in range(2)]
    for thread in threads:
        thread.start()
    try:
        for _ in range(20):
            gate.before_fork()
            assert not gate._n_running
            gate.after_in_parent()
    finally:
        done.set()
        for thread in threads:
            thread.join(60)


FORKS = """
import os, sys, threading, time, warnings, numpy as np
warnings.simplefilter("ignore", DeprecationWarning)
from prefixembed import VectorCache
cache = VectorCache(None if sys.argv[1] == "memory" else sys.argv[1])
rows = [b"%020d" % k for k in range(200)], np.ones((200, 64), np.float32), np.zeros(200, bool)
done = threading.Event()

def write():
    while not done.is_set():
        cache.put(*rows)

writer = threading.Thread(target=write, daemon=True)
writer.start()
for _ in range(20):
    child = os.fork()
    if not child:
        cache.put(*rows)
        os._exit(0 if all(row is not None for row in cache.get(rows[0])) else 1)
    assert os.waitpid(child, 0)[1] == 0
done.set()
writer.join()
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this platform has no fork")
@pytest.mark.parametrize("kind", ["memory", "disk"])
def test_cache_works_in_a_child_that_is_forked_while_a_thread_uses_it(tmp_path, kind):
    where = "memory" if kind == "memory" else str(tmp_path / "c.db")
    _, err = run_python(FORKS, where)
    assert not err, err


# One thread waits for a file that another process has locked. Meanwhile, nothing else may wait.
LOCKED = """
import os, sqlite3, subprocess, sys, threading, time, warnings, numpy as np
from pathlib import Path
warnings.simplefilter("ignore", DeprecationWarning)
from prefixembed import VectorCache
from prefixembed._files import vector_store
folder, code = Path(sys.argv[1]), sys.argv[2]
rows = [b"%020d" % k for k in range(20)], np.ones((20, 64), np.float32), np.zeros(20, bool)
caches = [VectorCache(), VectorCache(folder / "free.db"), VectorCache(folder / "locked.db")]
caches[2].put(*rows)

def use(cache):
    cache.clear()
    cache.put(*rows)
    assert all(row is not None for row in cache.get(rows[0]))

command = [sys.executable, "-c", code, caches[2].path]
other = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
assert other.stdout.readline() == b"locked\\n"
vector_store._TIMEOUT = 1e6
waiting = threading.Thread(target=caches[2].put, args=rows, daemon=True)
waiting.start()
for _ in range(5):
    time.sleep(0.02)
    for cache in caches[:2]:
        use(cache)
    child = os.fork()
    if not child:
        for cache in caches[:2]:
            use(cache)
        os._exit(0)
    assert os.waitpid(child, 0)[1] == 0
assert waiting.is_alive()
child = os.fork()
if not child:  # it has its own connections and locks
    use(caches[2])
    os._exit(0)
other.communicate(b"go\\n")
waiting.join()
assert os.waitpid(child, 0)[1] == 0
"""

LOCK = """
import sqlite3, sys
db = sqlite3.connect(sys.argv[1], isolation_level=None)
db.execute("BEGIN IMMEDIATE")
print("locked", flush=True)
sys.stdin.readline()  # not to the end, which forked children keep open
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this platform has no fork")
def test_only_who_uses_a_locked_file_waits_for_it(tmp_path):
    _, err = run_python(LOCKED, tmp_path, LOCK)
    assert not err, err


def test_child_that_cannot_use_files_says_so_once(tmp_path, monkeypatch):
    monkeypatch.setattr(forks.gate, "is_open", False)
    cache = VectorCache(tmp_path / "c.db")
    with pytest.warns(UserWarning, match="this process was forked while another thread"):
        cache.put(*rows_of(3))
    assert cache.get(rows_of(3)[0]) == [None] * 3  # without another warning


@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_child_processes_can_use_the_file_of_the_parent(tmp_path, method):
    if method not in multiprocessing.get_all_start_methods():
        pytest.skip(f"this platform has no {method}")
    cache = VectorCache(tmp_path / "c.db")
    cache.put(*rows_of(30))
    with warnings.catch_warnings():
        # Python 3.12 and later warn about forks of a process with threads.
        warnings.filterwarnings("ignore", "This process .* is multi-threaded", DeprecationWarning)
        with multiprocessing.get_context(method).Pool(2) as pool:
            found = pool.map(cache.get, [rows_of(30)[0]] * 4)
    for rows in found:
        assert [row[0][0] for row in rows] == list(range(30))
