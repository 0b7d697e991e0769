"""What embed_dataset writes, what it reads, and what it refuses."""

import pickle
import warnings

import numpy as np
import pytest
from backend_checks import CPU, read_vectors
from datasets import ClassLabel, Dataset, Features, IterableDataset, Value, load_dataset

from prefixembed import EmbeddedCorpus, PrefixBank, PrefixEncoder, corpus, embed_dataset

TEXTS = [f"{'a film of joy '[: k % 13]}{k}" for k in range(53)]
PART = "part-{:06d}.parquet".format


@pytest.fixture(autouse=True)
def own_datasets_cache(tmp_path, monkeypatch):
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", str(tmp_path / "hf"))


@pytest.fixture
def bank(tiny, random_prefix):
    return PrefixBank({"a": random_prefix(tiny())}, **CPU)


@pytest.fixture
def rows():
    features = Features(
        {"text": Value("string"), "label": ClassLabel(names=["no", "yes"]), "n": Value("int64")}
    )
    data = {"text": TEXTS, "label": [k % 2 for k in range(53)], "n": list(range(53))}
    return Dataset.from_dict(data, features=features)


def stream(*values):
    return IterableDataset.from_generator(
        lambda: ({"text": f"text {k}", "n": value} for k, value in enumerate(values))
    )


@pytest.mark.parametrize("file_format", ["parquet", "arrow"])
def test_files_hold_all_columns_and_the_vectors_of_transform(file_format, bank, rows, tmp_path):
    out = tmp_path / "out"
    done = embed_dataset(bank, rows, "text", out, shard_size=20, file_format=file_format)
    assert (done.n_rows, done.n_shards, done.n_made, done.n_truncated) == (53, 3, 3, 0)
    loaded = done.load()
    assert loaded.features["label"] == rows.features["label"]
    assert loaded.features["vector"].length == 32
    assert loaded.remove_columns("vector").to_dict() == rows.to_dict()
    np.testing.assert_allclose(loaded["vector"], bank.transform(TEXTS), atol=1e-5)
    # The datasets library reads the folder as it is.
    again = load_dataset(file_format, data_dir=str(out), split="train")
    assert again["vector"][:] == loaded["vector"][:]
    assert again.features == loaded.features


def test_arrow_files_are_mapped_without_a_copy(bank, rows, tmp_path):
    out = tmp_path / "out"
    done = embed_dataset(bank, rows, "text", out, shard_size=20, file_format="arrow")
    mapped = {file["filename"] for file in done.load().cache_files}
    assert mapped == {str(out / f"part-{k:06d}.arrow") for k in range(3)}


def test_result_is_pickled_by_its_public_name(bank, rows, tmp_path):
    done = embed_dataset(bank, rows, "text", tmp_path / "out")
    assert EmbeddedCorpus.__module__ == corpus.__name__ == "prefixembed.corpus"
    assert pickle.loads(pickle.dumps(done)) == done


@pytest.mark.parametrize("kind", ["parquet", "csv", "jsonl", "iterable", "pattern", "list", "view"])
def test_all_sources_of_equal_rows_give_equal_vectors(kind, bank, rows, tmp_path):
    halves = [rows.select(range(30)), rows.select(range(30, 53))]
    for k, half in enumerate(halves):
        half.to_parquet(tmp_path / f"{k}.parquet")
    rows.to_csv(tmp_path / "rows.csv")
    rows.to_json(tmp_path / "rows.jsonl")
    rows.to_parquet(tmp_path / "rows.parquet")
    source = {
        "parquet": tmp_path / "rows.parquet",
        "csv": str(tmp_path / "rows.csv"),
        "jsonl": tmp_path / "rows.jsonl",
        "iterable": IterableDataset.from_generator(lambda: ({"text": text} for text in TEXTS)),
        "pattern": str(tmp_path / "[01].parquet"),
        "list": [tmp_path / "0.parquet", tmp_path / "1.parquet"],
        "view": rows.select(range(52, -1, -1)).select(range(52, -1, -1)),
    }[kind]
    done = embed_dataset(bank, source, "text", tmp_path / "out", shard_size=25)
    assert done.n_rows == 53
    if kind not in ("pattern", "list"):  # a shard ends where a file of the source ends
        assert done.n_shards == 3
    np.testing.assert_allclose(read_vectors(tmp_path / "out"), bank.transform(TEXTS), atol=1e-5)


