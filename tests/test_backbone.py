"""Backbones: loading, fingerprints, refused models, devices and dtypes."""

import dataclasses
import json
import multiprocessing
import os
import shutil
import warnings
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import FAMILIES, TEXTS, make_backbone
from helpers import run_python, wait_until
from joblib.externals.loky import ProcessPoolExecutor
from safetensors.torch import load_file, save_file
from transformers import AutoModel, AutoModelForMaskedLM, BertConfig

from prefixembed import backbone as module
from prefixembed import load_backbone, release_backbones
from prefixembed._embed.batches import pad_batch
from prefixembed._embed.tokens import tokenize
from prefixembed._model import devices
from prefixembed.reading import Reading


def load(folder, **kwargs):
    return load_backbone(folder, **({"dtype": "float32", "device": "cpu"} | kwargs))


@pytest.mark.parametrize("family", FAMILIES)
def test_each_family_is_loaded_frozen_and_in_eval_mode(tiny, family):
    backbone = load(tiny(family))
    assert backbone.layout == (3, 4, 8)
    assert backbone.n_features == 32
    assert not backbone.model.training
    assert not any(parameter.requires_grad for parameter in backbone.model.parameters())


def test_threads_load_a_backbone_once(tiny, fresh_backbones, monkeypatch):
    loads = []
    real = module._read_backbone
    monkeypatch.setattr(module, "_read_backbone", lambda *args: loads.append(args) or real(*args))
    with ThreadPoolExecutor(8) as threads:
        backbones = list(threads.map(lambda _: load(tiny("bert")), range(16)))
    assert len(loads) == 1
    assert all(backbone is backbones[0] for backbone in backbones)
    # Each dtype has its own copy. Different spellings of a path share one.
    assert load(tiny("bert"), dtype="bfloat16") is not backbones[0]
    assert load(tiny("bert") + "/.") is backbones[0]


def test_release_frees_one_backbone_or_all(tiny, fresh_backbones):
    first, second = load(tiny("bert")), load(tiny("roberta"))
    assert release_backbones(tiny("bert")) == 1
    assert load(tiny("bert")) is not first
    assert load(tiny("roberta")) is second
    assert release_backbones() == 2
    assert release_backbones() == 0


def test_path_names_the_same_backbone_as_a_string(tiny, fresh_backbones):
    backbone = load(Path(tiny("bert")))
    assert backbone is load(tiny("bert")) and backbone.name == tiny("bert")
    assert release_backbones(Path(tiny("roberta"))) == 0
    assert release_backbones(Path(tiny("bert"))) == 1
    assert load(tiny("bert")) is not backbone
    with pytest.raises(OSError, match="no-such-backbone"):
        load(Path("no-such-backbone"))


def test_fingerprint_depends_on_content_only(tiny, fresh_backbones, tmp_path):
    original = load(tiny("bert"))
    assert load(tiny("bert"), dtype="bfloat16").fingerprint == original.fingerprint
    copied = shutil.copytree(tiny("bert"), tmp_path / "copy")
    assert load(copied).fingerprint == original.fingerprint

    def changed(name, change):
        folder = shutil.copytree(tiny("bert"), tmp_path / name)
        change(folder)
        return load(folder).fingerprint

    def weight(folder):
        state = load_file(folder / "model.safetensors")
        state["encoder.layer.1.attention.self.key.bias"][3] += 1e-6
        save_file(state, folder / "model.safetensors", metadata={"format": "pt"})

    def json_field(file, change):
        def edit(folder):
            content = json.loads((folder / file).read_text())
            change(content)
            (folder / file).write_text(json.dumps(content))

        return edit

    def swap(content):
        vocabulary = content["model"]["vocab"]
        vocabulary["a"], vocabulary["b"] = vocabulary["b"], vocabulary["a"]

    different = {
        original.fingerprint,
        changed("weight", weight),
        changed("config", json_field("config.json", lambda c: c.update(layer_norm_eps=1e-3))),
        changed("tokenizer", json_field("tokenizer.json", swap)),
    }
    assert len(different) == 4
    same = json_field(
        "config.json", lambda c: c.update(transformers_version="4.0.0", use_cache=False)
    )
    assert changed("volatile", same) == original.fingerprint


