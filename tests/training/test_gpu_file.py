"""gpu.json: what is refused, how its speeds become a T4's, and the hours that plan and recipes count by them."""

import json

import pytest
from gpu_report import gpu_report, write_gpu_file

from cassava_kit.cli.app import run_app
from cassava_kit.cli.verbs import app
from cassava_kit.errors import UserError
from cassava_kit.training.cost import T4, Gpu
from cassava_kit.training.gpu_check.findings import read_gpu_report
from cassava_kit.training.gpu_check.t4 import PUBLISHED, as_t4, fit_rates, measured_gpu, read_t4
from cassava_kit.training.plan import plan_week
from cassava_kit.training.recipes import recipe


def test_rates_are_found_again_from_the_steps_that_they_make():
    gpu = measured_gpu(gpu_report(factor=3.0))
    assert (gpu.dense, gpu.depthwise) == pytest.approx((3 * T4.dense, 3 * T4.depthwise), rel=1e-6)
    assert gpu.single_precision == pytest.approx(T4.single_precision)


def test_without_depthwise_convolutions_their_rate_follows_the_other():
    dense, depthwise = fit_rates(gpu_report(factor=2.0).speeds[:1])
    assert (dense, depthwise) == pytest.approx((2 * T4.dense, 2 * T4.depthwise), rel=1e-6)


def test_one_step_is_counted_by_hand():
    """ResNet-50 has 4.11 billion multiply-adds (timm's table): 1,000 images a second, forward and back."""
    speed = gpu_report().speeds[0].model_copy(update={"images_per_second": 1000.0})
    assert fit_rates([speed])[0] == pytest.approx(1000 * 3 * 2 * 4.11e9, rel=0.02)


@pytest.mark.parametrize(
    ("device", "peak", "bandwidth"),
    [
        ("NVIDIA H100 80GB HBM3", 65 / 989, 320 / 3350),
        ("NVIDIA H100 PCIe", 65 / 756, 320 / 2000),
        ("NVIDIA H200", 65 / 989, 320 / 4800),
        ("NVIDIA A100-SXM4-80GB", 65 / 312, 320 / 2039),
        ("NVIDIA L4", 65 / 121, 320 / 300),
        ("NVIDIA L40S", 65 / 362, 320 / 864),
        ("Tesla P100-PCIE-16GB", 65 / 18.7, 320 / 732),
        ("Tesla T4", 1, 1),
    ],
)
def test_another_card_is_scaled_by_published_figures(device, peak, bandwidth):
    scaled = as_t4(Gpu(device, 100e12, 50e9, 1.5, 8), device)
    assert scaled.dense == pytest.approx(100e12 * peak) and scaled.depthwise == pytest.approx(50e9 * bandwidth)
    assert scaled.single_precision == (1.5 if device == "Tesla T4" else T4.single_precision)
    assert scaled.name == "T4"


@pytest.mark.parametrize("device", ["NVIDIA T400", "cpu", "Radeon"])
def test_an_unknown_card_is_refused(device, tmp_path):
    with pytest.raises(UserError, match=f"no published speed is known of '{device}'.*push --kernel gpu-check"):
        read_t4(write_gpu_file(tmp_path / "gpu.json", device))
    assert all(min(pair) > 0 for pair in PUBLISHED.values())


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda values: "{", "is not what gpu-check writes"),
        (lambda values: [], "is not what gpu-check writes"),
        (lambda values: values | {"version": 2}, "has version 2, this kit reads 1; run gpu-check again"),
        (lambda values: values | {"speed": 3}, "speed: Extra inputs are not permitted"),
        (lambda values: values | {"n_devices": "2"}, "n_devices: Input should be a valid integer"),
        (lambda values: {key: value for key, value in values.items() if key != "device"}, "device: Field required"),
        (lambda values: _with_rate(values, -1.0), "images_per_second: Input should be greater than 0"),
        (lambda values: _with_rate(values, float("nan")), "images_per_second: Input should be a finite number"),
    ],
)
def test_a_damaged_file_is_named_with_its_fault(change, said, tmp_path, capsys):
    path = write_gpu_file(tmp_path / "gpu.json")
    changed = change(json.loads(path.read_text()))
    path.write_text(changed if isinstance(changed, str) else json.dumps(changed))
    with pytest.raises(UserError, match="run gpu-check again"):
        read_gpu_report(path)
    assert run_app(app, ["plan", "--gpu", str(path)]) == 2
    error = capsys.readouterr().err
    assert said in error and str(path) in error and len(error.splitlines()) == 1


def _with_rate(values, rate):
    values["parts"][0]["speeds"][0]["images_per_second"] = rate
    return values


def test_what_holds_no_gpus_speed_is_refused(tmp_path, capsys):
    for changes, said in (
        ({"stand_in": True, "device": "cpu"}, "was measured on a CPU in place of a GPU"),
        ({"parts": ()}, "has no training speed"),
    ):
        path = write_gpu_file(tmp_path / "gpu.json", **changes)
        assert run_app(app, ["recipes", "vit_base", "--hours", "--gpu", str(path)]) == 2
        assert said in capsys.readouterr().err
    assert run_app(app, ["recipes", "--hours", "--gpu", str(tmp_path / "none.json")]) == 2
    assert "gpu-check` makes gpu.json" in capsys.readouterr().err
    assert run_app(app, ["recipes", "--gpu", str(path)]) == 2
    assert "--gpu go with --hours" in capsys.readouterr().err


def test_twice_the_speed_halves_the_hours_that_the_network_decides(tmp_path, capsys):
    """ConvNeXt-B and a ViT-B in 16-mixed wait for the network; the loader's time, ResNet-50's in half, stays."""
    path = write_gpu_file(tmp_path / "gpu.json", factor=2.0)

    def hours(name, *given):
        assert run_app(app, ["recipes", name, "--hours", "--json", *given]) == 0
        return json.loads(capsys.readouterr().out)["hours"]

    for name in ("convnext_base", "vit_base_clip", "moco_resnet50"):
        assert hours(name, "--gpu", str(path)) == pytest.approx(hours(name) / 2, abs=0.01)
    assert run_app(app, ["recipes", "convnext_base", "--hours", "--gpu", str(path)]) == 0
    assert "speeds measured on Tesla T4" in capsys.readouterr().out
    fast, slow = (plan_week(60, ["convnext_base"], 21_397, 5, gpu=gpu).hours for gpu in (read_t4(path)[0], T4))
    assert fast == pytest.approx(slow / 2, rel=1e-3)
    given = ["plan", "--hours", "60", "--recipe", "convnext_base", "--json"]
    assert run_app(app, [*given, "--gpu", str(path)]) == 0
    values = json.loads(capsys.readouterr().out)
    assert values["hours"] == pytest.approx(fast, abs=0.01) and values["speed"] == "speeds measured on Tesla T4"
    assert run_app(app, given) == 0
    assert json.loads(capsys.readouterr().out)["speed"].startswith("with an assumed speed of 9.5 TFLOP/s")
    assert recipe("convnext_base").precision == "16-mixed"


def test_a_scaled_card_says_so(tmp_path, capsys):
    path = write_gpu_file(tmp_path / "gpu.json", "NVIDIA H100 80GB HBM3", factor=10.0)
    assert run_app(app, ["plan", "--hours", "60", "--recipe", "convnext_base", "--gpu", str(path)]) == 0
    said = capsys.readouterr().out
    assert "measured on NVIDIA H100 80GB HBM3, scaled to a T4 by published peaks and memory bandwidths" in said
