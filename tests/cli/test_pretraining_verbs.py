"""The verb ssl-report from the command line's side."""

import pytest
from safetensors.torch import save_file

from cassava_kit.cli.pretraining import ssl_report_command
from cassava_kit.data.folds import write_folds
from cassava_kit.models.network import create_model

TINY = ['model_args={"layers": [1, 1, 1, 1], "channels": [8, 8, 8, 8]}', "image_size=16", "epochs=1"]


def test_a_start_is_compared_with_random_weights(tiny_dir, tiny_folds, tmp_path, capsys):
    write_folds(tmp_path / "folds.csv", tiny_folds)
    backbone = create_model("resnet18", 0, model_args={"layers": [1, 1, 1, 1], "channels": [8, 8, 8, 8]})
    save_file(backbone.state_dict(), tmp_path / "b.safetensors")
    ssl_report_command(
        "small_resnet",
        tiny_dir,
        tmp_path / "folds.csv",
        [f"mine={tmp_path / 'b.safetensors'}"],
        out=tmp_path / "out",
        shares="0.5,1",
        finetune=False,
        settings=TINY,
    )
    printed = capsys.readouterr().out
    assert "mine against random weights: " in printed and str(tmp_path / "out" / "ssl_report.md") in printed
    report = (tmp_path / "out" / "ssl_report.md").read_text()
    assert "linear" in report and "50%" in report and "finetune" not in report


def test_a_start_is_a_name_and_a_file(tmp_path):
    with pytest.raises(ValueError, match=r"--weights takes NAME=FILE, got 'b\.safetensors'"):
        ssl_report_command("small_resnet", tmp_path, tmp_path / "folds.csv", ["b.safetensors"])
    with pytest.raises(ValueError, match=r"--weights: names must differ, got a, a"):
        ssl_report_command("small_resnet", tmp_path, tmp_path / "folds.csv", ["a=x.pth", "a=y.pth"])
    with pytest.raises(ValueError, match=r"--shares takes numbers up to 1 with commas, .* got '1%'"):
        ssl_report_command("small_resnet", tmp_path, tmp_path / "folds.csv", ["a=x.pth"], shares="1%")
