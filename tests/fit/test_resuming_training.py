"""Fits that are stopped: what they leave, and how they continue from their checkpoints."""

import contextlib
import multiprocessing
import os
import random
import re
import signal
import subprocess
import threading
import time
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers import (
    OBJECTIVES,
    kill,
    make_encoder,
    make_multitask,
    reviews,
    start_python,
    three_tasks,
    wait_until,
)

from prefixembed import PrefixEncoder, fit_prefixes
from prefixembed._fit import checkpoints, learning, optimization, prefix_learner

# The runs are short.
pytestmark = pytest.mark.filterwarnings(
    "ignore:the training loss is stuck at chance", "ignore:the validation loss was still falling"
)


def make(folder, **params):
    """Return an encoder for 48 texts, with five passes of 4 steps and 3 steps of another.

    There is an evaluation every 3 steps, or every 2 without validation, so that neither passes nor
    the run end with an interval.
    """
    return make_encoder(folder, **({"max_steps": 23, "validation_fraction": 0.4} | params))


@pytest.fixture
def each_step(monkeypatch):
    """Write a checkpoint after each step instead of once per minute."""
    monkeypatch.setattr(checkpoints, "INTERVAL_SECONDS", 0.0)
    monkeypatch.setattr(checkpoints, "_MAX_SHARE_OF_TIME", float("inf"))


@pytest.fixture
def one_thread():
    n_threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(n_threads)


@contextlib.contextmanager
def stops(n_steps, error, after=False, says="fit was stopped"):
    """Stop training before or after the step of this number, and check the warning."""
    real, taken = optimization._Run.step, []

    def take(run, step):
        taken.append(1)
        if len(taken) == n_steps and not after:
            raise error
        real(run, step)
        if len(taken) == n_steps:
            raise error

    with pytest.MonkeyPatch.context() as patch, warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        patch.setattr(optimization._Run, "step", take)
        with pytest.raises(type(error), match=str(error)):
            yield
    messages = [str(warning.message) for warning in caught]
    assert says is None or any(re.search(says, message) for message in messages), messages


LOST = RuntimeError("the device is lost")


def learned(encoder):
    """Return everything that was learned, without the time that it took."""
    history = {name: figures for name, figures in encoder.history_.items() if name != "seconds"}
    if isinstance(encoder, PrefixEncoder):
        heads, arrays = [encoder.prefix_.head], [encoder.prefix_.keys_values]
    else:
        heads = list(encoder.heads_.values())
        arrays = [p.numpy() for p in encoder.backbone_.model.parameters()]
    arrays += [array for head in heads for array in (head.weight, head.bias)]
    return [array.tobytes() for array in arrays], history


KINDS = {
    "plain": {},
    "mlp, no validation": {"reparameterize": 6, "early_stopping": False},
    "stops early": {"n_iter_no_change": 1, "max_steps": 60, "learning_rate": 0.5},
    "noise": {
        "init": "normal",
        "class_weight": "balanced",
        "pooling": "cls",
        "background": "auto",
        "dropout": 0.2,
    },
}


@pytest.mark.usefixtures("each_step")
@pytest.mark.parametrize("kind", KINDS)
def test_fit_that_is_stopped_at_any_step_ends_as_without_a_break(tiny, tmp_path, kind):
    texts, labels = reviews(48)
    params = KINDS[kind]
    expected = learned(make(tiny(), **params).fit(texts, labels))
    n_steps = expected[1]["step"][-1]
    for stopped in range(1, 14) if kind == "plain" else range(1, n_steps + 1, 5):
        encoder = make(tiny(), checkpoint_dir=tmp_path / str(stopped), **params)
        with stops(stopped, LOST, after=stopped % 2 == 0):
            encoder.fit(texts, labels)
        assert learned(encoder.fit(texts, labels)) == expected
    assert n_steps < 60 if kind == "stops early" else n_steps == 23


