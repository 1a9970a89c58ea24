"""The verb ablate: which variants, what is refused before the first run, and what the table says."""

import json

import numpy as np
import pandas as pd
import pytest

from cassava_kit.cli.app import run_app
from cassava_kit.cli.verbs import app
from cassava_kit.data.folds import write_folds
from cassava_kit.data.stratify import split_folds
from cassava_kit.data.table import TrainTable
from cassava_kit.errors import UserError
from cassava_kit.evidence.compare import compare
from cassava_kit.evidence.noise.decisions import CLEANED_SEEN
from cassava_kit.evidence.predictions import Header, make_predictions, read_predictions, write_predictions
from cassava_kit.settings import replace
from cassava_kit.training.ablation import ablate_files, variants
from cassava_kit.training.checks import check_run
from cassava_kit.training.recipe_run import RecipeResult
from cassava_kit.training.recipes import recipe, run_name
from cassava_kit.training.rows import TrainOptions
from cassava_kit.training.run_dir import FoldResult

CONFIG = replace(recipe("small_resnet"), epochs=1)
BASE = "small_resnet--epochs-1"
N, K = 300, 5


def test_a_change_is_one_variant_with_a_run_name_of_its_own():
    plan = variants(CONFIG, ["lr=0.1", 'loss=bitempered label_smoothing=0 loss_args={"t1": 0.8}'])
    assert plan[0] == CONFIG and plan[1].lr == 0.1
    assert (plan[2].loss, plan[2].label_smoothing, plan[2].loss_args) == ("bitempered", 0, {"t1": 0.8})
    names = [run_name(config) for config in plan]
    assert names[:2] == [BASE, f"{BASE}--lr-0.1"] and names[2].startswith(f"{BASE}--loss-bitempered--label_smoothing")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ([], "nothing to compare"),
        (["label_smoothing=0.1"], "changes nothing"),
        (["lr=0.1", "lr=0.1"], "--change lr=0.1 changes nothing, or is given twice"),
        (["about=other"], "leave recipe and name out"),
        (["speed=9"], "no setting 'speed'"),
    ],
)
def test_plans_that_prove_nothing_are_refused(changes, message):
    with pytest.raises(UserError, match=message):
        variants(CONFIG, changes)


@pytest.fixture
def stand_in(tmp_path, monkeypatch):
    """A trainer that knows the true labels, better the lower the rate and where rows are cleaned; what it was asked."""
    rng = np.random.default_rng(0)
    true = np.arange(N) % K
    ids = np.array([f"{i:03d}.jpg" for i in range(N)])
    frame = pd.DataFrame({"image_id": ids, "label": np.where(np.arange(N) % 10 == 0, (true + 1) % K, true)})
    split = split_folds(frame, n_splits=3, seed=0)
    write_folds(tmp_path / "folds.csv", split)
    asked = []

    def train_recipe(config, folds, out, *, options):
        asked.append((run_name(config), options.clean))
        wrong = rng.random(N) < (0.1 if options.clean else 0.3 if config.lr < 0.01 else 0.5)
        p = 0.9 * np.eye(K)[np.where(wrong, (true + 2) % K, true)] + 0.1 / K
        seen = (CLEANED_SEEN,) if options.clean else ()
        header = Header(name=run_name(config), kind="oof", fold_hash=folds.hash, labels_seen=seen)
        path = out / run_name(config) / "oof.csv"
        write_predictions(path, make_predictions(ids, p, header=header, fold=split.frame["fold"].to_numpy()))
        return RecipeResult(config, (FoldResult(path.parent, None, 2.0, False),) * 3, path, None, 6.0)

    def train_recipes(plan, data, out, *, jobs):
        assert jobs is None
        for one in plan:
            check_run(one.config, data, range(3), one.options)
        return [train_recipe(one.config, data.folds, out, options=one.options) for one in plan]

    monkeypatch.setattr("cassava_kit.training.recipe_run.train_recipes", train_recipes)
    monkeypatch.setattr("cassava_kit.data.table.read_competition", lambda _: TrainTable(frame, tmp_path, ()))

    def ablate(changes=(), config=CONFIG, **options) -> tuple[str, pd.DataFrame]:
        given = TrainOptions(**options)
        said = ablate_files(config, tmp_path, tmp_path / "folds.csv", tmp_path, changes=changes, options=given)
        return said, pd.read_csv(said.splitlines()[-1])

    return ablate, frame, asked


def noise_report(frame, path):
    wrong = np.arange(N) % 10 == 0
    suggested = np.where(wrong, (frame["label"] + K - 1) % K, frame["label"])
    report = frame.assign(suggested_label=suggested, label_quality=np.where(wrong, 0.1, 0.9), keep=~wrong)
    report.to_csv(path, index=False)
    return path


