"""A prompt gives the vectors of texts that begin with it."""

import numpy as np
import pytest
from conftest import PAIRS, TEXTS

from prefixembed import (
    MultiTaskEncoder,
    Prefix,
    PrefixBank,
    PrefixEncoder,
    VectorCache,
    embed_dataset,
)
from prefixembed.inspection import attention_share
from prefixembed.interop import to_sentence_transformer

CPU = {"device": "cpu", "dtype": "float32", "cache": None}
PROMPT = "Do \U0001f600: "
PROMPTED = [PROMPT + text for text in TEXTS]


@pytest.fixture
def banks(tiny, random_prefix):
    """Return a bank whose prefix has no prompt, and one whose prefix has a prompt."""
    plain, prompted = (
        PrefixBank({"a": random_prefix(tiny("qwen3"), prompt=prompt)}, **CPU)
        for prompt in ("", PROMPT)
    )
    return plain, prompted


def test_prompt_equals_texts_that_begin_with_it(banks):
    plain, prompted = banks
    expected = plain.transform(PROMPTED)
    np.testing.assert_array_equal(prompted.transform(TEXTS), expected)
    np.testing.assert_array_equal(prompted.transform(iter(TEXTS)), expected)
    # The prompt of the bank overrides that of its prefixes.
    np.testing.assert_array_equal(plain.set_params(prompt=PROMPT).transform(TEXTS), expected)
    np.testing.assert_array_equal(
        prompted.set_params(prompt="").transform(TEXTS),
        plain.set_params(prompt="").transform(TEXTS),
    )


@pytest.mark.parametrize("pairs", ["joint", "apart"])
def test_prompt_of_pairs(banks, pairs):
    plain, prompted = (bank.set_params(pairs=pairs) for bank in banks)
    both = [(PROMPT + one, (PROMPT if pairs == "apart" else "") + two) for one, two in PAIRS]
    np.testing.assert_array_equal(prompted.transform(PAIRS), plain.transform(both))


def test_prompt_of_windows_and_of_attention_shares(banks):
    long = ["word " * 60, "a"]
    plain, prompted = (bank.set_params(on_truncate="window", max_length=32) for bank in banks)
    begun = [PROMPT + text for text in long]
    np.testing.assert_array_equal(prompted.transform(long), plain.transform(begun))
    plain, prompted = (bank.set_params(on_truncate="warn", max_length=64) for bank in banks)
    np.testing.assert_array_equal(
        attention_share(prompted, TEXTS).shares, attention_share(plain, PROMPTED).shares
    )


def test_prompt_counts_towards_max_length(banks):
    _, prompted = banks
    prompted.set_params(max_length=8, on_truncate="raise")
    with pytest.raises(ValueError, match="1 of 1 texts .* max_length=8"):
        prompted.transform(["a"])


def test_cache_keeps_prompts_apart(banks):
    plain, prompted = banks
    cache = VectorCache()
    for bank, texts in ((plain, TEXTS), (prompted, TEXTS)):
        expected = bank.set_params(cache=None).transform(texts)
        for _ in range(2):
            np.testing.assert_array_equal(bank.set_params(cache=cache).transform(texts), expected)


def test_words_cannot_have_a_prompt(banks):
    _, prompted = banks
    with pytest.raises(ValueError, match="prompt must be empty for sentences in words"):
        prompted.set_params(output="words").transform([["a", "film"]])


def test_prefixes_record_the_prompt_of_their_training(tiny, random_prefix, tmp_path):
    texts, labels = ["a film", "dull", "of joy", "bore"] * 4, [0, 1, 0, 1] * 4
    begun = [PROMPT + text for text in texts]
    # A prompt also stands before background texts.
    params = {"max_steps": 3, "random_state": 0, "max_length": 64, "background": None, **CPU}
    prompted = PrefixEncoder(tiny(), prompt=PROMPT, **params).fit(texts, labels)
    plain = PrefixEncoder(tiny(), **params).fit(begun, labels)
    np.testing.assert_array_equal(prompted.prefix_.slots.values, plain.prefix_.slots.values)
    np.testing.assert_array_equal(prompted.predict_proba(texts), plain.predict_proba(begun))
    prompted.prefix_.save(tmp_path / "p.safetensors")
    prefix = Prefix.load(tmp_path / "p.safetensors")
    assert prefix.reading.prompt == PROMPT and prefix.digest == prompted.prefix_.digest
    assert prefix.digest != plain.prefix_.digest
    again = PrefixEncoder.from_prefix(prefix, **CPU)
    assert again.prompt == PROMPT
    np.testing.assert_array_equal(again.transform(texts), prompted.transform(texts))
    bank = PrefixBank({"a": prefix}, **CPU)
    bank.set_params(prompt="Another: ").save(tmp_path / "bank")
    assert PrefixBank.load(tmp_path / "bank").prompt == "Another: "
    with pytest.raises(ValueError, match="cannot be combined, their prompt differs"):
        PrefixBank({"a": prefix, "b": plain.prefix_}, **CPU).transform(texts)
    with pytest.raises(ValueError, match="prompt must be a str, got 3"):
        random_prefix(tiny(), prompt=3)


@pytest.mark.filterwarnings("ignore:the training loss is stuck")
def test_fine_tuning_with_a_prompt(tiny):
    texts, labels = ["a film", "dull", "of joy", "bore"] * 4, [0, 1, 0, 1] * 4
    params = {"max_steps": 2, "random_state": 0, "max_length": 64, **CPU}
    prompted = MultiTaskEncoder(tiny(), prompt=PROMPT, **params).fit({"a": (texts, labels)})
    begun = [PROMPT + text for text in texts]
    plain = MultiTaskEncoder(tiny(), **params).fit({"a": (begun, labels)})
    np.testing.assert_array_equal(prompted.transform(texts), plain.transform(begun))


def test_prompt_in_sentence_transformers_and_corpora(banks, tmp_path):
    datasets = pytest.importorskip("datasets")
    plain, prompted = banks
    expected = plain.transform(PROMPTED)
    model = to_sentence_transformer(prompted)
    np.testing.assert_allclose(model.encode(TEXTS), expected, atol=1e-5)
    rows = datasets.Dataset.from_dict({"text": TEXTS})
    made = embed_dataset(prompted, rows, "text", tmp_path / "made")
    np.testing.assert_allclose(np.stack(made.load()["vector"]), expected, atol=1e-5)
    with pytest.raises(ValueError, match="made with other settings"):
        embed_dataset(plain, rows, "text", tmp_path / "made")


def test_prompt_defaults_to_none():
    assert PrefixEncoder().prompt is MultiTaskEncoder().prompt is PrefixBank({}).prompt is None
