"""Real backbones on real photographs: each as a probe and finetuned, through views, and their ensemble, as one page.

    PYTHONPATH=. python benchmarks/results_backbones.py --data DIR --weights NAME=FILE --weights NAME=FILE ...
        --out RESULTS.md --picture docs/results.png [--work build/backbones] [--budget-hours 4] [--set NAME=VALUE ...]

NAME is a recipe or timm model, DIR a competition folder. What was broken off goes on: finished folds and predictions in
the work folder are reused. Each process computes on one core, `--jobs` at once. Before a member is trained, its time is
measured by a few steps; one that does not fit into what is left of the budget is left out, and the page says so.
Everything is out of fold: penalties, weights and temperatures are found without the rows they are scored on.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from results_best import CHOSEN, chosen_nested
from results_members import N_SPLITS, SEED
from results_page import MEAN, WEIGHTED, exit_code

from cassava_kit.cli.dry_run_members import parse_weights
from cassava_kit.competition import current
from cassava_kit.data.duplicates import find_duplicates
from cassava_kit.data.folds import write_folds
from cassava_kit.data.stratify import split_folds
from cassava_kit.data.table import read_competition
from cassava_kit.errors import UserError
from cassava_kit.evidence.blend import blend_report, error_correlation
from cassava_kit.evidence.calibration import ece, logloss
from cassava_kit.evidence.compare import Comparison, compare, correct
from cassava_kit.evidence.metrics import accuracy, majority
from cassava_kit.evidence.nested import Judgement, blend_nested, judge_methods, select_members_alone
from cassava_kit.evidence.oof import Evidence, make_evidence
from cassava_kit.evidence.predictions import Predictions
from cassava_kit.files import read_json, write_json, write_text
from cassava_kit.training.config import RunConfig
from cassava_kit.training.expected import fold_seconds
from cassava_kit.training.recipe_run import PlannedProbe, PlannedRecipe, train_recipes
from cassava_kit.training.recipes import probe_of, recipe, run_name
from cassava_kit.training.rows import TrainData, TrainOptions
from cassava_kit.training.side_by_side import use_threads
from cassava_kit.training.through_views import predict_through_views
from cassava_kit.training.workers import Job, run_jobs

VIEWS = "flips"
CALIBRATED = "ensemble, weights and temperatures"
PACKED, PROBE = "finetuned members, as packed", "probe-"
METHOD = "logloss"
HOURS = 4.0
KINDS = ("probe", "finetuned")


@dataclass(frozen=True)
class BackbonePlan:
    """What to make: folder of the competition, (recipe, weights) of each backbone, folder of runs, and limits."""

    data: Path
    weights: tuple[tuple[str, Path], ...]
    work: Path
    budget_hours: float
    jobs: int = 2
    settings: tuple[str, ...] = ()
    kinds: tuple[str, ...] = KINDS


@dataclass(frozen=True)
class Made:
    """The evidence through views, hours by member, members that the budget left out, (probe, finetuned) pairs."""

    evidence: Evidence
    hours: Mapping[str, float]
    left_out: tuple[str, ...]
    pairs: tuple[tuple[str, str], ...]


class Ledger:
    """Hours of all calls together, by what they were spent on, kept in the work folder."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.hours: dict[str, float] = read_json(path) if path.is_file() else {}

    def spend(self, name: str, hours: float) -> None:
        """Add hours; what is reused adds next to nothing."""
        self.hours[name] = self.hours.get(name, 0.0) + hours
        write_json(self.path, self.hours)

    @property
    def spent(self) -> float:
        """Hours so far."""
        return sum(self.hours.values())


def open_data(plan: BackbonePlan) -> TrainData:
    """Read the folder and split it in five; near-duplicates stay in one fold."""
    if current().metric != "accuracy":
        raise UserError(f"these results are judged by accuracy, got the metric {current().metric} of {current().slug}")
    table = read_competition(plan.data)
    groups = find_duplicates([table.image_dir / name for name in table.frame["image_id"]], progress=False)
    split = split_folds(table.frame, n_splits=N_SPLITS, seed=SEED, groups=groups)
    write_folds(plan.work / "folds.csv", split, replace=True)
    return TrainData(table, split)