@pytest.mark.usefixtures("each_step")
def test_fit_that_is_stopped_after_each_step_ends_as_without_a_break(tiny, tmp_path):
    texts, labels = reviews(48)
    expected = learned(make(tiny()).fit(texts, labels))
    encoder = make(tiny(), checkpoint_dir=tmp_path)
    for _ in range(expected[1]["step"][-1] - 1):
        with stops(2, LOST):
            encoder.fit(texts, labels)
    with stops(2, LOST, says=None):
        encoder.fit(texts, labels)
        raise LOST  # there was one step left
    assert learned(encoder) == expected


@pytest.mark.usefixtures("each_step")
@pytest.mark.parametrize("stopped", [1, 12, 25, 31])
def test_fine_tuning_with_dropout_continues_too(tiny, tmp_path, stopped):
    params = {
        "objectives": OBJECTIVES, "max_steps": 40, "n_iter_no_change": 20, "temperature": 2.0,
    }  # fmt: skip
    expected = learned(make_multitask(tiny(), **params).fit(three_tasks()))
    encoder = make_multitask(tiny(), checkpoint_dir=tmp_path, **params)
    with stops(stopped, LOST):
        encoder.fit(three_tasks())
    torch.manual_seed(5)  # the random state of the process does not matter
    assert learned(encoder.fit(three_tasks())) == expected


@pytest.mark.usefixtures("each_step")
def test_steps_are_split_in_the_same_parts_after_a_break(tiny, tmp_path, monkeypatch):
    texts, labels = reviews(48)
    real = prefix_learner.encode_batch
    sizes = []

    def small_device(backbone, tokens, positions, *args):
        sizes.append(len(positions))
        if len(sizes) == 2:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return real(backbone, tokens, positions, *args)

    monkeypatch.setattr(prefix_learner, "encode_batch", small_device)
    expected = learned(make(tiny()).fit(texts, labels))
    assert max(sizes[2:]) < max(sizes[:2])
    sizes.clear()
    encoder = make(tiny(), checkpoint_dir=tmp_path)
    with stops(5, LOST):
        encoder.fit(texts, labels)
    assert learned(encoder.fit(texts, labels)) == expected


@pytest.mark.usefixtures("each_step")
def test_run_that_has_ended_is_not_repeated(tiny, tmp_path):
    texts, labels = reviews(48)
    expected = learned(make(tiny(), checkpoint_dir=tmp_path).fit(texts, labels))
    (run,) = tmp_path.iterdir()
    with stops(1, LOST, says=None):
        again = make(tiny(), checkpoint_dir=tmp_path, batch_tokens=500, verbose=False)
        assert learned(again.fit(texts, labels)) == expected
        raise LOST
    # Whatever decides what is learned makes it another run, and so does another version.
    with pytest.MonkeyPatch.context() as patch, stops(1, LOST):
        patch.setattr(learning, "__version__", "99")
        make(tiny(), checkpoint_dir=tmp_path).fit(texts, labels)
    changed = np.roll(labels, 1)
    for x, y, params in [
        (texts, labels, {"learning_rate": 0.02}),
        (texts, labels, {"random_state": 1}),
        (texts, labels, {"max_steps": 24}),
        (texts, labels, {"pooling": "cls"}),
        ([*texts[:-1], "other"], labels, {}),
        (texts, changed, {}),
    ]:
        with stops(1, LOST):
            make(tiny(), checkpoint_dir=tmp_path, **params).fit(x, y)
    assert list(tmp_path.iterdir()) == [run]


@pytest.mark.usefixtures("each_step")
def test_temperature_makes_another_run(tiny, tmp_path):
    params = {"objectives": OBJECTIVES, "max_steps": 27, "checkpoint_dir": tmp_path}
    for temperature in (1.0, 2.0):
        with stops(2, LOST):
            make_multitask(tiny(), temperature=temperature, **params).fit(three_tasks())
    assert len(list(tmp_path.iterdir())) == 2


