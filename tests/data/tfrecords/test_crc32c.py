"""CRC32C against its published answers and against the definition, bit by bit."""

from __future__ import annotations

import numpy as np
import pytest

from cassava_kit.data.tfrecords.crc32c import crc32c, masked_crc32c


def crc_by_definition(content: bytes) -> int:
    """Divide by the polynomial a bit at a time (RFC 3720)."""
    crc = 0xFFFFFFFF
    for byte in content:
        crc ^= byte
        for _ in range(8):
            crc = crc >> 1 ^ (0x82F63B78 if crc & 1 else 0)
    return crc ^ 0xFFFFFFFF


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (b"", 0),
        (b"123456789", 0xE3069283),
        (bytes(32), 0x8A9136AA),
        (b"\xff" * 32, 0x62A8AB43),
        (bytes(range(32)), 0x46DD794E),
        (bytes(range(31, -1, -1)), 0x113FDB5C),
    ],
)
def test_published_answers(content: bytes, expected: int) -> None:
    assert crc32c(content) == expected  # RFC 3720, B.4


@pytest.mark.parametrize("length", [*range(13), 255, 256, 257, 259, 260, 1000, 16383, 16384, 16385, 70001])
def test_equals_the_definition_at_every_kind_of_length(length: int) -> None:
    content = np.random.default_rng(length).bytes(length)
    assert crc32c(content) == crc_by_definition(content)


def test_four_levels_of_blocks() -> None:
    """Beyond 1 MiB: zeros in front of the data must count, so the long way is checked against its parts."""
    content = np.random.default_rng(0).bytes(2**20 + 77)
    assert crc32c(content) == crc_by_definition(content)


def test_every_flipped_bit_is_seen() -> None:
    content = bytes(range(64))
    flipped = {
        crc32c(bytes(b ^ (1 << bit if k == i else 0) for k, b in enumerate(content)))
        for i in range(64)
        for bit in range(8)
    }
    assert len(flipped) == 512 and crc32c(content) not in flipped


def test_mask_is_the_one_of_tfrecords() -> None:
    """TensorFlow writes this after the length of a record of 72 bytes."""
    assert masked_crc32c((72).to_bytes(8, "little")) == 0x9D4892FE
