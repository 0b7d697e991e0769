"""What users may set for torch, numpy and tokenizers does not change what is computed."""

import contextlib
import os
import random

import numpy as np
import pytest
import torch
from conftest import FAMILIES, TEXTS
from helpers import choices, labels, make_encoder, make_multitask, ratings, reviews, three_tasks
from sklearn.linear_model import LogisticRegression

from prefixembed import PrefixBank, TargetHeads, release_backbones
from prefixembed._model.modes import own_modes
from prefixembed.inspection import attention_share, slot_share

CPU = {"dtype": "float32", "device": "cpu", "cache": None}


@contextlib.contextmanager
def default_dtype(dtype):
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


@contextlib.contextmanager
def default_device(device):
    torch.set_default_device(device)
    try:
        yield
    finally:
        torch.set_default_device(None)


@contextlib.contextmanager
def deterministic():
    torch.use_deterministic_algorithms(True)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(False)


@contextlib.contextmanager
def environment(value):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TOKENIZERS_PARALLELISM", value)
        yield


@contextlib.contextmanager
def seeds(seed):
    states = random.getstate(), np.random.get_state(), torch.get_rng_state()  # noqa: NPY002
    random.seed(seed)
    np.random.seed(seed)  # noqa: NPY002
    torch.manual_seed(seed)
    try:
        yield
    finally:
        random.setstate(states[0])
        np.random.set_state(states[1])  # noqa: NPY002
        torch.set_rng_state(states[2])


@contextlib.contextmanager
def threads(n):
    before = torch.get_num_threads()
    torch.set_num_threads(n)
    try:
        yield
    finally:
        torch.set_num_threads(before)


SETTINGS = {
    "float64": lambda: default_dtype(torch.float64),
    "bfloat16": lambda: default_dtype(torch.bfloat16),
    "meta": lambda: default_device("meta"),
    "with meta": lambda: torch.device("meta"),
    "deterministic": deterministic,
    "no_grad": torch.no_grad,
    "inference": torch.inference_mode,
    "no gradients": lambda: torch.set_grad_enabled(False),
    "autocast": lambda: torch.autocast("cpu", torch.bfloat16),
    "seterr": lambda: np.errstate(all="raise"),
    "parallel": lambda: environment("true"),
    "not parallel": lambda: environment("false"),
    "seeds": lambda: seeds(7),
    "two threads": lambda: threads(2),
}


def learn(tiny, **changes):
    """Return what is learned, and computed with it, from a backbone that is loaded for it."""
    release_backbones()
    encoder = make_encoder(tiny(), ffn_length=3, cache=None, **changes)
    texts, classes = reviews(48)
    encoder.fit(texts, classes)
    prefix = encoder.prefix_
    bank = PrefixBank({"a": encoder, "b": prefix}, weights={"b": 0.5}, **CPU)
    heads = TargetHeads(bank, LogisticRegression()).fit({"labels": (texts, classes)})
    return {
        "keys": prefix.keys_values,
        "slots": np.concatenate([prefix.slots.keys, prefix.slots.values]),
        "head": prefix.head.weight,
        "loss": np.array(encoder.history_["train_loss"]),
        "valid": np.array(encoder.history_["valid_loss"]),
        "vectors": encoder.transform(TEXTS),
        "int8": encoder.set_params(output_dtype="int8").transform(TEXTS),
        "float16": encoder.set_params(output_dtype="float16").transform(TEXTS),
        "bank": bank.transform(TEXTS),
        "mean": bank.set_params(combine="mean").transform(TEXTS),
        "proba": encoder.predict_proba(TEXTS),
        "heads": heads.predict_proba(TEXTS)["labels"],
        "attention": attention_share(bank, TEXTS[:3]).shares,
        "share": slot_share(bank, TEXTS[:3]).shares,
    }


