import pytest
from hypothesis import given
from hypothesis import strategies as st

from prefixembed import PrefixBank, prefix_subsets


@given(n=st.integers(0, 6), data=st.data())
def test_every_subset_once_smaller_first(n, data):
    names = [f"p{k}" for k in range(n)]
    bank = PrefixBank(dict.fromkeys(names))
    low = data.draw(st.integers(0, n))
    high = data.draw(st.integers(low, n))
    subsets = prefix_subsets(bank, low, high)
    expected = {
        tuple(name for k, name in enumerate(names) if bits >> k & 1) for bits in range(2**n)
    }
    assert set(subsets) == {subset for subset in expected if low <= len(subset) <= high}
    assert len(subsets) == len(set(subsets))
    assert [len(subset) for subset in subsets] == sorted(len(subset) for subset in subsets)
    assert len(prefix_subsets(bank)) == 2**n


@pytest.mark.parametrize("sizes", [(-1, None), (2, 1), (0, 3), (3, None)])
def test_impossible_sizes_are_refused(sizes):
    with pytest.raises(ValueError, match="min_size"):
        prefix_subsets(PrefixBank(dict.fromkeys("ab")), *sizes)
