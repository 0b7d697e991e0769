"""The library adapters: its flat prefixes are loaded. ``adapters_stack.py`` compares vectors."""

import numpy as np
import pytest

from prefixembed.interop import load_adapters
from prefixembed.interop._flat import to_flat


@pytest.fixture
def pool(tiny, random_prefix):
    return to_flat(random_prefix(tiny()), "adapters").ravel()


def test_flat_prefix_is_loaded(tiny, random_prefix, pool):
    state = {
        f"encoder.layer.{k}.attention.self.prefix_tuning.pool.p.self_prefix.control_trans": pool
        for k in range(3)
    }
    prefix = load_adapters(state, tiny(), max_length=64)
    np.testing.assert_array_equal(prefix.keys_values, random_prefix(tiny()).keys_values)
    assert prefix.reading.first_position == 0 and prefix.reading.max_length == 64
    state["other.control_trans"] = pool + 1
    with pytest.raises(ValueError, match="several prefixes"):
        load_adapters(state, tiny())


def test_broken_states_are_refused(tiny, pool):
    with pytest.raises(ValueError, match="prefix of 959 numbers, .* 192 numbers per position"):
        load_adapters({"a.control_trans": pool[1:]}, tiny())
    with pytest.raises(ValueError, match=r"no flat prefix .*'nonsense'"):
        load_adapters({"nonsense": pool}, tiny())
