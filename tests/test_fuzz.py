"""Reading arbitrary bytes returns what was written or raises a documented error."""

import contextlib
import importlib.util
import json
import subprocess
import sys
import tempfile

import pytest
from fuzz import MODULES, Targets
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.numpy import save

from prefixembed import Prefix, PrefixBank, interop
from prefixembed._files.bank_folder import write_folder
from prefixembed._files.tensors import unpack_tensors

pytestmark = pytest.mark.filterwarnings("ignore")


@pytest.fixture(scope="module")
def targets():
    with tempfile.TemporaryDirectory() as folder:
        yield Targets(folder)


@st.composite
def mutated(draw, seeds):
    """Draw a valid file with some bytes cut, repeated, replaced or inserted."""
    content = draw(st.sampled_from(seeds))
    for _ in range(draw(st.integers(0, 4))):
        start = draw(st.integers(0, len(content)))
        end = min(len(content), start + draw(st.integers(0, 8)))
        part = draw(
            st.one_of(
                st.binary(max_size=8),
                st.sampled_from([b"\x00", b"\xff" * 8, b"[", b"{", b'"', b"9" * 30, b"1e999"]),
                st.just(content[start:end] * 3),
            )
        )
        content = content[:start] + part + content[end:]
    return content[: draw(st.integers(0, len(content)))] if draw(st.booleans()) else content


@pytest.mark.parametrize("name", MODULES)
def test_mutated_files_raise_documented_errors_only(targets, name):
    @given(mutated(targets.seeds(name)))
    @settings(max_examples=150, deadline=None, suppress_health_check=list(HealthCheck))
    def run(data):
        getattr(targets, name)(data)

    run()


numbers = st.one_of(
    st.integers(-(2**70), 2**70), st.floats(), st.sampled_from([0, 1, 2, -1, 64, 2**31, 2**63])
)
words = st.one_of(
    st.text(max_size=4),
    st.sampled_from(["mean", "cls", "apart", "<U1", "<U999999999", "O", "f8,f8", "<i8", "|b1"]),
)
json_values = st.recursive(
    st.one_of(st.none(), st.booleans(), numbers, words),
    lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(words, inner, max_size=3)),
    max_leaves=6,
)
DEEP = json.loads("[" * 80 + "]" * 80)


@st.composite
def changed(draw, content):
    """Draw a mapping with some values replaced or removed."""
    content = dict(content)
    for name in draw(st.lists(st.sampled_from(sorted(content)), max_size=2)):
        if draw(st.booleans()):
            content.pop(name, None)
        else:
            content[name] = draw(st.one_of(json_values, st.just(DEEP)))
    return content


WHOLE = Targets.make_prefix()
HEADER, TENSORS = unpack_tensors(WHOLE.to_bytes(), "whole")


def write_header(path, header):
    path.write_bytes(save(TENSORS, {"prefixembed": header}))
    return path


@given(changed(HEADER), changed(HEADER["head"]), changed(HEADER["head"]["classes"]), st.data())
@settings(max_examples=400, deadline=None)
def test_wrong_headers_of_prefixes_are_refused(tmp_path_factory, header, head, classes, data):
    part = data.draw(st.sampled_from(["header", "head", "classes"]))
    if part == "head":
        header["head"] = head
    elif part == "classes":
        header["head"] = {**HEADER["head"], "classes": classes}
    path = tmp_path_factory.getbasetemp() / "wrong.safetensors"
    with contextlib.suppress(ValueError):
        assert Prefix.load(write_header(path, json.dumps(header))) == WHOLE


@pytest.mark.parametrize("header", ["[]", '"text"', "3", "null", "[" * 100_000, '{"a": NaN}'])
def test_headers_that_are_not_objects_are_refused(tmp_path, header):
    with pytest.raises(ValueError, match=r"wrong\.safetensors"):
        Prefix.load(write_header(tmp_path / "wrong.safetensors", header))


PARAMETERS = {
    "active": ["a"], "combine": "mean", "weights": {"a": 0.5}, "pooling": "auto", "max_length": 32,
    "pairs": "auto", "prompt": None, "output": "texts", "output_dtype": "float32",
    "pooled_layers": None,
}  # fmt: skip


@given(changed(PARAMETERS), st.one_of(st.just({}), st.dictionaries(words, json_values)))
@settings(max_examples=200, deadline=None)
def test_wrong_parameters_in_manifests_are_refused(tmp_path_factory, parameters, more):
    folder = tmp_path_factory.getbasetemp() / "wrong_bank"
    write_folder(folder, {"a": WHOLE.to_bytes()}, {**parameters, **more})  # its digest is right
    with contextlib.suppress(ValueError):
        assert set(PrefixBank.load(folder)) == {"a"}


@given(changed(Targets._peft_config()))
@settings(max_examples=100, deadline=None)
def test_wrong_configurations_of_peft_are_refused(targets, tiny, config):
    folder = targets.folder / "peft"
    folder.mkdir(exist_ok=True)
    (folder / "adapter_config.json").write_text(json.dumps(config))
    targets.whole.save(folder / "adapter_model.safetensors")
    with pytest.raises((ValueError, OSError)):
        interop.load_peft(folder, tiny())


# These targets start without torch.
@pytest.mark.parametrize("name", ["prefix", "bank", "bank_prefix", "cache", "task"])
@pytest.mark.skipif(not importlib.util.find_spec("atheris"), reason="atheris is not installed")
def test_fuzzing_guided_by_coverage_finds_nothing(tmp_path, name):
    # This takes half a minute in total; fuzz.py can also run for hours, by hand.
    options = ["-max_total_time=2", f"-artifact_prefix={tmp_path}/"]
    command = [sys.executable, importlib.util.find_spec("fuzz").origin, name, *options]
    done = subprocess.run(
        command, capture_output=True, text=True, errors="replace", timeout=300, check=False
    )
    assert done.returncode == 0, done.stderr[-3000:]
