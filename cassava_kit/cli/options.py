"""Options that several verbs take, e.g. `Data` and `FoldFile`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

Data = Annotated[Path, typer.Option(help="Folder of the competition's data.")]
FoldFile = Annotated[Path, typer.Option("--folds", help="Fold file, as made by the verb folds.")]
CleanAction = Annotated[
    str | None,
    typer.Option(
        metavar="drop|flip|weight|soften",
        help="What happens to rows that the report does not keep; default: drop. soften changes every doubtful label.",
    ),
]
Weights = Annotated[
    Path | None, typer.Option("--weights", help="Initial weights: .safetensors, or .pth with tensors alone.")
]
Jobs = Annotated[
    int | None,
    typer.Option(
        "--jobs", min=1, help="Folds trained at once on a CPU; default: one a core, fewer where memory is short."
    ),
]
Views = Annotated[
    str, typer.Option("--views", metavar="none|hflip|flips|d4|d4+zoom", help="Test-time views of each image.")
]
GpuFile = Annotated[
    Path | None,
    typer.Option("--gpu", metavar="FILE", help="gpu.json of gpu-check: measured speeds in place of the assumed ones."),
]
SettingChanges = Annotated[
    list[str] | None, typer.Option("--set", metavar="NAME=VALUE", help="Change one setting; may be repeated.")
]
