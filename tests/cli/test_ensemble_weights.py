"""`submit.py ensemble --weights A=FILE --weights B=FILE`: those members alone, judged through their views."""

import copy
import json

import numpy as np
import pytest
import timm
import torch
from safetensors.torch import save_file

from cassava_kit.cli.app import run_app
from cassava_kit.cli.dry_run import compose_ensemble
from cassava_kit.cli.dry_run_members import DryRun, member_configs, recipe_for
from cassava_kit.cli.submit import submit_app
from cassava_kit.data.images import load_image
from cassava_kit.data.table import TrainTable
from cassava_kit.evidence.nested import Blend
from cassava_kit.evidence.oof import Evidence, check_oof
from cassava_kit.evidence.predictions import read_predictions
from cassava_kit.inference.ensemble import read_ensemble
from cassava_kit.models.checkpoint import load_model
from cassava_kit.training.config import RunConfig
from cassava_kit.training.fit import fit_fold
from cassava_kit.training.rows import TrainData, TrainOptions
from cassava_kit.training.through_views import predict_through_views

DINOV2, LITE = "vit_small_patch14_dinov2.lvd142m", "tf_efficientnet_lite0"


def test_a_timm_model_means_the_recipe_that_runs_at_home():
    assert recipe_for(DINOV2) == recipe_for("vit_small_patch14_dinov2") == "dinov2_top"
    assert recipe_for("dinov2_small") == "dinov2_small" and recipe_for(LITE) == "efficientnet_lite0"
    assert recipe_for("tf_efficientnet_lite2") == "efficientnet_lite2" and recipe_for("mobilenetv2_100") == "mobilenet"
    assert recipe_for("resnet50") == "resnet50" and recipe_for("timm:resnet50") == "timm:resnet50"


def test_members_are_those_of_the_weights_alone(tmp_path):
    weights = (("dinov2_top", tmp_path / "a"), ("mobilenet", tmp_path / "b"))
    alone = member_configs(DryRun(weights=weights, settings=("epochs=2",)))
    assert [(config.recipe, config.epochs, path.name) for config, path in alone] == [
        ("dinov2_top", 2, "a"),
        ("mobilenet", 2, "b"),
    ]
    named = member_configs(DryRun(recipes=("small_vit",), weights=weights[1:]))
    assert [config.recipe for config, _ in named] == ["small_vit", "mobilenet"]
    assert [config.recipe for config, _ in member_configs(DryRun())] == [
        "small_resnet",
        "small_vit",
        "small_ssl_resnet",
    ]


def test_answers_through_views_are_the_mean_of_the_checkpoints_own(tiny_table, tiny_folds, tmp_path):
    """Against the loaded network on flipped pictures, by hand; read back afterwards."""
    config = RunConfig(
        recipe="tiny", model="resnet18", model_args={"layers": [1, 1, 1, 1], "channels": [8, 8, 16, 16]},
        image_size=32, epochs=1, batch_size=32,
    )  # fmt: skip
    data = TrainData(TrainTable(tiny_table.frame, tiny_table.image_dir, ()), tiny_folds)
    silent = TrainOptions(tell=lambda _: None)
    checkpoints = [fit_fold(config, data, k, tmp_path / "runs", options=silent).checkpoint for k in range(2)]
    found = predict_through_views("tiny", checkpoints, data, tmp_path / "views", views="flips")
    check_oof(found, tiny_folds, "tiny")
    rows = tiny_folds.validation(1)["image_id"]
    model, info = load_model(checkpoints[1])
    images = np.stack([load_image(tiny_table.image_dir / name, (32, 32)) for name in rows]) / 255
    batch = torch.from_numpy(((images - info.mean) / info.std).transpose(0, 3, 1, 2)).float()
    with torch.no_grad():
        four = [model(batch.flip(dims)).softmax(dim=1) for dims in ((), (2,), (3,), (2, 3))]
    expected = torch.stack(four).mean(dim=0).numpy()
    ours = found.frame.set_index("image_id").loc[rows, [f"p{k}" for k in range(5)]].to_numpy()
    np.testing.assert_allclose(ours, expected, atol=1e-4)
    (kept,) = (tmp_path / "views").glob("*.csv")
    before = copy.copy(kept.stat().st_mtime_ns)
    again = predict_through_views("tiny", checkpoints, data, tmp_path / "views", views="flips")
    assert np.array_equal(again.probabilities, found.probabilities) and kept.stat().st_mtime_ns == before


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--set", "epoch=2"], "no setting 'epoch'"),
        (["--weights", "mobilenet=WEIGHTS"], "--weights names mobilenet more than once"),
    ],
)
def test_mistakes_are_one_line_before_any_work(more, message, tiny_dir, tmp_path, capsys):
    file = tmp_path / "w.safetensors"
    file.write_bytes(b"x")
    arguments = [
        "ensemble",
        "--data",
        str(tiny_dir),
        "--out",
        str(tmp_path / "out"),
        "--weights",
        f"mobilenetv2_100={file}",
    ]
    assert run_app(submit_app, [*arguments, *(each.replace("WEIGHTS", str(file)) for each in more)]) == 2
    told = capsys.readouterr().err.strip().splitlines()
    assert len(told) == 1 and message in told[0] and not (tmp_path / "out" / "runs").exists()


