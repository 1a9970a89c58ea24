"""Damaged files given to the verbs: one line with exit code 2, never a traceback. A bug keeps its traceback."""

import errno

import pytest

from cassava_kit.cli.app import run_app, user_message
from cassava_kit.cli.submit import submit_app
from cassava_kit.cli.verbs import app
from cassava_kit.data.folds import write_folds
from cassava_kit.errors import UserError

CONTENTS = {
    "empty": b"",
    "binary": bytes(range(256)) * 5,
    "a list": b"[1,2]",
    "an object": b"{}",
    "latin": b"image_id,label,fold\n\xe9.jpg,1,0\n",
    "open quote": b'image_id,label\n"unclosed,1\n',
}
FOLDS = ["--folds", "folds.csv"]
TRAIN = ["train", "small_resnet", "--data", "data", *FOLDS, "--set", "epochs=1"]
# Each command with BAD for the damaged file, and the file's ending.
COMMANDS = [
    (["train", "small_resnet", "--data", "data", "--folds", "BAD"], ".csv"),
    (["ensemble", "--oof", "BAD", *FOLDS], ".csv"),
    (["clean", "--oof", "BAD", *FOLDS], ".csv"),
    (["compare", "BAD", "BAD", *FOLDS], ".csv"),
    (["folds", "--labels", "BAD", "--out", "made.csv"], ".csv"),
    (["review", "BAD", "--data", "data"], ".csv"),
    ([*TRAIN, "--clean", "BAD"], ".csv"),
    ([*TRAIN, "--weights", "BAD"], ".safetensors"),
    ([*TRAIN, "--weights", "BAD"], ".pth"),
    (["predict", "--member", "BAD", "--images", "data/test_images", "--out", "made.csv"], ".safetensors"),
    (["tfrecords", "BAD", "--out", "made"], ".tfrec"),
    (["submit", "finals", "--ledger", "BAD"], ".json"),
    (["submit", "package", "--ensemble-weights", "BAD"], ".json"),
]


@pytest.mark.parametrize("content", CONTENTS)
def test_a_damaged_file_is_one_line(content, tiny_dir, tiny_folds, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "data").symlink_to(tiny_dir)
    write_folds(tmp_path / "folds.csv", tiny_folds)
    for number, (arguments, ending) in enumerate(COMMANDS):
        bad = tmp_path / f"bad{number}{ending}"
        bad.write_bytes(CONTENTS[content])
        code = run_app(app, [str(bad) if word == "BAD" else word for word in arguments])
        told = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
        assert code == 2 and len(told) == 1, (arguments, told)
    assert not (tmp_path / "made.csv").exists() and not (tmp_path / "runs").exists()


def test_only_mistakes_and_file_errors_are_one_line(monkeypatch):
    assert user_message(UserError("expected\n a, got b")) == "expected a, got b"
    assert user_message(FileNotFoundError("no fold file x.csv")) == "no fold file x.csv"
    assert user_message(PermissionError(13, "Permission denied", "runs")) == "[Errno 13] Permission denied: 'runs'"
    assert user_message(OSError(errno.ENOSPC, "No space left on device")) is not None
    for bug in (ValueError("a library's"), KeyError("x"), RuntimeError("y"), OSError(5, "Input/output error")):
        assert user_message(bug) is None


def test_a_bug_shows_its_traceback(monkeypatch):
    def broken(*_, **__):
        raise ValueError("not enough values to unpack")

    monkeypatch.setattr("cassava_kit.cli.kaggle.examine", broken)
    with pytest.raises(ValueError, match="not enough values"):
        run_app(submit_app, ["doctor", "--bundle", "x"])
