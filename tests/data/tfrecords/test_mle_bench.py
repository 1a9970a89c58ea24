"""MLE-bench's split, and a grade as its own functions give it."""

import hashlib
import json
import shutil

import numpy as np
import pandas as pd
import pytest
from sklearn.metrics import accuracy_score
from sklearn.model_selection import train_test_split

from cassava_kit.cli.app import run_app
from cassava_kit.cli.verbs import app
from cassava_kit.competition import CASSAVA
from cassava_kit.data.tfrecords import mle_bench
from cassava_kit.data.tfrecords.example import parse_example
from cassava_kit.data.tfrecords.mle_bench import prepare_mle_bench
from cassava_kit.data.tfrecords.records import read_records, write_tfrecords
from cassava_kit.evidence.medals import MEDALS, chance_of, grade_submission


@pytest.fixture
def data(tmp_path):
    """A competition of 64 images whose bytes are their names, with 16 record files of 4 rows in a mixed order."""
    folder = tmp_path / "competition"
    (folder / "train_images").mkdir(parents=True)
    rng = np.random.default_rng(0)
    table = pd.DataFrame({"image_id": [f"{n}.jpg" for n in rng.permutation(64)], "label": rng.integers(0, 5, 64)})
    for name in table["image_id"]:
        (folder / "train_images" / name).write_bytes(name.encode())
    table.to_csv(folder / "train.csv", index=False)
    (folder / "label_num_to_disease_map.json").write_text(json.dumps(dict(enumerate(CASSAVA.classes))))
    shuffled = table.sample(frac=1, random_state=1)
    write_tfrecords(folder / "train_tfrecords", shuffled, image_dir=folder / "train_images")
    return folder


def record_names(path):
    return [parse_example(record.data)["image_name"][0].decode() for record in read_records(path)]


def run(*arguments):
    return run_app(app, ["mle-bench", *map(str, arguments)])


def test_the_split_is_that_of_the_benchmark(data, tmp_path):
    prepared = prepare_mle_bench(data, tmp_path / "out")
    public, private = tmp_path / "out" / "public", tmp_path / "out" / "private"
    files = sorted((data / "train_tfrecords").iterdir())
    expected = {name for number in (1, 6) for name in record_names(files[number])}
    assert prepared.test_files == ("ld_train01-4.tfrec", "ld_train06-4.tfrec")
    assert [str(path) for path in files if path.name in prepared.test_files] == sorted(
        train_test_split([str(path) for path in files], test_size=0.1, random_state=0)[1]
    )
    whole = pd.read_csv(data / "train.csv")
    train, test = pd.read_csv(public / "train.csv"), pd.read_csv(private / "test.csv")
    assert set(test["image_id"]) == expected and len(test) == 8
    assert train.equals(whole[~whole["image_id"].isin(expected)].reset_index(drop=True)), "in the order of the table"
    sample = pd.read_csv(public / "sample_submission.csv")
    assert sample["image_id"].tolist() == test["image_id"].tolist() and set(sample["label"]) == {4}
    for folder, rows in (("train_images", train), ("test_images", test)):
        assert {path.name for path in (public / folder).iterdir()} == set(rows["image_id"])
        assert all((public / folder / name).read_bytes() == name.encode() for name in rows["image_id"])
    assert sorted(path.name for path in (public / "test_tfrecords").iterdir()) == [
        "ld_test00-4.tfrec",
        "ld_test01-4.tfrec",
    ]
    train_names = [path.name for path in sorted((public / "train_tfrecords").iterdir())]
    assert train_names == [f"ld_train{n:02d}-4.tfrec" for n in range(14)]
    assert (public / "label_num_to_disease_map.json").is_file()
    assert "md5 sums not compared" in str(prepared) and prepared.ok


def test_the_md5_sums_of_the_whole_competition_are_held(data, tmp_path, capsys, monkeypatch):
    out = tmp_path / "out"
    prepare_mle_bench(data, out)
    sums = {name: hashlib.md5((out / name).read_bytes()).hexdigest() for name in mle_bench.MD5_SUMS}
    monkeypatch.setattr(mle_bench, "COMPETITION_ROWS", 64)
    monkeypatch.setattr(mle_bench, "MD5_SUMS", sums)
    assert run("prepare", data, tmp_path / "again") == 0
    assert capsys.readouterr().out.count("as in MLE-bench") == 3
    monkeypatch.setattr(mle_bench, "MD5_SUMS", {**sums, "private/test.csv": "0" * 32})
    assert run("prepare", data, tmp_path / "third") == 1
    assert "private/test.csv: md5 " in capsys.readouterr().out


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda data: shutil.rmtree(data / "train_tfrecords"), "expected the competition's records in"),
        (lambda data: (data / "train_images" / "5.jpg").unlink(), "1 images of"),
        (lambda data: (data / "train.csv").write_text("id,label\n1.jpg,2\n"), "must have the columns image_id,label"),
        (lambda data: rename_image(data, "other.jpg"), "0 of 1 rows"),
        (lambda data: (data / "train.csv").write_text("image_id,label\nother.jpg,2\n"), "the first is other.jpg; give"),
        (lambda data: (data / "train.csv").write_text(""), "train.csv is empty"),
        (lambda data: (data / "train.csv").write_text("image_id;label\n1.jpg;2\n"), "divided by semicolons"),
        (lambda data: (data / "label_num_to_disease_map.json").unlink(), "give the folder of the downloaded"),
    ],
)
def test_what_is_missing_is_said_before_anything_is_written(data, tmp_path, capsys, damage, message):
    damage(data)
    assert run("prepare", data, tmp_path / "out") == 2
    assert message in capsys.readouterr().err and not (tmp_path / "out").exists()


