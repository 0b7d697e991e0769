"""Pooling of token vectors into vectors of texts and words."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from prefixembed._model.pooling import pool, pool_words

REFERENCE = {
    "cls": lambda rows: rows[0],
    "last": lambda rows: rows[-1],
    "mean": lambda rows: rows.mean(axis=0),
    "max": lambda rows: rows.max(axis=0),
}


@pytest.mark.parametrize("pooling", REFERENCE)
@given(lengths=st.lists(st.integers(1, 6), min_size=1, max_size=5), left=st.booleans())
@settings(max_examples=25, deadline=None)
def test_padding_on_either_side_does_not_affect_pooling(pooling, lengths, left):
    rng = np.random.default_rng(0)
    longest = max(lengths)
    # Padding holds large numbers, so that a leak would show.
    hidden = np.full((len(lengths), longest, 4), 1e4, dtype=np.float32)
    mask = np.zeros((len(lengths), longest), dtype=bool)
    expected = []
    for k, length in enumerate(lengths):
        rows = rng.standard_normal((length, 4)).astype(np.float32)
        where = slice(longest - length, None) if left else slice(length)
        hidden[k, where] = rows
        mask[k, where] = True
        expected.append(REFERENCE[pooling](rows))
    vectors = pool(torch.from_numpy(hidden), torch.from_numpy(mask), pooling)
    np.testing.assert_allclose(vectors, expected, rtol=1e-5)


@pytest.mark.parametrize("pooling", REFERENCE)
def test_no_mask_equals_a_full_mask_and_vectors_are_float32(pooling):
    hidden = torch.randn(3, 5, 4, dtype=torch.bfloat16)
    vectors = pool(hidden, None, pooling)
    assert vectors.dtype == torch.float32
    torch.testing.assert_close(vectors, pool(hidden, torch.ones(3, 5).bool(), pooling))


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("pooling", REFERENCE)
def test_vectors_do_not_keep_token_vectors_in_memory(pooling, masked):
    # Vectors of all batches wait on the device until the last one is computed.
    mask = torch.ones(3, 5).bool() if masked else None
    vectors = pool(torch.randn(3, 5, 4), mask, pooling)
    assert vectors.untyped_storage().nbytes() == 4 * vectors.numel()


@given(words=st.lists(st.lists(st.integers(-1, 3), min_size=5, max_size=5), min_size=1, max_size=4))
@settings(max_examples=40, deadline=None)
def test_vector_of_a_word_is_the_mean_of_its_tokens_or_zero(words):
    slots = np.array(words)
    slots[slots >= 0] += (4 * np.arange(len(words))[:, None] + np.zeros(5, int))[slots >= 0]
    hidden = np.random.default_rng(0).standard_normal((*slots.shape, 3)).astype(np.float32)
    vectors = pool_words(torch.tensor(hidden), torch.tensor(slots), 4 * len(words)).numpy()
    for k, vector in enumerate(vectors):
        tokens = hidden[slots == k]
        expected = tokens.mean(axis=0) if len(tokens) else np.zeros(3)
        np.testing.assert_allclose(vector, expected, atol=1e-6)
