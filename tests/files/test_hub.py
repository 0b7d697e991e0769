"""Prefixes and banks on a local stand-in for the Hub, through the client of huggingface_hub."""

import hashlib

import numpy as np
import pytest

from prefixembed import Prefix, PrefixBank

TOKEN = "hf_" + "a" * 30


@pytest.fixture
def bank(tiny, random_prefix):
    facts = {"n_texts": 90, "valid_accuracy": 0.875, "valid_loss": 0.3}
    prefixes = {
        "stars | <b>": random_prefix(tiny(), seed=1, ffn_length=3, training=facts),
        "topic": random_prefix(tiny(), seed=2),
    }
    return PrefixBank(prefixes, combine="mean", active=["topic"], dtype="float32", device="cpu")


def file_name(prefix):
    return f"{hashlib.sha256(prefix.to_bytes()).hexdigest()}.safetensors"


def test_bank_survives_a_round_trip_through_the_hub(bank, hub):
    url = bank.push_to_hub("me/bank", token=TOKEN)
    sha, files = hub.files("me/bank")
    assert url == f"{hub.url}/me/bank/commit/{sha}"
    expected = ["README.md", "bank.json", *(file_name(prefix) for prefix in bank.values())]
    assert sorted(files) == sorted(expected)
    files["modeling.py"] = b"raise SystemExit('executed')"
    hub.fetched.clear()
    again = PrefixBank.from_pretrained("me/bank", dtype="float32", device="cpu")
    assert not {"README.md", "modeling.py"} & set(hub.fetched)  # data only
    assert list(again.items()) == list(bank.items())
    np.testing.assert_array_equal(again.transform(["a text"]), bank.transform(["a text"]))
    card = files["README.md"].decode()
    assert "| stars \\| &lt;b> | classification | 2 | 90 | accuracy 0.875 | 5 | 3 | " in card
    assert "| pooling='mean', max_length=64 | " in card
    assert "Combined by `mean`; active: topic." in card


def test_push_deletes_removed_prefixes_and_keeps_old_commits(bank, hub):
    bank.push_to_hub("me/bank", token=TOKEN)
    sha, _ = hub.files("me/bank")
    bank.remove("stars | <b>").push_to_hub("me/bank", token=TOKEN, commit_message="one less")
    left = file_name(bank["topic"])
    files = hub.files("me/bank")[1]
    assert [name for name in files if name.endswith(".safetensors")] == [left]
    assert list(PrefixBank.from_pretrained("me/bank")) == ["topic"]
    assert list(PrefixBank.from_pretrained("me/bank", sha)) == ["stars | <b>", "topic"]


def test_prefix_survives_a_round_trip_through_the_hub(tiny, random_prefix, hub):
    prefix = random_prefix(tiny())
    prefix.push_to_hub("me/p", private=True, token=TOKEN)
    assert Prefix.from_pretrained("me/p", "main") == prefix
    assert "Prefix.from_pretrained('me/p')" in hub.files("me/p")[1]["README.md"].decode()


def test_unknown_parameters_are_refused_before_the_download(bank, hub):
    bank.push_to_hub("me/bank", token=TOKEN)
    hub.fetched.clear()
    with pytest.raises(TypeError, match=r"Prefix.from_pretrained\(\) .*'device'"):
        Prefix.from_pretrained("me/bank", device="cpu")
    assert not hub.fetched
    with pytest.raises(TypeError, match="'colour'"):
        PrefixBank.from_pretrained("me/bank", colour="red")


def test_invalid_bank_creates_no_repository(bank, hub):
    with pytest.raises(ValueError, match="active .*'none'"):
        bank.set_params(active=["none"]).push_to_hub("me/bank", token=TOKEN)
    assert not hub.repos


@pytest.mark.parametrize("name", ["me/none", "no such/thing/at all"])
def test_repository_that_cannot_be_fetched_is_named(hub, name):
    with pytest.raises(OSError, match=f"'{name}' is not a folder and could not be fetched"):
        PrefixBank.from_pretrained(name)


def test_damaged_and_missing_files_on_the_hub_are_noticed(bank, hub):
    bank.push_to_hub("me/bank", token=TOKEN)
    files = hub.files("me/bank")[1]
    name = file_name(bank["topic"])
    files[name] = files[name][:-1] + bytes([files[name][-1] ^ 1])
    with pytest.raises(ValueError, match=name):
        PrefixBank.from_pretrained("me/bank")
    bank.push_to_hub("me/less", token=TOKEN)
    del hub.files("me/less")[1][name]
    with pytest.raises(FileNotFoundError, match=name):
        PrefixBank.from_pretrained("me/less")


def test_folder_is_loaded_without_the_hub_and_has_no_revisions(bank, random_prefix, tiny, tmp_path):
    bank.save(tmp_path)
    assert PrefixBank.from_pretrained(tmp_path, active=None).active is None
    with pytest.raises(ValueError, match="revision is for the Hub, but .* is a folder"):
        PrefixBank.from_pretrained(tmp_path, "main")
    random_prefix(tiny()).save(tmp_path / "prefix.safetensors")
    assert Prefix.from_pretrained(tmp_path) == random_prefix(tiny())
    with pytest.raises(OSError, match="is not a folder and could not be fetched"):
        PrefixBank.from_pretrained("me/offline")
    with pytest.raises(FileNotFoundError, match="it has no bank.json"):
        PrefixBank.from_pretrained(tmp_path.parent)
