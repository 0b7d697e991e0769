"""Estimator checks of scikit-learn, on numbers that are written as texts.

The checks make numeric arrays, but the estimators read texts. The subclasses below validate an
array as scikit-learn does, and pass its rows on as texts.
"""

import warnings

import pytest
from sklearn.exceptions import SkipTestWarning
from sklearn.utils.estimator_checks import check_estimator
from sklearn.utils.validation import check_is_fitted, validate_data

from prefixembed import PrefixBank, PrefixEncoder
from prefixembed._fit import transformer


def as_texts(array):
    return [" ".join(f"{value:.3g}" for value in row) for row in array]


class Numeric:
    def __sklearn_tags__(self):
        tags = super().__sklearn_tags__()
        tags.input_tags.string = False
        tags.input_tags.one_d_array = False
        tags.input_tags.two_d_array = True
        return tags


class NumericEncoder(Numeric, PrefixEncoder):
    def fit(self, X, y, sample_weight=None):
        if y is not None:
            X, y = validate_data(self, X, y)
        return super().fit(as_texts(X), y, sample_weight)

    def _embed(self, X, out):
        return super()._embed(self._as_texts(X), out)

    def _logits(self, X):
        return super()._logits(self._as_texts(X))

    def _as_texts(self, X):
        check_is_fitted(self)
        return as_texts(validate_data(self, X, reset=False))


class NumericBank(Numeric, PrefixBank):
    def fit(self, X, y=None):
        return super().fit(as_texts(validate_data(self, X)))

    def transform(self, X):
        return super().transform(as_texts(validate_data(self, X, reset=False)))


def failures(estimator):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", SkipTestWarning)
        warnings.filterwarnings("ignore", "the training loss is stuck")
        results = check_estimator(estimator, on_skip=None, on_fail=None)
    assert len(results) > 30
    assert sum(result["status"] == "passed" for result in results) > 0.85 * len(results)
    return {result["check_name"] for result in results if result["status"] == "failed"}


def make(tiny, **params):
    return NumericEncoder(
        tiny(), batch_size=8, early_stopping=False, random_state=0, on_truncate="ignore",
        dtype="float32", device="cpu", **params,
    )  # fmt: skip


ROUNDING = "a vector depends on its batch by float32 rounding, and 1e-9 is allowed"
EXPECTED = {
    "check_sample_weight_equivalence_on_dense_data": (
        "copies of a text may be in two batches, a text with a weight is in one"
    ),
    "check_methods_sample_order_invariance": ROUNDING,
    "check_methods_subset_invariance": ROUNDING,
}


@pytest.fixture
def few_steps(monkeypatch):
    """Return a function that sets what max_steps="auto" means: the checks fit often."""

    def set_passes(n):
        monkeypatch.setattr(transformer, "AUTO_PASSES", n)
        monkeypatch.setattr(transformer, "AUTO_MIN_STEPS", 1)

    return set_passes


def test_encoder_passes_estimator_checks(tiny, few_steps):
    few_steps(10)
    assert failures(
        make(tiny, background=None, prefix_length=5, ffn_length=4, learning_rate=0.05)
    ) <= set(EXPECTED)


def test_regression_passes_estimator_checks(tiny, few_steps):
    few_steps(2)
    encoder = make(tiny, objective="regression", background=None, learning_rate=0.03)
    # A random backbone does not reach the R2 of 0.5 that this check wants.
    assert failures(encoder) <= {*EXPECTED, "check_regressors_train"}


def test_bank_passes_estimator_checks(tiny, random_prefix):
    bank = NumericBank(
        {"a": random_prefix(tiny()), "b": random_prefix(tiny(), seed=1)},
        batch_tokens=1,  # one text per batch, so that rounding does not depend on other texts
        on_truncate="ignore", dtype="float32", device="cpu",
    )  # fmt: skip
    assert not failures(bank)
