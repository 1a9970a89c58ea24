"""The benchmark's photographs: the same every time, in Kaggle's layout, distinct but for the planted copies."""

from __future__ import annotations

import json
from pathlib import Path

import cv2
import numpy as np
import pandas as pd
import photographs
import pytest

from cassava_kit.competition import CASSAVA
from cassava_kit.data.duplicates import find_duplicates
from cassava_kit.data.table import list_images, read_competition

ROWS = 300


@pytest.fixture(scope="module")
def real(tmp_path_factory) -> Path:
    """What stands in for the real data: drawn scenes of 800x600, and a table of more rows than are made."""
    folder = tmp_path_factory.mktemp("real")
    (folder / "originals").mkdir()
    for seed in range(12):
        cv2.imwrite(str(folder / "originals" / f"{seed}.jpg"), scene(seed), [cv2.IMWRITE_JPEG_QUALITY, 75])
    rng = np.random.default_rng(0)
    table = pd.DataFrame({"image_id": [f"{1000 + n}.jpg" for n in range(ROWS)], "label": rng.integers(0, 5, ROWS)})
    (folder / "tables").mkdir()
    table.assign(c0=1.0).to_csv(folder / "tables" / "oof_rank14.csv", index=False)
    return folder


def scene(seed: int) -> np.ndarray:
    rng = np.random.default_rng(seed)
    field = sum(
        cv2.resize(rng.normal(size=(n, n, 3)), (800, 600), interpolation=cv2.INTER_CUBIC) * 130 / n**0.5
        for n in (4, 12, 60)
    )
    return np.clip(field + 128, 0, 255).astype(np.uint8)


@pytest.fixture(scope="module")
def folder(real, tmp_path_factory) -> Path:
    return photographs.competition_folder(tmp_path_factory.mktemp("cache"), real, 110, n_test=8)


def content(folder: Path, sub: str = CASSAVA.train_images) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in (folder / sub).iterdir()}


def test_the_folder_has_the_competitions_layout_ids_and_labels(folder, real):
    table = read_competition(folder)
    expected = pd.read_csv(real / "tables" / "oof_rank14.csv")[["image_id", "label"]][:110]
    assert table.frame.to_numpy().tolist() == expected.to_numpy().tolist()
    assert table.unlisted == ()
    sample = pd.read_csv(folder / CASSAVA.sample_submission)
    assert list(sample.columns) == ["image_id", "label"]
    assert sorted(sample["image_id"]) == list_images(folder / CASSAVA.test_images)
    assert len(sample) == 8
    assert json.loads((folder / CASSAVA.label_map).read_text())["4"] == "Healthy"
    assert not set(sample["image_id"]) & set(table.frame["image_id"])


def test_files_have_the_originals_size_and_bytes(folder, real):
    images = [cv2.imread(str(path)) for path in sorted((folder / CASSAVA.train_images).iterdir())[:20]]
    assert {image.shape for image in images} == {(600, 800, 3)}
    made = np.mean([len(one) for one in content(folder).values()])
    originals = np.mean([path.stat().st_size for path in (real / "originals").iterdir()])
    assert made == pytest.approx(originals, rel=0.1)


def test_another_cache_gets_the_same_bytes_and_a_smaller_folder_the_first_rows(real, folder, tmp_path):
    small = content(photographs.competition_folder(tmp_path, real, 30, n_test=3))
    large = content(folder)
    assert small == {name: large[name] for name in small}
    assert len(small) == 30 and len(set(large.values())) == 110
    tests = content(tmp_path / "train30-test3", CASSAVA.test_images)
    assert tests == {name: content(folder, CASSAVA.test_images)[name] for name in tests}


def test_a_folder_goes_on_where_it_broke_off_and_makes_nothing_twice(real, tmp_path, monkeypatch):
    whole = content(photographs.competition_folder(tmp_path, real, 20, n_test=2))
    pool = tmp_path / "photographs" / CASSAVA.train_images
    (pool / "1004.jpg").unlink()
    (tmp_path / "train20-test2" / CASSAVA.train_images / "1004.jpg").unlink()
    made = []
    encode = photographs.encode
    monkeypatch.setattr(photographs, "encode", lambda *given: made.append(given) or encode(*given))
    again = photographs.competition_folder(tmp_path, real, 20, n_test=2)
    assert content(again) == whole
    assert len(made) == 1


def test_planted_copies_alone_are_near_duplicates(folder):
    names = read_competition(folder).frame["image_id"]
    groups = find_duplicates([folder / CASSAVA.train_images / name for name in names], progress=False)
    source = photographs.copied_row(99, 0)
    assert 1 <= source < 99
    assert groups[99] == groups[source]
    assert len(set(groups)) == 109


def test_one_row_in_a_hundred_is_a_copy_of_an_earlier_one_that_is_none():
    sources = {row: photographs.copied_row(row, 0) for row in range(2000)}
    copies = {row: source for row, source in sources.items() if source is not None}
    assert len(copies) == 20
    assert all(source < row and sources[source] is None for row, source in copies.items())


def test_another_seed_is_another_set_and_refused_in_the_same_cache(real, folder, tmp_path):
    other = content(photographs.competition_folder(tmp_path, real, 5, n_test=1, seed=1))
    mine = content(folder)
    assert all(mine[name] != one for name, one in other.items())
    with pytest.raises(ValueError, match="another seed; give another --cache"):
        photographs.competition_folder(tmp_path, real, 5, n_test=1, seed=0)


def test_more_than_there_are_rows_is_refused(real, tmp_path):
    with pytest.raises(ValueError, match="at most 300 training and 15000 test"):
        photographs.competition_folder(tmp_path, real, 301, n_test=1)
