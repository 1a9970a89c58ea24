"""The bundle: two flat datasets as they will be uploaded, and the notebook that was made for exactly them.

    out/kit/       the kit's wheel, pure wheels the image lacks, KIT_MANIFEST.json
    out/weights/   <recipe>-fold<k>.safetensors, ensemble.json, WEIGHTS_MANIFEST.json
    out/kernel/    ensemble-submission.ipynb, pinned to both builds, and its kernel-metadata.json; beside them stays
                   competition.json, for what is done with the bundle at home, and of a kernel that trains
                   changes.json: the parameters that were given, for the next push
    out/evidence/  stays at home: the ensemble's out-of-fold predictions and their fold file, for `submit.py --finals`

The same inputs give the same bytes: the build id changes when, and only when, something in it does.
"""

from __future__ import annotations

import filecmp
import os
import re
import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from cassava_kit.competition import CASSAVA, COMPETITION_FILE, VARIABLE, Competition, current, read_facts, write_facts
from cassava_kit.errors import UserError
from cassava_kit.files import KIT_VERSION, read_json, sha256_bytes, write_json, write_text
from cassava_kit.inference.ensemble import ENSEMBLE_FILE, Ensemble, write_ensemble
from cassava_kit.kaggle.pack.config import EXTRA_WHEELS, METADATA_FILE, PLACEHOLDER_OWNER, library_ranges, read_config
from cassava_kit.kaggle.pack.credentials import known_secrets, refuse_secrets, refuse_written_secrets
from cassava_kit.kaggle.pack.kernels import (
    KERNEL_METADATA,
    SUBMISSION_KERNEL,
    Changes,
    Kernel,
    kernel_parameters,
    parse_changes,
    render,
)
from cassava_kit.kaggle.pack.manifest import MANIFESTS, problems, read_manifest, write_manifest
from cassava_kit.kaggle.pack.wheels import build_kit_wheel, pure_wheel, source_files
from cassava_kit.models.checkpoint import read_info

CHANGES_FILE = "changes.json"
# Refuses a kernel's parameters by their values; the command line has it, which knows the recipes.
CheckParameters = Callable[[Kernel, Mapping[str, Any], Sequence[str]], None]


@dataclass(frozen=True)
class Bundle:
    """The folders of a bundle, one id for all that is uploaded, and which of the kernels it is for.

    A kernel that trains, or looks at the data, has no weights: `weights_dir` is not there then.
    """

    kit_dir: Path
    weights_dir: Path
    kernel_dir: Path
    build_id: str
    kernel: Kernel = SUBMISSION_KERNEL

    @property
    def home(self) -> Path:
        """The folder that holds them."""
        return self.kit_dir.parent

    @property
    def competition(self) -> Competition:
        """The competition that it was packed for."""
        path = self.kernel_dir / COMPETITION_FILE
        return read_facts(path) if path.is_file() else CASSAVA

    @property
    def notebook(self) -> Path:
        """The notebook that Kaggle will run."""
        return self.kernel_dir / f"{self.kernel.name}.ipynb"

    @property
    def datasets(self) -> tuple[tuple[str, Path], ...]:
        """Kind and folder of the datasets that are uploaded for the kernel."""
        kit = (("kit", self.kit_dir),)
        return (*kit, ("weights", self.weights_dir)) if self.kernel.weights else kit


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
    kit_build = package_kit(out / "kit", root, owner=owner)
    secrets = known_secrets([root])
    with _replaced(out / "weights", MANIFESTS["weights"]) as folder:
        for name, source in checkpoints.items():
            shutil.copyfile(source, folder / name)
        write_ensemble(folder / ENSEMBLE_FILE, ensemble)
        weights_build = write_manifest(folder, "weights", {"kit_version": KIT_VERSION})["build_id"]
        config = read_config(root, owner=owner)
        write_json(folder / METADATA_FILE, config.dataset_metadata(config.weights_dataset))
        refuse_secrets(folder, secrets)
    builds = {MANIFESTS["kit"]: kit_build, MANIFESTS["weights"]: weights_build}
    with _replaced(out / "kernel", KERNEL_METADATA) as folder:
        for name, text in render(SUBMISSION_KERNEL, root, owner=owner, builds=builds).items():
            write_text(folder / name, text)
        write_facts(folder / COMPETITION_FILE, current())
        refuse_written_secrets(folder.iterdir(), secrets, root=folder)
    return read_bundle(out)


def package_kernel(
    out: str | Path,
    kernel: Kernel,
    *,
    root: str | Path,
    owner: str | None = None,
    changes: Changes | None = None,
    check: CheckParameters | None = None,
) -> Bundle:
    """Pack the code and one of the kernels that need no weights, pinned to it, with its parameters changed.

    Without `changes` those of the last packing hold, and without `owner` the one that a push has put there.
    `check` is called with the kernel, all its parameters and what is attached; what it raises ends the packing.

    Raises:
        UserError: a parameter is unknown or refused; nothing was written.
    """
    out, root = Path(out), Path(root)
    if kernel.weights:
        raise UserError(f"{kernel.name} needs weights: python submit.py --package packs it with them")
    owner = owner or _adopted_owner(out, root)
    changes = packed_changes(out, kernel) if changes is None else changes
    parameters = kernel_parameters(kernel, root, changes)
    if check is not None:
        check(kernel, parameters, changes.attach)
    build = package_kit(out / "kit", root, owner=owner)
    with _replaced(kernel_folder(out, kernel), KERNEL_METADATA) as folder:
        rendered = render(kernel, root, owner=owner, builds={MANIFESTS["kit"]: build}, changes=changes)
        for name, text in rendered.items():
            write_text(folder / name, text)
        write_facts(folder / COMPETITION_FILE, current())
        given = [f"{name}={value!r}" for name, value in changes.parameters.items()]
        write_json(folder / CHANGES_FILE, {"parameters": given, "attach": list(changes.attach)})
        refuse_written_secrets(folder.iterdir(), known_secrets([root]), root=folder)
    return read_bundle(out, kernel)


