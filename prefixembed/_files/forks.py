"""What a fork waits for, so that the child inherits nothing that is half done."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager

# Its own hook keeps calls waiting, too. Hooks run last registered first: ours must be first, or it
# would wait for calls that wait for the other.
import filelock  # noqa: F401

# Seconds that a fork waits for calls to SQLite that other threads have begun.
PATIENCE = 5.0

# For steps of a few instructions in memory, never for reading or writing: a fork waits for it, and
# so does every other thread that wants it.
memory_lock = threading.Lock()


class ForkGate:
    """Run any number of calls to SQLite at once, and a fork when there are none.

    SQLite has locks and a list of open files for the whole process. A child that inherits them
    while a call is running may wait for ever, or believe that it holds the locks of a file.
    Calls are short: whoever waits for another process does so between calls.
    """

    def __init__(self) -> None:
        self.is_open = True  # False in a child that was forked while a call was running
        self._forget()

    def _forget(self) -> None:
        self._changed = threading.Condition(threading.Lock())
        self._n_running = 0
        self._n_forks = 0  # that wait or take place

    @contextmanager
    def call(self) -> Iterator[None]:
        """Keep forks waiting, after those that are already waiting."""
        with self._changed:
            self._changed.wait_for(lambda: not self._n_forks)
            self._n_running += 1
        try:
            yield
        finally:
            with self._changed:
                self._n_running -= 1
                self._changed.notify_all()

    def before_fork(self) -> None:
        """Wait until no call is running, or :data:`PATIENCE` is at an end."""
        self._changed.acquire()
        self._n_forks += 1
        try:
            self._changed.wait_for(lambda: not self._n_running, PATIENCE)
        finally:  # Ctrl-C does not stop a fork
            memory_lock.acquire()

    def after_in_parent(self) -> None:
        """Let calls go on."""
        memory_lock.release()
        self._n_forks -= 1
        self._changed.notify_all()
        self._changed.release()

    def after_in_child(self) -> None:
        """Forget the other threads, which the child does not have."""
        memory_lock.release()
        self.is_open = self.is_open and not self._n_running
        self._forget()


gate = ForkGate()
if hasattr(os, "register_at_fork"):
    os.register_at_fork(
        before=gate.before_fork,
        after_in_parent=gate.after_in_parent,
        after_in_child=gate.after_in_child,
    )
