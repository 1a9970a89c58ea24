"""Another competition, defined in a few lines, on the whole road; its facts asked for, found, and refused if wrong."""

import json
import os
import shutil
import subprocess
import tempfile
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pandas as pd
import pytest
from forked_python import interpreter
from processes import run_python

from cassava_kit.competition import CASSAVA, VARIABLE, Competition, current, facts, parse_facts, read_facts, write_facts
from cassava_kit.data.folds import write_folds
from cassava_kit.data.new_competition import gather_facts
from cassava_kit.data.stratify import split_folds
from cassava_kit.data.table import read_competition, to_written_columns
from cassava_kit.evidence.blend import weigh_files
from cassava_kit.evidence.oof import fold_predictions, join_folds
from cassava_kit.evidence.predictions import write_predictions
from cassava_kit.files import read_json
from cassava_kit.inference.submission import check_answers, submission_ids, write_answers
from cassava_kit.kaggle.pack.bundle import package_kernel
from cassava_kit.kaggle.pack.kernels import find_kernel, parse_changes, render
from cassava_kit.kaggle.rehearse.layout import as_uploaded, competition_mounts, dataset_mounts
from cassava_kit.kaggle.rehearse.options import NotebookRun, RehearsalOptions
from cassava_kit.kaggle.rehearse.rehearsal import rehearse
from cassava_kit.kaggle.rehearse.runner import run_notebook

ROOT = Path(__file__).parent.parent
FLOWERS = {"slug": "flowers-2027", "train_images": "photos", "test_images": "hidden"}


def flowers(folder: Path) -> Path:
    """The whole second competition: four colours of PNG, ids without suffix, probabilities to be submitted."""
    rng, ids = np.random.default_rng(0), [f"p{n:02}" for n in range(46)]
    for n, name in enumerate(ids):
        picture = rng.integers(0, 60, (80, 100, 3), np.uint8)
        picture[..., : n % 4] += 120
        place = folder / ("photos" if n < 40 else "hidden") / f"{name}.png"
        place.parent.mkdir(parents=True, exist_ok=True)
        cv2.imwrite(str(place), picture)
    table = pd.DataFrame({"photo": ids, "kind": np.arange(46) % 4})
    table[:40].to_csv(folder / "train.csv", index=False)
    even = dict.fromkeys(("rose", "tulip", "daisy", "lily"), 0.25)
    table[["photo"]][40:].assign(**even).to_csv(folder / "sample_submission.csv", index=False)
    return folder


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    return flowers(tmp_path_factory.mktemp("next") / "flowers")


def kit(*arguments: object, cwd: Path) -> subprocess.CompletedProcess[str]:
    """Run a program; on two cores, so that folds and rehearsals run side by side."""
    given = {"COLUMNS": "200", "PYTHON_CPU_COUNT": "2"}
    environment = {name: value for name, value in os.environ.items() if name != VARIABLE} | given
    return run_python(arguments, cwd=cwd, env=environment)


@pytest.mark.slow
def test_another_competition_on_the_whole_road(data, tmp_path, monkeypatch):
    names = [f"--{name.replace('_', '-')}={value}" for name, value in FLOWERS.items()]
    begun = kit("-m", "cassava_kit", "init", "--data", data, *names, cwd=tmp_path)
    assert begun.returncode == 0 and "scored by log_loss" in begun.stdout, begun.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["competition.json"]
    split = kit("-m", "cassava_kit", "folds", "--data", data, "--n-splits", 2, "--out", "f.csv", cwd=tmp_path)
    assert split.returncode == 0 and (tmp_path / "f.csv").read_text().startswith("image_id,label,fold\np00.png,0,")
    road = ["ensemble", "--data", data, "--out", "out", "--n-splits", 2, "--recipe", "small_resnet"]
    gone = kit(ROOT / "submit.py", *road, cwd=tmp_path)
    assert gone.returncode == 0, gone.stderr[-3000:]
    assert gone.stderr.count("rehearsal passed") == 2 and "Out-of-fold log loss on 40 given labels" in gone.stderr
    monkeypatch.setenv(VARIABLE, str(tmp_path / "competition.json"))
    summary = check_answers(tmp_path / "out" / "submission.csv", data / "hidden")
    assert summary.probabilities and summary.n_images == 6
    written = pd.read_csv(tmp_path / "out" / "submission.csv")
    assert list(written.columns) == ["photo", "rose", "tulip", "daisy", "lily"]
    assert written["photo"].tolist() == [f"p{n}" for n in range(40, 46)]
    p = written.drop(columns="photo").to_numpy()
    assert np.abs(p.sum(axis=1) - 1).max() < 1e-6 and (p.argmax(axis=1) == np.arange(40, 46) % 4).mean() > 0.8
    run = read_json(tmp_path / "out" / "rehearsal" / "working" / "run.json")
    assert run["early_stop"]["kind"] == "off" and not run["prior_alone"]
    ensemble = read_json(tmp_path / "out" / "ensemble.json")
    assert 0 < ensemble["oof"]["log_loss"] < np.log(4)
    monkeypatch.delenv(VARIABLE)
    (tmp_path / "competition.json").unlink()  # the bundle knows what it was packed for
    planned = kit(ROOT / "submit.py", "submit", "--dry-run", "--bundle", "out/bundle", cwd=tmp_path)
    assert "CreateCodeSubmission flowers-2027 " in planned.stdout and "/flowers-2027-kit-weights" in planned.stdout
    again = kit(ROOT / "submit.py", "rehearse", "--bundle", "out/bundle", cwd=tmp_path)
    assert again.returncode == 2 and "give --data DIR, the folder of flowers-2027" in again.stderr


