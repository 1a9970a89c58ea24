"""A probe is a member: its numbers are scikit-learn's, its checkpoint an ordinary one that gives them back."""

import json
import re

import cv2
import numpy as np
import pandas as pd
import pytest
import timm
import torch
from safetensors.torch import load_file, save_file
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import log_loss
from sklearn.model_selection import PredefinedSplit
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from tiny import SILENT, TINY

from cassava_kit.cli.app import run_app
from cassava_kit.cli.kaggle import select
from cassava_kit.cli.verbs import app
from cassava_kit.data.folds import write_folds
from cassava_kit.data.images import load_image
from cassava_kit.data.stratify import split_folds
from cassava_kit.data.table import TrainTable
from cassava_kit.errors import UserError
from cassava_kit.evidence.oof import read_evidence
from cassava_kit.evidence.predictions import read_predictions
from cassava_kit.inference import features as features_module
from cassava_kit.inference.predict import predict_images
from cassava_kit.models.checkpoint import load_model, read_info
from cassava_kit.settings import replace
from cassava_kit.training import probe as probe_module
from cassava_kit.training.linear import ABSENT, PENALTIES, choose_penalty, fit_linear, linear_head
from cassava_kit.training.probe import fit_probe
from cassava_kit.training.recipe_run import PlannedProbe, PlannedRecipe, train_recipes
from cassava_kit.training.recipes import probe_of, run_name
from cassava_kit.training.rows import TrainData, TrainOptions
from cassava_kit.training.workers import Job

NETWORK = {"layers": [1, 1, 1, 1], "channels": [8, 8, 16, 16]}
SETTINGS = [f"model_args={json.dumps(NETWORK)}", "image_size=32"]


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setattr(probe_module, "cache_dir", lambda: tmp_path / "cache")


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    """Weights of a small ResNet, with a head of 1,000 classes."""
    torch.manual_seed(3)
    path = tmp_path_factory.mktemp("weights") / "w.safetensors"
    save_file(timm.create_model("resnet18", **NETWORK).state_dict(), path)
    return path


def train_probe(config, data, out, *, options, folds=None):
    """The folds of one probe."""
    return train_recipes([PlannedProbe(config, options)], data, out, folds=folds)[0].folds


def features_by_hand(weights, paths, flips: bool) -> np.ndarray:
    """Features (V, N, D) of timm's own network without its classifier: plain, then left and right exchanged."""
    network = timm.create_model("resnet18", num_classes=0, **NETWORK).eval()
    state = {name: value for name, value in load_file(weights).items() if not name.startswith("fc.")}
    network.load_state_dict(state)
    images = np.stack([load_image(path, (32, 32)) for path in paths]) / 255
    images = (images - [0.485, 0.456, 0.406]) / [0.229, 0.224, 0.225]
    batch = torch.from_numpy(images.transpose(0, 3, 1, 2)).float()
    with torch.no_grad():
        return np.stack([network(each).numpy() for each in ([batch, batch.flip(3)] if flips else [batch])])


def test_recipes_and_probes_of_one_plan_are_trained_together(three, weights, tmp_path, capsys):
    """What a plan's probe leaves is what its folds fitted alone leave, and the results come in the plan's order."""
    probe = probe_of("timm:resnet18").with_settings(SETTINGS)
    options = TrainOptions(weights=weights)
    plan = [PlannedProbe(probe, options), PlannedRecipe(replace(TINY, epochs=1), SILENT)]
    first, second = train_recipes(plan, three, tmp_path / "plan", jobs=1)
    assert (first.config, second.config) == (probe, plan[1].config)
    assert len(first.folds) == len(second.folds) == 3 and not first.reused
    for k, fold in enumerate(first.folds):
        alone = fit_probe(probe, three, k, tmp_path / "alone", options=options)
        assert fold.oof_file.read_bytes() == alone.oof_file.read_bytes()
        assert fit_probe(probe, three, k, tmp_path / "alone", options=options).reused
    name = run_name(probe)
    assert first.oof_file == tmp_path / "plan" / name / "oof.csv"
    by_hand = np.mean(
        read_predictions(first.oof_file).probabilities.argmax(1) == three.folds.scored["label"].to_numpy()
    )
    assert first.score.accuracy == pytest.approx(by_hand)
    said = "".join(capsys.readouterr())
    for each in (name, run_name(TINY.with_settings(["epochs=1"]))):
        assert said.count(f"{each}: OOF") == 1
        assert re.findall(rf"^{re.escape(each)} fold(\d): .* out of fold \(\d+ s\)$", said, re.M) == ["0", "1", "2"]
    again = train_recipes(plan[:1], three, tmp_path / "plan")[0]
    assert again.reused and again.score == first.score
    assert train_recipes(plan[:1], three, tmp_path / "plan", folds=[1])[0].oof_file is None
    with pytest.raises(UserError, match="a probe is of trained weights"):
        train_recipes([PlannedProbe(probe, TrainOptions()), plan[1]], three, tmp_path / "none")
    assert not (tmp_path / "none").exists()


