"""The submission file: what is written passes the check, and each thing the competition would refuse is refused."""

import csv
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from cassava_kit.competition import CASSAVA
from cassava_kit.errors import UserError
from cassava_kit.inference.submission import check_answers, check_submission, submission_ids, write_submission
from cassava_kit.kaggle.pack.kernels import SUBMISSION_KERNEL, render

ROOT = Path(__file__).parents[2]
NAMES = ["1.jpg", "a b.jpg", "ünï.jpg", 'c,"d".jpg']
HARD_NAMES = ["cr\r.jpg", "\rfirst.jpg", "cr\r\nlf.jpg", "lf\n.jpg", "comma,.jpg", '"quote.jpg', " space.jpg", "NA.jpg"]


@pytest.fixture
def images(tmp_path: Path) -> Path:
    folder = tmp_path / "images"
    folder.mkdir()
    for name in NAMES:
        (folder / name).write_bytes(b"x")
    return folder


def test_what_is_written_passes(images: Path, tmp_path: Path) -> None:
    path = tmp_path / "submission.csv"
    write_submission(path, sorted(NAMES), [3, 0, 4, 3])
    summary = check_answers(path, images)
    assert (summary.n_images, summary.class_counts) == (4, (1, 0, 0, 2, 1))
    assert path.read_text(encoding="utf-8").splitlines()[:2] == ["image_id,label", "1.jpg,3"]


def test_a_name_that_is_no_utf8_comes_back_as_its_bytes(tmp_path: Path) -> None:
    name = b"\xff\xfe.jpg"
    try:
        (tmp_path / "images").mkdir()
        Path(str(tmp_path / "images") + "/" + name.decode("utf-8", "surrogateescape")).write_bytes(b"x")
    except OSError:
        pytest.skip("this file system takes UTF-8 names only")
    path = tmp_path / "submission.csv"
    write_submission(path, [name.decode("utf-8", "surrogateescape")], [1])
    assert name in path.read_bytes()
    assert check_answers(path, tmp_path / "images").n_images == 1