def pets(folder: Path) -> Path:
    """The third: class folders alone, one of a name that a CSV must quote, subfolders, a broken image and strays."""
    rng = np.random.default_rng(0)
    for k, name in enumerate(("cat", "dog, large")):
        for n in range(24):
            picture = rng.integers(0, 60, (48, 56, 3), np.uint8)
            picture[..., k] += 150
            place = folder / name / ("old" if n % 6 == 0 else "") / f"{n}{('.jpg', '.PNG')[n % 2]}"
            place.parent.mkdir(parents=True, exist_ok=True)
            cv2.imwrite(str(place), picture)
    (folder / "cat" / "broken.jpg").write_bytes(b"\xff\xd8 no image")
    (folder / "cat" / "Thumbs.db").write_bytes(b"x")
    return folder


@pytest.mark.slow
def test_class_folders_alone_on_the_whole_road(tmp_path):
    """No table, no test images, no sample submission, nobody to ask: a part is set apart, predicted and checked."""
    folder = pets(tmp_path / "My Pets")
    before = {path: path.stat().st_mtime_ns for path in folder.rglob("*")}
    begun = kit("-m", "cassava_kit", "init", "--data", folder, cwd=tmp_path)
    assert begun.returncode == 0 and "10% of each class are set apart" in begun.stdout, begun.stderr
    road = ["ensemble", "--data", folder, "--out", "out", "--n-splits", 2, "--recipe", "small_resnet"]
    gone = kit(ROOT / "submit.py", *road, cwd=tmp_path)
    assert gone.returncode == 0, gone.stderr[-3000:]
    table = pd.read_csv(tmp_path / "out" / "submission.csv", dtype=str)
    assert list(table.columns) == ["image_id", "label"] and len(table) == 4  # 2 of 25 and 2 of 24
    trained = set(pd.read_csv(tmp_path / "out" / "folds.csv")["image_id"])
    assert len(trained) == 45 and trained.isdisjoint(table["image_id"])
    assert (table["label"] == [name.partition("/")[0] for name in table["image_id"]]).all()
    assert {path: path.stat().st_mtime_ns for path in folder.rglob("*")} == before


@pytest.mark.slow
def test_a_training_kernel_finds_class_folders(tmp_path, monkeypatch):
    folder = pets(tmp_path / "pets")
    write_facts(tmp_path / "c.json", gather_facts({}, data=folder).competition)
    monkeypatch.setenv(VARIABLE, str(tmp_path / "c.json"))
    changes = parse_changes(["RECIPE=small_resnet", "FOLDS=[1]", "N_SPLITS=2", "SET=['epochs=1']"], [])
    bundle = package_kernel(tmp_path / "kit", find_kernel("train-folds"), root=ROOT, owner="me", changes=changes)
    monkeypatch.delenv(VARIABLE)
    done = rehearse(bundle, folder, tmp_path / "out", options=RehearsalOptions(python=interpreter(), per_class=6))
    assert done.ok, done.verdict
    oof = pd.read_csv(tmp_path / "out" / "working" / "runs" / "small_resnet--epochs-1" / "fold1" / "oof.csv")
    assert {name.partition("/")[0] for name in oof["image_id"]} == {"cat", "dog, large"}


