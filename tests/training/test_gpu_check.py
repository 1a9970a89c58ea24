"""gpu-check with a CPU in the GPU's place: every part, a part that fails, time that is short, and what is refused."""

import json
import time

import cv2
import numpy as np
import processes  # noqa: F401 - the libraries are loaded once for the processes of part 4
import pytest
import torch
from tiny import TINY

from cassava_kit.cli.app import run_app
from cassava_kit.cli.verbs import app
from cassava_kit.models import precision
from cassava_kit.models.weights import load_tensors
from cassava_kit.settings import replace
from cassava_kit.training.devices import Devices
from cassava_kit.training.gpu_check import check, numbers, steps, submission_run, two_processes
from cassava_kit.training.gpu_check.findings import Bound, MeasuredRow, format_report, read_gpu_report
from cassava_kit.training.gpu_check.setting import Part, Setting, Sizes, full_sizes, joined_run
from cassava_kit.training.recipes import recipe_names

CPU = (torch.device("cpu"),)
MIXED = replace(TINY, precision="16-mixed")
SMALL_JOINED = {"img_size": 32, "patch_size": 1, "embed_dim": 24, "depth": 1, "num_heads": 2, "class_token": False}
SIZES = Sizes(
    numbers=(MIXED,),
    first_batch=4,
    trained=(MIXED,),
    seconds=0.05,
    members=(MIXED, replace(MIXED, image_size=40), replace(MIXED, image_size=48)),
    n_images=70,
    photo=(48, 64),
    joined=replace(
        joined_run("small_vit"), image_size=32, train_pixels=(32, 32), model_args={**SMALL_JOINED, "global_pool": "avg"}
    ),
)


@pytest.fixture(scope="module")
def report(tmp_path_factory):
    """The whole check on networks of a few thousand weights."""
    out = tmp_path_factory.mktemp("gpu-check")
    made = check.run_check(CPU, out, minutes=30, sizes=SIZES)
    assert read_gpu_report(out / "gpu.json") == made
    return made


def rows(report, name):
    """What a part found, by row."""
    part = next(part for part in report.parts if part.name == name)
    assert part.status == "passed", part.reason
    assert not part.left_out
    return {row.what: row.values for row in part.rows}


@pytest.mark.slow
def test_every_part_passes_and_the_verdict_says_what_stood_in(report):
    assert [part.name for part in report.parts] == ["numbers", "training", "submission", "two processes", "hours"]
    assert {part.status for part in report.parts} == {"passed"} and report.exit_code == 0 and report.finished
    assert report.stand_in and report.device == "cpu"
    assert report.verdict.startswith("OK on cpu, which stands in for a GPU: speeds are not judged.")
    table = format_report(report)
    assert all(part.name in table for part in report.parts) and "MISSED" not in table


@pytest.mark.slow
def test_numbers_of_a_sound_network_are_told_by_precision(report):
    (values,) = rows(report, "numbers").values()
    assert values["fp16"] == "safe" and values["not_finite"] == 0 and values["autocast_logits"] < 0.1
    assert {f"{name}_labels" for name in ("half", "autocast", "bf16")} <= set(values)


@pytest.mark.slow
def test_training_is_timed_each_way_and_its_speed_is_kept_for_hours(report):
    (values,) = rows(report, "training").values()
    assert values["ratio"] == pytest.approx(values["trainer"] / values["bare"])
    slower = min(values["bare"], values["loader_alone"])
    assert values["loader_ratio"] == pytest.approx(values["with_loader"] / slower)
    assert values["augmented_on_device"] > 0 and values["batch"] == TINY.batch_size
    assert [speed.precision for speed in report.speeds] == ["16-mixed", "32-true"]
    assert report.speeds[0].images_per_second == values["bare"]
    assert report.speeds[1].images_per_second == values["single_precision"]


@pytest.mark.slow
def test_a_submission_in_need_of_memory_and_of_time_loses_no_image(report):
    found = rows(report, "submission")
    whole, plan, deadline, scarce = found.values()
    assert whole["work_done"] == 1 and whole["of_slower"] > 0 and plan["plan_over_truth"] > 0
    assert deadline["valid_file"] == 1
    assert scarce["out_of_memory"] >= 1 and scarce["work_done"] == 1
    assert scarce["equal_labels"] == 1 and scarce["difference"] < 1e-5


@pytest.mark.slow
def test_two_processes_learn_what_one_does_also_after_a_kill(report):
    unbroken, killed, simclr = rows(report, "two processes").values()
    assert unbroken["largest_difference"] < 1e-5 and killed["largest_difference"] < 1e-5
    assert killed["epochs_before"] == 1
    assert simclr["loss"] > 0 and simclr["relative_difference"] < 1e-4


