"""Pack, rehearse, examine, send and fetch a bundle: one function for each command of `submit.py`."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from cassava_kit.cli.output import Result, print_result
from cassava_kit.cli.parameters import check_parameters, rehearsal_parameters
from cassava_kit.errors import UserError
from cassava_kit.files import cache_dir
from cassava_kit.inference.ensemble import ENSEMBLE_FILE
from cassava_kit.kaggle.pack.bundle import Bundle, package, package_kernel, read_bundle, read_changes
from cassava_kit.kaggle.pack.config import INSTALLED_PROJECT, SUBMIT_COMMAND, project_root
from cassava_kit.kaggle.pack.kernels import SUBMISSION_KERNEL, Changes, Kernel, kernel_parameters
from cassava_kit.kaggle.pack.selection import Selection, from_dry_run, from_runs, keep_evidence
from cassava_kit.kaggle.rehearse.layout import LAYOUTS, Layout, competition_mounts
from cassava_kit.kaggle.rehearse.options import Rehearsal, RehearsalOptions
from cassava_kit.kaggle.rehearse.rehearsal import rehearse
from cassava_kit.kaggle.send.job import PushJob, adopt_owner
from cassava_kit.kaggle.send.ledger import LEDGER, adopt_old_ledger, record_submission
from cassava_kit.kaggle.send.push import Pushed, push
from cassava_kit.kaggle.send.remote import KaggleError
from cassava_kit.kaggle.send.retry import WaitPolicy
from cassava_kit.kaggle.send.submit import ask_before_last, submit, was_submitted

if TYPE_CHECKING:
    from rich.console import Console

ROOT = project_root()
# In the current folder; `make clean` keeps it.
OUTPUTS = Path("outputs")


@dataclass(frozen=True)
class PlannedRehearsal:
    """One of several rehearsals: the name of its folder, the mount layout, and its setting."""

    name: str
    layout: Layout
    setting: RehearsalOptions


def rehearse_all(
    bundle: Bundle, competition: Path, out: Path, planned: Sequence[PlannedRehearsal], console: Console
) -> Iterator[tuple[PlannedRehearsal, Rehearsal]]:
    """Rehearse one after the other into `out/<name>`, with a progress bar; print and yield each verdict."""
    for plan in planned:
        with cell_bar(console) as progress:
            setting = replace(plan.setting, progress=progress)
            done = rehearse(bundle, competition, out / plan.name, layout=plan.layout, options=setting)
        console.print(done.verdict, markup=False)
        yield plan, done


@contextmanager
def cell_bar(console: Console) -> Iterator[Callable[[int, int], None]]:
    """Show a bar over the notebook's cells; yields the rehearsal's callback (cells done, cells)."""
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

    columns = (TextColumn("notebook"), BarColumn(), MofNCompleteColumn())
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as bar:
        task = bar.add_task("cells")
        yield lambda done, cells: bar.update(task, completed=done, total=cells)


def select(
    source: Path | None, members: Sequence[Path], *, weights: Path | None, views: str | None, folds: Path | None
) -> Selection:
    """Return what to pack: an earlier dry run, folders of runs, or a weights file; by default the only one in build/.

    Raises:
        UserError: Nothing, or more than one thing, was trained.
    """
    if source is not None and (members or weights):
        raise UserError("--from names the folder of a dry run; give it, or --member and --ensemble-weights, not both")
    if members or weights:
        return from_runs(members, weights=weights, views=views or "flips", folds=folds)
    if folds is not None:
        raise UserError("--folds goes with --member or --ensemble-weights; an earlier dry run has its own")
    if source is not None:
        return from_dry_run(source, views)
    found = sorted(path.parent for path in Path("build").glob(f"*/{ENSEMBLE_FILE}"))
    if len(found) != 1:
        listed = f"found {', '.join(map(str, found))}" if found else "found none in build/"
        raise UserError(
            f"say what to pack, {listed}: --from DIR (an earlier `ensemble`), --member DIR or --ensemble-weights FILE; "
            "for a notebook that trains: --kernel train-folds"
        )
    return from_dry_run(found[0], views)


def pack(selection: Selection, out: Path, *, owner: str | None = None) -> int:
    """Pack a selection into both datasets and the notebook, and print the next command."""
    for note in selection.notes:
        print(f"note: {note}")
    bundle = package(out, ensemble=selection.ensemble, checkpoints=selection.checkpoints, root=ROOT, owner=owner)
    keep_evidence(selection, out)
    names = ", ".join(member.name for member in selection.ensemble.members)
    print(f"packed {out} (build {bundle.build_id[:12]}): {len(selection.checkpoints)} checkpoints of {names}")
    print(f"next: {SUBMIT_COMMAND} rehearse --bundle {out}")
    return 0


def pack_kernel(kernel: Kernel, out: Path, *, owner: str | None = None, changes: Changes | None = None) -> int:
    """Pack the code and one of the kernels that need no weights."""
    bundle = package_checked(kernel, out, owner=owner, changes=changes)
    print(f"packed {kernel.name} in {out} (build {bundle.build_id[:12]})")
    print(f"next: {SUBMIT_COMMAND} rehearse --kernel {kernel.name} --bundle {out}")
    return 0


def package_checked(kernel: Kernel, out: Path, *, owner: str | None = None, changes: Changes | None = None) -> Bundle:
    """Pack a kernel without weights after checking its parameters by value; default: those of the last packing.

    Raises:
        UserError: the kernel would fail on a value; nothing was written.
    """
    changes = read_changes(out, kernel) if changes is None else changes
    check_parameters(kernel, kernel_parameters(kernel, ROOT, changes), changes.attach)
    return package_kernel(out, kernel, root=ROOT, owner=owner, changes=changes)


def rehearse_kernel(
    kernel: Kernel, out: Path, data: Path | None, setting: RehearsalOptions, *, changes: Changes | None = None
) -> int:
    """Pack a kernel without weights and run one tiny epoch of it offline in both mount layouts.

    Outputs are in `out/rehearsal-*`; `data` defaults to the embedded sample. Return 1 if any run failed, else 0.
    """
    from cassava_kit.data.sample.make import own_sample

    bundle = package_checked(kernel, out, changes=changes)
    competition = data or own_sample(bundle.competition)
    values = kernel_parameters(kernel, ROOT, read_changes(out, kernel))
    options, failed = replace(setting, parameters=rehearsal_parameters(kernel, values)), 0
    for layout in LAYOUTS:
        folder = out / f"rehearsal-{kernel.name}-{layout}"
        done = rehearse(bundle, competition, folder, layout=layout, options=options)
        print(done.verdict)
        failed += not done.ok
    print(f"{failed} of {len(LAYOUTS)} rehearsals failed" if failed else f"all {len(LAYOUTS)} rehearsals passed")
    if not failed:
        print(f"next: {SUBMIT_COMMAND} push --kernel {kernel.name} --bundle {out}")
    return int(failed > 0)


def rehearse_bundle(bundle: Path, data: Path | None, setting: RehearsalOptions, *, image: str | None = None) -> int:
    """Run the bundle's notebook offline in both mount layouts; return 1 if any run failed, else 0.

    Each layout runs with one test image, then with all, or with `setting.hidden` ones; outputs are in the bundle's
    `rehearsal-*`. `data` defaults to the embedded sample. `image` is a Python version of Kaggle's image, or `newest`:
    the notebook then runs with that image's library versions, installed in `.venv-image` the first time (in the cache
    folder where the kit is installed).
    """
    from rich.console import Console

    from cassava_kit.data.sample.make import own_sample
    from cassava_kit.kaggle.rehearse.image import image_environment

    packed = read_bundle(bundle)
    competition = data or own_sample(packed.competition)
    competition_mounts(competition, "new", packed.competition)  # a folder that is not one, before the slow work
    name = "rehearsal"
    if image is not None:
        version = None if image == "newest" else image
        folder = cache_dir() / "image" if ROOT == INSTALLED_PROJECT else ROOT / ".venv-image"
        python = image_environment(ROOT, folder, version=version)
        setting, name = replace(setting, python=str(python)), f"rehearsal-image{python.parents[1].name}"
    many = "all" if setting.hidden is None else str(setting.hidden)
    planned = [
        PlannedRehearsal(
            f"{name}-{layout}-{count}", layout, replace(setting, images=1, hidden=None) if count == "1" else setting
        )
        for count in ("1", many)
        for layout in LAYOUTS
    ]
    console = Console(file=sys.stdout, highlight=False, soft_wrap=True)
    done = [rehearsal for _, rehearsal in rehearse_all(packed, competition, bundle, planned, console)]
    failed = sum(not rehearsal.ok for rehearsal in done)
    console.print(f"{failed} of {len(done)} rehearsals failed" if failed else f"all {len(done)} rehearsals passed")
    return int(failed > 0)


def examine(bundle: Path, kernel: Kernel = SUBMISSION_KERNEL, *, as_json: bool = False) -> int:
    """Print a line for each known cause of failure; return 1 if the bundle has one of them, else 0."""
    from cassava_kit.kaggle.doctor import doctor

    def examined() -> Result:
        checks = doctor(ROOT, bundle, kernel=kernel)
        ok = all(check.status != "failed" for check in checks)
        values = {"bundle": str(bundle), "kernel": kernel.name, "ok": ok, "checks": [asdict(each) for each in checks]}
        return Result("\n".join(map(str, checks)), values)

    return int(not print_result(examined, as_json=as_json).values["ok"])


def print_calls(bundle: Bundle, *, submit: bool = False) -> int:
    """Print every call that sending the bundle would make, without making any."""
    from cassava_kit.kaggle.send.plan import planned_calls

    print(*planned_calls(bundle, submit=submit), sep="\n")
    return 0


def send(bundle: Bundle, ledger: Path = LEDGER, *, submit: bool = False, again: bool = False, ask: bool = True) -> int:
    """Push the bundle; with `submit` submit it and record it in the ledger that `finals` reads.

    With `ask` the last submission of the day needs the user's consent at the terminal.
    """
    ledger = adopt_old_ledger(ledger)
    confirm = confirmed if ask else lambda question: True
    pushed = push_bundle(bundle, send=submit, again=again, confirm=confirm, output=output_folder(bundle))
    if pushed.submission is not None:
        record_submission(ledger, bundle, pushed.submission)
        print(f"recorded in {ledger}; next, with two or more of them: {SUBMIT_COMMAND} finals")
    return 0


def confirmed(question: str) -> bool:
    """Ask on the terminal; without one the answer is no."""
    return sys.stdin.isatty() and input(f"{question} [y/N] ").strip().lower() in ("y", "yes")


def output_folder(bundle: Bundle) -> Path:
    """Return the folder for what a kernel leaves on Kaggle: `outputs/<kernel>`, and the build with a submission.

    What an earlier version of the kit fetched into the bundle's folder is moved there.
    """
    kernel = bundle.kernel
    folder = OUTPUTS / (f"{kernel.name}-{bundle.build_id[:12]}" if kernel.weights else kernel.name)
    old = bundle.home / f"output-{kernel.name}"
    if not kernel.weights and old.is_dir() and not folder.exists():
        folder.parent.mkdir(parents=True, exist_ok=True)
        shutil.move(old, folder)
        print(f"moved {old} to {folder}, where outputs are kept")
    return folder


def finals(ledger: Path, folds: Path | None, candidates: Sequence[str], *, as_json: bool = False) -> int:
    """Propose two different finals among the submissions of the ledger, or among those that are given."""
    from cassava_kit.evidence.finals import parse_candidates, propose_finals, read_ledger

    def proposed() -> Result:
        if folds is not None:
            found, left_out = parse_candidates(candidates, folds), ()
        else:
            found, left_out = read_ledger(adopt_old_ledger(ledger))
        for reason in left_out:
            print(f"left out: {reason}")
        proposal = propose_finals(found)
        return Result(str(proposal), {**proposal.values(), "left_out": list(left_out)})

    print_result(proposed, as_json=as_json)
    return 0


def fetch(bundle: Bundle) -> int:
    """Fetch and check what the pushed kernel's latest run left."""
    from cassava_kit.kaggle.send.push import fetch_pushed

    print(f"fetched and checked: {fetch_pushed(bundle, output=output_folder(bundle))}")
    return 0


