"""Check a bundle for what usually ends a submission on Kaggle, before the upload: `doctor`."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from cassava_kit.kaggle import checks
from cassava_kit.kaggle.bundle_facts import BundleFacts
from cassava_kit.kaggle.checks import Check, Verdict
from cassava_kit.kaggle.pack.bundle import read_bundle
from cassava_kit.kaggle.pack.config import SUBMIT_COMMAND
from cassava_kit.kaggle.pack.kernels import SUBMISSION_KERNEL, Kernel
from cassava_kit.kaggle.send.advice import NO_QUOTA
from cassava_kit.kaggle.send.remote import FEWEST_HOURS, KaggleError, Remote

IMAGE_MEMORY = 29 * 2**30
NO_SUBMISSIONS = "today's submissions are used up; submit again after midnight UTC"


def not_rehearsed(facts: BundleFacts) -> Verdict:
    """Return what is said of a build that was not rehearsed."""
    return "unknown", f"this build was not rehearsed; run: {_rehearse_command(facts)}"


def _rehearse_command(facts: BundleFacts) -> str:
    kernel = facts.bundle.kernel
    which = "" if kernel.weights else f" --kernel {kernel.name}"
    return f"{SUBMIT_COMMAND} rehearse{which} --bundle {facts.bundle.home}"


def check_rehearsals(facts: BundleFacts) -> Verdict:
    """Check that the notebook, as it is now, was rehearsed and left a valid submission, or the files of its kernel."""
    if facts.reports and not facts.rehearsals:
        return "failed", f"the notebook was edited after its rehearsal; run: {_rehearse_command(facts)}"
    if not facts.rehearsals:
        return not_rehearsed(facts)
    if failed := [report for report in facts.rehearsals if not report["ok"]]:
        return "failed", failed[0]["verdict"]
    return "passed", f"{len(facts.rehearsals)} rehearsals of this notebook passed"


def check_memory(facts: BundleFacts) -> Verdict:
    """Check that the rehearsed run used at most 80 % of the image's memory."""
    if not facts.rehearsals:
        return not_rehearsed(facts)
    peak = max(report["memory"] for report in facts.rehearsals)
    if peak > 0.8 * IMAGE_MEMORY:
        return "failed", f"{peak / 2**30:.1f} GiB of {IMAGE_MEMORY / 2**30:.0f}; use fewer or smaller members at once"
    return "passed", f"peak {peak / 2**30:.1f} GiB of {IMAGE_MEMORY / 2**30:.0f}; threads, so no shared memory"


def check_reading(facts: BundleFacts) -> Verdict:
    """Check that reading the hidden images takes less than half of the allowed time."""
    measured = [run["plan"]["reading_seconds_per_image"] for run in facts.runs if run.get("plan")]
    if not measured:
        return not_rehearsed(facts)
    competition = facts.bundle.competition
    seconds = max(measured) * competition.hidden_images
    said = f"reading {competition.hidden_images:,} images takes about {seconds / 60:.0f} min at this machine's speed"
    return ("failed" if seconds > competition.gpu_hours * 3600 / 2 else "passed"), said


def check_rules(facts: BundleFacts) -> Verdict:
    """Check that the user has joined the competition and accepted its rules."""
    slug = facts.bundle.competition.slug
    advice = f"join it once and accept its rules: https://www.kaggle.com/competitions/{slug}/rules"
    accepted = facts.remote.rules_accepted() if facts.remote is not None else None
    if accepted is None:
        return "unknown", f"only Kaggle knows; {advice}"
    if not accepted:
        return "failed", f"you do not take part in {slug}; {advice}"
    return "passed", f"you take part in {slug}"


def check_quota(facts: BundleFacts) -> Verdict:
    """Check that GPU hours are left this week."""
    if not facts.bundle.kernel.gpu:
        return "passed", "this kernel needs no GPU"
    hours = facts.remote.gpu_hours_left() if facts.remote is not None else None
    if hours is None:
        return "unknown", (
            "only Kaggle knows; see kaggle.com/settings (30 h a week, two sessions at once, a verified phone number)"
        )
    if hours < FEWEST_HOURS:
        return "failed", f"{NO_QUOTA}; without a verified phone number there are no hours at all"
    return "passed", f"{hours:.1f} GPU hours left this week"


def check_submissions_left(facts: BundleFacts) -> Verdict:
    """Check that a submission is left today."""
    limits = facts.remote.limits() if facts.remote is not None else None
    if limits is None:
        return "unknown", "only Kaggle knows; a push asks"
    return ("failed", NO_SUBMISSIONS) if limits.left < 1 else ("passed", f"{limits.left} left until midnight UTC")


# Cause, its check, and whether only a submission can fail by it.
CHECKS: tuple[tuple[str, Callable[[BundleFacts], Verdict], bool], ...] = (
    ("offline pip", checks.check_pip, False),
    ("weights downloaded at build", checks.check_weight_files, True),
    ("wrong GPU", checks.check_gpu, False),
    ("not rehearsed, scoring error (rows, ids, dtype)", check_rehearsals, False),
    ("timeout", checks.check_time_limit, False),
    ("CSV not found", checks.check_first_file, True),
    ("mount path changed", checks.check_paths, False),
    ("dataset stale or still processing", checks.check_builds, False),
    ("library drift", checks.check_versions, False),
    ("notebook: right file, private, below 1 MB", checks.check_notebook, False),
    ("competition attached", checks.check_competition, False),
    ("metadata slugs", checks.check_slugs, False),
    ("licence", checks.check_licences, False),
    ("RAM and shared memory", check_memory, True),
    ("slow decode on few cores", check_reading, True),
    ("rules accepted", check_rules, False),
    ("GPU quota and phone", check_quota, False),
    ("submissions left today", check_submissions_left, True),
)


def doctor(
    root: str | Path,
    bundle_dir: str | Path,
    *,
    remote: Remote | None = None,
    kernel: Kernel = SUBMISSION_KERNEL,
    submits: bool = True,
) -> list[Check]:
    """Examine a bundle for every known cause; Kaggle is asked only where `remote` is given.

    Without `submits` the bundle is only to be pushed, and it does not matter how many submissions are left.

    Returns:
        A check for each cause, or the one check `bundle` where the bundle is damaged or not there.
    """
    try:
        facts = BundleFacts(Path(root), read_bundle(bundle_dir, kernel), remote)
    except (ValueError, FileNotFoundError) as error:
        return [Check("bundle", "failed", str(error))]
    checked = [(cause, check) for cause, check, submitted in CHECKS if kernel.weights or not submitted]
    checked = [(cause, check) for cause, check in checked if submits or check is not check_submissions_left]
    return [_run_check(cause, check, facts) for cause, check in checked]


def _run_check(cause: str, check: Callable[[BundleFacts], Verdict], facts: BundleFacts) -> Check:
    try:
        return Check(cause, *check(facts))
    except KaggleError as error:
        return Check(cause, "unknown", str(error))
    except (ValueError, FileNotFoundError) as error:
        return Check(cause, "failed", str(error))
    except (KeyError, TypeError, AttributeError) as error:
        return Check(cause, "failed", f"a file of the bundle lacks a field ({error}); package again")
