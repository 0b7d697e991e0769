import json
import os
import signal
import subprocess
import sys
import threading
import time
import tracemalloc
import warnings

import joblib
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from datasets import ClassLabel, Dataset, Features, IterableDataset, Value, load_dataset

from prefixembed import (
    MultiTaskEncoder,
    PrefixBank,
    PrefixEncoder,
    __version__,
    backbone,
    corpus,
    embed_dataset,
)
from prefixembed import multitask as _multitask
from prefixembed.corpus.shards import DIGESTS, look_at, pack

CPU = {"device": "cpu", "dtype": "float32", "max_length": 64}
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


def read(folder, column="vector"):
    files = sorted(folder.glob("part-*.parquet"))
    return np.concatenate([np.stack(pq.read_table(f)[column].to_numpy()) for f in files])


@pytest.mark.parametrize("kind", ["parquet", "arrow"])
def test_rows_come_back_with_the_vectors_of_transform(kind, bank, rows, tmp_path):
    done = embed_dataset(bank, rows, "text", tmp_path / "out", shard_size=20, file_format=kind)
    assert (done.n_rows, done.n_shards, done.n_made, done.n_truncated) == (53, 3, 3, 0)
    loaded = done.load()
    assert loaded.features["label"] == rows.features["label"]
    assert loaded.features["vector"].length == 32
    assert loaded.remove_columns("vector").to_dict() == rows.to_dict()
    np.testing.assert_allclose(loaded["vector"], bank.transform(TEXTS), atol=1e-5)
    # As the docs say, and for readers that know nothing of this library.
    again = load_dataset(kind, data_dir=str(tmp_path / "out"), split="train")
    assert again["vector"][:] == loaded["vector"][:]
    assert again.features == loaded.features


def test_arrow_files_are_whole_and_mapped_as_they_are(bank, rows, tmp_path, encoded):
    out = tmp_path / "out"
    done = embed_dataset(bank, rows, "text", out, shard_size=20, file_format="arrow")
    used = {file["filename"] for file in done.load().cache_files}
    assert used == {str(out / f"part-{k:06d}.arrow") for k in range(3)}
    encoded.clear()
    path = out / "part-000001.arrow"
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    with pytest.warns(UserWarning, match=r"part-000001.arrow was damaged, and was made again"):
        embed_dataset(bank, rows, "text", out, shard_size=20, file_format="arrow")
    assert len(encoded) == 20
    with pytest.raises(ValueError, match="file_format 'arrow' there, 'parquet' here"):
        embed_dataset(bank, rows, "text", out, shard_size=20)
    with pytest.raises(ValueError, match="1 files beyond the 2 of this dataset"):
        embed_dataset(bank, rows.select(range(40)), "text", out, shard_size=20, file_format="arrow")


@pytest.mark.parametrize("kind", ["parquet", "csv", "jsonl", "iterable", "pattern", "list", "view"])
def test_every_source_gives_the_same(kind, bank, rows, tmp_path):
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
    if kind not in ("pattern", "list"):  # whose files end within a shard
        assert done.n_shards == 3
    np.testing.assert_allclose(read(tmp_path / "out"), bank.transform(TEXTS), atol=1e-5)


def test_what_is_there_is_not_made_again(bank, rows, tmp_path, encoded):
    out = tmp_path / "out"
    embed_dataset(bank, rows, "text", out, shard_size=20)
    before = read(out)
    (out / PART(1)).unlink()
    (out / ".part-000002.parquet.abc").write_bytes(b"left by a kill")
    encoded.clear()
    done = embed_dataset(bank, rows, "text", out, shard_size=20)
    assert done.n_made == 1
    assert len(encoded) == 20
    np.testing.assert_array_equal(read(out), before)
    assert not list(out.glob(".part-*"))


