"""The submission run: right labels, and a valid file whatever happens."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import cv2
import numpy as np
import pandas as pd
import pytest
from tiny_members import colour_field, write_checkpoint, write_image

from cassava_kit.checkpoint import load_tensors, read_info, save_checkpoint
from cassava_kit.files import read_json
from cassava_kit.inference import report as report_module
from cassava_kit.inference import run as run_module
from cassava_kit.inference.ensemble import ENSEMBLE_FILE, read_ensemble, write_ensemble
from cassava_kit.inference.forward import Forward
from cassava_kit.inference.pixels import Budget
from cassava_kit.inference.predict import predict_images
from cassava_kit.inference.report import RunOptions, RunReport
from cassava_kit.inference.run import run_submission
from cassava_kit.submission import check_submission

ROOT = Path(__file__).parents[2]
CPU = {"device": "cpu", "batch_size": 4, "progress": False}


def run_python(arguments: list[str]) -> str:
    """Standard output of another Python that finds the package."""
    command = [sys.executable, *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=True, cwd=ROOT).stdout


def submit(images: Path, weights: Path, out: Path, **changes: object) -> tuple[pd.Series, RunReport]:
    """Run, check the file, and return its labels by image."""
    limits = {key: changes.pop(key) for key in ("time_limit", "started") if key in changes}
    report = run_submission(images, weights, out, options=RunOptions(**(CPU | changes)), **limits)
    check_submission(out, images)
    return read_labels(out), report


def read_labels(path: Path) -> pd.Series:
    return pd.read_csv(path, dtype={"image_id": str}, keep_default_na=False).set_index("image_id")["label"]


def full_ensemble(images: Path, weights: Path) -> np.ndarray:
    """Votes (N, K) of every checkpoint through every view, the slow way."""
    ensemble = read_ensemble(weights / ENSEMBLE_FILE)
    paths = sorted(images.iterdir())
    total = np.zeros((len(paths), 5))
    for member in ensemble.members:
        files = [weights / name for name in member.checkpoints]
        p, _ = predict_images(files, paths, views=ensemble.views, batch_size=4, device="cpu", progress=False)
        total += member.weight * p.mean(0)
    return total


@pytest.mark.parametrize("early_stop", ["off", "certified"])
@pytest.mark.parametrize("budget", [None, Budget(0, 0)], ids=["kept", "decoded again"])
def test_the_labels_are_the_full_ensembles(
    images: Path, weights: Path, tmp_path: Path, early_stop: str, budget: Budget | None
) -> None:
    expected = full_ensemble(images, weights).argmax(1)
    assert len(set(expected)) > 2
    labels, report = submit(images, weights, tmp_path / "out" / "s.csv", early_stop=early_stop, budget=budget)
    assert labels.tolist() == expected.tolist()
    assert not report.prior_alone and report.finished and report.error is None and not report.left_out
    assert (report.early_stop["work_done"] < 1) == (early_stop == "certified")


def test_run_json_says_what_happened_and_nothing_of_the_environment(
    images: Path, weights: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("KAGGLE_API_TOKEN", "a-secret-of-mine")
    (weights / "vit-fold0.safetensors").unlink()
    (images / "000.jpg").write_bytes(b"GIF89a")
    submit(images, weights, tmp_path / "s.csv")
    text = (tmp_path / "run.json").read_text()
    assert "a-secret-of-mine" not in text
    report = json.loads(text)
    assert report["n_images"] == 21 and list(report["images_failed"]) == ["000.jpg"]
    assert report["left_out"] == {"vit-fold0.safetensors": "the file is missing"}
    assert {m["file"] for m in report["members_used"]} == {
        f"{n}.safetensors" for n in ("res-fold0", "res-fold1", "eff-fold0")
    }
    assert sum(m["weight"] for m in report["members_used"]) == pytest.approx(1)
    assert report["versions"]["torch"] and report["devices"] == [f"cpu ({len(os.sched_getaffinity(0))} cores)"]
    assert report["plan"]["total_seconds"] > 0 and report["timings"]["units"]
    assert report["timings"]["images_decoded"] == 20
    assert sum(report["class_counts"]) == 21


def write_bad_corpus(folder: Path) -> dict[str, bool]:
    """Bad and odd files by name; the value says whether the file still has a right answer."""
    photo = colour_field(5, (60, 80))
    whole = cv2.imencode(".jpg", photo)[1].tobytes()
    (folder / "empty.jpg").write_bytes(b"")
    (folder / "cut.jpg").write_bytes(whole[: len(whole) // 2])
    (folder / "html.jpg").write_bytes(b"<!DOCTYPE html><html></html>")
    (folder / "zeros.jpg").write_bytes(bytes(5000))
    (folder / "head only.jpg").write_bytes(b"\xff\xd8\xff\xe0")
    (folder / "gif.jpg").write_bytes(b"GIF89a\x01\x00\x01\x00\x80\x00\x00\xff\xff\xff\x00\x00\x00,\x00\x00\x00\x00\x01")
    (folder / "png.jpg").write_bytes(cv2.imencode(".png", photo)[1].tobytes())
    (folder / "gray.jpg").write_bytes(cv2.imencode(".jpg", photo[:, :, 0])[1].tobytes())
    (folder / "deep.png").write_bytes(cv2.imencode(".png", photo.astype(np.uint16) * 256)[1].tobytes())
    (folder / "one pixel.jpg").write_bytes(cv2.imencode(".jpg", photo[:1, :1])[1].tobytes())
    (folder / "größe 葉.jpg").write_bytes(whole)
    (folder / 'quote",comma.jpg').write_bytes(whole)
    (folder / "folder.jpg").mkdir()
    right = {"png.jpg", "gray.jpg", "deep.png", "one pixel.jpg", "größe 葉.jpg", 'quote",comma.jpg'}
    return {path.name: path.name in right for path in folder.iterdir()}


def test_bad_files_are_counted_named_and_harm_nobody(images: Path, weights: Path, tmp_path: Path) -> None:
    good, _ = submit(images, weights, tmp_path / "a" / "s.csv")
    before = {path.name for path in images.iterdir()}
    corpus = write_bad_corpus(images)
    labels, report = submit(images, weights, tmp_path / "b" / "s.csv")
    assert labels[sorted(before)].tolist() == good[sorted(before)].tolist()
    broken = {name for name, right in corpus.items() if not right and name not in before} - {"folder.jpg"}
    assert set(report.images_failed) == broken
    assert set(labels[sorted(broken)]) == {3}
    assert "folder.jpg" not in labels
    twin = labels["größe 葉.jpg"]
    assert twin == labels['quote",comma.jpg'] == labels["png.jpg"]
    assert not report.left_out and report.error is None


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_a_file_that_may_not_be_read(images: Path, weights: Path, tmp_path: Path) -> None:
    (images / "004.jpg").chmod(0)
    _, report = submit(images, weights, tmp_path / "s.csv")
    assert list(report.images_failed) == ["004.jpg"]


def test_a_file_that_disappears_after_the_listing(
    images: Path, weights: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = run_module.load_members
    monkeypatch.setattr(run_module, "load_members", lambda *a: ((images / "006.jpg").unlink(), real(*a))[1])
    report = run_submission(images, weights, tmp_path / "s.csv", options=RunOptions(**CPU))
    assert list(report.images_failed) == ["006.jpg"]
    assert read_labels(tmp_path / "s.csv")["006.jpg"] == 3


@pytest.mark.slow
def test_a_huge_picture_needs_no_huge_memory(images: Path, weights: Path, tmp_path: Path) -> None:
    from PIL import Image

    Image.new("L", (20_000, 20_000), 120).save(images / "huge.jpg", quality=20)
    code = (
        "import sys, resource\n"
        "from cassava_kit.inference.report import RunOptions\n"
        "from cassava_kit.inference.run import run_submission\n"
        "r = run_submission(*sys.argv[1:4], options=RunOptions(device='cpu', batch_size=4))\n"
        "print(len(r.images_failed), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024)\n"
    )
    answers = []
    for folder in ("a", "b"):
        command = ["-c", code, str(images), str(weights), str(tmp_path / folder / "s.csv")]
        answers.append(run_python(command).split()[-2:])
        (images / "huge.jpg").unlink(missing_ok=True)
    assert [failed for failed, _ in answers] == ["0", "0"]
    with_it, without = (int(peak) for _, peak in answers)
    assert with_it - without < 500


@pytest.mark.slow
def test_memory_stays_flat_as_images_grow(images: Path, weights: Path, tmp_path: Path) -> None:
    code = (
        "import sys, resource\n"
        "from cassava_kit.inference.pixels import Budget\n"
        "from cassava_kit.inference.report import RunOptions\n"
        "from cassava_kit.inference.run import run_submission\n"
        "options = RunOptions(views='none', device='cpu', batch_size=16, budget=Budget(1 << 20), progress=False)\n"
        "report = run_submission(*sys.argv[1:4], options=options)\n"
        "print(report.n_images, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024)\n"
    )
    peaks = []
    for n_images in (100, 1500):
        folder = tmp_path / str(n_images)
        folder.mkdir()
        for i in range(n_images):
            (folder / f"{i}.jpg").symlink_to(images / f"{i % 21:03d}.jpg")
        answer = run_python(["-c", code, str(folder), str(weights), str(tmp_path / "out" / "s.csv")]).split()[-2:]
        assert answer[0] == str(n_images)
        peaks.append(int(answer[1]))
    # All pixels of 1,500 images would be 15 MB; what grows is names, votes and labels.
    assert peaks[1] - peaks[0] < 12


def test_no_images_no_rows(weights: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "none").mkdir()
    labels, report = submit(tmp_path / "none", weights, tmp_path / "s.csv")
    assert len(labels) == 0 and report.n_images == 0
    assert "no images" in capsys.readouterr().err


def test_one_image(weights: Path, tmp_path: Path) -> None:
    folder = tmp_path / "one"
    folder.mkdir()
    write_image(folder / "x.jpg", 3)
    labels, report = submit(folder, weights, tmp_path / "s.csv", batch_size=None)
    assert labels.tolist() == full_ensemble(folder, weights).argmax(1).tolist() and not report.prior_alone


def test_a_missing_folder_is_refused_before_anything(weights: Path, tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="no folder"):
        run_submission(tmp_path / "nowhere", weights, tmp_path / "s.csv")


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"early_stop": "never"}, "certified, calibrated, off"),
        ({"views": "all"}, r"none, flips, d4, d4\+zoom"),
        ({"engine": "tvm"}, "auto, torch, openvino"),
        ({"engine": "openvino"}, "pip install openvino"),
        ({"batch_size": 0}, "at least 1, got 0"),
    ],
)
def test_wrong_options_are_refused_at_once(
    wrong: dict[str, object], message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(report_module, "find_spec", lambda name: None)
    with pytest.raises(ValueError, match=message):
        RunOptions(**wrong)


def break_all(weights: Path) -> None:
    for path in weights.glob("*.safetensors"):
        path.write_bytes(path.read_bytes()[:100])


def test_without_any_member_the_prior_stands_alone_and_loudly(
    images: Path, weights: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    break_all(weights)
    labels, report = submit(images, weights, tmp_path / "s.csv")
    assert set(labels) == {3} and report.prior_alone and len(report.left_out) == 4
    assert "NO MEMBER VOTED" in capsys.readouterr().err


def without(weights: Path, lost: str) -> np.ndarray:
    """What the ensemble says when a member is left out of its file, weights made to sum to 1 again."""
    ensemble = read_ensemble(weights / ENSEMBLE_FILE)
    kept = [member for member in ensemble.members if member.name != lost]
    total = sum(member.weight for member in kept)
    members = tuple(member.model_copy(update={"weight": member.weight / total}) for member in kept)
    return ensemble.model_copy(update={"members": members})


@pytest.mark.parametrize("fault", ["strict load", "forward"])
def test_a_member_that_fails_late_is_left_out(
    images: Path, weights: Path, tmp_path: Path, fault: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = weights / "eff-fold0.safetensors"
    if fault == "strict load":
        tensors = load_tensors(path)
        tensors.pop(next(name for name in tensors if name.endswith("weight")))
        save_checkpoint(path, tensors, read_info(path))
    else:
        real = Forward.start

        def start(self: Forward, pixels: object, view: object) -> object:
            if self.info.recipe == "eff":
                raise RuntimeError("a kernel died")
            return real(self, pixels, view)

        monkeypatch.setattr(Forward, "start", start)
    labels, report = submit(images, weights, tmp_path / "s.csv", early_stop="off")
    monkeypatch.undo()
    assert list(report.left_out) == ["eff-fold0.safetensors"]
    write_ensemble(weights / ENSEMBLE_FILE, without(weights, "eff"))
    assert labels.tolist() == full_ensemble(images, weights).argmax(1).tolist()


def test_a_probability_file_votes_with_its_weight(images: Path, weights: Path, tmp_path: Path) -> None:
    names = sorted(path.name for path in images.iterdir())
    theirs = np.random.default_rng(0).dirichlet(np.ones(5), 20)
    table = pd.DataFrame({"image_id": names[::-1][:20], **{f"p{k}": theirs[:, k] for k in range(5)}})
    table.to_csv(weights / "theirs.csv", index=False, float_format="%.8g")
    ensemble = read_ensemble(weights / ENSEMBLE_FILE)
    ours = full_ensemble(images, weights)
    shrunk = [member.model_copy(update={"weight": 0.6 * member.weight}) for member in ensemble.members]
    foreign = ensemble.members[0].model_copy(update={"name": "theirs", "weight": 0.4, "checkpoints": ("theirs.csv",)})
    write_ensemble(weights / ENSEMBLE_FILE, ensemble.model_copy(update={"members": (*shrunk, foreign)}))
    expected = 0.6 * ours
    expected[np.arange(21)[::-1][:20]] += 0.4 * theirs
    assert (expected.argmax(1) != ours.argmax(1)).any()
    for early_stop in ("off", "certified"):
        labels, _ = submit(images, weights, tmp_path / "s.csv", early_stop=early_stop)
        assert labels.tolist() == expected.argmax(1).tolist()


def test_calibrated_stop_comes_from_the_ensemble_file(images: Path, weights: Path, tmp_path: Path) -> None:
    ensemble = read_ensemble(weights / ENSEMBLE_FILE)
    lax = {"early_stop": {"threshold": 0.0, "min_share": 0.0, "changed": 0.3}}
    write_ensemble(weights / ENSEMBLE_FILE, ensemble.model_copy(update={"oof": lax}))
    _, report = submit(images, weights, tmp_path / "s.csv", early_stop="calibrated")
    _, certified = submit(images, weights, tmp_path / "s.csv")
    assert report.early_stop["kind"] == "calibrated" and report.early_stop["changed"] == 0.3
    assert report.early_stop["work_done"] < certified.early_stop["work_done"]
    write_ensemble(weights / ENSEMBLE_FILE, ensemble)
    _, fallen_back = submit(images, weights, tmp_path / "s.csv", early_stop="calibrated")
    assert fallen_back.early_stop["kind"] == "certified" and fallen_back.early_stop["asked"] == "calibrated"


def test_the_first_file_is_there_before_any_member_is_read(
    images: Path, weights: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def look(*_: object) -> None:
        assert check_submission(tmp_path / "s.csv", images).class_counts == (0, 0, 0, 21, 0)
        raise RuntimeError("no luck today")

    monkeypatch.setattr(run_module, "load_members", look)
    labels, report = submit(images, weights, tmp_path / "s.csv")
    assert report.error == "RuntimeError: no luck today" and set(labels) == {3}
    assert read_json(tmp_path / "run.json")["error"] == report.error


def test_importing_the_run_takes_no_model_library() -> None:
    heavy = ["torch", "timm", "pandas", "cv2"]
    code = f"import sys, cassava_kit.inference.run; print([name for name in {heavy} if name in sys.modules])"
    assert run_python(["-c", code]).strip() == "[]"


def test_the_file_only_gets_better_member_by_member(
    images: Path, weights: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[np.ndarray] = []
    real = run_module.write_submission

    def write(path: Path, names: list[str], labels: list[int], competition: object) -> None:
        real(path, names, labels, competition)
        check_submission(path, images)
        seen.append(np.asarray(labels))

    monkeypatch.setattr(run_module, "write_submission", write)
    final, _ = submit(images, weights, tmp_path / "s.csv", early_stop="off")
    assert len(seen) > 10 and set(seen[0]) == {3}
    agreement = [float(np.mean(labels == final.to_numpy())) for labels in seen]
    assert agreement[0] < agreement[-1] == 1
    assert agreement[len(agreement) // 2] > agreement[0]


def slow(monkeypatch: pytest.MonkeyPatch, seconds: float) -> None:
    real = Forward.start

    def start(self: Forward, pixels: object, view: object) -> object:
        time.sleep(seconds)
        return real(self, pixels, view)

    monkeypatch.setattr(Forward, "start", start)


@pytest.mark.parametrize("limit", [1.5, 2.5])
def test_the_deadline_is_kept_with_a_complete_file(
    images: Path, weights: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, limit: float
) -> None:
    slow(monkeypatch, 0.1)  # the whole ensemble would take 16 units x 6 batches x .1 s
    start = time.time()
    labels, report = submit(images, weights, tmp_path / "s.csv", time_limit=limit, started=start, early_stop="off")
    assert time.time() - start < limit + 0.5
    assert report.early_stop["work_done"] < 1 and not report.prior_alone
    assert report.plan["fits"] is False or report.early_stop["work_done"] < 1
    assert len(labels) == 21


def test_a_limit_that_is_already_over_leaves_the_prior(images: Path, weights: Path, tmp_path: Path) -> None:
    labels, report = submit(images, weights, tmp_path / "s.csv", time_limit=5.0, started=time.time() - 60)
    assert set(labels) == {3} and report.prior_alone and report.error is None


def test_time_saved_by_stopping_early_brings_dropped_units_back(
    images: Path, weights: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from cassava_kit.inference import session

    real = session.arranged

    def hurried(plan: object) -> object:
        plan.left = 1e-6  # type: ignore[attr-defined]
        return real(plan)  # type: ignore[arg-type]

    monkeypatch.setattr(session, "arranged", hurried)
    labels, report = submit(images, weights, tmp_path / "s.csv", early_stop="off")
    assert sum(unit["kept"] for unit in report.plan["units"]) == 1
    assert labels.tolist() == full_ensemble(images, weights).argmax(1).tolist()


@pytest.mark.slow
def test_kill_9_at_any_moment_leaves_a_valid_file(images: Path, weights: Path, tmp_path: Path) -> None:
    code = (
        "import sys\n"
        "from cassava_kit.inference.report import RunOptions\n"
        "from cassava_kit.inference.run import run_submission\n"
        "run_submission(*sys.argv[1:4], options=RunOptions(device='cpu', batch_size=2, early_stop='off'))\n"
    )
    rng = np.random.default_rng(0)
    for trial in range(6):
        out = tmp_path / f"out{trial}" / "s.csv"
        process = subprocess.Popen(
            [sys.executable, "-c", code, str(images), str(weights), str(out)],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            cwd=ROOT,
        )
        deadline = time.monotonic() + 60
        while not out.exists() and time.monotonic() < deadline:
            time.sleep(0.01)
        time.sleep(float(rng.uniform(0, 6)))
        process.send_signal(signal.SIGKILL)
        process.wait()
        assert check_submission(out, images).n_images == 21


def test_a_strange_checkpoint_beside_the_others_does_not_take_part(images: Path, weights: Path, tmp_path: Path) -> None:
    write_checkpoint(weights / "other-fold0.safetensors")
    labels, _ = submit(images, weights, tmp_path / "s.csv")
    assert labels.tolist() == full_ensemble(images, weights).argmax(1).tolist()
