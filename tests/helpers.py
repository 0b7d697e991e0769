"""Estimators with quick settings, small random data of each kind, and processes that end."""

import contextlib
import os
import signal
import subprocess
import sys
import threading
import time

import numpy as np

from prefixembed import MultiTaskEncoder, PrefixEncoder
from prefixembed._fit.examples import Examples
from prefixembed._fit.objectives import OBJECTIVES as KINDS
from prefixembed._fit.objectives import Targets

GOOD, BAD = ["joy", "gem", "fine"], ["bore", "dull", "mess"]
# Objectives of `three_tasks` that are not the default.
OBJECTIVES = {"stars": "regression", "words": "token_classification"}
_QUICK = {"batch_size": 8, "max_length": 64, "random_state": 0, "dtype": "float32", "device": "cpu"}


def make_encoder(folder, **params):
    quick = _QUICK | {"max_steps": 18, "n_iter_no_change": 12, "learning_rate": 0.03}
    # Both kinds of memory; background text would take longer to read than these texts.
    quick |= {"prefix_length": 5, "background": None}
    return PrefixEncoder(folder, **(quick | params))


def make_multitask(folder, **params):
    rates = {"learning_rate": 2e-3, "head_learning_rate": 2e-2}
    return MultiTaskEncoder(folder, **(_QUICK | {"max_steps": 60} | rates | params))


def split_examples(values, n_valid, objective="classification"):
    """Return examples without texts, the last ones for validation, whose weights are 1."""
    values, n = np.asarray(values), len(values)
    n_outputs = int(values.max()) + 1 if objective == "classification" else 1
    targets = Targets(values, np.arange(n_outputs), n_outputs)
    rows = np.split(np.arange(n), [n - n_valid])
    counts, weights = np.ones(n, dtype=np.intp), np.ones(n, dtype=np.float32)
    return Examples(None, counts, KINDS[objective], targets, weights, *rows)


def reviews(n=48, seed=0):
    """Return texts with one good or bad word, and their classes."""
    rng = np.random.default_rng(seed)
    classes = np.where(rng.random(n) < 0.5, "good", "bad")
    words = {"good": [*GOOD, "love"], "bad": [*BAD, "hate"]}
    texts = [f"{rng.choice(words[name])} {rng.integers(99)} a film" for name in classes]
    return texts, classes


def ratings(n=60, seed=0):
    """Return texts of three words, and numbers that grow with the good ones."""
    rng = np.random.default_rng(seed)
    n_good = rng.integers(0, 4, size=n)
    texts = [" ".join([*rng.choice(GOOD, k), *rng.choice(BAD, 3 - k)]) for k in n_good]
    return texts, 10.0 * n_good + 100


def labels(n=60, seed=0):
    """Return texts, and for each whether it has a good word and whether it has a bad word."""
    rng = np.random.default_rng(seed)
    present = rng.integers(2, size=(n, 2))
    texts = [f"{GOOD[0] * a} {BAD[0] * b} {rng.integers(9)}" for a, b in present]
    return texts, present


def choices(n=60, seed=0):
    """Return rows of a context and two or three choices, and the position of the good one."""
    rng = np.random.default_rng(seed)
    rows, right = [], rng.integers(2, size=n)
    for k in right:
        words = list(rng.choice(BAD, 2 + rng.integers(2)))
        words[k] = str(rng.choice(GOOD))
        rows.append(("what is good", words))
    return rows, right


def tags(n=60, seed=0):
    """Return sentences in words, and the class of each word."""
    rng = np.random.default_rng(seed)
    sentences = [list(rng.choice(GOOD + BAD, rng.integers(1, 5))) for _ in range(n)]
    return sentences, [["good" if word in GOOD else "bad" for word in s] for s in sentences]


# Rows and labels of each kind of source task, by objective.
TASKS = {
    "classification": reviews,
    "regression": ratings,
    "multilabel": labels,
    "multiple_choice": choices,
    "token_classification": tags,
}


def three_tasks():
    """Return a classification, a regression and a task of words for `MultiTaskEncoder`."""
    texts, present = labels(80)
    return {"good": (texts, present[:, 0]), "stars": ratings(80), "words": tags(80)}


def start_python(code, *args, options=(), timeout=300, **popen):
    """Start Python code in a process, which is killed with its own children after a time.

    Without that, a child that waits for ever would also keep who waits for its output.
    """
    command = [sys.executable, *options, "-c", code, *map(str, args)]
    kinds = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    process = subprocess.Popen(command, start_new_session=True, **(kinds | popen))
    timer = threading.Timer(timeout, kill, [process])
    timer.daemon = True
    timer.start()
    return process


def kill(process):
    """Kill a process of :func:`start_python`, and its children, if it has not ended."""
    if process.returncode is None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)


def run_python(code, *args, **params):
    """Run Python code in a process that ends, and return its output and errors if it succeeds."""
    process = start_python(code, *args, **params)
    out, err = process.communicate()
    assert process.returncode == 0, (process.returncode, out, err)
    return out, err


def wait_until(condition, timeout=120):
    """Wait for what another thread or process does, but not for ever."""
    end = time.monotonic() + timeout
    while not condition():
        assert time.monotonic() < end, f"nothing happened in {timeout} s"
        time.sleep(0.001)
