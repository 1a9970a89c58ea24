"""Files that are no images, images that are odd, and folders without any: a row for each, and nobody else harmed."""

import os
from pathlib import Path

import cv2
import numpy as np
import pytest
from PIL import Image
from tiny_members import PRIOR, colour_field, write_image
from tiny_runs import CPU, full_ensemble, read_labels, run_python, submit

from cassava_kit.inference import run as run_module
from cassava_kit.inference.ensemble import ENSEMBLE_FILE, Ensemble, EnsembleMember, write_ensemble
from cassava_kit.inference.options import RunOptions
from cassava_kit.inference.predict import predict_images
from cassava_kit.inference.run import run_submission


def write_bad_corpus(folder: Path) -> tuple[set[str], set[str]]:
    """Write bad and odd files; the names of those without a right answer, and of those that have one."""
    before = {path.name for path in folder.iterdir()}
    photo = colour_field(5, (60, 80))
    whole = cv2.imencode(".jpg", photo)[1].tobytes()
    (folder / "empty.jpg").write_bytes(b"")
    (folder / "cut.jpg").write_bytes(whole[: len(whole) // 2])
    (folder / "cut.png").write_bytes(cv2.imencode(".png", photo)[1].tobytes()[:200])
    (folder / "html.jpg").write_bytes(b"<!DOCTYPE html><html></html>")
    (folder / "zeros.jpg").write_bytes(bytes(5000))
    (folder / "head only.jpg").write_bytes(b"\xff\xd8\xff\xe0")
    (folder / "gif.jpg").write_bytes(b"GIF89a\x01\x00\x01\x00\x80\x00\x00\xff\xff\xff\x00\x00\x00,\x00\x00\x00\x00\x01")
    (folder / "folder.jpg").mkdir()
    (folder / "link to nothing.jpg").symlink_to(folder / "nothing")
    os.mkfifo(folder / "pipe.jpg")
    bad = {path.name for path in folder.iterdir()} - before
    (folder / "png.jpg").write_bytes(cv2.imencode(".png", photo)[1].tobytes())
    (folder / "gray.jpg").write_bytes(cv2.imencode(".jpg", photo[:, :, 0])[1].tobytes())
    (folder / "deep.png").write_bytes(cv2.imencode(".png", photo.astype(np.uint16) * 256)[1].tobytes())
    (folder / "one pixel.jpg").write_bytes(cv2.imencode(".jpg", photo[:1, :1])[1].tobytes())
    (folder / "größe 葉.jpg").write_bytes(whole)
    (folder / 'quote",comma.jpg').write_bytes(whole)
    picture = Image.fromarray(cv2.cvtColor(photo, cv2.COLOR_BGR2RGB))
    picture.convert("CMYK").save(folder / "cmyk.jpg")
    turned = Image.Exif()
    turned[0x0112] = 6
    picture.rotate(90, expand=True).save(folder / "turned.jpg", exif=turned, quality=95)
    right = {path.name for path in folder.iterdir()} - bad - before
    return bad, right


def test_bad_files_are_counted_named_and_harm_nobody(images: Path, weights: Path, tmp_path: Path) -> None:
    good, _ = submit(images, weights, tmp_path / "a" / "s.csv")
    before = sorted(good.index)
    bad, right = write_bad_corpus(images)
    assert len(bad) == 10 and len(right) == 8
    labels, report = submit(images, weights, tmp_path / "b" / "s.csv")
    assert labels[before].tolist() == good[before].tolist()
    assert set(report.images_failed) == bad and report.n_images == len(labels) == len(before) + 18
    assert set(labels[sorted(bad)]) == {3}
    upright = labels["größe 葉.jpg"]
    assert upright != 3  # the prior's class would show nothing
    assert {labels[name] for name in ('quote",comma.jpg', "png.jpg", "deep.png", "turned.jpg")} == {upright}
    assert not report.left_out and report.error is None


def test_turned_photographs_are_seen_upright(images: Path, weights: Path, tmp_path: Path) -> None:
    write_bad_corpus(images)
    names = ("turned.jpg", "png.jpg", "000.jpg")
    checkpoint = [weights / "res-fold0.safetensors"]
    turned, upright, other = predict_images(checkpoint, [images / n for n in names], device="cpu", progress=False)[0][0]
    assert np.abs(turned - upright).max() < 0.3 * np.abs(other - upright).max()


def test_a_file_that_may_not_be_read(
    images: Path, weights: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = os.open

    def refuse(path: object, *arguments: object, **options: object) -> int:
        if str(path).endswith("004.jpg"):  # root may read everything, so the refusal is played
            raise PermissionError(13, "Permission denied", str(path))
        return real(path, *arguments, **options)

    monkeypatch.setattr(os, "open", refuse)
    labels, report = submit(images, weights, tmp_path / "s.csv")
    assert list(report.images_failed) == ["004.jpg"] and "Permission" in report.images_failed["004.jpg"]
    assert labels["004.jpg"] == 3


def test_a_file_that_disappears_after_the_listing(
    images: Path, weights: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = run_module.load_members
    monkeypatch.setattr(run_module, "load_members", lambda *a, **k: ((images / "006.jpg").unlink(), real(*a, **k))[1])
    report = run_submission(images, weights, tmp_path / "s.csv", options=RunOptions(**CPU))
    assert list(report.images_failed) == ["006.jpg"]
    assert read_labels(tmp_path / "s.csv")["006.jpg"] == 3


@pytest.mark.slow
def test_a_huge_picture_needs_no_huge_memory(images: Path, weights: Path, tmp_path: Path) -> None:
    Image.new("L", (15_000, 15_000), 120).save(images / "huge.jpg", quality=20)
    code = (
        "import sys, resource\n"
        "from cassava_kit.inference.options import RunOptions\n"
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
    one = EnsembleMember(name="vit", weight=1.0, checkpoints=("vit-fold0.safetensors",))
    write_ensemble(weights / ENSEMBLE_FILE, Ensemble(members=(one,), views="none", prior=PRIOR))
    code = (
        "import sys, resource\n"
        "from cassava_kit.inference.kept_pixels import Budget\n"
        "from cassava_kit.inference.options import RunOptions\n"
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
