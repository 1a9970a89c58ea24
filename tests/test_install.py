"""The installation: dependencies declared once, a wheel that carries all it needs, `cassava-kit` from any folder."""

import ast
import os
import subprocess
import sys
import sysconfig
import tomllib
import zipfile
from email.parser import Parser
from importlib.metadata import packages_distributions
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).resolve().parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
DECLARED = [Requirement(line) for line in PROJECT["dependencies"]]


@pytest.fixture(scope="module")
def wheel(tmp_path_factory) -> Path:
    """The wheel that `pip install .` builds."""
    out = tmp_path_factory.mktemp("wheel")
    command = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(out)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return next(out.glob("*.whl"))


def test_dependencies_are_declared_in_one_place():
    for name, line in (("requirements.txt", "-e ."), ("requirements-dev.txt", "-e .[dev]")):
        lines = [text for text in (ROOT / name).read_text().splitlines() if text and not text.startswith("#")]
        assert lines == [line]


def test_every_library_that_the_package_imports_is_declared():
    imported = set()
    for path in (ROOT / "cassava_kit").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Import):
                imported |= {alias.name.partition(".")[0] for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
                imported.add(node.module.partition(".")[0])
    distributions = packages_distributions()
    foreign = imported - set(sys.stdlib_module_names) - {"cassava_kit", "kagglesdk"}  # the client pins kagglesdk itself
    optional = [Requirement(line) for line in PROJECT["optional-dependencies"].get("cpu", [])]
    known = {canonicalize_name(each.name) for each in (*DECLARED, *optional)}
    missing = [
        name
        for name in sorted(foreign)
        if not {canonicalize_name(each) for each in distributions.get(name, [name])} & known
    ]
    assert len(foreign) > 15 and not missing


def test_lightning_has_the_argument_that_training_passes():
    bound = next(each.specifier for each in DECLARED if each.name == "lightning")
    assert "2.5.9" not in bound and "2.6.0" in bound  # fit(weights_only=) came with 2.6


def test_the_built_wheel_holds_templates_notebook_sources_and_the_declared_dependencies(wheel):
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
        info = next(name.partition("/")[0] for name in names if name.endswith(".dist-info/METADATA"))
        metadata = Parser().parsestr(archive.read(f"{info}/METADATA").decode())
        scripts = archive.read(f"{info}/entry_points.txt").decode()
    pages = [path.relative_to(ROOT).as_posix() for path in (ROOT / "cassava_kit" / "report").rglob("*.html")]
    kernels = [path.relative_to(ROOT).as_posix() for path in (ROOT / "kernels").rglob("*.py")]
    kernels += ["kernels/image-3.12.txt", "kernels/image-3.13.txt"]
    carried = [f"cassava_kit/project/{name}" for name in (*kernels, "pyproject.toml", "dataset-metadata.json")]
    assert len(pages) >= 4 and len(kernels) >= 6 and names >= {*pages, *carried}
    asked = [Requirement(line) for line in metadata.get_all("Requires-Dist") or []]
    assert {str(each) for each in asked if each.marker is None} == {str(each) for each in DECLARED}
    assert "cassava-kit = cassava_kit" in scripts


def installed(wheel: Path, folder: Path) -> Path:
    """An environment of its own with the wheel in it; the libraries are those of this one."""
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", folder], check=True)
    site = next(folder.glob("lib/python*/site-packages"))
    (site / "libraries.pth").write_text(sysconfig.get_path("purelib"))
    command = [sys.executable, "-m", "pip", "--python", folder / "bin" / "python", "install", "--isolated"]
    options = ["--no-deps", "--no-index", "--quiet", "--disable-pip-version-check"]
    subprocess.run([*command, *options, wheel], check=True, capture_output=True)
    return folder / "bin" / "cassava-kit"


@pytest.mark.slow
def test_the_installed_command_works_from_any_folder(wheel, tiny_dir, tmp_path):
    program = installed(wheel, tmp_path / "env")
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}

    def run(*arguments: object) -> str:
        command = [program, *map(str, arguments)]
        done = subprocess.run(command, cwd=elsewhere, env=environment, capture_output=True, text=True, timeout=300)
        assert done.returncode == 0, done.stderr
        return done.stdout

    where = [program.parent / "python", "-c", "import cassava_kit; print(cassava_kit.__file__)"]
    place = subprocess.run(where, cwd=elsewhere, env=environment, capture_output=True, text=True).stdout
    assert place.startswith(str(tmp_path / "env"))
    assert "Judge by out-of-fold predictions" in run()
    run("folds", "--data", tiny_dir, "--n-splits", 2, "--out", "folds.csv")
    run("eda", "--data", tiny_dir, "--out", "eda.html")
    assert "<html" in (elsewhere / "eda.html").read_text()
    assert "next: cassava-kit submit rehearse --kernel eda" in run("submit", "package", "--kernel", "eda")
    packed = next((elsewhere / "build" / "kernels").rglob("cassava_kit-*.whl"))
    with zipfile.ZipFile(packed) as archive, zipfile.ZipFile(wheel) as built:
        assert set(archive.namelist()) == set(built.namelist())