def test_the_table_says_of_each_variant_what_a_paired_comparison_says(stand_in, tmp_path):
    ablate, frame, asked = stand_in
    report = noise_report(frame, tmp_path / "clean.csv")
    said, table = ablate(["lr=0.5"], clean=report)
    worse, cleaned = f"{BASE}--lr-0.5", f"{BASE}--cleaned"
    assert asked == [(BASE, None), (worse, None), (cleaned, report)]
    p = {name: read_predictions(tmp_path / name / "oof.csv").probabilities for name in (BASE, worse, cleaned)}
    labels = frame["label"].to_numpy()
    alone = compare(labels, p[BASE], p[worse], names=(BASE, worse))
    rows = table.set_index("variant")
    assert rows.index.tolist() == [BASE, worse, cleaned] and rows["seconds"].tolist() == [6.0] * 3
    assert rows.loc[worse, "difference"] == pytest.approx(alone.difference, rel=1e-5) and alone.difference < -0.1
    assert rows.loc[worse, ["low", "high"]].tolist() == pytest.approx(list(alone.interval), rel=1e-4)
    assert rows.loc[cleaned, "difference"] > 0.1 and bool(rows.loc[cleaned, "proved"])
    assert rows.loc[BASE, "accuracy"] == pytest.approx((p[BASE].argmax(axis=1) == labels).mean(), rel=1e-5)
    assert np.isnan(rows.loc[BASE, "difference"])
    assert f"{worse} against {BASE}, positive is better" in said
    parts = said.split("\n\n")
    assert "note:" not in parts[0] and parts[1].endswith(f"note: {cleaned}: {CLEANED_SEEN}")
    assert rows["labels_seen"].isna().tolist() == [True, True, False]
    assert rows.loc[cleaned, "labels_seen"] == f"{cleaned}: {CLEANED_SEEN}"


def test_p_values_are_corrected_for_the_number_of_variants(stand_in, tmp_path):
    ablate, frame, _ = stand_in
    changes = [f"lr={rate}" for rate in (0.02, 0.5, 0.6)]
    table = ablate(changes)[1].set_index("variant")
    base = read_predictions(tmp_path / BASE / "oof.csv").probabilities
    alone = [
        compare(frame["label"].to_numpy(), base, read_predictions(tmp_path / name / "oof.csv").probabilities).p_value
        for name in table.index[1:]
    ]
    least, middle, most = sorted(range(3), key=alone.__getitem__)
    expected = {least: min(1, 3 * alone[least])}  # Holm's steps: three times, twice, once, and never falling
    expected[middle] = max(expected[least], min(1, 2 * alone[middle]))
    expected[most] = max(expected[middle], alone[most])
    assert table["p_value"].iloc[1:].tolist() == pytest.approx([expected[k] for k in range(3)], rel=1e-4)


def test_everything_is_checked_before_the_first_run(stand_in, tmp_path):
    ablate, frame, asked = stand_in
    with pytest.raises(FileNotFoundError, match="noise report"):
        ablate(clean=tmp_path / "no.csv")
    with pytest.raises(UserError, match="set label_smoothing=0 for focal"):
        ablate(["lr=0.5", "loss=focal"])
    with pytest.raises(UserError, match="t1 <= 1 <= t2"):
        ablate(['loss=bitempered label_smoothing=0 loss_args={"t1": 1.2}'])
    report = noise_report(frame, tmp_path / "clean.csv")
    mixing = replace(CONFIG, cutmix=1.0)
    with pytest.raises(UserError, match="weights of rows do not go with mixup or cutmix, got --clean-action soften"):
        ablate(config=mixing, clean=report, clean_action="soften")
    assert asked == []


@pytest.mark.slow
def test_one_command_makes_the_table_and_uses_finished_runs_again(tiny_dir, tiny_folds, tmp_path, capsys):
    write_folds(tmp_path / "folds.csv", tiny_folds)
    command = ["ablate", "small_resnet", "--data", str(tiny_dir), "--folds", str(tmp_path / "folds.csv")]
    command += ["--out", str(tmp_path / "runs"), "--set", "epochs=1", "--set", "image_size=32"]
    command += ["--change", "label_smoothing=0", "--change", "loss=focal label_smoothing=0"]
    assert run_app(app, command) == 0
    first = capsys.readouterr()
    table = pd.read_csv(tmp_path / "runs" / "small_resnet--image_size-32--epochs-1-ablation.csv")
    assert len(table) == 3 and "against small_resnet" in first.out
    done = sorted((tmp_path / "runs").glob("*/fold*/run.json"))
    before = [json.loads(path.read_text())["seconds"] for path in done]
    assert run_app(app, command) == 0 and [json.loads(path.read_text())["seconds"] for path in done] == before
    assert "(reused)" in capsys.readouterr().err