def test_folds_of_a_probe_wait_for_the_first_and_decode_nothing_again(three, weights, tmp_path, monkeypatch):
    """120 images are read once; a plan of one probe leaves all cores to its features."""
    probe = PlannedProbe(probe_of("timm:resnet18").with_settings(SETTINGS), TrainOptions(weights=weights), "before")
    jobs = probe.jobs(three, [0, 2], tmp_path, at_once=1)
    first, second = (f"{probe.name} fold{k}" for k in (0, 2))
    assert [(job.name, job.after) for job in jobs] == [(first, ("before",)), (second, ("before", first))]
    assert probe.jobs(three, [], tmp_path, at_once=1) == [] and (probe.width(5), probe.width(0)) == (1, 0)
    decoded = []
    plain = features_module.pixel_batches

    def counted(paths, *given, **named):
        decoded.extend(paths)
        return plain(paths, *given, **named)

    monkeypatch.setattr(features_module, "pixel_batches", counted)
    train_recipes([probe], three, tmp_path / "runs", first=[Job("before", len, ("abc",))])
    assert sorted(decoded) == sorted(three.paths(three.folds.frame)) and len(decoded) == 120


def pipeline(c: float):
    return make_pipeline(StandardScaler(), LogisticRegression(C=c, max_iter=500))


def by_hand(x: np.ndarray, labels: np.ndarray, fold: np.ndarray, k: int) -> tuple[np.ndarray, float]:
    """scikit-learn's own answers to the plain rows of fold k; the penalty of least loss over the other folds."""
    n_views, others = len(x), fold != k
    rows, y = np.concatenate(list(x[:, others])).astype(np.float64), np.tile(labels[others], n_views)
    parts, losses = np.tile(fold[others], n_views), []
    for c in PENALTIES:
        found = []
        for train, test in PredefinedSplit(parts).split():
            model = pipeline(c).fit(rows[train], y[train])
            found.append(log_loss(y[test], model.predict_proba(rows[test]), labels=model.classes_, normalize=False))
        losses.append(sum(found))
    best = PENALTIES[int(np.argmin(losses))]
    return pipeline(best).fit(rows, y).predict_proba(x[0, fold == k]), best


@pytest.fixture
def three(tiny_table) -> TrainData:
    return TrainData(tiny_table, split_folds(tiny_table.frame, n_splits=3, seed=1))


@pytest.mark.parametrize("views", ["hflip", "none"])
def test_answers_are_scikit_learns_and_the_checkpoint_gives_them_back(views, three, weights, tmp_path):
    config = probe_of("timm:resnet18").with_settings([*SETTINGS, f"views={views}"])
    results = train_probe(config, three, tmp_path / "runs", options=TrainOptions(weights=weights))
    frame = three.folds.frame
    labels, fold = frame["label"].to_numpy(), frame["fold"].to_numpy()
    x = features_by_hand(weights, three.paths(frame), views == "hflip")
    for k, result in enumerate(results):
        expected, c = by_hand(x, labels, fold, k)
        rows = read_predictions(result.oof_file).frame.set_index("image_id").loc[frame["image_id"][fold == k]]
        np.testing.assert_allclose(rows[[f"p{n}" for n in range(5)]].to_numpy(), expected, atol=2e-4)
        assert json.loads((result.run_dir / "run.json").read_text())["c"] == c
        answers, failed = predict_images([result.checkpoint], three.paths(frame[fold == k]), progress=False)
        np.testing.assert_allclose(answers[0], expected, atol=2e-4)
        assert not failed and result.score.accuracy == np.mean(expected.argmax(axis=1) == labels[fold == k])


def test_it_is_a_member_like_any_other(three, weights, tmp_path):
    config = probe_of("timm:resnet18").with_settings(SETTINGS)
    assert run_name(config).startswith("probe-timm-resnet18--")
    assert run_name(probe_of("dinov2_top").with_settings(["views=none"])) == "probe-dinov2_top--views-none"
    results = train_probe(config, three, tmp_path, options=TrainOptions(weights=weights, tell=print))
    folder = tmp_path / run_name(config)
    evidence = read_evidence([folder / "oof.csv"], three.folds)
    assert evidence.pred_probs.shape == (1, 120, 5)
    info, (model, _) = read_info(results[1].checkpoint), load_model(results[1].checkpoint)
    assert (info.fold, info.fold_hash, info.head, info.n_classes) == (1, three.folds.hash, "linear", 5)
    assert info.oof_accuracy == results[1].score.accuracy and sum(info.prior) == pytest.approx(1)
    backbone = {name: value for name, value in load_file(weights).items() if not name.startswith("fc.")}
    assert all(torch.equal(model.state_dict()[name], value) for name, value in backbone.items())


