"""Runs that stop and go on: what is kept, what a kill leaves, what damage does."""

import contextlib
import multiprocessing
import os
import random
import re
import resource
import signal
import subprocess
import sys
import threading
import time
import warnings

import numpy as np
import pytest
import torch
from test_encoder import make, reviews
from test_multitask import OBJECTIVES, three_tasks
from test_multitask import make as make_multitask

from prefixembed import (
    PrefixEncoder,
    fit_prefixes,
)
from prefixembed._fit import checkpoints as _checkpoints
from prefixembed._fit import learning as _learning
from prefixembed._fit import optimization as _training
from prefixembed._fit import prefix_learner as _source_task
from prefixembed._fit.checkpoints import Checkpoints, State

pytestmark = pytest.mark.filterwarnings("ignore:the training loss is stuck at chance")


def state(seed):
    generator = torch.Generator().manual_seed(seed)
    tensors = {
        "a": torch.randn(3, 4, generator=generator),
        "count": torch.tensor(7.0),
        "bytes": torch.arange(5, dtype=torch.uint8),
    }
    facts = {"loss": 0.1 + seed, "best": float("inf"), "big": 2**127 + seed, "name": ["ü", None]}
    return State(facts, tensors)


def same(one, other):
    return one.facts == other.facts and all(
        torch.equal(one.tensors[name], other.tensors[name]) for name in one.tensors
    )


def flip(path, position):
    content = bytearray(path.read_bytes())
    content[position] ^= 0x10
    path.write_bytes(content)


@pytest.fixture
def every_step(monkeypatch):
    """Write a state after each step, not once a minute."""
    monkeypatch.setattr(_checkpoints, "INTERVAL_SECONDS", 0.0)
    monkeypatch.setattr(_checkpoints, "_MOST_OF_THE_TIME", float("inf"))


def test_a_state_comes_back_in_every_bit(tmp_path):
    checkpoints = Checkpoints(tmp_path / "new" / "folder", "run")
    assert checkpoints.load() is None
    checkpoints.save(3, state(0))
    assert same(checkpoints.load(), state(0))
    assert same(Checkpoints(tmp_path / "new" / "folder", "run").load(), state(0))
    assert Checkpoints(tmp_path / "new" / "folder", "another run").load() is None


def test_the_last_two_are_kept_and_other_files_left_alone(tmp_path):
    (tmp_path / "run").mkdir()
    notes = tmp_path / "run" / "notes.safetensors"
    notes.write_text("not ours")
    checkpoints = Checkpoints(tmp_path, "run")
    for number in (9, 10, 100):
        checkpoints.save(number, state(number))
    assert len(list((tmp_path / "run").iterdir())) == 3
    assert same(checkpoints.load(), state(100))
    assert notes.read_text() == "not ours"


def test_what_is_written_stays_though_damaged_ones_are_ahead(tmp_path):
    checkpoints = Checkpoints(tmp_path, "run")
    for number in (90, 100):
        checkpoints.save(number, state(number))
    for _, path in checkpoints._files():
        flip(path, 100)
    left = tmp_path / "run" / ".000000000007-ab.safetensors.xyz"
    left.write_text("half")
    os.utime(left, (0, 0))
    checkpoints.save(5, state(5))
    with pytest.warns(UserWarning, match="is damaged"):
        assert same(checkpoints.load(), state(5))
    assert not left.exists()


def test_damage_anywhere_falls_back_to_the_one_before(tmp_path):
    checkpoints = Checkpoints(tmp_path, "run")
    checkpoints.save(1, state(1))
    checkpoints.save(2, state(2))
    (_, last), (_, before) = checkpoints._files()
    whole = last.read_bytes()
    for position in range(len(whole)):
        flip(last, position)
        with pytest.warns(UserWarning, match=r"000000000002-.* is damaged and is passed over"):
            assert same(checkpoints.load(), state(1))
        last.write_bytes(whole)
    last.write_bytes(whole[:-1])
    flip(before, 50)
    with pytest.warns(UserWarning, match="is damaged") as record:
        assert checkpoints.load() is None
    assert len(record) == 2


