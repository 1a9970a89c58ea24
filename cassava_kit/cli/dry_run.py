"""Go from a competition folder to a checked submission at home, as Kaggle would run it. Entry point: `dry_run`."""

from __future__ import annotations

import shutil
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path

from rich.console import Console

from cassava_kit.cli.dry_run_limit import fit_members, notebook_minutes, training_seconds
from cassava_kit.cli.dry_run_members import DryRun, member_configs, plan_members, train_members
from cassava_kit.cli.dry_run_plan import STAGES, STAGES_FILE, format_seconds
from cassava_kit.cli.dry_run_summary import draw_submission, name_unanswered, next_commands, print_scores, print_seconds
from cassava_kit.cli.kaggle import ROOT, PlannedRehearsal, rehearse_all
from cassava_kit.competition import Competition
from cassava_kit.data.duplicates import table_groups
from cassava_kit.data.folds import Folds, read_folds, write_folds
from cassava_kit.data.progress import Screen, tell, use_display
from cassava_kit.data.stratify import check_splittable, split_folds
from cassava_kit.data.table import TrainTable, read_competition
from cassava_kit.data.to_predict import ToPredict, read_test
from cassava_kit.errors import UserError
from cassava_kit.evidence.metrics import accuracy, format_score, score
from cassava_kit.evidence.nested import Blend, judge_methods, nested_predictions
from cassava_kit.evidence.oof import Evidence
from cassava_kit.evidence.predictions import write_predictions
from cassava_kit.files import atomic_path, check_writable, find_file, write_json
from cassava_kit.inference.clock import Clock
from cassava_kit.inference.ensemble import ENSEMBLE_FILE, Ensemble, EnsembleMember, write_ensemble
from cassava_kit.inference.machine import cpu_count
from cassava_kit.kaggle.pack.bundle import Bundle
from cassava_kit.kaggle.pack.selection import Selection, keep_evidence, oof_facts
from cassava_kit.kaggle.rehearse.options import Rehearsal
from cassava_kit.training.workers import ready_workers


@dataclass
class Stages:
    """Stopwatch of the stages: prints each as it begins, keeps its seconds, and moves the overall bar."""

    screen: Screen
    seconds: dict[str, float] = field(default_factory=dict)

    @contextmanager
    def __call__(self, name: str) -> Iterator[None]:
        """Print a stage's name and measure its time."""
        assert name == STAGES[len(self.seconds)]
        self.screen.console.print(f"[bold]{len(self.seconds) + 1}. {name}[/bold]")
        started = time.perf_counter()
        yield
        self.seconds[name] = time.perf_counter() - started
        self.screen.finish(name)


def dry_run(plan: DryRun) -> Path:
    """Train, weigh, pack, rehearse and check; return the path of the checked `submission.csv`.

    Runs of an earlier call whose configuration, labels, images and first weights are unchanged are reused.

    Raises:
        UserError: An option is wrong, or the rehearsal failed.
        FileNotFoundError: The competition folder lacks a file.
    """
    console = Console(file=sys.stderr, highlight=False, soft_wrap=True)
    with Screen(console) as screen, use_display(screen):
        return _run_stages(plan, screen)


def _run_stages(plan: DryRun, screen: Screen) -> Path:
    """Go from stage to stage (see `dry_run`)."""
    from cassava_kit.inference.submission import check_answers, read_answers
    from cassava_kit.inference.tta import make_views
    from cassava_kit.kaggle.pack.bundle import package_kit, package_members
    from cassava_kit.training.checks import check_fit

    console, stages, clock = screen.console, Stages(screen), Clock(plan.time_limit)
    configs = member_configs(plan)
    make_views(plan.views)
    for config, weights in configs:
        if weights is not None:
            check_fit(config, weights)
    with stages("Competition data"):
        data_dir, table, tests = load_data(plan)
    out = plan.out or Path("build") / data_dir.name
    submission = out / "submission.csv"
    check_writable(out)
    check_splittable(table.frame, plan.n_splits, seed=plan.seed, task=plan.competition.task)
    members = plan_members(plan, configs, table, out)
    expected = members.expect(table, out, plan)
    if clock.limit is not None:
        early = "is there from before" if submission.is_file() else "holds the most frequent class for now"
        write_first_answers(submission, table, tests, plan.competition)
        fitted = fit_members(
            members.recipes, expected.jobs, training_seconds(clock), n_splits=plan.n_splits, at_once=members.at_once
        )
        tell(f"{submission} {early}; {fitted}")
        members = members.keep(fitted.recipes)
        if fitted.fewer_epochs:  # another run, with folds of its own
            expected = members.expect(table, out, plan)
        else:
            expected = expected.with_jobs(fitted.jobs(expected.jobs, plan.n_splits))
    console.print(str(expected))
    screen.expect(f"all of it, about {format_seconds(expected.total)}", expected.bar())
    # They load the libraries while the folds are made.
    with ready_workers(members.ready(len(expected.jobs)), "cassava_kit.training.fit"):
        with stages("Code"):  # packed before the training: what is wrong with it is known before the slow work
            package_kit(out / "bundle" / "kit", ROOT, owner=plan.owner)
        with stages("Folds"):
            split = split_table(plan, table, out)
        with stages("Members"):
            evidence, checkpoints = train_members(plan, members, table=table, split=split, out=out, clock=clock)
    with stages("Ensemble"):
        judgement = judge_methods(evidence)
        blended = nested_predictions(evidence, judgement.blend, "ensemble")
        ensemble = compose_ensemble(plan, evidence, judgement.blend, checkpoints)
        ensemble = ensemble.model_copy(update={"oof": oof_facts(evidence, judgement.blend, blended)})
        write_predictions(out / "ensemble-oof.csv", blended)
        found = score(evidence.labels, blended.probabilities, evidence.metric)
        tell(f"weights: {judgement.chosen}; {judgement.tempering}; OOF {format_score(found)}")
    with stages("Bundle"):
        files = {bundle_name(name, k): path for name, paths in checkpoints.items() for k, path in enumerate(paths)}
        bundle = package_members(out / "bundle", ensemble=ensemble, checkpoints=files, root=ROOT, owner=plan.owner)
        write_ensemble(out / ENSEMBLE_FILE, ensemble)
        keep_evidence(Selection(ensemble, files, (blended, split)), out / "bundle")
        tell(f"packed {out / 'bundle'} (build {bundle.build_id[:12]})")
    with stages("Notebook, offline"):
        minutes = plan.setting.minutes or notebook_minutes(clock)
        rehearsal = rehearse_stage(replace(plan, setting=replace(plan.setting, minutes=minutes)), bundle, data_dir, out)
    with stages("Check"):
        check_answers(rehearsal.submission, tests.names, plan.competition)
        with atomic_path(submission) as temporary:
            shutil.copyfile(rehearsal.submission, temporary)
        answers = read_answers(submission, plan.competition)
        picture = draw_submission(answers, tests, plan.competition, out)
    write_json(out / STAGES_FILE, {name: round(seconds, 3) for name, seconds in stages.seconds.items()})
    print_scores(console, evidence, judgement, pretrained=bool(plan.weights))
    if unanswered := name_unanswered(answers, table, plan.competition):
        console.print(unanswered, markup=False)
    print_seconds(console, stages.seconds)
    console.print(f"checked submission: {submission}")
    if picture is not None:
        console.print(f"what it answers, as a picture: {picture}")
    console.print(next_commands(out / "bundle", plan.data, data_dir, out), markup=False)
    return submission


