"""The number of steps and of evaluations that training takes."""

from types import SimpleNamespace

import numpy as np
import pytest
from helpers import make_encoder, reviews, split_examples
from hypothesis import given, settings
from hypothesis import strategies as st

from prefixembed import MultiTaskEncoder, PrefixEncoder
from prefixembed._fit.learning import count_steps, draw_steps

MIN_STEPS, MAX_STEPS = 200, 3000


def tasks_of(*sizes):
    """Return examples with given numbers of rows to train and to validate on."""
    return {
        str(k): split_examples(np.zeros(n_train + n_valid, dtype=int), n_valid)
        for k, (n_train, n_valid) in enumerate(sizes)
    }


@pytest.mark.parametrize(
    ("n_train", "expected"),
    [(1, MIN_STEPS), (320, MIN_STEPS), (2112, MIN_STEPS), (2113, 201), (3201, 303), (20_000, 1875),
     (32_000, MAX_STEPS), (10**6, MAX_STEPS)],
)  # fmt: skip
def test_auto_is_three_passes_between_a_floor_and_a_ceiling(n_train, expected):
    recipe = PrefixEncoder(batch_size=32)._recipe(tasks_of((n_train, 0)), 0.01)
    assert recipe.max_steps == expected


def test_auto_counts_the_texts_of_all_tasks():
    tasks = tasks_of((3200, 0), (3200, 0), (32, 0))
    encoder = MultiTaskEncoder(batch_size=32)
    for temperature in (1.0, 2.0, np.inf):
        n_steps = count_steps(list(tasks.values()), temperature, 32).sum()
        assert encoder._recipe(tasks, 0.01, temperature).max_steps == 3 * n_steps
        assert n_steps == pytest.approx(201, abs=1)


@given(
    sizes=st.lists(st.tuples(st.integers(1, 3000), st.integers(0, 400)), min_size=1, max_size=4),
    batch_size=st.integers(1, 64),
    max_steps=st.one_of(st.just("auto"), st.integers(1, 5000)),
)
@settings(deadline=None)
def test_validation_is_cheap_and_there_are_at_most_20_evaluations(sizes, batch_size, max_steps):
    encoder = PrefixEncoder(batch_size=batch_size, max_steps=max_steps)
    recipe = encoder._recipe(tasks_of(*sizes), 0.01)
    if max_steps == "auto":
        assert MIN_STEPS <= recipe.max_steps <= MAX_STEPS
    else:
        assert recipe.max_steps == max_steps
    assert -(-recipe.max_steps // recipe.eval_steps) <= 20
    n_batches = sum(-(-n_valid // batch_size) for _, n_valid in sizes)
    assert recipe.eval_steps >= n_batches
    # No evaluation is left out without a reason.
    assert recipe.eval_steps in (n_batches, -(-recipe.max_steps // 20))


@given(
    sizes=st.lists(st.integers(1, 300), min_size=1, max_size=5),
    temperature=st.sampled_from([1.0, 1.5, 4.0, np.inf]),
    batch_size=st.integers(1, 40),
)
@settings(deadline=None)
def test_number_of_steps_of_a_pass(sizes, temperature, batch_size):
    rng = np.random.default_rng(0)
    tasks = [
        SimpleNamespace(
            train=np.arange(n), longest=rng.integers(1, 9, size=n), weights=rng.random(n)
        )
        for n in sizes
    ]
    counts = count_steps(tasks, temperature, batch_size)
    steps = draw_steps(tasks, temperature, batch_size, rng)
    np.testing.assert_array_equal(counts, np.bincount([step.task for step in steps]))
    assert (counts >= 1).all()
    if temperature == 1:
        np.testing.assert_array_equal(counts, [-(-n // batch_size) for n in sizes])
    for step in steps:
        assert step.weight == pytest.approx(tasks[step.task].weights[step.rows].sum())


def test_history_and_facts_count_steps(tiny):
    encoder = make_encoder(tiny(), max_steps=50, n_iter_no_change=20).fit(*reviews())
    assert encoder.history_["step"] == [*range(3, 50, 3), 50]
    assert encoder.prefix_.training["n_steps"] == 50
    texts, labels = reviews()
    quick = make_encoder(tiny(), max_steps="auto", batch_size=48, early_stopping=False)
    assert quick.fit(texts, labels).history_["step"] == list(range(10, 201, 10))
    assert quick.prefix_.training["n_steps"] == 200


def test_train_loss_is_a_weighted_mean_like_the_validation_loss(tiny):
    texts, labels = reviews()
    weights = np.where(labels == "good", 0.2, 3.0)
    # With a tiny rate and a new head, every loss is log(2), whatever the weights are.
    encoder = make_encoder(tiny(), max_steps=6, learning_rate=1e-12)
    with pytest.warns(UserWarning, match="stuck"):
        history = encoder.fit(texts, labels, weights).history_
    for name in ("train_loss", "valid_loss"):
        np.testing.assert_allclose(history[name], np.log(2), rtol=1e-5)