def test_a_disk_that_is_full_says_so_and_keeps_what_was_there(tmp_path):
    checkpoints = Checkpoints(tmp_path, "run")
    checkpoints.save(1, state(1))
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100, hard))
    try:
        with pytest.raises(OSError, match=r"no checkpoint could be written: File too large.*run"):
            checkpoints.save(2, state(2))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert len(list((tmp_path / "run").iterdir())) == 1
    assert same(checkpoints.load(), state(1))


@contextlib.contextmanager
def stops(n_steps, error, after=False, says="fit was stopped"):
    """Have the step of this number stop training, before or after it is taken."""
    real, taken = _training._Run.step, []

    def step(run, *args):
        taken.append(1)
        if len(taken) == n_steps and not after:
            raise error
        real(run, *args)
        if len(taken) == n_steps:
            raise error

    with pytest.MonkeyPatch.context() as patch, warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        patch.setattr(_training._Run, "step", step)
        with pytest.raises(type(error), match=str(error)):
            yield
    messages = [str(warning.message) for warning in caught]
    assert says is None or any(re.search(says, message) for message in messages), messages


LOST = RuntimeError("the device is lost")


def learned(encoder):
    """Give all that was learned, but for how long it took."""
    history = {name: some for name, some in encoder.history_.items() if name != "seconds"}
    if isinstance(encoder, PrefixEncoder):
        prefix = encoder.prefix_
        arrays = (prefix.keys_values, prefix.head_weight, prefix.head_bias)
    else:
        arrays = [head.weight for head in encoder.heads_.values()]
        arrays += [p.numpy() for p in encoder.backbone_.model.parameters()]
    return [array.tobytes() for array in arrays], history


KINDS = {
    "plain": {},
    "mlp, no validation": {"reparameterize": 6, "early_stopping": False},
    "stops early": {"n_iter_no_change": 1, "max_epochs": 20, "learning_rate": 0.5},
    "noise": {"init": "normal", "class_weight": "balanced", "pooling": "cls"},
}


@pytest.mark.usefixtures("every_step")
@pytest.mark.parametrize("kind", KINDS)
def test_stopped_at_any_step_it_ends_where_it_would_have(tiny, tmp_path, kind):
    texts, labels = reviews(48)
    params = KINDS[kind]
    expected = learned(make(tiny(), **params).fit(texts, labels))
    n_steps = 6 * len(expected[1]["epoch"])
    for stopped in range(1, n_steps + 1, 1 if kind == "plain" else 4):
        encoder = make(tiny(), checkpoint_dir=tmp_path / str(stopped), **params)
        with stops(stopped, LOST, after=stopped % 2 == 0):
            encoder.fit(texts, labels)
        assert learned(encoder.fit(texts, labels)) == expected
    assert kind != "stops early" or 2 < len(expected[1]["epoch"]) < 20


@pytest.mark.usefixtures("every_step")
def test_one_step_at_a_time_ends_there_too(tiny, tmp_path):
    texts, labels = reviews(48)
    expected = learned(make(tiny()).fit(texts, labels))
    encoder = make(tiny(), checkpoint_dir=tmp_path)
    for _ in range(6 * 3 - 1):
        with stops(2, LOST):
            encoder.fit(texts, labels)
    with stops(2, LOST, says=None):
        encoder.fit(texts, labels)
        raise LOST  # there was one step left
    assert learned(encoder) == expected


@pytest.mark.usefixtures("every_step")
@pytest.mark.parametrize("stopped", [1, 12, 25, 31])
def test_a_whole_backbone_with_dropout_goes_on_too(tiny, tmp_path, stopped):
    params = {"objectives": OBJECTIVES, "max_epochs": 2, "temperature": 2.0}
    expected = learned(make_multitask(tiny(), **params).fit(three_tasks()))
    encoder = make_multitask(tiny(), checkpoint_dir=tmp_path, **params)
    with stops(stopped, LOST):
        encoder.fit(three_tasks())
    torch.manual_seed(5)  # what the process draws from elsewhere does not matter
    assert learned(encoder.fit(three_tasks())) == expected


