import numpy as np
import pandas as pd
import pytest
from typer.testing import CliRunner

from cassava_kit.cli.verbs import app
from cassava_kit.data.folds import split_folds, write_folds
from cassava_kit.data.table import TrainTable
from cassava_kit.evidence.compare import compare
from cassava_kit.evidence.noise.decisions import read_noise_report
from cassava_kit.evidence.predictions import Header, make_predictions, read_predictions, write_predictions
from cassava_kit.training.ablation import BASE, CLEANED, ablate, changed, compared, variants
from cassava_kit.training.config import RunConfig
from cassava_kit.training.recipe_run import RecipeResult
from cassava_kit.training.rows import TrainOptions
from cassava_kit.training.run_dir import FoldResult

CONFIG = RunConfig(recipe="tiny", model="resnet18", epochs=1, label_smoothing=0.1)
N, K = 300, 5


def test_a_change_is_one_variant_with_a_folder_of_its_own():
    one = changed(CONFIG, 'loss=bitempered label_smoothing=0 loss_args={"t1": 0.8}')
    assert one.config.loss == "bitempered" and one.config.label_smoothing == 0 and one.config.loss_args == {"t1": 0.8}
    assert one.name == 'loss=bitempered label_smoothing=0 loss_args={"t1": 0.8}'
    assert one.config.recipe == "tiny--loss-bitempered-label_smoothing-0-loss_args-t1-0.8"
    names = [(v.name, v.config.recipe, v.cleaned) for v in variants(CONFIG, ["lr=0.1"], cleaned=True)]
    assert names == [(BASE, "tiny", False), ("lr=0.1", "tiny--lr-0.1", False), (CLEANED, "tiny--cleaned", True)]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ([], "nothing to compare"),
        (["label_smoothing=0.1"], "changes nothing"),
        (["lr=0.1", "lr=0.1"], r"same folder tiny--lr-0\.1"),
        (["recipe=other"], "leave recipe out"),
        (["loss=focal"], "set label_smoothing=0 for focal"),
        (["speed=9"], "no setting 'speed'"),
    ],
)
def test_plans_that_prove_nothing_are_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        variants(CONFIG, changes)


@pytest.fixture
def stand_in(tmp_path, monkeypatch):
    """A table whose every tenth label is wrong, and a trainer that knows the true ones, better where rows are cleaned.

    It writes the out-of-fold file of a real run and remembers what it was asked for.
    """
    rng = np.random.default_rng(0)
    true = np.arange(N) % K
    given = np.where(np.arange(N) % 10 == 0, (true + 1) % K, true)
    ids = np.array([f"{i:03d}.jpg" for i in range(N)])
    frame = pd.DataFrame({"image_id": ids, "label": given})
    split = split_folds(frame, n_splits=3, seed=0)
    asked = []

    def train_recipe(config, table, folds, out, *, options):
        asked.append((config.recipe, options.clean))
        wrong = rng.random(N) < (0.1 if options.clean else 0.3 if config.lr < 0.01 else 0.5)
        p = 0.9 * np.eye(K)[np.where(wrong, (true + 2) % K, true)] + 0.1 / K
        header = Header(name=config.recipe, kind="oof", fold_hash=folds.hash)
        path = out / config.recipe / "oof.csv"
        write_predictions(path, make_predictions(ids, p, header=header, fold=split.frame["fold"].to_numpy()))
        return RecipeResult(config, (FoldResult(path.parent, None, 2.0, False),) * 3, path, None, 6.0)

    monkeypatch.setattr("cassava_kit.training.recipe_run.train_recipe", train_recipe)
    return TrainTable(frame, tmp_path, ()), split, asked


def test_the_table_says_of_each_variant_what_a_paired_comparison_says(stand_in, tmp_path):
    table, split, asked = stand_in
    found = ablate(variants(CONFIG, ["lr=0.5"], cleaned=True), table, split, tmp_path)
    assert asked == [("tiny", None), ("tiny--lr-0.5", None), ("tiny--cleaned", tmp_path / "tiny--cleaned/clean.csv")]
    answers = [read_predictions(path).probabilities.argmax(axis=1) for path in found.oof.values()]
    labels = split.frame["label"].to_numpy()
    worse = compare(labels, answers[0], answers[1], names=("tiny", "x"))
    rows = found.table().set_index("variant")
    assert rows.index.tolist() == [BASE, "lr=0.5", CLEANED]
    assert rows.loc["lr=0.5", "difference"] == worse.difference < -0.1
    assert rows.loc["lr=0.5", ["low", "high"]].tolist() == list(worse.interval)
    assert rows.loc[CLEANED, "difference"] > 0.1 and rows.loc[CLEANED, "verdict"] == "proved"
    assert rows.loc[BASE, "accuracy"] == (answers[0] == labels).mean() and rows["seconds"].tolist() == [6.0] * 3
    assert np.isnan(rows.loc[BASE, "difference"])
    text = found.markdown()
    assert (
        text.count("\n|") == 4
        and f"| {CLEANED} |" in text
        and "intervals at 95%; proved means among all 2 (Holm)" in text
        and "given labels" in text
    )


