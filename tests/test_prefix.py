"""Prefix: immutability, digest, files, damage and invalid fields."""

import copy
import dataclasses
import json
import os
import pickle
import struct

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from safetensors.numpy import save, save_file

from prefixembed import Prefix
from prefixembed.cache import Representation
from prefixembed.head import Head
from prefixembed.prefix import FORMAT_VERSION
from prefixembed.reading import Reading
from prefixembed.slots import Slots

HEAD = {
    "objective": "classification",
    "classes": np.array(["bad", "good"]),
    "weight": np.random.default_rng(1).standard_normal((2, 24), dtype=np.float32),
    "bias": np.array([0.5, -0.5], dtype=np.float32),
}
READING = {"pooling": "mean", "max_length": 64}
NO_POSITION = np.zeros((2, 2, 3, 0, 8), dtype=np.float32)


def make_slots(*shape):
    rng = np.random.default_rng(2)
    return Slots(*(rng.standard_normal(some) for some in (shape, shape[:2], shape)))


SLOTS = make_slots(2, 3, 24)


def make(**changes):
    head = {key: changes.pop(key) for key in HEAD if key in changes}
    reading = {
        field.name: changes.pop(field.name)
        for field in dataclasses.fields(Reading)
        if field.name in changes
    }
    fields = {
        "keys_values": np.random.default_rng(0).standard_normal((2, 2, 3, 4, 8), dtype=np.float32),
        "backbone": "tiny",
        "fingerprint": "f" * 64,
        "n_features": 24,
        "training": {"seconds": 1.25, "n_texts": 7},
    }
    if "head" not in changes:
        fields["head"] = Head(**(HEAD | head))
    if "reading" not in changes:
        fields["reading"] = Reading(**(READING | reading))
    return Prefix(**(fields | changes))


def rewritten(prefix, header=None, tensors=None):
    """Return the bytes of a file with changes in its header or its tensors, and the same digest."""
    own = {"format_version": FORMAT_VERSION, "library_version": "0", "digest": prefix.digest}
    own |= {**prefix._header(), **(header or {})}
    tensors = {**prefix._tensors(), **(tensors or {})}
    kept = {name: array for name, array in tensors.items() if array is not None}
    return save(kept, {"prefixembed": json.dumps(own)})


def test_prefix_is_immutable_and_its_own_copy():
    source = np.zeros((2, 2, 3, 4, 8), dtype=np.float32)
    prefix = make(keys_values=source)
    source += 1
    assert not prefix.keys_values.any()
    with pytest.raises(ValueError, match="read-only"):
        prefix.keys_values[0] = 1
    with pytest.raises(AttributeError):
        prefix.reading = None
    with pytest.raises(TypeError):
        prefix.training["seconds"] = 2
    assert copy.copy(prefix) is prefix
    assert copy.deepcopy({"a": [prefix]})["a"][0] is prefix


@pytest.mark.parametrize("slots", [None, SLOTS], ids=["no slots", "slots"])
def test_unpickled_prefix_is_equal_and_immutable(slots):
    prefix = make(slots=slots)
    loaded = pickle.loads(pickle.dumps(prefix))
    assert loaded == prefix and loaded.ffn_length == prefix.ffn_length
    if slots is not None:
        assert not any(array.flags.writeable for array in loaded.slots.tensors().values())
    assert dict(loaded.training) == dict(prefix.training)
    assert not loaded.keys_values.flags.writeable


@pytest.mark.parametrize(
    "change",
    [
        {"keys_values": np.ones((2, 2, 3, 4, 8))},
        {"bias": np.zeros(2)},
        {"classes": np.array(["bad", "goof"])},
        {"pooling": "cls"},
        {"max_length": 32},
        {"fingerprint": "e" * 64},
        {"objective": "other"},
        {"slots": SLOTS},
        {"slots": SLOTS, "keys_values": NO_POSITION},
        {"slots": dataclasses.replace(SLOTS, keys=SLOTS.keys + 1)},
        {"slots": dataclasses.replace(SLOTS, biases=SLOTS.biases + 1)},
        {"slots": dataclasses.replace(SLOTS, values=SLOTS.values + 1)},
        {"slots": dataclasses.replace(SLOTS, keys=SLOTS.values, values=SLOTS.keys)},
    ],
)
def test_digest_depends_on_content(change):
    for other in {make(), make(slots=SLOTS)} - {make(**change)}:
        assert make(**change).digest != other.digest
    assert make(**change) != make()