@pytest.mark.usefixtures("every_step")
def test_parts_of_a_step_are_summed_as_before_the_break(tiny, tmp_path, monkeypatch):
    texts, labels = reviews(48)
    real = _source_task.encode_batch
    sizes = []

    def small_device(backbone, tokens, positions, *args):
        sizes.append(len(positions))
        if len(sizes) == 2:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return real(backbone, tokens, positions, *args)

    monkeypatch.setattr(_source_task, "encode_batch", small_device)
    expected = learned(make(tiny()).fit(texts, labels))
    assert max(sizes[2:]) < max(sizes[:2])
    sizes.clear()
    encoder = make(tiny(), checkpoint_dir=tmp_path)
    with stops(5, LOST):
        encoder.fit(texts, labels)
    assert learned(encoder.fit(texts, labels)) == expected


@pytest.mark.usefixtures("every_step")
def test_a_run_that_has_ended_is_not_run_again(tiny, tmp_path):
    texts, labels = reviews(48)
    expected = learned(make(tiny(), checkpoint_dir=tmp_path).fit(texts, labels))
    (run,) = tmp_path.iterdir()
    with stops(1, LOST, says=None):
        again = make(tiny(), checkpoint_dir=tmp_path, batch_tokens=500, verbose=False)
        assert learned(again.fit(texts, labels)) == expected
        raise LOST
    # Whatever decides what is learned makes another run of it, and so does another version.
    with pytest.MonkeyPatch.context() as patch, stops(1, LOST):
        patch.setattr(_learning, "__version__", "99")
        make(tiny(), checkpoint_dir=tmp_path).fit(texts, labels)
    changed = np.roll(labels, 1)
    for x, y, params in [
        (texts, labels, {"learning_rate": 0.02}),
        (texts, labels, {"random_state": 1}),
        (texts, labels, {"max_epochs": 4}),
        ([*texts[:-1], "other"], labels, {}),
        (texts, changed, {}),
    ]:
        with stops(1, LOST):
            make(tiny(), checkpoint_dir=tmp_path, **params).fit(x, y)
    assert list(tmp_path.iterdir()) == [run]


@pytest.mark.usefixtures("every_step")
def test_numbers_of_numpy_are_numbers(tiny, tmp_path):
    texts, labels = reviews(48)
    expected = learned(make(tiny(), n_iter_no_change=1).fit(texts, labels))
    params = {
        "max_epochs": np.int64(3), "batch_size": np.int32(8), "n_iter_no_change": np.int8(1),
        "learning_rate": np.float64(0.03), "weight_decay": np.float32(0),
        "pooled_layers": np.int64(1),
    }  # fmt: skip
    encoder = make(tiny(), checkpoint_dir=tmp_path, **params)
    assert learned(encoder.fit(texts, labels)) == expected
    with stops(1, LOST, says=None):  # of Python's own, the run is the same
        make(tiny(), checkpoint_dir=tmp_path, n_iter_no_change=1).fit(texts, labels)
        raise LOST


@pytest.mark.usefixtures("every_step")
def test_another_number_of_threads_goes_on_with_the_run(tiny, tmp_path):
    texts, labels = reviews(48)
    n_threads = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        with stops(12, LOST):
            make(tiny(), checkpoint_dir=tmp_path).fit(texts, labels)
        torch.set_num_threads(2)
        make(tiny(), checkpoint_dir=tmp_path).fit(texts, labels)
    finally:
        torch.set_num_threads(n_threads)
    assert len(list(tmp_path.iterdir())) == 1


@pytest.mark.usefixtures("every_step")
def test_a_stop_while_going_on_keeps_the_best(tiny, tmp_path, monkeypatch):
    texts, labels = reviews(48)
    params = {"max_epochs": 6, "n_iter_no_change": 6, "learning_rate": 0.5}
    encoder = make(tiny(), checkpoint_dir=tmp_path, **params)
    first = learned(encoder.fit(texts, labels))
    real = _training._Run.restore

    def stopped(run, state):
        real(run, state)
        raise KeyboardInterrupt

    monkeypatch.setattr(_training._Run, "restore", stopped)
    with pytest.warns(UserWarning, match="fit was stopped"), pytest.raises(KeyboardInterrupt):
        encoder.fit(texts, labels)
    assert learned(encoder) == first


