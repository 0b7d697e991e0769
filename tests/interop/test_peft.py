"""PEFT: adapters give the vectors of PEFT's own model, and prefixes become adapters again."""

import json
import warnings
from dataclasses import replace

import numpy as np
import pytest
import torch
from conftest import FAMILIES, RELATIVE, make_backbone
from peft import PeftModel, PrefixTuningConfig, TaskType, get_peft_model
from safetensors.torch import load_file, save_file
from transformers import AutoModel, AutoTokenizer

from prefixembed import PrefixBank, VectorCache, load_backbone
from prefixembed.interop import load_peft, save_peft
from prefixembed.reading import Reading

# PEFT calls what transformers is about to drop.
pytestmark = [
    pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`:FutureWarning"),
    pytest.mark.filterwarnings("ignore:`past_key_values` is deprecated:FutureWarning"),
]

CPU = {"dtype": "float32", "device": "cpu", "cache": None}
TEXTS = ["what a film", "dull, long and loud: a bore", "a"]
# PEFT cannot tune prefixes of these: they take no past keys, or their masks do not widen.
UNTUNED = ["albert", "distilbert", "modernbert", "nomic_bert", *RELATIVE]
TUNED = [family for family in FAMILIES if family not in UNTUNED]


def with_reading(prefix, **changes):
    return replace(prefix, reading=replace(prefix.reading, **changes))


@pytest.fixture(scope="module")
def without_windows(tiny, tmp_path_factory):
    """Return the folder of a tiny backbone whose layers all see the whole text."""
    folders = {}

    def folder_of(family):
        if family not in ("mistral", "qwen3"):
            return tiny(family)
        if family not in folders:
            folder = tmp_path_factory.mktemp(family)
            folders[family] = make_backbone(folder, family, sliding_window=None)
        return folders[family]

    return folder_of


@pytest.fixture(scope="module")
def adapters(without_windows, tmp_path_factory):
    """Return the folder of an adapter that PEFT saved."""
    folders = {}

    def folder_of(family="bert", seed=0, projection=False):
        key = family, seed, projection
        if key not in folders:
            torch.manual_seed(seed)
            config = PrefixTuningConfig(
                task_type=TaskType.FEATURE_EXTRACTION, num_virtual_tokens=4 + seed,
                prefix_projection=projection,
            )  # fmt: skip
            model = get_peft_model(AutoModel.from_pretrained(without_windows(family)), config)
            folders[key] = tmp_path_factory.mktemp("adapter")
            model.save_pretrained(folders[key])
        return folders[key]

    return folder_of


def peft_vectors(backbone, folder, texts):
    """Return the mean of the last layer over tokens, from PEFT's own model."""
    model = PeftModel.from_pretrained(AutoModel.from_pretrained(backbone), folder).eval()
    tokenizer = AutoTokenizer.from_pretrained(backbone)
    inputs = tokenizer(texts, padding=True, return_tensors="pt")
    inputs.pop("token_type_ids", None)
    with torch.no_grad():
        hidden = model(**inputs).last_hidden_state
    mask = inputs["attention_mask"][..., None]
    return ((hidden * mask).sum(1) / mask.sum(1)).numpy()


@pytest.mark.parametrize("family", TUNED)
def test_vectors_equal_those_of_peft(without_windows, adapters, family):
    prefix = load_peft(adapters(family), pooling="mean")
    backbone = without_windows(family)
    assert prefix.reading.first_position == prefix.length == 4
    assert prefix.reading.max_length == load_backbone(backbone).max_length - 4
    vectors = PrefixBank({"a": prefix}, **CPU).transform(TEXTS)
    expected = peft_vectors(backbone, adapters(family), TEXTS)
    np.testing.assert_allclose(vectors, expected, atol=2e-5)
    unmoved = with_reading(prefix, first_position=0)
    difference = PrefixBank({"a": unmoved}, **CPU).transform(TEXTS) - expected
    assert np.abs(difference).max() > 0.01  # positions matter


def test_every_token_sees_the_prefix_even_beyond_a_window(tiny, tmp_path):
    # In PEFT's model, tokens farther on than the window no longer see the prefix.
    torch.manual_seed(0)
    config = PrefixTuningConfig(task_type=TaskType.FEATURE_EXTRACTION, num_virtual_tokens=4)
    get_peft_model(AutoModel.from_pretrained(tiny("mistral")), config).save_pretrained(tmp_path)
    with pytest.warns(UserWarning, match="see the last 8 positions"):
        prefix = load_peft(tmp_path, pooling="mean")
    short, long = TEXTS[2:], TEXTS[:2]
    bank = PrefixBank({"a": prefix}, **CPU)
    expected = peft_vectors(tiny("mistral"), tmp_path, short)
    np.testing.assert_allclose(bank.transform(short), expected, atol=2e-5)
    difference = bank.transform(long) - peft_vectors(tiny("mistral"), tmp_path, long)
    assert np.abs(difference).max() > 0.01


def test_adapter_with_a_projection(tiny, adapters):
    folder = adapters(projection=True)
    vectors = PrefixBank({"a": load_peft(folder)}, **CPU).transform(TEXTS)
    np.testing.assert_allclose(vectors, peft_vectors(tiny(), folder, TEXTS), atol=2e-5)


def test_adapter_in_bfloat16(adapters, tmp_path):
    for file in adapters().iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    weights = tmp_path / "adapter_model.safetensors"
    save_file({name: t.bfloat16() for name, t in load_file(weights).items()}, weights)
    expected = load_peft(adapters()).keys_values
    np.testing.assert_allclose(load_peft(tmp_path).keys_values, expected, rtol=0.01)


def test_peft_loads_a_saved_prefix(tiny, random_prefix, tmp_path):
    prefix = random_prefix(tiny("roberta"), length=6, scale=0.5)
    with pytest.raises(ValueError, match="first token position 6, after .* first_position=0"):
        save_peft(prefix, tmp_path)
    prefix = with_reading(prefix, first_position=6, max_length=60)
    save_peft(prefix, tmp_path)
    vectors = PrefixBank({"a": prefix}, **CPU).transform(TEXTS)
    np.testing.assert_allclose(vectors, peft_vectors(tiny("roberta"), tmp_path, TEXTS), atol=2e-5)
    assert load_peft(tmp_path, tiny("roberta"), max_length=60) == replace(prefix, head=None)


@pytest.mark.parametrize("length", [0, 6])
def test_prefix_with_slots_is_refused(tiny, random_prefix, tmp_path, length):
    prefix = random_prefix(tiny(), length, ffn_length=3, first_position=length, max_length=60)
    message = f"PEFT holds keys and values .* {length} positions and 3 slots .* ffn_length=0"
    with pytest.raises(ValueError, match=message):
        save_peft(prefix, tmp_path / "adapter")
    assert not (tmp_path / "adapter").exists()
    if length:
        save_peft(replace(prefix, slots=None), tmp_path / "adapter")


def test_banks_of_adapters(tiny, adapters, tmp_path):
    a, b = load_peft(adapters()), load_peft(adapters(seed=1))
    with pytest.raises(ValueError, match="'a' and 'b' .* first_position differs: 4 of 'a' and 5"):
        PrefixBank({"a": a, "b": b}, **CPU).transform(TEXTS)
    other = replace(a, keys_values=2 * a.keys_values)
    bank = PrefixBank({"a": a, "other": other}, **CPU)
    one = bank.set_params(active=["a"]).transform(TEXTS)
    np.testing.assert_array_equal(one, PrefixBank({"a": a}, **CPU).transform(TEXTS))
    # Without an active prefix the bank is the bare backbone, positions included.
    bare = PrefixBank({}, backbone=tiny(), **CPU)
    np.testing.assert_array_equal(
        bank.set_params(active=[]).transform(TEXTS), bare.transform(TEXTS)
    )
    bank.set_params(active=None).save(tmp_path)
    assert PrefixBank.load(tmp_path)["a"].reading.first_position == 4


def test_cached_vectors_depend_on_positions(adapters):
    prefix = load_peft(adapters())
    unmoved = with_reading(prefix, first_position=0)
    assert prefix.digest != unmoved.digest
    cache = VectorCache()
    one, other = (
        PrefixBank({"a": value}, **(CPU | {"cache": cache})).transform(TEXTS)
        for value in (prefix, unmoved)
    )
    assert np.abs(one - other).max() > 0.01


def test_no_token_comes_after_the_last_position(tiny, adapters):
    longest = load_backbone(tiny()).max_length
    with pytest.raises(ValueError, match=f"max_length must be at most {longest - 4} where"):
        load_peft(adapters(), max_length=longest)
    prefix = load_peft(adapters())
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        PrefixBank({"a": prefix}, **CPU).transform(["x" * 200])
    with pytest.raises(ValueError, match=f"max_length must be at most {longest - 4} where"):
        PrefixBank({"a": prefix}, max_length=longest, **CPU).transform(["x"])


@pytest.mark.parametrize("first", [-1, True, 1.0])
def test_first_position_must_be_an_integer_from_zero(first):
    with pytest.raises(ValueError, match=f"first_position must be .* got {first}"):
        Reading("mean", 64, first_position=first)


def test_broken_adapters_are_refused(tiny, adapters, tmp_path):
    with pytest.raises(FileNotFoundError, match=r"no adapter at .*adapter_config.json"):
        load_peft(tmp_path)
    path = tmp_path / "adapter_config.json"
    good = json.loads((adapters() / "adapter_config.json").read_text())
    for content, message in (
        ("{", "cannot be read"),
        ("[1]", "is not the configuration of a prefix-tuning adapter: its peft_type is None"),
        (json.dumps(good | {"peft_type": "LORA"}), "its peft_type is 'LORA'"),
    ):
        path.write_text(content)
        with pytest.raises(ValueError, match=message):
            load_peft(tmp_path)
    path.write_text(json.dumps(good))
    with pytest.raises(FileNotFoundError, match="no adapter weights"):
        load_peft(tmp_path)
    weights = tmp_path / "adapter_model.safetensors"
    content = (adapters() / weights.name).read_bytes()
    weights.write_bytes(content[:-1])
    with pytest.raises(ValueError, match="is not a safetensors file"):
        load_peft(tmp_path)
    weights.write_bytes(content.replace(b"prompt_embeddings", b"prompt_embeddingz"))
    with pytest.raises(ValueError, match="has no 'prompt_embeddings'"):
        load_peft(tmp_path)
    save_file({"prompt_embeddings": torch.tensor(1.0)}, weights)
    with pytest.raises(ValueError, match=r"has shape \(positions, 192\), got \(\)"):
        load_peft(tmp_path)
    weights.write_bytes(content)
    path.write_text(json.dumps(good | {"base_model_name_or_path": None}))
    with pytest.raises(ValueError, match="backbone must be given"):
        load_peft(tmp_path)
    with pytest.raises(ValueError, match=r"has shape \(positions, 384\), got \(4, 192\)"):
        load_peft(tmp_path, make_backbone(tmp_path / "six", "bert", num_hidden_layers=6))
    assert load_peft(tmp_path, tiny()) == load_peft(adapters())
