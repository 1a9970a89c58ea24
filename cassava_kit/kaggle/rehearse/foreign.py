"""Rehearse a notebook that is not the kit's, offline and in one mount layout: `rehearse_notebook`."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

from cassava_kit.competition import Competition
from cassava_kit.errors import UserError
from cassava_kit.files import write_text
from cassava_kit.kaggle.rehearse.isolation import find_isolations
from cassava_kit.kaggle.rehearse.judge import judge_run
from cassava_kit.kaggle.rehearse.layout import Layout, as_uploaded, dataset_mounts
from cassava_kit.kaggle.rehearse.options import NotebookRun, Rehearsal, RehearsalOptions
from cassava_kit.kaggle.rehearse.rehearsal import mount_tests, run_watched


@dataclass(frozen=True)
class ForeignInput:
    """What a notebook gets: the competition's folder and facts, and a folder for each attached dataset OWNER/SLUG."""

    folder: Path
    competition: Competition
    datasets: Mapping[str, Path] = field(default_factory=dict)


def rehearse_notebook(
    notebook: Path, given: ForeignInput, out: Path, *, layout: Layout, options: RehearsalOptions | None = None
) -> Rehearsal:
    """Run a notebook or script without network, and check the `submission.csv` that it leaves in `out/working`.

    A failing notebook raises nothing: the verdict says it.

    Raises:
        FileNotFoundError: The folder is not a competition's.
        UserError: This machine cannot mount `/kaggle/input`, where such a notebook looks for its files.
    """
    options, out = options or RehearsalOptions(), out.resolve()
    mounting = next((each for each in find_isolations(options.isolation) if each.mounts), None)
    if mounting is None:
        raise UserError(
            "this machine cannot mount /kaggle/input (no namespaces), where the notebook looks for its files; run it "
            "on Linux where `unshare -r -n -m true` works"
        )
    options = replace(options, isolation=mounting.name)
    with tempfile.TemporaryDirectory(prefix="kit-") as folder:
        scratch = Path(folder)
        mounts = mount_tests(given.folder, given.competition, scratch, layout, options)
        for dataset, source in given.datasets.items():
            mounts += dataset_mounts(as_uploaded(source, scratch / "datasets" / dataset), dataset, layout)
        run = NotebookRun(_as_notebook(notebook, scratch), mounts, out, layout, options, given.competition)
        result, isolation, changed = run_watched(run, scratch)
        return judge_run(run, None, result, isolation, changed)


def _as_notebook(path: Path, scratch: Path) -> Path:
    """Return the notebook, of a script one that is made of it; its kernel is the one that there is, python3."""
    import jupytext
    import nbformat

    if path.suffix == ".py":
        notebook = jupytext.reads(path.read_text(encoding="utf-8"), fmt="py:percent")
    else:
        notebook = nbformat.read(path, as_version=4)
    notebook.metadata.pop("kernelspec", None)
    target = scratch / f"{path.stem}.ipynb"
    write_text(target, nbformat.writes(notebook, version=4))
    return target