def views_job(name: str, checkpoints: Sequence[Path], data: TrainData, out: Path) -> Predictions:
    """Predict a member's rows out of fold through the views, on one core."""
    with use_threads(1):
        return predict_through_views(name, checkpoints, data, out, views=VIEWS)


def make(plan: BackbonePlan, data: TrainData) -> Made:
    """Make the members that the budget allows, probes first, and predict each one's rows through the views."""
    ledger, runs = Ledger(plan.work / "hours.json"), plan.work / "runs"
    checkpoints: dict[str, list[Path]] = {}
    if "probe" in plan.kinds:
        probes = [PlannedProbe(probe_of(name), TrainOptions(weights=weights)) for name, weights in plan.weights]
        started = time.perf_counter()
        for result in train_recipes(probes, data, runs, jobs=plan.jobs):
            checkpoints[run_name(result.config)] = [fold.checkpoint for fold in result.folds]
        ledger.spend("probes", (time.perf_counter() - started) / 3600)
    left_out = []
    for name, weights in plan.weights if "finetuned" in plan.kinds else ():
        config = finetuning(name, plan)
        needed = expected_hours(config, data, plan, runs)
        if needed and ledger.spent + needed > plan.budget_hours:
            left_out.append(f"{run_name(config)} ({needed:.1f} h, {plan.budget_hours - ledger.spent:.1f} h left)")
            continue
        started = time.perf_counter()
        cache = plan.work / "pixels" if config.train_pixels else None
        planned = PlannedRecipe(config, TrainOptions(weights=weights, cache=cache))
        (result,) = train_recipes([planned], data, runs, jobs=plan.jobs)
        ledger.spend(run_name(config), (time.perf_counter() - started) / 3600)
        checkpoints[run_name(config)] = [fold.checkpoint for fold in result.folds]
    started = time.perf_counter()
    seen = [Job(name, views_job, (name, paths, data, plan.work / "views")) for name, paths in checkpoints.items()]
    found = run_jobs(seen, min(plan.jobs, len(seen)))
    ledger.spend("views", (time.perf_counter() - started) / 3600)
    evidence = make_evidence([found[name] for name in checkpoints], data.folds, list(map(short, checkpoints)))
    tuned = {run_name(probe_of(name)): run_name(finetuning(name, plan)) for name, _ in plan.weights}
    pairs = tuple((short(a), short(b)) for a, b in tuned.items() if {a, b} <= set(checkpoints))
    return Made(evidence, dict(ledger.hours), tuple(left_out), pairs)


def short(run: str) -> str:
    """Return a run's recipe: what its name has beside it is the same for all members."""
    return run.partition("--")[0]


def finetuning(name: str, plan: BackbonePlan) -> RunConfig:
    """The configuration with which a backbone is finetuned."""
    return recipe(name).with_settings(plan.settings)


def expected_hours(config: RunConfig, data: TrainData, plan: BackbonePlan, runs: Path) -> float:
    """Return hours that a member's folds will take, by a few timed steps; none for folds that are finished."""
    done = len(list((runs / run_name(config)).glob("fold*/run.json")))
    if done == N_SPLITS:
        return 0.0
    paths = data.paths(data.folds.frame)
    return fold_seconds(config, paths, N_SPLITS, threads=1) * (N_SPLITS - done) / plan.jobs / 3600


def ensembles(evidence: Evidence) -> dict[str, np.ndarray]:
    """The ensembles' probabilities (N, K): plain mean, nested weights, the same with nested temperatures.

    The last one is of the finetuned members alone, as `submit.py ensemble` weighs, tempers and packs them.
    """
    weighted, tempered = (blend_nested(evidence, METHOD, tempered=each) for each in (False, True))
    found = {MEAN: evidence.pred_probs.mean(axis=0), WEIGHTED: weighted, CALIBRATED: tempered}
    packed = packed_evidence(evidence)
    return found | ({PACKED: judge_methods(packed).blended} if len(packed.names) > 1 else {})


def packed_evidence(evidence: Evidence) -> Evidence:
    """The finetuned members alone."""
    return select_members_alone(evidence, [m for m, name in enumerate(evidence.names) if not name.startswith(PROBE)])


