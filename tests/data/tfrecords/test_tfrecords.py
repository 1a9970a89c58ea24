"""TFRecords without TensorFlow: what is written is read back, what is broken is named."""

from __future__ import annotations

import pickle
import struct
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from cassava_kit.competition import CASSAVA, Competition
from cassava_kit.data.table import read_competition
from cassava_kit.data.tfrecords.example import make_example, parse_example
from cassava_kit.data.tfrecords.records import (
    TFRecordIndex,
    frame_record,
    read_records,
    unpack_tfrecords,
    write_tfrecords,
)

FEATURES = {"image": [b"\xff\xd8jpeg\xff\xd9"], "image_name": [b"7.jpg"], "target": [3]}


def record_of(**features: object) -> bytes:
    """A framed record of the three features, some replaced, those set to None left out."""
    merged = {name: values for name, values in {**FEATURES, **features}.items() if values is not None}
    return frame_record(make_example(merged))


TENSORFLOW_WROTE = bytes.fromhex(
    "4800000000000000fe92489d0a460a200a0a696d6167655f6e616d6512120a100a0e313030303031353135372e6a7067"
    "0a110a05696d61676512080a060a04ffd8ffd90a0f0a0674617267657412051a030a010341ad439b"
)
"""A file of one record as TensorFlow 2.21 writes it (`tf.io.TFRecordWriter`, deterministic serialisation)."""


def samples(source: Path, competition: Competition = CASSAVA) -> list[tuple[str, bytes, int]]:
    """Every image of the files as (image_id, bytes, label), in the files' order."""
    index = TFRecordIndex(source, competition)
    return [(image_id, index.read(image_id), place.label) for image_id, place in index.places.items()]


@pytest.fixture
def images(tmp_path: Path) -> tuple[pd.DataFrame, Path]:
    """Twenty files of random bytes with their table."""
    rng = np.random.default_rng(0)
    folder = tmp_path / "images"
    folder.mkdir()
    table = pd.DataFrame({"image_id": [f"{n}.jpg" for n in range(100, 120)], "label": rng.integers(0, 5, 20)})
    for n, image_id in enumerate(table["image_id"]):
        (folder / image_id).write_bytes(rng.bytes(50 + 37 * n))
    return table, folder


# --- tf.train.Example ----------------------------------------------------------------------------------------------


def field(number: int, content: bytes) -> bytes:
    """A length-delimited field, short enough for one length byte."""
    assert len(content) < 128
    return bytes([number << 3 | 2, len(content)]) + content


def entry(name: bytes, feature: bytes) -> bytes:
    return field(1, field(1, name) + field(2, feature))


@pytest.mark.parametrize(
    ("feature", "expected"),
    [
        (b"", []),
        (field(1, field(1, b"a") + field(1, b"")), [b"a", b""]),
        (field(3, field(1, b"\x03\x96\x01")), [3, 150]),  # packed
        (field(3, b"\x08\x03\x08\x96\x01"), [3, 150]),  # not packed
        (field(3, b"\x08\x03" + field(1, b"\x96\x01\x05")), [3, 150, 5]),  # mixed
        (field(3, field(1, b"\xff" * 9 + b"\x01")), [-1]),
        (field(3, b"\x08" + b"\xfe" + b"\xff" * 8 + b"\x01"), [-2]),
        (field(2, field(1, struct.pack("<2f", 0.5, -2.0))), [0.5, -2.0]),  # packed
        (field(2, b"\x0d" + struct.pack("<f", 0.25) + b"\x0d" + struct.pack("<f", 4.0)), [0.25, 4.0]),  # not packed
    ],
)
def test_every_kind_of_list_is_read(feature: bytes, expected: list) -> None:
    values = parse_example(field(1, entry(b"x", feature)))["x"]
    assert values == expected
    assert [type(value) for value in values] == [type(value) for value in expected]


def test_order_of_fields_and_unknown_fields_do_not_matter() -> None:
    unknown = (
        field(9, b"zz") + b"\x50\x07" + b"\x59" + b"\xff" * 8 + b"\x5d" + b"\xff" * 4
    )  # bytes, varint, fixed64, fixed32
    value_first = field(1, field(2, unknown + field(3, unknown + b"\x08\x05")) + unknown + field(1, b"b"))
    example = unknown + field(1, entry(b"a", field(1, field(1, b"x")))) + field(1, unknown + value_first)
    assert parse_example(example) == {"a": [b"x"], "b": [5]}


def test_a_repeated_name_keeps_the_last_value() -> None:
    example = field(1, entry(b"a", field(3, b"\x08\x01")) + entry(b"a", field(3, b"\x08\x02")))
    assert parse_example(example) == {"a": [2]}


def test_round_trip_of_examples() -> None:
    features = {
        "bytes": [b"", b"\x00" * 300, "é".encode()],
        "int64": [0, 1, -1, 2**63 - 1, -(2**63), 127, 128],
        "float": [0.0, -1.5, 1e30],
        "ü": [b"name"],
    }
    again = parse_example(make_example(features))
    assert again.pop("float") == pytest.approx(features.pop("float"), rel=1e-6)
    assert again == features