@pytest.mark.usefixtures("every_step")
def test_a_damaged_last_checkpoint_changes_nothing(tiny, tmp_path):
    texts, labels = reviews(48)
    expected = learned(make(tiny()).fit(texts, labels))
    encoder = make(tiny(), checkpoint_dir=tmp_path)
    with stops(9, LOST):
        encoder.fit(texts, labels)
    (run,) = tmp_path.iterdir()
    *_, last = sorted(run.iterdir())
    flip(last, 1000)
    with pytest.warns(UserWarning, match="is damaged and is passed over"):
        assert learned(encoder.fit(texts, labels)) == expected


def test_a_full_disk_stops_training_and_keeps_the_best(tiny, tmp_path, monkeypatch):
    texts, labels = reviews(48)
    expected = make(tiny(), max_epochs=3).fit(texts, labels)
    encoder = make(tiny(), checkpoint_dir=tmp_path)
    real = _checkpoints.write_atomically

    def full(target, write):
        if target.name > "000000000011":
            raise OSError(28, "No space left on device")
        real(target, write)

    monkeypatch.setattr(_checkpoints, "write_atomically", full)
    with (
        pytest.warns(UserWarning, match=r"fit was stopped \(OSError\).*best state of 2 epoch"),
        pytest.raises(OSError, match="no checkpoint could be written: No space left"),
    ):
        encoder.fit(texts, labels)
    assert encoder.history_["valid_loss"] == expected.history_["valid_loss"][:2]
    assert encoder.transform(texts).shape == (48, 32)
    monkeypatch.undo()
    assert learned(encoder.fit(texts, labels)) == learned(expected)


@pytest.mark.parametrize("checkpoints", [False, True])
def test_ctrl_c_leaves_what_was_learned_and_says_so(tiny, tmp_path, checkpoints):
    texts, labels = reviews(48)
    where = tmp_path if checkpoints else None
    encoder = make(tiny(), early_stopping=False, checkpoint_dir=where)
    said = r"fit was stopped \(KeyboardInterrupt\): the estimator holds the last state of 1 epoch"
    said += r"\(s\); the same call goes on" if checkpoints else r"\(s\)$"
    with stops(4, KeyboardInterrupt(), says=said):
        encoder.fit(texts, labels)
    assert encoder.history_["epoch"] == [1]
    assert encoder.prefix_.training["n_epochs"] == 1
    assert set(encoder.predict(texts)) <= {"good", "bad"}


def test_ctrl_c_before_the_first_step_leaves_the_fit_from_before(tiny):
    texts, labels = reviews(48)
    encoder = make(tiny(), max_epochs=1).fit(texts, labels)
    before = encoder.prefix_
    with stops(1, KeyboardInterrupt(), says=None):
        encoder.fit(texts, labels)
    assert encoder.prefix_ is before


def test_a_loss_that_breaks_leaves_the_best_epoch(tiny, monkeypatch):
    texts, labels = reviews(48)
    expected = make(tiny(), max_epochs=3).fit(texts, labels)
    encoder = make(tiny(), max_epochs=3)
    real, calls = _training._Run.step, []

    def breaks(run, backward, step, share):
        calls.append(1)
        broken = (lambda step: float("nan")) if len(calls) == 8 else backward
        return real(run, broken, step, share)

    monkeypatch.setattr(_training._Run, "step", breaks)
    with (
        pytest.warns(UserWarning, match=r"FloatingPointError\): .* best state of 1 epoch"),
        pytest.raises(FloatingPointError, match="the loss became nan in epoch 2"),
    ):
        encoder.fit(texts, labels)
    assert encoder.history_["valid_loss"] == expected.history_["valid_loss"][:1]


def test_a_fit_that_breaks_in_its_first_epoch_leaves_nothing(tiny):
    encoder = make(tiny())
    with stops(3, LOST, says=None):
        encoder.fit(*reviews(48))
    assert not hasattr(encoder, "prefix_")


@pytest.mark.parametrize("make_one", [make, make_multitask])
def test_without_a_random_state_there_is_nothing_to_go_on_from(tiny, tmp_path, make_one):
    encoder = make_one(tiny(), random_state=None, checkpoint_dir=tmp_path)
    with pytest.raises(ValueError, match=r"random_state must be an int .* got random_state=None"):
        encoder.fit({"a": reviews(8)} if make_one is make_multitask else reviews(8)[0], [0, 1] * 4)


