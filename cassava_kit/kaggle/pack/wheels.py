"""Make wheels without a network: the kit's own, and those of installed pure packages: `build_kit_wheel`, `pure_wheel`.

A rehearsal and the first run must need no network, and an installed wheel is no longer a file. But installing a pure
wheel only unpacks it: every file is still there, with its SHA-256 in `RECORD`, and the wheel is made again from the
files that still match. A `py3-none-any` wheel is the same for every Python, so it serves the image's 3.12 and 3.13.
"""

from __future__ import annotations

import base64
import csv
import hashlib
import io
import os
import shutil
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Iterable
from email.parser import Parser
from importlib import metadata
from pathlib import Path, PurePosixPath

from cassava_kit.errors import UserError
from cassava_kit.files import atomic_path
from cassava_kit.kaggle.pack.config import INSTALLED_PROJECT

IMAGE_PYTHONS = ("3.12", "3.13")
# What hatchling reads to build the kit: of the package only code and page templates, of the notebooks their sources.
BUILD_FILES = ("pyproject.toml", "README.md", "LICENSE", "dataset-metadata.json")
SOURCES = (
    *("cassava_kit/**/*.py", "cassava_kit/**/*.typed", "cassava_kit/report/**/*.html", "cassava_kit/report/**/*.css"),
    *("kernels/**/*.py", "kernels/image-*.txt"),
)
# Files of the installer, which are not part of the wheel; direct_url.json may hold the token of a private index.
INSTALLER_FILES = ("INSTALLER", "REQUESTED", "RECORD", "RECORD.jws", "RECORD.p7s", "direct_url.json", "uv_cache.json")
ZIP_DATE = (2020, 2, 2, 0, 0, 0)
EPOCH = "1580601600"


def build_kit_wheel(root: Path, out: Path) -> Path:
    """Build the kit's wheel from `root` into `out` with hatchling: the same sources give the same bytes.

    The build sees a copy of code, page templates and notebook sources alone, so that nothing else gets in. From an
    installed kit the wheel is made of the installed files.

    Raises:
        FileNotFoundError: `root` is not the repository.
        UserError: hatchling cannot build, or an installed file was changed.
    """
    if root == INSTALLED_PROJECT:
        return rebuild_wheel("cassava-kit", out)
    with tempfile.TemporaryDirectory(prefix="kit-build-") as folder:
        source, target = Path(folder) / "source", Path(folder) / "dist"
        _copy_sources(root, source)
        command = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(target)]
        environment = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"} | {"SOURCE_DATE_EPOCH": EPOCH}
        done = subprocess.run(command, cwd=source, env=environment, capture_output=True, text=True, check=False)
        wheels = sorted(target.glob("*.whl"))
        if done.returncode or len(wheels) != 1:
            last = (done.stderr or done.stdout).strip().splitlines()[-1:]
            raise UserError(f"hatchling could not build the kit's wheel from {root}: {''.join(last)}")
        members, info = read_wheel(wheels[0])
        out.mkdir(parents=True, exist_ok=True)
        with atomic_path(out / wheels[0].name) as temporary:
            write_wheel(temporary, members, info)
        return out / wheels[0].name


def source_files(root: Path) -> list[Path]:
    """Return the files of the repository that the kit's wheel is built from."""
    return [path for pattern in (*BUILD_FILES, *SOURCES) for path in sorted(root.glob(pattern)) if path.is_file()]


def _copy_sources(root: Path, target: Path) -> None:
    package = root / "cassava_kit"
    if not (package / "__init__.py").is_file() or not (root / "pyproject.toml").is_file():
        raise FileNotFoundError(f"expected pyproject.toml and cassava_kit/ in {root}; package from the repository")
    for path in source_files(root):
        copy = target / path.relative_to(root)
        copy.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(path, copy)


def pure_wheel(name: str, out: Path, *, wheelhouse: Path | None = None) -> Path:
    """Put the wheel of a pure package into `out`: the wheelhouse's, else one made of the installed files.

    Raises:
        UserError: it is not pure, was changed after its installation, or excludes a Python of Kaggle's images.
    """
    ready = find_wheel(name, wheelhouse) if wheelhouse else None
    wheel = _place(ready, out) if ready else rebuild_wheel(name, out)
    check_pure(wheel)
    return wheel


def find_wheel(name: str, wheelhouse: Path) -> Path | None:
    """Return the newest pure wheel of `name` in a folder of wheels, or None."""
    from packaging.utils import canonicalize_name, parse_wheel_filename

    found = []
    for path in sorted(wheelhouse.glob("*-none-any.whl")):
        project, version, _, _ = parse_wheel_filename(path.name)
        if project == canonicalize_name(name):
            found.append((version, path))
    return max(found)[1] if found else None


def rebuild_wheel(name: str, out: Path) -> Path:
    """Make a wheel of an installed pure package from its files, each checked against its SHA-256 in `RECORD`.

    Raises:
        UserError: it is not installed, not pure, or was changed.
    """
    try:
        distribution = metadata.distribution(name)
    except metadata.PackageNotFoundError:
        raise UserError(f"{name} is not installed and no wheelhouse has it; run: pip install {name}") from None
    tags = _wheel_tags(name, distribution.read_text("WHEEL") or "")
    members = _read_files(distribution, _wheel_files(distribution))
    folder = next(path.split("/")[0] for path in members if path.endswith(".dist-info/WHEEL"))
    target = out / f"{folder.removesuffix('.dist-info')}-{tags}.whl"
    with atomic_path(target) as temporary:
        write_wheel(temporary, members, folder)
    return target


