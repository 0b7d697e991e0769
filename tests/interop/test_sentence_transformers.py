"""sentence-transformers: the model of a bank returns the vectors of the bank."""

import copy
import json
import pickle
import shutil
import sys
import warnings
from dataclasses import replace

import numpy as np
import pytest
import torch
from conftest import FAMILIES, PAIRS, TEXTS
from sentence_transformers import SentenceTransformer
from sentence_transformers.util import semantic_search
from sklearn.preprocessing import normalize

from prefixembed import PrefixBank, PrefixEncoder, load_backbone, release_backbones
from prefixembed.interop import to_sentence_transformer

CPU = {
    "dtype": "float32", "device": "cpu", "cache": None, "max_length": 40, "on_truncate": "ignore"
}  # fmt: skip
TEXTS = [*TEXTS, *(f"text {k} " * k for k in range(1, 5))]


@pytest.fixture
def make_bank(tiny, random_prefix):
    def make(family="bert", n=2, reading=None, **params):
        prefixes = {
            f"p{seed}": random_prefix(
                tiny(family), 4 + seed, seed, 0.5, ffn_length=3 * seed, **(reading or {})
            )
            for seed in range(n)
        }
        known = {} if n else {"backbone": tiny(family)}
        return PrefixBank(prefixes, **{**CPU, **known, **params})

    return make


def close(found, expected):
    np.testing.assert_allclose(found, expected, atol=1e-5)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("batch_size", [1, 4, 32])
def test_vectors_equal_those_of_the_bank(make_bank, family, batch_size):
    bank = make_bank(family)
    vectors = to_sentence_transformer(bank).encode(TEXTS, batch_size=batch_size)
    assert vectors.dtype == np.float32
    close(vectors, bank.transform(TEXTS))


@pytest.mark.parametrize(
    "params",
    [
        {"combine": "mean"},
        {"weights": {"p1": 0.2}},
        {"active": ["p1"]},
        {"active": []},
        {"n": 0, "pooling": "cls"},
        {"pooling": "max", "pooled_layers": 2},
        {"reading": {"first_position": 9}},
        {"family": "roberta", "reading": {"first_position": 9, "pooling": "last"}},
    ],
)
def test_parameters_of_the_bank_are_obeyed(make_bank, params):
    bank = make_bank(**params)
    vectors = to_sentence_transformer(bank).encode(TEXTS, batch_size=4)
    close(vectors, bank.transform(TEXTS))
    assert np.abs(vectors - make_bank().transform(TEXTS)).max() > 0.01


def test_pairs_are_read_as_one_sequence_or_refused(make_bank):
    bank = make_bank(max_length=64)
    close(to_sentence_transformer(bank).encode(PAIRS), bank.transform(PAIRS))
    model = to_sentence_transformer(make_bank(pairs="apart"))
    with pytest.raises(ValueError, match=r"\(pairs='apart'\): encode the texts"):
        model.encode(PAIRS)
    close(model.encode(TEXTS), bank.set_params(max_length=40).transform(TEXTS))


def test_methods_of_sentence_transformers(make_bank):
    bank = make_bank()
    model = to_sentence_transformer(bank, prompts={"query": "find: "}, similarity_fn_name="dot")
    vectors = bank.transform(TEXTS)
    close(model.encode("what a film"), bank.transform(["what a film"])[0])
    scaled = model.encode(TEXTS, normalize_embeddings=True, convert_to_tensor=True)
    assert isinstance(scaled, torch.Tensor) and scaled.device.type == "cpu"
    close(scaled, normalize(vectors))
    asked = [f"find: {text}" for text in TEXTS]
    close(model.encode_query(TEXTS), bank.transform(asked))
    close(model.encode(TEXTS, prompt="find: "), bank.transform(asked))
    close(model.encode_document(TEXTS), vectors)
    close(model.encode(PAIRS, prompt="x "), bank.transform([("x " + a, b) for a, b in PAIRS]))
    np.testing.assert_allclose(model.similarity(vectors, vectors), vectors @ vectors.T, rtol=1e-4)
    close(model.encode(TEXTS, truncate_dim=8), vectors[:, :8])
    assert model.get_embedding_dimension() == 32
    with pytest.warns(FutureWarning, match="has been renamed"):
        assert model.get_sentence_embedding_dimension() == 32
    assert model.encode(TEXTS, precision="int8").dtype == np.int8
    assert len(model.encode([])) == 0
    found = semantic_search(model.encode(TEXTS[:3]), model.encode(TEXTS), top_k=1)
    assert [hits[0]["corpus_id"] for hits in found] == [0, 1, 2]