def test_digest_ignores_training_and_the_name_of_the_backbone():
    prefix = make(training={"seconds": 9}, backbone="elsewhere", revision="main")
    assert prefix == make()
    assert hash(prefix) == hash(make())


def test_digest_does_not_depend_on_the_machine():
    numbers = np.arange(96, dtype=">f4").reshape(1, 2, 3, 4, 4) / 7
    prefix = Prefix(
        keys_values=numbers, backbone="b", fingerprint="f" * 64, n_features=12,
        reading=Reading("cls", 9),
        head=Head("classification", np.array(["à", "b"], dtype=">U3"),
                  np.ones((2, 12), dtype=">f8"), np.zeros(2, dtype=np.float16)),
    )  # fmt: skip
    # The digest does not depend on byte order, and must equal this constant on each machine.
    head = dataclasses.replace(prefix.head, classes=np.array(["à", "b"], dtype="<U3"))
    little = dataclasses.replace(prefix, keys_values=numbers.astype("<f4"), head=head)
    assert (
        prefix.digest
        == little.digest
        == ("9abf7f1e66b70df5f07d67c3e213c8d1a5391678b13751f11789a9d1c9398c61")
    )


# numpy cannot distinguish a trailing NUL from padding.
words = st.text(st.characters(codec="utf-8", exclude_characters="\0"), max_size=5)
labels = st.one_of(
    hnp.arrays(np.int64, 3, elements=st.integers(-(2**60), 2**60), unique=True),
    hnp.arrays("U5", 3, elements=words, unique=True),
    hnp.arrays(np.float64, 3, elements=st.floats(allow_nan=False), unique=True),
    st.just(np.array([False, True])),
    st.just(np.array([1, 3, 250], dtype=np.uint8)),
)


@given(classes=labels, length=st.integers(0, 7), ffn_length=st.integers(0, 3))
@settings(max_examples=40, deadline=None)
def test_loaded_prefix_equals_the_saved_one(tmp_path_factory, classes, length, ffn_length):
    assume(length or ffn_length)
    n = len(classes)
    slots = Slots(*(a[:, :ffn_length] for a in SLOTS.tensors().values())) if ffn_length else None
    prefix = make(
        slots=slots,
        keys_values=np.random.default_rng(length).standard_normal((2, 2, 3, length, 8)),
        classes=classes,
        weight=np.ones((n, 24)),
        bias=np.zeros(n),
        revision="v1",
    )
    path = tmp_path_factory.mktemp("prefix") / "p.safetensors"
    prefix.save(path)
    loaded = Prefix.load(path)
    assert loaded == prefix
    assert loaded.classes.dtype == prefix.classes.dtype
    np.testing.assert_array_equal(loaded.classes, prefix.classes)
    np.testing.assert_array_equal(loaded.keys_values, prefix.keys_values)
    assert (loaded.length, loaded.ffn_length) == (length, ffn_length)
    if slots is not None:
        for name, array in slots.tensors().items():
            np.testing.assert_array_equal(loaded.slots.tensors()[name], array)
    assert (loaded.backbone, loaded.revision) == ("tiny", "v1")
    assert dict(loaded.training) == dict(prefix.training)


def test_prefix_without_a_head_can_be_saved(tmp_path):
    prefix = make(head=None)
    prefix.save(tmp_path / "p.safetensors")
    loaded = Prefix.load(str(tmp_path / "p.safetensors"))
    assert loaded == prefix
    assert loaded.head is loaded.objective is loaded.classes is None


