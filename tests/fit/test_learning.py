import numpy as np
import pytest

from prefixembed import load_backbone
from prefixembed._fit.examples import prepare, read_rows
from prefixembed._fit.learning import mixed_steps


def examples(tiny, sizes):
    backbone = load_backbone(tiny(), dtype="float32", device="cpu")
    return [
        prepare(
            read_rows("classification", [f"text {k}" for k in range(n)], np.arange(n) % 2),
            backbone.tokenizer(64), None, np.random.default_rng(0),
        )
        for n in sizes
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("temperature", "expected"), [(1.0, [20, 5, 1]), (np.inf, [9, 9, 9]), (2.0, [15, 8, 3])]
)
def test_tasks_are_mixed_as_asked(tiny, temperature, expected):
    tasks = examples(tiny, [160, 40, 3])
    steps = mixed_steps(tasks, temperature, 8, np.random.default_rng(0))
    counts = np.bincount([step.task for step in steps])
    np.testing.assert_array_equal(counts, expected)
    if temperature == 1:
        for k, data in enumerate(tasks):
            rows = np.concatenate([step.rows for step in steps if step.task == k])
            np.testing.assert_array_equal(np.sort(rows), data.train)
    again = mixed_steps(tasks, temperature, 8, np.random.default_rng(1))
    assert len(again) == len(steps)
    assert [step.task for step in again] != [step.task for step in steps]
