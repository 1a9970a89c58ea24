"""Go from a competition folder to a checked submission at home, as Kaggle would run it. Entry point: `dry_run`."""

from __future__ import annotations

import resource
import shutil
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal

from rich.console import Console
from rich.table import Table

from cassava_kit.cli.app import named_file
from cassava_kit.cli.kaggle import ROOT, PlannedRehearsal, rehearse_all
from cassava_kit.competition import Competition, current
from cassava_kit.data.duplicates import table_groups
from cassava_kit.data.folds import Folds, read_folds, write_folds
from cassava_kit.data.images import quick_check
from cassava_kit.data.stratify import split_folds
from cassava_kit.data.table import TrainTable, read_competition
from cassava_kit.data.to_predict import read_test
from cassava_kit.errors import UserError
from cassava_kit.evidence.metrics import METRIC_NAMES, Score, accuracy, baseline, format_score, score
from cassava_kit.evidence.nested import Judgement, blend_nested, judge_methods, nested_predictions
from cassava_kit.evidence.oof import Evidence, make_evidence
from cassava_kit.evidence.predictions import read_predictions, write_predictions
from cassava_kit.inference.ensemble import ENSEMBLE_FILE, Ensemble, EnsembleMember, write_ensemble
from cassava_kit.kaggle.pack.bundle import Bundle
from cassava_kit.kaggle.pack.config import SUBMIT_COMMAND
from cassava_kit.kaggle.pack.selection import Selection, keep_evidence, oof_facts
from cassava_kit.kaggle.rehearse.options import Rehearsal, RehearsalOptions
from cassava_kit.training.config import RunConfig
from cassava_kit.training.recipes import recipe, recipe_names

SSL_RECIPE = "small_ssl_resnet"
MEMBERS = ("small_resnet", "small_vit", SSL_RECIPE)


@dataclass(frozen=True)
class DryRun:
    """Options of one dry run.

    `data` is a competition folder, None the embedded sample; `recipes` and `weights` (recipe, file) give the members;
    `setting` holds limits of the rehearsal and its number of hidden images. `existing` says what happens to finished
    runs that differ, as `TrainOptions.existing` does.
    """

    data: Path | None = None
    out: Path | None = None
    recipes: tuple[str, ...] = ()
    weights: tuple[tuple[str, Path], ...] = ()
    n_splits: int = 3
    seed: int = 42
    groups: bool = True
    views: str = "flips"
    owner: str | None = None
    existing: Literal["refuse", "replace", "keep"] = "refuse"
    setting: RehearsalOptions = field(default_factory=RehearsalOptions)
    competition: Competition = field(init=False, default_factory=current)


@dataclass
class Stages:
    """Stopwatch of the stages: prints each as it begins and keeps its seconds."""

    console: Console
    seconds: dict[str, float] = field(default_factory=dict)

    @contextmanager
    def __call__(self, name: str) -> Iterator[None]:
        """Print a stage's name and measure its time."""
        self.console.print(f"[bold]{len(self.seconds) + 1}. {name}[/bold]")
        started = time.perf_counter()
        yield
        self.seconds[name] = time.perf_counter() - started


def parse_weights(given: Sequence[str]) -> tuple[tuple[str, Path], ...]:
    """Return (recipe, file) of `NAME=FILE` arguments; NAME is a recipe or a timm model.

    Raises:
        UserError: An argument has another form.
        FileNotFoundError: A file does not exist.
    """
    parsed = []
    for text in given:
        name, path = named_file(text, "--weights takes NAME=FILE (a recipe or a timm model, and its weights)")
        if not path.is_file():
            raise FileNotFoundError(f"no weights file {path} (from --weights {text})")
        parsed.append((recipe_for(name), path))
    return tuple(parsed)


def recipe_for(name: str) -> str:
    """Return the recipe of that name, else the first recipe of that timm model, else `timm:NAME`.

    A name with a tag (`.dino`) is only a recipe's that has the same: mean and std are the tag's.
    """
    if name in recipe_names():
        return name
    models = {known: recipe(known).model for known in recipe_names()}
    same_model = [known for known, model in models.items() if name in (model, model.split(".")[0])]
    return same_model[0] if same_model else f"timm:{name.removeprefix('timm:')}"