def say_temperatures(labels: np.ndarray, blends: Mapping[str, np.ndarray]) -> str:
    """What the classes' temperatures change: calibration error, log-loss, and labels that they move."""
    before, after = blends[WEIGHTED], blends[CALIBRATED]
    moved = int((before.argmax(axis=1) != after.argmax(axis=1)).sum())
    return (
        f"Temperatures of the classes, nested: ECE {ece(labels, before):.3f} -> {ece(labels, after):.3f}, log-loss "
        f"{logloss(labels, before):.3f} -> {logloss(labels, after):.3f}, {moved} of {len(labels):,} labels move."
    )


def comparisons(made: Made, blends: Mapping[str, np.ndarray]) -> list[tuple[str, Comparison]]:
    """Paired comparisons, corrected for their number: the ensemble against its best member, and each start's own."""
    evidence = made.evidence
    answers, _ = chosen_nested(evidence)
    scores = [accuracy(evidence.labels, p).accuracy for p in evidence.pred_probs]
    best = int(np.argmax(scores))
    every = dict(zip(evidence.names, evidence.pred_probs, strict=True)) | blends | {CHOSEN: answers}
    asked = [
        ("Are nested weights better than the plain mean?", MEAN, WEIGHTED),
        ("Do nested temperatures of the classes help it?", WEIGHTED, CALIBRATED),
        *(
            question
            for name, said in ((CALIBRATED, "Is the ensemble of all, with them,"), (PACKED, "Is the packed ensemble"))
            if name in blends
            for question in (
                (f"{said} better than the member that is best on the other folds?", CHOSEN, name),
                ("And than the member that is best on these very rows?", evidence.names[best], name),
            )
        ),
        *((f"Is {tuned} better finetuned than as a probe?", probe, tuned) for probe, tuned in made.pairs),
    ]
    found = [compare(evidence.labels, every[a], every[b], names=(a, b)) for _, a, b in asked]
    return [(question, c) for (question, _, _), c in zip(asked, correct(found), strict=True)]


def page(made: Made, command: str, picture: str, classes: Sequence[str]) -> str:
    """The page: picture, table with recalls, error correlation, comparisons in words, temperatures, what is missing."""
    evidence, labels = made.evidence, made.evidence.labels
    blends = ensembles(evidence)
    rows = dict(zip(evidence.names, evidence.pred_probs, strict=True)) | blends
    lines = [
        f"| member | accuracy ± s.e. | {' | '.join(f'recall of {each}' for each in classes)} |",
        f"|---|---|{'---|' * len(classes)}",
    ]
    for name, p in rows.items():
        recall = [
            np.mean(p[labels == k].argmax(axis=1) == k) if (labels == k).any() else np.nan for k in range(len(classes))
        ]
        lines.append(f"| {name} | {accuracy(labels, p)} | {' | '.join(f'{each:.2f}' for each in recall)} |")
    lines.append(f"| majority class | {majority(labels)} | {' | '.join('' for _ in classes)} |")
    judgement: Judgement = judge_methods(evidence)
    packed = blend_report(packed_evidence(evidence)) if PACKED in blends else None
    hours = "; ".join(f"{name} {spent:.2f}" for name, spent in made.hours.items())
    parts = [
        f"# Results on {len(labels):,} real photographs",
        headline(evidence, blends),
        f"![accuracy with 95 % intervals, and correlation of errors]({picture})",
        f"Five folds, seed {SEED}, near-duplicates together, every member through the views `{VIEWS}`, all out of "
        f"fold. Hours on two cores, each process on one: {hours}; {sum(made.hours.values()):.2f} in all, by one "
        "command, which goes on where it was broken off:",
        f"```\n{command}\n```",
        "\n".join(lines),
        "\n".join(f"- {question} {c.summary()}." for question, c in comparisons(made, blends)),
        f"Ways of weighing, each on folds that its weights were not found on:\n\n```\n{judgement}\n```",
        say_temperatures(labels, blends),
        f"The finetuned members alone, as the verb `ensemble` judges them:\n\n```\n{packed}\n```" if packed else "",
        f"Left out for the budget: {', '.join(made.left_out)}." if made.left_out else "",
    ]
    return "\n\n".join(filter(None, parts)) + "\n"