@pytest.mark.usefixtures("each_step")
def test_scalars_of_numpy_make_the_same_run_as_those_of_python(tiny, tmp_path):
    texts, labels = reviews(48)
    expected = learned(make(tiny(), n_iter_no_change=1).fit(texts, labels))
    params = {
        "max_steps": np.int8(23), "batch_size": np.uint8(8), "n_iter_no_change": np.int8(1),
        "learning_rate": np.float64(0.03), "weight_decay": np.float32(0),
        "pooled_layers": np.int64(1), "max_length": np.int16(64),
    }  # fmt: skip
    encoder = make(tiny(), checkpoint_dir=tmp_path, **params)
    assert learned(encoder.fit(texts, labels)) == expected
    with stops(1, LOST, says=None):
        make(tiny(), checkpoint_dir=tmp_path, n_iter_no_change=1).fit(texts, labels)
        raise LOST


@pytest.mark.usefixtures("each_step", "one_thread")
def test_number_of_threads_does_not_make_another_run(tiny, tmp_path):
    texts, labels = reviews(48)
    with stops(12, LOST):
        make(tiny(), checkpoint_dir=tmp_path).fit(texts, labels)
    torch.set_num_threads(2)
    make(tiny(), checkpoint_dir=tmp_path).fit(texts, labels)
    assert len(list(tmp_path.iterdir())) == 1


@pytest.mark.usefixtures("each_step")
def test_stop_right_after_continuing_keeps_the_best_state(tiny, tmp_path, monkeypatch):
    texts, labels = reviews(48)
    # With so few validation texts, the head is not fitted again, which Ctrl-C would prevent.
    params = {"n_iter_no_change": 20, "learning_rate": 0.5, "validation_fraction": 0.3}
    encoder = make(tiny(), checkpoint_dir=tmp_path, **params)
    first = learned(encoder.fit(texts, labels))
    real = optimization._Run.restore

    def stopped(run, state):
        real(run, state)
        raise KeyboardInterrupt

    monkeypatch.setattr(optimization._Run, "restore", stopped)
    with pytest.warns(UserWarning, match="fit was stopped"), pytest.raises(KeyboardInterrupt):
        encoder.fit(texts, labels)
    assert learned(encoder) == first


@pytest.mark.usefixtures("each_step")
def test_damaged_last_checkpoint_does_not_change_the_result(tiny, tmp_path):
    texts, labels = reviews(48)
    expected = learned(make(tiny()).fit(texts, labels))
    encoder = make(tiny(), checkpoint_dir=tmp_path)
    with stops(9, LOST):
        encoder.fit(texts, labels)
    (run,) = tmp_path.iterdir()
    *_, last = sorted(run.iterdir())
    content = bytearray(last.read_bytes())
    content[1000] ^= 0x10
    last.write_bytes(content)
    with pytest.warns(UserWarning, match="is damaged and is ignored"):
        assert learned(encoder.fit(texts, labels)) == expected


@pytest.mark.usefixtures("each_step")
def test_full_disk_stops_training_and_keeps_the_best_state(tiny, tmp_path, monkeypatch):
    texts, labels = reviews(48)
    expected = make(tiny()).fit(texts, labels)
    encoder = make(tiny(), checkpoint_dir=tmp_path)
    real = checkpoints.write_atomically

    def full(target, write):
        if target.name > "000000000012":
            raise OSError(28, "No space left on device")
        real(target, write)

    monkeypatch.setattr(checkpoints, "write_atomically", full)
    with (
        pytest.warns(UserWarning, match=r"fit was stopped \(OSError\).*best state \(after step"),
        pytest.raises(OSError, match="no checkpoint could be written: No space left"),
    ):
        encoder.fit(texts, labels)
    assert encoder.history_["step"] == [3, 6, 9, 12]
    assert encoder.history_["valid_loss"] == expected.history_["valid_loss"][:4]
    assert encoder.transform(texts).shape == (48, 32)
    monkeypatch.undo()
    assert learned(encoder.fit(texts, labels)) == learned(expected)