@pytest.mark.parametrize("slots", [None, SLOTS], ids=["no slots", "slots"])
def test_flipped_bits_and_truncated_files_are_noticed(tmp_path, slots):
    path = tmp_path / "p.safetensors"
    prefix = make(slots=slots)
    prefix.save(path)
    whole = path.read_bytes()
    rng = np.random.default_rng(0)
    for position in rng.choice(len(whole), size=300, replace=False):
        damaged = bytearray(whole)
        damaged[position] ^= 1 << int(rng.integers(8))
        path.write_bytes(damaged)
        try:
            loaded = Prefix.load(path)
        except ValueError:
            continue
        # Only the name of the backbone and the training facts may differ: the digest ignores them.
        assert loaded == prefix, f"byte {position}"
    for length in [0, 1, 7, 8, 9, *rng.integers(len(whole), size=50)]:
        path.write_bytes(whole[:length])
        with pytest.raises(ValueError, match=r"p\.safetensors"):
            Prefix.load(path)


def test_files_that_hold_no_prefix_are_refused(tmp_path):
    path = tmp_path / "p.safetensors"
    with pytest.raises(FileNotFoundError, match="no prefix file"):
        Prefix.load(path)
    with pytest.raises(FileNotFoundError):
        Prefix.load(tmp_path)
    save_file({"a": np.zeros(3, dtype=np.float32)}, path)
    with pytest.raises(ValueError, match="holds no prefix"):
        Prefix.load(path)


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("format_version", 99, "format version is 99"),
        ("fingerprint", "0", "digest"),
        (
            "head",
            {"objective": "classification", "classes": {"dtype": "|O", "values": [1, 2]}},
            "not numbers",
        ),
        ("reading", {"pooling": "mean", "max_length": 64, "later": 1}, "later"),
        ("reading", {"pooling": "mean", "max_length": 65}, "digest"),
        ("nonsense", 1, "nonsense"),
    ],
)
def test_invalid_header_is_refused(tmp_path, key, value, message):
    path = tmp_path / "p.safetensors"
    make().save(path)
    content = path.read_bytes()
    (size,) = struct.unpack("<Q", content[:8])
    header = json.loads(content[8 : 8 + size])
    own = json.loads(header["__metadata__"]["prefixembed"])
    header["__metadata__"]["prefixembed"] = json.dumps(own | {key: value})
    encoded = json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(encoded)) + encoded + content[8 + size :])
    with pytest.raises(ValueError, match=message):
        Prefix.load(path)


def test_unknown_tensors_and_dtypes_are_refused(tmp_path):
    path = tmp_path / "p.safetensors"
    prefix = make()
    header = {"format_version": FORMAT_VERSION, "library_version": "0"}
    header |= {"digest": prefix.digest, **prefix._header()}
    metadata = {"prefixembed": json.dumps(header)}
    tensors = prefix._tensors()
    save_file({**tensors, "more": np.zeros(1, dtype=np.float32)}, path, metadata)
    with pytest.raises(ValueError, match="unknown tensors"):
        Prefix.load(path)
    save_file({**tensors, "head_bias": np.zeros(2)}, path, metadata)
    with pytest.raises(ValueError, match="not float32"):
        Prefix.load(path)
    del tensors["keys_values"]
    save_file(tensors, path, metadata)
    with pytest.raises(ValueError, match="keys_values"):
        Prefix.load(path)


def test_files_of_older_format_versions_are_read():
    # They have no slots, or no mean and scale of a regression.
    prefix = make()
    assert FORMAT_VERSION == 6
    for version in (4, 5):
        assert Prefix.from_bytes(rewritten(prefix, {"format_version": version})) == prefix
    with pytest.raises(ValueError, match="format version is 3, this .* reads 4, 5 and 6"):
        Prefix.from_bytes(rewritten(prefix, {"format_version": 3}))


