"""Pack, rehearse, examine, send and fetch a bundle: one function for each command of `submit.py`."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from cassava_kit.cli.output import Result, print_result
from cassava_kit.cli.parameters import check_parameters, rehearsal_parameters
from cassava_kit.data.progress import show_progress
from cassava_kit.errors import UserError
from cassava_kit.files import cache_dir
from cassava_kit.inference.ensemble import ENSEMBLE_FILE
from cassava_kit.kaggle.pack.bundle import (
    Bundle,
    check_bundle_folder,
    package,
    package_kernel,
    read_bundle,
    read_changes,
)
from cassava_kit.kaggle.pack.config import INSTALLED_PROJECT, SUBMIT_COMMAND, project_root
from cassava_kit.kaggle.pack.kernels import SUBMISSION_KERNEL, Changes, Kernel, kernel_parameters
from cassava_kit.kaggle.pack.selection import Selection, from_dry_run, from_runs, keep_evidence
from cassava_kit.kaggle.rehearse.layout import LAYOUTS, Layout, competition_mounts
from cassava_kit.kaggle.rehearse.options import Rehearsal, RehearsalOptions
from cassava_kit.kaggle.rehearse.rehearsal import rehearse
from cassava_kit.kaggle.send.history import compare_public
from cassava_kit.kaggle.send.job import PushJob, adopt_owner, one_push
from cassava_kit.kaggle.send.ledger import LEDGER, adopt_old_ledger, record_submission
from cassava_kit.kaggle.send.push import Pushed, push
from cassava_kit.kaggle.send.remote import KaggleError
from cassava_kit.kaggle.send.retry import WaitPolicy
from cassava_kit.kaggle.send.submit import ask_to_submit, submit, was_submitted

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
    bundle: Bundle, competition: Path, out: Path, planned: Sequence[PlannedRehearsal], *, at_once: int = 1
) -> Iterator[tuple[PlannedRehearsal, Rehearsal]]:
    """Rehearse into `out/<name>`, one after the other or several at once; yield each."""
    from cassava_kit.training.workers import Job, run_jobs

    jobs = [Job(f"notebook ({plan.name})", rehearse_planned, (bundle, competition, out, plan)) for plan in planned]
    together = run_jobs(jobs, at_once) if at_once > 1 else {}
    for job, plan in zip(jobs, planned, strict=True):
        yield plan, together[job.name] if together else run_jobs([job], 1)[job.name]


def rehearse_planned(bundle: Bundle, competition: Path, out: Path, plan: PlannedRehearsal) -> Rehearsal:
    """Run one rehearsal, its cells counted on the display at hand."""
    with show_progress() as display:
        label, counted = f"notebook ({plan.name})", 0

        def count(done: int, cells: int) -> None:
            nonlocal counted
            if not counted:
                display.add(label, cells)
            display.advance(label, done - counted)
            counted = done

        try:
            setting = replace(plan.setting, progress=count)
            return rehearse(bundle, competition, out / plan.name, layout=plan.layout, options=setting)
        finally:
            display.remove(label)


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
    failed = 0
    for _, rehearsal in rehearse_all(packed, competition, bundle, planned):
        print(rehearsal.verdict)
        failed += not rehearsal.ok
    print(f"{failed} of {len(planned)} rehearsals failed" if failed else f"all {len(planned)} rehearsals passed")
    return int(failed > 0)


def examine(bundle: Path, kernel: Kernel = SUBMISSION_KERNEL, *, as_json: bool = False) -> int:
    """Print a line for each known cause of failure; return 1 if the bundle has one of them, else 0."""
    from cassava_kit.kaggle.doctor import doctor

    def examined() -> Result:
        check_bundle_folder(bundle)
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
    """Push the bundle; with `submit` submit it, record it in the ledger, and show its score beside the expected one.

    With `ask` a submission needs the user's consent at the terminal.
    """
    ledger = adopt_old_ledger(ledger)
    confirm = confirmed if ask else lambda question: True
    out = output_folder(bundle)
    pushed = push_bundle(bundle, send=submit, again=again, confirm=confirm, output=out, ledger=ledger)
    if pushed.submission is not None:
        entry = record_submission(ledger, bundle, pushed.submission, file=pushed.output / "submission.csv")
        print(compare_public(ledger, entry))
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
    ledger: Path | None = None,
) -> Pushed:
    """Examine the bundle, asking Kaggle too, then push it, and with `send` submit it; every step is printed.

    `again` runs a kernel once more that ran already: a training goes on from its own output. `confirm` answers whether
    the submission is made. `output` is the folder for what is fetched, `ledger` where earlier submissions are recorded.

    Raises:
        KaggleError: The doctor finds a cause that would end the submission, or the user does not agree to it; nothing
            has been uploaded then.
        UserError: Another process pushes this bundle.
    """
    from cassava_kit.kaggle.doctor import doctor
    from cassava_kit.kaggle.send.client import KaggleClient

    waits = waits or WaitPolicy()
    remote = KaggleClient(bundle.competition.slug, waits=waits)
    with one_push(bundle):
        adopt_owner(bundle, remote.owner())
        job = PushJob(bundle, remote, waits, again=again, output=output, confirm=confirm, ledger=ledger)
        submits = send and not was_submitted(job)
        checks = doctor(ROOT, bundle.home, remote=remote, kernel=bundle.kernel, submits=submits)
        failed = [str(check) for check in checks if check.status == "failed"]
        print("\n".join(map(str, checks)))
        if failed:
            raise KaggleError(f"not pushed: {'; '.join(failed)}")
        if submits:
            job = ask_to_submit(job)
        pushed = push(job)
        return replace(pushed, submission=submit(job, pushed)) if send else pushed
