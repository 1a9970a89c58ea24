"""CRC32C (Castagnoli) in numpy, the checksum of TFRecords. Entry points: `crc32c` and `masked_crc32c`.

A CRC is linear: each word of the data adds (by XOR) its own value, advanced over the bytes that follow it. Tables hold
these values for the 64 words of a block; blocks, and blocks of blocks, are joined in the same way.
"""

from __future__ import annotations

from functools import cache

import numpy as np

POLYNOMIAL = 0x82F63B78  # reflected 0x1EDC6F41, RFC 3720
BLOCK_WORDS = 64  # words
SHORT = 64  # bytes: fewer are quicker one by one


def crc32c(content: bytes) -> int:
    """Return the CRC32C of bytes; `crc32c(b"123456789") == 0xE3069283`."""
    if len(content) < SHORT:
        return _crc_bytewise(content)
    # Zeros in front change nothing, and a start value of all ones is the same as flipping the first 32 bits.
    data = np.zeros(-(-len(content) // 4) * 4, np.uint8)
    data[-len(content) :] = np.frombuffer(content, np.uint8)
    data[len(data) - len(content) :][:4] ^= 255
    words, level = _join(data.view("<u4"), 0), 1
    while len(words) > 1:
        words, level = _join(words, level), level + 1
    return int(words[0]) ^ 0xFFFFFFFF


def masked_crc32c(content: bytes) -> int:
    """Return the CRC32C rotated and offset, as TFRecords store it."""
    crc = crc32c(content)
    return ((crc >> 15 | crc << 17) + 0xA282EAD8) & 0xFFFFFFFF


def _join(words: np.ndarray, level: int) -> np.ndarray:
    """Join every 64 words into one, from the end; a block short of words is filled with zeros in front."""
    table, offsets = _tables(level)
    missing = -len(words) % BLOCK_WORDS
    if missing:
        words = np.concatenate([np.zeros(missing, words.dtype), words])
    index = words.view(np.uint8).reshape(-1, 4 * BLOCK_WORDS) + offsets
    return np.bitwise_xor.reduce(table.take(index), axis=1)


@cache
def _tables(level: int) -> tuple[np.ndarray, np.ndarray]:
    """What byte b at place j of a block adds: `table[offsets[j] + b]`.

    Level 0 takes words of data (each still to be run through the register: 4 bytes more), others take registers.
    """
    state = np.arange(256, dtype="<u4") << (8 * np.arange(4, dtype="<u4"))[:, None]
    rows = [state]
    for _ in range(BLOCK_WORDS if level == 0 else BLOCK_WORDS - 1):
        rows.append(_advance(rows[-1], level))
    table = np.stack(rows[-1 : -BLOCK_WORDS - 1 : -1])
    return table.ravel(), np.arange(4 * BLOCK_WORDS, dtype=np.intp) * 256


def _advance(state: np.ndarray, level: int) -> np.ndarray:
    """Registers after as many zero bytes as one word of that level spans: 4, 256, 16384, ..."""
    if level == 0:
        for _ in range(4):
            state = _byte_table()[state & 255] ^ state >> 8
        return state
    last = _tables(level - 1)[0].reshape(BLOCK_WORDS, 4, 256)[
        0
    ]  # 256 bytes for level 0; for others one word short of it
    moved = np.bitwise_xor.reduce([last[k][state >> 8 * k & 255] for k in range(4)])
    return moved if level == 1 else _advance(moved, level - 1)


@cache
def _byte_table() -> np.ndarray:
    """The usual table: the register after one byte."""
    table = np.arange(256, dtype="<u4")
    for _ in range(8):
        table = np.where(table & 1, table >> 1 ^ np.uint32(POLYNOMIAL), table >> 1)
    return table


@cache
def _byte_list() -> list[int]:
    """The usual table as plain numbers."""
    return [int(value) for value in _byte_table()]


def _crc_bytewise(content: bytes) -> int:
    """The same number a byte at a time."""
    table, crc = _byte_list(), 0xFFFFFFFF
    for byte in content:
        crc = table[(crc ^ byte) & 255] ^ crc >> 8
    return crc ^ 0xFFFFFFFF