def headline(evidence: Evidence, blends: Mapping[str, np.ndarray]) -> str:
    """What was reached, and what bounds it: rows for which no member, or each one, is right."""
    right = evidence.pred_probs.argmax(axis=2) == evidence.labels
    best = max((accuracy(evidence.labels, p) for p in evidence.pred_probs), key=lambda score: score.value)
    weighted, calibrated = (accuracy(evidence.labels, blends[name]) for name in (WEIGHTED, CALIBRATED))
    packed = ""
    if PACKED in blends:
        packed = f" The finetuned ones alone, as they are packed, reach {accuracy(evidence.labels, blends[PACKED])}."
    return (
        f"Out of fold, the ensemble of {len(evidence.names)} members reaches {weighted}, and {calibrated} with "
        f"temperatures of the classes.{packed} Its best member reaches {best}. All members are right for "
        f"{right.all(axis=0).mean():.3f} of the photographs, none of them for {(~right).all(axis=0).mean():.3f}."
    )


def draw(made: Made, path: Path) -> None:
    """Draw accuracy with 95 % intervals beside the correlation of the members' errors."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    evidence = made.evidence
    rows = dict(zip(evidence.names, evidence.pred_probs, strict=True)) | ensembles(evidence)
    scores = [accuracy(evidence.labels, p) for p in rows.values()]
    figure, (left, right) = plt.subplots(1, 2, figsize=(13, 5.5), layout="constrained")
    at = np.arange(len(rows))[::-1]
    left.errorbar(
        [s.value for s in scores], at, xerr=[1.96 * s.standard_error for s in scores], fmt="o", color="#2b6cb0"
    )
    left.axvline(majority(evidence.labels).value, color="#999999", linestyle=":", label="majority class")
    left.set_yticks(at, list(rows))
    left.set_xlabel("accuracy out of fold, 95 % interval")
    left.legend(loc="upper right")
    correlation = error_correlation(evidence.labels, evidence.pred_probs)
    shown = right.imshow(correlation, vmin=0, vmax=1, cmap="viridis")
    for i, j in np.ndindex(*correlation.shape):
        right.text(
            j, i, f"{correlation[i, j]:.2f}", ha="center", va="center", color="w" if correlation[i, j] < 0.6 else "k"
        )
    right.set_xticks(range(len(evidence.names)), evidence.names, rotation=30, ha="right")
    right.set_yticks(range(len(evidence.names)), evidence.names)
    right.set_title("correlation of errors")
    figure.colorbar(shown, ax=right, fraction=0.046)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=110)
    plt.close(figure)


def main() -> None:
    """Read the arguments, make members and page, say where it is."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="competition folder")
    parser.add_argument("--weights", action="append", required=True, metavar="NAME=FILE", help="a backbone; repeat")
    parser.add_argument("--out", type=Path, required=True, help="page to write")
    parser.add_argument("--picture", type=Path, help="its picture (default: beside it)")
    parser.add_argument("--work", type=Path, default=Path("build/backbones"), help="folder of runs, reused")
    parser.add_argument("--budget-hours", type=float, default=HOURS, help="hours of all calls together")
    parser.add_argument("--jobs", type=int, default=2, help="processes at once, each on one core")
    parser.add_argument("--set", nargs="+", default=[], metavar="NAME=VALUE", help="change every finetuning")
    parser.add_argument("--only", nargs="+", default=list(KINDS), choices=KINDS, help="kinds of members")
    given = parser.parse_args()
    plan = BackbonePlan(
        given.data,
        parse_weights(given.weights),
        given.work,
        given.budget_hours,
        jobs=given.jobs,
        settings=tuple(given.set),
        kinds=tuple(given.only),
    )
    data = open_data(plan)
    made = make(plan, data)
    picture = given.picture or given.out.with_suffix(".png")
    draw(made, picture)
    weights = " ".join(f"--weights {each.partition('=')[0]}=FILE" for each in given.weights)
    changed = f" --set {' '.join(given.set)}" if given.set else ""
    changed += f" --budget-hours {given.budget_hours:g}" if given.budget_hours != HOURS else ""
    command = (
        f"PYTHONPATH=. python benchmarks/results_backbones.py --data DIR {weights} --out {given.out.name}{changed}"
    )
    named = Path(os.path.relpath(picture, given.out.parent)).as_posix()
    write_text(given.out, page(made, command, named, data.competition.classes))
    print(given.out)


if __name__ == "__main__":
    sys.exit(exit_code(main))
