"""Folders as people have them: what `init` recognises, and that its facts read the very images and labels back."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

import cv2
import numpy as np
import pandas as pd
import pytest

from cassava_kit.competition import Competition, facts, parse_facts
from cassava_kit.data.new_competition import gather_facts, init_competition
from cassava_kit.data.shape import find_class_folders, role_of
from cassava_kit.data.sheets import find_separator
from cassava_kit.data.table import list_training_images, read_competition, read_labels, to_written_columns
from cassava_kit.data.to_predict import read_test
from cassava_kit.errors import UserError
from cassava_kit.inference.submission import check_answers, write_answers

NAMES = ("zebra", "yak", "wild boar, big")


def touch(folder: Path, *names: str) -> Path:
    """Files without content: nothing here may open an image."""
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(b"")
    return folder


def labels_of(data: Path, competition: Competition) -> dict[str, str]:
    """Image -> class name, as the kit reads them, and the facts survive their file."""
    assert parse_facts(json.loads(json.dumps(facts(competition))), "c") == competition
    table = read_competition(data, competition)
    assert read_labels(data, competition).equals(table.frame)
    assert list_training_images(data, competition) >= set(table.frame["image_id"])
    assert all((table.image_dir / name).is_file() for name in table.frame["image_id"])
    return dict(zip(table.frame["image_id"], [competition.classes[k] for k in table.frame["label"]], strict=True))


def submission_of(data: Path, competition: Competition, folder: Path) -> pd.DataFrame:
    """A submission that answers class 0, 1, 2, ... in turn, written and checked."""
    names = read_test(data, competition).names
    answers = np.arange(len(names)) % competition.n_classes
    if competition.probability_columns:
        answers = np.eye(competition.n_classes)[answers]
    write_answers(folder / "s.csv", names, answers, competition)
    assert check_answers(folder / "s.csv", names, competition).n_images == len(names)
    return pd.read_csv(folder / "s.csv", dtype=str)


def test_class_folders_in_train_valid_and_test_with_mixed_suffixes_and_strays(tmp_path):
    data = touch(tmp_path / "My Flowers (2024)")
    classes = ("9", "10", "Löwenzahn", "fire lily", "orange, bird")
    for name in classes:
        touch(data, *(f"train/{name}/{n}{('.jpg', '.JPG', '.png', '.jpeg')[n % 4]}" for n in range(8)))
        touch(data, *(f"valid/{name}/{n}.jpg" for n in range(2)))
    touch(data, "test/a.jpg", "test/b.PNG", ".DS_Store", "train/10/Thumbs.db", "train/10/desktop.ini", "notes.txt")
    touch(data, "train/10/._0.jpg", "__MACOSX/train/10/0.jpg", ".cache/x.jpg")
    made = gather_facts({}, data=data)
    competition = made.competition
    assert (competition.slug, competition.classes) == ("my-flowers-2024", classes)
    assert competition.train_images == "." and competition.class_folders == ("train", "valid")
    expected = {f"{part}/{name}/{path.name}": name for part in ("train", "valid") for name in classes
                for path in (data / part / name).iterdir() if path.suffix.lower() in (".jpg", ".png", ".jpeg")
                and not path.name.startswith(".")}  # fmt: skip
    assert labels_of(data, competition) == expected and len(expected) == 50
    table = submission_of(data, competition, tmp_path)
    assert table.to_dict("list") == {"image_id": ["a.jpg", "b.PNG"], "label": ["9", "10"]}
    said = "\n".join(made.lines)
    assert "50 (20 .jpg, 10 .JPG, 10 .jpeg, 10 .png) in 5 class folders of train/ and valid/" in said
    assert "10 each" in said and "images to predict: 2 in test/" in said
    assert "no sample submission: a submission will have image_id,label" in said
    assert "metric: accuracy (assumed; --metric takes" in said and "slug: my-flowers-2024" in said


def test_class_folders_at_the_root_set_a_part_apart(tmp_path):
    data = tmp_path / "pets"
    touch(data, *(f"cat/{n}.jpg" for n in range(25)), *(f"dog/old/{n}.jpg" for n in range(14)))
    competition = gather_facts({}, data=data).competition
    trained, tests = labels_of(data, competition), read_test(data, competition)
    assert competition.test_share == 0.1 and competition.training_images == len(trained) == 39 - 3
    counts = Counter(name.partition("/")[0] for name in tests.names)
    assert counts == {"cat": 2, "dog": 1} and not set(tests.names) & trained.keys()
    assert len(set(tests.names) | trained.keys()) == 39 and all(trained[name] == name[:3] for name in trained)
    touch(
        data, *(f"cat/more{n}.jpg" for n in range(5))
    )  # another file changes nothing of the others' parts but its own
    assert len(read_test(data, competition).names) == 4
    assert submission_of(data, competition, tmp_path)["label"].tolist() == ["cat", "dog", "cat", "dog"]
    assert list_training_images(data, competition).isdisjoint(read_test(data, competition).names)


def test_a_few_images_set_one_apart(tmp_path):
    data = touch(tmp_path / "tiny", "a/1.jpg", "a/2.jpg", "b/1.jpg", "b/2.jpg", "b/3.jpg")
    competition = gather_facts({}, data=data).competition
    (name,) = read_test(data, competition).names
    assert name.startswith("b/") and len(labels_of(data, competition)) == 4


@pytest.mark.parametrize("wrapped", ["", "archive/", "archive/data set/"])
def test_folders_that_hold_one_folder_are_passed_through(tmp_path, wrapped):
    data = tmp_path / "intel"
    for part in ("seg_train/seg_train", "seg_test/seg_test"):
        touch(data, *(f"{wrapped}{part}/{name}/{n}.jpg" for name in ("sea", "street") for n in range(3)))
    touch(data, *(f"{wrapped}seg_pred/seg_pred/{n}.jpg" for n in range(8)))
    competition = gather_facts({}, data=data).competition
    assert (
        labels_of(data, competition) == {f"{name}/{n}.jpg": name for name in ("sea", "street") for n in range(3)}
        and competition.train_images == f"{wrapped}seg_train/seg_train"
    )
    assert read_test(data, competition).names == tuple(f"{n}.jpg" for n in range(8))


def test_a_sample_submission_beside_class_folders_says_the_form(tmp_path):
    data = tmp_path / "seedlings"
    touch(data, *(f"train/Class {k}/{k}{n}.png" for k in range(1, 13) for n in range(3)))
    touch(data, *(f"test/t{n}.png" for n in range(4)))
    (data / "sample_submission.csv").write_text("file,species\n" + "".join(f"t{n}.png,Class 3\n" for n in range(4)))
    competition = gather_facts({}, data=data).competition
    assert competition.classes == tuple(f"Class {k}" for k in range(1, 13))  # 2 before 10
    assert len(labels_of(data, competition)) == 36
    table = submission_of(data, competition, tmp_path)
    assert table.to_dict("list") == {"file": [f"t{n}.png" for n in range(4)], "species": list(competition.classes[:4])}


@pytest.mark.parametrize(("mark", "name"), [(";", "labels.csv"), ("\t", "all.tsv"), ("|", "csv/annotations.txt")])
def test_names_in_a_table_of_another_name_and_separator(tmp_path, mark, name):
    data = tmp_path / "animals"
    rows = []
    for k, kind in enumerate(NAMES):
        for n in range(6):
            touch(data, f"images/part{n % 2}/p{k}_{n}{('.jpg', '.JPG', '.png')[n % 3]}")
            rows.append(mark.join([f"p{k}_{n}", kind, str(n)]))
    touch(data, *(f"test/q{n}.png" for n in range(3)))
    touch(data, name).joinpath(name).write_text("\n".join([mark.join(["photo", "species", "weight"]), *rows]) + "\n")
    (data / "sample_submission.csv").write_text("photo,species\n" + "".join(f"q{n},yak\n" for n in range(3)))
    made = gather_facts({}, data=data)
    competition = made.competition
    assert (competition.separator, competition.train_csv, competition.image_suffix) == (mark, name, "")
    assert not competition.ids_have_suffix and not competition.ids_have_folder
    read = labels_of(data, competition)
    assert read == {
        path.relative_to(data / "images").as_posix(): NAMES[int(path.name[1])]
        for path in (data / "images").rglob("p?_*")
    }
    assert submission_of(data, competition, tmp_path).to_dict("list") == {
        "photo": ["q0", "q1", "q2"],
        "species": sorted(NAMES),
    }
    said = "\n".join(made.lines)
    assert f"{name}: 18 rows, cells separated by {({';': 'semicolons', '|': 'bars'}).get(mark, 'tabs')}" in said
    assert (
        "image names are in the column 'photo' (without folder and ending), labels in the column 'species' (3 " in said
    )
    written = to_written_columns(read_labels(data, competition), competition)
    assert written["species"].tolist() == [row.split(mark)[1] for row in rows]
    assert written["photo"].tolist() == [row.split(mark)[0] for row in rows]


def test_one_folder_of_images_and_a_one_hot_table_with_a_table_of_ids(tmp_path):
    data, classes = tmp_path / "plant", ("healthy", "multiple_diseases", "rust", "scab")
    touch(data, *(f"images/Train_{n}.jpg" for n in range(12)), *(f"images/Test_{n}.jpg" for n in range(5)))
    rows = [f"Train_{n}," + ",".join(str(int(k == n % 4)) for k in range(4)) for n in range(12)]
    (data / "train.csv").write_text("\n".join(["image_id," + ",".join(classes), *rows]) + "\n")
    (data / "test.csv").write_text("image_id\n" + "".join(f"Test_{n}\n" for n in range(5)))
    given = "image_id,scab,healthy,multiple_diseases,rust\n"  # another order than the table's
    (data / "sample_submission.csv").write_text(given + "".join(f"Test_{n},.25,.25,.25,.25\n" for n in range(5)))
    competition = gather_facts({}, data=data).competition
    assert competition.test_table == "sample_submission.csv" and competition.metric == "log_loss"
    assert labels_of(data, competition) == {f"Train_{n}.jpg": classes[n % 4] for n in range(12)}
    assert read_competition(data, competition).unlisted == ()
    table = submission_of(data, competition, tmp_path)
    assert table["image_id"].tolist() == [f"Test_{n}" for n in range(5)]
    named = [table.columns[1:][row.astype(float).argmax()] for row in table.iloc[:, 1:].to_numpy()]
    assert (
        named
        == ["scab", "healthy", "multiple_diseases", "rust", "scab"]
        == [competition.classes[k % 4] for k in range(5)]
    )
    (data / "images" / "Test_9.jpg").symlink_to(touch(tmp_path / "elsewhere", "9.jpg") / "9.jpg")
    (data / "sample_submission.csv").write_text(given + "Test_9,.25,.25,.25,.25\n")
    with pytest.raises(UserError, match=r"Test_9\.jpg is a link to .*9\.jpg, outside"):
        read_test(data, competition)
    assert read_test(data, competition, check_links=False).names == ("Test_9.jpg",)
    (data / "sample_submission.csv").write_text(given + "../9,.25,.25,.25,.25\n")
    with pytest.raises(UserError, match=r"sample_submission\.csv, line 2: '\.\./9' leads out"):
        read_test(data, competition, check_links=False)
    (data / "sample_submission.csv").unlink()
    alone = gather_facts({}, data=data).competition
    assert alone.test_table == "test.csv" and alone.metric == "accuracy"
    assert submission_of(data, alone, tmp_path)["label"].tolist() == [*classes, "healthy"]


def test_one_probability_of_two_classes(tmp_path):
    data = touch(tmp_path / "cactus", *(f"train/{n}a.jpg" for n in range(6)), "test/1b.jpg", "test/2b.jpg")
    (data / "train.csv").write_text("id,has_cactus\n" + "".join(f"{n}a.jpg,{n % 2}\n" for n in range(6)))
    (data / "sample_submission.csv").write_text("id,has_cactus\n1b.jpg,0.5\n2b.jpg,0.5\n")
    competition = gather_facts({}, data=data).competition
    assert competition.probability_columns == ("has_cactus",) and competition.unknown_answer == [0.5]
    assert submission_of(data, competition, tmp_path).to_dict("list") == {
        "id": ["1b.jpg", "2b.jpg"], "has_cactus": ["0", "1"]
    }  # fmt: skip
    write_answers(tmp_path / "s.csv", ["1b.jpg", "2b.jpg"], np.array([[0.9, 0.1], [0.25, 0.75]]), competition)
    assert (tmp_path / "s.csv").read_text() == "id,has_cactus\n1b.jpg,0.1\n2b.jpg,0.75\n"
    (tmp_path / "s.csv").write_text("id,has_cactus\n1b.jpg,1.5\n2b.jpg,0.75\n")
    with pytest.raises(UserError, match=r"row 2 \(1b\.jpg\): the cell must be a probability in 0\.\.1, got '1\.5'"):
        check_answers(tmp_path / "s.csv", data / "test", competition)


def test_a_table_that_repeats_the_folders_is_not_needed_and_its_test_rows_are_not_trained_on(tmp_path):
    data, rows = tmp_path / "sports", ["class id,filepaths,labels,data set"]
    for part, n_images in (("train", 4), ("valid", 1), ("test", 2)):
        for k, name in enumerate(("air hockey", "archery", "bmx")):
            for n in range(n_images):
                touch(data, f"{part}/{name}/{n}.jpg")
                rows.append(f"{k},{part}/{name}/{n}.jpg,{name},{part}")
    (data / "sports.csv").write_text("\n".join(rows) + "\n")
    made = gather_facts({}, data=data)
    assert len(labels_of(data, made.competition)) == 15 and made.competition.class_folders == ("train", "valid")
    tests = read_test(data, made.competition)
    assert len(tests.names) == 6 and "air hockey/0.jpg" in tests.names
    assert "their folders' names are no labels here" in "\n".join(made.lines)
    by_table = gather_facts({"train_csv": "sports.csv", "label_column": "labels"}, data=data).competition
    assert by_table.id_column == "filepaths" and by_table.classes == ("air hockey", "archery", "bmx")


def test_numbers_with_names_beside_and_ids_with_their_folder(tmp_path):
    data, rows = tmp_path / "birds", ["file\tlabel\tname"]
    for k, name in enumerate(("owl", "crow", "tit")):
        for n in range(10):
            touch(data, f"img/{k}/{n}.jpg")
            rows.append(f"img\\{k}\\{n}.jpg\t{k + 1}\t{name}" if n == 3 else f"img/{k}/{n}.jpg\t{k + 1}\t{name}")
    (data / "all.tsv").write_text("\n".join(rows) + "\n")
    competition = gather_facts({}, data=data).competition
    assert competition.label_values == ("1", "2", "3") and competition.classes == ("owl", "crow", "tit")
    read = labels_of(data, competition)
    assert len(read) == 27 and all(read[name] == ("owl", "crow", "tit")[int(name.split("/")[1])] for name in read)
    assert set(submission_of(data, competition, tmp_path)["label"]) == {"1", "2", "3"}


def test_names_for_numbered_class_folders_come_from_a_json_map(tmp_path):
    data = touch(tmp_path / "f102", *(f"train/{k}/{n}.jpg" for k in (1, 2, 10) for n in range(3)), "test/5.jpg")
    (data / "cat_to_name.json").write_text('{"10": "globe thistle", "2": "hard-leaved orchid", "1": "pink primrose"}')
    competition = gather_facts({}, data=data).competition
    assert competition.classes == ("pink primrose", "hard-leaved orchid", "globe thistle")
    assert labels_of(data, competition)["10/0.jpg"] == "globe thistle"
    assert submission_of(data, competition, tmp_path)["label"].tolist() == ["1"]  # what the folders are called


def test_a_suffix_in_another_case_is_the_same_image(tmp_path):
    data = touch(
        tmp_path / "case", "pictures/a.JPG", "pictures/b.jpg", "pictures/c.Jpeg", "pictures/d.jpg", "test/x.jpg"
    )
    (data / "train.csv").write_text("image,label\na.jpg,0\nb.jpg,1\nc.jpeg,0\nd.jpg,1\n")
    competition = gather_facts({}, data=data).competition
    assert set(labels_of(data, competition)) == {"a.JPG", "b.jpg", "c.Jpeg", "d.jpg"}


def test_ids_of_the_sample_submission_may_end_otherwise_than_the_tables(tmp_path):
    data = touch(tmp_path / "mixed", *(f"train_images/{n}.png" for n in range(6)), "test_images/x.png")
    (data / "train.csv").write_text("id,label\n" + "".join(f"{n},{n % 2}\n" for n in range(6)))
    (data / "sample_submission.csv").write_text("id,label\nx.png,0\n")
    competition = gather_facts({}, data=data).competition
    assert not competition.ids_have_suffix and competition.answers_have_suffix
    assert submission_of(data, competition, tmp_path)["id"].tolist() == ["x.png"]


def test_forty_classes_and_one_image_in_a_class(tmp_path):
    data = touch(tmp_path / "birds", *(f"data/{k:03}.Bird/{n}.jpg" for k in range(40) for n in range(4 if k else 1)))
    made = gather_facts({}, data=data)
    assert made.competition.n_classes == 40 and len(labels_of(data, made.competition)) == 156
    assert "fewer than 5 images, too few for five folds: 000.Bird, 001.Bird" in "\n".join(made.lines)


def test_the_kits_own_folders_are_no_classes(tmp_path):
    data = touch(tmp_path / "pets", "cat/1.jpg", "cat/2.jpg", "dog/1.jpg", "dog/2.jpg")
    touch(data, "competition.json", "build/pets/picture.png", "runs/x/y.png", "folds/z.png")
    assert gather_facts({}, data=data).competition.classes == ("cat", "dog")


@pytest.mark.parametrize(
    ("files", "message"),
    [
        (("a.txt", "b.zip"), r"no image in .* \(1 \.zip\); unpack the \.zip file first"),
        (("ld_train00-1.tfrec",), r"no image in .*convert the TFRecords first: cassava-kit tfrecords"),
        (
            ("images/1.jpg", "images/2.jpg"),
            r"has 2 images in images and no table, but nothing that says what they show",
        ),
        (("1.jpg",), r"has 1 image in the folder itself and no table"),
        (("train/1.jpg", "test/2.jpg"), r"has 2 images in test, train and no table"),
    ],
)
def test_a_folder_without_labels_says_what_is_expected(tmp_path, files, message):
    with pytest.raises(UserError, match=message):
        gather_facts({}, data=touch(tmp_path / "data", *files))


def test_a_table_of_other_images_shows_both(tmp_path):
    data = touch(tmp_path / "data", "train/1.jpg", "train/2.jpg")
    (data / "train.csv").write_text("photo,label\nx1,0\nx2,1\n")
    with pytest.raises(
        FileNotFoundError, match=r"names of images, as train/1\.jpg, .*; got photo,label with photo='x1'"
    ):
        gather_facts({}, data=data)


@pytest.mark.parametrize(
    ("table", "message"),
    [
        ("", r"train\.csv is empty; expected a header"),
        ("image_id,label\n", r"has a header but no rows"),
        ("image_id\n0.jpg\n1.jpg\n", r"got the one column image_id$"),
        ("image_id,label\n0.jpg,a\n1.jpg,b\n0.jpg,a\n", r"image_id has '0\.jpg' on 2 rows; each image has one row"),
        ("image_id,label\n77.jpg,0\n78.jpg,1\n", r"2 of 2 images that image_id names are not in .*'77\.jpg'\), which"),
        ("image_id,grade\n77.jpg,0\n78.jpg,1\n", r"2 of 2 images that image_id names are not in"),
        ("ID,grade\n77,0\n78,1\n", r"ID has 2 different values in 2 rows, which are no classes"),
        ("image_id,label\n0.jpg,0\n1.jpg,0\n", r"expected two or more labels in label, got '0' alone"),
    ],
)
def test_a_table_that_names_no_images_says_why(tmp_path, table, message):
    data = touch(tmp_path / "data", "0.jpg", "1.jpg")
    (data / "train.csv").write_text(table)
    with pytest.raises((UserError, FileNotFoundError), match=message):
        gather_facts({}, data=data)


def test_a_column_named_as_ids_are_wins_over_one_that_matches_by_chance(tmp_path):
    data = touch(tmp_path / "data", *(f"{n}.jpg" for n in range(20)))
    rows = "".join(f"{n},{19 - n},{'ab'[n % 2]}\n" for n in range(20))
    (data / "train.csv").write_text("visit,Image ID,label\n" + rows)
    competition = gather_facts({}, data=data).competition
    assert (competition.id_column, competition.classes) == ("Image ID", ("a", "b"))
    assert gather_facts({"id_column": "visit"}, data=data).competition.id_column == "visit"


def test_columns_that_may_all_be_labels_are_named(tmp_path):
    data = touch(tmp_path / "data", *(f"train/{n}.jpg" for n in range(9)))
    rows = "".join(f"{n}.jpg,{'ab'[n % 2]},{'xyz'[n % 3]}\n" for n in range(9))
    (data / "train.csv").write_text("file,colour,size\n" + rows)
    with pytest.raises(UserError, match=r"say with --label-column which .*: colour \(2 values\), size \(3 values\)"):
        gather_facts({}, data=data)
    assert gather_facts({"label_column": "size"}, data=data).competition.classes == ("x", "y", "z")


def test_only_what_no_folder_shows_is_asked(tmp_path):
    data = touch(tmp_path / "pets", *(f"{name}/{n}.jpg" for name in ("cat", "dog") for n in range(10)))
    asked: dict[str, str] = {}

    def ask(question: str, usual: str) -> str:
        asked[question.partition(",")[0]] = usual
        return "macro_f1" if question.startswith("Metric") else usual

    made = gather_facts({}, data=data, ask=ask)
    assert asked == {"Slug": "pets", "Metric: accuracy": "accuracy"} and made.competition.metric == "macro_f1"
    assert not any("assumed" in line for line in made.lines)


def test_links_that_lead_out_are_refused_and_nothing_is_copied(tmp_path):
    outside = touch(tmp_path / "elsewhere", "9.jpg")
    data = touch(tmp_path / "pets", *(f"{name}/{n}.jpg" for name in ("cat", "dog") for n in range(3)))
    before = sorted(data.rglob("*"))
    competition = gather_facts({}, data=data).competition
    assert sorted(data.rglob("*")) == before
    (data / "cat" / "link.jpg").symlink_to(outside / "9.jpg")
    with pytest.raises(UserError, match=r"cat/link\.jpg is a link to .*9\.jpg, outside"):
        read_competition(data, competition)
    (data / "cat" / "link.jpg").unlink()
    (data / "cat" / "more").symlink_to(outside)
    made = gather_facts({}, data=data)
    assert "left alone, links to folders: cat/more" in "\n".join(made.lines)


def test_images_are_not_decoded_and_large_ones_cost_nothing(tmp_path, monkeypatch):
    data = tmp_path / "large"
    for name in ("a", "b"):
        (data / name).mkdir(parents=True)
        cv2.imwrite(str(data / name / "1.png"), np.zeros((400, 400, 3), np.uint8))
        touch(data, *(f"{name}/{n}.jpg" for n in range(2, 12)))
    opened: list[object] = []
    monkeypatch.setattr(Path, "open", lambda path, *a, **k: opened.append(path))
    monkeypatch.setattr(Path, "read_bytes", lambda path, *a, **k: opened.append(path))
    assert gather_facts({}, data=data).competition.n_classes == 2 and opened == []


def test_roles_and_separators_by_reference():
    assert [role_of(name) for name in ("Train", "training_set", "val", "dev", "Test_Images", "seg_pred")] == [
        "train", "train", "valid", "valid", "test", "test"
    ]  # fmt: skip
    assert [role_of(name) for name in ("latest", "contrast", "a", "strain")] == ["", "", "", ""]
    for mark in ",;\t|":
        assert (
            find_separator(f"a{mark}b{mark}c\n1{mark}x, y{mark}3\n".replace("x, y", "x" if mark == "," else "x, y"))
            == mark
        )
    vehicles = find_class_folders(["car/1.jpg", "train/1.jpg", "plane/1.jpg"])
    assert vehicles is not None and vehicles.values == ("car", "plane", "train")


def test_a_table_without_labels_beside_class_folders_is_left_alone(tmp_path):
    data = touch(tmp_path / "pets", *(f"{name}/{name}{n}.jpg" for name in ("cat", "dog") for n in range(12)))
    rows = "".join(f"{name}{n}.jpg,{300 + n % 2},me\n" for name in ("cat", "dog") for n in range(12))
    (data / "meta.csv").write_text("file,width,photographer\n" + rows)
    assert gather_facts({}, data=data).competition.classes == ("cat", "dog")


def test_a_name_that_is_not_utf8_is_refused_before_any_table_is_written(tmp_path):
    data = touch(tmp_path / "pets", *(f"{name}/{n}.jpg" for name in ("cat", "dog") for n in range(3)))
    competition = gather_facts({}, data=data).competition
    (data / "cat" / "caf\udce9.jpg").write_bytes(b"")
    for read in (lambda: gather_facts({}, data=data).competition, lambda: read_competition(data, competition)):
        with pytest.raises(UserError, match=r"cat/caf\\udce9\.jpg is not UTF-8.*rename it"):
            read()


def test_the_words_of_init_say_what_was_found_and_what_comes_next(tmp_path):
    data = touch(tmp_path / "my birds", *(f"{name}/{n}.jpg" for name in ("Mésange", "Rouge-gorge") for n in range(10)))
    said = init_competition({}, tmp_path / "c.json", data=data).splitlines()
    assert said[:4] == [
        f"Found in {data}:",
        "  training images: 20 (.jpg) in 2 class folders, 10 each; a folder's name is its label",
        "  images to predict: none found, so 10% of each class are set apart: never trained on, and predicted in the "
        "submission (--test-images names a folder instead)",
        "  no sample submission: a submission will have image_id,label, the label as a name (Mésange, Rouge-gorge)",
    ]
    assert said[4].startswith("  slug: my-birds (from the folder's name; ") and said[5].startswith("  metric: accuracy")
    assert said[6:] == [
        f"Wrote {tmp_path / 'c.json'}: My Birds, 2 classes (Mésange, Rouge-gorge), scored by accuracy",
        f"Next, with CASSAVA_KIT_COMPETITION={tmp_path / 'c.json'}:",
        f"  python -m cassava_kit eda --data '{data}' --out eda.html",
        "      a page to look at: classes, pictures, copies, broken files",
        f"  python -m cassava_kit submit ensemble --data '{data}'",
        "      train, combine, rehearse the notebook; ends with build/my birds/submission.csv",
    ]
    table = "image_id,rust,scab\n" + "".join(f"{n},{n % 2},{1 - n % 2}\n" for n in range(10))
    hot = touch(tmp_path / "hot", *(f"images/{n}.jpg" for n in range(10)))
    (hot / "train.csv").write_text(table)
    assert gather_facts({}, data=hot).lines[0] == (
        "train.csv: 10 rows; image names are in the column 'image_id' (without the file's ending), labels in 2 "
        "columns, of which one is 1 (rust, scab)"
    )
