"""Push a bundle and fetch what its notebook leaves: `push`, `fetch_pushed`; no step is done twice."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from cassava_kit.files import read_json
from cassava_kit.kaggle.pack.bundle import Bundle
from cassava_kit.kaggle.pack.kernels import KERNEL_METADATA
from cassava_kit.kaggle.send.datasets import send_dataset
from cassava_kit.kaggle.send.job import PushJob, adopt_owner
from cassava_kit.kaggle.send.notebook import pushed_before, send_kernel, wait_for_kernel
from cassava_kit.kaggle.send.output import fetch_output
from cassava_kit.kaggle.send.remote import Submission
from cassava_kit.kaggle.send.retry import WaitPolicy


@dataclass(frozen=True)
class Pushed:
    """A kernel version that ran to its end, the folder of its checked output, and its submission if one was made."""

    kernel: str
    version: int
    output: Path
    submission: Submission | None = None


def push(job: PushJob) -> Pushed:
    """Upload the datasets, run the kernel and fetch its output; each step is checked."""
    bundle, remote = job.bundle, job.remote
    adopt_owner(bundle, remote.owner())
    for kind, folder in bundle.datasets:
        send_dataset(job, folder, kind)
    version = send_kernel(job)
    kernel = read_json(bundle.kernel_dir / KERNEL_METADATA)["id"]
    wait_for_kernel(job, kernel, version)
    output = fetch_output(remote, bundle, kernel, version=version, out=job.output)
    what = "its submission.csv" if bundle.kernel.weights else "its output"
    job.say(f"{kernel} version {version} is complete; {what} is in {output}")
    return Pushed(kernel, version, output)


def fetch_pushed(bundle: Bundle, *, waits: WaitPolicy | None = None, output: Path | None = None) -> Path:
    """Fetch and check the output of the version that was pushed last; return the folder. Nothing is pushed.

    Without a journal it is the output of the latest version.
    """
    from cassava_kit.kaggle.send.client import KaggleClient

    waits = waits or WaitPolicy()
    remote = KaggleClient(bundle.competition.slug, waits=waits)
    adopt_owner(bundle, remote.owner())
    kernel = read_json(bundle.kernel_dir / KERNEL_METADATA)["id"]
    job = PushJob(bundle, remote, waits)
    version = pushed_before(job).get("version")
    wait_for_kernel(job, kernel, version)
    return fetch_output(remote, bundle, kernel, version=version, out=output)
