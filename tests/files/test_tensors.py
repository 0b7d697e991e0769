"""Safetensors with a JSON header: round trips, and content that is refused."""

import json
import math

import numpy as np
import pytest
import safetensors.numpy
import torch

from prefixembed._files.tensors import pack_tensors, unpack_tensors

HEADER = {"text": "à\udc80", "tiny": 5e-324, "huge": math.inf, "list": [1, None, True]}


def file_of(header, body=b""):
    encoded = json.dumps(header).encode()
    return len(encoded).to_bytes(8, "little") + encoded + body


def with_metadata(header):
    return file_of({"__metadata__": {"prefixembed": header}})


def test_arrays_and_header_survive_a_round_trip():
    arrays = {
        "transposed": np.arange(6.0).reshape(2, 3).T,
        "big endian": np.arange(3, dtype=">f4"),
        "scalar": np.array(3, dtype=np.uint8),
        "empty": np.empty((0, 3)),
    }
    content = pack_tensors(HEADER, arrays)
    assert content == pack_tensors(HEADER, arrays)
    header, found = unpack_tensors(content, "p")
    assert header == HEADER and found.keys() == arrays.keys()
    for name, array in arrays.items():
        np.testing.assert_array_equal(found[name], array)
    assert unpack_tensors(pack_tensors({}, {}), "p") == ({}, {})


def test_tensors_of_any_dtype_survive_a_round_trip():
    tensors = {
        "transposed": torch.arange(6, dtype=torch.bfloat16).reshape(2, 3).T,
        "bytes": torch.arange(3, dtype=torch.uint8),
        "scalar": torch.tensor(3),
        "empty": torch.empty(0, 3),
    }
    content = pack_tensors(HEADER, tensors)
    header, found = unpack_tensors(content, "p", framework="torch")
    assert header == HEADER and found.keys() == tensors.keys()
    for name, tensor in tensors.items():
        assert found[name].dtype == tensor.dtype and torch.equal(found[name], tensor)


NOT_SAFETENSORS = [
    b"",
    b"1234567",
    b"\xff" * 20,
    b"a text of some length",
    file_of([]),
    file_of({"x": {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}}),
    file_of({"x": {"dtype": "F32", "shape": [9], "data_offsets": [0, 8]}}, b"8 bytes."),
    file_of({"x": {"dtype": "F32", "shape": [2**63, 0], "data_offsets": [0, 0]}}),
    file_of({"x": {"dtype": "F32", "shape": [2**61, 2**61, 0], "data_offsets": [0, 0]}}),
    file_of({"x": {"dtype": "F8_E8M0", "shape": [2], "data_offsets": [0, 2]}}, b"ab"),
    with_metadata(3),
]
OTHERS = [
    (file_of({}), "holds no prefixembed header"),
    (safetensors.numpy.save({"a": np.ones(2)}, {"format": "np"}), "holds no prefixembed header"),
    (with_metadata("{"), "cannot be read"),
    (with_metadata("[" * 10**5), "cannot be read"),
    (with_metadata("[1]"), "cannot be read: its header is a list, not an object"),
]


@pytest.mark.parametrize("framework", ["numpy", "torch"])
@pytest.mark.parametrize(
    ("content", "message"),
    [*((content, "is not a safetensors file") for content in NOT_SAFETENSORS), *OTHERS],
)
def test_other_content_is_refused_by_name(content, message, framework):
    with pytest.raises(ValueError, match=f"^'some file' {message}"):
        unpack_tensors(content, "'some file'", framework=framework)
