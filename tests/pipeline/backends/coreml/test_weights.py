"""weight.bin, as coremltools' own writer writes it."""

import struct

import numpy as np
import pytest

from pipeline.backends.coreml import weights
from pipeline.backends.coreml.values import KINDS
from pipeline.errors import InputError
from pipeline.quiet import quiet

STORED = [name for name, kind in KINDS.items() if kind.code is not None]


def numbers(kind, count):
    generator = np.random.default_rng(0)
    if kind.name.startswith("float"):
        return generator.normal(size=count).astype(kind.numpy)
    low = -(2 ** (kind.bits - 1)) if kind.name.startswith("int") else 0
    return generator.integers(low, low + 2**kind.bits, count).astype(kind.numpy)


def write(file, kind, values):
    with quiet():
        from coremltools.converters.mil.mil import types
        from coremltools.libmilstoragepython import _BlobStorageWriter

    writer = _BlobStorageWriter(str(file))
    name = {"float16": "fp16", "float32": "float"}.get(kind.name, kind.name)
    given = values.view(np.uint16) if kind.name == "float16" else values
    if kind.bits < 8:
        given = given.astype(types.nptype_from_builtin(getattr(types, name)))
    return getattr(writer, f"write_{name}_data")(given)


@pytest.mark.parametrize("count", [1, 5, 8, 1003])
@pytest.mark.parametrize("name", STORED)
def test_every_type_is_read_as_it_was_written(tmp_path, name, count):
    kind, file = KINDS[name], tmp_path / "weight.bin"
    values = numbers(kind, count)
    offset = write(file, kind, values)
    assert np.array_equal(weights.read(file, offset, kind, count), values)


@pytest.mark.parametrize("name", ["uint3", "int4", "uint6"])
def test_packed_numbers_are_unpacked_in_pieces(tmp_path, monkeypatch, name):
    monkeypatch.setattr(weights, "_CHUNK", 64)
    kind, file = KINDS[name], tmp_path / "weight.bin"
    values = numbers(kind, 333)
    assert np.array_equal(weights.read(file, write(file, kind, values), kind, 333), values)


@pytest.fixture
def damaged(tmp_path):
    """Write ten halves, change the file's bytes, and read it again."""

    def read(change=lambda data: data, offset=64, kind="float16", count=10):
        file = tmp_path / "weight.bin"
        assert write(file, KINDS["float16"], numbers(KINDS["float16"], 10)) == 64
        file.write_bytes(change(bytearray(file.read_bytes())))
        return weights.read(file, offset, KINDS[kind], count)

    return read


def patched(at, form, value):
    def change(data):
        struct.pack_into(form, data, at, value)
        return data

    return change


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"change": lambda data: data[:-1]}, "ends at byte 147, but bytes 128 to 148 are needed"),
        ({"change": lambda data: data[:100]}, "ends at byte 100, but bytes 64 to 128 are needed"),
        ({"change": lambda data: b""}, "ends at byte 0, but bytes 0 to 64 are needed"),
        ({"change": patched(4, "<I", 3)}, "its format is 3, not 2"),
        ({"change": patched(64, "<I", 0xDEADBEEE)}, "opens with 0xdeadbeee, not 0xdeadbeef"),
        ({"change": patched(68, "<I", 2)}, "is of type 2, but the specification takes it for float16"),
        ({"change": patched(72, "<Q", 18)}, "has 18 bytes, but 10 numbers of float16 are expected"),
        ({"change": patched(80, "<Q", 1 << 60)}, "ends at byte 148, but bytes 1152921504606846976 to"),
        ({"offset": 128}, "the record at byte 128 opens with|ends at byte 148"),
        ({"offset": 1 << 40}, "ends at byte 148, but bytes 1099511627776 to"),
        ({"kind": "float32"}, "is of type 1, but the specification takes it for float32"),
        ({"count": 11}, "has 20 bytes, but 11 numbers of float16 are expected"),
    ],
)
def test_a_bad_file_is_refused(damaged, given, message):
    with pytest.raises(InputError, match=rf"weight\.bin is damaged: .*({message}).*\. Copy the whole folder again"):
        damaged(**given)


def test_bits_that_are_left_over_have_to_fit(tmp_path):
    kind, file = KINDS["uint3"], tmp_path / "weight.bin"
    offset = write(file, kind, numbers(kind, 5))
    with pytest.raises(InputError, match=r"leaves 1 bits unused, which does not fit its length"):
        weights.read(file, offset, kind, 4)


def test_no_file(tmp_path):
    with pytest.raises(InputError, match=r"weight\.bin cannot be read: No such file.*copy the whole folder again"):
        weights.read(tmp_path / "weight.bin", 64, KINDS["float32"], 1)