def test_a_failed_write_leaves_the_old_file(images: Path, tmp_path: Path) -> None:
    path = tmp_path / "submission.csv"
    write_submission(path, sorted(NAMES), [3, 3, 3, 3])
    before = path.read_bytes()
    with pytest.raises(ValueError):
        write_submission(path, sorted(NAMES), [3, 3, 3])
    assert path.read_bytes() == before
    assert sorted(p.name for p in tmp_path.iterdir()) == ["images", "submission.csv"]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "columns image_id,label, got nothing"),
        ("image,label\n", "columns image_id,label, got image,label"),
        ("image_id,label,p\n", "columns"),
        ("image_id,label\n1.jpg,3,0\n", "row 2 must have 2 cells, got 3"),
        ("image_id,label\n1.jpg,3\na b.jpg,5\n", r"row 3 \(a b.jpg\).*0..4, got '5'"),
        ("image_id,label\n1.jpg,-1\n", "got '-1'"),
        ("image_id,label\n1.jpg,3.0\n", r"got '3\.0'"),
        ("image_id,label\n1.jpg,\n", "got ''"),
        ("image_id,label\n1.jpg,٣\n", "whole number"),
        ("image_id,label\n1.jpg,3\n1.jpg,3\n", "row 3 names 1.jpg again"),
        ("image_id,label\n1.jpg,3\n", r"no row for 3 of the 4 images .*first: a b.jpg"),
    ],
)
def test_refusals_name_the_file_and_the_row(images: Path, tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "submission.csv"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(ValueError, match=message) as caught:
        check_answers(path, images)
    assert str(path) in str(caught.value)


def test_a_row_for_an_image_that_is_not_there_is_refused(images: Path, tmp_path: Path) -> None:
    path = tmp_path / "submission.csv"
    write_submission(path, [*sorted(NAMES), "ghost.jpg"], [0] * 5)
    with pytest.raises(ValueError, match=r"row 6 names ghost\.jpg, which is not an image"):
        check_answers(path, images)


def test_a_missing_file_says_so(images: Path, tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="no submission"):
        check_answers(tmp_path / "none.csv", images)


def test_no_images_need_no_rows(tmp_path: Path) -> None:
    (tmp_path / "images").mkdir()
    write_submission(tmp_path / "s.csv", [], [])
    assert check_answers(tmp_path / "s.csv", tmp_path / "images").n_images == 0


def test_a_name_with_an_images_suffix_has_a_row_whatever_is_behind_it(images: Path, tmp_path: Path) -> None:
    (images / "folder.jpg").mkdir()
    (images / "gone.JPEG").symlink_to(images / "nothing")
    (images / ".hidden.jpg").write_bytes(b"x")
    (images / "notes.txt").write_bytes(b"x")
    assert submission_ids(images) == sorted([*NAMES, "folder.jpg", "gone.JPEG"])
    write_submission(tmp_path / "s.csv", sorted(NAMES), [0] * 4)
    with pytest.raises(ValueError, match=r"no row for 2 of the 6 images .*first: folder\.jpg"):
        check_answers(tmp_path / "s.csv", images)
    with pytest.raises(FileNotFoundError, match="no folder"):
        submission_ids(tmp_path / "nowhere")


def test_names_with_line_ends_commas_and_quotes_read_back(tmp_path: Path) -> None:
    (tmp_path / "images").mkdir()
    for name in HARD_NAMES:
        (tmp_path / "images" / name).write_bytes(b"x")
    path = tmp_path / "s.csv"
    write_submission(path, submission_ids(tmp_path / "images"), [0, 1, 2, 3, 4, 0, 1, 2])
    table = pd.read_csv(path, dtype={"image_id": str})
    assert table["image_id"].tolist() == sorted(HARD_NAMES) and table["label"].tolist() == [0, 1, 2, 3, 4, 0, 1, 2]
    with path.open(newline="") as file:
        assert [row[0] for row in csv.reader(file)] == ["image_id", *sorted(HARD_NAMES)]
    assert check_answers(path, tmp_path / "images").n_images == 8


def test_the_notebooks_first_file_reads_back(tmp_path: Path) -> None:
    """The first cells of the submission notebook, run as they are, over the same names."""
    root = tmp_path / "input" / "cassava"
    (root / "test_images").mkdir(parents=True)
    (root / "sample_submission.csv").write_text("image_id,label\n")
    for name in HARD_NAMES:
        (root / "test_images" / name).write_bytes(b"x")
    notebook = json.loads(render(SUBMISSION_KERNEL, ROOT, competition=CASSAVA)["ensemble-submission.ipynb"])
    cells = ["".join(cell["source"]) for cell in notebook["cells"] if cell["cell_type"] == "code"]
    first = next(n for n, cell in enumerate(cells) if "PART.replace(SUBMISSION)" in cell)
    assert not any("cassava_kit." in cell for cell in cells[: first + 1]), "the standard library alone"
    code = "\n".join(cells[: first + 1])
    places = {"KAGGLE_INPUT_DIR": str(tmp_path / "input"), "KAGGLE_WORKING_DIR": str(tmp_path)}
    subprocess.run([sys.executable, "-c", code], env=os.environ | places, check=True, capture_output=True)
    table = pd.read_csv(tmp_path / "submission.csv", dtype={"image_id": str})
    assert table["image_id"].tolist() == sorted(HARD_NAMES) and set(table["label"]) == {3}
    assert check_answers(tmp_path / "submission.csv", root / "test_images").class_counts == (0, 0, 0, 8, 0)


def test_a_notebooks_own_table_is_checked_against_the_ids_it_has(tmp_path: Path) -> None:
    table = pd.DataFrame({"id": ["b", "a", "c"], "class": [2, 0, 2]})
    own = {"id_column": "id", "columns": ["class"], "n_classes": 3}
    sample = pd.DataFrame({"id": ["a", "b", "c"], "class": [0, 0, 0]})
    sample.to_csv(tmp_path / "sample.csv", index=False)
    ids = ["a", "b", "c"]
    for given in (ids, np.array(ids), pd.Series(ids), sample, tmp_path / "sample.csv"):
        assert check_submission(table, given, **own).class_counts == (1, 0, 2)
    write_submission(tmp_path / "s.csv", table["id"], table["class"], id_column="id", columns=["class"])
    assert pd.read_csv(tmp_path / "s.csv").equals(table)
    assert check_submission(tmp_path / "s.csv", sample, **own).class_counts == (1, 0, 2)
    with pytest.raises(UserError, match=r"row 2 \(b\): the label must be a whole number in 0..1, got '2'"):
        check_submission(table, sample, **own | {"n_classes": 2})
    with pytest.raises(UserError, match="must begin with the columns image_id,label, got id,class"):
        check_submission(table, sample)
    with pytest.raises(UserError, match=r"row 4 names c, which is not an image in the ids given"):
        check_submission(table, ["a", "b"], **own)
    with pytest.raises(UserError, match=r"no row for 1 of the 4 images in the ids given \(first: d\)"):
        check_submission(table, ["a", "b", "c", "d"], **own)
    with pytest.raises(UserError, match=r"got '2\.0'"):
        check_submission(table.astype({"class": float}), sample, **own)
    with pytest.raises(UserError, match="must have the column id, got name"):
        check_submission(table, pd.DataFrame({"name": ["a"]}), **own)


def test_probabilities_by_class_are_written_and_checked(tmp_path: Path) -> None:
    columns, p = ["cat", "dog"], np.array([[0.25, 0.75], [1.0, 0.0]])
    write_submission(tmp_path / "s.csv", [10, 11], p, id_column="id", columns=columns)
    assert (tmp_path / "s.csv").read_text() == "id,cat,dog\n10,0.25,0.75\n11,1,0\n"
    summary = check_submission(tmp_path / "s.csv", [10, 11], id_column="id", columns=columns)
    assert summary.probabilities and summary.class_counts == (1, 1)
    with pytest.raises(UserError, match="2 probabilities that sum to 1"):
        check_submission(pd.DataFrame({"id": [10], "cat": [0.9], "dog": [0.9]}), [10], id_column="id", columns=columns)


@pytest.mark.parametrize(
    ("answers", "options", "message"),
    [
        ([1], {}, "one answer for each of the 2 images, got 1"),
        ([1, 2.5], {}, "whole numbers of at least 0, got 2.5"),
        ([1, -1], {}, "whole numbers of at least 0, got -1"),
        ([1, float("nan")], {}, "whole numbers of at least 0, got nan"),
        ([[0.5, 0.5], [1, 0]], {}, "take argmax first"),
        ([[0.5, 0.5], [1]], {"columns": ["p0", "p1"]}, r"expected 2 probabilities for each image, got \[1\]"),
        ([1, 2], {"columns": "label"}, "columns must be a list of column names, got 'label'"),
    ],
)
def test_answers_of_another_shape_are_refused_before_anything_is_written(
    tmp_path: Path, answers: list[object], options: dict[str, object], message: str
) -> None:
    with pytest.raises(UserError, match=message):
        write_submission(tmp_path / "s.csv", ["a", "b"], answers, **options)
    assert not (tmp_path / "s.csv").exists()


def test_what_is_no_table_and_no_list_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="the submission must be a CSV file or a DataFrame, got int"):
        check_submission(5, ["a"])
    table = pd.DataFrame({"image_id": ["a"], "label": [0]})
    with pytest.raises(UserError, match="image ids must be a list, array or column, got None"):
        check_submission(table, None)
    with pytest.raises(UserError, match="image ids must be a list, array or column, got 'abc'"):
        write_submission(tmp_path / "s.csv", "abc", [0, 1, 2])
    with pytest.raises(UserError, match="one answer for each of the 2 images, got 1"):
        write_submission(tmp_path / "s.csv", ["a", "b"], 3)


def test_an_id_that_is_given_twice_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="each image has one row, got b more than once"):
        write_submission(tmp_path / "s.csv", ["a", "b", "b"], [0, 1, 2])


def test_a_file_that_cannot_be_finished_leaves_the_old_one(
    images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "submission.csv"
    write_submission(path, sorted(NAMES), [3, 3, 3, 3])
    before, real = path.read_bytes(), Path.write_bytes

    def write_bytes(where: Path, content: bytes) -> int:
        real(where, content[: len(content) // 2])
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "write_bytes", write_bytes)
    with pytest.raises(OSError, match="No space left"):
        write_submission(path, sorted(NAMES), [0, 1, 2, 3])
    assert path.read_bytes() == before
    assert sorted(p.name for p in tmp_path.iterdir()) == ["images", "submission.csv"]
