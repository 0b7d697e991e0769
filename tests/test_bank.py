"""PrefixBank: vectors, prefixes as a mapping, parameters, copies and containers."""

import pickle
from pathlib import Path

import joblib
import numpy as np
import pandas as pd
import pytest
from conftest import PAIRS, TEXTS, make_backbone
from reference import bert_hidden
from sklearn.base import clone
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import FunctionTransformer, StandardScaler

from prefixembed import PrefixBank, PrefixEncoder, load_backbone, release_backbones
from prefixembed._embed.tokens import tokenize
from prefixembed.head import Head
from prefixembed.reading import Reading

CPU = {"dtype": "float32", "device": "cpu"}


@pytest.fixture
def prefixes(tiny, random_prefix):
    return {name: random_prefix(tiny(), length=k + 1, seed=k) for k, name in enumerate("abc")}


@pytest.fixture
def bank(prefixes):
    return PrefixBank(prefixes, **CPU)


@pytest.mark.parametrize("combine", ["concat", "mean"])
@pytest.mark.parametrize("X", [TEXTS, PAIRS], ids=["texts", "pairs"])
def test_vectors_equal_the_formula_of_the_method(tiny, prefixes, combine, X):
    backbone = load_backbone(tiny(), **CPU)
    bank = PrefixBank(prefixes, active=["c", "a"], combine=combine, weights={"a": 0.5}, **CPU)
    tokens = tokenize(backbone, X, Reading("mean", 64))
    expected = [
        bert_hidden(backbone.model, ids, types, [prefixes["c"], prefixes["a"]], [1, 0.5], combine)
        for ids, types in zip(tokens.ids, tokens.type_ids, strict=True)
    ]
    np.testing.assert_allclose(
        bank.transform(X), [hidden.mean(axis=0) for hidden in expected], atol=2e-5
    )


@pytest.mark.parametrize("combine", ["concat", "mean"])
@pytest.mark.parametrize("pooling", ["cls", "mean", "max", "last"])
def test_bank_of_one_equals_its_encoder(tiny, random_prefix, combine, pooling):
    prefix = random_prefix(tiny(), pooling=pooling)
    encoder = PrefixEncoder.from_prefix(prefix, **CPU)
    bank = PrefixBank({"one": encoder}, combine=combine, **CPU)
    np.testing.assert_array_equal(bank.transform(TEXTS), encoder.transform(TEXTS))


def test_empty_selection_and_empty_bank_return_the_vectors_of_the_backbone(tiny, bank):
    backbone = load_backbone(tiny(), **CPU)
    tokens = tokenize(backbone, TEXTS, Reading("mean", 64))
    bare = [
        bert_hidden(backbone.model, ids, types, [], []).mean(axis=0)
        for ids, types in zip(tokens.ids, tokens.type_ids, strict=True)
    ]
    vectors = clone(bank).set_params(active=[]).transform(TEXTS)
    np.testing.assert_allclose(vectors, bare, atol=2e-5)
    empty = PrefixBank({}, backbone=tiny(), **CPU)
    np.testing.assert_array_equal(empty.transform(TEXTS), vectors)
    assert empty.n_features_out_ == 32
    assert bool(empty) and len(empty) == 0
    with pytest.raises(ValueError, match="backbone must be given"):
        PrefixBank({}).transform(TEXTS)


@pytest.mark.parametrize("combine", ["concat", "mean"])
def test_order_and_names_of_prefixes_do_not_matter(prefixes, combine):
    backwards = dict(reversed(prefixes.items()))
    renamed = {f"{name}{name}": prefix for name, prefix in backwards.items()}
    vectors = PrefixBank(prefixes, combine=combine, **CPU).transform(TEXTS)
    for other in (backwards, renamed):
        same = PrefixBank(other, combine=combine, **CPU).transform(TEXTS)
        np.testing.assert_array_equal(vectors, same)


def test_each_parameter_of_the_representation_changes_vectors(bank):
    variants = [
        {},
        {"active": ["a", "b"]},
        {"active": ("a",)},
        {"active": []},
        {"combine": "mean"},
        {"weights": 0.5},
        {"weights": {"b": 0.5}},
        {"combine": "mean", "weights": 0.5},
        {"pooling": "cls"},
        {"pooled_layers": 2},
        {"max_length": 8},
    ]
    vectors = [
        clone(bank).set_params(on_truncate="ignore", **params).transform(TEXTS)
        for params in variants
    ]
    for k, one in enumerate(vectors):
        for other in vectors[:k]:
            assert np.abs(one - other).max() > 1e-3
    same = clone(bank).set_params(weights={"a": 1, "b": 1.0, "c": 1}).transform(TEXTS)
    np.testing.assert_array_equal(same, vectors[0])


