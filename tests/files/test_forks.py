"""What a fork waits for, without forks."""

import threading
import time

import pytest

from prefixembed._files import forks
from prefixembed._files.forks import ForkGate


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
