"""The bank that comes with the library."""

import re

import numpy as np
import pytest

from prefixembed import PrefixBank, PrefixEncoder
from prefixembed.tasks import demo_backbone, demo_bank, load_docstring_task
from prefixembed.tasks.ready import FOLDER

NAMES = ["sst2", "qnli", "sick", "cola", "stsb"]


@pytest.fixture(scope="module")
def bank():
    return demo_bank(dtype="float32", device="cpu", cache=None)


def test_prefixes_fit_the_demo_backbone_and_fill_at_most_three_megabytes(bank):
    assert list(bank) == NAMES
    assert bank.load_backbone().fingerprint == bank["sst2"].fingerprint
    assert sum(path.stat().st_size for path in FOLDER.rglob("*") if path.is_file()) < 3_000_000


def test_vectors_differ_from_those_of_the_backbone(bank):
    texts = ["A film with a heart.", "Two hours that I want back."]
    bare = PrefixBank({}, backbone=demo_backbone(), dtype="float32", device="cpu", cache=None)
    vectors, plain = bank.transform(texts), bare.transform(texts)
    assert vectors.shape == plain.shape == (2, 384)
    assert 0.05 < np.linalg.norm(vectors - plain) / np.linalg.norm(plain) < 1
    np.testing.assert_allclose(bank.set_params(active=[]).transform(texts), plain, atol=1e-6)
    bank.set_params(active=None)


def test_heads_know_their_tasks(bank):
    reviews = ["a warm and funny film", "a dull , lifeless mess", "a joy", "what a waste of time"]
    params = {"dtype": "float32", "device": "cpu", "cache": None, "backbone": demo_backbone()}
    encoder = PrefixEncoder.from_prefix(bank["sst2"], **params)
    assert encoder.predict(reviews).tolist() == [1, 0, 1, 0]
    pairs = [("A man is playing a guitar.", "A man plays the guitar.")]
    pairs += [("A man is playing a guitar.", "The stock market fell.")]
    close, far = PrefixEncoder.from_prefix(bank["stsb"], **params).predict(pairs)
    assert close > 3 > far


def test_prefixes_are_silent_on_texts_of_other_kinds(bank):
    # Docstrings belong to none of the five tasks.
    texts = list(load_docstring_task("package").X_test[:64])
    bare = PrefixBank({}, backbone=demo_backbone(), dtype="float32", device="cpu", cache=None)
    plain = bare.transform(texts)
    reviews = [f"{a} , {b} and {a}" for a in ("moving", "tedious") for b in ("clever", "lame")]
    moved = np.linalg.norm(bank.transform(texts) - plain) / np.linalg.norm(plain)
    plain_reviews = bare.transform(reviews)
    moved_reviews = np.linalg.norm(bank.transform(reviews) - plain_reviews)
    assert moved < moved_reviews / np.linalg.norm(plain_reviews)


def test_card_names_each_prefix_by_its_digest(bank):
    card = (FOLDER / "README.md").read_text(encoding="utf-8")
    for name in NAMES:
        (row,) = re.findall(rf"^\| {name} \|.*$", card, flags=re.M)
        assert bank[name].digest[:16] in row
        assert f"{bank[name].training['n_texts']:,}" in row
    assert bank["sst2"].backbone == "all-MiniLM-L6-v2"
