"""Heads of source tasks, which are fitted again on the vectors that were learned."""

import pickle

import numpy as np
import pytest
import torch
from conftest import TEXTS
from helpers import TASKS, make_encoder, make_multitask, ratings, reviews
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from prefixembed import Prefix, PrefixEncoder, load_backbone
from prefixembed._fit.examples import prepare, read_rows
from prefixembed._fit.heads import initial_head, learned_head, refit_head
from prefixembed.reading import Reading


def make_examples(folder, objective, n=160, fraction=0.25):
    backbone = load_backbone(folder, dtype="float32", device="cpu")
    rows = read_rows(objective, *TASKS[objective](n))
    reading = Reading("mean", 64, pairs="joint")
    return prepare(rows, backbone, reading, fraction, np.random.default_rng(0))


def random_vectors(examples, width, seed=0):
    """Return vectors of units by row: they depend on the label, and have all scales."""
    rng = np.random.default_rng(seed)
    n_units = int(examples.counts.sum())
    vectors = rng.normal(size=(n_units, width)) * np.logspace(-3, 3, width) + 5
    ends = np.cumsum(examples.counts)
    per_row = np.split(vectors, ends[:-1])

    def embed(rows):
        return np.concatenate([per_row[k] for k in rows]).astype(np.float32)

    return embed


def validation_loss(head, examples, embed):
    with torch.no_grad():
        logits = head(torch.from_numpy(embed(examples.valid)))
    return float(examples.losses(logits, examples.valid).sum())


@pytest.mark.parametrize("objective", TASKS)
def test_validation_loss_never_rises(tiny, objective):
    examples = make_examples(tiny(), objective)
    embed = random_vectors(examples, 12)
    rng = torch.Generator().manual_seed(0)
    for scale in (0.0, 1e-3):
        head = torch.nn.Linear(12, examples.targets.n_outputs)
        torch.nn.init.normal_(head.weight, std=max(scale, 1e-30), generator=rng)
        torch.nn.init.zeros_(head.bias)
        before = validation_loss(head, examples, embed)
        refit_head(head, examples, embed)
        assert validation_loss(head, examples, embed) <= before * (1 + 1e-5)


@pytest.mark.parametrize("objective", TASKS)
def test_best_scale_undoes_any_other(tiny, objective):
    examples = make_examples(tiny(), objective)
    rows = examples.valid
    n_units = int(examples.counts[rows].sum())
    logits = torch.randn(n_units, examples.targets.n_outputs, generator=torch.manual_seed(0))
    if objective == "regression":
        assert examples.best_scale(logits, rows) == 1  # numbers are right or wrong
        return
    lowest = min(float(examples.losses(s * logits, rows).sum()) for s in np.logspace(-2, 1, 200))
    for factor in (0.1, 1.0, 10.0):
        scale = examples.best_scale(factor * logits, rows)
        loss = float(examples.losses(scale * factor * logits, rows).sum())
        assert loss <= 1.02 * lowest
        assert loss <= float(examples.losses(factor * logits, rows).sum())


def test_head_that_is_too_sure_is_rescaled_and_decides_alike(tiny):
    examples = make_examples(tiny(), "classification", n=300)
    # Validation texts are told apart by these vectors, mostly; training texts are not.
    vectors = np.random.default_rng(0).normal(size=(300, 6)).astype(np.float32)
    valid = examples.valid
    vectors[valid, 0] = np.where(examples.targets.values[valid] == 1, 2, -2) + vectors[valid, 1]
    head = torch.nn.Linear(6, 2)
    with torch.no_grad():
        head.weight.zero_()
        head.weight[1, 0] = 50.0
        head.bias.zero_()
    before = validation_loss(head, examples, lambda rows: vectors[rows])
    refit_head(head, examples, lambda rows: vectors[rows])
    ratio = head.weight[1, 0] / 50
    assert 0 < ratio < 0.5
    torch.testing.assert_close(head.weight[1], torch.tensor([50.0, 0, 0, 0, 0, 0]) * ratio)
    assert validation_loss(head, examples, lambda rows: vectors[rows]) < before


def test_classes_are_separated_as_by_a_logistic_regression(tiny):
    examples = make_examples(tiny(), "classification", n=300)
    y = examples.targets.values
    vectors = np.random.default_rng(0).normal(size=(300, 6)) * np.logspace(-2, 2, 6)
    vectors[:, 3] += 1.5 * y * vectors[:, 3].std()
    vectors = vectors.astype(np.float32)
    head = torch.nn.Linear(6, 2)
    torch.nn.init.zeros_(head.weight)
    torch.nn.init.zeros_(head.bias)
    refit_head(head, examples, lambda rows: vectors[rows])
    train, valid = examples.train, examples.valid
    scores = []
    for C in 1 / (np.array([1.0, 0.1, 0.01, 1e-3]) * len(train)):
        # Two outputs with a penalty on both are one output with half of it.
        model = make_pipeline(
            StandardScaler(), LogisticRegression(C=2 * C, tol=1e-8, max_iter=10**4)
        )
        model.fit(vectors[train], y[train])
        probabilities = model.predict_proba(vectors[valid])
        scores.append(-np.log(probabilities[np.arange(len(valid)), y[valid]]).sum())
    found = validation_loss(head, examples, lambda rows: vectors[rows])
    assert found == pytest.approx(min(scores), rel=1e-2)


