"""Image-classification code competitions, from the data to a checked submission: the public API, see `docs/api.md`.

A name comes from its room when it is first used, so that `import cassava_kit` loads no library.
"""

from __future__ import annotations

import os
from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from cassava_kit.data.duplicates import find_duplicates as find_duplicates
    from cassava_kit.data.stratify import make_folds as make_folds
    from cassava_kit.errors import UserError as UserError
    from cassava_kit.evidence.blend import weigh as weigh
    from cassava_kit.evidence.compare import compare as compare
    from cassava_kit.evidence.compare import correct as correct
    from cassava_kit.evidence.metrics import score as score
    from cassava_kit.evidence.noise.clean import find_label_errors as find_label_errors
    from cassava_kit.evidence.predictions import write_oof as write_oof
    from cassava_kit.inference.folder import predict_folder as predict_folder
    from cassava_kit.inference.submission import check_submission as check_submission
    from cassava_kit.inference.submission import write_submission as write_submission
    from cassava_kit.inference.tta import make_views as make_views
    from cassava_kit.inference.tta import predict_views as predict_views
    from cassava_kit.models.checkpoint import load_model as load_model
    from cassava_kit.training.train import train_fold as train_fold

# Threads of torch and of MKL that wait for work sleep instead of spinning: beside a busy core, spinning makes a
# training step several times slower. The libraries read it once, when torch is imported; what the user has set stays.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
os.environ.setdefault("KMP_BLOCKTIME", "0")  # the same for Intel's and LLVM's OpenMP

# Public name -> the module that defines it.
HOMES = {
    "UserError": "errors",
    "check_submission": "inference.submission",
    "compare": "evidence.compare",
    "correct": "evidence.compare",
    "find_duplicates": "data.duplicates",
    "find_label_errors": "evidence.noise.clean",
    "load_model": "models.checkpoint",
    "make_folds": "data.stratify",
    "make_views": "inference.tta",
    "predict_folder": "inference.folder",
    "predict_views": "inference.tta",
    "score": "evidence.metrics",
    "train_fold": "training.train",
    "weigh": "evidence.blend",
    "write_oof": "evidence.predictions",
    "write_submission": "inference.submission",
}
__all__ = ["__version__", *HOMES]


def __getattr__(name: str) -> Any:
    """Import a public name from its room."""
    if name == "__version__":
        return import_module(f"{__name__}.files").KIT_VERSION
    if name not in HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}; public names are {', '.join(HOMES)}")
    value = getattr(import_module(f"{__name__}.{HOMES[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    """Return the public names, imported yet or not."""
    return sorted({*globals(), *HOMES})
