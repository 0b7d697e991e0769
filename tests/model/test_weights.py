"""Files of weights: loaded as they are stored, and digested in float32 whatever they hold."""

import hashlib
import os
import shutil
from pathlib import Path

import pytest
import torch
from conftest import FAMILIES
from safetensors.torch import load_file, save_file
from transformers import AutoModel

from prefixembed import load_backbone, release_backbones
from prefixembed._model import loading, weights
from prefixembed._model.weights import loading_dtype

DTYPES = [torch.float32, torch.bfloat16, torch.float16]


@pytest.fixture
def stored(tiny, tmp_path):
    """Return a function that copies a tiny backbone with other files of weights."""

    def copy(family, dtype, form="whole", one=None):
        folder = Path(shutil.copytree(tiny(family), tmp_path / f"{family}-{dtype}-{form}-{one}"))
        model = AutoModel.from_pretrained(folder, dtype=torch.float32).to(dtype)
        if one is not None:  # the first weight has a dtype of its own
            first = next(model.parameters())
            first.data = first.data.to(one)
        (folder / "model.safetensors").unlink()
        if form == "pickle":
            torch.save(model.state_dict(), folder / "pytorch_model.bin")
        else:
            model.save_pretrained(folder, max_shard_size="20KB" if form == "shards" else "1GB")
        return folder

    return copy


def files_of(folder):
    return [str(path) for path in folder.iterdir() if path.suffix in (".safetensors", ".bin")]


def loaded(folder, dtype):
    release_backbones()
    name = str(dtype).removeprefix("torch.")
    return load_backbone(folder, dtype=name, device="cpu")


def digest_in_float32(model):
    digest = hashlib.sha256()
    for name, tensor in sorted(model.state_dict().items()):
        digest.update(f"{name}{tuple(tensor.shape)}".encode() + tensor.numpy().tobytes())
    return digest.hexdigest()


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("family", FAMILIES)
def test_weights_and_digest_are_those_of_float32(
    stored, fresh_backbones, monkeypatch, family, dtype
):
    forms = ["whole", "shards", "pickle"]
    folder = stored(family, dtype, forms[FAMILIES.index(family) % 3])
    reference = AutoModel.from_pretrained(folder, dtype=torch.float32)
    reference.pooler = None
    digests, real = [], loading.digest_weights

    def record(model, key):
        assert {parameter.dtype for parameter in model.parameters()} == {dtype}
        digest = real(model, key)
        digests.append(digest.copy().hexdigest())
        return digest

    monkeypatch.setattr(loading, "digest_weights", record)
    for used in DTYPES:
        model = loaded(folder, used).model
        for name, tensor in reference.named_parameters():
            assert torch.equal(model.get_parameter(name), tensor.to(used)), name
        for name, tensor in reference.named_buffers():
            buffer = model.get_buffer(name)
            assert buffer.dtype == tensor.dtype and torch.equal(buffer, tensor), name
    assert digests == [digest_in_float32(reference)] * 3


@pytest.mark.parametrize("form", ["whole", "shards", "pickle"])
def test_files_of_several_dtypes_are_loaded_in_float32(stored, fresh_backbones, form):
    folder = stored("bert", torch.bfloat16, form, one=torch.float32)
    assert loading_dtype(files_of(folder)) == torch.float32
    plain = stored("bert", torch.bfloat16, form)
    assert loading_dtype(files_of(plain)) == torch.bfloat16
    for dtype in DTYPES:
        ours = loaded(folder, dtype)
        assert {parameter.dtype for parameter in ours.model.parameters()} == {dtype}
    assert ours.fingerprint == loaded(plain, torch.float32).fingerprint  # the same numbers


@pytest.mark.parametrize(
    ("extra", "expected"),
    [(torch.int64, torch.bfloat16), (torch.bool, torch.bfloat16), (torch.int32, torch.float32),
     (torch.uint8, torch.float32), (torch.float64, torch.float32)],
)  # fmt: skip
def test_weights_that_are_not_plain_numbers_are_loaded_in_float32(tmp_path, extra, expected):
    tensors = {"weight": torch.ones(2, dtype=torch.bfloat16), "other": torch.ones(2, dtype=extra)}
    save_file(tensors, tmp_path / "model.safetensors")
    torch.save(tensors, tmp_path / "pytorch_model.bin")
    for file in files_of(tmp_path):
        assert loading_dtype([file]) == expected
    assert loading_dtype([]) == torch.float32


def test_weights_are_digested_once_until_their_files_change(stored, fresh_backbones, monkeypatch):
    folder, blocks = stored("bert", torch.float32), []
    monkeypatch.setattr(weights, "_digests", {})
    monkeypatch.setattr(weights, "memoryview", lambda a: blocks.append(a) or memoryview(a), False)
    first = loaded(folder, torch.float32)
    n_blocks = len(blocks)
    assert n_blocks
    assert loaded(folder, torch.bfloat16).fingerprint == first.fingerprint
    assert len(blocks) == n_blocks
    state = {name: tensor.clone() for name, tensor in load_file(files_of(folder)[0]).items()}
    state["embeddings.word_embeddings.weight"][0, 0] += 1
    save_file(state, folder / "new", metadata={"format": "pt"})
    os.replace(folder / "new", files_of(folder)[0])
    assert loaded(folder, torch.float32).fingerprint != first.fingerprint
    assert len(blocks) == 2 * n_blocks


def test_blocks_do_not_change_the_digest(tiny, monkeypatch):
    model = AutoModel.from_pretrained(tiny("bert"), dtype=torch.float32)
    monkeypatch.setattr(weights, "_BLOCK", 100)
    assert weights.digest_weights(model, None).hexdigest() == digest_in_float32(model)


@pytest.mark.skipif(not os.path.exists("/proc/self/maps"), reason="mappings are listed on Linux")
def test_weights_in_their_stored_dtype_stay_mapped(stored, fresh_backbones):
    folder = stored("llama", torch.bfloat16)
    backbone = loaded(folder, torch.bfloat16)
    ranges = [
        [int(end, 16) for end in line.split()[0].split("-")]
        for line in Path("/proc/self/maps").read_text().splitlines()
        if str(folder) in line
    ]
    for parameter in backbone.model.parameters():
        where = parameter.data_ptr()
        assert any(start <= where < stop for start, stop in ranges)