def test_all_files_of_a_stream_have_one_schema(bank, tmp_path):
    for k, values in enumerate([(1.5, 2), (1, None), (1, 2.0)]):
        done = embed_dataset(bank, stream(*values), "text", tmp_path / str(k), shard_size=1)
        assert done.load()["n"][:] == list(values)
    for k, (values, message) in enumerate(
        [
            ((1, 2.5), r"column 'n' has type double in rows 1 to 1, but int64 in earlier rows"),
            ((None, "a"), r"column 'n' has type string in rows 1 to 1, but null in earlier rows"),
        ]
    ):
        with pytest.raises(ValueError, match=message):
            embed_dataset(bank, stream(*values), "text", tmp_path / f"no {k}", shard_size=1)
    # The error proposes features.
    features = Features({"text": Value("string"), "n": Value("string")})
    typed = stream(None, "a").cast(features)
    done = embed_dataset(bank, typed, "text", tmp_path / "typed", shard_size=1)
    assert done.load()["n"][:] == [None, "a"]
    with pytest.raises(ValueError, match=r"other settings: types is .*'n': 'string'} there"):
        embed_dataset(bank, stream(1, 2), "text", tmp_path / "typed", shard_size=1)


def test_pairs_words_and_output_dtypes(tiny, tmp_path):
    pairs = Dataset.from_dict({"q": TEXTS[:9], "a": TEXTS[9:18]})
    for reading in ("joint", "apart"):
        bank = PrefixBank({}, backbone=tiny(), pairs=reading, **CPU)
        embed_dataset(bank, pairs, ["q", "a"], tmp_path / reading, shard_size=4)
        expected = bank.transform(list(zip(TEXTS[:9], TEXTS[9:18], strict=True)))
        np.testing.assert_allclose(read_vectors(tmp_path / reading), expected, atol=1e-5)
    sentences = [["a", "film"], ["dull"], ["of", "joy", "!"]]
    bank = PrefixBank({}, backbone=tiny(), output="words", **CPU)
    done = embed_dataset(
        bank, Dataset.from_dict({"w": sentences}), "w", tmp_path / "words", shard_size=2
    )
    vectors = done.load()["vector"][:]
    assert [len(some) for some in vectors] == [2, 1, 3]
    np.testing.assert_allclose(np.concatenate(vectors), bank.transform(sentences), atol=1e-5)
    for dtype in ("float16", "int8", "binary"):
        bank = PrefixBank({}, backbone=tiny(), output_dtype=dtype, **CPU)
        embed_dataset(bank, pairs, "q", tmp_path / dtype)
        expected = bank.transform(TEXTS[:9])
        found = read_vectors(tmp_path / dtype)
        assert found.dtype == expected.dtype
        np.testing.assert_array_equal(found, expected)


def test_output_container_and_cache_of_the_encoder_are_left_alone(bank, rows, tmp_path):
    bank.fit(TEXTS).set_output(transform="pandas")
    bank.set_params(cache=str(tmp_path / "vectors.db"))
    embed_dataset(bank, rows, "text", tmp_path / "out")
    assert not (tmp_path / "vectors.db").exists()
    assert hasattr(bank.transform(["a"]), "columns")


def test_an_encoder_gives_the_vectors_of_its_bank(tiny, rows, tmp_path):
    encoder = PrefixEncoder(tiny(), max_steps=1, random_state=0, **CPU)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        encoder.fit(TEXTS[:8], [0, 1] * 4)
    embed_dataset(encoder, rows, "text", tmp_path / "out")
    np.testing.assert_allclose(read_vectors(tmp_path / "out"), encoder.transform(TEXTS), atol=1e-5)


