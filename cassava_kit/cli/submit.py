"""Commands of a submission: `python submit.py COMMAND`, or `cassava-kit submit COMMAND`. Entry point: `submit_app`."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from cassava_kit.cli.app import CommandTable, StageGroup, make_app
from cassava_kit.cli.options import Jobs, SettingChanges, Views
from cassava_kit.cli.output import AsJson
from cassava_kit.errors import UserError
from cassava_kit.files import LEDGER_FILE
from cassava_kit.kaggle.pack.config import SUBMIT_COMMAND
from cassava_kit.kaggle.pack.kernels import KERNEL_NAMES

if TYPE_CHECKING:
    from cassava_kit.kaggle.pack.kernels import Changes, Kernel

Strings = list[str] | None
KERNELS_DIR = Path("build/kernels")
SUBMISSION = "ensemble-submission"

BundleOption = Annotated[Path, typer.Option("--bundle", help="Folder packed by `ensemble` or `package`.")]
BundleOrNone = Annotated[
    Path | None,
    typer.Option("--bundle", help="Folder packed by `ensemble` or `package`; with --kernel by default build/kernels."),
]
SampleOrData = Annotated[Path | None, typer.Option("--data", help="Competition folder; default: the embedded sample.")]
Owner = Annotated[str | None, typer.Option("--owner", help="Your Kaggle name, instead of dataset-metadata.json's.")]
KernelName = Annotated[str, typer.Option("--kernel", metavar="NAME", help=f"Notebook: {', '.join(KERNEL_NAMES)}.")]
ParameterValues = Annotated[
    Strings,
    typer.Option(
        "--param",
        metavar="NAME=VALUE",
        help="With --kernel: value of a notebook's parameter; may be repeated. Default: the last packing's.",
    ),
]
Attached = Annotated[
    Strings,
    typer.Option(
        "--attach", metavar="WHAT", help="With --kernel: another dataset, OWNER/SLUG, or a notebook's output, its NAME."
    ),
]
Cpus = Annotated[int | None, typer.Option("--cpus", min=1, help="Limit of CPU cores (Kaggle: 4).")]
Memory = Annotated[float | None, typer.Option("--memory", min=0.1, help="Memory limit in GiB (Kaggle: 29).")]
Minutes = Annotated[float | None, typer.Option("--minutes", min=0.1, help="Time limit (Kaggle: 540).")]
Hidden = Annotated[
    int | None, typer.Option("--hidden", min=1, help="Number of hidden images: the test images under new names.")
]
Again = Annotated[
    bool, typer.Option("--again", help="Run once more what has run; a training goes on from its last output.")
]
OnlyPlan = Annotated[bool, typer.Option("--dry-run", help="Print the calls to Kaggle, make none.")]
Yes = Annotated[bool, typer.Option("--yes", help="Agree beforehand: nothing is asked.")]
Ledger = Annotated[
    Path, typer.Option("--ledger", dir_okay=False, help="File in which `submit` records submissions for `finals`.")
]


def dry_run_command(
    data: SampleOrData = None,
    out: Annotated[
        Path | None, typer.Option(file_okay=False, help="Folder to work in; default: build/<name of the data>.")
    ] = None,
    recipe: Annotated[
        Strings,
        typer.Option(
            metavar="NAME",
            help="Member, by recipe; repeat for each. Default: those of --weights, else three small ones.",
        ),
    ] = None,
    weights: Annotated[
        Strings,
        typer.Option(
            metavar="NAME=FILE",
            help="First weights of a recipe or timm model, which becomes a member; repeat for each.",
        ),
    ] = None,
    settings: SettingChanges = None,
    n_splits: Annotated[int, typer.Option(min=2, help="Number of folds.")] = 3,
    seed: Annotated[int, typer.Option(help="Seed of the folds.")] = 42,
    groups: Annotated[
        bool, typer.Option("--groups/--no-groups", help="Keep near-duplicate images in one fold.")
    ] = True,
    views: Views = "flips",
    owner: Owner = None,
    replace: Annotated[bool, typer.Option("--replace", help="Replace runs that differ, finished or not.")] = False,
    keep: Annotated[
        bool, typer.Option("--keep", help="Keep, or go on with, runs of another version of the code.")
    ] = False,
    cpus: Cpus = None,
    memory: Memory = None,
    minutes: Minutes = None,
    hidden: Hidden = None,
    jobs: Jobs = None,
    time_limit: Annotated[
        float | None,
        typer.Option(min=1, help="Seconds for all of it: members that fit are trained, a valid file is there early."),
    ] = None,
) -> int:
    """Train members, weigh them, pack them, run the notebook offline, check its submission: the dry run at home."""
    from cassava_kit.cli.dry_run import dry_run
    from cassava_kit.cli.dry_run_members import DryRun, parse_weights
    from cassava_kit.kaggle.rehearse.options import RehearsalOptions

    if replace and keep:
        raise UserError("give --replace or --keep, not both")
    plan = DryRun(
        data,
        out,
        recipes=tuple(recipe or ()),
        weights=parse_weights(weights or []),
        settings=tuple(settings or ()),
        n_splits=n_splits,
        seed=seed,
        groups=groups,
        views=views,
        owner=owner,
        existing="replace" if replace else "keep" if keep else "refuse",
        setting=RehearsalOptions(cpus=cpus, memory=memory, minutes=minutes, hidden=hidden),
        jobs=jobs,
        time_limit=time_limit,
    )
    dry_run(plan)
    return 0


def package_command(
    source: Annotated[Path | None, typer.Option("--from", help="Folder of an earlier `ensemble`.")] = None,
    member: Annotated[
        list[Path] | None, typer.Option(help="Member: a recipe's folder of runs, runs/RECIPE; repeat for each.")
    ] = None,
    ensemble_weights: Annotated[
        Path | None, typer.Option(help="Weights file of the verb ensemble; it names its members.")
    ] = None,
    folds: Annotated[Path | None, typer.Option(help="Fold file of the members, for the out-of-fold score.")] = None,
    views: Annotated[
        str | None, typer.Option(metavar="none|hflip|flips|d4|d4+zoom", help="Test-time views; default: flips.")
    ] = None,
    out: Annotated[
        Path | None, typer.Option(file_okay=False, help="Folder to pack into; default: build/bundle or build/kernels.")
    ] = None,
    owner: Owner = None,
    kernel: KernelName = SUBMISSION,
    param: ParameterValues = None,
    attach: Attached = None,
) -> int:
    """Pack what was trained already: code, weights and notebook, as Kaggle gets them."""
    from cassava_kit.cli.kaggle import pack, pack_kernel, select

    notebook, changes = _notebook(kernel, param, attach)
    if notebook.weights:
        selection = select(source, member or [], weights=ensemble_weights, views=views, folds=folds)
        return pack(selection, out or Path("build/bundle"), owner=owner)
    given = {
        "--from": source, "--member": member, "--ensemble-weights": ensemble_weights, "--folds": folds, "--views": views
    }  # fmt: skip
    _refuse(notebook, given)
    return pack_kernel(notebook, out or KERNELS_DIR, owner=owner, changes=changes)


def rehearse_command(
    bundle: BundleOrNone = None,
    data: SampleOrData = None,
    cpus: Cpus = None,
    memory: Memory = None,
    minutes: Minutes = None,
    hidden: Hidden = None,
    image: Annotated[bool, typer.Option("--image", help="With the library versions of Kaggle's image.")] = False,
    image_python: Annotated[
        str | None, typer.Option(help="With --image: its Python, 3.13 or 3.12; default: the newest that is here.")
    ] = None,
    kernel: KernelName = SUBMISSION,
    param: ParameterValues = None,
    attach: Attached = None,
) -> int:
    """Run a bundle's notebook offline, in both of Kaggle's mount layouts, within limits."""
    from cassava_kit.cli.kaggle import rehearse_bundle, rehearse_kernel
    from cassava_kit.kaggle.rehearse.options import RehearsalOptions

    if image_python is not None and not image:
        raise UserError("--image-python goes with --image")
    notebook, changes = _notebook(kernel, param, attach)
    setting = RehearsalOptions(cpus=cpus, memory=memory, minutes=minutes, hidden=hidden)
    if notebook.weights:
        chosen = (image_python or "newest") if image else None
        return rehearse_bundle(_home(bundle, notebook), data, setting, image=chosen)
    _refuse(notebook, {"--hidden": hidden, "--image": image})
    return rehearse_kernel(notebook, _home(bundle, notebook), data, setting, changes=changes)


def doctor_command(
    bundle: BundleOrNone = None,
    kernel: KernelName = SUBMISSION,
    notebook: Annotated[
        Path | None,
        typer.Option(help="Anybody's notebook (.ipynb) or script (.py) instead of a bundle; nothing of it is run."),
    ] = None,
    kernel_metadata: Annotated[
        Path | None,
        typer.Option(help="With --notebook: its kernel-metadata.json; default: the one beside it that names it."),
    ] = None,
    run: Annotated[
        bool, typer.Option("--run", help="With --notebook: rehearse it, offline and in both mount layouts.")
    ] = False,
    data: SampleOrData = None,
    dataset: Annotated[
        Strings,
        typer.Option(metavar="OWNER/SLUG=DIR", help="With --run: folder of an attached dataset; repeat for each."),
    ] = None,
    cpus: Cpus = None,
    memory: Memory = None,
    minutes: Minutes = None,
    hidden: Hidden = None,
    as_json: AsJson = False,
) -> int:
    """Examine a bundle, or any notebook, for each known cause of a failed submission."""
    from cassava_kit.cli.kaggle import examine

    limits = {"--cpus": cpus, "--memory": memory, "--minutes": minutes, "--hidden": hidden}
    of_run = {"--data": data, "--dataset": dataset, **limits}
    if notebook is None:
        if strays := [
            name for name, given in {"--kernel-metadata": kernel_metadata, "--run": run, **of_run}.items() if given
        ]:
            raise UserError(f"{', '.join(strays)} goes with --notebook FILE; a bundle is rehearsed by `rehearse`")
        kit_kernel, _ = _notebook(kernel)
        return examine(_home(bundle, kit_kernel), kit_kernel, as_json=as_json)
    from cassava_kit.cli.foreign import ForeignRun, examine_foreign
    from cassava_kit.kaggle.rehearse.options import RehearsalOptions

    if bundle is not None or kernel != SUBMISSION:
        raise UserError("--notebook names a file of anybody's; give it, or --bundle and --kernel, not both")
    if not run and (strays := [name for name, given in of_run.items() if given]):
        raise UserError(f"{', '.join(strays)} goes with --run, which rehearses the notebook")
    options = RehearsalOptions(cpus=cpus, memory=memory, minutes=minutes, hidden=hidden)
    chosen = ForeignRun(data, dataset or (), options) if run else None
    return examine_foreign(notebook, metadata=kernel_metadata, run=chosen, as_json=as_json)


def push_command(
    bundle: BundleOrNone = None,
    kernel: KernelName = SUBMISSION,
    param: ParameterValues = None,
    attach: Attached = None,
    owner: Owner = None,
    again: Again = False,
    yes: Yes = False,
    dry_run: OnlyPlan = False,
) -> int:
    """Upload a bundle, run its notebook on Kaggle, and fetch and check what it leaves."""
    from cassava_kit.cli.kaggle import package_checked, print_calls, send
    from cassava_kit.kaggle.pack.bundle import read_bundle

    notebook, changes = _notebook(kernel, param, attach)
    home = _home(bundle, notebook)
    if notebook.weights and owner is not None:
        raise UserError("--owner goes with `package`; a packed bundle takes the name from your credentials")
    if notebook.weights:
        packed = read_bundle(home, notebook)
    else:  # packed again, as the code may have changed
        packed = package_checked(notebook, home, owner=owner, changes=changes)
    return print_calls(packed) if dry_run else send(packed, again=again, ask=not yes)


def submit_command(
    bundle: BundleOption,
    again: Again = False,
    yes: Yes = False,
    dry_run: OnlyPlan = False,
    ledger: Ledger = Path(LEDGER_FILE),
) -> int:
    """Push a bundle, submit what its notebook leaves, and wait for the score."""
    from cassava_kit.cli.kaggle import print_calls, send
    from cassava_kit.kaggle.pack.bundle import read_bundle

    packed = read_bundle(bundle)
    if dry_run:
        return print_calls(packed, submit=True)
    return send(packed, ledger, submit=True, again=again, ask=not yes)


def fetch_command(bundle: BundleOrNone = None, kernel: KernelName = SUBMISSION) -> int:
    """Fetch and check what the latest run of a pushed notebook left."""
    from cassava_kit.cli.kaggle import fetch
    from cassava_kit.kaggle.pack.bundle import read_bundle

    notebook, _ = _notebook(kernel)
    return fetch(read_bundle(_home(bundle, notebook), notebook))


def history_command(
    ledger: Ledger = Path(LEDGER_FILE),
    offline: Annotated[bool, typer.Option("--offline", help="From the ledger alone; Kaggle is not asked.")] = False,
    as_json: AsJson = False,
) -> int:
    """Show every submission with its build, out-of-fold, public and private score, and how they correlate."""
    from cassava_kit.cli.submissions import history

    return history(ledger, offline=offline, as_json=as_json)


def finals_command(
    ledger: Annotated[
        Path | None, typer.Option(help=f"Submissions recorded by `submit`; default: {LEDGER_FILE}.")
    ] = None,
    candidate: Annotated[
        Strings,
        typer.Option(
            metavar="NAME=OOF[,CSV]", help="Candidate instead of the ledger's; repeat for each (with --folds)."
        ),
    ] = None,
    folds: Annotated[Path | None, typer.Option(help="Fold file of the candidates.")] = None,
    as_json: AsJson = False,
) -> int:
    """Propose the two submissions to choose, among those recorded or among candidates given."""
    from cassava_kit.cli.submissions import finals

    if bool(folds) != bool(candidate):
        raise UserError("--candidate needs --folds FILE, its split, and --folds goes with it; the ledger has its own")
    if candidate and ledger:
        raise UserError("--candidate stands in place of the ledger; give it or --ledger")
    return finals(ledger or Path(LEDGER_FILE), folds, candidate or [], as_json=as_json)


def _notebook(name: str, param: Strings = None, attach: Strings = None) -> tuple[Kernel, Changes | None]:
    """Return the notebook of that name and what `--param` and `--attach` change; None where neither is given."""
    from cassava_kit.kaggle.pack.kernels import find_kernel, parse_changes

    notebook, changes = find_kernel(name), parse_changes(param or [], attach or [])
    for option, given in (("--param", param), ("--attach", attach)):
        if given and notebook.weights:
            others = ", ".join(name for name in KERNEL_NAMES if name != notebook.name)
            raise UserError(f"{option} goes with --kernel {others}")
    return notebook, changes if param or attach else None


def _home(bundle: Path | None, notebook: Kernel) -> Path:
    """Return the bundle's folder; notebooks without weights have a default one."""
    if bundle is None and notebook.weights:
        raise UserError("give --bundle DIR, as packed by `ensemble` or `package`, e.g. build/sample-v1/bundle")
    return bundle or KERNELS_DIR