TRAINER = """
import sys
import torch
from test_encoder import make, reviews
from prefixembed._fit import checkpoints as _checkpoints
torch.set_num_threads(1)
_checkpoints.INTERVAL_SECONDS, _checkpoints._MOST_OF_THE_TIME = 0.0, float("inf")
print("ready", flush=True)
input()
make(sys.argv[1], checkpoint_dir=sys.argv[2], max_epochs=60, early_stopping=False).fit(*reviews(48))
print("ended", flush=True)
"""


def newest(folder):
    return max((path.name for path in folder.glob("*/0*.safetensors")), default="")


def wait_for_checkpoint(folder, after=""):
    end = time.monotonic() + 120
    while newest(folder) <= after:
        assert time.monotonic() < end, "no step was taken"
        time.sleep(0.01)


def start_trainer(backbone, folder):
    here = os.path.dirname(__file__)
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([here, os.path.dirname(here)])}
    command = [sys.executable, "-W", "ignore", "-c", TRAINER, backbone, str(folder)]
    return subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment
    )


@pytest.mark.usefixtures("every_step")
def test_kill_9_at_any_moment(tiny, tmp_path):
    n_threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        encoder = make(tiny(), max_epochs=60, early_stopping=False)
        expected = learned(encoder.fit(*reviews(48)))
        moments = random.Random(0)
        reached = [""]
        for _ in range(2):
            # Two at once that do the same, in one folder.
            trainers = [start_trainer(tiny(), tmp_path) for _ in range(2)]
            assert [trainer.stdout.readline() for trainer in trainers] == ["ready\n"] * 2
            for trainer in trainers:
                trainer.stdin.write("go\n")
                trainer.stdin.flush()
            wait_for_checkpoint(tmp_path, after=reached[-1])
            for trainer in trainers:
                time.sleep(moments.uniform(0.0, 0.3))
                trainer.send_signal(signal.SIGKILL)
                trainer.communicate()
                assert trainer.returncode == -signal.SIGKILL
            reached.append(newest(tmp_path))
        assert "" < reached[1] < reached[2]
        encoder.set_params(checkpoint_dir=tmp_path)
        assert learned(encoder.fit(*reviews(48))) == expected
    finally:
        torch.set_num_threads(n_threads)


@pytest.mark.usefixtures("every_step")
def test_a_signal_at_any_moment_leaves_an_encoder_that_works(tiny, tmp_path):
    texts, labels = reviews(48)
    encoder = make(tiny(), max_epochs=10_000, early_stopping=False, checkpoint_dir=tmp_path)

    def press():
        wait_for_checkpoint(tmp_path)
        time.sleep(0.1)
        os.kill(os.getpid(), signal.SIGINT)

    timer = threading.Thread(target=press)
    timer.start()
    with pytest.warns(UserWarning, match="KeyboardInterrupt"), pytest.raises(KeyboardInterrupt):
        encoder.fit(texts, labels)
    timer.join()
    assert np.isfinite(encoder.transform(texts)).all()


@pytest.mark.usefixtures("every_step")
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
        pytest.skip(f"no {method} here")
    monkeypatch.delenv("TOKENIZERS_PARALLELISM", raising=False)
    texts, labels = reviews(48)
    n_threads = torch.get_num_threads()
    torch.set_num_threads(1)
    expected = learned(make(tiny()).fit(texts, labels))
    torch.set_num_threads(n_threads)
    encoder = make(tiny(), checkpoint_dir=tmp_path)
    with warnings.catch_warnings():
        # Python 3.12 and later, on forks of a process with threads.
        warnings.filterwarnings("ignore", "This process .* is multi-threaded", DeprecationWarning)
        with multiprocessing.get_context(method).Pool(2) as pool:
            jobs = [pool.apply_async(encoder.fit, (texts, labels)) for _ in range(4)]
            fitted = [job.get(timeout=120) for job in jobs]
    assert [learned(one) for one in fitted] == [expected] * 4
    assert len(list(tmp_path.iterdir())) == 1
