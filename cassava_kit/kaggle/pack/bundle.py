"""Pack a bundle, the datasets and the notebook that are uploaded together: `package`, `package_kernel`, `read_bundle`.

`package` is `package_kit` and `package_members`, for those who pack the code before there are members.

    out/kit/       the kit's wheel, the pure wheels that the image lacks, bootstrap.py, KIT_MANIFEST.json
    out/weights/   <run name>-fold<k>.safetensors, ensemble.json, WEIGHTS_MANIFEST.json
    out/kernel/    ensemble-submission.ipynb, pinned to both builds, kernel-metadata.json and competition.json. A kernel
                   that trains has its own folder, with changes.json: its parameters, for the next push
    out/evidence/  the ensemble's out-of-fold predictions and their fold file, for `finals`; not uploaded

The same inputs give the same bytes: the build id changes when, and only when, the content does.
"""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from cassava_kit.competition import CASSAVA, COMPETITION_FILE, VARIABLE, Competition, current, read_facts, write_facts
from cassava_kit.errors import UserError
from cassava_kit.files import KIT_VERSION, read_json, sha256_bytes, write_json, write_text
from cassava_kit.inference.ensemble import ENSEMBLE_FILE, Ensemble, write_ensemble
from cassava_kit.kaggle.pack.config import (
    EXTRA_WHEELS,
    METADATA_FILE,
    PLACEHOLDER_OWNER,
    SUBMIT_COMMAND,
    library_ranges,
    read_config,
)
from cassava_kit.kaggle.pack.credentials import collect_secrets, refuse_secrets, refuse_written_secrets
from cassava_kit.kaggle.pack.kernels import (
    BOOTSTRAP_FILE,
    KERNEL_METADATA,
    SUBMISSION_KERNEL,
    Changes,
    Kernel,
    kernel_parameters,
    parse_changes,
    render,
)
from cassava_kit.kaggle.pack.manifest import MANIFESTS, find_problems, read_manifest, replace_folder, write_manifest
from cassava_kit.kaggle.pack.wheels import build_kit_wheel, pure_wheel, source_files
from cassava_kit.models.checkpoint import read_info, refuse_other_competition

CHANGES_FILE = "changes.json"


@dataclass(frozen=True)
class Bundle:
    """The folders of a bundle, its kernel, and one build id over all datasets.

    A kernel that trains or shows the data has no weights, and `weights_dir` does not exist.
    """

    kit_dir: Path
    weights_dir: Path
    kernel_dir: Path
    build_id: str
    kernel: Kernel = SUBMISSION_KERNEL

    @property
    def home(self) -> Path:
        """The folder that holds the others."""
        return self.kit_dir.parent

    @property
    def competition(self) -> Competition:
        """The competition that the bundle was packed for."""
        path = self.kernel_dir / COMPETITION_FILE
        return read_facts(path) if path.is_file() else CASSAVA

    @property
    def notebook(self) -> Path:
        """The notebook that Kaggle runs."""
        return self.kernel_dir / f"{self.kernel.name}.ipynb"

    @property
    def datasets(self) -> tuple[tuple[str, Path], ...]:
        """Kind and folder of each dataset that the kernel needs."""
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

    `root` is the repository. Wheels are taken from `$CASSAVA_KIT_WHEELHOUSE` or `root/wheelhouse` where they exist.

    Raises:
        UserError: ensemble, checkpoints and their headers do not agree (nothing is written then), or a file that would
            be packed holds a credential.
    """
    check_ensemble_files(ensemble, checkpoints)
    package_kit(Path(out) / "kit", Path(root), owner=owner)
    return package_members(out, ensemble=ensemble, checkpoints=checkpoints, root=root, owner=owner)


def package_members(
    out: str | Path,
    *,
    ensemble: Ensemble,
    checkpoints: Mapping[str, Path],
    root: str | Path,
    owner: str | None = None,
) -> Bundle:
    """Pack weights and notebook beside the code that `package_kit` packed into `out/kit`; arguments as for `package`.

    Raises:
        FileNotFoundError: the code is not packed there.
        UserError: as for `package`.
    """
    from cassava_kit.inference.precision import add_verdict

    out, root = Path(out), Path(root)
    check_ensemble_files(ensemble, checkpoints)
    kit_build = read_manifest(out / "kit", "kit")["build_id"]
    secrets = collect_secrets([root])
    with replace_folder(out / "weights", MANIFESTS["weights"]) as folder:
        for name, source in checkpoints.items():
            shutil.copyfile(source, folder / name)
            add_verdict(folder / name)
        write_ensemble(folder / ENSEMBLE_FILE, ensemble)
        weights_build = write_manifest(folder, "weights", {"kit_version": KIT_VERSION})["build_id"]
        config = read_config(root, owner=owner)
        write_json(folder / METADATA_FILE, config.dataset_metadata(config.weights_dataset))
        refuse_secrets(folder, secrets)
    builds = {MANIFESTS["kit"]: kit_build, MANIFESTS["weights"]: weights_build}
    with replace_folder(out / "kernel", KERNEL_METADATA) as folder:
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
) -> Bundle:
    """Pack the code and a kernel without weights, pinned to that code, with some parameters changed.

    The default of `changes` are those of the last packing, the default of `owner` is the one that a push wrote.

    Raises:
        UserError: a parameter is unknown (nothing is written then), or a file that would be packed holds a credential.
    """
    out, root = Path(out), Path(root)
    if kernel.weights:
        raise UserError(f"{kernel.name} needs weights: {SUBMIT_COMMAND} package packs it with them")
    owner = owner or _adopted_owner(out, root)
    changes = read_changes(out, kernel) if changes is None else changes
    kernel_parameters(kernel, root, changes)  # refuses unknown names before the slow work
    build = package_kit(out / "kit", root, owner=owner)
    with replace_folder(kernel_folder(out, kernel), KERNEL_METADATA) as folder:
        rendered = render(kernel, root, owner=owner, builds={MANIFESTS["kit"]: build}, changes=changes)
        for name, text in rendered.items():
            write_text(folder / name, text)
        write_facts(folder / COMPETITION_FILE, current())
        given = [f"{name}={value!r}" for name, value in changes.parameters.items()]
        write_json(folder / CHANGES_FILE, {"parameters": given, "attach": list(changes.attach)})
        refuse_written_secrets(folder.iterdir(), collect_secrets([root]), root=folder)
    return read_bundle(out, kernel)


def read_changes(out: Path, kernel: Kernel) -> Changes:
    """Return the changes that the kernel in `out` was packed with; no changes where it was not packed yet."""
    path = kernel_folder(out, kernel) / CHANGES_FILE
    return parse_changes(**read_json(path)) if path.is_file() else Changes()


def _adopted_owner(out: Path, root: Path) -> str | None:
    """Return the owner in the packed kit's metadata where the repository names none: the same code stays the same."""
    path = out / "kit" / METADATA_FILE
    if not path.is_file() or read_config(root).owner != PLACEHOLDER_OWNER:
        return None
    return str(read_json(path)["id"]).partition("/")[0]


