from __future__ import annotations

import gzip
import re
import shutil
import zipfile
from pathlib import Path, PurePosixPath

import pandas as pd
import pytest

from cassava_kit.competition import CASSAVA
from cassava_kit.kaggle.pack.kernels import find_kernel
from cassava_kit.kaggle.rehearse.isolation import ISOLATIONS
from cassava_kit.kaggle.rehearse.judge import judge_run
from cassava_kit.kaggle.rehearse.layout import (
    as_uploaded,
    competition_mounts,
    dataset_folder,
    few_images,
    hidden_images,
    link_images,
    uploaded_name,
)
from cassava_kit.kaggle.rehearse.options import NotebookRun, RehearsalOptions


def test_a_folder_arrives_as_kaggle_leaves_it(tmp_path: Path) -> None:
    folder = tmp_path / "upload"
    (folder / "sub").mkdir(parents=True)
    (folder / "sub" / "lost.txt").write_text("dropped with its folder")
    (folder / "dataset-metadata.json").write_text("{}")
    (folder / "kit-1.0+cpu.whl").write_bytes(b"wheel")
    (folder / "run.sh").write_text("#!/bin/sh\n")
    (folder / "run.sh").chmod(0o755)
    with zipfile.ZipFile(folder / "code.zip", "w") as archive:
        archive.writestr("inner.py", "x = 1")
    (folder / "table.csv.gz").write_bytes(gzip.compress(b"a,b"))
    out = as_uploaded(folder, tmp_path / "mounted")
    arrived = {path.relative_to(out).as_posix() for path in out.rglob("*") if path.is_file()}
    assert arrived == {"kit-1.0cpu.whl", "run.sh", "code/inner.py", "table.csv"}
    assert (out / "table.csv").read_bytes() == b"a,b"
    assert not (out / "run.sh").stat().st_mode & 0o111
    assert (folder / "run.sh").stat().st_mode & 0o111, "the user's own file keeps its mode"


@pytest.mark.parametrize("name", ["a@b.bin", "a&b.bin"])
def test_names_that_kaggle_refuses(name: str) -> None:
    with pytest.raises(ValueError, match="refused by Kaggle"):
        uploaded_name(name)


def test_both_layouts_of_a_dataset() -> None:
    assert dataset_folder("me/kit", "new") == PurePosixPath("datasets/me/kit")
    assert dataset_folder("me/kit", "old") == PurePosixPath("kit")


def test_only_the_competitions_own_files_are_mounted(tmp_path: Path) -> None:
    (tmp_path / "test_images").mkdir()
    for name in ("sample_submission.csv", "train.csv", "truth.csv", "kaggle.json"):
        (tmp_path / name).write_text("")
    mounted = {mount.target.name for mount in competition_mounts(tmp_path, "new")}
    assert mounted == {"test_images", "sample_submission.csv", "train.csv"}
    (tmp_path / "sample_submission.csv").unlink()
    with pytest.raises(FileNotFoundError, match=r"has no sample_submission\.csv"):
        competition_mounts(tmp_path, "new")


def test_hidden_images_are_the_test_images_then_others_then_all_again(tmp_path: Path) -> None:
    tests, training = tmp_path / "test", tmp_path / "train"
    for folder, names in ((tests, ("1.jpg", "000000001.jpg")), (training, ("a.jpg", "1.jpg"))):
        folder.mkdir()
        for name in names:
            (folder / name).write_text(f"{folder.name} {name}")
    assert list(hidden_images([tests, training], 2)) == ["000000001.jpg", "1.jpg"]
    assert hidden_images([tests, training], 1) == {"000000001.jpg": tests / "000000001.jpg"}
    many = hidden_images([tests, training], 8)
    assert list(many.values())[:3] == [tests / "000000001.jpg", tests / "1.jpg", training / "a.jpg"]
    assert list(many)[3:] == [f"{n:09d}.jpg" for n in (2, 3, 4, 5, 6)], "no name twice, not even one that is there"
    assert list(many.values())[3:] == [*list(many.values())[:3], *list(many.values())[:2]]
    linked = link_images(many, tmp_path / "hidden")
    assert (linked / "000000002.jpg").read_text() == "test 000000001.jpg" and len(list(linked.iterdir())) == 8
    (tmp_path / "none").mkdir()
    with pytest.raises(FileNotFoundError, match="to make hidden ones of"):
        hidden_images([tmp_path / "none"], 3)


def test_a_few_images_of_every_class_make_a_competition(tiny_dir: Path, tmp_path: Path) -> None:
    """Rows in another order than the classes, so that the first rows alone would be of a few classes."""
    table = pd.read_csv(tiny_dir / "train.csv").sort_values("label", kind="stable")
    folder = tmp_path / "all"
    shutil.copytree(tiny_dir, folder)
    table.to_csv(folder / "train.csv", index=False)
    few = few_images(folder, 2, tmp_path / "few", CASSAVA)
    rows = pd.read_csv(few / "train.csv")
    assert rows["label"].value_counts().to_dict() == dict.fromkeys(set(table["label"]), 2)
    first, second = rows[rows["label"] == 3]["image_id"]
    of_class = table[table["label"] == 3]["image_id"].tolist()
    assert (first, second) == (of_class[0], of_class[len(of_class) // 2]), "spread over the table"
    whole = few_images(folder, 10**4, tmp_path / "whole", CASSAVA)
    assert pd.read_csv(whole / "train.csv").equals(pd.read_csv(folder / "train.csv")), "as many as there are"
    assert {path.name for path in (few / "train_images").iterdir()} == set(rows["image_id"])
    assert len(list((few / "test_images").iterdir())) <= 2
    assert all(mount.source.exists() for mount in competition_mounts(few, "new", CASSAVA))
    with pytest.raises(FileNotFoundError, match=r"has no train\.csv"):
        few_images(tmp_path, 2, tmp_path / "none", CASSAVA)


@pytest.mark.parametrize(
    ("left", "error", "said"),
    [
        ("pretrain-byol/backbone.safetensors", "", "passed (new layout, .*: it left pretrain-byol/backbone"),
        ("pretrain-byol/log.txt", "", r"FAILED .*: it left no pretrain-\*/backbone\.safetensors"),
        ("pretrain-byol/backbone.safetensors", "RuntimeError: slow", "FAILED .*RuntimeError: slow"),
    ],
)
def test_a_kernel_is_judged_by_what_it_leaves(tmp_path: Path, left: str, error: str, said: str) -> None:
    run = NotebookRun(tmp_path / "pretrain-ssl.ipynb", [], tmp_path / "out", "new", RehearsalOptions())
    (run.working / left).parent.mkdir(parents=True)
    (run.working / left).write_text("x")
    result = {"error": error, "log": "", "seconds": 1.0, "peak_memory": 2**30}
    done = judge_run(run, find_kernel("pretrain-ssl"), result, ISOLATIONS[0], [])
    assert re.search(said.replace("(new", r"\(new"), done.verdict), done.verdict
    assert done.ok == ("passed" in said)
    changed = judge_run(run, find_kernel("pretrain-ssl"), result, ISOLATIONS[0], [Path("/kaggle/input/x")])
    assert not changed.ok and "the notebook changed its input: /kaggle/input/x" in changed.verdict
