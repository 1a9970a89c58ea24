"""The training table: what is read, and the one line that says what is wrong with a bad one."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from cassava_kit.competition import Competition
from cassava_kit.data.table import list_images, read_competition, read_table
from cassava_kit.errors import UserError


@pytest.fixture
def write(tmp_path: Path):
    def _write(content: str | bytes) -> Path:
        path = tmp_path / "train.csv"
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
        return path

    return _write


def folder(tmp_path: Path, ids: list[str], images: list[str]) -> Path:
    (tmp_path / "train_images").mkdir()
    for name in images:
        (tmp_path / "train_images" / name).write_bytes(b"x")
    (tmp_path / "train.csv").write_text("image_id,label\n" + "".join(f"{name},1\n" for name in ids))
    return tmp_path


def test_ids_stay_text_and_labels_become_numbers(write):
    frame = read_table(write("image_id,label\n007,3\n1e5.jpg,0\nNA,4\n"))
    assert frame["image_id"].tolist() == ["007", "1e5.jpg", "NA"]
    assert frame["label"].tolist() == [3, 0, 4]
    assert frame["label"].dtype == np.int64


def test_other_columns_order_and_line_ends_do_not_matter(write):
    plain = read_table(write("image_id,label\na.jpg,3\nb.jpg,1\n"))
    other = read_table(write(b'\xef\xbb\xbfimage_id,source,label\r\na.jpg,"x, y", 3\r\n\r\nb.jpg,,1\r\n\r\n'))
    assert plain.equals(other)


def test_line_ends_alone_end_a_row(write):
    """Reference: pandas, which ends no row at a form feed or U+2028 either."""
    path = write("image_id,label\na\u2028b.jpg,3\nc\x0cd.jpg,1\ne\x1cf.jpg,2\r\n")
    frame = read_table(path)
    assert frame["image_id"].tolist() == ["a\u2028b.jpg", "c\x0cd.jpg", "e\x1cf.jpg"]
    assert frame.equals(pd.read_csv(path).astype({"image_id": frame["image_id"].dtype}))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", "train.csv is empty; expected the header image_id,label"),
        ("\n\n", "train.csv is empty"),
        ("image_id,label\n", "has a header but no rows"),
        ("image_id,class\na.jpg,1\n", "line 1: expected the columns image_id,label, got image_id,class"),
        ("image_id;label\na.jpg;1\n", "line 1: expected the columns image_id,label, got image_id;label"),
        ("image_id,label,label\na.jpg,1,1\n", "line 1: expected the columns"),
        ("image_id,label\na.jpg,1\nb.jpg,5\n", "line 3: label must be a whole number in 0..4, got '5'"),
        ("image_id,label\na.jpg,-1\n", "line 2: label must be a whole number in 0..4, got '-1'"),
        ("image_id,label\na.jpg,1.5\n", "line 2: label must be a whole number in 0..4, got '1.5'"),
        ("image_id,label\na.jpg,\n", "line 2: label must be a whole number in 0..4, got ''"),
        ("image_id,label\na.jpg,\u0663\n", "line 2: label must be a whole number"),
        ("image_id,label\na.jpg,1\n\n,2\n", "line 4: image_id is empty"),
        ("image_id,label\na.jpg,1\nb.jpg,2\na.jpg,1\n", "line 4: 'a.jpg' is already on line 2"),
        ("image_id,label\na.jpg,1\nb.jpg\n", "line 3: expected 2 cells as in the header, got 1"),
        ("image_id,label\na.jpg,1,9\n", "line 2: expected 2 cells as in the header, got 3"),
        ('image_id,label\n"a.jpg,1\nb.jpg,2\n', "not a valid CSV row"),
        ('n,image_id,label\n"two\nlines",a.jpg,1\nx,b.jpg,7\n', "line 4: label must be"),
        (b"image_id,label\na.jpg,1\n\xe9.jpg,2\n", "line 3: not UTF-8 (byte 0xe9)"),
    ],
)
def test_a_bad_table_is_one_line_that_names_file_and_row(write, content, message):
    path = write(content)
    with pytest.raises(ValueError, match=re.escape(message)) as caught:
        read_table(path)
    assert str(caught.value).startswith(str(path))
    assert "\n" not in str(caught.value)


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"nowhere\.csv"):
        read_table(tmp_path / "nowhere.csv")
    with pytest.raises(FileNotFoundError, match="expected a CSV"):
        read_table(tmp_path)


def test_columns_and_classes_are_the_competitions(write):
    flowers = Competition("flowers", "Flowers", ("rose", "tulip"), id_column="file", label_column="kind")
    path = write("file,kind\na.jpg,1\nb.jpg,2\n")
    with pytest.raises(ValueError, match=r"line 3: kind must be a whole number in 0\.\.1"):
        read_table(path, flowers)


def test_images_no_row_names_are_listed_and_left_out(tmp_path):
    data = folder(tmp_path, ["a.jpg", "b.jpg"], ["a.jpg", "b.jpg", "z.jpg", "c.JPG", ".hidden.jpg", "notes.txt"])
    table = read_competition(data)
    assert table.frame["image_id"].tolist() == ["a.jpg", "b.jpg"]
    assert table.image_dir == data / "train_images"
    assert table.unlisted == ("c.JPG", "z.jpg")


def test_a_row_without_its_image_is_named_and_counted(tmp_path):
    data = folder(tmp_path, ["a.jpg", "b.jpg", "c.jpg"], ["a.jpg"])
    with pytest.raises(FileNotFoundError, match=r"train\.csv, line 3: no image 'b\.jpg' .*2 of 3 rows"):
        read_competition(data)


def test_an_id_cannot_point_outside_the_image_folder(tmp_path):
    data = folder(tmp_path, ["a.jpg"], ["a.jpg"])
    outside = tmp_path / "secret.jpg"
    outside.write_bytes(b"x")
    (data / "train_images" / "link.jpg").symlink_to(outside)
    for name in ("../train.csv", "../secret.jpg", str(outside), "x/../../secret.jpg", "..\\secret.jpg", "C:\\a.jpg"):
        (data / "train.csv").write_text(f"image_id,label\n{name},1\n")
        with pytest.raises(UserError, match=r"line 2: .* leads out of the images' folder"):
            read_competition(data)
        with pytest.raises(UserError, match=r"line 2: .* leads out"):
            read_table(data / "train.csv")
    (data / "train.csv").write_text("image_id,label\nlink.jpg,1\n")
    with pytest.raises(UserError, match=r"link\.jpg is a link to .*secret\.jpg, outside .*train_images"):
        read_competition(data)


def test_a_missing_image_folder_is_named(tmp_path):
    (tmp_path / "train.csv").write_text("image_id,label\na.jpg,1\n")
    with pytest.raises(FileNotFoundError, match=r"no folder .*train_images; of cassava-leaf.*run: cassava-kit init"):
        read_competition(tmp_path)


def test_list_images_is_sorted_and_takes_files_alone(tmp_path):
    for name in ("b.jpg", "a.png", "A.JPEG", "readme.md"):
        (tmp_path / name).touch()
    (tmp_path / "folder.jpg").mkdir()
    assert list_images(tmp_path) == ["A.JPEG", "a.png", "b.jpg"]
    with pytest.raises(FileNotFoundError, match="no folder"):
        list_images(tmp_path / "nowhere")


def test_a_large_table_is_read_row_for_row(write):
    labels = np.random.default_rng(0).integers(0, 5, 21_397)
    ids = [f"{n}.jpg" for n in np.random.default_rng(1).permutation(21_397)]
    text = "".join(f"{name},{label}\n" for name, label in zip(ids, labels, strict=True))
    frame = read_table(write("image_id,label\n" + text))
    assert frame["image_id"].tolist() == ids
    assert np.array_equal(frame["label"], labels)