def rename_image(data, name):
    """Leave one row, of an image that no record holds."""
    (data / "train.csv").write_text(f"image_id,label\n{name},2\n")
    (data / "train_images" / name).write_bytes(b"x")


def test_images_are_missed_before_the_records_are_read(data, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("cassava_kit.data.tfrecords.mle_bench._image_names", lambda files: pytest.fail("read"))
    (data / "train_images" / "5.jpg").unlink()
    assert run("prepare", data, tmp_path / "out") == 2 and "5.jpg" in capsys.readouterr().err


def test_a_folder_with_files_is_left_alone(data, tmp_path, capsys):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine.txt").write_text("mine")
    assert run("prepare", data, tmp_path / "out") == 2 and "holds files already" in capsys.readouterr().err
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["mine.txt"]


def test_the_test_records_are_never_read(data, tmp_path, capsys):
    prepare_mle_bench(data, tmp_path / "out")
    folder = tmp_path / "out" / "public" / "test_tfrecords"
    for source in (folder, folder / "ld_test00-4.tfrec"):
        assert run_app(app, ["tfrecords", str(source), "--out", str(tmp_path / "unpacked")]) == 2
        assert "may still hold the labels of the test images" in capsys.readouterr().err
    assert not (tmp_path / "unpacked").exists()


def answers_and_submission(folder, n, right):
    rng = np.random.default_rng(0)
    answers = pd.DataFrame({"image_id": [f"{i}.jpg" for i in range(n)], "label": rng.integers(0, 5, n)})
    said = answers.assign(label=np.where(np.arange(n) < right, answers["label"], (answers["label"] + 1) % 5))
    (folder / "private").mkdir()
    answers.to_csv(folder / "private" / "test.csv", index=False)
    said.sample(frac=1, random_state=0).to_csv(folder / "submission.csv", index=False)
    return answers, said


@pytest.mark.parametrize(
    ("right", "medal", "above"),
    [(2412, "gold", True), (2411, "silver", True), (2405, "bronze", True), (2390, None, True), (2384, None, False)],
)
def test_the_grade_is_accuracy_with_a_medal(tmp_path, capsys, right, medal, above):
    answers, said = answers_and_submission(tmp_path, 2676, right)
    grade = grade_submission(tmp_path / "submission.csv", tmp_path / "private")
    expected = round(accuracy_score(answers["label"], said["label"]), 5)
    assert grade.score.value == expected and grade.score.standard_error == pytest.approx(0.0058, abs=3e-4)
    assert (grade.medal, grade.above_median) == (medal, above)
    assert run("grade", tmp_path / "submission.csv", "--private", tmp_path / "private", "--json") == 0
    values = json.loads(capsys.readouterr().out)
    assert values["score"] == expected and values["medal"] == medal and set(values["chances"]) == set(MEDALS)
    assert "third-party figures" in str(grade)


@pytest.mark.parametrize(("true", "gold"), [(0.900, 0.41), (0.905, 0.74), (0.910, 0.94)])
def test_the_chance_of_gold_is_the_share_of_draws(true, gold):
    drawn = np.random.default_rng(0).binomial(2676, true, 200_000) / 2676
    share = (np.round(drawn, 5) >= 0.9013).mean()
    assert chance_of(0.9013, true, 2676) == pytest.approx(share, abs=0.005)
    assert chance_of(0.9013, true, 2676) == pytest.approx(gold, abs=0.02), "the normal approximation"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: t.iloc[1:], "has 29 rows, the test set has 30"),
        (lambda t: t.replace({"image_id": {"3.jpg": "x.jpg"}}), "x.jpg is not in the test set"),
        (lambda t: t.replace({"image_id": {"3.jpg": "4.jpg"}}), "an image has two rows"),
        (lambda t: t.rename(columns={"label": "target"}), "must have the columns image_id,label"),
        (lambda t: t.assign(label="CMD"), "must have a whole number as the label of each image"),
        (lambda t: t.assign(label=1.5), "must have a whole number as the label"),
        (lambda t: t.assign(label=[None, *t["label"][1:]]), "must have a whole number as the label"),
        (lambda t: t.iloc[:0], "got no row; give the .csv"),
    ],
)
def test_a_submission_of_other_rows_is_not_graded(tmp_path, capsys, change, message):
    answers_and_submission(tmp_path, 30, 20)
    change(pd.read_csv(tmp_path / "submission.csv")).to_csv(tmp_path / "submission.csv", index=False)
    assert run("grade", tmp_path / "submission.csv", "--private", tmp_path / "private") == 2
    assert message in capsys.readouterr().err


def test_answers_without_a_row_are_no_answers(tmp_path, capsys):
    answers_and_submission(tmp_path, 30, 20)
    for name in ("submission.csv", "private/test.csv"):
        (tmp_path / name).write_text("image_id,label\n")
    assert run("grade", tmp_path / "submission.csv", "--private", tmp_path / "private") == 2
    assert "got no row" in capsys.readouterr().err
