"""Prefixes and banks through huggingface_hub's own client and a Hub on this machine."""

import json

import numpy as np
import pytest
from hub_stand_in import Hub
from huggingface_hub import constants

from prefixembed import Prefix, PrefixBank
from prefixembed._files.bank_folder import _digest_prefix
from prefixembed._files.hub import model_card

TOKEN = "hf_" + "a" * 30


@pytest.fixture
def hub(monkeypatch, tmp_path):
    """Run a Hub, and have huggingface_hub take it for the real one."""
    with Hub() as running:
        monkeypatch.setattr(constants, "ENDPOINT", running.url)
        template = running.url + "/{repo_id}/resolve/{revision}/{filename}"
        monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
        monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
        yield running


@pytest.fixture
def bank(tiny, random_prefix):
    facts = {"n_texts": 90, "valid_accuracy": 0.875, "valid_loss": 0.3}
    prefixes = {
        "stars | <b>": random_prefix(tiny(), seed=1, training=facts),
        "topic": random_prefix(tiny(), seed=2),
    }
    return PrefixBank(prefixes, combine="mean", active=["topic"], dtype="float32", device="cpu")


def test_a_bank_goes_to_the_hub_and_back(bank, hub):
    url = bank.push_to_hub("me/bank", token=TOKEN)
    sha, files = hub.files("me/bank")
    assert url == f"{hub.url}/me/bank/commit/{sha}"
    assert sorted(files) == sorted(
        ["README.md", "bank.json", *(f"{_digest_prefix(p)}.safetensors" for p in bank.values())]
    )
    files["modeling.py"] = b"raise SystemExit('executed')"
    hub.fetched.clear()
    again = PrefixBank.from_pretrained("me/bank", dtype="float32", device="cpu")
    assert not {"README.md", "modeling.py"} & set(hub.fetched)  # data alone
    assert again.values() == bank.values() and list(again) == list(bank)
    np.testing.assert_array_equal(again.transform(["a text"]), bank.transform(["a text"]))
    card = files["README.md"].decode()
    assert "| stars \\| &lt;b> | classification | 2 | 90 | accuracy 0.875 | 5 | " in card
    assert "Combined by `mean`; active: topic." in card


def test_an_update_leaves_the_rest_and_the_old_commit(bank, hub):
    bank.push_to_hub("me/bank", token=TOKEN)
    sha, _ = hub.files("me/bank")
    bank.remove("stars | <b>").push_to_hub("me/bank", token=TOKEN, commit_message="one less")
    left = f"{_digest_prefix(bank['topic'])}.safetensors"
    files = hub.files("me/bank")[1]
    assert [name for name in files if name.endswith(".safetensors")] == [left]
    assert list(PrefixBank.from_pretrained("me/bank")) == ["topic"]
    assert list(PrefixBank.from_pretrained("me/bank", sha)) == ["stars | <b>", "topic"]


def test_a_prefix_goes_to_the_hub_and_back(tiny, random_prefix, hub):
    prefix = random_prefix(tiny())
    prefix.push_to_hub("me/p", private=True, token=TOKEN)
    assert Prefix.from_pretrained("me/p", "main") == prefix
    assert "Prefix.from_pretrained('me/p')" in hub.files("me/p")[1]["README.md"].decode()


@pytest.mark.parametrize("name", ["me/none", "no such/thing/at all"])
def test_what_cannot_be_fetched_says_so(hub, name):
    with pytest.raises(OSError, match=f"'{name}' is no folder, and could not be fetched"):
        PrefixBank.from_pretrained(name)


def test_a_damaged_file_on_the_hub_is_noticed(bank, hub):
    bank.push_to_hub("me/bank", token=TOKEN)
    files = hub.files("me/bank")[1]
    name = f"{_digest_prefix(bank['topic'])}.safetensors"
    files[name] = files[name][:-1] + bytes([files[name][-1] ^ 1])
    with pytest.raises(ValueError, match=name):
        PrefixBank.from_pretrained("me/bank")
    bank.push_to_hub("me/less", token=TOKEN)
    del hub.files("me/less")[1][name]
    with pytest.raises(FileNotFoundError, match=name):
        PrefixBank.from_pretrained("me/less")


def test_a_folder_needs_no_hub_and_has_no_revision(bank, random_prefix, tiny, tmp_path):
    bank.save(tmp_path)
    assert PrefixBank.from_pretrained(tmp_path, active=None).active is None
    with pytest.raises(ValueError, match="revision is for the Hub, and .* is a folder"):
        PrefixBank.from_pretrained(tmp_path, "main")
    random_prefix(tiny()).save(tmp_path / "prefix.safetensors")
    assert Prefix.from_pretrained(tmp_path) == random_prefix(tiny())
    with pytest.raises(OSError, match="is no folder, and could not be fetched"):
        PrefixBank.from_pretrained("me/offline")
    with pytest.raises(FileNotFoundError, match="it has no bank.json"):
        PrefixBank.from_pretrained(tmp_path.parent)


def test_a_card_has_a_header_that_yaml_reads(tmp_path):
    yaml = pytest.importorskip("yaml")
    fact = {"objective": "regression", "n_classes": None, "length": 5, "digest": "d" * 64,
            "training": {}}  # fmt: skip
    odd = 'a"b: [c'
    card = model_card("me/x", {"s\ud800\n# not a title": fact}, odd, "pass")
    header = yaml.safe_load(card.split("---")[1])
    assert header["base_model"] == odd and header["library_name"] == "prefixembed"
    assert "\n# not a title" not in card
    card.encode()
    assert "base_model" not in model_card("me/x", {}, str(tmp_path), "pass")
    assert json.loads(json.dumps(header)) == header
