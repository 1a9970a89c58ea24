"""The folder of a pretraining run: what describes the run in it, and who may use it; entry point `claim_folder`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

from cassava_kit.errors import UserError
from cassava_kit.files import read_json, sha256_bytes, sha256_file, write_json
from cassava_kit.training.sources import learning_code_hash
from cassava_kit.training.ssl.config import WITHOUT_EFFECT, PretrainConfig
from cassava_kit.training.ssl.methods import SSL_METHODS

BACKBONE = "backbone.safetensors"
RUN_CONFIG = "config.json"
FAILED = "failed.json"
LAST = "last.ckpt"
METRICS = "metrics.csv"
STORE = "pixels.npy"
PRETRAIN_ROOTS = (
    ("training.ssl.methods", "make_ssl_module"),
    ("training.ssl.loader", "PretrainImages"),
    ("training.trainer", "make_trainer"),
)


def describe_settings(config: PretrainConfig, init: Path | None) -> dict[str, Any]:
    """Return what decides a run's result beside its images: configuration, first weights (by their hash) and code.

    Raises:
        FileNotFoundError: There is no such weights file.
    """
    from cassava_kit.models.weights import find_weights_file  # torch, which a check of the folder does not need

    module, _, name = SSL_METHODS[config.method].partition(":")
    # A method of code outside the package is not in the hash.
    method = [(module.removeprefix("cassava_kit."), name)] if module.startswith("cassava_kit.") else []
    return {
        "config": config.model_dump(mode="json"),
        "init": None if init is None else {"name": Path(init).name, "sha256": sha256_file(find_weights_file(init))},
        "code": learning_code_hash(roots=(*PRETRAIN_ROOTS, *method)),
    }


def whole_images(paths: Sequence[Path]) -> list[Path]:
    """Return the paths that look like whole images, in their order.

    Raises:
        FileNotFoundError: a file is missing.
        UserError: no file is a whole image.
    """
    from cassava_kit.data.images import quick_check

    missing = [path for path in paths if not Path(path).is_file()]
    if missing:
        raise FileNotFoundError(f"no image file {missing[0]} ({len(missing)} of {len(paths)} are missing)")
    whole = [Path(path) for path in paths if quick_check(path) is None]
    if not whole:
        raise UserError(f"none of the {len(paths)} files is a whole image; give a folder of JPEGs or PNGs")
    return whole


def describe_images(images: Sequence[Path]) -> dict[str, Any]:
    """Return the number of the images and the hash of their bytes."""
    listed = "\n".join(sha256_file(path) for path in images)
    return {"n": len(images), "sha256": sha256_bytes(listed.encode())}


def refuse_other_run(
    out_dir: Path, description: dict[str, Any], *, existing: Literal["refuse", "replace", "keep"] = "refuse"
) -> list[str]:
    """Return the parts of a run's description, all or some, in which the run of a folder differs.

    Raises:
        UserError: the folder holds another run's weights, and `existing` does not say what is done with it.
    """
    path = out_dir / RUN_CONFIG
    if not _has_run(out_dir):
        return []
    if not path.is_file():
        raise UserError(f"{out_dir} holds weights without their {RUN_CONFIG}; give a new folder")
    known, wanted = _decisive(read_json(path)), _decisive(description)
    differs = [part for part in wanted if known.get(part) != wanted[part]]
    if (out_dir / FAILED).is_file() or existing == "replace" or not differs:
        return differs
    if differs == ["code"] and existing == "refuse":
        raise UserError(
            f"{out_dir} is of another version of the code; keep it with --keep, replace it with --replace, "
            "or give another folder"
        )
    if differs != ["code"]:
        raise UserError(
            f"{out_dir} holds a run of another configuration, images or weights; give another folder, or replace "
            "it with --replace"
        )
    return differs


def claim_folder(
    out_dir: Path, description: dict[str, Any], *, existing: Literal["refuse", "replace", "keep"] = "refuse"
) -> bool:
    """Write config.json, or find it the same; return False where the run is already complete.

    What a run left that learnt nothing, or that failed with other settings, is overwritten. `existing` says what is
    done with a run that differs: refuse, replace, or keep (where only the code differs).

    Raises:
        UserError: the folder holds another run's weights, or this very run diverged in it.
    """
    path = out_dir / RUN_CONFIG
    if _has_run(out_dir):
        differs = refuse_other_run(out_dir, description, existing=existing)
        if differs == ["code"] and existing == "keep":
            differs, description = [], {**description, "code": read_json(path).get("code", "")}
        same = not differs
        failed = read_json(out_dir / FAILED) if (out_dir / FAILED).is_file() else None
        if same and failed is not None and failed["diverged"]:
            raise UserError(f"{out_dir} holds this run, which failed: {failed['reason']}; change a setting")
        if not same:
            for name in (BACKBONE, LAST, METRICS, STORE):
                (out_dir / name).unlink(missing_ok=True)
        (out_dir / FAILED).unlink(missing_ok=True)
    if (out_dir / BACKBONE).is_file():
        return False
    write_json(path, description)
    return True


def write_failure(out_dir: Path, reason: str, *, diverged: bool) -> None:
    """Write failed.json: a run that diverged does not go on, one that collapsed may."""
    write_json(out_dir / FAILED, {"reason": reason, "diverged": diverged})


def _has_run(out_dir: Path) -> bool:
    return any((out_dir / name).exists() for name in (BACKBONE, LAST, FAILED))


def _decisive(description: dict[str, Any]) -> dict[str, Any]:
    """Return a run's description without the settings that change no weight."""
    config = {name: value for name, value in description["config"].items() if name not in WITHOUT_EFFECT}
    return {**description, "config": config}
