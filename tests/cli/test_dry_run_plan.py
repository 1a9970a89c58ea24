"""What a dry run says at its start: seconds by stage from timed steps and the run before, and what they come from."""

import pytest

from cassava_kit.cli import dry_run_plan
from cassava_kit.cli.dry_run_plan import MEMBERS, NOTEBOOK, STAGES, STAGES_FILE, expect_stages, format_seconds
from cassava_kit.files import write_json, write_text
from cassava_kit.models import network
from cassava_kit.training import expected, side_by_side
from cassava_kit.training.recipe_run import PlannedRecipe
from cassava_kit.training.recipes import recipe
from cassava_kit.training.rows import TrainOptions
from cassava_kit.training.ssl import expected as ssl_expected
from cassava_kit.training.ssl.recipes import small_simclr


@pytest.fixture
def steps(monkeypatch, tiny_table, tmp_path):
    """The expectation for two recipes over three folds, of 40 and 20 s a fold, and a pretraining of 30 s."""
    seconds = {"small_resnet": 40.0, "small_vit": 20.0}
    monkeypatch.setattr(expected, "fold_seconds", lambda config, *_, **__: seconds[config.recipe])
    monkeypatch.setattr(ssl_expected, "pretraining_seconds", lambda *_, **__: 30.0)
    monkeypatch.setattr(dry_run_plan.time, "time", lambda: 1000.0)
    monkeypatch.setattr(dry_run_plan, "process_start", lambda: 993.0)
    plan = [PlannedRecipe(recipe(name), TrainOptions()) for name in seconds]

    def expect(at_once=2, *, pretrained=False):
        due = None if pretrained else ("pretraining (simclr)", small_simclr(), 1206)
        return expect_stages(plan, tiny_table, tmp_path, n_splits=3, at_once=at_once, pretraining=due)

    return expect, tmp_path


def finish_fold(run, fold):
    folder = run / f"fold{fold}"
    folder.mkdir(parents=True)
    write_text(folder / "run.json", "{}")


def test_jobs_share_the_processes_and_the_notebook_starts_as_long_as_the_libraries_load(steps):
    expect, _ = steps
    found = expect()
    assert found.stages[MEMBERS] == (3 * 40 + 3 * 20 + 30) / 2 + 7 and found.stages[NOTEBOOK] == 14
    assert found.total == 105 + 7 + 14 and expect(at_once=1).stages[MEMBERS] == 210 + 7
    assert found.bar()["small_vit fold1"] == 10 and found.bar()["pretraining (simclr)"] == 15
    assert MEMBERS not in found.bar()
    said = str(found).splitlines()
    assert [line.split(".")[0] for line in said[1:-1]] == [str(n) for n in range(1, len(STAGES) + 1)]
    assert "1 min 52 s  train pretraining (simclr), small_resnet (3 folds), small_vit (3 folds), 2 at once" in said[4]
    assert said[-1].startswith("about 2 min 06 s in all on ") and "by a few steps timed now" in said[-1]
    assert "by the 7 s in which this program loaded its libraries" in said[-1]


def test_fewer_jobs_are_expected_without_timing_again(steps):
    expect, _ = steps
    found = expect()
    fewer = found.with_jobs({"small_resnet fold0": 40.0, "small_vit fold0": 20.0})
    assert fewer.stages[MEMBERS] == 40 + 7, "two at once: as long as the longest"
    assert fewer.stages[NOTEBOOK] == found.stages[NOTEBOOK] and found.with_jobs({}).stages[MEMBERS] == 0


def test_what_is_trained_already_takes_no_time(steps):
    expect, out = steps
    for fold in range(3):
        finish_fold(out / "runs" / "small_resnet", fold)
    finish_fold(out / "runs" / "small_vit", 1)
    assert expect(pretrained=True).jobs == {"small_vit fold0": 20, "small_vit fold2": 20}
    for fold in (0, 2):
        finish_fold(out / "runs" / "small_vit", fold)
    found = expect(pretrained=True)
    assert found.stages[MEMBERS] == 0 and "all trained already" in str(found)


def test_the_last_runs_seconds_stand_for_what_is_not_timed(steps):
    expect, out = steps
    write_json(out / STAGES_FILE, dict.fromkeys(STAGES, 3.0))
    found = expect()
    assert found.stages["Folds"] == found.stages[NOTEBOOK] == 3 and found.stages[MEMBERS] == 112
    assert found.total == 7 * 3 + 112 and "the rest as in the last run here" in str(found)
    write_text(out / STAGES_FILE, "{ not JSON")
    assert expect().stages["Folds"] == 0


@pytest.mark.parametrize(
    ("seconds", "said"),
    [(0.4, "0 s"), (59.6, "1 min 00 s"), (125, "2 min 05 s"), (12000, "3 h 20 min")],
)
def test_seconds_in_words(seconds, said):
    assert format_seconds(seconds) == said


def test_a_folds_seconds_are_those_of_its_steps(monkeypatch, tiny_table):
    """By hand: 10 epochs of 80 training rows at .5 + .25 s, and 11 passes over 40 rows held out at .125 s."""
    paths = [tiny_table.image_dir / name for name in tiny_table.frame["image_id"]]
    monkeypatch.setattr(expected, "item_seconds", lambda *_: 0.25)
    n = recipe("small_resnet").batch_size
    answers = iter([0.5 * n, 0.125 * n])
    monkeypatch.setattr(expected, "timed", lambda call, device: (call(), next(answers))[1])
    assert expected.fold_seconds(recipe("small_resnet"), paths, 3, threads=1) == 10 * 80 * 0.75 + 11 * 40 * 0.125
    assert side_by_side.torch.get_num_threads() >= 1


@pytest.mark.parametrize(
    ("settings", "learnt"),
    [
        ([], {"conv1", "bn1", "layer1", "layer2", "layer3", "layer4", "fc"}),
        (["keep_stages=1"], {"layer4", "fc"}),
        (["freeze_backbone=true"], {"fc"}),
    ],
)
def test_a_timed_step_is_of_what_the_recipe_trains(settings, learnt, monkeypatch, tiny_table):
    """A pass backward through frozen stages would be timed though no run makes it."""
    made, modes = [], []
    plain = network.create_model
    monkeypatch.setattr(
        network, "create_model", lambda *given, **named: made.append(plain(*given, **named)) or made[-1]
    )

    def once(call, device):
        modes.append({name for name, child in made[-1].named_children() if child.training})
        call()
        return 1.0

    monkeypatch.setattr(expected, "timed", once)
    monkeypatch.setattr(expected, "item_seconds", lambda *_: 0.0)
    paths = [tiny_table.image_dir / name for name in tiny_table.frame["image_id"]]
    expected.fold_seconds(recipe("small_resnet").with_settings(settings), paths, 3, threads=1)
    assert {name.split(".")[0] for name, each in made[-1].named_parameters() if each.grad is not None} == learnt
    assert modes[0] & {"bn1", "layer1", "layer4"} == learnt & {"bn1", "layer1", "layer4"} and modes[1] == set()