def test_weights_of_half_a_batch_would_be_told_from_those_of_the_whole(tmp_path):
    """What two processes that do not share their gradients would learn is far beyond the bound."""
    setting = Setting(CPU, SIZES, tmp_path)
    for factor in (1, 2):
        two_processes.train(SIZES.joined, setting, tmp_path / str(factor), Devices(), factor=factor)
    whole = load_tensors(two_processes.checkpoint(tmp_path / "2", setting))
    half = two_processes.largest_difference(tmp_path / "1", setting, whole)
    assert half > 10 * two_processes.SAME_WEIGHTS.at_most
    assert two_processes.largest_difference(tmp_path / "2", setting, whole) == 0


@pytest.mark.slow
def test_hours_are_fitted_and_not_scaled_from_a_cpu(report):
    found = rows(report, "hours")
    assert found["fitted rates"]["tflops"] > 0
    assert found["resnet18 at 32, 16-mixed"]["counted_over_measured"] == pytest.approx(1, rel=1e-6)
    assert "no published speed is known of 'cpu'" in found["hours on two T4s"]["not scaled"]


def test_a_part_that_raises_is_named_and_the_others_go_on(monkeypatch, tmp_path, capsys):
    def broken(setting, part):
        part.add("before", {"value": 1.0})
        raise RuntimeError("CUDA error: an illegal memory access\nwas encountered")

    def missed(setting, part):
        part.add("speed", {"ratio": 0.5}, [Bound(name="ratio", at_least=0.9)])

    def good(setting, part):
        part.add("after", {"value": 2.0})

    monkeypatch.setattr(check, "CHECK_PARTS", {"a": (0.4, broken), "b": (0.3, missed), "c": (0.3, good)})
    monkeypatch.setattr(check, "check_hours", lambda report, part: good(None, part))
    made = check.run_check(CPU, tmp_path, minutes=1, sizes=SIZES)
    assert [part.status for part in made.parts] == ["failed", "missed", "passed", "passed"]
    assert made.parts[0].reason == "RuntimeError: CUDA error: an illegal memory access was encountered"
    assert (
        made.parts[0].rows[0].what == "before" and made.parts[1].reason == "speed: ratio must be at least 0.9, got 0.5"
    )
    assert made.exit_code == 1 and "failed: a" in made.verdict and "missed a bound: b" in made.verdict
    assert "a: failed" in capsys.readouterr().out and "0.5 (at least 0.9, MISSED)" in format_report(made)


def test_what_the_time_does_not_allow_is_skipped_by_name(monkeypatch, tmp_path):
    made = check.run_check(CPU, tmp_path, minutes=0.01, sizes=SIZES)
    assert {part.name: part.status for part in made.parts} == {
        **dict.fromkeys(check.CHECK_PARTS, "skipped"),
        "hours": "failed",
    }
    assert made.exit_code == 1 and "no time for: numbers, training, submission, two processes" in made.verdict
    assert "no training step was measured" in made.parts[-1].reason
    clock = [100.0]
    monkeypatch.setattr(time, "monotonic", lambda: clock[0])
    part = Part(ends=120.0)
    for _ in part.each([("a", 1), ("b", 2), ("c", 3), ("d", 4)]):
        clock[0] += 8  # after two of 8 s, 4 s are left, and a third would not end
    assert part.left_out == ["c", "d"]


def test_the_file_is_there_after_each_part(monkeypatch, tmp_path):
    """What an interruption leaves has what was found before it."""

    def interrupted(setting, part):
        raise KeyboardInterrupt

    good = {"a": (0.5, lambda setting, part: part.add("x", {"y": 1.0})), "b": (0.5, interrupted)}
    monkeypatch.setattr(check, "CHECK_PARTS", good)
    with pytest.raises(KeyboardInterrupt):
        check.run_check(CPU, tmp_path, minutes=1, sizes=SIZES)
    left = read_gpu_report(tmp_path / "gpu.json")
    assert [part.name for part in left.parts] == ["a"] and not left.finished


