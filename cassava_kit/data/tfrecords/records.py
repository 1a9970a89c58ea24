"""Read and write a competition's TFRecords without TensorFlow. Entry points: `unpack_tfrecords`, `TFRecordIndex`.

A file is a sequence of records: length (uint64), its masked CRC32C, the data, their masked CRC32C. The data are a
`tf.train.Example` with the features image, image_name and target; others are ignored.
"""

from __future__ import annotations

import re
import struct
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO, NamedTuple, TypeVar

from cassava_kit.competition import Competition, current
from cassava_kit.data.progress import track
from cassava_kit.data.table import to_written_columns
from cassava_kit.data.tfrecords.crc32c import masked_crc32c
from cassava_kit.data.tfrecords.example import Feature, make_example, parse_example
from cassava_kit.errors import UserError
from cassava_kit.files import atomic_path, write_text

if TYPE_CHECKING:
    import pandas as pd

SUFFIXES = (".tfrec", ".tfrecord", ".tfrecords")
NAMED_COUNT = re.compile(r"[A-Za-z_]\d\d-(\d+)\.tfrec$")  # ld_train00-1338.tfrec holds 1338 records
SHARD_NAME = "ld_train{shard:02d}-{count}.tfrec"
TEST_RECORDS = "test_tfrecords"
IMAGE, IMAGE_NAME, TARGET = "image", "image_name", "target"
HEADER, FOOTER = struct.Struct("<QI"), struct.Struct("<I")

TFRecordSource = str | Path | Iterable[str | Path]
_Value = TypeVar("_Value", bytes, int)


class Record(NamedTuple):
    """One record of a file: its number from 0, the offset of its header in bytes, and its data."""

    number: int
    offset: int
    data: bytes


class Sample(NamedTuple):
    """The three features of one record."""

    image_id: str
    content: bytes
    label: int


def read_records(path: str | Path) -> Iterator[Record]:
    """Yield every record of a file in order, one in memory at a time.

    Raises:
        UserError: A record is truncated or corrupt; the message names the file and the record, counted from 0.
    """
    path, number = Path(path), 0
    with path.open("rb") as file:
        while (record := _next_record(file, path, number)) is not None:
            yield record
            number += 1
    named = NAMED_COUNT.search(path.name)
    if named and number < int(named[1]):
        raise UserError(
            f"{path}, record {number}: the file ends where its name promises {named[1]} records; copy the file again"
        )


def _next_record(file: BinaryIO, path: Path, number: int) -> Record | None:
    """Read the record that starts here; None at the end of the file."""
    offset = file.tell()
    header = file.read(HEADER.size)
    if not header:
        return None
    try:
        return Record(number, offset, _read_data(file, header))
    except ValueError as error:
        raise UserError(f"{path}, record {number}: {error}; copy the file again") from None


def _read_data(file: BinaryIO, header: bytes) -> bytes:
    """Read the data that follow `header`, and check both checksums."""
    if len(header) < HEADER.size:
        raise UserError(f"truncated, {len(header)} of {HEADER.size} header bytes")
    length, length_crc = HEADER.unpack(header)
    if masked_crc32c(header[:8]) != length_crc:
        raise UserError("corrupt length (its CRC32C differs)")
    data = file.read(length)
    footer = file.read(FOOTER.size)
    if len(data) + len(footer) < length + FOOTER.size:
        raise UserError(f"truncated, {len(data) + len(footer)} of {length + FOOTER.size} bytes")
    if masked_crc32c(data) != FOOTER.unpack(footer)[0]:
        raise UserError("corrupt data (its CRC32C differs)")
    return data


def frame_record(data: bytes) -> bytes:
    """Return one record as the file holds it: header, data, footer."""
    length = struct.pack("<Q", len(data))
    return length + FOOTER.pack(masked_crc32c(length)) + data + FOOTER.pack(masked_crc32c(data))


def list_tfrecords(source: TFRecordSource) -> list[Path]:
    """Return the TFRecord files of a folder by name, or the named files.

    Raises:
        FileNotFoundError: The folder has none.
        UserError: It is `test_tfrecords`, whose records in MLE-bench's split still hold the test images' labels.
    """
    if not isinstance(source, str | Path):
        return [path for each in source for path in list_tfrecords(each)]
    source = Path(source)
    if TEST_RECORDS in (source.name, source.resolve().name, source.parent.name, source.resolve().parent.name):
        raise UserError(
            f"{source}: the records of {TEST_RECORDS} may still hold the labels of the test images (in MLE-bench's "
            "split they do); the kit never reads them; give train_tfrecords"
        )
    if source.is_file():
        return [source]
    files = sorted(path for path in source.glob("*") if path.suffix in SUFFIXES)
    if not files:
        raise FileNotFoundError(f"expected TFRecord files ({' '.join(SUFFIXES)}) in {source}, found none")
    return files