def test_mean_and_scale_of_a_regression_are_part_of_a_file_and_its_digest():
    head = Head("regression", None, np.ones((1, 24)), np.ones(1))
    scaled = dataclasses.replace(head, mean=1.7e9 + 0.1, scale=1 / 3)
    prefix = make(head=scaled)
    assert prefix != make(head=head)
    again = Prefix.from_bytes(prefix.to_bytes())
    assert again == prefix
    assert (again.head.mean, again.head.scale) == (1.7e9 + 0.1, 1 / 3)
    # Those of older versions have neither.
    assert set(make(head=head)._header()["head"]) == {"objective", "classes"}
    for name, value in (("mean", 0), ("scale", 2), ("mean", "1"), ("scale", 1e999), ("mean", [])):
        changed = {"head": {**prefix._header()["head"], name: value}}
        with pytest.raises(ValueError, match=r"digest|head (mean|scale) must be"):
            Prefix.from_bytes(rewritten(prefix, changed))


@pytest.mark.parametrize(
    ("tensors", "message"),
    [
        ({"slot_keys": None}, "slot_keys"),
        ({"slot_biases": None}, "slot_biases"),
        ({"slot_keys": None, "slot_biases": None}, "slot_keys"),
        ({"slot_values": None}, "slot_values"),
        ({"slot_keys": None, "slot_biases": None, "slot_values": None}, "digest"),
        ({"slot_values": SLOTS.values[:, :2]}, "slot_values must have shape"),
        ({"slot_biases": SLOTS.biases[0]}, "slot_biases must have shape"),
        ({"slot_biases": SLOTS.biases + 1}, "digest"),
        ({"slot_keys": SLOTS.keys * np.float32(np.nan)}, "slot_keys has numbers that are not fin"),
        ({"slot_keys": SLOTS.keys.astype(np.float64)}, "'slot_keys'. are not float32"),
        ({"keys_values": NO_POSITION}, "digest"),
    ],
)
def test_damaged_or_partial_slots_are_refused_by_name(tensors, message):
    content = rewritten(make(slots=SLOTS), tensors=tensors)
    with pytest.raises(ValueError, match=f"^some file cannot be read: .*{message}"):
        Prefix.from_bytes(content, "some file")
    assert Prefix.from_bytes(rewritten(make(slots=SLOTS))) == make(slots=SLOTS)


def test_failed_save_keeps_the_old_file(tmp_path, monkeypatch):
    path = tmp_path / "p.safetensors"
    make().save(path)

    def fail(*args):
        raise OSError("no space left on device")

    monkeypatch.setattr(os, "replace", fail)
    with pytest.raises(OSError, match="no space"):
        make(pooling="cls").save(path)
    monkeypatch.undo()
    assert Prefix.load(path) == make()
    assert [file.name for file in tmp_path.iterdir()] == ["p.safetensors"]


