"""Prefixes of other libraries give the vectors that those libraries give."""

import dataclasses
import json
import warnings

import numpy as np
import pytest
import torch
from conftest import FAMILIES, RELATIVE, make_backbone
from peft import PeftModel, PrefixTuningConfig, TaskType, get_peft_model
from transformers import AutoModel, AutoTokenizer

from prefixembed import PrefixBank, VectorCache, load_backbone
from prefixembed.interop import _to_flat, load_adapters, load_p_tuning, load_peft, save_peft

# PEFT asks transformers for what it is about to drop.
pytestmark = [
    pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`:FutureWarning"),
    pytest.mark.filterwarnings("ignore:`past_key_values` is deprecated:FutureWarning"),
]

CPU = {"dtype": "float32", "device": "cpu", "cache": None}
TEXTS = ["what a film", "dull, long and loud: a bore", "a"]
# PEFT cannot tune prefixes of these: they take no past keys, or their masks do not widen.
UNTUNED = ["albert", "distilbert", "modernbert", "nomic_bert", *RELATIVE]
TUNED = [family for family in FAMILIES if family not in UNTUNED]


@pytest.fixture(scope="module")
def without_windows(tiny, tmp_path_factory):
    """Give the folder of a tiny backbone whose layers see the whole text."""
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
    """Save PEFT adapters, as training leaves them."""
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
    """Average the last layer over tokens, in PEFT's own model."""
    model = PeftModel.from_pretrained(AutoModel.from_pretrained(backbone), folder).eval()
    tokenizer = AutoTokenizer.from_pretrained(backbone)
    inputs = tokenizer(texts, padding=True, return_tensors="pt")
    inputs.pop("token_type_ids", None)
    with torch.no_grad():
        hidden = model(**inputs).last_hidden_state
    mask = inputs["attention_mask"][..., None]
    return ((hidden * mask).sum(1) / mask.sum(1)).numpy()


@pytest.mark.parametrize("family", TUNED)
def test_an_adapter_of_peft_gives_its_vectors(without_windows, adapters, family):
    prefix = load_peft(adapters(family), pooling="mean")
    backbone = without_windows(family)
    assert prefix.first_position == prefix.length == 4
    assert prefix.max_length == load_backbone(backbone).max_length - 4
    vectors = PrefixBank({"a": prefix}, **CPU).transform(TEXTS)
    expected = peft_vectors(backbone, adapters(family), TEXTS)
    np.testing.assert_allclose(vectors, expected, atol=2e-5)
    unmoved = dataclasses.replace(prefix, first_position=0)
    apart = PrefixBank({"a": unmoved}, **CPU).transform(TEXTS) - expected
    assert np.abs(apart).max() > 0.01  # positions matter


def test_an_adapter_behind_a_window(tiny, tmp_path):
    # PEFT's prefix moves out of the window of tokens far on. Here every token sees it.
    torch.manual_seed(0)
    config = PrefixTuningConfig(task_type=TaskType.FEATURE_EXTRACTION, num_virtual_tokens=4)
    get_peft_model(AutoModel.from_pretrained(tiny("mistral")), config).save_pretrained(tmp_path)
    with pytest.warns(UserWarning, match="see the last 8 positions"):
        prefix = load_peft(tmp_path, pooling="mean")
    short, long = TEXTS[2:], TEXTS[:2]
    bank = PrefixBank({"a": prefix}, **CPU)
    expected = peft_vectors(tiny("mistral"), tmp_path, short)
    np.testing.assert_allclose(bank.transform(short), expected, atol=2e-5)
    apart = bank.transform(long) - peft_vectors(tiny("mistral"), tmp_path, long)
    assert np.abs(apart).max() > 0.01


def test_an_adapter_with_a_projection(tiny, adapters):
    folder = adapters(projection=True)
    vectors = PrefixBank({"a": load_peft(folder)}, **CPU).transform(TEXTS)
    np.testing.assert_allclose(vectors, peft_vectors(tiny(), folder, TEXTS), atol=2e-5)


def test_what_is_exported_is_what_peft_loads(tiny, random_prefix, tmp_path):
    prefix = random_prefix(tiny("roberta"), length=6, first_position=6, max_length=60, scale=0.5)
    save_peft(prefix, tmp_path)
    vectors = PrefixBank({"a": prefix}, **CPU).transform(TEXTS)
    np.testing.assert_allclose(vectors, peft_vectors(tiny("roberta"), tmp_path, TEXTS), atol=2e-5)
    again = load_peft(tmp_path, max_length=60)
    without_head = dataclasses.replace(prefix, classes=None, head_weight=None, head_bias=None)
    assert again == without_head
    with pytest.raises(ValueError, match="first token position 5, behind .* first_position=0"):
        save_peft(random_prefix(tiny()), tmp_path)


def test_a_peft_bank(tiny, adapters, tmp_path):
    a, b = load_peft(adapters()), load_peft(adapters(seed=1))
    with pytest.raises(ValueError, match="'a' and 'b' .*first_position differs: 4 of 'a' and 5"):
        PrefixBank({"a": a, "b": b}, **CPU).transform(TEXTS)
    other = dataclasses.replace(a, keys_values=2 * a.keys_values)
    bank = PrefixBank({"a": a, "other": other}, **CPU)
    one = bank.set_params(active=["a"]).transform(TEXTS)
    np.testing.assert_array_equal(one, PrefixBank({"a": a}, **CPU).transform(TEXTS))
    # Without an active prefix it is the bare backbone, positions and all.
    bare = PrefixBank({}, backbone=tiny(), max_length=a.max_length, **CPU)
    np.testing.assert_array_equal(
        bank.set_params(active=[]).transform(TEXTS), bare.transform(TEXTS)
    )
    bank.set_params(active=None).save(tmp_path)
    assert PrefixBank.load(tmp_path)["a"].first_position == 4


def test_positions_tell_vectors_apart_in_a_cache(adapters):
    prefix = load_peft(adapters())
    unmoved = dataclasses.replace(prefix, first_position=0)
    assert prefix.digest != unmoved.digest
    cache = VectorCache()
    one, other = (
        PrefixBank({"a": some}, **(CPU | {"cache": cache})).transform(TEXTS)
        for some in (prefix, unmoved)
    )
    assert np.abs(one - other).max() > 0.01


def test_no_token_lies_behind_the_last_position(tiny, adapters):
    longest = load_backbone(tiny()).max_length
    with pytest.raises(ValueError, match=f"max_length must be at most {longest - 4} where"):
        load_peft(adapters(), max_length=longest)
    prefix = load_peft(adapters())
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        PrefixBank({"a": prefix}, **CPU).transform(["x" * 200])
    with pytest.raises(ValueError, match=f"max_length must be at most {longest - 4} where"):
        PrefixBank({"a": prefix}, max_length=longest, **CPU).transform(["x"])


@pytest.mark.parametrize(
    ("first", "message"),
    [(-1, "first_position must be an int from 0, got -1"), (True, "got True"), (1.0, "got 1.0")],
)
def test_a_position_that_is_none(tiny, random_prefix, first, message):
    with pytest.raises(ValueError, match=message):
        random_prefix(tiny(), first_position=first)


@pytest.mark.parametrize("hidden", [None, 7])
def test_a_checkpoint_of_p_tuning(tiny, adapters, hidden):
    torch.manual_seed(0)
    width = 3 * 2 * 32
    if hidden is None:
        encoder = torch.nn.ModuleDict({"embedding": torch.nn.Embedding(4, width)})
        flat = encoder["embedding"].weight
    else:
        trans = torch.nn.Sequential(
            torch.nn.Linear(32, hidden), torch.nn.Tanh(), torch.nn.Linear(hidden, width)
        )
        encoder = torch.nn.ModuleDict({"embedding": torch.nn.Embedding(4, 32), "trans": trans})
        flat = trans(encoder["embedding"].weight)
    state = {f"prefix_encoder.{key}": value for key, value in encoder.state_dict().items()}
    prefix = load_p_tuning({**state, "classifier.weight": torch.zeros(2, 32)}, tiny())
    np.testing.assert_allclose(_to_flat(prefix), flat.detach().numpy(), atol=1e-6)
    assert prefix.first_position == 4 and prefix.pooling == "cls"
    # Its layout is that of PEFT.
    of_peft = load_peft(adapters())
    same = load_p_tuning({"prefix_encoder.embedding.weight": _to_flat(of_peft)}, tiny())
    assert dataclasses.replace(same, pooling="mean") == of_peft


def test_a_flat_prefix_of_adapters(tiny, random_prefix):
    prefix = random_prefix(tiny())
    pool = _to_flat(prefix).ravel()
    state = {
        f"encoder.layer.{k}.attention.self.prefix_tuning.pool.p.self_prefix.control_trans": pool
        for k in range(3)
    }
    found = load_adapters(state, tiny(), max_length=64)
    np.testing.assert_array_equal(found.keys_values, prefix.keys_values)
    assert found.first_position == 0
    state["other.control_trans"] = pool + 1
    with pytest.raises(ValueError, match="several prefixes"):
        load_adapters(state, tiny())
    with pytest.raises(ValueError, match="prefix of 959 numbers, .* wants 192 a position"):
        load_adapters({"a.control_trans": pool[1:]}, tiny())
    for load, what in ((load_adapters, "no flat prefix"), (load_p_tuning, "embedding.weight")):
        with pytest.raises(ValueError, match=what):
            load({"nonsense": pool}, tiny())


def test_what_is_no_adapter_says_so(tiny, adapters, tmp_path):
    with pytest.raises(FileNotFoundError, match=r"no adapter at .*adapter_config.json"):
        load_peft(tmp_path)
    path = tmp_path / "adapter_config.json"
    good = json.loads((adapters() / "adapter_config.json").read_text())
    for content, message in (
        ("{", "cannot be read"),
        ("[1]", "is no prefix tuning: its peft_type is None"),
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
    weights.write_bytes(content)
    path.write_text(json.dumps(good | {"base_model_name_or_path": None}))
    with pytest.raises(ValueError, match="backbone must be given"):
        load_peft(tmp_path)
    with pytest.raises(ValueError, match=r"has shape \(positions, 384\), got \(4, 192\)"):
        load_peft(tmp_path, make_backbone(tmp_path / "six", "bert", num_hidden_layers=6))
    assert load_peft(tmp_path, tiny()) == load_peft(adapters())