def write_first_answers(submission: Path, table: TrainTable, tests: ToPredict, competition: Competition) -> None:
    """Write the classes' shares, or the most frequent class, for every test image, unless a submission is there."""
    import numpy as np

    from cassava_kit.inference.submission import write_answers

    if submission.is_file():
        return
    shares = np.bincount(table.frame["label"], minlength=competition.n_classes) / len(table.frame)
    rows = np.tile(shares, (len(tests.names), 1))
    write_answers(
        submission, tests.names, rows if competition.probability_columns else rows.argmax(axis=1), competition
    )


def rehearse_stage(plan: DryRun, bundle: Bundle, data_dir: Path, out: Path) -> Rehearsal:
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
    at_once = 1 if plan.setting.limits else min(len(planned), cpu_count())  # limits are for a run that is alone
    for step, rehearsal in rehearse_all(bundle, data_dir, out, planned, at_once=at_once):
        tell(rehearsal.verdict)
        done[step.name] = rehearsal
        if not rehearsal.ok:
            raise UserError(f"the rehearsal failed: {rehearsal.verdict}; its log is in {out / step.name}")
    return done["rehearsal"]


def load_data(plan: DryRun) -> tuple[Path, TrainTable, ToPredict]:
    """Return the competition folder, which is drawn if it is the sample, its table and its test images."""
    from cassava_kit.data.sample.make import own_sample

    data_dir = plan.data or own_sample(plan.competition)
    table = read_competition(data_dir, plan.competition)
    tests = read_test(data_dir, plan.competition)
    if plan.competition.sample_submission:
        sample = data_dir / plan.competition.sample_submission
        find_file(sample, "sample submission", "give the competition's folder as it was downloaded")
    unlisted = f", {len(table.unlisted)} unlisted" if table.unlisted else ""
    tell(f"{data_dir}: {len(table.frame)} training images{unlisted}, {len(tests.names)} test images")
    return data_dir, table, tests


def split_table(plan: DryRun, table: TrainTable, out: Path) -> Folds:
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
    tell(f"{split.n_splits} stratified folds{copies}: {path} (hash {split.hash[:12]})")
    return split


def compose_ensemble(plan: DryRun, evidence: Evidence, blend: Blend, checkpoints: dict[str, list[Path]]) -> Ensemble:
    """Return the content of the ensemble file but for its score: members, weights, temperatures, views, prior."""
    import numpy as np

    counts = np.bincount(evidence.labels, minlength=plan.competition.n_classes)
    listed = tuple(
        EnsembleMember(
            name=name,
            weight=float(weight),
            checkpoints=tuple(bundle_name(name, k) for k in range(len(checkpoints[name]))),
            oof_accuracy=accuracy(evidence.labels, probabilities).accuracy,
        )
        for name, weight, probabilities in zip(evidence.names, blend.weights, evidence.pred_probs, strict=True)
    )
    return Ensemble(
        members=listed,
        views=plan.views,
        prior=tuple((counts / counts.sum()).tolist()),
        fold_hash=evidence.fold_hash,
        temperatures=blend.listed_temperatures,
    )


def bundle_name(recipe_name: str, fold: int) -> str:
    """Return a checkpoint's name in the flat weights dataset."""
    return f"{recipe_name}-fold{fold}.safetensors"