@pytest.mark.parametrize("has_checkpoints", [False, True])
def test_ctrl_c_keeps_what_was_learned_with_a_warning(tiny, tmp_path, has_checkpoints):
    texts, labels = reviews(48)
    where = tmp_path if has_checkpoints else None
    encoder = make(tiny(), early_stopping=False, checkpoint_dir=where)
    says = r"\(KeyboardInterrupt\): the estimator holds the last state \(after step 3\)"
    says += "; the same call continues" if has_checkpoints else "$"
    with stops(4, KeyboardInterrupt(), says=says):
        encoder.fit(texts, labels)
    assert encoder.history_["step"] == [2, 3]
    assert encoder.prefix_.training["n_steps"] == 3
    assert set(encoder.predict(texts)) <= {"good", "bad"}


def test_ctrl_c_before_the_first_step_keeps_the_previous_fit(tiny):
    texts, labels = reviews(48)
    encoder = make(tiny(), max_steps=4).fit(texts, labels)
    before = encoder.prefix_
    with stops(1, KeyboardInterrupt(), says=None):
        encoder.fit(texts, labels)
    assert encoder.prefix_ is before


def test_loss_that_becomes_nan_keeps_the_best_state(tiny, monkeypatch):
    texts, labels = reviews(48)
    expected = make(tiny()).fit(texts, labels)
    encoder = make(tiny())
    real, calls = learning._Supervised.backward, []

    def breaks(problem, step):
        calls.append(1)
        return float("nan") if len(calls) == 8 else real(problem, step)

    monkeypatch.setattr(learning._Supervised, "backward", breaks)
    with (
        pytest.warns(UserWarning, match=r"FloatingPointError\): .* best state \(after step [36]\)"),
        pytest.raises(FloatingPointError, match="the loss became nan in step 8"),
    ):
        encoder.fit(texts, labels)
    assert encoder.history_["valid_loss"] == expected.history_["valid_loss"][:2]


def test_error_before_any_validation_leaves_nothing(tiny):
    encoder = make(tiny())
    with stops(3, LOST, says=None):
        encoder.fit(*reviews(48))
    assert not hasattr(encoder, "prefix_")


@pytest.mark.parametrize("make_one", [make_encoder, make_multitask])
def test_checkpoints_require_a_random_state(tiny, tmp_path, make_one):
    encoder = make_one(tiny(), random_state=None, checkpoint_dir=tmp_path)
    with pytest.raises(ValueError, match=r"random_state must be an int .* got random_state=None"):
        encoder.fit({"a": reviews(8)} if make_one is make_multitask else reviews(8)[0], [0, 1] * 4)


TRAINER = """
import sys
import torch
from helpers import make_encoder, reviews
from prefixembed._fit import checkpoints
torch.set_num_threads(1)
checkpoints.INTERVAL_SECONDS, checkpoints._MAX_SHARE_OF_TIME = 0.0, float("inf")
params = {"checkpoint_dir": sys.argv[2], "max_steps": 360, "early_stopping": False}
print("ready", flush=True)
input()
make_encoder(sys.argv[1], **params).fit(*reviews(48))
print("ended", flush=True)
"""


def newest(folder):
    return max((path.name for path in folder.glob("*/0*.safetensors")), default="")


def wait_for_checkpoint(folder, after=""):
    wait_until(lambda: newest(folder) > after)


def start_trainer(backbone, folder):
    tests = Path(__file__).parents[1]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(map(str, [tests, tests.parent]))}
    pipes = {"stdin": subprocess.PIPE, "stderr": None}
    return start_python(
        TRAINER, backbone, folder, options=["-W", "ignore"], env=environment, **pipes
    )