def test_no_prefix_of_an_example_is_taken_for_a_whole_one() -> None:
    whole = make_example(FEATURES)
    for length in range(len(whole)):
        try:
            features = parse_example(whole[:length])
        except ValueError:
            continue
        assert length == 0 and features == {}


@pytest.mark.parametrize("broken", [b"\x0b", b"\x0c", b"\x00\x00", b"\xff" * 11, b"\x0a\x05ab", b"\x0a"])
def test_what_is_no_example_is_refused(broken: bytes) -> None:
    with pytest.raises(ValueError, match=r"tf\.train\.Example"):
        parse_example(broken)


# --- records -------------------------------------------------------------------------------------------------------


def test_records_round_trip(tmp_path: Path) -> None:
    records = [b"", b"a", np.random.default_rng(1).bytes(70_000), b"last"]
    path = tmp_path / "x.tfrec"
    path.write_bytes(b"".join(map(frame_record, records)))
    assert [record.data for record in read_records(path)] == records
    (tmp_path / "empty.tfrec").touch()
    assert list(read_records(tmp_path / "empty.tfrec")) == []


@pytest.mark.parametrize("position", range(4 + 8 + 4 + 6))
def test_a_flipped_bit_anywhere_names_file_and_record(tmp_path: Path, position: int) -> None:
    good, bad = frame_record(b"first"), bytearray(frame_record(b"second"))
    bad[position] ^= 1 << position % 8
    path = tmp_path / "broken.tfrec"
    path.write_bytes(good + bytes(bad) + good)
    records = read_records(path)
    assert next(records).data == b"first"
    with pytest.raises(
        ValueError, match=r"broken\.tfrec, record 1: corrupt " + ("length" if position < 12 else "data")
    ):
        next(records)


def test_truncation_at_any_byte_names_file_and_record(tmp_path: Path) -> None:
    one = frame_record(b"0123456789")
    path = tmp_path / "cut.tfrec"
    for length in range(3 * len(one)):
        path.write_bytes((3 * one)[:length])
        if length % len(one) == 0:  # whole records: only the count in a name can tell
            assert len(list(read_records(path))) == length // len(one)
            continue
        with pytest.raises(ValueError, match=rf"cut\.tfrec, record {length // len(one)}: truncated"):
            list(read_records(path))


def test_a_file_cut_between_records_is_betrayed_by_its_name(tmp_path: Path) -> None:
    path = tmp_path / "ld_train03-3.tfrec"
    path.write_bytes(2 * frame_record(b"x"))
    with pytest.raises(ValueError, match=r"ld_train03-3\.tfrec, record 2: .* promises 3 records"):
        list(read_records(path))
    path.write_bytes(3 * frame_record(b"x"))
    assert len(list(read_records(path))) == 3


# --- the competition -----------------------------------------------------------------------------------------------


def test_images_and_table_round_trip(tmp_path: Path, images: tuple[pd.DataFrame, Path]) -> None:
    table, folder = images
    paths = write_tfrecords(tmp_path / "records", table, image_dir=folder, n_files=3)
    assert [path.name for path in paths] == ["ld_train00-6.tfrec", "ld_train01-7.tfrec", "ld_train02-7.tfrec"]
    found = samples(tmp_path / "records")
    assert [image_id for image_id, _, _ in found] == table["image_id"].tolist()
    assert [label for _, _, label in found] == table["label"].tolist()
    assert all(content == (folder / image_id).read_bytes() for image_id, content, _ in found)
    pd.testing.assert_frame_equal(TFRecordIndex(tmp_path / "records").table(), table)
    assert [image_id for image_id, _, _ in samples(paths[2])] == table["image_id"].tolist()[13:]
    pd.testing.assert_frame_equal(TFRecordIndex(reversed(paths)).table(), table)


def test_an_index_reads_any_image_alone(tmp_path: Path, images: tuple[pd.DataFrame, Path]) -> None:
    table, folder = images
    index = TFRecordIndex(write_tfrecords(tmp_path / "records", table, image_dir=folder, n_files=3))
    assert len(index) == len(table)
    copy = pickle.loads(pickle.dumps(index))
    for image_id in reversed(table["image_id"].tolist()):
        assert index.read(image_id) == copy.read(image_id) == (folder / image_id).read_bytes()
    with pytest.raises(KeyError):
        index.read("1.jpg")


def test_an_index_notices_what_happens_to_its_file(tmp_path: Path, images: tuple[pd.DataFrame, Path]) -> None:
    table, folder = images
    (path,) = write_tfrecords(tmp_path / "records", table, image_dir=folder, n_files=1)
    index = TFRecordIndex(path)
    content = path.read_bytes()
    path.write_bytes(content[:-60] + bytes([content[-60] ^ 1]) + content[-59:])
    with pytest.raises(ValueError, match=r"ld_train00-20\.tfrec, record 19: corrupt data"):
        index.read("119.jpg")
    assert index.read("100.jpg") == (folder / "100.jpg").read_bytes()
    path.write_bytes(content[:100])
    with pytest.raises(ValueError, match=r"record 19: .*shorter"):
        index.read("119.jpg")