def test_the_full_check_has_every_recipes_network_once_and_the_steps_of_the_issue():
    sizes = full_sizes()
    networks = numbers.different_networks(sizes.numbers)
    assert len(sizes.numbers) == len(recipe_names()) and 15 < len(networks) < len(sizes.numbers)
    assert "efficientnet_b4 at 512" in [name for name, _ in networks]
    assert "ssl_transfer at 224" not in [name for name, _ in networks]  # resnet50's network
    steps_ = {(config.recipe, config.image_size, config.precision) for config in sizes.trained}
    assert steps_ == {
        (name, size, "16-mixed")
        for name, size in (("resnet50", 224), ("efficientnet_b4", 512), ("vit_base", 224), ("convnext_small", 384))
    }
    assert sizes.n_images == 2000 and len(sizes.members) == 3


def test_a_network_that_half_precision_spoils_misses_its_bound(monkeypatch, tmp_path):
    """Finite but wrong: autocast answers other classes."""
    right = precision.logits_in

    def spoilt(model, images, kind):
        return right(model, images, "fp32").flip(1) if kind == "fp16-autocast" else right(model, images, kind)

    monkeypatch.setattr(precision, "logits_in", spoilt)
    part = Part(time.monotonic() + 60)
    numbers.check_numbers(Setting(CPU, SIZES, tmp_path), part)
    result = part.result("numbers", 1.0)
    assert result.status == "missed" and "autocast_logits must be at most 0.5, got" in result.reason


def test_a_training_batch_that_does_not_fit_is_halved(monkeypatch, tmp_path):
    tried = []

    def short(config, setting, *, single):
        tried.append(config.batch_size)
        if config.batch_size > 4:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return {"ratio": 1.0}, []

    monkeypatch.setattr(steps, "time_steps", short)
    part = Part(time.monotonic() + 60)
    steps.check_steps(Setting(CPU, SIZES, tmp_path), part)
    assert tried == [16, 8, 4] and part.rows[0].values["batch"] == 4


def test_rates_are_those_of_a_clock():
    """Calls of 2 ms: about 500 a second, whatever the load at most that."""
    assert 0 < steps.repeat(lambda: time.sleep(0.002), 0.05, CPU[0]) <= 500


def test_the_generated_photographs_are_jpegs_of_the_asked_size(tmp_path):
    files = Setting(CPU, SIZES, tmp_path).photos
    assert len(files) == SIZES.n_images and len({file.read_bytes() for file in files}) > 40
    shapes = {cv2.imdecode(np.fromfile(file, np.uint8), cv2.IMREAD_COLOR).shape for file in files}
    assert shapes == {(48, 64, 3)}


def test_scarce_memory_ends_with_its_block():
    layer = torch.nn.Conv2d(3, 2, 1)
    with submission_run.scarce_memory(CPU, []) as count:
        with pytest.raises(torch.OutOfMemoryError):
            layer(torch.zeros(submission_run.STAND_IN_BATCH + 1, 3, 4, 4))
        layer(torch.zeros(submission_run.STAND_IN_BATCH, 3, 4, 4))
        assert count() == 1
    layer(torch.zeros(9, 3, 4, 4))


def test_a_bound_on_what_is_missing_or_no_number_does_not_hold():
    bound = Bound(name="ratio", at_least=0.9, at_most=1.1)
    assert bound.holds(1.0) and not bound.holds(1.2) and not bound.holds(0.8) and not bound.holds("not finite")
    assert MeasuredRow(what="plan", values={}, bounds=(bound,)).missed == [
        "plan: ratio must be at least 0.9 and at most 1.1, got nothing"
    ]


def test_mistakes_are_one_line(monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    for given, said in (
        ([], "no GPU that this torch can use; run `python submit.py push --kernel gpu-check`"),
        (["--device", "mps"], "--device must be cuda or cpu, got 'mps'"),
        (["--minutes", "0", "--device", "cpu"], "--minutes must be more than 0, got 0"),
    ):
        assert run_app(app, ["gpu-check", "--out", str(tmp_path / "out"), *given]) == 2
        error = capsys.readouterr().err
        assert said in error and len(error.splitlines()) == 1
    assert not (tmp_path / "out").exists()


def test_the_verb_prints_table_file_and_verdict(monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(check, "CHECK_PARTS", {"a": (1.0, lambda setting, part: part.add("x", {"y": 1.0}))})
    monkeypatch.setattr(check, "check_hours", lambda report, part: None)
    assert run_app(app, ["gpu-check", "--out", str(tmp_path), "--device", "cpu"]) == 0
    printed = capsys.readouterr().out.splitlines()
    assert printed[-1].startswith("OK on cpu") and printed[-2] == str(tmp_path / "gpu.json")
    assert json.loads((tmp_path / "gpu.json").read_text())["parts"][0]["rows"][0]["values"] == {"y": 1.0}