def test_tokens_equal_those_of_the_tokenizer(make_bank):
    model = to_sentence_transformer(make_bank())
    ours = load_backbone(make_bank()["p0"].backbone).tokenizer(40)
    features = model.preprocess(TEXTS[:3])
    assert set(features) == {"input_ids", "attention_mask", "token_type_ids"}
    for text, ids, mask in zip(
        TEXTS, features["input_ids"], features["attention_mask"], strict=False
    ):
        assert ids[mask == 1].tolist() == ours.encode(text).ids
        assert model.tokenizer(text)["input_ids"] == ours.encode(text).ids
    with pytest.raises(AttributeError, match="'tokenizer'"):
        model.tokenizer = model.tokenizer  # a bank keeps its tokenizer
    del features["token_type_ids"]
    close(model(features)["sentence_embedding"], make_bank().transform(TEXTS[:3]))
    each = model.encode(TEXTS[:3], output_value="token_embeddings")
    close(np.stack([some.mean(0) for some in each]), make_bank().transform(TEXTS[:3]))


def test_long_texts_are_cut_at_max_seq_length(make_bank):
    bank = make_bank(max_length=None, on_truncate="warn")
    model = to_sentence_transformer(bank)
    assert model.max_seq_length == 64
    model.max_seq_length = 10
    long = ["w" * 30, "v" * 30, "u" * 30]
    message = "2 of 2 texts are longer than max_length=10 .* cut"
    with pytest.warns(UserWarning, match=message) as caught:
        vectors = model.encode(long, batch_size=2)
    assert [warning.filename for warning in caught] == [__file__]
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # the model warns once
        model.encode(long, batch_size=2)
    bank.set_params(max_length=10, on_truncate="ignore")
    close(vectors, bank.transform(long))
    model = to_sentence_transformer(bank.set_params(on_truncate="raise"))
    for _ in range(2):
        with pytest.raises(ValueError, match="on_truncate='raise' refuses to cut them"):
            model.encode(long)
    model.max_seq_length = 1000
    with pytest.raises(ValueError, match="max_length must lie between 8 and the 80"):
        model.encode(TEXTS)


def test_saved_model_can_be_loaded(make_bank, tmp_path):
    bank = make_bank(combine="mean", weights={"p1": 0.2})
    folder = str(tmp_path / "model")
    model = to_sentence_transformer(bank, prompts={"query": "find: "})
    model.max_seq_length = 30
    model.save_pretrained(folder)
    (module,) = json.loads((tmp_path / "model" / "modules.json").read_text())
    assert module["type"] == "prefixembed.interop.sentence_transformers.PrefixModule"
    with pytest.raises(ValueError, match="trust_remote_code=True"):
        SentenceTransformer(folder)
    params = {"dtype": torch.float32, "on_truncate": "ignore"}
    again = SentenceTransformer(folder, device="cpu", trust_remote_code=True, model_kwargs=params)
    assert dict(again[0].bank.items()) == dict(bank.items())
    assert again.max_seq_length == 30 and again.prompts["query"] == "find: "
    np.testing.assert_array_equal(again.encode(TEXTS), model.encode(TEXTS))
    # A bank can be loaded from the same folder.
    read = PrefixBank.load(folder, **(CPU | {"max_length": 30}))
    close(read.transform(TEXTS), model.encode(TEXTS))
    assert not list((tmp_path / "model").glob("model*"))  # the backbone is saved by name only


def test_loading_with_other_parameters(make_bank, tmp_path):
    bank = make_bank()
    folder, moved = str(tmp_path / "model"), str(tmp_path / "moved")
    shutil.copytree(bank["p0"].backbone, moved)
    to_sentence_transformer(bank).save_pretrained(folder)
    params = {"backbone": moved, "torch_dtype": "float32", "on_truncate": "ignore"}
    again = SentenceTransformer(folder, device="cpu", trust_remote_code=True, model_kwargs=params)
    close(again.encode(TEXTS), bank.transform(TEXTS))
    for wrong, message in (
        ({"backend": "onnx"}, "backend must be 'torch' .* got 'onnx'"),
        ({"processor_kwargs": {"a": 1}}, "processor_kwargs must be None .* got {'a': 1}"),
        ({"config_kwargs": {"a": 1}}, "config_kwargs must be None"),
        ({"model_kwargs": {"dtype": "int8"}}, "'dtype' parameter of PrefixBank must be"),
    ):
        with pytest.raises(ValueError, match=message):
            SentenceTransformer(folder, trust_remote_code=True, **wrong)