def _parse_sample(record: Record, path: Path, competition: Competition) -> Sample:
    """Return the three features of a record."""
    try:
        features = parse_example(record.data)
        content = _one_value(features, IMAGE, bytes)
        name = _one_value(features, IMAGE_NAME, bytes).decode("utf-8")
        label = _one_value(features, TARGET, int)
        if not 0 <= label < competition.n_classes:
            raise UserError(f"label must be in 0..{competition.n_classes - 1}, got {label}")
    except ValueError as error:
        raise UserError(f"{path}, record {record.number}: {error}") from None
    return Sample(name if name.endswith(competition.image_suffix) else competition.file_name(name), content, label)


def _one_value(features: dict[str, Feature], name: str, kind: type[_Value]) -> _Value:
    """Return the only value of a feature."""
    values = features.get(name)
    if values is None:
        raise UserError(f"expected a feature {name!r}, got {', '.join(sorted(features)) or 'none'}")
    if len(values) != 1 or not isinstance(values[0], kind):
        found = ", ".join(type(value).__name__ for value in values[:3]) or "nothing"
        raise UserError(f"feature {name!r} must be one {kind.__name__} value, got {len(values)} ({found})")
    return values[0]


@dataclass(frozen=True)
class RecordPosition:
    """File, number and offset of the record of one image, and its label."""

    path: Path
    number: int
    offset: int
    label: int


class TFRecordIndex:
    """Positions of all images by id; images are read one at a time.

    Building it reads every byte once and checks all checksums. It holds no open file, so worker processes may share it.
    """

    def __init__(self, source: TFRecordSource, competition: Competition | None = None) -> None:
        self.competition = competition or current()
        self.places: dict[str, RecordPosition] = {}
        for path in track(list_tfrecords(source), "Reading TFRecords"):
            for record in read_records(path):
                sample = _parse_sample(record, path, self.competition)
                self._add(sample, RecordPosition(path, record.number, record.offset, sample.label))

    def _add(self, sample: Sample, place: RecordPosition) -> None:
        first = self.places.setdefault(sample.image_id, place)
        if first is not place:
            raise UserError(
                f"{place.path}, record {place.number}: image {sample.image_id} is already record {first.number} of "
                f"{first.path}; each image needs exactly one record"
            )

    def __len__(self) -> int:
        return len(self.places)

    def read(self, image_id: str) -> bytes:
        """Read the bytes of one image and check their checksum.

        Raises:
            KeyError: There is no such id.
            UserError: The file has changed since the index was built.
        """
        place = self.places[image_id]
        with place.path.open("rb") as file:
            file.seek(place.offset)
            record = _next_record(file, place.path, place.number)
        if record is None:
            raise UserError(f"{place.path}, record {place.number}: the file has become shorter; build the index again")
        return _parse_sample(record, place.path, self.competition).content

    def table(self) -> pd.DataFrame:
        """Return `image_id,label`, sorted by `image_id` as the competition's CSV is."""
        import pandas as pd

        ids = sorted(self.places)
        return pd.DataFrame({"image_id": ids, "label": [self.places[image_id].label for image_id in ids]})


def unpack_tfrecords(source: TFRecordSource, out: str | Path, competition: Competition | None = None) -> pd.DataFrame:
    """Make a competition folder of TFRecord files: the images' bytes unchanged, and the table `image_id,label`.

    The table is written last, so that a folder that has one is complete.

    Raises:
        UserError: The folder has a table already, an image has two records, or a name is not a file name.
    """
    competition = competition or current()
    out = Path(out)
    if (out / competition.train_csv).exists():
        raise UserError(f"{out / competition.train_csv} exists already; give another --out, or remove it first")
    index = TFRecordIndex(source, competition)
    table = index.table()
    if table.empty:
        raise UserError(f"{source} holds no records; give a folder of .tfrec files, or one of them")
    for image_id in table["image_id"]:
        if Path(image_id).name != image_id or image_id in ("", ".", ".."):
            place = index.places[image_id]
            raise UserError(f"{place.path}, record {place.number}: {image_id!r} is not a file name")
    for image_id in table["image_id"]:
        with atomic_path(out / competition.train_images / image_id) as temporary:
            temporary.write_bytes(index.read(image_id))
    write_text(
        out / competition.train_csv, to_written_columns(table, competition).to_csv(index=False, lineterminator="\n")
    )
    return table


def write_tfrecords(folder: str | Path, table: pd.DataFrame, *, image_dir: Path, n_files: int = 16) -> list[Path]:
    """Write the images of `table` (`image_id,label`) as TFRecords named as the competition names them.

    The files hold the images' bytes unchanged; file k has the k-th part of the rows. One image is in memory at a time.
    """
    folder = Path(folder)
    paths = []
    for shard in range(n_files):
        rows = table.iloc[len(table) * shard // n_files : len(table) * (shard + 1) // n_files]
        paths.append(folder / SHARD_NAME.format(shard=shard, count=len(rows)))
        with atomic_path(paths[-1]) as temporary, temporary.open("wb") as file:
            for image_id, label in zip(rows["image_id"], rows["label"], strict=True):
                content = (image_dir / image_id).read_bytes()
                file.write(frame_record(make_example(_features(Sample(image_id, content, int(label))))))
    return paths


def _features(sample: Sample) -> dict[str, Feature]:
    """Return the three features by name."""
    return {IMAGE: [sample.content], IMAGE_NAME: [sample.image_id.encode("utf-8")], TARGET: [sample.label]}