@pytest.mark.slow
def test_a_training_kernel_knows_the_other_competition_too(data, tmp_path, monkeypatch):
    write_facts(tmp_path / "c.json", gather_facts(FLOWERS, data=data).competition)
    monkeypatch.setenv(VARIABLE, str(tmp_path / "c.json"))
    changes = parse_changes(["RECIPE=small_resnet", "FOLDS=[1]", "N_SPLITS=2", "SET=['epochs=1']"], [])
    bundle = package_kernel(tmp_path / "kit", find_kernel("train-folds"), root=ROOT, owner="me", changes=changes)
    monkeypatch.delenv(VARIABLE)  # from here on the notebook alone knows
    arrived = as_uploaded(bundle.kit_dir, tmp_path / "arrived")
    mounts = competition_mounts(data, "new", bundle.competition)
    mounts += dataset_mounts(arrived, "me/flowers-2027-kit", "new")
    options = RehearsalOptions(minutes=30, python=interpreter())
    stage = NotebookRun(bundle.notebook, mounts, tmp_path / "out", "new", options, bundle.competition)
    stage.working.mkdir(parents=True)
    # Loader processes speak through sockets below TMPDIR, whose paths the system takes up to 107 letters alone.
    with tempfile.TemporaryDirectory(prefix="kit-") as scratch:
        result, _ = run_notebook(stage, Path(scratch))
    assert result["error"] == "", result
    oof = pd.read_csv(stage.working / "runs" / "small_resnet--epochs-1" / "fold1" / "oof.csv")
    assert list(oof.columns) == ["image_id", "p0", "p1", "p2", "p3", "fold"] and len(oof) == 20
    assert oof["image_id"].str.endswith(".png").all()


def test_macro_f1_with_labels_through_the_library(data, tmp_path, monkeypatch):
    kinds = ("rose", "tulip", "daisy", "lily")
    places = {"train_images": "photos", "test_images": "hidden", "image_suffix": ".png", "ids_have_suffix": False}
    other = Competition("kinds", "Kinds", kinds, id_column="photo", label_column="kind", metric="macro_f1", **places)
    write_facts(tmp_path / "competition.json", other)
    monkeypatch.chdir(tmp_path)
    assert current() == other
    table = read_competition(data).frame
    assert table["image_id"].tolist() == [f"p{n:02}.png" for n in range(40)]
    assert to_written_columns(table, other).to_csv(index=False, lineterminator="\n") == (data / "train.csv").read_text()
    split = split_folds(table, n_splits=2)
    write_folds(tmp_path / "folds.csv", split)
    rng = np.random.default_rng(1)
    for name, sharpness in (("a", 3.0), ("b", 0.5)):
        parts = [
            fold_predictions(split, k, guesses(split.validation(k)["label"], sharpness, rng), name) for k in (0, 1)
        ]
        write_predictions(tmp_path / f"{name}.csv", join_folds(parts, split, name))
    said = weigh_files([tmp_path / "a.csv", tmp_path / "b.csv"], tmp_path / "folds.csv", tmp_path / "w.json")
    assert "a           macro F1 0." in said and "(accuracy 0." in said
    report = read_json(tmp_path / "w.json")["report"]
    assert report["metric"] == "macro_f1" and report["members"]["a"] > report["members"]["b"]
    names = submission_ids(data / "hidden")
    write_answers(tmp_path / "s.csv", names, np.array([0, 1, 2, 3, 0, 1]), current())
    assert (tmp_path / "s.csv").read_text().startswith("photo,kind\np40,0\np41,1\n")
    assert check_answers(tmp_path / "s.csv", data / "hidden").class_counts == (2, 2, 1, 1)
    with pytest.raises(ValueError, match="must begin with the columns image_id,label, got photo,kind"):
        check_answers(tmp_path / "s.csv", data / "hidden", CASSAVA)


def guesses(labels: pd.Series, sharpness: float, rng: np.random.Generator) -> np.ndarray:
    logits = rng.normal(size=(len(labels), 4)) + sharpness * np.eye(4)[labels]
    return np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)


