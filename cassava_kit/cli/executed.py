"""Execute the notebooks on the embedded sample and write their pages, for readers: `write_executed`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from cassava_kit.competition import CASSAVA, current
from cassava_kit.errors import UserError
from cassava_kit.inference.ensemble import ENSEMBLE_FILE
from cassava_kit.kaggle.pack.bundle import Bundle, package, package_kernel
from cassava_kit.kaggle.pack.kernels import KERNELS, Changes, Kernel, find_kernel
from cassava_kit.kaggle.pack.selection import from_dry_run
from cassava_kit.kaggle.rehearse.options import RehearsalOptions
from cassava_kit.kaggle.rehearse.rehearsal import rehearse

EXECUTED_PAGE = "executed.html"
# Parameters that make a notebook minutes long on a processor; those of a kernel that is not here stay.
SAMPLE_PARAMETERS: Mapping[str, Mapping[str, Any]] = {
    "train-folds": {"RECIPE": "small_resnet", "FOLDS": [0, 1, 2], "N_SPLITS": 3, "SET": ["epochs=8"], "WORKERS": 0},
    "pretrain-ssl": {"METHOD": "small_simclr", "SET": ["epochs=12"]},
}


def write_executed(root: Path, work: Path, names: Sequence[str] = ()) -> list[Path]:
    """Rehearse kernels of `root`, by default all, on the sample, and write `kernels/<name>/executed.html`.

    `work` keeps the executed notebooks and what they left. The submission's notebook takes the ensemble of the demo.

    Raises:
        UserError: the demo has not run, or a notebook failed.
    """
    from cassava_kit.data.sample.make import ensure_sample
    from cassava_kit.report.notebook.executed_page import write_notebook_page

    if current().slug != CASSAVA.slug:
        raise UserError("the pages are made of the embedded sample; call it in a folder without competition.json")
    sample, written = ensure_sample(None), []
    for kernel in [find_kernel(name) for name in names] if names else KERNELS:
        bundle = sample_bundle(kernel, root, work, sample)
        options = RehearsalOptions(parameters=SAMPLE_PARAMETERS.get(kernel.name, {}), per_class=None)
        done = rehearse(bundle, sample, work / kernel.name, options=options)
        if not done.ok:
            raise UserError(f"{kernel.name}: {done.verdict}; its log is in {work / kernel.name}")
        page = root / "kernels" / kernel.name / EXECUTED_PAGE
        note = "Executed offline on the kit's embedded sample of drawn leaves, on a processor, by make kernels-html."
        write_notebook_page(work / kernel.name / f"{kernel.name}.ipynb", page, note)
        print(f"{page}: {page.stat().st_size / 1e6:.1f} MB")
        written.append(page)
    return written


def sample_bundle(kernel: Kernel, root: Path, work: Path, sample: Path) -> Bundle:
    """Pack the kernel as it is now; that of the submission with the ensemble which the demo has trained.

    Raises:
        UserError: the demo has not run.
    """
    if not kernel.weights:
        return package_kernel(work / "packed", kernel, root=root, changes=Changes())
    demo = root / "build" / sample.name
    if not (demo / ENSEMBLE_FILE).is_file():
        raise UserError(f"no {demo / ENSEMBLE_FILE}, which {kernel.name} needs; run: make demo")
    chosen = from_dry_run(demo, None)
    return package(work / "submission", ensemble=chosen.ensemble, checkpoints=chosen.checkpoints, root=root)