def test_fingerprint_is_the_same_in_another_process(tiny):
    code = (
        "import sys; from prefixembed import load_backbone;"
        "print(load_backbone(sys.argv[1], device='cpu').fingerprint)"
    )
    out, _ = run_python(code, tiny("roberta"))
    assert out.strip() == load(tiny("roberta")).fingerprint


def test_checkpoint_with_another_head_loads_its_encoder(tiny, tmp_path, fresh_backbones):
    # RoBERTa is published as a masked language model: without a pooler, and with a head.
    model = AutoModelForMaskedLM.from_pretrained(tiny("roberta"))
    for file in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(f"{tiny('roberta')}/{file}", tmp_path)
    model.save_pretrained(tmp_path)
    plain, published = load(tiny("roberta")), load(str(tmp_path))
    assert published.model.pooler is None
    tokens = tokenize(plain, TEXTS, Reading("mean", 64))
    batch = pad_batch(tokens, np.arange(len(TEXTS)), plain.pad_id)
    with torch.no_grad():
        torch.testing.assert_close(published.forward(batch)[0], plain.forward(batch)[0])
    # Loading again gives the same weights: none of them was drawn at random.
    release_backbones()
    assert load(str(tmp_path)).fingerprint == published.fingerprint


def test_missing_weights_are_refused(tiny, tmp_path, fresh_backbones):
    folder = shutil.copytree(tiny("bert"), tmp_path / "copy")
    state = load_file(folder / "model.safetensors")
    del state["encoder.layer.2.output.dense.weight"]
    save_file(state, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ValueError, match=r"lacks 1 of its weights.*layer\.2\.output"):
        load(folder)


@pytest.mark.parametrize("family", ["deberta", "gpt2", "t5", None])
def test_unsupported_families_are_refused_by_name(tmp_path, family):
    (tmp_path / "config.json").write_text(json.dumps({"model_type": family} if family else {}))
    with pytest.raises(ValueError, match="not supported; supported are .*bert, .*xlm-roberta"):
        load(str(tmp_path))


def test_encoder_configured_as_a_decoder_is_refused(tmp_path):
    BertConfig(is_decoder=True).save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="a decoder of the 'bert' family"):
        load(str(tmp_path))


def test_unknown_name_is_refused():
    with pytest.raises(OSError, match="no-such-backbone"):
        load("no-such-backbone")


def test_tokenizer_without_special_tokens_is_refused(tiny, tmp_path):
    folder = shutil.copytree(tiny("bert"), tmp_path / "copy")
    content = json.loads((folder / "tokenizer.json").read_text())
    content["post_processor"] = None
    (folder / "tokenizer.json").write_text(json.dumps(content))
    with pytest.raises(ValueError, match="adds no special tokens"):
        load(folder)


@pytest.mark.parametrize("family", ["custom", "bert"])
def test_code_in_a_model_folder_is_not_executed(tiny, tmp_path, family):
    folder = shutil.copytree(tiny("bert"), tmp_path / "copy")
    config = json.loads((folder / "config.json").read_text())
    config["model_type"] = family
    names = {"AutoConfig": "code.C", "AutoModel": "code.M", "AutoTokenizer": [None, "code.T"]}
    config["auto_map"] = names
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "code.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')")
    if family == "bert":  # transformers has its own code for it
        assert load(folder).n_features == 32
    else:
        with pytest.raises(ValueError, match="'custom', which is not supported"):
            load(folder)
    assert not (tmp_path / "ran").exists()


def test_max_length_beyond_the_positions_is_refused(tiny):
    with pytest.raises(ValueError, match="the 80 tokens .* got 81"):
        load(tiny("bert")).tokenizer(81)
    # RoBERTa reserves two positions for padding.
    assert load(tiny("roberta")).max_length == 78


