"""The cache folder: where the environment says, and somewhere writable in any case."""

import os
import subprocess
import sys

import pytest

from cassava_kit import files as paths
from cassava_kit.files import cache_dir


@pytest.fixture(autouse=True)
def _forget_folders():
    paths._writable_folder.cache_clear()
    yield
    paths._writable_folder.cache_clear()


def test_the_environment_moves_the_cache(monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.delenv("CASSAVA_KIT_CACHE", raising=False)
    assert cache_dir() == tmp_path / "home" / ".cache" / "cassava_kit"
    monkeypatch.setenv("CASSAVA_KIT_CACHE", str(tmp_path / "own"))
    assert cache_dir() == tmp_path / "own" and cache_dir().is_dir()


@pytest.mark.parametrize("variable", ["HOME", "CASSAVA_KIT_CACHE"])
def test_an_unwritable_place_costs_the_cache_alone(monkeypatch, tmp_path, capsys, variable):
    (tmp_path / "file").write_text("")
    monkeypatch.delenv("CASSAVA_KIT_CACHE", raising=False)
    monkeypatch.setenv(variable, str(tmp_path / "file" / "home"))
    monkeypatch.setattr(paths.tempfile, "tempdir", str(tmp_path))
    folder = cache_dir()
    assert folder == cache_dir() == tmp_path / f"cassava_kit-{os.getuid()}"
    (folder / "x").write_text("kept")
    told = capsys.readouterr().err
    assert told.count("cannot be written") == 1 and str(folder) in told


def test_a_user_without_any_home_has_a_cache(monkeypatch, tmp_path):
    def no_home():
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.delenv("CASSAVA_KIT_CACHE", raising=False)
    monkeypatch.setattr(paths.Path, "home", no_home)
    monkeypatch.setattr(paths.tempfile, "tempdir", str(tmp_path))
    assert cache_dir().parent == tmp_path


def test_a_temporary_folder_of_somebody_else_is_not_used(monkeypatch, tmp_path):
    (tmp_path / "file").write_text("")
    (tmp_path / "theirs").mkdir()
    (tmp_path / f"cassava_kit-{os.getuid()}").symlink_to(tmp_path / "theirs")
    monkeypatch.setenv("CASSAVA_KIT_CACHE", str(tmp_path / "file" / "cache"))
    monkeypatch.setattr(paths.tempfile, "tempdir", str(tmp_path))
    folder = cache_dir()
    assert folder.is_dir() and not folder.is_symlink() and not list((tmp_path / "theirs").iterdir())


def test_a_temporary_folder_of_another_user_is_not_used(monkeypatch, tmp_path):
    monkeypatch.setattr(paths.os, "getuid", lambda: os.geteuid() + 1)  # the folder below belongs to somebody else then
    theirs = tmp_path / f"cassava_kit-{os.geteuid() + 1}"
    theirs.mkdir()
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("CASSAVA_KIT_CACHE", str(tmp_path / "file" / "cache"))
    monkeypatch.setattr(paths.tempfile, "tempdir", str(tmp_path))
    assert cache_dir() not in (theirs, tmp_path / "file" / "cache")
    assert cache_dir().is_dir()


def test_folds_are_made_without_a_home(tiny_dir, tmp_path):
    """Near-duplicates are looked for in a folder of images, and the fingerprints have nowhere to be kept."""
    (tmp_path / "file").write_text("")
    environment = {**os.environ, "HOME": str(tmp_path / "file"), "TMPDIR": str(tmp_path)}
    environment.pop("CASSAVA_KIT_CACHE", None)
    command = [sys.executable, "-m", "cassava_kit", "folds", "--data", str(tiny_dir), "--out", str(tmp_path / "f.csv")]
    ended = subprocess.run(command, capture_output=True, text=True, env=environment)
    assert ended.returncode == 0, ended.stderr
    assert "cannot be written" in ended.stderr and (tmp_path / "f.csv").is_file()