@pytest.mark.parametrize("damage", ["cut", "zeros", "flip", "other"])
def test_a_damaged_file_is_made_again(damage, bank, rows, tmp_path):
    out = tmp_path / "out"
    embed_dataset(bank, rows, "text", out, shard_size=20)
    before = read(out)
    path = out / PART(1)
    content = bytearray(path.read_bytes())
    if damage == "cut":
        content = content[: len(content) // 2]
    elif damage == "zeros":
        content = bytearray(len(content))
    elif damage == "flip":
        content[len(content) // 3] ^= 1
    # The user hears of it, whoever has found it.
    for n_jobs in (1, 2):
        path.write_bytes(content)
        if damage == "other":
            rows.to_parquet(path)
        with pytest.warns(UserWarning, match=r"part-000001.parquet was damaged, and was made"):
            done = embed_dataset(bank, rows, "text", out, shard_size=20, n_jobs=n_jobs)
        assert done.n_made == 1
        np.testing.assert_allclose(read(out), before, atol=1e-6)


def test_a_change_of_any_byte_is_damage(bank, rows, tmp_path):
    embed_dataset(bank, rows, "text", tmp_path / "out")
    path = tmp_path / "out" / PART(0)
    content = path.read_bytes()
    assert look_at(path) == "whole"
    for k in range(0, len(content), 7):  # data, and the footer, which names columns
        path.write_bytes(content[:k] + bytes([content[k] ^ 1 << k % 8]) + content[k + 1 :])
        assert look_at(path) == "damaged"
    path.write_bytes(content)
    assert look_at(path) == "whole"
    (digest,) = (tmp_path / "out" / DIGESTS).iterdir()
    digest.write_text(digest.read_text()[:-1])
    assert look_at(path) == "damaged"


def test_a_kill_between_a_file_and_its_digest_is_no_damage(bank, rows, tmp_path):
    out = tmp_path / "out"
    embed_dataset(bank, rows, "text", out, shard_size=20)
    (out / DIGESTS / f"{PART(1)}.sha256").unlink()
    (out / DIGESTS / f".{PART(1)}.sha256.abc").write_bytes(b"left by a kill")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert embed_dataset(bank, rows, "text", out, shard_size=20).n_made == 1
    assert len(list((out / DIGESTS).iterdir())) == 3


def test_another_encoder_or_other_settings_are_refused(tiny, random_prefix, bank, rows, tmp_path):
    out = tmp_path / "out"
    embed_dataset(bank, rows, "text", out, shard_size=20)
    other = PrefixBank({"a": random_prefix(tiny(), seed=1)}, **CPU)
    with pytest.raises(ValueError, match="made otherwise: prefixes"):
        embed_dataset(other, rows, "text", out, shard_size=20)
    with pytest.raises(ValueError, match="shard_size 20 there, 10 here"):
        embed_dataset(bank, rows, "text", out, shard_size=10)
    bank.set_params(pooling="cls")
    with pytest.raises(ValueError, match="pooling 'mean' there, 'cls' here"):
        embed_dataset(bank, rows, "text", out, shard_size=20)


def test_other_texts_are_refused(bank, rows, tmp_path):
    out = tmp_path / "out"
    embed_dataset(bank, rows, "text", out, shard_size=20)
    changed = rows.to_dict()
    changed["text"][25] = "other"
    with pytest.raises(ValueError, match=r"part-000001.parquet was made of other texts than rows"):
        embed_dataset(bank, Dataset.from_dict(changed), "text", out, shard_size=20)
    with pytest.raises(ValueError, match="1 files beyond the 2 of this dataset"):
        embed_dataset(bank, rows.select(range(40)), "text", out, shard_size=20)


def test_pairs_words_and_dtypes(tiny, random_prefix, tmp_path):
    pairs = Dataset.from_dict({"q": TEXTS[:9], "a": TEXTS[9:18]})
    for pairs_are in ("joint", "apart"):
        bank = PrefixBank({}, backbone=tiny(), pairs=pairs_are, **CPU)
        out = tmp_path / pairs_are
        embed_dataset(bank, pairs, ["q", "a"], out, shard_size=4)
        expected = bank.transform(list(zip(TEXTS[:9], TEXTS[9:18], strict=True)))
        np.testing.assert_allclose(read(out), expected, atol=1e-5)
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
        found = read(tmp_path / dtype)
        assert found.dtype == expected.dtype
        np.testing.assert_array_equal(found, expected)


def test_an_encoder_in_pandas_mode_and_its_cache_stay_as_they_are(bank, rows, tmp_path):
    bank.fit(TEXTS).set_output(transform="pandas")
    bank.set_params(cache=str(tmp_path / "vectors.db"))
    embed_dataset(bank, rows, "text", tmp_path / "out")
    assert not (tmp_path / "vectors.db").exists()
    assert hasattr(bank.transform(["a"]), "columns")


def test_texts_cut_short_are_counted_over_the_corpus(bank, tmp_path):
    long = Dataset.from_dict({"text": ["a", "x" * 200, "b", "y" * 99, "c", "z" * 70]})
    for made in (3, 0):  # and remembered
        with pytest.warns(UserWarning, match="3 of 6 texts are longer than max_length=64") as w:
            done = embed_dataset(bank, long, "text", tmp_path / "out", shard_size=2)
        assert len(w) == 1
        assert (done.n_made, done.n_truncated) == (made, 3)
    bank.set_params(on_truncate="ignore")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert embed_dataset(bank, long, "text", tmp_path / "two").n_truncated == 3
        bank.set_params(on_truncate="window")
        assert embed_dataset(bank, long, "text", tmp_path / "three").n_truncated == 0
    bank.set_params(on_truncate="raise")
    with pytest.raises(ValueError, match=r"on_truncate='raise'.*\(rows 0 to 1 of the dataset\)"):
        embed_dataset(bank, long, "text", tmp_path / "four", shard_size=2)
    # Outside a corpus each call warns as ever.
    with pytest.warns(UserWarning, match="1 of 1"):
        bank.set_params(on_truncate="warn").transform(["x" * 99])


def test_what_is_no_text_is_found_by_its_row(bank, tmp_path):
    data = Dataset.from_dict({"text": [*TEXTS[:30], None, *TEXTS[30:]]})
    with pytest.raises(ValueError, match=r"dataset\['text'\]\[30\] must be a str, got None"):
        embed_dataset(bank, data, "text", tmp_path / "out", shard_size=20)
    assert (tmp_path / "out" / PART(0)).exists(), "what was done is kept"
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


def test_wrong_arguments_are_named(bank, rows, tmp_path, tiny):
    out = tmp_path / "out"
    for arguments, message in [
        ((bank, rows, "txt", out), r"column must be one of \['text', 'label', 'n'\], got 'txt'"),
        ((bank, rows, ["a", "b", "c"], out), "column must be a name, or two"),
        ((bank, ["no such file"], "text", out), "there is no file 'no such file'"),
        ((bank, TEXTS[0].encode(), "text", out), "dataset must be .* got bytes"),
        ((bank, {"text": TEXTS}, "text", out), "dataset must be .* got dict"),
        ((bank, rows.select([]), "text", out), "dataset has no rows"),
        ((bank, tiny(), "text", out), "files must be of one kind"),
        (("bank", rows, "text", out), "'encoder' parameter"),
    ]:
        with pytest.raises((ValueError, FileNotFoundError), match=message):
            embed_dataset(*arguments)
    with pytest.raises(ValueError, match="'shard_size' parameter .* Got 0"):
        embed_dataset(bank, rows, "text", out, shard_size=0)
    with pytest.raises(ValueError, match="vector_column is 'n'"):
        embed_dataset(bank, rows, "text", tmp_path / "n", vector_column="n")
    with pytest.raises(Exception, match="not fitted"):
        embed_dataset(PrefixEncoder(tiny()), rows, "text", out)
    foreign = tmp_path / "foreign"
    foreign.mkdir()
    rows.to_parquet(foreign / PART(0))
    with pytest.raises(ValueError, match=r"holds files of something else: no .corpus.json"):
        embed_dataset(bank, rows, "text", foreign)
    embed_dataset(bank, rows, "text", out)
    (out / ".corpus.json").write_text("{")
    with pytest.raises(ValueError, match=r"corpus.json is damaged"):
        embed_dataset(bank, rows, "text", out)


@pytest.mark.parametrize("backend", ["loky", "threading", "multiprocessing"])
def test_engines_give_the_same(backend, bank, rows, tmp_path):
    embed_dataset(bank, rows, "text", tmp_path / "one", shard_size=10)
    with joblib.parallel_config(backend=backend, n_jobs=2):
        done = embed_dataset(bank, rows, "text", tmp_path / "two", shard_size=10)
    assert done.n_made == 6
    np.testing.assert_allclose(read(tmp_path / "two"), read(tmp_path / "one"), atol=1e-6)


def test_two_calls_do_not_work_in_one_folder(bank, rows, tmp_path):
    refused, waiting, let_go = [], threading.Event(), threading.Event()

    def slowly():
        for text in TEXTS[:4]:
            yield {"text": text}
        waiting.set()
        assert let_go.wait(60)

    def first():
        source = IterableDataset.from_generator(slowly)
        embed_dataset(bank, source, "text", tmp_path / "out", shard_size=2)

    thread = threading.Thread(target=first)
    thread.start()
    assert waiting.wait(60)
    try:
        embed_dataset(bank, rows, "text", tmp_path / "out")
    except ValueError as error:
        refused.append(str(error))
    let_go.set()
    thread.join()
    assert "another embed_dataset is at work" in refused[0]


class Packed(bytes):
    """Rows on their way, counted."""

    live = 0

    def __init__(self, _):
        Packed.live += 1

    def __del__(self):
        Packed.live -= 1

    def __reduce__(self):
        return bytes, (bytes(self),)


@pytest.mark.parametrize("backend", ["sequential", "threading", "loky"])
def test_few_shards_are_held(backend, bank, tmp_path, monkeypatch):
    def lines():
        for k in range(1000):
            yield {"text": f"text {k % 7}"}
            most.append(Packed.live)

    monkeypatch.setattr(corpus, "pack", lambda table: Packed(pack(table)))
    source = IterableDataset.from_generator(lines)
    for n_made in (200, 0):  # what is there already goes by fast
        most = []
        with joblib.parallel_config(backend=backend, n_jobs=2):
            done = embed_dataset(bank, source, "text", tmp_path / "out", shard_size=5)
        assert (done.n_shards, done.n_made) == (200, n_made)
        assert max(most) <= 10


def test_memory_does_not_grow_with_rows(bank, tmp_path):
    def peak(n_rows):
        of_arrow = []

        def lines():
            for k in range(n_rows):
                of_arrow.append(pa.total_allocated_bytes())
                yield {"text": f"text {k} " + "x" * 1000}

        source = IterableDataset.from_generator(lines)
        tracemalloc.start()
        try:
            embed_dataset(bank, source, "text", tmp_path / str(n_rows), shard_size=100)
            return tracemalloc.get_traced_memory()[1] + max(of_arrow)
        finally:
            tracemalloc.stop()

    bank.set_params(on_truncate="ignore")
    peak(100)  # what is made once
    few, many = peak(300), peak(2400)
    assert many < 1.3 * few
    assert few > 100 * 1000  # a shard of texts, at least, is seen


def stream(*values):
    return IterableDataset.from_generator(
        lambda: ({"text": f"text {k}", "n": value} for k, value in enumerate(values))
    )


def test_files_of_a_stream_have_one_schema(bank, tmp_path):
    for k, values in enumerate([(1.5, 2), (1, None), (1, 2.0)]):
        done = embed_dataset(bank, stream(*values), "text", tmp_path / str(k), shard_size=1)
        assert done.load()["n"][:] == list(values)
    for k, (values, message) in enumerate(
        [
            ((1, 2.5), r"column 'n' is double in rows 1 to 1 and int64 before"),
            ((None, "a"), r"column 'n' is string in rows 1 to 1 and null before"),
        ]
    ):
        with pytest.raises(ValueError, match=message):
            embed_dataset(bank, stream(*values), "text", tmp_path / f"no {k}", shard_size=1)
    # As the error says.
    features = Features({"text": Value("string"), "n": Value("string")})
    typed = stream(None, "a").cast(features)
    done = embed_dataset(bank, typed, "text", tmp_path / "typed", shard_size=1)
    assert done.load()["n"][:] == [None, "a"]
    with pytest.raises(ValueError, match=r"made otherwise: types .*'n': 'string'"):
        embed_dataset(bank, stream(1, 2), "text", tmp_path / "typed", shard_size=1)


@pytest.fixture
def multitask(tiny):
    encoder = MultiTaskEncoder(tiny(), max_epochs=1, random_state=0, **CPU)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return encoder.fit({"a": (TEXTS[:8], [0, 1] * 4)})


@pytest.mark.parametrize("backend", ["sequential", "multiprocessing"])
def test_a_fine_tuned_backbone_is_loaded_once_a_process(
    backend, multitask, rows, tmp_path, monkeypatch
):
    def read_and_tell(*args):
        with open(tmp_path / "loads", "a") as log:
            log.write(f"{os.getpid()}\n")
        return backbone.read_backbone.__wrapped__(*args)

    read_and_tell.__wrapped__ = backbone.read_backbone
    for module in (backbone, _multitask):
        monkeypatch.setattr(module, "read_backbone", read_and_tell)
    out = tmp_path / "out"
    with joblib.parallel_config(backend=backend, n_jobs=2):
        embed_dataset(multitask, rows, "text", out, shard_size=2)
    loads = (tmp_path / "loads").read_text().split()
    assert len(loads) == len(set(loads))
    assert (str(os.getpid()) in loads) and len(loads) == (3 if backend == "multiprocessing" else 1)
    np.testing.assert_allclose(read(out), multitask.transform(TEXTS), atol=1e-5)
    assert not list(out.glob(".backbone-*"))


WRITER = """
import sys
from datasets import Dataset
from prefixembed import PrefixBank, Prefix, embed_dataset
bank = PrefixBank({"a": Prefix.load(sys.argv[1])}, device="cpu", dtype="float32")
rows = Dataset.from_dict({"text": [f"text {k}" for k in range(300)]})
embed_dataset(bank, rows, "text", sys.argv[2], shard_size=3)
"""


@pytest.mark.skipif(os.name == "nt", reason="SIGKILL")
def test_a_kill_at_any_moment_loses_nothing(tiny, random_prefix, tmp_path):
    prefix = random_prefix(tiny())
    prefix.save(tmp_path / "a.safetensors")
    out = tmp_path / "out"
    for n_wanted in (1, 20, 50):
        process = subprocess.Popen(
            [sys.executable, "-c", WRITER, str(tmp_path / "a.safetensors"), str(out)]
        )
        while process.poll() is None and len(list(out.glob("part-*"))) < n_wanted:
            time.sleep(0.001)
        process.send_signal(signal.SIGKILL)
        process.wait()
    n_before = len(list(out.glob("part-*")))
    assert 50 <= n_before < 100, "it was killed at work"
    bank = PrefixBank({"a": prefix}, device="cpu", dtype="float32")
    texts = [f"text {k}" for k in range(300)]
    rows = Dataset.from_dict({"text": texts})
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # a kill leaves no damaged file
        done = embed_dataset(bank, rows, "text", out, shard_size=3)
    # One more where the last kill came between a file and its digest.
    assert done.n_made in (100 - n_before, 101 - n_before)
    np.testing.assert_allclose(read(out), bank.transform(texts), atol=1e-5)
    told = json.loads((out / ".corpus.json").read_text())
    assert told["column"] == ["text"]
    assert told["fingerprint"] == prefix.fingerprint
    assert told["prefixes"] == [[prefix.digest, 1.0]]
    assert told["made_with"]["prefixembed"] == __version__