def test_finished_folds_are_reused_and_features_read_back(three, weights, tmp_path, monkeypatch):
    config = probe_of("timm:resnet18").with_settings(SETTINGS)
    options = TrainOptions(weights=weights)
    first = train_probe(config, three, tmp_path / "runs", options=options, folds=[0])
    asked: list[int] = []
    plain = probe_module.extract_views

    def counted(*given, **named):
        asked.append(1)
        return plain(*given, **named)

    monkeypatch.setattr(probe_module, "extract_views", counted)
    again = train_probe(config, three, tmp_path / "runs", options=options, folds=[0])
    assert again[0].reused and again[0].score == first[0].score and not asked
    monkeypatch.setattr("cassava_kit.inference.features.pixel_batches", lambda *_: pytest.fail("decoded again"))
    every = train_probe(config, three, tmp_path / "runs", options=options)
    assert [result.reused for result in every] == [True, False, False] and asked
    with pytest.raises(UserError, match="other weights"):
        other = tmp_path / "other.safetensors"
        save_file({name: value + 1 for name, value in load_file(weights).items()}, other)
        train_probe(config, three, tmp_path / "runs", options=TrainOptions(weights=other))


def test_an_unreadable_image_is_not_learnt_from_and_gets_the_class_shares(tiny_table, weights, tmp_path):
    import shutil

    images = tmp_path / "images"
    shutil.copytree(tiny_table.image_dir, images)
    table = TrainTable(tiny_table.frame, images, ())
    split = split_folds(table.frame, n_splits=2, seed=0)
    broken = split.validation(0)["image_id"].iloc[3]
    (images / broken).write_bytes(b"<html>")
    data = TrainData(table, split)
    config = probe_of("timm:resnet18").with_settings([*SETTINGS, "views=none"])
    results = train_probe(config, data, tmp_path / "runs", options=TrainOptions(weights=weights))
    rows = read_predictions(results[0].oof_file).frame.set_index("image_id")
    shares = np.bincount(split.training(0)["label"], minlength=5) / len(split.training(0))
    np.testing.assert_allclose(rows.loc[broken, [f"p{k}" for k in range(5)]].to_numpy(float), shares, atol=1e-6)


def test_the_penalty_is_found_without_the_rows_of_a_part():
    """A slow transcription: every penalty, every part, sklearn's pipeline, summed loss; rows of -1 always learnt."""
    rng = np.random.default_rng(0)
    y = rng.integers(0, 3, 150)
    x = rng.normal(0, 1, (150, 6)) + np.eye(6)[y] * 2
    parts = np.where(np.arange(150) < 75, -1, np.arange(150) % 4)
    x[:75] = rng.normal(0, 1, (75, 6))  # of no class: held out, they would ask for a strong penalty
    losses = []
    for c in PENALTIES:
        loss = 0.0
        for k in range(4):
            model = pipeline(c).fit(x[parts != k], y[parts != k])
            p = model.predict_proba(x[parts == k])
            loss -= sum(np.log(p[n, label]) for n, label in enumerate(y[parts == k]))
        losses.append(loss)
    assert choose_penalty(x, y, parts=parts) == PENALTIES[int(np.argmin(losses))]
    assert choose_penalty(x, y, parts=np.full(150, -1)) == PENALTIES[len(PENALTIES) // 2]


@pytest.mark.parametrize("classes", [(0, 1, 2), (1, 3)])
def test_a_fitted_model_is_one_layer_on_plain_features(classes):
    rng = np.random.default_rng(1)
    y = rng.choice(classes, 80)
    x = rng.normal(3, 2, (80, 5)) + y[:, None]
    model = fit_linear(x, y, 0.1)
    weights, biases = linear_head(model, 4)
    p = torch.from_numpy(x @ weights.T + biases).softmax(dim=1).numpy()
    np.testing.assert_allclose(p[:, classes], model.predict_proba(x), atol=1e-9)
    absent = [k for k in range(4) if k not in classes]
    assert (p[:, absent] == 0).all() and (biases[absent] == ABSENT).all()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["probe"], "needs --model timm:NAME and --weights FILE"),
        (["probe", "--model", "timm:resnet18"], "needs --model timm:NAME and --weights FILE"),
        (["probe", "--model", "timm:resnet18", "--weights", "w.pth", "--limit", "5"], "its network stays frozen"),
        (["probe", "--model", "timm:resnet18", "--weights", "w.pth", "--keep-stages", "1"], "stays frozen"),
        (["probe", "--model", "timm:resnet1", "--weights", "WEIGHTS"], "no model 'resnet1'"),
        (["probe", "--model", "timm:resnet18", "--weights", "none.pth"], "no weights file none.pth"),
        (["probe", "--model", "timm:resnet18", "--weights", "w.pth", "--set", "epochs=3"], "no setting 'epochs'"),
        (["resnet18", "--model", "timm:resnet18"], "--model goes with train probe"),
        (["logreg", "--keep-stages", "1"], "trains no network"),
    ],
)
def test_mistakes_are_one_line_before_any_work(
    arguments, message, tiny_dir, tiny_folds, weights, tmp_path, monkeypatch, capsys
):
    monkeypatch.chdir(tmp_path)
    write_folds(tmp_path / "folds.csv", tiny_folds)
    arguments = [str(weights) if each == "WEIGHTS" else each for each in arguments]
    assert run_app(app, ["train", *arguments, "--data", str(tiny_dir), "--folds", "folds.csv"]) == 2
    told = capsys.readouterr().err.strip().splitlines()
    assert len(told) == 1 and message in told[0]
    assert not (tmp_path / "runs").exists()