def packed_changes(out: Path, kernel: Kernel) -> Changes:
    """What the kernel was packed with in `out`; none where it was not packed yet."""
    path = kernel_folder(out, kernel) / CHANGES_FILE
    return parse_changes(**read_json(path)) if path.is_file() else Changes()


def _adopted_owner(out: Path, root: Path) -> str | None:
    """The owner that the code packed in `out` has, where the repository names none: so the same code is not new."""
    path = out / "kit" / METADATA_FILE
    if not path.is_file() or read_config(root).owner != PLACEHOLDER_OWNER:
        return None
    return str(read_json(path)["id"]).partition("/")[0]


def kernel_folder(out: Path, kernel: Kernel) -> Path:
    """Where a bundle keeps a kernel."""
    return out / ("kernel" if kernel.weights else f"kernel-{kernel.name}")


def package_kit(out: Path, root: Path, *, owner: str | None = None) -> str:
    """Pack the dataset that carries the code, and return its build id; training kernels need no other."""
    config = read_config(root, owner=owner)
    house, secrets = wheelhouse(root), known_secrets([root])
    refuse_written_secrets(source_files(root), secrets, root=root)
    with _replaced(out, MANIFESTS["kit"]) as folder:
        wheels = {"cassava-kit": build_kit_wheel(root, folder).name}
        wheels |= {name: pure_wheel(name, folder, wheelhouse=house).name for name in EXTRA_WHEELS}
        facts = {"kit_version": KIT_VERSION, "tested": library_ranges(root), "wheels": wheels}
        manifest = write_manifest(folder, "kit", facts)
        write_json(folder / METADATA_FILE, config.dataset_metadata(config.kit_dataset))
        refuse_secrets(folder, secrets)
    return str(manifest["build_id"])


def wheelhouse(root: Path) -> Path | None:
    """A folder of wheels downloaded before: `$CASSAVA_KIT_WHEELHOUSE`, else `root/wheelhouse`, else None."""
    folder = Path(os.environ.get("CASSAVA_KIT_WHEELHOUSE") or root / "wheelhouse")
    return folder if folder.is_dir() else None


def read_bundle(out: str | Path, kernel: Kernel = SUBMISSION_KERNEL) -> Bundle:
    """An existing bundle; every file is held against its manifest, ValueError with each one that differs."""
    out = Path(out)
    bundle = Bundle(out / "kit", out / "weights", kernel_folder(out, kernel), "", kernel)
    found = [f"{kind}: {line}" for kind, folder in bundle.datasets for line in problems(folder, kind)]
    if found:
        raise UserError(f"the bundle {out} is damaged: {'; '.join(found)}; package it again")
    if not bundle.notebook.is_file() or not (bundle.kernel_dir / KERNEL_METADATA).is_file():
        raise FileNotFoundError(f"{bundle.kernel_dir} has no {bundle.notebook.name} with its metadata; package it")
    builds = [read_manifest(folder, kind)["build_id"] for kind, folder in bundle.datasets]
    return replace(bundle, build_id=sha256_bytes(" ".join(builds).encode()))


def check_members(ensemble: Ensemble, checkpoints: Mapping[str, Path]) -> None:
    """Refuse an ensemble whose checkpoints are not exactly those given, or whose files are not what their name says."""
    named = [name for member in ensemble.members for name in member.checkpoints]
    if twice := sorted({name for name in named if named.count(name) > 1}):
        raise UserError(f"the ensemble names {', '.join(twice)} more than once; leave each in one member")
    if missing := sorted(set(named) - checkpoints.keys()):
        raise UserError(f"the ensemble names {', '.join(missing)}, for which no file was given; train it or drop it")
    if extra := sorted(checkpoints.keys() - set(named)):
        raise UserError(f"{', '.join(extra)} is in no member of the ensemble; leave it out")
    classes, here = set(), current()
    remedy = f"call from the folder of its {COMPETITION_FILE}, or set ${VARIABLE}"
    for name, source in checkpoints.items():
        info = read_info(source)
        classes.add(info.n_classes)
        if name != f"{info.name}.safetensors" and not re.fullmatch(rf"m\d+-{re.escape(info.name)}\.safetensors", name):
            raise UserError(f"{source} is {info.name} by its header, the bundle calls it {name}; use its own name")
        if info.competition not in (None, here.slug):
            raise UserError(f"{source} was trained for {info.competition}, this folder is for {here.slug}; {remedy}")
    if classes != {len(ensemble.prior)}:
        raise UserError(f"the ensemble has {len(ensemble.prior)} classes, its checkpoints {sorted(classes)}")
    if here.n_classes != len(ensemble.prior):
        raise UserError(
            f"the ensemble has {len(ensemble.prior)} classes, "
            f"the competition {here.slug} has {here.n_classes}; {remedy}"
        )


@contextmanager
def _replaced(folder: Path, marker: str) -> Iterator[Path]:
    """Fill a new folder that takes the old one's place only when it is whole; an old one must be ours (by `marker`).

    One that holds the same bytes stays as it is, times included: the client knows by them what it uploaded already.
    """
    if folder.exists() and not (folder / marker).is_file() and any(folder.iterdir()):
        raise UserError(f"{folder} holds something else than a bundle (no {marker}); choose another --out")
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
