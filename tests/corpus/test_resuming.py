"""A second call in the same folder: after a kill, after damage, or with something else."""

import json
import os
import warnings
from dataclasses import make_dataclass

import numpy as np
import pytest
from backend_checks import CPU, read_vectors
from datasets import Dataset
from helpers import kill, start_python, wait_until

from prefixembed import PrefixBank, __version__, embed_dataset
from prefixembed.cache import Representation
from prefixembed.corpus.recipe import RECIPE, check_recipe, make_recipe
from prefixembed.corpus.shards import DIGEST_FOLDER, shard_state
from prefixembed.reading import Reading

TEXTS = [f"{'a film of joy '[: k % 13]}{k}" for k in range(53)]
PART = "part-{:06d}.parquet".format


@pytest.fixture
def bank(tiny, random_prefix):
    return PrefixBank({"a": random_prefix(tiny())}, **CPU)


@pytest.fixture
def rows():
    return Dataset.from_dict({"text": TEXTS, "n": list(range(53))})


def test_only_missing_files_are_made(bank, rows, tmp_path, encoded):
    out = tmp_path / "out"
    embed_dataset(bank, rows, "text", out, shard_size=20)
    before = read_vectors(out)
    (out / PART(1)).unlink()
    (out / ".part-000002.parquet.abc").write_bytes(b"left by a kill")
    encoded.clear()
    done = embed_dataset(bank, rows, "text", out, shard_size=20)
    assert done.n_made == 1
    assert len(encoded) == 20
    np.testing.assert_array_equal(read_vectors(out), before)
    assert not list(out.glob(".part-*"))


