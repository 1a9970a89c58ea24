"""The submission of a pushed notebook: `submit` makes it once and waits for its score."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, replace
from typing import Any

from cassava_kit.kaggle.pack.bundle import Bundle
from cassava_kit.kaggle.send.job import PushJob
from cassava_kit.kaggle.send.push import Pushed
from cassava_kit.kaggle.send.remote import KaggleError, Submission


def was_submitted(job: PushJob) -> bool:
    """Return whether a version of this build was submitted; False with `job.again`, which submits it again."""
    if job.again:
        return False
    begins, known = f"{_description(job.bundle)},", job.known().get("submission") or {}
    return str(known.get("description", "")).startswith(begins) or any(
        each.description.startswith(begins) for each in job.remote.submissions()
    )


def ask_before_last(job: PushJob) -> PushJob:
    """Print how many submissions are left today, where Kaggle says so, and ask before the last one.

    Raises:
        KaggleError: No submission is left today, or the user keeps the last one.
    """
    left = job.remote.submissions_left()
    if left is not None:
        job.say(f"submissions left today: {left}")
    if left == 0:
        raise KaggleError("no submission is left today; submit again after midnight UTC (push runs the notebook now)")
    if left == 1 and not job.confirm("This is the last submission of today. Make it?"):
        raise KaggleError("not submitted: it would be the last submission of today; --yes makes it without asking")
    return replace(job, asked=True)


def submit(job: PushJob, pushed: Pushed) -> Submission:
    """Submit the pushed version once, and wait for its score.

    Raises:
        KaggleError: Kaggle refuses the submission or cannot score it, or the user keeps the last one of the day.
    """
    description = f"{_description(job.bundle)}, version {pushed.version}"
    known = job.known().get("submission") or {}
    made = known if known.get("description") == description else _listed(job, description)
    if made:
        job.say(f"{pushed.kernel} version {pushed.version} was submitted already")
    else:
        job = job if job.asked else ask_before_last(job)
        ref = job.remote.submit(pushed.kernel, pushed.version, description)
        made = {"ref": ref, "description": description}
        job.remember(submission=made)
        job.say(f"submitted {pushed.kernel} version {pushed.version}")
    if made.get("status") == "complete":
        found = Submission(**made)
    else:
        found = wait_for_score(job, lambda each: each.ref == made["ref"] or each.description == description)
    job.remember(submission=asdict(found))
    job.say(f"public score {found.score or 'not shown'}")
    return found


def _description(bundle: Bundle) -> str:
    """Return how the description of a build's submissions begins."""
    return f"Cassava Kit build {bundle.build_id[:12]}"


def _listed(job: PushJob, description: str) -> dict[str, Any]:
    """Return the listed submission with that description as a dict; empty where Kaggle lists none."""
    return next((asdict(each) for each in job.remote.submissions() if each.description == description), {})


def wait_for_score(job: PushJob, ours: Callable[[Submission], bool]) -> Submission:
    """Poll until the submission has a score.

    Raises:
        KaggleError: Kaggle could not score it (with its reason), or has not in time.
    """
    for _ in job.waits.polls(job.waits.score):
        found = next((each for each in job.remote.submissions() if ours(each)), None)
        if found is not None and found.status == "error":
            raise KaggleError(
                f"the submission was not scored: {found.error or 'Kaggle gives no reason'}; scoring runs the notebook "
                "on the hidden images: rehearse with many images and Kaggle's limits (--cpus 4 --memory 29), then "
                "package anew, or submit --again to run and submit this build once more"
            )
        if found is not None and found.status == "complete":
            return found
    raise KaggleError("the submission has no score yet; call again later: it is not submitted twice")
