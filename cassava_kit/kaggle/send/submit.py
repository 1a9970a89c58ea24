"""The submission of a pushed notebook: `submit` makes it once and waits for its score."""

from __future__ import annotations

from dataclasses import asdict, replace
from typing import Any

from cassava_kit.kaggle.send.budget import describe_build, read_budget, same_file_before
from cassava_kit.kaggle.send.job import PushJob
from cassava_kit.kaggle.send.push import Pushed
from cassava_kit.kaggle.send.remote import KaggleError, Submission


def was_submitted(job: PushJob) -> bool:
    """Return whether a version of this build was submitted; False with `job.again`, which submits it again."""
    if job.again:
        return False
    begins, known = f"{describe_build(job.bundle)},", job.known().get("submission") or {}
    return str(known.get("description", "")).startswith(begins) or any(
        each.description.startswith(begins) for each in job.remote.submissions()
    )


def ask_to_submit(job: PushJob) -> PushJob:
    """Print what is known before a submission, and ask once whether to make it.

    Raises:
        KaggleError: No submission is left today, or the user does not agree.
    """
    budget = read_budget(job)
    job.say(str(budget))
    left = budget.limits.left if budget.limits is not None else None
    if left == 0 and budget.limits is not None and budget.limits.by_total:
        raise KaggleError("no submission is left in all; push runs the notebook without submitting it")
    if left == 0:
        raise KaggleError("no submission is left today; submit again after midnight UTC (push runs the notebook now)")
    last = "This is the last submission of today. " if left == 1 else ""
    again = "It was scored before. " if budget.before else ""
    if not job.confirm(f"{last}{again}Submit build {job.bundle.build_id[:12]}?"):
        raise KaggleError("not submitted: nobody agreed at a terminal; --yes submits without asking")
    return replace(job, asked=True)


def submit(job: PushJob, pushed: Pushed) -> Submission:
    """Submit the pushed version once, and wait for its score.

    Raises:
        KaggleError: Kaggle refuses the submission or cannot score it, or the user does not agree.
    """
    description = f"{describe_build(job.bundle)}, version {pushed.version}"
    known = job.known().get("submission") or {}
    made = known if known.get("description") == description else _listed(job, description)
    if made:
        job.say(f"{pushed.kernel} version {pushed.version} was submitted already")
    else:
        job = job if job.asked else ask_to_submit(job)
        for line in same_file_before(job, pushed.output / "submission.csv"):
            job.say(line)
        ref = job.remote.submit(pushed.kernel, pushed.version, description)
        made = {"ref": ref, "description": description}
        job.remember(submission=made)
        job.say(f"submitted {pushed.kernel} version {pushed.version}")
    if made.get("status") == "complete":
        found = Submission(**made)
    else:
        found = wait_for_score(
            job, Submission(**made) if "status" in made else Submission(made["ref"], description, "", "", "")
        )
    job.remember(submission=asdict(found))
    job.say(f"public score {found.score or 'not shown'}")
    return found


def _listed(job: PushJob, description: str) -> dict[str, Any]:
    """Return the listed submission with that description as a dict; empty where Kaggle lists none."""
    return next((asdict(each) for each in job.remote.submissions() if each.description == description), {})


def _is_same(listed: Submission, made: Submission) -> bool:
    return listed.ref == made.ref or listed.description == made.description


def wait_for_score(job: PushJob, made: Submission) -> Submission:
    """Poll until the submission has a score.

    Raises:
        KaggleError: Kaggle could not score it (with its reason), or has not in time.
    """
    for _ in job.waits.polls(job.waits.score):
        listed = [each for each in job.remote.submissions() if _is_same(each, made)]
        # A reference is one submission's; the same description may have been submitted before.
        found = next((each for each in listed if each.ref == made.ref), next(iter(listed), None))
        if found is not None and found.status == "error":
            raise KaggleError(
                f"the submission was not scored: {found.error or 'Kaggle gives no reason'}; scoring runs the notebook "
                "on the hidden images: rehearse with many images and Kaggle's limits (--cpus 4 --memory 29), then "
                "package anew, or submit --again to run and submit this build once more"
            )
        if found is not None and found.status == "complete":
            return found
    raise KaggleError("the submission has no score yet; call again later: it is not submitted twice")