@pytest.mark.parametrize("damage", ["cut", "zeros", "flip", "other"])
def test_damaged_file_is_made_again_with_a_warning(damage, bank, rows, tmp_path):
    out = tmp_path / "out"
    embed_dataset(bank, rows, "text", out, shard_size=20)
    before = read_vectors(out)
    path = out / PART(1)
    content = bytearray(path.read_bytes())
    if damage == "cut":
        content = content[: len(content) // 2]
    elif damage == "zeros":
        content = bytearray(len(content))
    elif damage == "flip":
        content[len(content) // 3] ^= 1
    # The warning reaches the user also if a worker has found the damage.
    for n_jobs in (1, 2):
        path.write_bytes(content)
        if damage == "other":
            rows.to_parquet(path)
        with pytest.warns(UserWarning, match=r"part-000001.parquet was damaged and has been made"):
            done = embed_dataset(bank, rows, "text", out, shard_size=20, n_jobs=n_jobs)
        assert done.n_made == 1
        np.testing.assert_allclose(read_vectors(out), before, atol=1e-6)


def test_damaged_arrow_file_is_made_again(bank, rows, tmp_path, encoded):
    out = tmp_path / "out"
    embed_dataset(bank, rows, "text", out, shard_size=20, file_format="arrow")
    encoded.clear()
    path = out / "part-000001.arrow"
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    with pytest.warns(UserWarning, match=r"part-000001.arrow was damaged and has been made again"):
        embed_dataset(bank, rows, "text", out, shard_size=20, file_format="arrow")
    assert len(encoded) == 20
    with pytest.raises(ValueError, match="1 files beyond the 2 of this dataset"):
        embed_dataset(bank, rows.select(range(40)), "text", out, shard_size=20, file_format="arrow")


def test_change_of_any_byte_is_damage(bank, rows, tmp_path):
    embed_dataset(bank, rows, "text", tmp_path / "out")
    path = tmp_path / "out" / PART(0)
    content = path.read_bytes()
    assert shard_state(path) == "intact"
    for k in range(0, len(content), 7):  # the data, and the footer with the names of columns
        path.write_bytes(content[:k] + bytes([content[k] ^ 1 << k % 8]) + content[k + 1 :])
        assert shard_state(path) == "damaged"
    path.write_bytes(content)
    assert shard_state(path) == "intact"
    (digest,) = (tmp_path / "out" / DIGEST_FOLDER).iterdir()
    digest.write_text(digest.read_text()[:-1])
    assert shard_state(path) == "damaged"


def test_kill_between_a_file_and_its_digest_is_not_damage(bank, rows, tmp_path):
    out = tmp_path / "out"
    embed_dataset(bank, rows, "text", out, shard_size=20)
    (out / DIGEST_FOLDER / f"{PART(1)}.sha256").unlink()
    (out / DIGEST_FOLDER / f".{PART(1)}.sha256.abc").write_bytes(b"left by a kill")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert embed_dataset(bank, rows, "text", out, shard_size=20).n_made == 1
    assert len(list((out / DIGEST_FOLDER).iterdir())) == 3


def test_other_encoder_or_settings_are_refused(tiny, random_prefix, bank, rows, tmp_path):
    out = tmp_path / "out"
    embed_dataset(bank, rows, "text", out, shard_size=20)
    other = PrefixBank({"a": random_prefix(tiny(), seed=1)}, **CPU)
    with pytest.raises(ValueError, match="made with other settings: prefixes is"):
        embed_dataset(other, rows, "text", out, shard_size=20)
    with pytest.raises(ValueError, match="shard_size is 20 there, 10 here"):
        embed_dataset(bank, rows, "text", out, shard_size=10)
    with pytest.raises(ValueError, match="file_format is 'parquet' there, 'arrow' here"):
        embed_dataset(bank, rows, "text", out, shard_size=20, file_format="arrow")
    bank.set_params(pooling="cls")
    with pytest.raises(ValueError, match="pooling is 'mean' there, 'cls' here"):
        embed_dataset(bank, rows, "text", out, shard_size=20)
    bank.set_params(pooling="mean", prompt="query: ")
    with pytest.raises(ValueError, match="prompt is the default there, 'query: ' here"):
        embed_dataset(bank, rows, "text", out, shard_size=20)


def test_new_field_of_a_reading_changes_the_recipe(tmp_path):
    Extended = make_dataclass("Extended", [("suffix", str, "")], bases=(Reading,), frozen=True)

    def recipe(reading):
        representation = Representation("0f", (("a1", 1.0),), "concat", reading, "float32")
        return make_recipe(representation, shard_size=20)

    plain = recipe(Reading("mean", 64))
    assert recipe(Extended("mean", 64)) == plain, "folders from before the field stay valid"
    extended = recipe(Extended("mean", 64, suffix="!"))
    assert extended == {**plain, "reading.suffix": "!"}
    check_recipe(tmp_path, plain)
    check_recipe(tmp_path, plain)
    with pytest.raises(ValueError, match="reading.suffix is the default there, '!' here"):
        check_recipe(tmp_path, extended)


def test_how_pairs_are_read_is_in_the_recipe(tiny, random_prefix, tmp_path):
    # The prefix has seen no pairs: how they are read depends on files of the backbone.
    bank = PrefixBank({"a": random_prefix(tiny())}, **CPU)
    pairs = Dataset.from_dict({"q": TEXTS[:4], "a": TEXTS[4:8]})
    embed_dataset(bank, pairs, ["q", "a"], tmp_path / "out")
    assert json.loads((tmp_path / "out" / RECIPE).read_text())["reading.pairs"] == "joint"
    with pytest.raises(ValueError, match="pairs is 'joint' there, 'apart' here"):
        embed_dataset(bank.set_params(pairs="apart"), pairs, ["q", "a"], tmp_path / "out")


def test_other_texts_are_refused(bank, rows, tmp_path):
    out = tmp_path / "out"
    embed_dataset(bank, rows, "text", out, shard_size=20)
    changed = rows.to_dict()
    changed["text"][25] = "other"
    with pytest.raises(ValueError, match=r"part-000001.parquet holds vectors of other texts than"):
        embed_dataset(bank, Dataset.from_dict(changed), "text", out, shard_size=20)
    with pytest.raises(ValueError, match="1 files beyond the 2 of this dataset"):
        embed_dataset(bank, rows.select(range(40)), "text", out, shard_size=20)


def test_folder_of_something_else_and_damaged_recipe_are_refused(bank, rows, tmp_path):
    foreign = tmp_path / "foreign"
    foreign.mkdir()
    rows.to_parquet(foreign / PART(0))
    with pytest.raises(ValueError, match=r"embed_dataset did not write: it has no .corpus.json"):
        embed_dataset(bank, rows, "text", foreign)
    out = tmp_path / "out"
    embed_dataset(bank, rows, "text", out)
    for content in ("{", "[]"):
        (out / RECIPE).write_text(content)
        with pytest.raises(ValueError, match=r"corpus.json is damaged"):
            embed_dataset(bank, rows, "text", out)


WRITER = """
import sys
from datasets import Dataset
from prefixembed import PrefixBank, Prefix, embed_dataset
prefixes = {"a": Prefix.load(sys.argv[1])}
bank = PrefixBank(prefixes, backbone=sys.argv[3], device="cpu", dtype="float32")
rows = Dataset.from_dict({"text": [f"text {k}" for k in range(300)]})
embed_dataset(bank, rows, "text", sys.argv[2], shard_size=3)
"""


@pytest.mark.skipif(os.name == "nt", reason="SIGKILL")
def test_kill_at_any_moment_loses_no_finished_file(tiny, random_prefix, tmp_path):
    prefix = random_prefix(tiny())
    prefix.save(tmp_path / "a.safetensors")
    out = tmp_path / "out"
    for n_wanted in (1, 20, 50):
        quiet = {"stdout": None, "stderr": None}
        words = [tmp_path / "a.safetensors", out, tiny()]
        process = start_python(WRITER, *words, **quiet)
        wait_until(lambda n=n_wanted: len(list(out.glob("part-*"))) >= n)
        kill(process)
        process.wait(60)
    n_before = len(list(out.glob("part-*")))
    assert 50 <= n_before < 100, "the process was killed before it was done"
    bank = PrefixBank({"a": prefix}, device="cpu", dtype="float32")
    texts = [f"text {k}" for k in range(300)]
    rows = Dataset.from_dict({"text": texts})
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # a kill leaves no damaged file
        done = embed_dataset(bank, rows, "text", out, shard_size=3)
    # One more if the last kill came between a file and its digest.
    assert done.n_made in (100 - n_before, 101 - n_before)
    np.testing.assert_allclose(read_vectors(out), bank.transform(texts), atol=1e-5)
    recipe = json.loads((out / RECIPE).read_text())
    assert recipe["column"] == ["text"]
    assert recipe["fingerprint"] == prefix.fingerprint
    assert recipe["prefixes"] == [[prefix.digest, 1.0]]
    assert recipe["made_with"]["prefixembed"] == __version__
