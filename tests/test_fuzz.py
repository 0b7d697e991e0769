"""Whatever bytes a file has, reading it gives what was written or an error that is documented."""

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
from prefixembed._files import bank_folder as _bank_files

pytestmark = pytest.mark.filterwarnings("ignore")


@pytest.fixture(scope="module")
def targets():
    with tempfile.TemporaryDirectory() as folder:
        yield Targets(folder)


@st.composite
def mutated(draw, seeds):
    """Cut, repeat, replace and insert bytes of a whole file."""
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
def test_mutated_bytes(targets, name):
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
    """Give a mapping some values that are not its own, and take some out."""
    content = dict(content)
    for name in draw(st.lists(st.sampled_from(sorted(content)), max_size=2)):
        if draw(st.booleans()):
            content.pop(name, None)
        else:
            content[name] = draw(st.one_of(json_values, st.just(DEEP)))
    return content


def header_of(prefix):
    return {
        "format_version": 3, "library_version": "0", "digest": prefix.digest, **prefix._header()
    }  # fmt: skip


WHOLE = Targets.make_prefix()
CLASSES = WHOLE._header()["classes"]


@given(changed(header_of(WHOLE)), changed(CLASSES), st.booleans())
@settings(max_examples=400, deadline=None)
def test_headers_of_prefixes_that_lie(tmp_path_factory, header, classes, change_classes):
    if change_classes:
        header["classes"] = classes
    path = tmp_path_factory.getbasetemp() / "lies.safetensors"
    path.write_bytes(save(WHOLE._tensors(), {"prefixembed": json.dumps(header)}))
    with contextlib.suppress(ValueError):
        assert Prefix.load(path) == WHOLE


@pytest.mark.parametrize("header", ["[]", '"text"', "3", "null", "[" * 100_000, '{"a": NaN}'])
def test_headers_that_are_none(tmp_path, header):
    path = tmp_path / "lies.safetensors"
    path.write_bytes(save(WHOLE._tensors(), {"prefixembed": header}))
    with pytest.raises(ValueError, match="lies.safetensors"):
        Prefix.load(path)


PARAMETERS = {
    "active": ["a"], "combine": "mean", "weights": {"a": 0.5}, "pooling": None, "max_length": 32,
    "pairs": None, "output": "texts", "output_dtype": "float32", "pooled_layers": None,
}  # fmt: skip


@given(changed(PARAMETERS), st.one_of(st.just({}), st.dictionaries(words, json_values)))
@settings(max_examples=200, deadline=None)
def test_manifests_that_lie(targets, parameters, more):
    path, _ = targets._bank()
    whole = path.read_text()
    content = json.loads(whole)
    content.pop("digest")
    content["parameters"] = {**parameters, **more}
    try:
        # With a digest that is right: someone made it so.
        path.write_text(json.dumps({**content, "digest": _bank_files._digest(content)}))
        with contextlib.suppress(ValueError):
            assert set(PrefixBank.load(path.parent)) == {"a", "b"}
    finally:
        path.write_text(whole)


@given(changed(Targets._peft_config()))
@settings(max_examples=100, deadline=None)
def test_configurations_of_peft_that_lie(targets, tiny, config):
    folder = targets.folder / "peft"
    folder.mkdir(exist_ok=True)
    (folder / "adapter_config.json").write_text(json.dumps(config))
    targets.whole.save(folder / "adapter_model.safetensors")
    with pytest.raises((ValueError, OSError)):
        interop.load_peft(folder, tiny())


# Those that start without torch.
@pytest.mark.parametrize("name", ["prefix", "bank", "bank_prefix", "cache", "task"])
@pytest.mark.skipif(not importlib.util.find_spec("atheris"), reason="atheris is not installed")
def test_guided_by_coverage(tmp_path, name):
    # Half a minute in all; hours by hand, see fuzz.py.
    command = [
        sys.executable,
        fuzz_file(),
        name,
        "-max_total_time=4",
        f"-artifact_prefix={tmp_path}/",
    ]
    done = subprocess.run(command, capture_output=True, text=True, errors="replace", check=False)
    assert done.returncode == 0, done.stderr[-3000:]


def fuzz_file():
    return importlib.util.find_spec("fuzz").origin