def test_few_validation_rows_leave_a_head_alone(tiny):
    examples = make_examples(tiny(), "classification", n=40)
    assert len(examples.valid) < 20
    head = initial_head(examples, 12)

    def fail(rows):
        raise AssertionError("no vectors are needed")

    refit_head(head, examples, fail)
    assert not head.weight.any()


def test_features_that_never_change_do_no_harm(tiny):
    examples = make_examples(tiny(), "classification")
    constant = np.full((160, 3), 7.0, dtype=np.float32)
    head = torch.nn.Linear(3, 2)
    torch.nn.init.zeros_(head.weight)
    refit_head(head, examples, lambda rows: constant[rows])
    assert head.weight.isfinite().all() and head.bias.isfinite().all()


@pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")
def test_encoders_predict_with_the_head_that_was_fitted_last(tiny):
    texts, y = reviews(240)
    encoder = make_encoder(tiny(), max_steps=5, ffn_length=2, background=None).fit(texts, y)
    plain = make_encoder(
        tiny(), max_steps=5, ffn_length=2, background=None, early_stopping=False
    ).fit(texts, y)
    # After five steps, training alone has hardly moved the head from zero.
    assert encoder.score(texts, y) > plain.score(texts, y)
    assert encoder.score(texts, y) > 0.9


def test_learned_head_keeps_weight_and_bias(tiny):
    examples = make_examples(tiny(), "classification")
    head = torch.nn.Linear(len(TEXTS), 2)
    found = learned_head(head, examples)
    np.testing.assert_array_equal(found.weight, head.weight.detach().numpy())
    assert found.classes.tolist() == ["bad", "good"]


@pytest.mark.filterwarnings("ignore:the training loss is stuck")
@pytest.mark.parametrize(("offset", "scale"), [(1.7e9, 1.0), (-3e12, 10.0), (0.0, 1e-30)])
def test_numbers_far_from_zero_keep_their_score(tiny, offset, scale):
    texts, y = ratings(60)
    params = {"objective": "regression", "max_steps": 40, "early_stopping": False}
    plain = make_encoder(tiny(), **params).fit(texts, y)
    y_far = offset + scale * (y - y.mean()) / y.std()
    far = make_encoder(tiny(), **params).fit(texts, y_far)
    assert plain.score(texts, y) > 0.5
    assert far.score(texts, y_far) > 0.5
    tasks = {"far": (texts, y_far)}
    both = make_multitask(tiny(), objectives={"far": "regression"}, max_steps=3).fit(tasks)
    assert abs(both.heads_["far"].mean - y_far.mean()) <= 1e-12 * abs(y_far).max()
    assert pickle.loads(pickle.dumps(both)).score(texts, y_far) == both.score(texts, y_far)
    prefix = Prefix.from_bytes(far.prefix_.to_bytes())
    again = PrefixEncoder.from_prefix(prefix, device="cpu", dtype="float32")
    np.testing.assert_array_equal(again.predict(texts[:5]), far.predict(texts[:5]))


@pytest.mark.parametrize(
    ("y", "message"),
    [
        ([0.1] * 10, "two different numbers or more, all of n_samples=10 are 0.1"),
        (
            [1e308, -1e308] * 5,
            "variance is neither zero nor infinite .* between -1e.308 and 1e.308",
        ),
        ([0.0, 1e-200] * 5, "variance is neither zero nor infinite"),
    ],
)
def test_numbers_without_a_scale_are_refused(y, message):
    with pytest.raises(ValueError, match=message):
        read_rows("regression", list("abcdefghij"), y)


@pytest.mark.filterwarnings("ignore:the training loss is stuck")
@pytest.mark.parametrize(("n", "names"), [(10, {"valid_loss"}), (20, {"valid_loss", "valid_r2"})])
def test_one_row_has_no_coefficient_of_determination(tiny, n, names):
    texts, y = ratings(n)
    params = {"objective": "regression", "max_steps": 3}
    encoder = make_encoder(tiny(), **params).fit(texts, y)
    assert encoder.prefix_.training["n_validation_texts"] == n // 10
    assert {name for name in encoder.history_ if name.startswith("valid")} == names
    assert {name for name in encoder.prefix_.training if name.startswith("valid")} == names
    assert np.isfinite(list(encoder.history_.values())).all()
    tasks = {"a": (texts, y), "b": (texts, y)}
    kinds = dict.fromkeys(tasks, "regression")
    history = make_multitask(tiny(), objectives=kinds, max_steps=3).fit(tasks).history_
    assert np.isfinite(list(history.values())).all()
    assert ("valid_r2[b]" in history) == ("valid_r2" in names)
