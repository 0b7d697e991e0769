"""Banks take their reading from active prefixes, hold values, and warn after a change."""

import copy
import dataclasses
import pickle
import warnings

import numpy as np
import pytest
from conftest import PAIRS, TEXTS
from helpers import make_encoder
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.base import clone
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import GridSearchCV
from sklearn.pipeline import make_pipeline

from prefixembed import PrefixBank
from prefixembed.reading import PAIRS as KINDS
from prefixembed.reading import POOLINGS, Reading

CPU = {"dtype": "float32", "device": "cpu", "on_truncate": "ignore"}
# Values of each field that an inactive prefix may have.
OTHER = {
    "pooling": st.sampled_from(POOLINGS),
    "max_length": st.sampled_from([8, 40, 80]),
    "pooled_layers": st.sampled_from([1, 2, 3]),
    "pairs": st.sampled_from([None, *KINDS]),
    "prompt": st.sampled_from(["", "a query: "]),
    "first_position": st.sampled_from([0, 3]),
}


def test_examples_vary_each_field_of_a_reading():
    assert set(OTHER) | {"windows"} == {field.name for field in dataclasses.fields(Reading)}


@given(reading=st.fixed_dictionaries({}, optional=OTHER), data=st.data())
@settings(max_examples=25, deadline=None)
def test_inactive_prefixes_do_not_affect_vectors(tiny, random_prefix, reading, data):
    if reading.get("first_position") and reading.get("max_length") == 80:
        reading["max_length"] = 40
    own = data.draw(st.sampled_from([{}, {"pairs": "apart"}, {"prompt": "x "}, {"max_length": 16}]))
    lengths = data.draw(st.tuples(*[st.sampled_from([0, 2])] * 3))
    active = {
        name: random_prefix(tiny(), seed=seed, ffn_length=lengths[seed], **own)
        for name, seed in (("a", 1), ("b", 2))
    }
    other = random_prefix(tiny(), seed=3, ffn_length=lengths[0], **reading)
    # Where the inactive prefix was learned does not matter either.
    other = dataclasses.replace(other, backbone=data.draw(st.sampled_from([tiny(), "elsewhere"])))
    selection = data.draw(st.sampled_from([["a", "b"], ["b"], []]))
    # If none is active, some prefix must say where the backbone is, unless the bank does.
    where = CPU if selection else {"backbone": tiny(), **CPU}
    for X in (TEXTS, PAIRS):
        expected = PrefixBank(active, active=selection, **where).transform(X)
        bank = PrefixBank({"odd": other, **active}, active=selection, **where)
        np.testing.assert_array_equal(bank.transform(X), expected)
        np.testing.assert_array_equal(bank.remove("odd").transform(X), expected)
        np.testing.assert_array_equal(bank.add("odd", other, activate=False).transform(X), expected)


def test_joint_and_apart_prefixes_can_share_a_bank(tiny, random_prefix):
    joint, apart, single = (
        random_prefix(tiny(), seed=k, pairs=pairs)
        for k, pairs in enumerate(["joint", "apart", None])
    )
    bank = PrefixBank({"joint": joint, "apart": apart, "single": single}, **CPU)
    assert bank.transform(TEXTS).shape == (len(TEXTS), 32)
    with pytest.raises(ValueError, match="'joint' was learned with 'joint', 'apart' was learned"):
        bank.transform(PAIRS)
    for name, width in (("joint", 32), ("apart", 96)):
        alone = clone(bank).set_params(active=[name, "single"])
        assert alone.transform(PAIRS).shape == (len(PAIRS), width)
    assert bank.set_params(pairs="apart").transform(PAIRS).shape == (len(PAIRS), 96)


@pytest.mark.parametrize(("field", "value"), [("prompt", "x "), ("pooling", "cls")])
def test_active_prefixes_with_different_readings_are_refused(tiny, random_prefix, field, value):
    prefixes = {"a": random_prefix(tiny()), "odd": random_prefix(tiny(), seed=1, **{field: value})}
    bank = PrefixBank(prefixes, **CPU)
    with pytest.raises(ValueError, match=f"'a' and 'odd' cannot be .*, their {field} differs"):
        bank.transform(TEXTS)
    assert bank.set_params(active=["odd"]).transform(TEXTS).shape == (len(TEXTS), 32)
    # Prefixes need not agree on a field that a parameter of the bank decides.
    assert bank.set_params(active=None, **{field: value}).transform(TEXTS).shape[1] == 32


def test_clones_keep_parameters_and_output(tiny, random_prefix):
    bank = PrefixBank({"a": random_prefix(tiny())}, active=["a"], weights={"a": 2.0}, **CPU)
    copied = clone(bank.set_output(transform="pandas"))
    assert copied.get_params() == bank.get_params()
    assert copied.weights is not bank.weights
    assert list(copied.transform(TEXTS).columns) == list(copied.get_feature_names_out())


def test_failed_add_changes_nothing(tiny, random_prefix):
    bank = PrefixBank({"a": random_prefix(tiny())}, active=[], backbone=tiny(), **CPU)
    before = bank.prefixes, bank.active
    bank.backbone = "nowhere"
    with pytest.raises(OSError, match="nowhere"):
        bank.add("b", random_prefix(tiny(), seed=1), activate=False)
    assert (bank.prefixes, bank.active) == before


def test_another_backbone_after_fit_is_warned_about(tiny):
    bank = PrefixBank({}, backbone=tiny(), **CPU).fit(TEXTS)
    with pytest.warns(UserWarning, match="must be fitted again"):
        bank.set_params(backbone=tiny("electra")).transform(TEXTS)


