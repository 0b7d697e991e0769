"""Conversion of vectors to smaller dtypes."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from prefixembed._embed.quantization import OUTPUT_DTYPES, output_width, quantize

finite = st.floats(-(2.0**60), 2.0**60, width=32)
matrices = arrays(np.float32, st.tuples(st.integers(0, 4), st.integers(1, 20)), elements=finite)


@pytest.mark.parametrize("output_dtype", OUTPUT_DTYPES)
@given(vectors=matrices)
@settings(max_examples=60, deadline=None)
def test_each_row_is_converted_by_itself(output_dtype, vectors):
    stored = quantize(vectors, output_dtype)
    assert stored.dtype == OUTPUT_DTYPES[output_dtype]
    assert stored.shape == (len(vectors), output_width(vectors.shape[1], output_dtype))
    assert np.isfinite(stored).all()
    for k in range(len(vectors)):
        np.testing.assert_array_equal(quantize(vectors[k : k + 1], output_dtype)[0], stored[k])


def test_int8_rounds_to_half_a_step():
    vectors = np.random.default_rng(0).standard_normal((50, 384), dtype=np.float32)
    vectors *= np.logspace(-6, 6, 50, dtype=np.float32)[:, None]
    size = np.sqrt((vectors.astype(float) ** 2).mean(axis=1, keepdims=True))
    stored = quantize(vectors, "int8")
    kept = np.abs(vectors) < 3.9 * size
    error = np.abs(stored.astype(float) * 4 / 127 - vectors / size)
    assert error[kept].max() < 0.5001 * 4 / 127
    assert set(np.abs(stored[~kept].astype(int))) <= set(range(123, 128))


def test_outlying_features_do_not_coarsen_the_others():
    vectors = np.random.default_rng(0).standard_normal((1, 1024), dtype=np.float32)
    vectors[0, 7] = 60.0
    stored = quantize(vectors, "int8")
    assert stored[0, 7] == 127
    assert len(np.unique(stored)) > 50
    assert not quantize(np.zeros((1, 8), np.float32), "int8").any()


def test_binary_unpacks_to_signs():
    vectors = np.random.default_rng(0).standard_normal((9, 21), dtype=np.float32)
    bits = np.unpackbits(quantize(vectors, "binary"), axis=1)
    np.testing.assert_array_equal(bits[:, :21], vectors > 0)
    assert not bits[:, 21:].any()
