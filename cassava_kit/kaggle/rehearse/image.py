"""Make an environment with the versions of Kaggle's image, to rehearse in: `image_environment`."""

from __future__ import annotations

import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

from cassava_kit.errors import UserError
from cassava_kit.files import sha256_file, write_text

STAMP = "made-from.sha256"
# The newest image first; both are served by the same wheels.
IMAGES = ("3.13", "3.12")


def image_environment(root: Path, folder: Path, *, version: str | None = None) -> Path:
    """Return the Python of an environment made from `kernels/image-<version>.txt`, in a folder of that name.

    `version` is the image's Python; None: the newest that is installed here. The environment is made once, and again
    when the file changes; it takes about 5 GB and a package index.

    Raises:
        FileNotFoundError: that Python is not installed.
        UserError: the environment cannot be made.
    """
    version, interpreter = find_python(version)
    wanted, folder = root / "kernels" / f"image-{version}.txt", folder / version
    python, stamp = folder / "bin" / "python", folder / STAMP
    made_from = f"{sha256_file(wanted)} {version}"
    if python.exists() and stamp.is_file() and stamp.read_text(encoding="utf-8") == made_from:
        return python
    print(f"making {folder} with Python {version} and the versions of {wanted.name}: about 5 GB, once")
    stamp.unlink(missing_ok=True)
    if subprocess.run([interpreter, "-m", "venv", "--clear", folder], check=False).returncode:
        raise UserError(f"{interpreter} could not make an environment in {folder}; its messages are above")
    options = ["--disable-pip-version-check", "--quiet", "--requirement", str(wanted)]
    command = [str(python), "-m", "pip", "install", *options]
    if subprocess.run(command, check=False).returncode:
        raise UserError(f"pip could not install {wanted}; its messages are above")
    write_text(stamp, made_from)
    return python


def find_python(asked: str | None = None) -> tuple[str, Path]:
    """Return the newest of the images' Python versions that is installed here, or the one asked for, and its path.

    Raises:
        FileNotFoundError: it is not installed.
        UserError: no image has the one asked for.
    """
    if asked not in (None, *IMAGES):
        raise UserError(f"Kaggle's images have Python {' or '.join(IMAGES)}, got {asked}")
    versions = IMAGES if asked is None else (asked,)
    for version in versions:
        for candidate in _candidates(version):
            if candidate.is_file() and _version(candidate) == version:
                return version, candidate
    raise FileNotFoundError(
        f"Python {' or '.join(versions)} is not installed; install one to rehearse as Kaggle runs "
        f"(python{versions[0]} on PATH, pyenv, uv)"
    )


def _candidates(version: str) -> Iterator[Path]:
    found = shutil.which(f"python{version}")
    if found:
        yield Path(found)
    if sys.version_info[:2] == tuple(map(int, version.split("."))):
        yield Path(sys.executable)
    for pattern in (f".pyenv/versions/{version}*/bin/python", f".local/share/uv/python/cpython-{version}*/bin/python3"):
        yield from sorted(Path.home().glob(pattern))
    yield from (Path(folder) / f"python{version}" for folder in ("/usr/bin", "/usr/local/bin", "/opt/homebrew/bin"))


def _version(python: Path) -> str:
    """Return `major.minor` of an interpreter that can make environments; empty otherwise (a shim, no ensurepip)."""
    code = "import ensurepip, sys, venv; print('%d.%d' % sys.version_info[:2])"
    done = subprocess.run([python, "-c", code], capture_output=True, text=True, check=False)
    return done.stdout.strip()


def image_versions(root: Path) -> dict[str, dict[str, str]]:
    """Return image -> library -> version, as the files of `kernels/` pin them."""
    versions: dict[str, dict[str, str]] = {}
    for image in IMAGES:
        lines = (root / "kernels" / f"image-{image}.txt").read_text(encoding="utf-8").splitlines()
        pinned = (line.split("==") for line in lines if "==" in line and not line.startswith("#"))
        versions[image] = {name.strip(): version.strip() for name, version in pinned}
    return versions