def dry_run(plan: DryRun) -> Path:
    """Train, weigh, pack, rehearse and check; return the path of the checked `submission.csv`.

    Runs of an earlier call whose configuration, labels, images and first weights are unchanged are reused.

    Raises:
        UserError: An option is wrong, or the rehearsal failed.
        FileNotFoundError: The competition folder lacks a file.
    """
    from cassava_kit.inference.submission import check_answers
    from cassava_kit.inference.tta import make_views
    from cassava_kit.kaggle.pack.bundle import package, package_kit

    console = Console(file=sys.stderr, highlight=False, soft_wrap=True)
    stages = Stages(console)
    configs = member_configs(plan)
    make_views(plan.views)
    with stages("Competition data"):
        data_dir, table = load_data(plan, console)
    out = plan.out or Path("build") / data_dir.name
    with stages("Code"):  # packed before the training: what is wrong with it is known before the slow work
        package_kit(out / "bundle" / "kit", ROOT, owner=plan.owner)
    with stages("Folds"):
        split = split_table(plan, table, out, console)
    with stages("Members"):
        evidence, checkpoints = train_members(plan, configs, table=table, split=split, out=out)
    with stages("Ensemble"):
        judgement = judge_methods(evidence)
        ensemble = compose_ensemble(plan, evidence, judgement, checkpoints)
        blended = nested_predictions(evidence, judgement.weights, judgement.chosen, "ensemble")
        write_predictions(out / "ensemble-oof.csv", blended)
        found = score(evidence.labels, blended.probabilities, evidence.metric)
        console.print(f"weights: {judgement.chosen}; OOF {format_score(found)}")
    with stages("Bundle"):
        files = {bundle_name(name, k): path for name, paths in checkpoints.items() for k, path in enumerate(paths)}
        bundle = package(out / "bundle", ensemble=ensemble, checkpoints=files, root=ROOT, owner=plan.owner)
        write_ensemble(out / ENSEMBLE_FILE, ensemble)
        keep_evidence(Selection(ensemble, files, (blended, split)), out / "bundle")
        console.print(f"packed {out / 'bundle'} (build {bundle.build_id[:12]})")
    with stages("Kernel, offline"):
        rehearsal = rehearse_stage(plan, bundle, data_dir, out, console)
    submission = out / "submission.csv"
    with stages("Check"):
        check_answers(rehearsal.submission, read_test(data_dir, plan.competition).names, plan.competition)
        shutil.copyfile(rehearsal.submission, submission)
    print_summary(console, evidence, judgement=judgement, stages=stages, submission=submission)
    console.print(next_commands(out / "bundle", plan))
    return submission


def rehearse_stage(plan: DryRun, bundle: Bundle, data_dir: Path, out: Path, console: Console) -> Rehearsal:
    """Rehearse with one image (as the public run), with all test images, and with hidden ones if asked for.

    Returns:
        The rehearsal with all test images.

    Raises:
        UserError: A rehearsal failed; the message has its verdict.
    """
    planned = [
        PlannedRehearsal("rehearsal-public", "old", replace(plan.setting, images=1, hidden=None)),
        PlannedRehearsal("rehearsal", "new", replace(plan.setting, hidden=None)),
    ]
    if plan.setting.hidden is not None:
        planned.append(PlannedRehearsal("rehearsal-hidden", "new", plan.setting))
    done = {}
    for step, rehearsal in rehearse_all(bundle, data_dir, out, planned, console):
        done[step.name] = rehearsal
        if not rehearsal.ok:
            raise UserError(f"the rehearsal failed: {rehearsal.verdict}; its log is in {out / step.name}")
    return done["rehearsal"]