def test_prefixes_can_be_added_replaced_and_removed(bank, prefixes, tiny, random_prefix):
    original = bank.transform(TEXTS)
    new = random_prefix(tiny(), seed=9)
    assert bank.add("new", new) is bank
    assert list(bank) == ["a", "b", "c", "new"] and list(prefixes) == ["a", "b", "c"]
    assert np.abs(bank.transform(TEXTS) - original).max() > 0.01
    # Nothing was retrained: without the new prefix, the vectors are equal bit for bit.
    np.testing.assert_array_equal(bank.without("new").transform(TEXTS), original)
    assert "new" in bank
    np.testing.assert_array_equal(bank.remove("new").transform(TEXTS), original)
    bank.add("a", new)
    assert len(bank) == 3 and bank["a"] == new

    bank.set_params(active=["a", "b"], weights={"a": 0.5, "b": 2.0})
    bank.add("d", new)
    assert bank.active == ["a", "b", "d"]
    bank.remove("a", "d")
    assert bank.active == ["b"] and bank.weights == {"b": 2.0}
    bank.transform(TEXTS)
    with pytest.raises(KeyError, match="no prefix 'zzz'; there are"):
        bank.remove("b", "zzz")
    assert "b" in bank


def test_last_prefix_can_be_removed_only_if_backbone_is_set(tiny, prefixes):
    with pytest.raises(ValueError, match="leaves no prefix to name the backbone"):
        PrefixBank(prefixes, **CPU).remove("a", "b", "c")
    bank = PrefixBank(prefixes, backbone=tiny(), max_length=64, **CPU)
    bare = clone(bank).set_params(active=[]).transform(TEXTS)
    np.testing.assert_array_equal(bank.remove("a", "b", "c").transform(TEXTS), bare)


def test_bank_behaves_like_a_dict(bank, prefixes):
    assert dict(bank.items()) == prefixes == dict(zip(bank.keys(), bank.values(), strict=True))
    assert bank["b"] is prefixes["b"] and "b" in bank and "x" not in bank
    with pytest.raises(KeyError, match="'x'"):
        bank["x"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"fingerprint": "0" * 64, "backbone": "else"}, "'a' and 'odd' .*fingerprint .*'else'"),
        ({"pooling": "cls"}, "'a' and 'odd' .*pooling"),
        ({"pooled_layers": 2}, "'a' and 'odd' .*pooled_layers"),
        ({"keys_values": np.ones((3, 2, 2, 5, 16))}, "'a' and 'odd' .*layout"),
    ],
)
def test_prefixes_that_cannot_be_combined_are_named(bank, tiny, random_prefix, change, message):
    odd = random_prefix(tiny(), **change)
    with pytest.raises(ValueError, match=message):
        PrefixBank({**bank.prefixes, "odd": odd}).transform(TEXTS)
    with pytest.raises(ValueError, match=message):
        bank.add("odd", odd)
    assert "odd" not in bank


def test_backbone_may_move_but_not_change(tiny, bank, tmp_path):
    expected = bank.transform(TEXTS)
    moved = make_backbone(tmp_path / "moved", "bert")  # equal weights
    np.testing.assert_array_equal(bank.set_params(backbone=moved).transform(TEXTS), expected)
    other = make_backbone(tmp_path / "other", "bert", seed=1)
    with pytest.raises(ValueError, match=r"prefix 'a' was learned on backbone .* fingerprint"):
        bank.set_params(backbone=other).transform(TEXTS)