def test_the_competition_is_found_by_one_rule(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv(VARIABLE, raising=False)
    assert current() == CASSAVA
    here, named = replace(CASSAVA, slug="here-1"), replace(CASSAVA, slug="named-2", metric="macro_f1")
    write_facts("competition.json", here)
    assert current() == here
    write_facts("elsewhere.json", named)
    monkeypatch.setenv(VARIABLE, "elsewhere.json")
    assert current() == named
    monkeypatch.setenv(VARIABLE, "nowhere.json")
    with pytest.raises(FileNotFoundError, match=r"no nowhere\.json, which .CASSAVA_KIT_COMPETITION names"):
        current()


def test_facts_come_back_as_they_were_written(tmp_path):
    write_facts(tmp_path / "c.json", CASSAVA)
    assert read_facts(tmp_path / "c.json") == CASSAVA and parse_facts(facts(CASSAVA), "c") == CASSAVA


def test_a_kernel_holds_the_other_competitions_facts(data, monkeypatch, tmp_path):
    write_facts(tmp_path / "c.json", gather_facts(FLOWERS, data=data).competition)
    monkeypatch.setenv(VARIABLE, str(tmp_path / "c.json"))
    files = render(find_kernel("ensemble-submission"), ROOT, owner="me")
    metadata = json.loads(files["kernel-metadata.json"])
    assert (
        metadata["competition_sources"] == ["flowers-2027"]
        and metadata["id"] == "me/flowers-2027-kit-ensemble-submission"
    )
    cells = ["".join(cell["source"]) for cell in json.loads(files["ensemble-submission.ipynb"])["cells"]]
    space: dict[str, dict[str, object]] = {}
    exec(next(cell for cell in cells if cell.startswith("SETTINGS")), space)
    assert space["SETTINGS"]["columns"] == ["photo", "rose", "tulip", "daisy", "lily"]
    assert space["SETTINGS"]["answer"] == [0.25] * 4 and space["SETTINGS"]["ids_have_suffix"] is False
    assert "cassava-leaf" not in "".join(files.values())


def test_what_the_folder_shows_need_not_be_said(data):
    found = gather_facts(FLOWERS, data=data).competition
    assert found == Competition(
        "flowers-2027", "Flowers 2027", ("rose", "tulip", "daisy", "lily"), (0.25,) * 4, "photo", "kind", ".png",
        train_images="photos", test_images="hidden", ids_have_suffix=False, metric="log_loss",
        probability_columns=("rose", "tulip", "daisy", "lily"), dataset="flowers-2027-kit",
        training_images=40,
    )  # fmt: skip


def test_the_sample_is_recognised_as_what_it_is(tiny_dir):
    found = gather_facts({"slug": CASSAVA.slug}, data=tiny_dir).competition
    sized = replace(
        CASSAVA,
        class_shares=found.class_shares,
        dataset=found.dataset,
        training_images=120,
    )
    assert found == sized and abs(sum(found.class_shares) - 1) < 1e-9


def test_what_is_missing_is_asked_for():
    answers = {"Slug": "leaves", "Title": "Leaves", "Class names": "a, b", "Metric": "log_loss"}
    asked: list[str] = []

    def ask(question: str, usual: str) -> str:
        asked.append(question)
        return next((answer for begin, answer in answers.items() if question.startswith(begin)), usual)

    found = gather_facts({"id_column": "file"}, ask=ask).competition
    assert (found.slug, found.classes, found.probability_columns) == ("leaves", ("a", "b"), ("a", "b"))
    assert found.id_column == "file" and not any("names the image" in question for question in asked)
    assert found.ids_have_suffix
    bare = gather_facts(
        {"slug": "leaves", "classes": ("a", "b")},
        ask=lambda question, usual: "no" if "yes or no" in question else usual,
    ).competition
    assert not bare.ids_have_suffix and bare.file_name("p1") == "p1.jpg" and bare.written_id("p1.jpg") == "p1"


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"slug": "Flowers 2027"}, r"--slug must be the last part of the competition's address, .*got 'Flowers 2027'"),
        (
            {"train_images": "train_images"},
            r"no folder .*train_images; name the one of the training images, --train-images",
        ),
        ({"test_images": "test_images"}, r"expected a folder .*test_images with images, got none"),
        ({"train_csv": "labels.csv"}, r"no .*labels.csv; --train-csv names the table of labels"),
        ({"id_column": "image"}, r"expected the column image, got photo,kind; say with --id-column"),
        ({"id_column": "kinds"}, r"got photo,kind \(did you mean kind\?\)"),
        ({"label_column": "species"}, r"expected the column species, got photo,kind; say with --label-column"),
        ({"classes": ("a", "b", "c")}, r"or one for each of the 3 classes \(a, b, c\), got 4 \(rose, tulip"),
        (
            {"classes": ("a", "b", "c"), "probability_columns": ("a", "b", "c")},
            r"expected the columns photo,a,b,c for log_loss, got photo,rose,tulip",
        ),
        ({"classes": tuple("abcde")}, r"or one for each of the 5 classes"),
        ({"metric": "auc"}, r"metric: Input should be 'accuracy', 'macro_f1' or 'log_loss', got 'auc'"),
        ({"image_suffix": ".jpg"}, r"expected images with \.jpg in .*photos, got \.png; look at --image-suffix"),
        ({"label_map": "map.json"}, r"no .*map.json; --label-map names a JSON file"),
        ({"train_images": "photos", "test_images": "photos"}, r"must be two folders, both are 'photos'"),
        ({"train_images": "../photos"}, r"no folder|expected a name in the competition's folder"),
        ({"sample_submission": "none.csv"}, r"no .*none.csv; --sample-submission names a file"),
        ({"dataset": "Flowers"}, r"dataset: .*got 'Flowers'"),
    ],
)
def test_wrong_facts_are_refused(given, message, data):
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        gather_facts({**FLOWERS, **given}, data=data)