def test_casting_the_model_does_not_change_the_shared_backbone(make_bank):
    bank = make_bank()
    backbone = load_backbone(bank["p0"].backbone, dtype="float32", device="cpu")
    before = {key: value.clone() for key, value in backbone.model.state_dict().items()}
    model = to_sentence_transformer(bank)
    vectors = model.encode(TEXTS)
    model.bfloat16().train()
    assert model.dtype == torch.bfloat16
    rough = model.encode(TEXTS)
    assert 0 < np.abs(rough - vectors).max() < 0.2
    close(rough, bank.set_params(dtype="bfloat16").transform(TEXTS))
    model.to(torch.float32)
    np.testing.assert_array_equal(model.encode(TEXTS), vectors)
    after = backbone.model.state_dict()
    assert all(torch.equal(after[key], value) for key, value in before.items())
    assert not backbone.model.training
    with pytest.raises(ValueError, match="'dtype' parameter of PrefixBank .* Got 'float64'"):
        model.double().encode(TEXTS)


@pytest.mark.cuda
def test_model_moves_to_cuda(make_bank):
    bank = make_bank()
    model = to_sentence_transformer(bank).to("cuda")
    assert model.device.type == "cuda"
    vectors = model.encode(TEXTS, convert_to_tensor=True)
    assert vectors.device.type == "cuda"
    expected = bank.transform(TEXTS)
    np.testing.assert_allclose(vectors.cpu(), expected, atol=1e-3)
    np.testing.assert_allclose(model.cpu().encode(TEXTS), expected, atol=1e-5)


def test_changes_to_the_bank_do_not_affect_the_model(make_bank):
    bank = make_bank()
    model = to_sentence_transformer(bank)
    vectors = model.encode(TEXTS)
    close(copy.deepcopy(model).encode(TEXTS), vectors)
    packed = pickle.dumps(model)
    assert len(packed) < 40_000  # without the backbone
    close(pickle.loads(packed).encode(TEXTS), vectors)
    bank.remove("p0").set_params(combine="mean", max_length=8)
    np.testing.assert_array_equal(model.encode(TEXTS), vectors)
    assert "'prefixes': ['p0', 'p1']" in repr(model)


def test_backbone_and_prefixes_are_frozen(make_bank):
    model = to_sentence_transformer(make_bank())
    assert not any(parameter.requires_grad for parameter in model.parameters())
    assert not model(model.preprocess(TEXTS))["sentence_embedding"].requires_grad


@pytest.mark.filterwarnings("ignore:the training loss is stuck")
def test_backbone_loaded_in_inference_mode_can_be_trained_on(make_bank, tiny, fresh_backbones):
    bank = make_bank(dtype="bfloat16")
    model = to_sentence_transformer(bank)
    release_backbones()
    model.encode(TEXTS)  # in inference mode
    encoder = PrefixEncoder(tiny(), max_steps=1, random_state=0, dtype="bfloat16", device="cpu")
    bank.add("new", encoder.fit(["a", "b"] * 8, [0, 1] * 8))
    assert len(bank.transform(TEXTS)) == len(TEXTS)


@pytest.mark.parametrize("value", [None, float("nan"), b"bytes", 3])
def test_inputs_other_than_texts_are_refused(make_bank, value):
    with pytest.raises(ValueError, match=r"batch\[\d\] must be a str, got"):
        to_sentence_transformer(make_bank()).encode(["a", value])


def test_vectors_that_are_not_finite_are_refused(make_bank):
    bank = make_bank(n=1)
    huge = replace(bank["p0"], keys_values=1e38 * bank["p0"].keys_values)
    model = to_sentence_transformer(bank.add("p0", huge))
    with pytest.raises(FloatingPointError, match="vectors are not finite"):
        model.encode(TEXTS)


@pytest.mark.parametrize("params", [{"output": "words"}, {"output_dtype": "int8"}])
def test_banks_with_other_outputs_are_refused(make_bank, params):
    with pytest.raises(ValueError, match="returns one float32 vector per text, got output="):
        to_sentence_transformer(make_bank(**params))


def test_wrong_parameters_are_refused_at_once(make_bank):
    with pytest.raises(
        ValueError, match="'combine' parameter of to_sentence_transformer .* Got 'sum'"
    ):
        to_sentence_transformer(make_bank(combine="sum"))
    with pytest.raises(ValueError, match="active has 'p9'"):
        to_sentence_transformer(make_bank(active=["p9"]))
    model = to_sentence_transformer(make_bank())
    with pytest.raises(ValueError, match="processing_kwargs must be None"):
        model.encode(TEXTS, processing_kwargs={"text": {"max_length": 9}})


def test_without_sentence_transformers_the_error_names_the_extra(make_bank, monkeypatch):
    monkeypatch.setitem(sys.modules, "sentence_transformers", None)
    with pytest.raises(ImportError, match=r"pip install 'prefixembed\[sentence-transformers\]'"):
        to_sentence_transformer(make_bank())