def kernel_folder(out: Path, kernel: Kernel) -> Path:
    """Return the folder of a kernel in a bundle."""
    return out / ("kernel" if kernel.weights else f"kernel-{kernel.name}")


def package_kit(out: Path, root: Path, *, owner: str | None = None) -> str:
    """Pack the dataset of the code and return its build id."""
    config = read_config(root, owner=owner)
    house, secrets = find_wheelhouse(root), collect_secrets([root])
    refuse_written_secrets(source_files(root), secrets, root=root)
    with replace_folder(out, MANIFESTS["kit"]) as folder:
        wheels = {"cassava-kit": build_kit_wheel(root, folder).name}
        wheels |= {name: pure_wheel(name, folder, wheelhouse=house).name for name in EXTRA_WHEELS}
        shutil.copyfile(root / "kernels" / BOOTSTRAP_FILE, folder / BOOTSTRAP_FILE)
        facts = {"kit_version": KIT_VERSION, "tested": library_ranges(root), "wheels": wheels}
        manifest = write_manifest(folder, "kit", facts)
        write_json(folder / METADATA_FILE, config.dataset_metadata(config.kit_dataset))
        refuse_secrets(folder, secrets)
    return str(manifest["build_id"])


def find_wheelhouse(root: Path) -> Path | None:
    """Return the folder of downloaded wheels: `$CASSAVA_KIT_WHEELHOUSE`, else `root/wheelhouse`, else None."""
    folder = Path(os.environ.get("CASSAVA_KIT_WHEELHOUSE") or root / "wheelhouse")
    return folder if folder.is_dir() else None


def read_bundle(out: str | Path, kernel: Kernel = SUBMISSION_KERNEL) -> Bundle:
    """Read a bundle and check every file against its manifest.

    Raises:
        FileNotFoundError: a manifest, the notebook or its metadata is missing.
        UserError: there is no such folder, or files differ from their manifest; the message names each.
    """
    out = Path(out)
    check_bundle_folder(out)
    bundle = Bundle(out / "kit", out / "weights", kernel_folder(out, kernel), "", kernel)
    found = [f"{kind}: {line}" for kind, folder in bundle.datasets for line in find_problems(folder, kind)]
    if found:
        raise UserError(f"the bundle {out} is damaged: {'; '.join(found)}; package it again")
    if not bundle.notebook.is_file() or not (bundle.kernel_dir / KERNEL_METADATA).is_file():
        raise FileNotFoundError(f"{bundle.kernel_dir} has no {bundle.notebook.name} with its metadata; package it")
    builds = [read_manifest(folder, kind)["build_id"] for kind, folder in bundle.datasets]
    return replace(bundle, build_id=sha256_bytes(" ".join(builds).encode()))


def check_bundle_folder(out: Path) -> None:
    """Refuse a folder that is not there, or that holds the bundle instead of being it.

    Raises:
        UserError: The message names the folder to give.
    """
    if not out.is_dir():
        raise UserError(f"no folder {out}; give the bundle's folder, as `{SUBMIT_COMMAND} package` packed it")
    if not (out / "kit").is_dir() and (out / "bundle" / "kit").is_dir():
        raise UserError(f"{out} is no bundle, it holds one: give {out / 'bundle'}")


def check_ensemble_files(ensemble: Ensemble, checkpoints: Mapping[str, Path]) -> None:
    """Check that an ensemble and its checkpoint files agree in names, classes and competition.

    Raises:
        UserError: they do not.
    """
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
            raise UserError(f"{source} is {info.name} by its header, and {name} in the bundle; use the header's name")
        try:
            refuse_other_competition(info, here)
        except UserError as error:
            raise UserError(f"{source} {error}; {remedy}") from None
    if classes != {len(ensemble.prior)}:
        raise UserError(f"the ensemble has {len(ensemble.prior)} classes, its checkpoints {sorted(classes)}")
    if here.n_classes != len(ensemble.prior):
        raise UserError(
            f"the ensemble has {len(ensemble.prior)} classes, "
            f"the competition {here.slug} has {here.n_classes}; {remedy}"
        )