def test_truncated_texts_are_counted_over_the_corpus(bank, tmp_path):
    long = Dataset.from_dict({"text": ["a", "x" * 200, "b", "y" * 99, "c", "z" * 70]})
    for n_made in (3, 0):  # the files keep the count
        with pytest.warns(UserWarning, match="3 of 6 texts are longer than max_length=64") as w:
            done = embed_dataset(bank, long, "text", tmp_path / "out", shard_size=2)
        assert len(w) == 1
        assert (done.n_made, done.n_truncated) == (n_made, 3)
    bank.set_params(on_truncate="ignore")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert embed_dataset(bank, long, "text", tmp_path / "two").n_truncated == 3
        bank.set_params(on_truncate="window")
        assert embed_dataset(bank, long, "text", tmp_path / "three").n_truncated == 0
    bank.set_params(on_truncate="raise")
    with pytest.raises(ValueError, match=r"on_truncate='raise'.*\(rows 0 to 1 of the dataset\)"):
        embed_dataset(bank, long, "text", tmp_path / "four", shard_size=2)
    with pytest.raises(ValueError, match=r"3 of 6 texts .*on_truncate='raise'"):
        embed_dataset(bank, long, "text", tmp_path / "two")  # which holds truncated texts
    # Outside embed_dataset, each call warns.
    with pytest.warns(UserWarning, match="1 of 1"):
        bank.set_params(on_truncate="warn").transform(["x" * 99])


def test_error_names_the_row_that_is_not_a_text(bank, tmp_path):
    texts = [*TEXTS[:30], None, *TEXTS[30:]]
    with pytest.raises(ValueError, match=r"dataset\['text'\]\[30\] must be a str, got None"):
        embed_dataset(
            bank, Dataset.from_dict({"text": texts}), "text", tmp_path / "out", shard_size=20
        )
    assert (tmp_path / "out" / PART(0)).exists(), "finished shards are kept"
    pairs = Dataset.from_dict({"q": ["a", "b"], "a": ["c", None]})
    with pytest.raises(
        ValueError, match=r"dataset\[\['q', 'a'\]\]\[1\]\[1\] must be a str, got None"
    ):
        embed_dataset(bank, pairs, ["q", "a"], tmp_path / "pairs", shard_size=1)
    for odd in ([b"a"], [1.5], [float("nan")]):
        with pytest.raises(ValueError, match=r"dataset\['text'\]\[0\] must be a str"):
            embed_dataset(bank, Dataset.from_dict({"text": odd}), "text", tmp_path / repr(odd))
    words = Dataset.from_dict({"w": [["a"], ["b", None]]})
    bank.set_params(output="words")
    with pytest.raises(ValueError, match=r"dataset\['w'\]\[1\]\[1\] must be a str, got None"):
        embed_dataset(bank, words, "w", tmp_path / "words", shard_size=1)


def test_error_names_file_and_row(bank, tmp_path):
    # The first file ends within a shard.
    for k, texts in enumerate([TEXTS[:5], [*TEXTS[5:8], None]]):
        Dataset.from_dict({"text": texts}).to_parquet(tmp_path / f"{k}.parquet")
    with pytest.raises(ValueError, match=r"1\.parquet'\['text'\]\[3\] must be a str, got None"):
        embed_dataset(bank, str(tmp_path / "*.parquet"), "text", tmp_path / "out", shard_size=4)


def test_wrong_arguments_are_named(bank, rows, tmp_path, tiny):
    out = tmp_path / "out"
    for arguments, message in [
        (
            (bank, rows, "txt", out),
            r"column must be one of \['text', 'label', 'n'\] in dataset, got 'txt'",
        ),
        ((bank, rows, ["a", "b", "c"], out), "column must be one name, or two names"),
        ((bank, ["missing.csv"], "text", out), "no file matches 'missing.csv'"),
        ((bank, TEXTS[0].encode(), "text", out), "dataset must be .* got bytes"),
        ((bank, {"text": TEXTS}, "text", out), "dataset must be .* got dict"),
        ((bank, rows.select([]), "text", out), "dataset has no rows"),
        ((bank, tiny(), "text", out), "dataset must not be a folder"),
        (("bank", rows, "text", out), "'encoder' parameter"),
    ]:
        with pytest.raises((ValueError, FileNotFoundError), match=message):
            embed_dataset(*arguments)
    with pytest.raises(ValueError, match="'shard_size' parameter .* Got 0"):
        embed_dataset(bank, rows, "text", out, shard_size=0)
    with pytest.raises(ValueError, match="vector_column='n' must not be a column"):
        embed_dataset(bank, rows, "text", tmp_path / "n", vector_column="n")
    words = PrefixBank({}, backbone=tiny(), output="words", **CPU)
    with pytest.raises(ValueError, match="column must be one name if output is 'words'"):
        embed_dataset(words, rows, ["text", "n"], out)
    with pytest.raises(Exception, match="not fitted"):
        embed_dataset(PrefixEncoder(tiny()), rows, "text", out)
