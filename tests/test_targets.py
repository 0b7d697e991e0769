import copy
import pickle

import numpy as np
import pandas as pd
import pytest
from sklearn.base import clone
from sklearn.exceptions import NotFittedError
from sklearn.linear_model import LogisticRegression, Perceptron, Ridge, RidgeClassifier
from sklearn.naive_bayes import GaussianNB
from sklearn.pipeline import Pipeline, make_pipeline
from sklearn.preprocessing import StandardScaler

from prefixembed import PrefixBank, TargetHeads, VectorCache

TEXTS = [f"{word} {k}" for k in range(12) for word in ("joy", "bore")]
PAIRS = [(text, "it is" if k % 3 else "it is not") for k, text in enumerate(TEXTS)]
GOOD = np.array(["yes", "no"] * 12)
LARGE = np.array([k // 2 >= 6 for k in range(24)])
NUMBER = np.arange(24) / 2.0


def targets():
    return {
        "good": (TEXTS, GOOD),
        "large": (pd.Series(TEXTS), LARGE, np.linspace(0.5, 1, 24)),
        "number": (np.array(TEXTS), NUMBER),
        "is": (PAIRS, np.arange(24) % 3 > 0),
    }


@pytest.fixture
def bank(tiny, random_prefix):
    prefixes = {name: random_prefix(tiny(), seed=k) for k, name in enumerate("abc")}
    return PrefixBank(prefixes, dtype="float32", device="cpu", cache=None)


@pytest.fixture
def many(bank):
    return TargetHeads(bank, heads={"number": Ridge()}, selections={"large": ["c", "a"], "is": []})


def test_each_head_equals_one_that_is_fitted_alone(bank, many):
    many.fit(targets())
    assert list(many.heads_) == ["good", "large", "number", "is"]
    assert many.selections_["good"] == ("a", "b", "c")
    assert many.selections_["large"] == ("c", "a")
    for name, (X, y, *weights) in targets().items():
        alone = clone(bank).set_params(active=many.selections.get(name))
        head = Ridge() if name == "number" else LogisticRegression(max_iter=1000)
        head.fit(alone.transform(X), y, *weights)
        new = PAIRS[::-1] if name == "is" else TEXTS[::-1]
        expected = head.predict(alone.transform(new))
        found = many.predict(new, [name])[:, 0]
        if name == "number":
            np.testing.assert_allclose(found, expected, atol=1e-3)
        else:
            np.testing.assert_array_equal(found, expected)
            proba = many.predict_proba(new, [name])[name]
            np.testing.assert_allclose(proba, head.predict_proba(alone.transform(new)), atol=1e-3)


def test_a_text_is_encoded_once_per_representation(many, encoded):
    many.fit(targets())
    # Texts with all prefixes and with two of them, and pairs without prefixes.
    assert len(encoded) == 24 + 24 + 24
    encoded.clear()
    many.predict(TEXTS * 3, ["good", "number", "large"])
    assert len(encoded) == 2 * 24
    encoded.clear()
    many.scores({name: targets()[name] for name in ("good", "number")})
    assert len(encoded) == 24


def test_order_of_prefixes_does_not_matter(bank, encoded):
    some = {"one": (TEXTS, GOOD), "other": (TEXTS, GOOD)}
    TargetHeads(bank, selections={"one": ["a", "b"], "other": ("b", "a")}).fit(some)
    assert len(encoded) == 24


def test_columns_keep_the_type_of_labels(many):
    many.fit(targets())
    table = many.predict(TEXTS[:5])
    assert table.shape == (5, 4) and table.dtype == object
    assert [type(value) for value in table[0]] == [str, bool, float, bool]
    assert many.predict(TEXTS[:5], ["large", "is"]).dtype == bool
    assert many.predict(TEXTS[:5], ["good"]).dtype.kind == "U"
    assert many.predict(TEXTS[:5], []).shape == (5, 0)


def test_adding_or_removing_a_target_does_not_change_the_others(bank):
    many = TargetHeads(bank, selections={"large": ["c", "a"]})
    many.fit({"good": (TEXTS, GOOD), "large": (TEXTS, LARGE)})
    kept = many.heads_["good"]
    many.add_target("large", TEXTS, LARGE, head=make_pipeline(StandardScaler(), Ridge()))
    assert many.selections_["large"] == ("c", "a")  # from the parameter
    many.add_target("is", PAIRS, np.arange(24) % 3 > 0, active=["b"])
    assert many.heads_["good"] is kept and many.selections_["is"] == ("b",)
    assert isinstance(many.heads_["large"][-1], Ridge)
    assert list(many.remove_target("large").heads_) == ["good", "is"]
    assert list(many.selections_) == list(many.digests_) == ["good", "is"]
    before = dict(many.heads_)
    with pytest.raises(ValueError, match="inconsistent numbers of samples"):
        many.add_target("good", TEXTS, GOOD[:3])
    with pytest.raises(ValueError, match="classes"):
        many.add_target("good", TEXTS, ["yes"] * 24)
    assert many.heads_ == before
    with pytest.raises(ValueError, match="targets has \\['large'\\], which are not fitted"):
        many.remove_target("large")


def test_score_is_the_mean_of_the_scores_of_targets(many):
    many.fit(targets())
    scores = many.scores(targets())
    assert list(scores) == list(targets())
    assert many.score(targets()) == pytest.approx(np.mean(list(scores.values())))
    assert scores["good"] == np.mean(many.predict(TEXTS, ["good"])[:, 0] == GOOD)


def test_clones_pickles_and_nested_parameters_work_as_in_scikit_learn(many, bank):
    assert clone(many).get_params()["bank__combine"] == "concat"
    many.set_params(bank__cache=VectorCache(), bank__combine="mean").fit(targets())
    assert many.bank_ is not many.bank and many.bank_.combine == "mean"
    again = pickle.loads(pickle.dumps(many))
    np.testing.assert_array_equal(again.predict(TEXTS), many.predict(TEXTS))
    framed = TargetHeads(bank.set_output(transform="pandas")).fit({"good": (TEXTS, GOOD)})
    assert framed.predict(TEXTS).shape == (24, 1)


@pytest.mark.parametrize(
    ("params", "given", "message"),
    [
        ({}, [("good", TEXTS)], "targets must be a dict"),
        ({}, {"good": TEXTS}, r"targets\['good'\] must be a tuple"),
        ({}, {"good": (["a", None], [0, 1])}, r"X\[1\] must be a str, got None"),
        ({}, {"good": ("a bare string", [0, 1])}, "wrap a single text"),
        ({"heads": {"bad": Ridge()}}, {"good": (TEXTS, GOOD)}, r"heads has \['bad'\]"),
        (
            {"heads": {"good": 3}},
            {"good": (TEXTS, GOOD)},
            r"heads\['good'\] must be an estimator, got 3",
        ),
        ({"selections": {"bad": []}}, {"good": (TEXTS, GOOD)}, r"selections has \['bad'\]"),
        ({"selections": {"good": ["z"]}}, {"good": (TEXTS, GOOD)}, r"\['good'\] must be names"),
        ({"selections": {"good": "ab"}}, {"good": (TEXTS, GOOD)}, r"\['good'\] must be names"),
        ({"bank__output": "words"}, {"good": (TEXTS, GOOD)}, "bank must have output='texts'"),
    ],
)
def test_invalid_targets_raise(bank, params, given, message):
    with pytest.raises(ValueError, match=message):
        TargetHeads(bank).set_params(**params).fit(given)


def test_heads_without_probabilities_raise(many):
    many.fit(targets())
    with pytest.raises(ValueError, match=r"heads of \['number'\] have no predict_proba"):
        many.predict_proba(TEXTS)
    with pytest.raises(ValueError, match="at least one target task"):
        many.score({})


def test_sample_weights_reach_any_head(bank):
    weights = np.linspace(0, 1, 24)
    for head in (Perceptron(), make_pipeline(StandardScaler(), LogisticRegression()), Ridge()):
        y = LARGE.astype(int)
        many = TargetHeads(bank, head).fit({"large": (TEXTS, y, weights)})
        vectors = bank.transform(TEXTS)
        alone = clone(head)
        if isinstance(head, Pipeline):
            alone.fit(vectors, y, logisticregression__sample_weight=weights)
        else:
            alone.fit(vectors, y, sample_weight=weights)
        np.testing.assert_array_equal(many.predict(TEXTS)[:, 0], alone.predict(vectors))
        expected = alone.score(vectors, y, sample_weight=weights)
        assert many.scores({"large": (TEXTS, y, weights)})["large"] == pytest.approx(expected)


def test_a_failed_fit_changes_nothing(bank):
    many = TargetHeads(bank)
    with pytest.raises(ValueError, match="classes"):
        many.fit({"good": (TEXTS, ["yes"] * 24)})
    with pytest.raises(NotFittedError):
        many.predict(TEXTS)
    many.fit({"good": (TEXTS, GOOD)})
    heads = many.heads_
    with pytest.raises(ValueError, match="classes"):
        many.fit({"good": (TEXTS, ["yes"] * 24)})
    assert many.heads_ is heads


def test_heads_get_floats_for_any_output_dtype_of_the_bank(bank):
    many = TargetHeads(bank.set_params(output_dtype="binary")).fit({"good": (TEXTS, GOOD)})
    assert many.heads_["good"].n_features_in_ == 32


CHANGES = {
    "prefix": lambda bank, new: bank.add("a", new),
    "removed prefix": lambda bank, new: bank.remove("a"),
    "combine": lambda bank, new: bank.set_params(combine="mean"),
    "weights": lambda bank, new: bank.set_params(weights={"a": 0.5}),
    "pooling": lambda bank, new: bank.set_params(pooling="max"),
    "max_length": lambda bank, new: bank.set_params(max_length=20),
}


@pytest.mark.parametrize("change", CHANGES)
def test_a_head_that_is_older_than_its_vectors_predicts_with_a_warning(bank, random_prefix, change):
    many = TargetHeads(bank).fit({"good": (TEXTS, GOOD), "large": (TEXTS, LARGE)})
    CHANGES[change](many.bank_, random_prefix(many.bank_["a"].backbone, seed=9))
    message = r"heads of \['good', 'large'\] were fitted.* add_target"
    uses = [
        lambda heads: heads.predict(TEXTS),
        lambda heads: heads.predict_proba(TEXTS),
        lambda heads: heads.score({"good": (TEXTS, GOOD), "large": (TEXTS, LARGE)}),
    ]
    for use in uses:
        heads = copy.deepcopy(many)
        with pytest.warns(UserWarning, match=message) as caught:
            use(heads)
        assert len(caught) == 1 and caught[0].filename == __file__
        # One warning per change is enough.
        for again in uses:
            again(heads)
    with pytest.warns(UserWarning, match=r"heads of \['large'\] were fitted"):
        many.add_target("good", TEXTS, GOOD).predict(TEXTS)
    assert many.add_target("large", TEXTS, LARGE).predict(TEXTS).shape == (24, 2)


def test_changes_that_do_not_affect_the_vectors_of_a_target_do_not_warn(bank, random_prefix):
    many = TargetHeads(bank, selections={"large": ["b"]})
    many.fit({"good": (TEXTS, GOOD), "large": (TEXTS, LARGE)})
    folder = many.bank_["a"].backbone
    many.bank_.add("d", random_prefix(folder, seed=8)).set_params(
        active=["d"], batch_tokens=64, output_dtype="int8", dtype="bfloat16"
    )
    many.bank_.prefixes = dict(reversed(many.bank_.prefixes.items()))
    many.predict(TEXTS)
    many.bank_.add("a", random_prefix(folder, seed=9))
    many.predict(TEXTS, ["large"])
    with pytest.warns(UserWarning, match=r"heads of \['good'\] were fitted"):
        many.predict(TEXTS)


def test_copies_of_unchanged_heads_do_not_warn(many):
    many.fit(targets())
    expected = many.predict(TEXTS)
    copies = [copy.copy(many), copy.deepcopy(many), pickle.loads(pickle.dumps(many))]
    for one in (*copies, clone(many).fit(targets())):
        np.testing.assert_array_equal(one.predict(TEXTS), expected)


def test_a_copy_of_outdated_heads_still_warns(bank):
    many = TargetHeads(bank).fit({"good": (TEXTS, GOOD)})
    many.bank_.set_params(combine="mean")
    with pytest.warns(UserWarning, match=r"heads of \['good'\] were fitted"):
        pickle.loads(pickle.dumps(many)).predict(TEXTS)


@pytest.mark.parametrize("method", ["predict_proba", "predict_log_proba", "decision_function"])
def test_methods_of_classes_are_those_of_the_heads(tiny, method):
    bank = PrefixBank({}, backbone=tiny(), dtype="float32", device="cpu")
    targets = {"a": (TEXTS, LARGE)}
    for head in (None, RidgeClassifier(), GaussianNB(), Ridge(), LogisticRegression()):
        one = LogisticRegression() if head is None else head
        many = TargetHeads(bank, head)
        assert hasattr(many, method) == hasattr(one, method)
        many.fit(targets)
        assert hasattr(many, method) == hasattr(one, method)
        if hasattr(one, method):
            expected = getattr(many.heads_["a"], method)(bank.transform(TEXTS))
            np.testing.assert_allclose(getattr(many, method)(TEXTS)["a"], expected, atol=1e-6)
    # One head that has the method is enough.
    mixed = TargetHeads(bank, Ridge(), heads={"a": LogisticRegression()})
    mixed.fit({**targets, "number": targets["a"]})
    assert set(getattr(mixed, method)(TEXTS, ["a"])) == {"a"}
    with pytest.raises(ValueError, match=rf"heads of \['number'\] have no {method}"):
        getattr(mixed, method)(TEXTS)


def test_masked_labels_and_weights_are_refused_by_name(tiny):
    many = TargetHeads(PrefixBank({}, backbone=tiny(), dtype="float32", device="cpu"))
    y = np.ma.array([0, 1, 0, 1])
    masked = np.ma.array([0, 1, 0, 1], mask=[0, 0, 0, 1])
    many.fit({"a": (TEXTS[:4], y, np.ma.array(np.ones(4)))})
    for target, part in (((masked,), "y"), ((y, masked), "sample_weight")):
        for call in (many.fit, many.scores):
            with pytest.raises(ValueError, match=rf"{part} of targets\['a'\]\[3\] is masked"):
                call({"a": (TEXTS[:4], *target)})
    with pytest.raises(ValueError, match=r"X\[1\] is masked"):
        many.predict(np.ma.array(TEXTS[:2], mask=[0, 1]))
