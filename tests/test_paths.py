"""Things on Kaggle are found by their markers, in both mount layouts."""

from pathlib import Path

import pytest

from cassava_kit.competition import CASSAVA
from cassava_kit.paths import KIT_MANIFEST, cache_dir, find_competition, find_marked, input_dir, working_dir


def mount(folder: Path) -> Path:
    (folder / CASSAVA.test_images).mkdir(parents=True)
    (folder / CASSAVA.sample_submission).write_text("image_id,label\n")
    return folder


@pytest.mark.parametrize(
    "place", ["competitions/cassava-leaf-disease-classification", "cassava-leaf-disease-classification", "x"]
)
def test_competition_is_found_wherever_it_is_mounted(tmp_path, place):
    (tmp_path / "datasets" / "me" / "kit").mkdir(parents=True)
    folder = mount(tmp_path / place)
    assert find_competition(tmp_path) == folder


def test_missing_competition_says_what_to_attach(tmp_path):
    with pytest.raises(FileNotFoundError, match="attach the competition 'cassava-leaf-disease-classification'"):
        find_competition(tmp_path)


@pytest.mark.parametrize("place", ["datasets/me/kit", "kit"])
def test_dataset_is_found_by_its_manifest(tmp_path, place):
    (tmp_path / place).mkdir(parents=True)
    (tmp_path / place / KIT_MANIFEST).write_text("{}")
    assert find_marked(KIT_MANIFEST, tmp_path) == tmp_path / place


def test_two_datasets_of_one_kind_are_refused(tmp_path):
    for place in ("a", "b"):
        (tmp_path / place).mkdir()
        (tmp_path / place / KIT_MANIFEST).write_text("{}")
    with pytest.raises(FileNotFoundError, match=r"exactly one folder .* found .*a, .*b"):
        find_marked(KIT_MANIFEST, tmp_path)


def test_environment_moves_every_place(monkeypatch, tmp_path):
    for name, function in (
        ("CASSAVA_KIT_CACHE", cache_dir),
        ("KAGGLE_INPUT_DIR", input_dir),
        ("KAGGLE_WORKING_DIR", working_dir),
    ):
        monkeypatch.delenv(name, raising=False)
        default = function()
        monkeypatch.setenv(name, str(tmp_path))
        assert function() == tmp_path != default