def global_states():
    """Return what the user may have set, and random states."""
    _, *legacy = np.random.get_state()  # noqa: NPY002
    return [
        torch.get_default_dtype(), torch.get_default_device(), torch.get_num_threads(),
        torch.is_grad_enabled(), torch.is_inference_mode_enabled(),
        torch.is_autocast_enabled("cpu"), torch.are_deterministic_algorithms_enabled(),
        np.geterr(), os.environ.get("TOKENIZERS_PARALLELISM"),
        random.getstate(), [part.tolist() if hasattr(part, "tolist") else part for part in legacy],
        torch.get_rng_state().tolist(),
    ]  # fmt: skip


def check(learned, names=SETTINGS):
    """Check that settings, of these names, change nothing, and are not changed."""
    with threads(1):
        expected = learned()
        for name in names:
            with SETTINGS[name]():
                before = global_states()
                found = learned()
                assert global_states() == before, name
            for what, array in expected.items():
                assert found[what].dtype == array.dtype, (name, what)
                close = {"rtol": 1e-2, "atol": 1e-3} if name == "two threads" else {"rtol": 0}
                np.testing.assert_allclose(found[what], array, **close, err_msg=f"{name}: {what}")


NASTY = ["float64", "with meta", "meta", "inference", "autocast", "seterr", "deterministic"]
pytestmark = pytest.mark.filterwarnings(
    "ignore:the training loss is stuck", "ignore:the validation loss"
)


def test_settings_do_not_change_an_encoder_a_bank_and_heads(tiny):
    check(lambda: learn(tiny))


def test_settings_do_not_change_what_a_prefix_starts_from(tiny):
    check(lambda: learn(tiny, init="normal", reparameterize=8, max_steps=3), NASTY)


@pytest.mark.parametrize("objective", ["regression", "multilabel", "multiple_choice"])
def test_settings_do_not_change_objectives(tiny, objective):
    X, y = {"regression": ratings, "multilabel": labels, "multiple_choice": choices}[objective]()

    def learned():
        encoder = make_encoder(tiny(), objective=objective, max_steps=3, ffn_length=2, cache=None)
        encoder.fit(X, y)
        arrays = {"keys": encoder.prefix_.keys_values, "head": encoder.prefix_.head.weight}
        predicted = {
            "labels": np.asarray(encoder.predict(X)),
            "score": np.array(encoder.score(X, y)),
        }
        if objective != "regression":
            predicted["proba"] = encoder.predict_proba(X)
        return arrays | predicted

    check(learned, NASTY)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_settings_do_not_change_a_backbone_for_several_tasks(tiny, dtype):
    tasks, objectives = three_tasks(), {"stars": "regression", "words": "token_classification"}

    def learned():
        encoder = make_multitask(
            tiny(), objectives=objectives, max_steps=4, dtype=dtype, cache=None
        ).fit(tasks)
        heads = {name: head.weight for name, head in encoder.heads_.items()}
        words = np.concatenate(encoder.predict_proba(tasks["words"][0], "words"))
        return {**heads, "proba": words, "vectors": encoder.transform(TEXTS)}

    check(learned, NASTY)


@pytest.mark.parametrize("family", FAMILIES)
def test_settings_do_not_change_vectors_of_any_family(tiny, random_prefix, family):
    prefixes = {k: random_prefix(tiny(family), seed=k, ffn_length=2) for k in range(2)}
    prefixes = {str(k): prefix for k, prefix in prefixes.items()}

    def vectors():
        release_backbones()
        banks = [PrefixBank({}, backbone=tiny(family), **CPU)]
        banks += [PrefixBank(prefixes, combine=c, **CPU) for c in ("concat", "mean")]
        return {str(k): bank.transform(TEXTS) for k, bank in enumerate(banks)}

    check(vectors, NASTY)


@own_modes(gradients=True)
def fail():
    assert torch.is_grad_enabled() and torch.zeros(1).device.type == "cpu"
    assert not torch.is_autocast_enabled("cpu") and not torch.is_inference_mode_enabled()
    raise ZeroDivisionError


def test_modes_come_back_after_an_error():
    for setting in SETTINGS.values():
        with setting():
            before = global_states()
            with pytest.raises(ZeroDivisionError):
                fail()
            assert global_states() == before