def test_loading_restores_the_logging_of_transformers(tmp_path):
    from transformers.utils import logging

    verbosity, bar = logging.get_verbosity(), logging.is_progress_bar_enabled()
    load(make_backbone(tmp_path, "bert", seed=5))
    assert logging.get_verbosity() == verbosity
    assert logging.is_progress_bar_enabled() == bar


def test_prefix_of_another_backbone_is_refused(tiny, random_prefix, tmp_path):
    prefix = random_prefix(tiny("bert"))
    other = load(make_backbone(tmp_path, "bert", seed=1))
    with pytest.raises(ValueError, match=rf"my prefix was learned on backbone .*{tiny('bert')}"):
        other.check(prefix, "my prefix")
    with pytest.raises(ValueError, match=r"\(layers, heads, head_dim\) \(3, 4, 8\)"):
        other.check(random_prefix(tiny("bert"), fingerprint=other.fingerprint, n_features=16,
                                  head=None))  # fmt: skip


def test_names_of_dtypes_and_devices_are_resolved_or_refused():
    cpu = torch.device("cpu")
    assert devices.resolve_dtype("float32", cpu) == torch.float32
    assert devices.resolve_dtype("bfloat16", cpu) == torch.bfloat16
    assert devices.resolve_dtype("auto", torch.device("mps")) == torch.float32
    with pytest.raises(ValueError, match="dtype must be 'auto', .*got 'int4'"):
        devices.resolve_dtype("int4", cpu)
    if not torch.cuda.is_available():
        with pytest.raises(ValueError, match="'cuda', but torch finds no CUDA device"):
            devices.resolve_device("cuda")
    with pytest.raises(ValueError, match="got 'quantum'"):
        devices.resolve_device("quantum")


@pytest.mark.parametrize(
    ("capabilities", "expected"),
    [({"avx512_bf16": True}, torch.bfloat16), ({"amx_bf16": True}, torch.bfloat16),
     ({"avx512_f": True}, torch.float32)],
)  # fmt: skip
def test_auto_is_bfloat16_on_cpus_that_multiply_in_it(monkeypatch, capabilities, expected):
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: capabilities)
    assert devices.resolve_dtype("auto", torch.device("cpu")) == expected


def test_auto_is_float32_where_torch_does_not_tell_what_the_cpu_can_do(monkeypatch):
    monkeypatch.delattr(torch.cpu, "get_capabilities")
    assert devices.resolve_dtype("auto", torch.device("cpu")) == torch.float32


def test_rotary_frequencies_stay_in_float32(tiny):
    model = load(tiny("modernbert"), dtype="bfloat16").model
    assert {p.dtype for p in model.parameters()} == {torch.bfloat16}
    assert model.rotary_emb.full_attention_inv_freq.dtype == torch.float32


def test_backbone_loaded_in_inference_mode_can_be_trained_on(tiny, fresh_backbones):
    with torch.inference_mode():
        model = load(tiny(), dtype="bfloat16").model
    assert not any(parameter.is_inference() for parameter in model.parameters())


@pytest.mark.cuda
@pytest.mark.parametrize("family", FAMILIES)
def test_cuda_equals_cpu(tiny, random_prefix, family):
    from prefixembed import PrefixBank

    bank = PrefixBank({"a": random_prefix(tiny(family))}, dtype="float32", device="cpu")
    expected = bank.transform(TEXTS)
    for combine in ("concat", "mean"):
        on_cuda = bank.set_params(device="cuda", combine=combine).transform(TEXTS)
        np.testing.assert_allclose(on_cuda, expected, atol=1e-3)


@pytest.mark.parametrize(
    ("has_cuda", "has_mps", "expected"),
    [(True, True, "cuda:0"), (True, False, "cuda:0"), (False, True, "mps"), (False, False, "cpu")],
)
def test_auto_prefers_cuda_to_mps_and_mps_to_the_cpu(monkeypatch, has_cuda, has_mps, expected):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: has_cuda)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: has_mps)
    assert devices.resolve_device("auto") == torch.device(expected)
    if has_mps:
        assert devices.resolve_device("mps:0") == torch.device("mps")


