"""scikit-learn's own estimator checks, on numbers written as texts.

Text input lets none of them run on the estimators as they are: each check makes numeric arrays.
These subclasses validate such an array as any estimator of scikit-learn would, and hand its rows
on as texts; everything else is the real estimator.
"""

import warnings

from sklearn.exceptions import SkipTestWarning
from sklearn.utils.estimator_checks import check_estimator
from sklearn.utils.validation import check_is_fitted, validate_data

from prefixembed import PrefixBank, PrefixEncoder


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

    def _vectors(self, X, *args, **kwargs):
        check_is_fitted(self)
        return super()._vectors(as_texts(validate_data(self, X, reset=False)), *args, **kwargs)


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


def test_encoder(tiny):
    encoder = NumericEncoder(
        tiny(), max_epochs=7, learning_rate=0.05, batch_size=8, early_stopping=False,
        random_state=0, on_truncate="ignore", dtype="float32", device="cpu",
    )  # fmt: skip
    rounding = "vectors depend on what shares their batch to float32 rounding, allowed is 1e-9"
    expected = {
        "check_sample_weight_equivalence_on_dense_data": (
            "a repeated text may fall into two batches, a weighted one falls into one"
        ),
        "check_methods_sample_order_invariance": rounding,
        "check_methods_subset_invariance": rounding,
    }
    assert failures(encoder) <= set(expected)


def test_regression(tiny):
    encoder = NumericEncoder(
        tiny(), objective="regression", max_epochs=2, learning_rate=0.03, batch_size=8,
        early_stopping=False, random_state=0, on_truncate="ignore", dtype="float32", device="cpu",
    )  # fmt: skip
    rounding = "vectors depend on what shares their batch to float32 rounding, allowed is 1e-9"
    expected = {
        "check_sample_weight_equivalence_on_dense_data": (
            "a repeated text may fall into two batches, a weighted one falls into one"
        ),
        "check_methods_sample_order_invariance": rounding,
        "check_methods_subset_invariance": rounding,
        "check_regressors_train": (
            "an R2 above 0.5 is wanted of numbers written as texts to a random backbone"
        ),
    }
    assert failures(encoder) <= set(expected)


def test_bank(tiny, random_prefix):
    bank = NumericBank(
        {"a": random_prefix(tiny()), "b": random_prefix(tiny(), seed=1)},
        batch_tokens=1,  # each text alone: not even rounding depends on the others
        on_truncate="ignore", dtype="float32", device="cpu",
    )  # fmt: skip
    assert not failures(bank)
