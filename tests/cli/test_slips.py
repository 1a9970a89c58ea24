"""Mistakes of a first day with data of one's own: one line that says what to do, before slow work."""

from __future__ import annotations

import os
from pathlib import Path

import cv2
import numpy as np
import pandas as pd
import pytest
import torch

from cassava_kit.cli.app import run_app
from cassava_kit.cli.verbs import app
from cassava_kit.competition import VARIABLE
from cassava_kit.data.folds import write_folds
from cassava_kit.models.checkpoint import CheckpointInfo, save_checkpoint


@pytest.fixture
def say(capsys):
    """Run a verb that must fail with exit code 2, and return its one line."""

    def _say(*arguments: object) -> str:
        assert run_app(app, [str(argument) for argument in arguments]) == 2
        lines = capsys.readouterr().err.strip().splitlines()
        errors = [line for line in lines if line.startswith("error: ")]
        assert len(errors) == 1 and "Traceback" not in "".join(lines)
        return errors[0]

    return _say


@pytest.fixture
def data(tmp_path, monkeypatch) -> Path:
    """A folder in Cassava's layout with 12 images that nobody may open, and no competition.json."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv(VARIABLE, raising=False)
    for n in range(12):
        (tmp_path / "data" / "train_images").mkdir(parents=True, exist_ok=True)
        (tmp_path / "data" / "train_images" / f"{n}.jpg").write_bytes(b"x")
    return tmp_path / "data"


def table(data: Path, header: str, *, mark: str = ",", suffix: str = ".jpg") -> None:
    rows = "".join(f"{n}{suffix}{mark}{n % 5}\n" for n in range(12))
    (data / "train.csv").write_text(f"{header}\n{rows}")


def test_ids_without_suffix(data, say):
    table(data, "image_id,label", suffix="")
    said = say("folds", "--data", data)
    assert "train.csv, line 2: no image '0'" in said and "12 of 12 rows have none" in said
    assert "12 of them are there with .jpg (e.g. 0.jpg): is ids_have_suffix=false in competition.json?" in said
    assert "`cassava-kit init --data DIR` finds out" in said


def test_images_in_subfolders(data, say):
    table(data, "image_id,label")
    (data / "train_images" / "part1").mkdir()
    for n in range(12):
        (data / "train_images" / f"{n}.jpg").rename(data / "train_images" / "part1" / f"{n}.jpg")
    said = say("folds", "--data", data)
    assert (
        "12 of them are there in subfolders (e.g. part1/0.jpg): is ids_have_folder=false in competition.json?" in said
    )


@pytest.mark.parametrize("header", ["image_id,target", "image,label", "id,class"])
def test_other_columns(data, say, header):
    table(data, header)
    said = say("folds", "--data", data)
    assert f"expected the columns image_id,label, got {header}; " in said and "cassava-kit init --data DIR" in said


@pytest.mark.parametrize("mark", [";", "\t"])
def test_other_separators(data, say, mark):
    table(data, f"image_id{mark}label", mark=mark)
    said = say("folds", "--data", data)
    assert f"(its cells are separated by {mark!r}, not by ',')" in said and "cassava-kit init --data DIR" in said


def test_data_given_a_file(data, say):
    table(data, "image_id,label")
    for verb in (["folds"], ["eda"], ["sheet"], ["train", "small_resnet", "--folds", "f.csv"], ["init"]):
        said = say(*verb, "--data", data / "train.csv")
        assert f"got the file {data / 'train.csv'}; give its folder {data}" in said, verb
    assert "no folder" in say("init", "--data", data / "nowhere")


def test_a_prediction_file_given_a_folder(data, say, tiny_folds):
    write_folds("f.csv", tiny_folds)
    Path("runs/resnet").mkdir(parents=True)
    assert "got the folder runs/resnet; give the .csv file itself" in say(
        "ensemble", "--oof", "runs/resnet", "--folds", "f.csv"
    )
    Path("runs/resnet/oof.csv").write_text("image_id,p0,p1,fold\n")
    for given in ("runs/resnet", "runs"):
        said = say("ensemble", "--oof", given, "--folds", "f.csv")
        assert f"expected a prediction file, got the folder {given}; give runs/resnet/oof.csv" in said
    Path("runs/resnet/fold0").mkdir()
    Path("runs/resnet/fold0/oof.csv").write_text("image_id,p0,p1,fold\n")
    assert "got the folder runs; give runs/resnet/oof.csv" in say("ensemble", "--oof", "runs", "--folds", "f.csv")
    assert "got the folder .; give" in say("ensemble", "--oof", ".", "--folds", "f.csv")


@pytest.mark.parametrize(
    "verb",
    [["eda"], ["sheet"], ["folds"], ["train", "small_resnet", "--folds", "f.csv"], ["pretrain", "byol"], ["init"]],
)
def test_an_output_that_cannot_be_written_is_named_before_any_work(data, say, monkeypatch, verb):
    locked = data.parent / "locked"
    locked.mkdir()
    if os.getuid() == 0:  # nothing is locked to root: the system's refusal is played
        import tempfile

        real = tempfile.TemporaryFile

        def refused(*arguments, **options):
            if Path(options["dir"]) == locked:
                raise PermissionError(13, "Permission denied")
            return real(*arguments, **options)

        monkeypatch.setattr(tempfile, "TemporaryFile", refused)
    else:
        locked.chmod(0o500)
    for work in ("cassava_kit.data.table.list_files", "cassava_kit.data.recognise.scan_folder"):
        monkeypatch.setattr(work, lambda *a: pytest.fail("the images were listed first"))
    said = say(*verb, "--data", data, "--out", locked / "deep" / "er.csv")
    assert f"nothing can be written in {locked} (Permission denied); give another --out" in said


def test_an_output_below_a_file_is_named(data, say):
    Path("taken").write_text("")
    assert "nothing can be written in" in (said := say("eda", "--data", data, "--out", "taken/eda.html"))
    assert "taken (it is a file)" in said


def test_a_folder_of_its_own_that_the_ensemble_cannot_make_is_named(data, say):
    table(data, "image_id,label")
    (data / "test_images").mkdir()
    (data / "test_images" / "t.jpg").write_bytes(b"x")
    (data / "sample_submission.csv").write_text("image_id,label\nt.jpg,4\n")
    Path("build").write_text("")
    assert "build (it is a file); give another --out" in say("submit", "ensemble", "--data", data)


def test_class_folders_of_another_competition(data, say):
    for name in ("1.jpg", "2.jpg", "3.jpg", "4.jpg"):
        for folder in ("cat", "dog"):
            (data.parent / "pets" / folder).mkdir(parents=True, exist_ok=True)
            (data.parent / "pets" / folder / name).write_bytes(b"x")
    assert run_app(app, ["init", "--data", str(data.parent / "pets")]) == 0
    said = say("folds", "--data", data)
    assert "class folders of pets" in said and "for another competition than the one at hand run" in said


@pytest.mark.parametrize(
    ("name", "meant"),
    [("timm:resnet19", "resnet18"), ("small_resnt", "small_resnet"), ("timm:efficientnetb0", "efficientnet_b0")],
)
def test_a_model_that_is_nearly_right(data, say, tiny_folds, name, meant):
    table(data, "image_id,label")
    rows = pd.DataFrame({"image_id": [f"{n}.jpg" for n in range(12)], "label": [n % 5 for n in range(12)]})
    rows.assign(fold=[n // 6 for n in range(12)]).sort_values("image_id").to_csv("f.csv", index=False)
    said = say("train", name, "--data", data, "--folds", "f.csv")
    assert "did you mean" in said and meant in said


@pytest.mark.parametrize("bad", ["../secret.jpg", "/etc/passwd", "a/../../b.jpg"])
def test_names_that_lead_out_are_refused_in_every_table(data, say, bad):
    Path("f.csv").write_text(f"image_id,label,fold\n{bad},0,0\nb.jpg,1,1\n")
    oof = "image_id,p0,p1,p2,p3,p4,fold\n" + f"{bad},1,0,0,0,0,0\n"
    Path("oof.csv").write_text(oof)
    Path("g.csv").write_text("image_id,label,fold\na.jpg,0,0\nb.jpg,1,1\n")
    assert f"oof.csv names '{bad}', which leads out" in say("ensemble", "--oof", "oof.csv", "--folds", "g.csv")
    assert f"f.csv names '{bad}', which leads out" in say("ensemble", "--oof", "oof.csv", "--folds", "f.csv")
    Path("clean.csv").write_text(
        f"image_id,label,suggested_label,label_quality,keep,by_eye\n{bad},0,1,0.1,False,False\n"
    )
    assert f"clean.csv names '{bad}', which leads out" in say("review", "clean.csv", "--data", data)
    Path("d.csv").write_text(f"image_id,decision,label\n{bad},drop,0\n")
    given = ("--oof", "oof.csv", "--folds", "g.csv", "--decisions", "d.csv")
    assert f"d.csv names '{bad}', which leads out" in say("clean", *given)


def test_a_link_that_leads_out_is_not_shown(data, say):
    secret = data.parent / "secret.jpg"
    secret.write_bytes(b"x")
    (data / "train_images" / "link.jpg").symlink_to(secret)
    Path("clean.csv").write_text(
        "image_id,label,suggested_label,label_quality,keep,by_eye\nlink.jpg,0,1,0.1,False,False\n"
    )
    said = say("review", "clean.csv", "--data", data)
    assert "link.jpg is a link to" in said and "outside" in said


@pytest.mark.parametrize(
    "verb",
    [
        ["eda", "--data", "data"],
        ["sheet", "--data", "data"],
        ["init", "--data", "data"],
        ["folds", "--data", "data"],
        ["report", "runs", "--data", "data", "--folds", "f.csv"],
        ["clean", "--oof", "a.csv", "--folds", "f.csv"],
        ["review", "clean.csv", "--data", "data"],
        ["ensemble", "--oof", "a.csv", "--folds", "f.csv"],
        ["predict", "--member", "runs/a", "--images", "data"],
        ["submission", "--ensemble", "d", "--images", "data"],
    ],
)
def test_a_folder_is_refused_where_a_file_is_written(data, say, verb):
    Path("taken").mkdir()
    assert "Invalid value for '--out': file 'taken' is a directory" in say(*verb, "--out", "taken")


@pytest.mark.parametrize("verb", ["doctor", "rehearse", "submit", "push", "fetch"])
def test_a_bundle_that_is_not_there_is_named(data, say, verb):
    assert "no folder nope; give the bundle's folder" in say("submit", verb, "--bundle", "nope")
    Path("build/x/bundle/kit").mkdir(parents=True)
    assert "build/x is no bundle, it holds one: give build/x/bundle" in say("submit", verb, "--bundle", "build/x")


def test_an_output_never_replaces_what_it_is_made_from(data, say):
    Path("oof.csv").write_text("image_id,p0,p1,fold\n")
    Path("f.csv").write_text("image_id,label,fold\n")
    Path("m.safetensors").write_bytes(b"x")
    of = ("--oof", "oof.csv", "--folds", "f.csv")
    for arguments in (
        ("ensemble", *of, "--out", "oof.csv"),
        ("ensemble", *of, "--out", "oof.json"),
        ("ensemble", *of, "--out", "./f.csv"),
        ("clean", *of, "--out", "f.csv"),
        ("predict", "--member", "m.safetensors", "--images", "data", "--folds", "f.csv", "--out", "f.csv"),
    ):
        assert f"would be written over {Path(arguments[-1])}, which it is made from; give --out" in say(*arguments)
    assert Path("oof.csv").read_text().startswith("image_id,p0") and Path("f.csv").read_text().startswith("image_id,l")


@pytest.mark.parametrize(
    "verb",
    [
        ["sample"],
        ["tfrecords", "records"],
        ["weights", "resnet50"],
        ["train", "small_resnet", "--data", "data", "--folds", "f.csv"],
        ["pretrain", "byol", "--data", "data"],
        ["ssl-report", "small_resnet", "--data", "data", "--folds", "f.csv", "--weights", "a=b.pth"],
        ["ablate", "small_resnet", "--data", "data", "--folds", "f.csv", "--change", "lr=1"],
        ["submit", "ensemble"],
        ["submit", "package"],
    ],
)
def test_a_file_is_refused_where_a_folder_is_made(data, say, verb):
    Path("taken").write_text("mine")
    assert "Invalid value for '--out': dir 'taken' is a file" in say(*verb, "--out", "taken")
    assert Path("taken").read_text() == "mine"


MISSING = {
    "folds": (["folds", "--labels", "trian.csv"], "no table trian.csv (did you mean train.csv?); expected a CSV with"),
    "compare": (
        ["compare", "runs/a/ofo.csv", "oof.csv", "--folds", "folds.csv"],
        "no prediction file runs/a/ofo.csv (did you mean oof.csv?); `cassava-kit train` writes runs/RECIPE/oof.csv",
    ),
    "compare, no folder": (
        ["compare", "run/a/oof.csv", "oof.csv", "--folds", "folds.csv"],
        "no prediction file run/a/oof.csv (there is no folder run/a); `cassava-kit train` writes",
    ),
    "fold file": (
        ["compare", "runs/a/oof.csv", "oof.csv", "--folds", "fold.csv"],
        "no fold file fold.csv (did you mean folds.csv?); make one with: python -m cassava_kit folds",
    ),
    "predict": (
        ["predict", "--member", "resnet.safetensor", "--images", "data", "--out", "p.csv"],
        "no checkpoint resnet.safetensor (did you mean resnet.safetensors?); `cassava-kit train` writes",
    ),
    "images": (
        ["predict", "--member", "m", "--images", "datas", "--out", "p.csv"],
        "no folder datas (did you mean data?); give one that holds images",
    ),
    "train": (
        ["train", "small_resnet", "--data", "data", "--folds", "folds.csv", "--weights", "resnet.safetensor"],
        "no weights file resnet.safetensor (did you mean resnet.safetensors?); `cassava-kit weights RECIPE` downloads",
    ),
    "probe": (
        ["train", "probe", "--model", "timm:resnet18", "--data", "data", "--folds", "folds.csv", "--weights", "data"],
        "no weights file data (it is a folder); `cassava-kit weights RECIPE` downloads",
    ),
    "ensemble": (
        ["submit", "ensemble", "--weights", "resnet18=resnet.pth"],
        "no weights file resnet.pth (did you mean resnet.safetensors?); `cassava-kit weights RECIPE` downloads",
    ),
    "ssl-report": (
        ["ssl-report", "small_resnet", "--data", "data", "--folds", "folds.csv", "--weights", "a=none.pth"],
        "no weights file none.pth; `cassava-kit weights RECIPE` downloads",
    ),
    "pretrain": (
        ["pretrain", "byol", "--images", "pictures", "--weights", "none.pth", "--set", "batch_size=4"],
        "no weights file none.pth; `cassava-kit weights RECIPE` downloads",
    ),
    "report": (["report", "run"], "no run folder run (did you mean runs?); give what train wrote, e.g. runs/resnet18"),
    "review": (["review", "clena.csv", "--data", "data"], "no noise report clena.csv; make one with: python -m"),
    "decisions": (
        ["clean", "--oof", "runs/a/oof.csv", "--folds", "folds.csv", "--decisions", "d.csv"],
        "no decisions d.csv; export them from the review page",
    ),
    "embedding": (
        ["clean", "--oof", "runs/a/oof.csv", "--folds", "folds.csv", "--embedding", "e.npz"],
        "no embedding e.npz; give an .npz or a .csv of vectors, or --backbone CHECKPOINT",
    ),
    "package": (
        ["submit", "package", "--ensemble-weights", "w.json"],
        "no weights file w.json; make one with: python -m cassava_kit ensemble",
    ),
    "finals": (["submit", "finals", "--ledger", "s.json"], "no ledger s.json; `submit` writes it; or give --folds"),
    "candidate": (
        ["submit", "finals", "--folds", "folds.csv", "--candidate", "a=runs/a/oof.csv,s.csv"],
        "no submission s.csv; --candidate a=runs/a/oof.csv,s.csv names it after the comma; mend it or leave it out",
    ),
    "doctor": (
        ["submit", "doctor", "--notebook", "n.ipynb"],
        "no notebook n.ipynb (did you mean n.py?); give an .ipynb or a .py",
    ),
    "metadata": (
        ["submit", "doctor", "--notebook", "n.py", "--kernel-metadata", "k.json"],
        "no metadata k.json; `kaggle kernels init` writes it; without it leave --kernel-metadata out",
    ),
    "grade": (
        ["mle-bench", "grade", "s.csv", "--private", "private"],
        "no submission s.csv; give the .csv that a notebook, `submission` or `ensemble` wrote",
    ),
    "answers": (
        ["mle-bench", "grade", "folds.csv", "--private", "private"],
        "no answers private; --private takes the folder private/ that `mle-bench prepare` made",
    ),
    "prepare": (["mle-bench", "prepare", "data", "mle"], "found 0; give the folder of the downloaded competition"),
    "submission": (
        ["submission", "--ensemble", "weihgts", "--images", "data"],
        "no folder of weights weihgts (did you mean weights?); give one with ensemble.json and its checkpoints",
    ),
    "init": (
        ["init", "--data", "data", "--train-csv", "trian.csv", "--out", "c.json"],
        "no table data/trian.csv (did you mean train.csv?); --train-csv names the table of labels in --data",
    ),
    "data": (["eda", "--data", "dta"], "no folder dta (did you mean data?); give the competition's folder as it was"),
}


@pytest.mark.parametrize("case", MISSING)
def test_a_missing_file_is_named_with_what_is_there_and_what_to_do(data, say, case):
    table(data, "image_id,label")
    Path("train.csv").write_text((data / "train.csv").read_text())
    rows = [f"{n}.jpg,{n % 5},{n // 6}\n" for n in range(12)]
    Path("folds.csv").write_text("image_id,label,fold\n" + "".join(sorted(rows)))
    Path("runs/a").mkdir(parents=True)
    oof = [f"{n}.jpg,.2,.2,.2,.2,.2,{n // 6}\n" for n in range(12)]
    Path("runs/a/oof.csv").write_text("image_id,p0,p1,p2,p3,p4,fold\n" + "".join(sorted(oof)))
    for name in ("weights", "pictures"):
        Path(name).mkdir()
    for n in range(8):
        cv2.imwrite(f"pictures/{n}.jpg", np.full((32, 32, 3), 20 * n, np.uint8))
    Path("n.py").write_text("print(1)\n")
    Path("resnet.safetensors").write_bytes(b"x")
    if case == "images":
        checkpoint("m")
    arguments, message = MISSING[case]
    assert message in say(*arguments)


def checkpoint(folder: str) -> None:
    """Write a checkpoint's header with one tensor."""
    size = {"input_size": (32, 32), "mean": (0, 0, 0), "std": (1, 1, 1)}
    info = CheckpointInfo(model="resnet18", n_classes=5, recipe="r", **size)
    save_checkpoint(f"{folder}/m.safetensors", {"a": torch.zeros(1)}, info)