def _refuse(notebook: Kernel, given: dict[str, Any]) -> None:
    """Refuse options that do nothing for a notebook without weights."""
    if strays := [option for option, value in given.items() if value]:
        raise UserError(f"{notebook.name} has no weights and no submission: leave out {', '.join(strays)}")


# Flags of the former command line, and the commands they became.
FLAGS = {
    f"--{name}": name for name in ("ensemble", "package", "rehearse", "doctor", "push", "submit", "fetch", "finals")
}


class SubmitGroup(StageGroup):
    """The commands, and `--ensemble` of before, which still means `ensemble`."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Parse the arguments in their present spelling."""
        return super().parse_args(ctx, present_spelling(args))


def present_spelling(arguments: Sequence[str]) -> list[str]:
    """Return the arguments with the flag `--ensemble` as a command.

    Raises:
        UserError: Another flag of the former command line is given; the message has the new spelling.
    """
    asked = [word for word in arguments if word in FLAGS]
    if not asked or not arguments[0].startswith("-"):
        return list(arguments)
    if len(set(asked)) > 1:
        raise UserError(f"give one command, got {' and '.join(asked)}; see --help")
    command = [FLAGS[asked[0]], *(word for word in arguments if word not in FLAGS)]
    if asked[0] != "--ensemble":
        raise UserError(f"{asked[0]} is now a command: {SUBMIT_COMMAND} {shlex.join(command)}")
    return command


COMMANDS: CommandTable = {
    "At home": {
        "ensemble": (dry_run_command, "--data DIR --weights mobilenetv2_100=FILE"),
        "package": (package_command, "--ensemble-weights runs/ensemble-weights.json --out build/mine"),
        "rehearse": (rehearse_command, "--bundle build/mine --data DIR --cpus 4 --memory 29 --hidden 2000"),
        "doctor": (doctor_command, "--bundle build/mine"),
    },
    "On Kaggle": {
        "push": (push_command, "--kernel train-folds --param RECIPE=resnet50"),
        "submit": (submit_command, "--bundle build/mine"),
        "fetch": (fetch_command, "--kernel train-folds"),
        "history": (history_command, "--offline"),
        "finals": (finals_command, ""),
    },
}

submit_app = make_app(
    SUBMIT_COMMAND,
    COMMANDS,
    text="Pack what was trained, rehearse it offline, send it to Kaggle and submit it.",
    group=SubmitGroup,
)