def encoder_and_data(folder):
    """Return an unfitted encoder, and texts and labels for it."""
    texts = [f"a {word} {k}" for k in range(6) for word in ("joy", "bore")]
    return make_encoder(folder, max_steps=2, early_stopping=False), (texts, [0, 1] * 6)


at_chance = pytest.mark.filterwarnings("ignore:the training loss is stuck")


@at_chance
def test_bank_holds_prefixes_and_not_encoders(tiny):
    encoder, data = encoder_and_data(tiny())
    bank = PrefixBank({"a": encoder.fit(*data)}, **CPU)
    pipe = make_pipeline(clone(bank), LogisticRegression()).fit(*data)
    before, vectors = bank["a"], bank.transform(TEXTS)
    predicted = pipe.predict_proba(TEXTS)
    encoder.set_params(random_state=1).fit(*data)
    assert encoder.prefix_ != before
    assert bank["a"] == before == bank.get_params()["prefixes"]["a"]
    np.testing.assert_array_equal(bank.transform(TEXTS), vectors)
    np.testing.assert_array_equal(pipe.predict_proba(TEXTS), predicted)
    assert bank.set_params(prefixes={"a": encoder})["a"] == encoder.prefix_
    assert clone(bank)["a"] == pickle.loads(pickle.dumps(bank))["a"] == encoder.prefix_
    grid = {"prefixbank__prefixes": [{"a": before}, {"a": encoder.prefix_}]}
    pipe = make_pipeline(bank, LogisticRegression())
    search = GridSearchCV(pipe, grid, cv=2, error_score="raise").fit(*data)
    assert search.best_estimator_[0]["a"] in (before, encoder.prefix_)
    # scikit-learn clones the values of a grid, and a cloned encoder is not fitted.
    grid = {"prefixbank__prefixes": [{"a": encoder}]}
    with pytest.raises(ValueError, match=r"not fitted when .* pass its prefix_"):
        GridSearchCV(pipe, grid, cv=2, error_score="raise").fit(*data)


@at_chance
def test_one_encoder_under_several_names_gives_one_prefix_per_fit(tiny):
    encoder, (texts, labels) = encoder_and_data(tiny())
    flipped = [1 - label for label in labels]
    bank = PrefixBank({"a": encoder.fit(texts, labels), "b": encoder.fit(texts, flipped)}, **CPU)
    first = clone(encoder).fit(texts, labels).prefix_
    assert (bank["a"], bank["b"]) == (first, encoder.prefix_) and first != encoder.prefix_
    # With another number of fits, it is unclear which prefix belongs to which name.
    encoder.fit(texts, labels)
    with pytest.raises(ValueError, match=r"prefixes \['a', 'b'\] are one PrefixEncoder"):
        PrefixBank({"a": encoder, "b": encoder}, **CPU).transform(TEXTS)


CHANGES = {
    "add": lambda bank, new: bank.add("new", new),
    "replace": lambda bank, new: bank.add("a", new),
    "remove": lambda bank, new: bank.remove("b"),
    "active": lambda bank, new: bank.set_params(active=["a"]),
    "weights": lambda bank, new: bank.set_params(weights=0.5),
    "combine": lambda bank, new: bank.set_params(combine="mean"),
    "pooling": lambda bank, new: bank.set_params(pooling="cls"),
    "max_length": lambda bank, new: bank.set_params(max_length=8),
    "pooled_layers": lambda bank, new: bank.set_params(pooled_layers=2),
    "prompt": lambda bank, new: bank.set_params(prompt="x "),
    "windows": lambda bank, new: bank.set_params(on_truncate="window"),
    "output_dtype": lambda bank, new: bank.set_params(output_dtype="int8"),
}


@pytest.fixture
def bank(tiny, random_prefix):
    return PrefixBank({k: random_prefix(tiny(), seed=n) for n, k in enumerate("ab")}, **CPU)


@pytest.mark.parametrize("change", CHANGES)
def test_change_after_fit_is_warned_about_once(bank, tiny, random_prefix, change):
    pipe = make_pipeline(bank, LogisticRegression()).fit(["joy", "bore"] * 4, [0, 1] * 4)
    CHANGES[change](bank, random_prefix(tiny(), seed=9))
    with pytest.warns(UserWarning, match="must be fitted again") as caught:
        pipe.predict(TEXTS)
    assert caught[0].filename == __file__
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        pipe.predict(TEXTS)
        pipe.fit(["joy", "bore"] * 4, [0, 1] * 4).predict(TEXTS)


@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.parametrize("copied", [clone, copy.copy, copy.deepcopy, lambda bank: bank])
def test_copies_and_unfitted_banks_do_not_warn(bank, tiny, random_prefix, change, copied):
    if copied in (clone, copy.copy, copy.deepcopy):
        bank.fit(TEXTS)
    changed = copied(bank)
    changed.transform(TEXTS)
    CHANGES[change](changed, random_prefix(tiny(), seed=9))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        changed.transform(TEXTS)
        bank.transform(TEXTS)


def test_parameters_that_do_not_change_vectors_do_not_warn(bank, tiny, random_prefix):
    bank.set_params(active=["a", "b"]).fit(TEXTS)
    loaded = pickle.loads(pickle.dumps(bank))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        bank.add("c", random_prefix(tiny(), seed=5, prompt="x "), activate=False)
        bank.set_params(active=["b", "a"])
        bank.set_params(batch_tokens=64, dtype="bfloat16", cache=None, backbone=tiny())
        bank.set_params(pairs="apart")  # only texts have been seen
        bank.transform(TEXTS)
    # An unpickled bank still knows which vectors its head was fitted on.
    with pytest.warns(UserWarning, match="must be fitted again"):
        loaded.set_params(active=["a"]).transform(TEXTS)
