"""The bundle: two flat datasets as they will be uploaded, and the notebook that was made for exactly them.

    out/kit/       the kit's wheel, pure wheels the image lacks, KIT_MANIFEST.json
    out/weights/   <recipe>-fold<k>.safetensors, ensemble.json, WEIGHTS_MANIFEST.json
    out/kernel/    ensemble-submission.ipynb, pinned to both builds, and its kernel-metadata.json

The same inputs give the same bytes: the build id changes when, and only when, something in it does.
"""

from __future__ import annotations

import filecmp
import os
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from cassava_kit import __version__
from cassava_kit.checkpoint import read_info
from cassava_kit.files import sha256_bytes, write_json, write_text
from cassava_kit.inference.ensemble import ENSEMBLE_FILE, Ensemble, write_ensemble
from cassava_kit.kaggle.config import EXTRA_WHEELS, METADATA_FILE, library_ranges, read_config
from cassava_kit.kaggle.credentials import known_secrets, refuse_secrets
from cassava_kit.kaggle.kernels import KERNEL_METADATA, SUBMISSION_KERNEL, render
from cassava_kit.kaggle.manifest import MANIFESTS, problems, read_manifest, write_manifest
from cassava_kit.kaggle.wheels import build_kit_wheel, pure_wheel


@dataclass(frozen=True)
class Bundle:
    """The folders of a bundle, and one id for all that it holds."""

    kit_dir: Path
    weights_dir: Path
    kernel_dir: Path
    build_id: str

    @property
    def notebook(self) -> Path:
        """The notebook that Kaggle will run."""
        return self.kernel_dir / f"{SUBMISSION_KERNEL.name}.ipynb"


def package(
    out: str | Path,
    *,
    ensemble: Ensemble,
    checkpoints: Mapping[str, Path],
    root: str | Path,
    owner: str | None = None,
) -> Bundle:
    """Pack code, wheels, weights and notebook into `out`; `checkpoints` maps a name in the bundle to its source file.

    `root` is the repository; wheels are taken from `$CASSAVA_KIT_WHEELHOUSE` or `root/wheelhouse` if they are there.
    Raises ValueError before anything is written where ensemble, checkpoints and headers do not agree.
    """
    out, root = Path(out), Path(root)
    check_members(ensemble, checkpoints)
    secrets = known_secrets([root])
    kit_build = package_kit(out / "kit", root, owner=owner, secrets=secrets)
    with _replaced(out / "weights", MANIFESTS["weights"]) as folder:
        for name, source in checkpoints.items():
            shutil.copyfile(source, folder / name)
        write_ensemble(folder / ENSEMBLE_FILE, ensemble)
        weights_build = write_manifest(folder, "weights", {"kit_version": __version__})["build_id"]
        config = read_config(root, owner=owner)
        write_json(folder / METADATA_FILE, config.dataset_metadata(config.weights_dataset))
        refuse_secrets(folder, secrets)
    builds = {MANIFESTS["kit"]: kit_build, MANIFESTS["weights"]: weights_build}
    with _replaced(out / "kernel", KERNEL_METADATA) as folder:
        for name, text in render(SUBMISSION_KERNEL, root, owner=owner, builds=builds).items():
            write_text(folder / name, text)
        refuse_secrets(folder, secrets)
    return read_bundle(out)


def package_kit(out: Path, root: Path, *, owner: str | None = None, secrets: set[str] | None = None) -> str:
    """Pack the dataset that carries the code, and return its build id; training kernels need no other."""
    config = read_config(root, owner=owner)
    house = wheelhouse(root)
    with _replaced(out, MANIFESTS["kit"]) as folder:
        wheels = {"cassava-kit": build_kit_wheel(root, folder).name}
        wheels |= {name: pure_wheel(name, folder, wheelhouse=house).name for name in EXTRA_WHEELS}
        facts = {"kit_version": __version__, "tested": library_ranges(root), "wheels": wheels}
        manifest = write_manifest(folder, "kit", facts)
        write_json(folder / METADATA_FILE, config.dataset_metadata(config.kit_dataset))
        refuse_secrets(folder, known_secrets([root]) if secrets is None else secrets)
    return str(manifest["build_id"])


def wheelhouse(root: Path) -> Path | None:
    """A folder of wheels downloaded before: `$CASSAVA_KIT_WHEELHOUSE`, else `root/wheelhouse`, else None."""
    folder = Path(os.environ.get("CASSAVA_KIT_WHEELHOUSE") or root / "wheelhouse")
    return folder if folder.is_dir() else None


def read_bundle(out: str | Path) -> Bundle:
    """An existing bundle; every file is held against its manifest, ValueError with each one that differs."""
    kit, weights, kernel = (Path(out) / name for name in ("kit", "weights", "kernel"))
    found = [f"kit: {line}" for line in problems(kit, "kit")]
    found += [f"weights: {line}" for line in problems(weights, "weights")]
    if found:
        raise ValueError(f"the bundle {out} is damaged: {'; '.join(found)}; package it again")
    builds = [read_manifest(kit, "kit")["build_id"], read_manifest(weights, "weights")["build_id"]]
    return Bundle(kit, weights, kernel, sha256_bytes(" ".join(builds).encode()))


def check_members(ensemble: Ensemble, checkpoints: Mapping[str, Path]) -> None:
    """Refuse an ensemble whose checkpoints are not exactly those given, or whose files are not what their name says."""
    named = [name for member in ensemble.members for name in member.checkpoints]
    if len(named) != len(set(named)):
        raise ValueError(f"the ensemble names a checkpoint twice: {', '.join(sorted(named))}")
    if missing := sorted(set(named) - checkpoints.keys()):
        raise ValueError(f"the ensemble names {', '.join(missing)}, for which no file was given; train it or drop it")
    if extra := sorted(checkpoints.keys() - set(named)):
        raise ValueError(f"{', '.join(extra)} is in no member of the ensemble; leave it out")
    classes = set()
    for name, source in checkpoints.items():
        info = read_info(source)
        classes.add(info.n_classes)
        if name != f"{info.name}.safetensors":
            raise ValueError(f"{source} is {info.name} by its header, the bundle calls it {name}; use its own name")
    if classes != {len(ensemble.prior)}:
        raise ValueError(f"the ensemble has {len(ensemble.prior)} classes, its checkpoints {sorted(classes)}")


@contextmanager
def _replaced(folder: Path, marker: str) -> Iterator[Path]:
    """Fill a new folder that takes the old one's place only when it is whole; an old one must be ours (by `marker`).

    One that holds the same bytes stays as it is, times included: the client knows by them what it uploaded already.
    """
    if folder.exists() and not (folder / marker).is_file() and any(folder.iterdir()):
        raise ValueError(f"{folder} holds something else than a bundle (no {marker}); choose another --out")
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{folder.name}.", dir=folder.parent) as scratch:
        fresh = Path(scratch) / "new"
        fresh.mkdir()
        yield fresh
        if folder.exists() and _same(folder, fresh):
            return
        if folder.exists():
            folder.rename(Path(scratch) / "old")
        fresh.rename(folder)


def _same(one: Path, other: Path) -> bool:
    names = sorted(path.name for path in one.iterdir())
    if names != sorted(path.name for path in other.iterdir()):
        return False
    return not any(filecmp.cmpfiles(one, other, names, shallow=False)[1:])
