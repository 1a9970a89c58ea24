"""Examine and rehearse a notebook that the kit did not make: `examine_foreign`, for `doctor --notebook`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

from cassava_kit.cli.output import Result, print_result
from cassava_kit.competition import current
from cassava_kit.errors import UserError
from cassava_kit.files import find_folder
from cassava_kit.kaggle.pack.config import project_root
from cassava_kit.kaggle.rehearse.layout import LAYOUTS
from cassava_kit.kaggle.rehearse.options import Rehearsal, RehearsalOptions

# Rehearsals of a notebook leave their output here, below its name.
FOREIGN_RUNS = Path("build/notebooks")


@dataclass(frozen=True)
class ForeignRun:
    """What to rehearse a notebook with: the competition's folder (None: the sample), datasets, limits."""

    data: Path | None = None
    datasets: Sequence[str] = ()
    options: RehearsalOptions = field(default_factory=RehearsalOptions)


def examine_foreign(
    notebook: Path, *, metadata: Path | None = None, run: ForeignRun | None = None, as_json: bool = False
) -> int:
    """Print what would end a submission of the notebook; with `run` rehearse it in both layouts.

    Return 1 if something was found or a rehearsal failed, else 0.
    """
    from cassava_kit.kaggle.examine.notebook import examine_notebook

    def examined() -> Result:
        datasets = {} if run is None else _parse_datasets(run.datasets)
        if run is not None and run.data is not None:
            find_folder(run.data, "--data takes the competition's folder")
        found = examine_notebook(notebook, root=project_root(), metadata=metadata)
        rehearsed = _rehearse(notebook, run, datasets) if run is not None else []
        text = "\n".join([str(found), *(each.verdict for each in rehearsed)])
        values = found.values()
        values["ok"] = found.ok and all(each.ok for each in rehearsed)
        values["rehearsals"] = [
            {name: value for name, value in asdict(each).items() if name in ("ok", "verdict", "seconds", "memory")}
            for each in rehearsed
        ]
        return Result(text, values)

    return int(not print_result(examined, as_json=as_json).values["ok"])


def _rehearse(notebook: Path, run: ForeignRun, datasets: Mapping[str, Path]) -> list[Rehearsal]:
    """Run the notebook in both layouts, offline; outputs are in `build/notebooks/NAME-LAYOUT`."""
    from cassava_kit.data.sample.make import own_sample
    from cassava_kit.kaggle.rehearse.foreign import ForeignInput, rehearse_notebook

    competition = current()
    given = ForeignInput(run.data or own_sample(competition), competition, datasets)
    return [
        rehearse_notebook(
            notebook, given, FOREIGN_RUNS / f"{notebook.stem}-{layout}", layout=layout, options=run.options
        )
        for layout in LAYOUTS
    ]


def _parse_datasets(given: Sequence[str]) -> dict[str, Path]:
    """Read `OWNER/SLUG=DIR` arguments.

    Raises:
        UserError: One is of another form.
        FileNotFoundError: There is no such folder.
    """
    found = {}
    for text in given:
        dataset, _, folder = text.partition("=")
        if dataset.count("/") != 1 or not all(dataset.split("/")) or not folder:
            raise UserError(f"--dataset takes OWNER/SLUG=DIR, got {text!r}")
        found[dataset] = find_folder(folder, f"--dataset {text} takes the folder of the dataset's files")
    return found