@pytest.mark.parametrize(
    ("params", "message"),
    [
        ({"active": ["a", "zzz"]}, "active has 'zzz', which is not one of"),
        ({"active": ["a", "a"]}, "active has a name twice"),
        ({"active": "abc"}, "'active' parameter of PrefixBank .* Got 'abc'"),
        ({"weights": {"zzz": 1.0}}, "weights has 'zzz'"),
        ({"weights": {"a": 0}}, r"weights\['a'\] must be a number above 0, got 0"),
        ({"weights": {"a": "x"}}, r"weights\['a'\] must be a number above 0, got 'x'"),
        ({"weights": {"a": float("nan")}}, r"weights\['a'\] .* got nan"),
        ({"weights": -1.0}, "'weights' parameter .* Got -1.0"),
        ({"weights": 0.0}, "'weights' parameter .* Got 0.0"),
        ({"combine": "sum"}, "'combine' parameter .* Got 'sum'"),
        ({"prefixes": []}, r"'prefixes' parameter .* Got \[\]"),
        ({"prefixes": {"a": None}}, r"prefixes\['a'\] must be a PrefixEncoder or a Prefix"),
        ({"prefixes": {1: None}}, "names that are str, got 1"),
        ({"prefixes": {"a": PrefixEncoder("x")}}, r"prefixes\['a'\] is .* not fitted"),
        ({"backbone": 3}, "'backbone' parameter .* Got 3"),
        ({"revision": 3}, "'revision' parameter .* Got 3"),
        ({"pooling": "sum"}, "'pooling' parameter .* Got 'sum'"),
        ({"pooled_layers": 0}, "'pooled_layers' parameter .* Got 0"),
        ({"pooled_layers": 4}, "pooled_layers must be at most the 3 layers .* got 4"),
        ({"max_length": 2}, "'max_length' parameter .* Got 2"),
        ({"max_length": 81}, "max_length must lie between .* got 81"),
        ({"batch_tokens": -1}, "'batch_tokens' parameter .* Got -1"),
        ({"on_truncate": "x"}, "'on_truncate' parameter .* Got 'x'"),
        ({"device": "nowhere"}, "device must be .* got 'nowhere'"),
        ({"dtype": "int8"}, "'dtype' parameter .* Got 'int8'"),
        ({"verbose": "x"}, "'verbose' parameter .* Got 'x'"),
    ],
)
def test_invalid_parameters_are_named(bank, params, message):
    with pytest.raises(ValueError, match=message):
        bank.set_params(**params).transform(TEXTS)


def test_backbone_may_be_a_path(tiny, prefixes, tmp_path):
    bank = PrefixBank(prefixes, backbone=Path(tiny()), **CPU)
    expected = PrefixBank(prefixes, **CPU).transform(TEXTS)
    bank.save(tmp_path / "bank")
    loaded = PrefixBank.load(tmp_path / "bank", **CPU)
    assert loaded.backbone == tiny()  # found by its fingerprint
    moved = PrefixBank.load(tmp_path / "bank", backbone=Path(tiny()), **CPU)
    pickled = pickle.loads(pickle.dumps(bank))
    assert bank.backbone == moved.backbone == pickled.backbone == Path(tiny())
    for same in (bank, loaded, moved, pickled, clone(bank)):
        np.testing.assert_array_equal(same.transform(TEXTS), expected)
        assert same.combination().backbone == tiny()
    empty = PrefixBank({}, backbone=Path(tiny()), **CPU)
    empty.save(tmp_path / "empty")
    loaded = PrefixBank.load(tmp_path / "empty", backbone=tiny(), **CPU)
    np.testing.assert_array_equal(loaded.transform(TEXTS), empty.transform(TEXTS))


@pytest.mark.parametrize("X", [["a", None], "a", [b"a"]])
def test_invalid_texts_are_refused_in_fit_and_transform(bank, X):
    for method in (bank.fit, bank.transform):
        with pytest.raises(ValueError, match="X"):
            method(X)


def test_no_rows_and_truncated_texts(bank):
    assert bank.transform([]).shape == (0, 32)
    with pytest.warns(UserWarning, match="1 of 3 texts are longer than max_length=64"):
        bank.transform(["x" * 99, "y", "y"])
    with pytest.raises(ValueError, match="1 of 1"):
        bank.set_params(on_truncate="raise").transform(["x" * 99])


def test_largest_max_length_of_the_prefixes_is_used(tiny, random_prefix):
    prefixes = {"a": random_prefix(tiny(), max_length=16), "b": random_prefix(tiny(), seed=1)}
    bank = PrefixBank(prefixes, on_truncate="raise", **CPU)
    bank.transform(["x" * 60])
    with pytest.raises(ValueError, match="max_length=64"):
        bank.transform(["x" * 70])
    with pytest.raises(ValueError, match="max_length=16"):
        bank.set_params(max_length=16).transform(["x" * 60])


def test_fit_and_clone_load_no_backbone(bank, prefixes, fresh_backbones):
    assert bank.fit(TEXTS) is bank
    copy = clone(bank)
    assert copy["a"] is prefixes["a"]
    assert release_backbones() == 0
    np.testing.assert_array_equal(copy.transform(TEXTS), bank.fit_transform(TEXTS))


def test_clone_keeps_prefixes_of_fitted_encoders(tiny, random_prefix):
    encoder = PrefixEncoder.from_prefix(random_prefix(tiny()), **CPU)
    copy = clone(PrefixBank({"one": encoder}, **CPU))
    np.testing.assert_array_equal(copy.transform(TEXTS), encoder.transform(TEXTS))


