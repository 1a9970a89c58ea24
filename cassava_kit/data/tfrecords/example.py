"""Read and write `tf.train.Example` without TensorFlow or protobuf. Entry points: `parse_example`, `make_example`."""

from __future__ import annotations

import struct
from collections.abc import Iterator

from cassava_kit.errors import UserError

VARINT, FIXED64, LENGTH, FIXED32 = 0, 1, 2, 5

Feature = list[bytes] | list[int] | list[float]


def parse_example(record: bytes) -> dict[str, Feature]:
    """Return the features of a serialised `tf.train.Example`: name -> list of bytes, int64 or float values.

    Reads protobuf's wire format: fields in any order, packed or not, unknown ones skipped.

    Raises:
        UserError: The record is no `tf.train.Example`, or damaged.
    """
    features: dict[str, Feature] = {}
    for entry in _messages(record, 1, 1):
        name, feature = b"", b""
        for field, _, value in _fields(entry):
            if field == 1 and isinstance(value, bytes):
                name = value
            elif field == 2 and isinstance(value, bytes):
                feature = value
        features[name.decode("utf-8")] = _parse_feature(feature)
    return features


def make_example(features: dict[str, Feature]) -> bytes:
    """Serialise features as a `tf.train.Example`; the inverse of `parse_example`."""
    entries = (
        _message(1, _message(1, name.encode()) + _message(2, _make_feature(values)))
        for name, values in features.items()
    )
    return _message(1, b"".join(entries))


def _parse_feature(content: bytes) -> Feature:
    """The list inside a `tf.train.Feature`: field 1 bytes, 2 float, 3 int64; the last one set counts."""
    values: Feature = []
    for kind, wire, content_list in _fields(content):
        if wire != LENGTH or not isinstance(content_list, bytes):
            continue
        if kind == 1:
            values = [value for field, _, value in _fields(content_list) if field == 1 and isinstance(value, bytes)]
        elif kind == 2:
            values = [number for value in _numbers(content_list) for number in _floats(value)]
        elif kind == 3:
            values = [number for value in _numbers(content_list) for number in _integers(value)]
    return values


def _make_feature(values: Feature) -> bytes:
    """A `tf.train.Feature` of bytes, int64 (packed) or float (packed) values."""
    if all(isinstance(value, bytes) for value in values):
        return _message(1, b"".join(_message(1, value) for value in values if isinstance(value, bytes)))
    if all(isinstance(value, int) for value in values):
        return _message(3, _message(1, b"".join(_varint(int(value) & (2**64 - 1)) for value in values)))
    return _message(2, _message(1, struct.pack(f"<{len(values)}f", *values)))


def _numbers(content: bytes) -> Iterator[bytes | int]:
    """The values of field 1 of a list of numbers: a packed run as bytes, a lone varint as int."""
    return (value for field, _, value in _fields(content) if field == 1)


def _floats(value: bytes | int) -> Iterator[float]:
    """Floats of one packed run, or of one fixed32 field (both little-endian)."""
    if isinstance(value, int) or len(value) % 4:
        raise UserError("expected whole 32-bit floats")
    return (number for (number,) in struct.iter_unpack("<f", value))


def _integers(value: bytes | int) -> Iterator[int]:
    """Signed 64-bit integers of one packed run of varints, or of one varint."""
    if isinstance(value, int):
        yield value - 2**64 if value >> 63 else value
        return
    position = 0
    while position < len(value):
        number, position = _read_varint(value, position)
        yield number - 2**64 if number >> 63 else number


def _messages(content: bytes, *path: int) -> Iterator[bytes]:
    """Every sub-message that lies at `path` (field numbers)."""
    for field, wire, value in _fields(content):
        if field == path[0] and wire == LENGTH and isinstance(value, bytes):
            if len(path) == 1:
                yield value
            else:
                yield from _messages(value, *path[1:])


def _fields(content: bytes) -> Iterator[tuple[int, int, bytes | int]]:
    """The fields of a protobuf message: number, wire type, and an int (varint) or bytes (all others)."""
    position, end = 0, len(content)
    while position < end:
        key, position = _read_varint(content, position)
        wire = key & 7
        if key < 8:
            raise UserError("expected a tf.train.Example, found field number 0")
        if wire == VARINT:
            number, position = _read_varint(content, position)
            yield key >> 3, wire, number
            continue
        if wire == LENGTH:
            length, position = _read_varint(content, position)
        elif wire in (FIXED64, FIXED32):
            length = 8 if wire == FIXED64 else 4
        else:
            raise UserError(f"expected a tf.train.Example, found wire type {wire}")
        if position + length > end:
            raise UserError("expected a tf.train.Example, a field runs past its end")
        yield key >> 3, wire, content[position : position + length]
        position += length


def _read_varint(content: bytes, position: int) -> tuple[int, int]:
    """A base-128 number of at most 64 bits, and the position after it."""
    number = 0
    for shift in range(0, 70, 7):
        if position >= len(content):
            break
        byte = content[position]
        position += 1
        number |= (byte & 127) << shift
        if byte < 128:
            return number & (2**64 - 1), position
    raise UserError("expected a tf.train.Example, a number has no end")


def _varint(number: int) -> bytes:
    """A number from 0 as base-128, low part first."""
    out = bytearray()
    while number > 127:
        out.append(number & 127 | 128)
        number >>= 7
    return bytes([*out, number])


def _message(field: int, content: bytes) -> bytes:
    """A length-delimited field."""
    return _varint(field << 3 | LENGTH) + _varint(len(content)) + content
