"""Prefixes and banks on a local stand-in for the Hub, through the client of huggingface_hub."""

import hashlib

import numpy as np
import pytest
from huggingface_hub import HfApi

from prefixembed import Prefix, PrefixBank
from prefixembed._files import hub as hub_module

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
    assert sorted(set(hub.fetched)) == sorted(set(expected) - {"README.md"})  # data only
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


# What a repository of somebody's model may hold.
FOREIGN = {
    "README.md": b"# My model",
    "config.json": b"{}",
    "model.safetensors": b"weights",
    "onnx/model.safetensors": b"weights",
    f"{'0' * 64}.safetensors": b"named after a digest",
    "1_Pooling/config.json": b"{}",
    "vectors.db": b"",
}


@pytest.mark.parametrize("kind", ["bank", "prefix"])
def test_push_leaves_foreign_files_alone_and_loading_does_not_fetch_them(bank, hub, kind):
    what = bank if kind == "bank" else bank["topic"]
    hub.repos["me/model"] = [("1" * 40, dict(FOREIGN))]
    for _ in range(2):
        with pytest.warns(UserWarning, match=r"README\.md of repository 'me/model' was written or"):
            what.push_to_hub("me/model", token=TOKEN)
    if kind == "bank":
        with pytest.warns(UserWarning, match="left alone"):
            what.remove("stars | <b>").push_to_hub("me/model", token=TOKEN)
    files = hub.files("me/model")[1]
    assert {name: files.get(name) for name in FOREIGN} == FOREIGN
    own = {"bank.json", file_name(bank["topic"])} if kind == "bank" else {"prefix.safetensors"}
    assert files.keys() - FOREIGN.keys() == own
    hub.fetched.clear()
    type(what).from_pretrained("me/model")
    assert set(hub.fetched) == own


@pytest.mark.parametrize("name", ["bank.json", "prefix.safetensors"])
@pytest.mark.parametrize("content", [b"", b"{}", b"[]", b"\xff\x00", b'{"prefixes": {}}'])
def test_foreign_file_under_the_name_of_ours_is_refused(bank, hub, name, content):
    what = bank if name == "bank.json" else bank["topic"]
    hub.repos["me/odd"] = [("2" * 40, {name: content})]
    with pytest.raises(ValueError, match=f"repository 'me/odd' has a {name} that prefixembed has"):
        what.push_to_hub("me/odd", token=TOKEN)
    assert hub.files("me/odd")[1] == {name: content}


def test_own_card_is_replaced_until_somebody_edits_it(bank, hub):
    bank.push_to_hub("me/bank", token=TOKEN)
    first = hub.files("me/bank")[1]["README.md"]
    bank.set_params(combine="concat").push_to_hub("me/bank", token=TOKEN)
    files = hub.files("me/bank")[1]
    assert b"`concat`" in files["README.md"] and files["README.md"] != first
    for edited in (
        files["README.md"] + b"My words.\n",
        files["README.md"].replace(b"Prefixes of", b"My prefixes of"),
        b"",
        b"\xff",
    ):
        files["README.md"] = edited
        with pytest.warns(UserWarning, match="left alone"):
            bank.push_to_hub("me/bank", token=TOKEN)
        files = hub.files("me/bank")[1]
        assert files["README.md"] == edited


def test_commit_of_somebody_else_in_the_meantime_is_not_overwritten(bank, hub, monkeypatch):
    bank.push_to_hub("me/bank", token=TOKEN)
    parents = []
    real = HfApi.create_commit

    def create_commit(self, *args, **kwargs):
        parents.append(kwargs["parent_commit"])
        return real(self, *args, **kwargs)

    monkeypatch.setattr(HfApi, "create_commit", create_commit)
    sha, _ = hub.files("me/bank")
    bank.push_to_hub("me/bank", token=TOKEN)
    assert parents == [sha]


def test_files_of_one_commit_are_fetched(bank, hub, monkeypatch):
    # The bank is replaced between the request for its manifest and those for its prefixes.
    bank.push_to_hub("me/bank", token=TOKEN)
    real, topic = hub_module._fetch, bank["topic"]

    def fetch(*args):
        folder = real(*args)
        if len(hub.repos["me/bank"]) == 2:
            bank.remove("topic").set_params(active=None).push_to_hub("me/bank", token=TOKEN)
        return folder

    monkeypatch.setattr(hub_module, "_fetch", fetch)
    assert PrefixBank.from_pretrained("me/bank")["topic"] == topic


def test_repository_without_the_file_is_named(bank, hub):
    bank.push_to_hub("me/bank", token=TOKEN)
    with pytest.raises(FileNotFoundError, match=r"'me/bank' has no prefix\.safetensors"):
        Prefix.from_pretrained("me/bank")


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
