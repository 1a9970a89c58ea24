"""The whole submission: `python submit.py --ensemble` at home, then `--doctor`, `--push` and `--submit` to Kaggle."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Annotated

import typer

from cassava_kit.cli.app import run_app

if TYPE_CHECKING:
    from cassava_kit.kaggle.pack.kernels import Changes, Kernel
    from cassava_kit.kaggle.rehearse.rehearsal import Setting

app = typer.Typer(name="submit.py", add_completion=False, rich_markup_mode=None, pretty_exceptions_enable=False)

Strings = list[str] | None
HOME, PACK, REHEARSE, FINALS = "With --ensemble", "With --package", "With --ensemble or --rehearse", "With --finals"
KERNELS = Path("build/kernels")
LEDGER = Path("submissions.json")
SUBMISSION = "ensemble-submission"
# What each option is for: the actions that look at it.
GOES_WITH = {
    "bundle": "rehearse doctor push send fetch",
    "out": "ensemble package",
    "data": "ensemble rehearse",
    "owner": "ensemble package push",
    **dict.fromkeys(("weights", "recipes", "n_splits", "seed", "groups"), "ensemble"),
    "views": "ensemble package",
    **dict.fromkeys(("source", "member", "ensemble_weights"), "package"),
    "folds": "package finals",
    **dict.fromkeys(("cpus", "memory", "minutes", "hidden"), "ensemble rehearse"),
    **dict.fromkeys(("image", "image_python"), "rehearse"),
    "kernel": "package rehearse doctor push fetch",
    **dict.fromkeys(("param", "attach"), "package rehearse push"),
    "again": "push send",
    "yes": "send",
    "dry_run": "push send",
    "candidate": "finals",
    "ledger": "send finals",
}
# What chooses or weighs members.
OF_WEIGHTS = ("source", "member", "ensemble_weights", "folds", "views")
BUNDLE = "The bundle that --ensemble or --package packed, for all that comes after."


def flag(name: str, text: str) -> typer.models.OptionInfo:
    """A switch."""
    return typer.Option(f"--{name}", help=text)


@app.command()
def submit(
    context: typer.Context,
    ensemble: Annotated[bool, flag("ensemble", "Train, pack, rehearse offline, check: the dry run.")] = False,
    package: Annotated[bool, flag("package", "Pack what was trained already; trains nothing.")] = False,
    rehearse: Annotated[bool, flag("rehearse", "Run a bundle's notebook offline, in both layouts.")] = False,
    doctor: Annotated[bool, flag("doctor", "Examine a bundle for what ends other submissions.")] = False,
    push: Annotated[bool, flag("push", "Upload a bundle, run its notebook on Kaggle, check what it leaves.")] = False,
    send: Annotated[bool, flag("submit", "Push, then submit and wait for the score.")] = False,
    fetch: Annotated[bool, flag("fetch", "Fetch and check what the pushed notebook's latest run left.")] = False,
    finals: Annotated[bool, flag("finals", "Propose two different finals among the submissions made.")] = False,
    bundle: Annotated[Path | None, typer.Option(help=BUNDLE)] = None,
    out: Annotated[Path | None, typer.Option(help="Where to work or pack; default: in build/.")] = None,
    data: Annotated[Path | None, typer.Option(help="Competition folder; default: the embedded sample.")] = None,
    owner: Annotated[str | None, typer.Option(help="Your Kaggle name, for dataset-metadata.json's.")] = None,
    weights: Annotated[
        Strings,
        typer.Option(metavar="NAME=FILE", help=f"{HOME}: first weights of a recipe or timm model, which joins."),
    ] = None,
    recipes: Annotated[str, typer.Option(help=f"{HOME}: members by recipe, with commas; default: three.")] = "",
    n_splits: Annotated[int, typer.Option(min=2, help=f"{HOME}: number of folds.")] = 3,
    seed: Annotated[int, typer.Option(help=f"{HOME}: seed of the folds.")] = 42,
    groups: Annotated[
        bool, typer.Option("--groups/--no-groups", help=f"{HOME}: keep near-duplicate images in one fold.")
    ] = True,
    views: Annotated[
        str | None, typer.Option(help="With --ensemble or --package: none, flips (the default), d4 or d4+zoom.")
    ] = None,
    source: Annotated[Path | None, typer.Option("--from", help=f"{PACK}: the folder of an earlier --ensemble.")] = None,
    member: Annotated[
        list[Path] | None, typer.Option(help=f"{PACK}: a recipe's folder of runs, runs/RECIPE; may be repeated.")
    ] = None,
    ensemble_weights: Annotated[
        Path | None, typer.Option(help=f"{PACK}: weights file of the verb ensemble; names its members itself.")
    ] = None,
    folds: Annotated[
        Path | None, typer.Option(help="Fold file, with --member or --ensemble-weights (for the score) or --candidate.")
    ] = None,
    cpus: Annotated[int | None, typer.Option(min=1, help=f"{REHEARSE}: as many cores as Kaggle has (4).")] = None,
    memory: Annotated[float | None, typer.Option(min=0.1, help=f"{REHEARSE}: limit in GiB (Kaggle: 29).")] = None,
    minutes: Annotated[float | None, typer.Option(min=0.1, help=f"{REHEARSE}: limit (Kaggle: 540).")] = None,
    hidden: Annotated[
        int | None, typer.Option(min=1, help=f"{REHEARSE}: so many hidden images, repeated under new names.")
    ] = None,
    image: Annotated[bool, flag("image", "With --rehearse: the versions of Kaggle's image.")] = False,
    image_python: Annotated[
        str, typer.Option(help="With --image: the image with Python 3.13 or 3.12; default: the newest that is here.")
    ] = "newest",
    kernel: Annotated[
        str, typer.Option(help="Notebook to pack, examine, push or fetch: train-folds, pretrain-ssl, eda.")
    ] = SUBMISSION,
    param: Annotated[
        Strings,
        typer.Option(
            metavar="NAME=VALUE",
            help="With --kernel: value of a notebook's parameter; a --push without any keeps those of the last one.",
        ),
    ] = None,
    attach: Annotated[
        Strings,
        typer.Option(metavar="WHAT", help="With --kernel: a further dataset, OWNER/SLUG, or a kernel's output."),
    ] = None,
    again: Annotated[
        bool, flag("again", "With --push or --submit: run once more what ran; a training goes on from its output.")
    ] = False,
    yes: Annotated[bool, flag("yes", "With --submit: make the last submission of the day without asking.")] = False,
    dry_run: Annotated[bool, flag("dry-run", "With --push or --submit: print the calls, make none.")] = False,
    candidate: Annotated[
        Strings,
        typer.Option(metavar="NAME=OOF[,CSV]", help=f"{FINALS}: a submission's evidence, in place of the ledger's."),
    ] = None,
    ledger: Annotated[
        Path, typer.Option(help="Where --submit writes submissions down and --finals reads them.")
    ] = LEDGER,
    verbose: Annotated[bool, typer.Option("--verbose", help="Show the whole traceback of an error.")] = False,
) -> int:
    """Take an image-classification code competition from the data to a scored submission."""
    given = SimpleNamespace(**locals())
    action = _action(given)
    _refuse_strays(context, given)
    return action(given)


def _action(given: SimpleNamespace) -> Callable[[SimpleNamespace], int]:
    """The one thing that is asked for; ValueError for none or several."""
    actions = {
        "--ensemble": (given.ensemble, _ensemble),
        "--package": (given.package, _package),
        "--rehearse": (given.rehearse, _rehearse),
        "--doctor": (given.doctor, _doctor),
        "--push or --submit": (given.push or given.send, _send),
        "--fetch": (given.fetch, _fetch),
        "--finals": (given.finals, _finals),
    }
    chosen = [action for asked, action in actions.values() if asked]
    if len(chosen) != 1:
        raise ValueError(f"say one thing to do: {', '.join(actions)} (see --help)")
    return chosen[0]


def _refuse_strays(context: typer.Context, given: SimpleNamespace) -> None:
    """ValueError for an option on the command line that the chosen action would not look at."""
    flags = {name: f"--{name.replace('_', '-')}" for name in context.params} | {"source": "--from", "send": "--submit"}
    there = [name for name in context.params if context.get_parameter_source(name).name == "COMMANDLINE"]  # type: ignore[union-attr]
    for name in (name for name in there if name in GOES_WITH):
        if not any(getattr(given, action) for action in GOES_WITH[name].split()):
            allowed = " or ".join(flags[action] for action in GOES_WITH[name].split())
            hint = "; the dry run at home is --ensemble" if name == "dry_run" else ""
            raise ValueError(f"{flags[name]} goes with {allowed}{hint}")
    if given.kernel != SUBMISSION and given.send:
        raise ValueError(f"{given.kernel} makes no submission; --push runs it")
    for name in ("param", "attach"):
        if getattr(given, name) and given.kernel == SUBMISSION:
            raise ValueError(f"--{name} goes with --kernel train-folds, pretrain-ssl or eda")
    if given.owner and given.push and given.kernel == SUBMISSION:
        raise ValueError(
            "--owner goes with --ensemble or --package; a packed bundle takes the name from your credentials"
        )
    if given.kernel != SUBMISSION and (strays := [flags[name] for name in OF_WEIGHTS if name in there]):
        raise ValueError(f"{given.kernel} is packed without weights, {', '.join(strays)} is of no use to it")
    if given.finals and bool(given.folds) != bool(given.candidate):
        raise ValueError("--candidate needs --folds FILE, its split, and --folds goes with it; the ledger has its own")
    if given.finals and given.candidate and "ledger" in there:
        raise ValueError("--candidate stands in place of the ledger; give it or --ledger")
    if "image_python" in there and not given.image:
        raise ValueError("--image-python goes with --image")


def _ensemble(given: SimpleNamespace) -> int:
    from cassava_kit.cli.dry_run import DryRun, dry_run, parse_weights

    plan = DryRun(
        given.data,
        given.out,
        recipes=tuple(filter(None, given.recipes.split(","))),
        weights=parse_weights(given.weights or []),
        n_splits=given.n_splits,
        seed=given.seed,
        groups=given.groups,
        views=given.views or "flips",
        owner=given.owner,
        setting=_setting(given),
    )
    dry_run(plan)
    return 0


def _package(given: SimpleNamespace) -> int:
    from cassava_kit.cli import kaggle as road

    kernel, changes = _kernel(given)
    if not kernel.weights:
        return road.pack_kernel(kernel, given.out or KERNELS, owner=given.owner, changes=changes)
    selection = road.select(
        given.source, given.member or [], weights=given.ensemble_weights, views=given.views, folds=given.folds
    )
    return road.pack(selection, given.out or Path("build/bundle"), owner=given.owner)


def _rehearse(given: SimpleNamespace) -> int:
    from cassava_kit.cli import kaggle as road

    image = given.image_python if given.image else None
    kernel, changes = _kernel(given)
    if not kernel.weights:
        asked = changes if changes.parameters or changes.attach else None
        return road.rehearse_kernel(kernel, _bundle(given), given.data, _setting(given), changes=asked)
    return road.rehearse_bundle(_bundle(given), given.data, _setting(given), image=image)


def _doctor(given: SimpleNamespace) -> int:
    from cassava_kit.cli import kaggle as road

    return road.examine(_bundle(given), _kernel(given)[0])


def _send(given: SimpleNamespace) -> int:
    from cassava_kit.cli import kaggle as road
    from cassava_kit.kaggle.pack.bundle import read_bundle

    (kernel, changes), home = _kernel(given), _bundle(given)
    if kernel.weights:
        bundle = read_bundle(home, kernel)
    else:  # always packed, as the code may have changed; a second push must not forget the first one's parameters
        asked = changes if changes.parameters or changes.attach else None
        bundle = road.package_kernel(
            home, kernel, root=road.ROOT, owner=given.owner, changes=asked, check=road.check_parameters
        )
    if given.dry_run:
        return road.plan(bundle, submit=given.send)
    return road.send(bundle, given.ledger, submit=given.send, again=given.again, ask=not given.yes)


def _fetch(given: SimpleNamespace) -> int:
    from cassava_kit.cli import kaggle as road
    from cassava_kit.kaggle.pack.bundle import read_bundle

    return road.fetch(read_bundle(_bundle(given), _kernel(given)[0]))


def _finals(given: SimpleNamespace) -> int:
    from cassava_kit.cli import kaggle as road

    return road.finals(given.ledger, given.folds, given.candidate or [])


def _setting(given: SimpleNamespace) -> Setting:
    from cassava_kit.kaggle.rehearse.rehearsal import Setting

    return Setting(cpus=given.cpus, memory=given.memory, minutes=given.minutes, hidden=given.hidden)


def _kernel(given: SimpleNamespace) -> tuple[Kernel, Changes]:
    from cassava_kit.kaggle.pack.kernels import find_kernel, parse_changes

    return find_kernel(given.kernel), parse_changes(given.param or [], given.attach or [])


def _bundle(given: SimpleNamespace) -> Path:
    """The bundle's folder; kernels that need no weights are kept in one of their own."""
    if given.bundle is None and not _kernel(given)[0].weights:
        return KERNELS
    if given.bundle is None:
        raise ValueError("give --bundle DIR, as packed by --ensemble or --package, e.g. build/sample-v1/bundle")
    return Path(given.bundle)


if __name__ == "__main__":
    sys.exit(run_app(app, sys.argv[1:]))