def push_bundle(
    bundle: Bundle,
    *,
    send: bool = False,
    again: bool = False,
    confirm: Callable[[str], bool] = lambda question: False,
    waits: WaitPolicy | None = None,
    output: Path | None = None,
) -> Pushed:
    """Examine the bundle, asking Kaggle too, then push it, and with `send` submit it; every step is printed.

    `again` runs a kernel once more that ran already: a training goes on from its own output. `confirm` answers whether
    the last submission of the day is made. `output` is the folder for what is fetched.

    Raises:
        KaggleError: The doctor finds a cause that would end the submission; nothing has been uploaded then.
    """
    from cassava_kit.kaggle.doctor import doctor
    from cassava_kit.kaggle.send.client import KaggleClient

    waits = waits or WaitPolicy()
    remote = KaggleClient(bundle.competition.slug, waits=waits)
    adopt_owner(bundle, remote.owner())
    job = PushJob(bundle, remote, waits, again=again, output=output, confirm=confirm)
    submits = send and not was_submitted(job)
    checks = doctor(ROOT, bundle.home, remote=remote, kernel=bundle.kernel, submits=submits)
    failed = [str(check) for check in checks if check.status == "failed"]
    print("\n".join(map(str, checks)))
    if failed:
        raise KaggleError(f"not pushed: {'; '.join(failed)}")
    if submits:
        job = ask_before_last(job)
    pushed = push(job)
    return replace(pushed, submission=submit(job, pushed)) if send else pushed
