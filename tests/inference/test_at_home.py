"""The verb submission: every option reaches the run, and slips of the pen are one line and exit code 2."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
from tiny_runs import ROOT, full_ensemble, read_labels, run_python

from cassava_kit.inference import run as run_module
from cassava_kit.inference import runner
from cassava_kit.inference.ensemble import ENSEMBLE_FILE
from cassava_kit.inference.options import RunOptions
from cassava_kit.inference.run import run_and_check
from cassava_kit.inference.submission import check_answers

CPU = RunOptions(device="cpu", batch_size=4, progress=False)


def test_the_command_writes_the_full_ensembles_labels(images: Path, weights: Path, tmp_path: Path) -> None:
    out = tmp_path / "out" / "submission.csv"
    arguments = ["--ensemble", str(weights), "--images", str(images), "--out", str(out)]
    settings = ["--time-limit", "900", "--early-stop", "off", "--pixel-memory", "0.1"]
    text = run_python(["-m", "cassava_kit", "submission", *arguments, *settings, "--views", "flips"])
    assert text.splitlines()[-1] == str(check_answers(out, images))
    assert read_labels(out).tolist() == full_ensemble(images, weights).argmax(1).tolist()
    report = json.loads((out.parent / "run.json").read_text())
    assert report["time_limit"] == 900 and report["views"] == "flips" and report["finished"]
    assert report["early_stop"]["kind"] == "off"
    # From the start of the process: Python and the kit had to be imported before the clock was read.
    assert report["timings"]["first_file"] > 0.05


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--ensemble", "nowhere"], "no folder of weights nowhere"),
        (["--images", "nowhere"], "no folder nowhere"),
        (["--early-stop", "soon"], "early_stop must be one of certified, off, got 'soon'"),
        (["--views", "all"], "views must be one of none, hflip, flips, d4, d4+zoom"),
        (["--pixel-memory", "-1"], "memory must be at least 0 gigabytes and finite, got -1.0"),
        (["--pixel-memory", "inf"], "memory must be at least 0 gigabytes and finite, got inf"),
        (["--time-limit", "0"], "the time limit must be more than 0 seconds and finite, or none, got 0.0"),
        (["--time-limit", "inf"], "and finite, or none, got inf"),
        (["--device", "gpu"], "device must be auto, cpu, cuda or a GPU such as cuda:0, got 'gpu'"),
        (["--device", "cuda:99"], "device cuda:99 does not compute"),
    ],
)
def test_slips_are_one_line(
    images: Path, weights: Path, tmp_path: Path, arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    from cassava_kit.cli.app import run_app
    from cassava_kit.cli.verbs import app

    given = {"--ensemble": str(weights), "--images": str(images), "--out": str(tmp_path / "s.csv")}
    given |= dict(zip(arguments[::2], arguments[1::2], strict=True))
    code = run_app(app, ["submission", *(word for pair in given.items() for word in pair)])
    error = capsys.readouterr().err
    assert code == 2 and message in error and error.count("\n") == 1
    assert not (tmp_path / "s.csv").exists()


def test_the_ensemble_file_stands_for_its_folder(images: Path, weights: Path, tmp_path: Path) -> None:
    told = run_and_check(weights / ENSEMBLE_FILE, images, tmp_path / "s.csv", options=CPU)
    assert told == str(check_answers(tmp_path / "s.csv", images))


@pytest.mark.parametrize("slip", ["damaged", "one level up", "the ensemble file alone"])
def test_weights_without_a_member_that_can_vote_cost_nothing(
    images: Path, weights: Path, tmp_path: Path, slip: str
) -> None:
    run_and_check(weights, images, tmp_path / "s.csv", options=CPU)
    before = (tmp_path / "s.csv").read_bytes()
    for path in weights.glob("*.safetensors"):
        path.write_bytes(b"") if slip == "damaged" else path.unlink()
    given, message = {
        "damaged": (weights, r"no member in \S+ can vote \(.*vit-fold0.*not a whole"),
        "one level up": (
            tmp_path,
            r"can vote \(ensemble.json: the file is missing.*; give ensemble.json with",
        ),
        "the ensemble file alone": (weights / ENSEMBLE_FILE, "can vote .*res-fold1.safetensors: the file is missing"),
    }[slip]
    with pytest.raises(ValueError, match=message):
        run_and_check(given, images, tmp_path / "s.csv", options=CPU)
    assert (tmp_path / "s.csv").read_bytes() == before


def test_a_run_without_a_vote_is_an_error_with_its_reasons(
    images: Path, weights: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def load(*_: object) -> object:
        raise RuntimeError("weights of another model")

    monkeypatch.setattr(runner, "place", load)
    with pytest.raises(ValueError, match=r"prior's class alone: no member voted \(.*vit-fold0.*of another model"):
        run_and_check(weights, images, tmp_path / "s.csv", options=CPU)
    assert set(read_labels(tmp_path / "s.csv")) == {3}


def test_options_arrive(images: Path, weights: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from cassava_kit.cli.submission import submission_command

    seen: list[object] = []

    def run(*where: object, time_limit: float, options: RunOptions) -> str:
        seen.extend([*where, time_limit, options])
        return "done"

    monkeypatch.setattr(run_module, "run_and_check", run)
    submission_command(weights, images, tmp_path / "s.csv", 60.0, "off", "d4", 2.0, "cpu")
    assert seen == [weights, images, tmp_path / "s.csv", 60.0, RunOptions("d4", "off", device="cpu", memory=2.0)]


def test_the_time_limit_counts_the_time_before_our_first_line(images: Path, weights: Path, tmp_path: Path) -> None:
    code = (
        "import sys, time; time.sleep(1)\n"
        "from cassava_kit.inference.run import run_submission\n"
        "r = run_submission(*sys.argv[1:4], time_limit=1)\n"
        "print(r.prior_alone, r.timings['first_file'])\n"
    )
    command = [sys.executable, "-c", code, str(images), str(weights), str(tmp_path / "s.csv")]
    done = subprocess.run(command, capture_output=True, text=True, check=True, cwd=ROOT)
    alone, first = done.stdout.split()[-2:]
    assert alone == "True" and float(first) > 1
