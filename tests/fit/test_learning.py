"""Steps over several tasks."""

import numpy as np
import pytest

from prefixembed import load_backbone
from prefixembed._fit.examples import prepare, read_rows
from prefixembed._fit.learning import draw_steps
from prefixembed.reading import Reading


def examples(tiny, sizes):
    backbone = load_backbone(tiny(), dtype="float32", device="cpu")
    rows = [
        read_rows("classification", [f"text {k}" for k in range(n)], np.arange(n) % 2)
        for n in sizes
    ]
    rng = np.random.default_rng(0)
    return [prepare(some, backbone, Reading("mean", 64), None, rng) for some in rows]


@pytest.mark.parametrize(
    ("temperature", "expected"), [(1.0, [20, 5, 1]), (np.inf, [9, 9, 9]), (2.0, [15, 8, 3])]
)
def test_temperature_decides_the_number_of_steps_of_each_task(tiny, temperature, expected):
    tasks = examples(tiny, [160, 40, 3])
    steps = draw_steps(tasks, temperature, 8, np.random.default_rng(0))
    np.testing.assert_array_equal(np.bincount([step.task for step in steps]), expected)
    if temperature == 1:
        for k, data in enumerate(tasks):
            rows = np.concatenate([step.rows for step in steps if step.task == k])
            np.testing.assert_array_equal(np.sort(rows), data.train)
    again = draw_steps(tasks, temperature, 8, np.random.default_rng(1))
    assert len(again) == len(steps)
    assert [step.task for step in again] != [step.task for step in steps]


@pytest.mark.parametrize("temperature", [1.0, 2.0, np.inf])
def test_an_epoch_of_one_task_has_each_row_once(tiny, temperature):
    (data,) = examples(tiny, [43])
    steps = draw_steps([data], temperature, 8, np.random.default_rng(0))
    assert len(steps) == 6
    rows = np.concatenate([step.rows for step in steps])
    np.testing.assert_array_equal(np.sort(rows), data.train)
