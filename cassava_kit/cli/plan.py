"""The verb plan, a week's GPU hours as a list of pushes: `plan_command`."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from cassava_kit.cli.options import GpuFile
from cassava_kit.cli.output import AsJson, Result, print_result
from cassava_kit.errors import UserError
from cassava_kit.kaggle.pack.config import SUBMIT_COMMAND

if TYPE_CHECKING:
    from cassava_kit.training.plan import WeekPlan

RULE = (
    "Rule: one recipe of each family, those with the fewest hours first; no family gives a second before every family "
    "that fits has given one. Members of different families err on different images."
)


def plan_command(
    hours: Annotated[float, typer.Option(help="GPU hours to spend, with two T4s (Kaggle: 30 a week).")] = 30.0,
    recipe: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME", help="A recipe to choose from; repeat for each. Default: one or two a family."),
    ] = None,
    runs: Annotated[
        Path | None,
        typer.Option(help="Folder of runs: finished folds are left out, speeds measured on a T4 correct the hours."),
    ] = None,
    n_images: Annotated[int | None, typer.Option(min=2, help="Training images; default: the competition's.")] = None,
    n_splits: Annotated[int, typer.Option(min=2, help="Folds.")] = 5,
    gpu: GpuFile = None,
    as_json: AsJson = False,
) -> None:
    """Say which recipes and folds to train in a week's GPU hours, so that they buy the most different members."""
    from cassava_kit.cli.training import speed_of_t4
    from cassava_kit.competition import current
    from cassava_kit.training.plan import plan_week

    if runs is not None and not runs.is_dir():
        raise UserError(f"--runs must be a folder of runs, got {runs}; leave it out where there is none yet")
    images = n_images or current().training_images
    speed, source = speed_of_t4(gpu)

    def planned() -> Result:
        plan = plan_week(hours, recipe or [], images, n_splits, runs=runs, gpu=speed)
        values = {**asdict(plan), "hours": round(plan.hours, 2), "typical_ratio": plan.speeds.typical, "rule": RULE}
        return Result(show_plan(plan, hours, n_splits, source), {**values, "speed": source})

    print_result(planned, as_json=as_json)


def show_plan(plan: WeekPlan, hours: float, n_splits: int, source: str) -> str:
    """Return the plan as lines: the rule, a session a line with its hours and their sum, then the commands."""
    if not plan.pushes:
        return f"{hours:g} h are too few for one fold of any of these recipes"
    width = max(len(push.name) for push in plan.pushes)
    family = max(len(push.family) for push in plan.pushes)
    measured = len(plan.speeds.by_model)
    basis = f"corrected by runs of {measured} models (x{plan.speeds.typical:.2f})" if measured else "no runs yet"
    lines = [RULE, f"Hours of two T4s, {source}, from operations and the loader's time; {basis}.", ""]
    spent = 0.0
    for number, push in enumerate(plan.pushes, 1):
        spent += push.hours
        rest = "" if push.whole else "  (to be gone on with)"
        folds = ",".join(map(str, push.folds))
        lines.append(
            f"{number:2}. {push.name:{width}}  {push.family:{family}}  folds {folds:{2 * n_splits - 1}} "
            f"{push.hours:5.1f} h, {spent:5.1f} in all; the {push.limit} decides{rest}"
        )
    if plan.left_out:
        lines.append(f"Not within {hours:g} h: {', '.join(plan.left_out)}")
    lines += ["", "Each needs its weights attached (cassava-kit weights NAME --owner YOU makes the dataset):"]
    return "\n".join([*lines, *(f"  {push_line(push.name, push.folds, n_splits)}" for push in plan.pushes)])


def push_line(name: str, folds: tuple[int, ...], n_splits: int) -> str:
    """Return the command that trains these folds in one session."""
    from cassava_kit.training.hub import DATASET

    listed = json.dumps(list(folds), separators=(",", ":"))
    given = f"--param RECIPE={name} --param FOLDS={listed} --param N_SPLITS={n_splits}"
    weights = f"--param WEIGHTS={name}.safetensors --attach YOU/{DATASET}"
    return f"{SUBMIT_COMMAND} push --kernel train-folds {given} {weights}"