def next_commands(bundle: Path, plan: DryRun) -> str:
    """Return the commands for the bundle's next steps, one a line."""
    data = f" --data {plan.data}" if plan.data else ""
    limits = "--cpus 4 --memory 29 --hidden 2000"
    steps = {
        f"{SUBMIT_COMMAND} rehearse --bundle {bundle}{data} {limits}": "many images, Kaggle's limits",
        f"{SUBMIT_COMMAND} doctor --bundle {bundle}": "what ends other submissions",
        f"{SUBMIT_COMMAND} submit --dry-run --bundle {bundle}": "every call to Kaggle, none made",
        f"{SUBMIT_COMMAND} submit --bundle {bundle}": "upload, run, submit, wait for the score",
    }
    width = max(map(len, steps))
    return "\n".join(["Next:", *(f"  {command:{width}}  {what}" for command, what in steps.items())])


def member_configs(plan: DryRun) -> list[tuple[RunConfig, Path | None]]:
    """Return the members' configurations and first weights: the chosen recipes, and one for each weights file.

    Raises:
        UserError: A recipe is given twice.
    """
    weights = dict(plan.weights)
    names = list(plan.recipes or MEMBERS)
    names += [name for name in weights if name not in names]
    chosen = [(recipe(name), weights.get(name)) for name in names]
    weighed = [name for name, _ in plan.weights]
    for option, given in (("--weights", weighed), ("--recipe", [config.recipe for config, _ in chosen])):
        if twice := sorted({name for name in given if given.count(name) > 1}):
            raise UserError(f"{option} names {', '.join(twice)} more than once; each recipe is one member")
    return chosen


def load_data(plan: DryRun, console: Console) -> tuple[Path, TrainTable]:
    """Return the competition folder, which is drawn if it is the sample, and its table."""
    from cassava_kit.data.sample.make import own_sample

    data_dir = plan.data or own_sample(plan.competition)
    table = read_competition(data_dir, plan.competition)
    tests = read_test(data_dir, plan.competition)
    sample = data_dir / plan.competition.sample_submission
    if not sample.exists():
        raise FileNotFoundError(f"no {sample}; give the competition's folder as it was downloaded")
    unlisted = f", {len(table.unlisted)} unlisted" if table.unlisted else ""
    console.print(f"{data_dir}: {len(table.frame)} training images{unlisted}, {len(tests.names)} test images")
    return data_dir, table


def split_table(plan: DryRun, table: TrainTable, out: Path, console: Console) -> Folds:
    """Stratified folds, near-duplicates together unless the plan says otherwise, written to `out/folds.csv`.

    Raises:
        UserError: There are runs on other folds in `out`, and the plan does not replace them.
    """
    groups = table_groups(table) if plan.groups else None
    task = plan.competition.task
    split = split_folds(table.frame, n_splits=plan.n_splits, seed=plan.seed, groups=groups, task=task)
    path = out / "folds.csv"
    trained = path.is_file() and any((out / "runs").glob("*/fold*"))
    if trained and plan.existing != "replace" and read_folds(path).hash != split.hash:
        raise UserError(f"{out} holds runs on other folds than these; give another --out, or --replace")
    write_folds(path, split, replace=True)
    copies = "" if groups is None else f", {len(groups) - len(set(groups))} near-duplicates kept with their originals"
    console.print(f"{split.n_splits} stratified folds{copies}: {path} (hash {split.hash[:12]})")
    return split


def train_members(
    plan: DryRun,
    configs: list[tuple[RunConfig, Path | None]],
    *,
    table: TrainTable,
    split: Folds,
    out: Path,
) -> tuple[Evidence, dict[str, list[Path]]]:
    """Train or reuse every member over all folds; return the out-of-fold evidence and checkpoints by recipe."""
    from cassava_kit.training.checks import check_run
    from cassava_kit.training.recipe_run import train_recipe
    from cassava_kit.training.rows import TrainData, TrainOptions

    oof, checkpoints = [], {}
    for config, weights in configs:
        options = TrainOptions(weights=weights, existing=plan.existing)
        check_run(config, TrainData(table, split, plan.competition), range(split.n_splits), options)
    for config, weights in configs:
        if config.recipe == SSL_RECIPE and weights is None:
            weights = pretrained_backbone(table, out / "pretrain", existing=plan.existing)
        cache = out / "pixels" if config.train_pixels else None
        options = TrainOptions(weights=weights, cache=cache, existing=plan.existing)
        result = train_recipe(config, table, split, out / "runs", competition=plan.competition, options=options)
        assert result.oof_file is not None  # all folds were asked for
        oof.append(read_predictions(result.oof_file))
        checkpoints[config.recipe] = [fold.checkpoint for fold in result.folds]
    return make_evidence(oof, split, list(checkpoints)), checkpoints