def _wheel_tags(name: str, text: str) -> str:
    header = Parser().parsestr(text)
    tags = header.get_all("Tag") or []
    if header.get("Root-Is-Purelib") != "true" or not tags or any(not tag.endswith("-none-any") for tag in tags):
        raise UserError(f"{name} is not pure Python (tags {tags}); take the image's own, or a wheel for its platform")
    return "-".join([".".join(sorted({tag.split("-")[0] for tag in tags})), "none", "any"])


def _wheel_files(distribution: metadata.Distribution) -> list[str]:
    """Return the paths inside the wheel, without the installer's files and the scripts of entry points."""
    name, paths = distribution.metadata["Name"], []
    scripts = {point.name for point in distribution.entry_points if point.group in ("console_scripts", "gui_scripts")}
    for file in distribution.files or []:
        path = PurePosixPath(file.as_posix())
        if ".." in path.parts or path.is_absolute():
            if path.stem in scripts or path.name in scripts:
                continue
            raise UserError(f"{name} installs {path} outside site-packages; put its own wheel into a wheelhouse")
        made_here = path.parent.name.endswith(".dist-info") and path.name in INSTALLER_FILES
        if not made_here and "__pycache__" not in path.parts:
            paths.append(str(path))
    if not paths:
        raise UserError(f"{name} has no RECORD of its files (an editable install?); put its wheel into a wheelhouse")
    return sorted(paths)


def _read_files(distribution: metadata.Distribution, paths: list[str]) -> dict[str, bytes]:
    recorded = {file.as_posix(): file.hash for file in distribution.files or []}
    members = {path: Path(str(distribution.locate_file(path))).read_bytes() for path in paths}
    for path, content in members.items():
        entry = recorded[path]
        if entry is None or _record_hash(content) != f"{entry.mode}={entry.value}":
            name = distribution.metadata["Name"]
            raise UserError(
                f"{path} is not as {name} {distribution.version} was published; "
                f"run: pip install --force-reinstall --no-deps {name}=={distribution.version}"
            )
    return members


def _record_hash(content: bytes) -> str:
    return "sha256=" + base64.urlsafe_b64encode(hashlib.sha256(content).digest()).rstrip(b"=").decode()


def write_wheel(path: Path, members: dict[str, bytes], dist_info: str) -> None:
    """Write a wheel with the same bytes every time: members by name, `RECORD` last, fixed dates and modes.

    Members are stored, not deflated: compressed bytes differ between builds of zlib, and these wheels are small.
    """
    record = io.StringIO()
    rows = csv.writer(record, lineterminator="\n")
    rows.writerows((name, _record_hash(content), len(content)) for name, content in sorted(members.items()))
    rows.writerow((f"{dist_info}/RECORD", "", ""))
    ordered = sorted(members.items(), key=lambda item: (item[0].startswith(f"{dist_info}/"), item[0]))
    with zipfile.ZipFile(path, "w", zipfile.ZIP_STORED) as archive:
        for name, content in [*ordered, (f"{dist_info}/RECORD", record.getvalue().encode())]:
            info = zipfile.ZipInfo(name, ZIP_DATE)
            info.external_attr, info.create_system = 0o100644 << 16, 3
            archive.writestr(info, content)


def read_wheel(wheel: Path) -> tuple[dict[str, bytes], str]:
    """Return a wheel's files without `RECORD`, each checked against its hash there, and the name of its `.dist-info`.

    Raises:
        UserError: the file is not a whole wheel, or a hash differs.
    """
    try:
        with zipfile.ZipFile(wheel) as archive:
            members = {name: archive.read(name) for name in archive.namelist() if not name.endswith("/")}
        info = next(name.split("/")[0] for name in members if name.endswith(".dist-info/RECORD"))
    except (zipfile.BadZipFile, OSError, StopIteration) as error:
        raise UserError(f"{wheel} is not a whole wheel ({error}); make or download it again") from None
    rows = {row[0]: row[1] for row in csv.reader(io.StringIO(members.pop(f"{info}/RECORD").decode())) if row}
    for name, content in members.items():
        if rows.get(name) != _record_hash(content):
            raise UserError(f"{wheel}: {name} differs from its hash in RECORD; make or download it again")
    return members, info


def check_pure(wheel: Path, pythons: Iterable[str] = IMAGE_PYTHONS) -> None:
    """Check that a wheel is whole, pure, for the images' Pythons, and only needs unpacking; UserError otherwise."""
    from packaging.specifiers import SpecifierSet

    members, info = read_wheel(wheel)
    _wheel_tags(wheel.name, members[f"{info}/WHEEL"].decode())
    data = f"{info.removesuffix('.dist-info')}.data/"  # scripts, headers, and files for elsewhere
    if placed := [name for name in members if name.startswith(data)]:
        raise UserError(f"{wheel.name} installs {placed[0]} elsewhere, notebooks only unpack; use another version")
    header = Parser().parsestr(members[f"{info}/METADATA"].decode())
    wanted = SpecifierSet(header.get("Requires-Python") or "")
    refused = [python for python in pythons if not wanted.contains(f"{python}.0")]
    if refused:
        raise UserError(f"{wheel.name} refuses Python {', '.join(refused)} (requires {wanted}); use another version")


def _place(wheel: Path, out: Path) -> Path:
    with atomic_path(out / wheel.name) as temporary:
        shutil.copyfile(wheel, temporary)
    return out / wheel.name
