"""How texts are read, as a value."""

import dataclasses
import json
import pickle

import pytest

from prefixembed.reading import PAIRS, POOLINGS, Reading


def test_fields_at_their_default_are_left_out():
    reading = Reading("mean", 64)
    assert reading.to_dict() == {"pooling": "mean", "max_length": 64}
    for name, value in {
        "pooled_layers": 2, "pairs": "apart", "prompt": "x", "windows": True, "first_position": 3,
    }.items():  # fmt: skip
        changed = dataclasses.replace(reading, **{name: value})
        assert changed.to_dict() == {**reading.to_dict(), name: value}
        assert Reading(**json.loads(json.dumps(changed.to_dict()))) == changed
        assert pickle.loads(pickle.dumps(changed)) == changed


def test_only_pairs_that_are_read_apart_are_wider():
    for pairs in (None, *PAIRS):
        reading = Reading("cls", 8, pairs=pairs)
        assert reading.width(10, of_pairs=False) == 10
        assert reading.width(10, of_pairs=True) == (30 if pairs == "apart" else 10)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"pooling": "sum"}, f"pooling must be one of {', '.join(POOLINGS)}, got 'sum'"),
        ({"pairs": "both"}, "pairs must be one of joint, apart, got 'both'"),
        ({"max_length": 7}, "max_length must be an int of at least 8, got 7"),
        ({"max_length": 8.0}, "max_length must be an int of at least 8, got 8.0"),
        ({"pooled_layers": True}, "pooled_layers must be an int of at least 1, got True"),
        ({"first_position": -1}, "first_position must be an int of at least 0, got -1"),
        ({"prompt": None}, "prompt must be a str, got None"),
        ({"windows": 1}, "windows must be a bool, got 1"),
    ],
)
def test_wrong_fields_are_named(change, message):
    with pytest.raises(ValueError, match=message):
        Reading(**({"pooling": "mean", "max_length": 64} | change))