def _device_of_a_worker(folder, current=0):
    # Runs in a worker, as if there were two devices. Workers wait until both have started.
    Path(folder, str(os.getpid())).touch()
    wait_until(lambda: len(list(Path(folder).iterdir())) >= 2)
    torch.cuda.is_available = lambda: True
    torch.cuda.device_count = lambda: 2
    torch.cuda.current_device = lambda: current
    return devices.resolve_device("auto").index, devices.resolve_device("cuda:0").index


def test_workers_are_spread_over_devices(tmp_path):
    with ProcessPoolExecutor(2) as executor:
        running = [executor.submit(_device_of_a_worker, str(tmp_path)) for _ in range(2)]
        indices = [future.result(timeout=120) for future in running]
        # If the worker has already chosen a device, it keeps it.
        assert executor.submit(_device_of_a_worker, str(tmp_path), 1).result()[0] == 1
    assert {index for index, _ in indices} == {0, 1}
    assert {index for _, index in indices} == {0}, "an explicit index must be obeyed"


def test_number_in_the_name_of_a_worker_picks_its_device(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 3)
    process = multiprocessing.current_process()
    found = []
    for is_worker in (False, True):
        parent = object() if is_worker else None
        monkeypatch.setattr(multiprocessing, "parent_process", lambda parent=parent: parent)
        for name in ("LokyProcess-1", "SpawnPoolWorker-3", "ForkProcess-5", "nameless"):
            monkeypatch.setattr(process, "name", name)
            found.append(devices.resolve_device("auto").index)
    assert found == [0, 0, 0, 0, 0, 2, 1, 0]


def test_inputs_for_cuda_are_pinned_and_copied_asynchronously(tiny, monkeypatch):
    # This checks the calls only; test_cuda_equals_cpu checks the result where there is a device.
    backbone = load(tiny())
    calls = []
    monkeypatch.setattr(torch.Tensor, "pin_memory", lambda self: calls.append("pinned") or self)
    monkeypatch.setattr(torch.Tensor, "to", lambda self, *a, **k: calls.append((a, k)) or self)
    cuda = dataclasses.replace(backbone, device=torch.device("cuda"))
    cuda._to_device(np.zeros(3))
    assert calls == ["pinned", ((cuda.device,), {"non_blocking": True})]
    calls.clear()
    backbone._to_device(np.zeros(3))
    assert "pinned" not in calls


@pytest.mark.parametrize(
    ("device", "in_worker", "n_devices"),
    [("cuda", True, 1), ("cuda", True, 2), ("cuda", False, 1), ("cpu", True, 1)],
)
def test_worker_on_a_shared_device_is_warned(monkeypatch, device, in_worker, n_devices):
    parent = object() if in_worker else None
    monkeypatch.setattr(torch.cuda, "device_count", lambda: n_devices)
    monkeypatch.setattr(multiprocessing, "parent_process", lambda: parent)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        module._warn_about_other_workers(torch.device(device))
    assert bool(caught) == (device == "cuda" and in_worker and n_devices == 1)
    if caught:
        assert "n_jobs=1" in str(caught[0].message) and "fill_cache" in str(caught[0].message)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("n", [1, 2, 3])
def test_pooled_layers_are_averaged(tiny, family, n):
    backbone = load_backbone(tiny(family), dtype="float32", device="cpu")
    tokens = tokenize(backbone, ["one two three", "four"], Reading("mean", 64))
    batch = pad_batch(tokens, np.arange(2), backbone.pad_id)
    with torch.no_grad():
        hidden, _ = backbone.forward(batch, None, Reading("mean", 64, pooled_layers=n))
        plain = AutoModel.from_pretrained(tiny(family), attn_implementation="eager").eval()
        layers = plain(
            torch.from_numpy(batch.ids), torch.from_numpy(batch.mask), output_hidden_states=True
        )
    expected = torch.stack(layers.hidden_states[-n:]).mean(dim=0)
    assert torch.equal(layers.hidden_states[-1], layers.last_hidden_state)
    kept = torch.from_numpy(batch.mask)
    torch.testing.assert_close(hidden[kept], expected[kept], atol=2e-5, rtol=1e-4)
