"""Published weights from timm's hub as files: `fetch_weights`, the only code that asks the hub."""

from __future__ import annotations

import re
import tempfile
from collections.abc import Sequence
from pathlib import Path

from cassava_kit.errors import UserError
from cassava_kit.files import write_json
from cassava_kit.training.config import RunConfig
from cassava_kit.training.recipes import recipe

OWNER = r"[A-Za-z0-9_-]+"
DATASET = "imagenet-weights"


def fetch_weights(names: Sequence[str], out: Path, *, owner: str | None = None) -> list[str]:
    """Download the weights that recipes start from, each to `<recipe>.safetensors` in `out`; returns lines to print.

    A file that is there is kept. With an `owner` the folder is described as a dataset that `kaggle datasets create -p`
    takes.

    Raises:
        UserError: A recipe is unknown (before any download), or the hub has no weights or does not answer.
    """
    if owner is not None and not re.fullmatch(OWNER, owner):
        raise UserError(f"--owner must be your name on Kaggle, of letters, digits, '-' and '_', got {owner!r}")
    lines = []
    for config in [recipe(name) for name in names]:
        path = out / f"{config.recipe}.safetensors"
        if path.is_file():
            lines.append(f"{path}: already there")
            continue
        out.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=".", dir=out) as scratch:
            made = Path(scratch) / path.name
            lines.append(f"{path}: {download(config, made)}")
            made.replace(path)
    if owner is not None:
        described = {"id": f"{owner}/{DATASET}", "title": "ImageNet weights", "licenses": [{"name": "other"}]}
        write_json(out / "dataset-metadata.json", described)
        lines.append(
            f"Next: kaggle datasets create -p {out}, then --attach {owner}/{DATASET} where a notebook needs them"
        )
    return lines


def download(config: RunConfig, path: Path) -> str:
    """Write a recipe's published weights to `path`, load them into its model, and return what was loaded, in words."""
    import timm
    from safetensors.torch import save_file

    from cassava_kit.models.network import create_model
    from cassava_kit.models.weights import load_weights

    try:
        published = timm.create_model(config.model, pretrained=True, **(config.model_args or {}))
    except (OSError, RuntimeError) as error:
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise UserError(
            f"no weights for {config.recipe} ({config.model}): {reason}; check the connection, or fetch the model's "
            "model.safetensors from huggingface.co/timm in a browser and give it by --weights"
        ) from None
    save_file({name: tensor.contiguous() for name, tensor in published.state_dict().items()}, path)
    model = create_model(config.model, 2, model_args=config.model_args, head=config.head)
    return f"{load_weights(model, path)}, from {published.pretrained_cfg.get('hf_hub_id') or 'timm'}"