def pretrained_backbone(
    table: TrainTable, out: Path, *, existing: Literal["refuse", "replace", "keep"] = "refuse"
) -> Path:
    """Return the self-supervised member's backbone, trained on all training images without labels, or reused.

    Raises:
        UserError: Another pretraining is in `out`, and `existing` does not say what is done with it.
    """
    from cassava_kit.training.ssl.pretrain import pretrain
    from cassava_kit.training.ssl.recipes import small_simclr

    names = sorted([*table.frame["image_id"], *table.unlisted])
    images = [path for path in (table.image_dir / name for name in names) if quick_check(path) is None]
    config = small_simclr()
    if len(images) < config.batch_size:
        config = config.with_settings([f"batch_size={len(images)}"])
    return pretrain(config, images, out, existing=existing)


def compose_ensemble(
    plan: DryRun, evidence: Evidence, judgement: Judgement, checkpoints: dict[str, list[Path]]
) -> Ensemble:
    """Return the content of the ensemble file: members, weights, views, prior and the out-of-fold score."""
    import numpy as np

    counts = np.bincount(evidence.labels, minlength=plan.competition.n_classes)
    listed = tuple(
        EnsembleMember(
            name=name,
            weight=float(weight),
            checkpoints=tuple(bundle_name(name, k) for k in range(len(checkpoints[name]))),
            oof_accuracy=accuracy(evidence.labels, probabilities).accuracy,
        )
        for name, weight, probabilities in zip(evidence.names, judgement.weights, evidence.pred_probs, strict=True)
    )
    return Ensemble(
        members=listed,
        views=plan.views,
        prior=tuple((counts / counts.sum()).tolist()),
        fold_hash=evidence.fold_hash,
        oof=oof_facts(evidence, judgement.weights, judgement.chosen),
    )


def bundle_name(recipe_name: str, fold: int) -> str:
    """Return a checkpoint's name in the flat weights dataset."""
    return f"{recipe_name}-fold{fold}.safetensors"


def print_summary(
    console: Console, evidence: Evidence, *, judgement: Judgement, stages: Stages, submission: Path
) -> None:
    """Print the members' scores, the seconds by stage, and the path of the submission."""
    metric, labels = evidence.metric, evidence.labels
    scores: list[tuple[str, Score, float | None]] = [
        (name, score(labels, p, metric), float(weight))
        for name, p, weight in zip(evidence.names, evidence.pred_probs, judgement.weights, strict=True)
    ]
    blended = blend_nested(evidence, judgement.chosen)  # weights found on all rows would be flattered by them
    scores.append(("ensemble", score(labels, blended, metric), None))
    scores.append(("majority class", baseline(metric, labels, blended.shape[1]), None))
    table = Table(title=f"Out-of-fold {METRIC_NAMES[metric]} on {len(labels)} given labels")
    for heading in ("member", f"{METRIC_NAMES[metric]} ± s.e.", "weight"):
        table.add_column(heading)
    for name, found, weight in scores:
        table.add_row(name, str(found), "" if weight is None else f"{weight:.3f}")
    console.print(table)
    times = Table(title="Seconds by stage")
    for heading in ("stage", "seconds"):
        times.add_column(heading)
    for name, seconds in stages.seconds.items():
        times.add_row(name, f"{seconds:.1f}")
    times.add_row("all", f"{sum(stages.seconds.values()):.1f}")
    console.print(times)
    peak = max(resource.getrusage(who).ru_maxrss for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)) / 2**20
    console.print(f"peak memory of the largest process {peak:.1f} GiB")
    console.print(f"checked submission: {submission}", soft_wrap=True)
