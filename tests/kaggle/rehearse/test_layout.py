from __future__ import annotations

import gzip
import zipfile
from pathlib import Path, PurePosixPath

import pytest

from cassava_kit.kaggle.rehearse.layout import (
    as_uploaded,
    competition_mounts,
    dataset_folder,
    hidden_images,
    link_images,
    uploaded_name,
)


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