def test_from_the_command_line_to_members_of_an_ensemble(tiny_dir, tiny_folds, weights, tmp_path, monkeypatch, capsys):
    """train probe, ensemble of two, a bundle's members: no step knows that one is a probe."""
    monkeypatch.chdir(tmp_path)
    write_folds(tmp_path / "folds.csv", tiny_folds)
    settings = [part for each in SETTINGS for part in ("--set", each)]
    for name, views in (("frozen", "hflip"), ("plain", "none")):
        command = ["train", "probe", "--model", "timm:resnet18", "--weights", str(weights), "--name", name]
        command += ["--data", str(tiny_dir), "--folds", "folds.csv", *settings, "--set", f"views={views}"]
        assert run_app(app, command) == 0
    assert "frozen: OOF accuracy" in capsys.readouterr().err
    members = ["--oof", "runs/frozen/oof.csv", "--oof", "runs/plain/oof.csv"]
    assert run_app(app, ["ensemble", *members, "--folds", "folds.csv", "--out", "w.json"]) == 0
    chosen = select(None, [], weights=tmp_path / "w.json", views=None, folds=tmp_path / "folds.csv")
    assert {path.parts[-3] for path in chosen.checkpoints.values()} <= {"frozen", "plain"} and chosen.checkpoints
    assert chosen.ensemble.oof


def test_keep_stages_of_the_command_line_is_a_setting_of_the_run(tiny_dir, tiny_folds, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write_folds(tmp_path / "folds.csv", tiny_folds)
    given = {}
    monkeypatch.setattr("cassava_kit.training.recipe_run.train_recipe", lambda config, *_, **__: given.update(c=config))
    command = ["train", "resnet18", "--keep-stages", "0", "--data", str(tiny_dir), "--folds", "folds.csv"]
    assert run_app(app, command) == 0 and given["c"].keep_stages == 0
    assert run_name(given["c"]) == "resnet18--keep_stages-0"


def test_a_network_without_a_linear_classifier_is_refused(three, weights, tmp_path, monkeypatch):
    monkeypatch.setattr(probe_module, "classifier_names", lambda _: ("conv1",))
    with pytest.raises(UserError, match="resnet18 has no linear classifier"):
        train_probe(probe_of("timm:resnet18"), three, tmp_path, options=TrainOptions(weights=weights))


def test_weights_that_know_the_labels_are_refused(three, weights, tmp_path):
    config = probe_of("timm:resnet18").with_settings(SETTINGS)
    first = train_probe(config, three, tmp_path, options=TrainOptions(weights=weights), folds=[0])[0]
    with pytest.raises(UserError, match="must not have seen the labels of fold 1"):
        train_probe(config, three, tmp_path / "more", options=TrainOptions(weights=first.checkpoint), folds=[1])


def test_classes_that_colour_tells_apart_are_found(tmp_path, weights):
    """Signal: red and green pictures, whose labels an untrained network's features are enough for."""
    rng, names = np.random.default_rng(0), []
    for n in range(24):
        image = rng.integers(0, 120, (40, 48, 3), dtype=np.uint8)
        image[..., 0 if n % 2 else 1] += 100
        cv2.imwrite(str(tmp_path / f"{n:02d}.jpg"), image[..., ::-1])
        names.append(f"{n:02d}.jpg")
    frame = pd.DataFrame({"image_id": names, "label": [4 * (n % 2) for n in range(24)]})
    data = TrainData(TrainTable(frame, tmp_path, ()), split_folds(frame, n_splits=3, seed=0))
    config = probe_of("timm:resnet18").with_settings(SETTINGS)
    results = train_probe(config, data, tmp_path / "runs", options=TrainOptions(weights=weights, tell=SILENT.tell))
    assert np.mean([result.score.accuracy for result in results]) > 0.85