def test_probability_columns_follow_the_labels_and_not_the_sample(data, tmp_path):
    shutil.copytree(data, tmp_path / "flowers")
    (tmp_path / "flowers" / "map.json").write_text('{"0": "lily", "1": "daisy", "2": "tulip", "3": "rose"}')
    (tmp_path / "flowers" / "other.json").write_text("[1]\n[2]\n")  # no JSON, and nobody's map
    found = gather_facts(FLOWERS, data=tmp_path / "flowers").competition
    assert found.classes == found.probability_columns == ("lily", "daisy", "tulip", "rose")
    named = {**FLOWERS, "probability_columns": ("rose", "tulip", "daisy", "lily")}
    assert gather_facts(named, data=data).competition.probability_columns == named["probability_columns"]


def test_a_column_for_each_class_is_read_as_labels(data, tmp_path):
    shutil.copytree(data, tmp_path / "flowers")
    table = pd.read_csv(data / "train.csv")
    names = ("rose", "tulip", "daisy", "lily")
    one_hot = pd.DataFrame({name: (table["kind"] == k).astype(int) for k, name in enumerate(names)})
    table[["photo"]].join(one_hot).to_csv(tmp_path / "flowers" / "train.csv", index=False)
    found = gather_facts(FLOWERS, data=tmp_path / "flowers").competition
    assert found.label_columns == found.classes == found.probability_columns == names
    read = read_competition(tmp_path / "flowers", found).frame
    assert read["label"].tolist() == table["kind"].tolist()
    written = to_written_columns(read, found).to_csv(index=False, lineterminator="\n")
    assert written == (tmp_path / "flowers" / "train.csv").read_text()
    text = (tmp_path / "flowers" / "train.csv").read_text().replace("p01,0,1,0,0", "p01,1,1,0,0")
    (tmp_path / "flowers" / "train.csv").write_text(text)
    with pytest.raises(ValueError, match="line 3: exactly one of the columns rose,tulip,daisy,lily must be 1"):
        read_competition(tmp_path / "flowers", found)


def test_a_file_that_is_there_stays_and_nothing_is_asked_in_vain(tmp_path):
    first = kit("-m", "cassava_kit", "init", "--slug", "leaves", "--classes", "a,b", cwd=tmp_path)
    assert first.returncode == 0, first.stderr
    before = (tmp_path / "competition.json").read_bytes()
    again = kit("-m", "cassava_kit", "init", "--slug", "other", "--classes", "a,b", cwd=tmp_path)
    assert again.returncode == 2 and "exists already; give --force" in again.stderr
    assert (tmp_path / "competition.json").read_bytes() == before
    forced = kit("-m", "cassava_kit", "init", "--slug", "other", "--classes", "a,b", "--force", cwd=tmp_path)
    assert forced.returncode == 0 and read_facts(tmp_path / "competition.json").slug == "other"
    lacking = kit("-m", "cassava_kit", "init", "--out", "x.json", cwd=tmp_path)
    assert lacking.returncode == 2 and "init needs --slug and --classes" in lacking.stderr
    sample = kit(ROOT / "submit.py", "ensemble", "--out", "out", cwd=tmp_path)
    assert sample.returncode == 2 and "give --data DIR, the folder of other" in sample.stderr
    (tmp_path / "competition.json").write_text('{"slug": "leaves", "titel": "Leaves"}')
    broken = kit("-m", "cassava_kit", "folds", "--data", tmp_path, cwd=tmp_path)
    assert broken.returncode == 2 and "competition.json: " in broken.stderr and "titel" in broken.stderr