@pytest.mark.usefixtures("each_step", "one_thread")
def test_killed_processes_continue(tiny, tmp_path):
    encoder = make_encoder(tiny(), max_steps=360, early_stopping=False)
    expected = learned(encoder.fit(*reviews(48)))
    moments = random.Random(0)
    reached = [""]
    for _ in range(2):
        # Two processes with the same run, in one folder.
        trainers = [start_trainer(tiny(), tmp_path) for _ in range(2)]
        assert [trainer.stdout.readline() for trainer in trainers] == ["ready\n"] * 2
        for trainer in trainers:
            trainer.stdin.write("go\n")
            trainer.stdin.flush()
        wait_for_checkpoint(tmp_path, after=reached[-1])
        for trainer in trainers:
            time.sleep(moments.uniform(0.0, 0.3))
            kill(trainer)
            trainer.communicate()
            assert trainer.returncode == -signal.SIGKILL
        reached.append(newest(tmp_path))
    assert "" < reached[1] < reached[2]
    encoder.set_params(checkpoint_dir=tmp_path)
    assert learned(encoder.fit(*reviews(48))) == expected


@pytest.mark.usefixtures("each_step")
def test_signal_at_any_moment_leaves_an_encoder_that_works(tiny, tmp_path):
    texts, labels = reviews(48)
    encoder = make(tiny(), max_steps=60_000, early_stopping=False, checkpoint_dir=tmp_path)

    def interrupt():
        try:
            wait_for_checkpoint(tmp_path)
            time.sleep(0.1)
        finally:  # in any case: nothing else ends the test
            os.kill(os.getpid(), signal.SIGINT)

    # A process that a shell has started in the background ignores SIGINT.
    handler = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        timer = threading.Thread(target=interrupt)
        timer.start()
        with pytest.warns(UserWarning, match="KeyboardInterrupt"), pytest.raises(KeyboardInterrupt):
            encoder.fit(texts, labels)
        timer.join()
    finally:
        signal.signal(signal.SIGINT, handler)
    assert np.isfinite(encoder.transform(texts)).all()


@pytest.mark.usefixtures("each_step")
def test_threads_and_tasks_share_a_folder(tiny, tmp_path):
    texts, labels = reviews(48)
    expected = learned(make(tiny()).fit(texts, labels))
    encoders = [make(tiny(), checkpoint_dir=tmp_path) for _ in range(3)]
    errors = []

    def fit(encoder):
        try:
            encoder.fit(texts, labels)
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=fit, args=(encoder,)) for encoder in encoders]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not errors
    assert [learned(encoder) for encoder in encoders] == [expected] * 3
    tasks = {"one": (texts, labels), "other": (texts, np.roll(labels, 1))}
    fitted = fit_prefixes(tasks, make(tiny(), checkpoint_dir=tmp_path))
    assert learned(fitted["one"]) == expected != learned(fitted["other"])
    assert len(list(tmp_path.iterdir())) == 2


@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_processes_share_a_folder(tiny, tmp_path, method, monkeypatch):
    if method not in multiprocessing.get_all_start_methods():
        pytest.skip(f"no {method} on this platform")
    monkeypatch.delenv("TOKENIZERS_PARALLELISM", raising=False)
    texts, labels = reviews(48)
    n_threads = torch.get_num_threads()
    torch.set_num_threads(1)
    expected = learned(make(tiny()).fit(texts, labels))
    torch.set_num_threads(n_threads)
    encoder = make(tiny(), checkpoint_dir=tmp_path)
    with warnings.catch_warnings():
        # Python 3.12 and later warn about forks of a process with threads.
        warnings.filterwarnings("ignore", "This process .* is multi-threaded", DeprecationWarning)
        with multiprocessing.get_context(method).Pool(2) as pool:
            jobs = [pool.apply_async(encoder.fit, (texts, labels)) for _ in range(4)]
            fitted = [job.get(timeout=120) for job in jobs]
    assert [learned(one) for one in fitted] == [expected] * 4
    assert len(list(tmp_path.iterdir())) == 1