def test_what_tensorflow_wrote_is_read(tmp_path: Path) -> None:
    path = tmp_path / "x.tfrec"
    path.write_bytes(TENSORFLOW_WROTE)
    assert list(samples(path)) == [("1000015157.jpg", b"\xff\xd8\xff\xd9", 3)]


def test_records_are_framed_as_tensorflow_frames_them() -> None:
    features = {"image_name": [b"1000015157.jpg"], "image": [b"\xff\xd8\xff\xd9"], "target": [3]}
    assert frame_record(make_example(features)) == TENSORFLOW_WROTE


def test_names_without_suffix_become_files_with_one(tmp_path: Path) -> None:
    path = tmp_path / "x.tfrec"
    path.write_bytes(frame_record(make_example({"image_name": [b"ISIC_7"], "image": [b"\x89PNG"], "target": [1]})))
    other = replace(CASSAVA, image_suffix=".png", ids_have_suffix=False)
    assert [image_id for image_id, _, _ in samples(path, other)] == ["ISIC_7.png"]
    unpack_tfrecords(path, tmp_path / "out", other)
    assert (tmp_path / "out" / "train.csv").read_text() == "image_id,label\nISIC_7,1\n"
    assert (tmp_path / "out" / "train_images" / "ISIC_7.png").read_bytes() == b"\x89PNG"


def test_other_features_are_ignored(tmp_path: Path) -> None:
    path = tmp_path / "x.tfrec"
    path.write_bytes(record_of(width=[800], phash=[b"abc"], embedding=[0.5, 1.5]))
    assert list(samples(path)) == [("7.jpg", b"\xff\xd8jpeg\xff\xd9", 3)]


@pytest.mark.parametrize(
    ("features", "message"),
    [
        ({"target": None}, r"expected a feature 'target', got image, image_name"),
        ({"target": [5]}, r"label must be in 0\.\.4, got 5"),
        ({"target": [-1]}, r"label must be in 0\.\.4, got -1"),
        ({"target": [1, 2]}, r"'target' must be one int value, got 2"),
        ({"target": [b"3"]}, r"'target' must be one int value, got 1 \(bytes\)"),
        ({"target": [0.5]}, r"'target' must be one int value, got 1 \(float\)"),
        ({"image": [4]}, r"'image' must be one bytes value"),
        ({"image_name": [b"\xff"]}, r"utf-8"),
    ],
)
def test_wrong_features_name_file_and_record(tmp_path: Path, features: dict, message: str) -> None:
    path = tmp_path / "odd.tfrec"
    path.write_bytes(record_of() + record_of(**features))
    with pytest.raises(ValueError, match=r"odd\.tfrec, record 1: .*" + message):
        list(samples(path))


def test_an_image_in_two_records_is_refused(tmp_path: Path) -> None:
    for name in ("a.tfrec", "b.tfrec"):
        (tmp_path / name).write_bytes(record_of())
    with pytest.raises(ValueError, match=r"b\.tfrec, record 0: image 7\.jpg is already record 0 of .*a\.tfrec"):
        TFRecordIndex(tmp_path)


def test_a_folder_without_records_is_named(tmp_path: Path) -> None:
    (tmp_path / "readme.txt").touch()
    for source in (tmp_path, tmp_path / "missing"):
        with pytest.raises(FileNotFoundError, match=f"TFRecord files .* in {source}, found none"):
            list(samples(source))


def test_unpacked_records_are_the_competitions_folder(tiny_dir: Path, tmp_path: Path) -> None:
    out = tmp_path / "unpacked"
    unpack_tfrecords(tiny_dir / "train_tfrecords", out)
    csv, records = read_competition(tiny_dir), read_competition(out)
    assert csv.frame.equals(records.frame) and not records.unlisted
    for image_id in csv.frame["image_id"]:
        assert (csv.image_dir / image_id).read_bytes() == (records.image_dir / image_id).read_bytes()
    before = (out / "train.csv").read_bytes()
    with pytest.raises(ValueError, match="exists already; give another --out"):
        unpack_tfrecords(tiny_dir / "train_tfrecords", out)
    assert (out / "train.csv").read_bytes() == before


@pytest.mark.parametrize("name", [b"../7.jpg", b"/tmp/7.jpg", b"a/7.jpg", b".."])
def test_a_record_cannot_write_outside_the_folder(tmp_path: Path, name: bytes) -> None:
    (tmp_path / "odd.tfrec").write_bytes(record_of(image_name=[name]))
    with pytest.raises(ValueError, match=r"odd\.tfrec, record 0: .* is not a file name"):
        unpack_tfrecords(tmp_path / "odd.tfrec", tmp_path / "a" / "out")
    assert not (tmp_path / "a").exists()