def test_pickle_is_as_small_as_its_prefixes(bank, tmp_path):
    bank.transform(TEXTS)
    joblib.dump(bank, tmp_path / "bank.joblib")
    arrays = sum(p.keys_values.nbytes + p.head.weight.nbytes for p in bank.values())
    assert (tmp_path / "bank.joblib").stat().st_size < 1.1 * arrays + 4000
    loaded = joblib.load(tmp_path / "bank.joblib")
    np.testing.assert_array_equal(loaded.transform(TEXTS), bank.transform(TEXTS))


def test_data_frames_keep_the_index_and_have_feature_names(bank):
    frame = pd.DataFrame({"text": TEXTS}, index=range(10, 10 + len(TEXTS)))
    vectors = bank.set_output(transform="pandas").transform(frame["text"])
    assert list(vectors.index) == list(frame.index)
    assert list(vectors.columns) == list(bank.get_feature_names_out())
    assert vectors.columns[0] == "prefixbank0" and vectors.shape == (len(TEXTS), 32)
    assert set(vectors.dtypes) == {np.dtype("float32")}


def test_iterators_and_out_return_the_vectors_of_a_list(bank, tmp_path):
    expected = bank.transform(TEXTS)
    np.testing.assert_allclose(bank.transform(text for text in TEXTS), expected, atol=1e-6)
    assert bank.transform(iter([])).shape == (0, 32)
    out = np.memmap(tmp_path / "v", np.float32, "w+", shape=(len(TEXTS) + 3, 32))
    written = bank.transform(iter(TEXTS), out=out)
    assert written.shape == (len(TEXTS), 32) and np.shares_memory(written, out)
    np.testing.assert_allclose(out[: len(TEXTS)], expected, atol=1e-6)
    with pytest.raises(ValueError, match="out must be an ndarray of float32 and shape"):
        bank.transform(TEXTS, out=out)
    with pytest.raises(ValueError, match=r"X\[1\] must be a str, got None"):
        bank.transform(iter(["a", None]))


@pytest.mark.parametrize(
    ("output_dtype", "dtype", "width"),
    [("float32", "f4", 32), ("float16", "f2", 32), ("int8", "i1", 32), ("binary", "u1", 4)],
)
def test_head_learns_from_each_output_dtype(bank, output_dtype, dtype, width):
    bank.set_params(output_dtype=output_dtype)
    texts = [f"{word} {k}" for k in range(20) for word in ("joy", "bore")]
    vectors = bank.transform(texts)
    assert vectors.dtype == np.dtype(dtype) and vectors.shape == (40, width)
    assert len(bank.get_feature_names_out()) == width
    assert bank.set_output(transform="pandas").transform(texts[:2]).shape == (2, width)
    unpack = FunctionTransformer(np.unpackbits, kw_args={"axis": 1})
    steps = [unpack] * (output_dtype == "binary") + [StandardScaler(), LogisticRegression()]
    head = make_pipeline(clone(bank), *steps)
    assert head.fit(texts, [1, 0] * 20).score(texts, [1, 0] * 20) > 0.9


def test_float16_is_close_to_float32(bank):
    exact = bank.transform(TEXTS)
    rough = bank.set_params(dtype="float16").transform(TEXTS)
    assert rough.dtype == np.float32
    assert 0 < np.abs(rough - exact).max() < 0.02 * np.abs(exact).max()


def test_fit_refuses_iterators(bank):
    with pytest.raises(ValueError, match="X must be a sequence, got a generator: an iterator"):
        bank.fit_transform(text for text in TEXTS)


def test_html_shows_the_prefixes(tiny, random_prefix):
    odd = "<script>alert(1)</script>"
    prefixes = {
        "a": random_prefix(tiny(), training={"n_texts": 1234, "valid_accuracy": 0.75}),
        odd: random_prefix(tiny(), length=7, seed=1,
                           head=Head("regression", None, np.ones((1, 32)), np.ones(1))),
    }  # fmt: skip
    bank = PrefixBank(prefixes, active=["a"], weights={"a": 0.5}, combine="mean")
    shown = bank._repr_mimebundle_()["text/html"]
    assert shown.split("</table>")[0] == bank._repr_html_().split("</table>")[0]
    for part in (
        "1 of 2 prefixes active, combined by mean, on " + tiny(),
        "<td>a</td><td>yes</td><td>0.5</td><td>classification, 2 classes</td><td>5</td>",
        "<td>1,234</td><td>accuracy 0.750</td>",
        "<td>no</td><td></td><td>regression</td><td>7</td>",
    ):
        assert part in shown
    assert odd not in shown and "&lt;script&gt;" in shown
    assert "PrefixBank" in shown  # in the table of scikit-learn
    wrong = PrefixBank(prefixes, active=["b"])
    assert "active has &#x27;b&#x27;" in wrong._repr_html_()
    assert "prefixes active" in PrefixBank({}, backbone=tiny())._repr_html_()