def test_the_report_comes_from_the_recipe_s_own_predictions_or_from_the_file_given(stand_in, tmp_path):
    table, split, asked = stand_in
    plan = variants(CONFIG, [], cleaned=True)
    ablate(plan, table, split, tmp_path)
    report = read_noise_report(tmp_path / "tiny--cleaned" / "clean.csv")
    assert set(report["image_id"]) == set(split.frame["image_id"]) and 0 < (~report["keep"]).sum() <= 0.03 * N
    mine = tmp_path / "mine.csv"
    (tmp_path / "tiny--cleaned" / "clean.csv").rename(mine)
    ablate(plan, table, split, tmp_path, options=TrainOptions(clean=mine))
    assert asked[-2:] == [("tiny", None), ("tiny--cleaned", mine)]
    assert not (tmp_path / "tiny--cleaned" / "clean.csv").exists()


def test_everything_is_checked_before_the_first_run(stand_in, tmp_path):
    table, split, asked = stand_in
    other = split_folds(table.frame.assign(label=(table.frame["label"] + 1) % K), n_splits=3, seed=0)
    with pytest.raises(ValueError, match="make the fold file again"):
        ablate(variants(CONFIG, ["lr=0.5"]), table, other, tmp_path)
    with pytest.raises(FileNotFoundError, match="noise report"):
        ablate(
            variants(CONFIG, [], cleaned=True), table, split, tmp_path, options=TrainOptions(clean=tmp_path / "no.csv")
        )
    assert asked == []


def test_rows_of_other_weights_are_refused_before_the_base_is_trained(stand_in, tmp_path):
    """Without a file the report comes of the base's own predictions, and used to be looked at after its training."""
    table, split, asked = stand_in
    mixing = RunConfig(recipe="mixing", model="resnet18", epochs=1, cutmix=1.0)
    with pytest.raises(ValueError, match="weights of rows do not go with mixup or cutmix, got --clean-action soften"):
        ablate(variants(mixing, [], cleaned=True), table, split, tmp_path, options=TrainOptions(clean_action="soften"))
    assert asked == []


def test_a_loss_of_a_later_variant_is_refused_before_the_base_is_trained(stand_in, tmp_path):
    table, split, asked = stand_in
    plan = variants(CONFIG, ['loss=bitempered label_smoothing=0 loss_args={"t1": 1.2}'])
    with pytest.raises(ValueError, match="t1 <= 1 <= t2"):
        ablate(plan, table, split, tmp_path)
    assert asked == []


def test_the_variants_are_corrected_for_their_number(stand_in, tmp_path):
    table, split, _ = stand_in
    plan = variants(CONFIG, ["lr=0.5", "lr=0.6", "lr=0.7"])
    found = ablate(plan, table, split, tmp_path)
    together = list(found.comparisons.values())
    alone = compared([BASE, "lr=0.5"], list(found.oof.values())[:2], split)["lr=0.5"]
    assert alone.interval == found.comparisons["lr=0.5"].interval and alone.adjusted_p == alone.p_value
    smallest = min(together, key=lambda c: c.p_value)
    assert smallest.adjusted_p == pytest.approx(min(1, 3 * smallest.p_value))


@pytest.mark.slow
def test_one_command_makes_the_table_and_uses_finished_runs_again(tiny_dir, tiny_folds, tmp_path):
    write_folds(tmp_path / "folds.csv", tiny_folds)
    command = ["ablate", "small_resnet", "--data", str(tiny_dir), "--folds", str(tmp_path / "folds.csv")]
    command += ["--out", str(tmp_path / "runs"), "--set", "epochs=1", "--set", "image_size=32", "--cleaning"]
    command += ["--change", "label_smoothing=0", "--change", "loss=focal label_smoothing=0"]
    ran = CliRunner().invoke(app, command, catch_exceptions=False)
    assert ran.exit_code == 0
    table = pd.read_csv(tmp_path / "runs" / "small_resnet-ablation.csv")
    assert table["variant"].tolist() == [BASE, "label_smoothing=0", "loss=focal label_smoothing=0", CLEANED]
    assert "small_resnet--cleaned against small_resnet" in ran.output or f"{CLEANED} against {BASE}" in ran.output
    assert (tmp_path / "runs" / "small_resnet-ablation.md").read_text().startswith("| small_resnet | accuracy |")
    checkpoint = tmp_path / "runs" / "small_resnet--cleaned" / "fold1" / "best.safetensors"
    changed_at = checkpoint.stat().st_mtime_ns
    assert CliRunner().invoke(app, command, catch_exceptions=False).exit_code == 0
    assert checkpoint.stat().st_mtime_ns == changed_at