def test_two_members_of_given_weights_from_the_table_to_the_bundle(tiny_dir, tmp_path, monkeypatch, capsys):
    """Networks made small; up to the bundle: what follows is the same for any members."""
    files, tiny = {}, {"layers": [1, 1, 1, 1], "channels": [8, 8, 16, 16]}
    for model in ("resnet18", "resnet26"):
        files[model] = tmp_path / f"{model}.safetensors"
        save_file(timm.create_model(model, **tiny).state_dict(), files[model])

    class PackedError(Exception):
        """Raised when the bundle is packed."""

    def rehearse(*_, **__):
        raise PackedError

    monkeypatch.setattr("cassava_kit.cli.dry_run.rehearse_stage", rehearse)
    out = tmp_path / "out"
    command = ["ensemble", "--data", str(tiny_dir), "--out", str(out), "--n-splits", "2", "--jobs", "1", "--no-groups"]
    command += [part for name, file in files.items() for part in ("--weights", f"timm:{name}={file}")]
    for setting in ("epochs=1", "image_size=32", f"model_args={json.dumps(tiny)}"):
        command += ["--set", setting]
    with pytest.raises(PackedError):
        run_app(submit_app, command)
    names = {path.name for path in (out / "runs").iterdir()}
    assert len(names) == 2 and not [name for name in names if name.startswith("small")]
    assert len(list((out / "views").glob("*-flips-*.csv"))) == 2
    packed = {path.name for path in (out / "bundle" / "weights").glob("*.safetensors")}
    ensemble = read_ensemble(out / "bundle" / "weights" / "ensemble.json")
    assert {name for member in ensemble.members for name in member.checkpoints} == packed
    assert ensemble.views == "flips" and {member.name for member in ensemble.members} <= names
    through = read_predictions(out / "ensemble-oof.csv").probabilities
    plain = np.mean([read_predictions(out / "runs" / name / "oof.csv").probabilities for name in names], axis=0)
    assert not np.allclose(through, plain, atol=1e-4), "weighed and scored through the views"


def test_the_ensemble_file_has_what_the_evidence_chose(tmp_path):
    labels = np.array([0, 1, 2, 3, 4, 4])
    evidence = Evidence(("a", "b"), labels.astype(str), labels, labels % 2, np.full((2, 6, 5), 0.2), "hash")
    runs = {name: [tmp_path / f"{name}{k}" for k in range(2)] for name in evidence.names}
    blend = Blend(np.array([0.3, 0.7]), "stack", np.array([0.5, 0.6, 0.7, 0.8, 2.0]))
    ensemble = compose_ensemble(DryRun(views="none"), evidence, blend, runs)
    assert ensemble.temperatures == (0.5, 0.6, 0.7, 0.8, 2.0) and ensemble.views == "none"
    assert [(member.name, member.weight) for member in ensemble.members] == [("a", 0.3), ("b", 0.7)]
    assert ensemble.prior == pytest.approx([1 / 6, 1 / 6, 1 / 6, 1 / 6, 1 / 3])
    assert compose_ensemble(DryRun(), evidence, Blend(blend.weights), runs).temperatures is None