def test_saved_files_follow_the_umask(tmp_path):
    old = os.umask(0o022)
    try:
        make().save(tmp_path / "p.safetensors")
    finally:
        os.umask(old)
    assert (tmp_path / "p.safetensors").stat().st_mode & 0o777 == 0o644


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"keys_values": np.zeros((2, 3, 3, 4, 8))}, "must have shape"),
        ({"keys_values": np.zeros((0, 2, 3, 4, 8))}, "must have shape"),
        ({"keys_values": np.zeros((2, 2, 3, 4, 0)), "slots": SLOTS}, "must have shape"),
        ({"keys_values": NO_POSITION}, "must have a position or slots, got neither"),
        ({"slots": 3}, "slots must be a Slots, got 3"),
        ({"slots": make_slots(2, 3, 8)}, r"24 features as the backbone has, got .*\(2, 3, 8\)"),
        ({"slots": make_slots(1, 3, 24)}, r"slot_keys must have 2 layers .*\(1, 3, 24\)"),
        ({"keys_values": np.full((2, 2, 3, 4, 8), np.nan)}, "not finite"),
        ({"classes": np.array([b"a", b"b"])}, "labels must be numbers, booleans or strings"),
        ({"classes": np.array(["a", "b"], dtype=object)}, "got classes of dtype object"),
        ({"pooling": "sum"}, "pooling must be one of .* got 'sum'"),
        ({"pairs": "both"}, "pairs must be one of .* got 'both'"),
        ({"prompt": 3}, "prompt must be a str, got 3"),
        ({"windows": 1}, "windows must be a bool, got 1"),
        ({"first_position": -1}, "first_position must be an int of at least 0, got -1"),
        ({"pooled_layers": True}, "pooled_layers must be an int of at least 1, got True"),
        ({"reading": None}, "reading must be a Reading, got None"),
        ({"max_length": 0}, "max_length must be an int of at least 8, got 0"),
        ({"max_length": "64"}, "max_length must be an int of at least 8, got '64'"),
        ({"backbone": 3}, "backbone must be a str, got 3"),
        ({"weight": np.zeros((2, 23))}, "head_weight must have 24 columns, got 23"),
        ({"bias": np.zeros(3)}, "head_bias must have shape"),
        ({"bias": None}, "head_bias has numbers that are not finite"),
        ({"pairs": "apart"}, "head_weight must have 72 columns, got 24"),
        ({"classes": np.array(["a"])}, "classes must have shape"),
    ],
)
def test_invalid_fields_are_refused(change, message):
    with pytest.raises(ValueError, match=message):
        make(**change)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"keys": np.ones((2, 24))}, r"slot_keys must have shape \(layer, slot, feature\), got"),
        ({"keys": np.ones((2, 0, 24))}, r"got \(2, 0, 24\)"),
        ({"biases": np.ones((2, 4))}, r"slot_biases must have shape \(2, 3\), got \(2, 4\)"),
        ({"values": np.ones((2, 3, 25))}, r"slot_values must have shape \(2, 3, 24\), got"),
        ({"values": np.full((2, 3, 24), np.inf)}, "slot_values has numbers that are not finite"),
    ],
)
def test_slots_that_do_not_fit_each_other_are_refused(change, message):
    with pytest.raises(ValueError, match=message):
        dataclasses.replace(SLOTS, **change)


def test_slots_are_immutable():
    source = np.zeros((2, 3), dtype=np.float32)
    slots = dataclasses.replace(SLOTS, biases=source)
    source += 1
    assert not slots.biases.any() and slots.length == 3
    for array in slots.tensors().values():
        assert array.dtype == np.float32
        with pytest.raises(ValueError, match="read-only"):
            array[0] = 1
    with pytest.raises(AttributeError):
        slots.keys = source


def test_facts_and_repr_say_how_long_a_prefix_is():
    prefix = make(slots=SLOTS, keys_values=NO_POSITION)
    assert (prefix.length, prefix.ffn_length, prefix.layout) == (0, 3, (2, 3, 8))
    assert "length=0, ffn_length=3" in repr(prefix)
    facts = prefix.facts()
    assert (facts["length"], facts["ffn_length"]) == (0, 3)
    n_numbers = 2 * 2 * 3 * 24 + 2 * 3 + 2 * 24 + 2  # slots, and the head
    assert facts["n_bytes"] == 4 * n_numbers
    assert make().ffn_length == 0 and make().slots is None


def test_new_field_of_a_reading_enters_digest_file_card_and_key():
    later = dataclasses.make_dataclass("Later", [("stride", int, 0)], bases=(Reading,), frozen=True)
    same, other = (make(reading=later("mean", 64, stride=stride)) for stride in (0, 7))
    assert same.digest == make().digest != other.digest
    assert b'"stride": 7' in other.to_bytes().replace(b'\\"', b'"')
    assert b"stride" not in same.to_bytes()
    cards = [prefix._card("me/it") for prefix in (same, other)]
    assert "stride" not in cards[0] and "stride=7" in cards[1]
    before, after = (
        Representation("f" * 64, (("d", 1.0),), "concat", prefix.reading, "float32")
        for prefix in (same, other)
    )
    assert before.digest != after.digest and before.keys(["a"]) != after.keys(["a"])
    assert after.to_dict()["reading.stride"] == 7
    assert before.to_dict() == dataclasses.replace(before, reading=make().reading).to_dict()
    # A field that this version does not know is refused, not ignored.
    with pytest.raises(ValueError, match="stride"):
        Prefix.from_bytes(other.to_bytes())
