from __future__ import annotations

import os
import re
import subprocess
import sys
import sysconfig
import zipfile
from importlib import metadata
from pathlib import Path

import pytest

from cassava_kit.kaggle.pack.config import EXTRA_WHEELS
from cassava_kit.kaggle.pack.wheels import (
    ZIP_DATE,
    build_kit_wheel,
    check_pure,
    find_wheel,
    pure_wheel,
    read_wheel,
    rebuild_wheel,
)


@pytest.mark.parametrize("name", EXTRA_WHEELS)
def test_a_rebuilt_wheel_holds_exactly_the_published_files(name: str, tmp_path: Path) -> None:
    wheel = pure_wheel(name, tmp_path)
    members, info = read_wheel(wheel)
    site = Path(sysconfig.get_path("purelib"))
    assert all((site / member).read_bytes() == content for member, content in members.items())
    module = name.replace("-", "_")
    package = {path.relative_to(site).as_posix() for path in (site / module).rglob("*.py")}
    assert package == {member for member in members if member.startswith(f"{module}/") and member.endswith(".py")}
    assert {f"{info}/WHEEL", f"{info}/METADATA"} <= members.keys()
    assert not {f"{info}/INSTALLER", f"{info}/direct_url.json"} & members.keys()
    assert re.fullmatch(rf"{module}-{re.escape(metadata.version(name))}-(py2\.)?py3-none-any\.whl", wheel.name)


@pytest.mark.slow
def test_pip_installs_a_rebuilt_wheel_and_it_imports(tmp_path: Path) -> None:
    wheel = rebuild_wheel("ttach", tmp_path)
    command = [sys.executable, "-m", "pip", "install", "--isolated", "--no-index", "--no-deps", "--quiet"]
    subprocess.run([*command, "--target", tmp_path / "site", wheel], check=True, capture_output=True)
    for place in (tmp_path / "site", wheel):
        code = f"import sys; sys.path.insert(0, {str(place)!r}); import ttach; print(ttach.__file__)"
        done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
        assert done.stdout.startswith(str(place))


def test_the_same_installation_gives_the_same_bytes(tmp_path: Path) -> None:
    one, two = rebuild_wheel("ttach", tmp_path / "a"), rebuild_wheel("ttach", tmp_path / "b")
    assert one.read_bytes() == two.read_bytes()
    with zipfile.ZipFile(one) as archive:
        assert {info.date_time for info in archive.infolist()} == {ZIP_DATE}, "no trace of when it was made"


def test_what_is_not_pure_or_not_there_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="numpy is not pure Python"):
        pure_wheel("numpy", tmp_path)
    with pytest.raises(ValueError, match="not installed"):
        pure_wheel("no-such-distribution", tmp_path)


def _installed(site: Path, *, pure: str = "true") -> Path:
    """A distribution `tiny` as an installer leaves it in `site`."""
    from cassava_kit.kaggle.pack.wheels import write_wheel

    members = {
        "tiny/__init__.py": b"VALUE = 1\n",
        "tiny-1.0.dist-info/METADATA": b"Metadata-Version: 2.1\nName: tiny\nVersion: 1.0\nRequires-Python: >=3.8\n",
        "tiny-1.0.dist-info/WHEEL": f"Wheel-Version: 1.0\nRoot-Is-Purelib: {pure}\nTag: py3-none-any\n".encode(),
    }
    site.mkdir()
    write_wheel(site / "tiny-1.0-py3-none-any.whl", members, "tiny-1.0.dist-info")
    with zipfile.ZipFile(site / "tiny-1.0-py3-none-any.whl") as archive:
        archive.extractall(site)
    return site


def test_a_file_changed_after_it_was_installed_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    site = _installed(tmp_path / "site")
    monkeypatch.syspath_prepend(site)
    assert rebuild_wheel("tiny", tmp_path / "out").name == "tiny-1.0-py3-none-any.whl"
    (site / "tiny" / "__init__.py").write_text("VALUE = 2\n")
    with pytest.raises(ValueError, match=r"tiny/__init__\.py is not as tiny 1\.0 was published"):
        rebuild_wheel("tiny", tmp_path / "out")


def test_one_with_compiled_parts_is_refused_whatever_its_tag(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="not pure Python"):
        check_pure(_installed(tmp_path / "site", pure="false") / "tiny-1.0-py3-none-any.whl")


def test_one_whose_files_go_elsewhere_is_refused(tmp_path: Path) -> None:
    """Notebooks unpack wheels; what lies in a wheel's .data folder is for an installer."""
    from cassava_kit.kaggle.pack.wheels import write_wheel

    wheel = _installed(tmp_path / "site") / "tiny-1.0-py3-none-any.whl"
    members, info = read_wheel(wheel)
    write_wheel(wheel, members | {"tiny-1.0.data/scripts/tiny": b"#!python\n"}, info)
    with pytest.raises(ValueError, match=r"tiny-1\.0\.data/scripts/tiny elsewhere, notebooks only unpack"):
        check_pure(wheel)


def test_the_token_in_direct_url_stays_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    site = _installed(tmp_path / "site")
    monkeypatch.syspath_prepend(site)
    info = site / "tiny-1.0.dist-info"
    (info / "direct_url.json").write_text('{"url": "https://user:PLANTED-TOKEN@host/"}')
    with (info / "RECORD").open("a") as record:
        record.write("tiny-1.0.dist-info/direct_url.json,,\n")
    assert b"PLANTED-TOKEN" not in rebuild_wheel("tiny", tmp_path / "out").read_bytes()


def test_a_wheelhouse_comes_first_and_its_newest_wheel_is_taken(tmp_path: Path) -> None:
    house = _installed(tmp_path / "house")
    assert find_wheel("Tiny", house) == house / "tiny-1.0-py3-none-any.whl"
    assert find_wheel("other", house) is None
    wheel = pure_wheel("tiny", tmp_path / "out", wheelhouse=house)
    assert wheel.read_bytes() == (house / "tiny-1.0-py3-none-any.whl").read_bytes()


def test_a_damaged_wheel_and_one_for_another_python_are_refused(tmp_path: Path) -> None:
    wheel = _installed(tmp_path / "house") / "tiny-1.0-py3-none-any.whl"
    check_pure(wheel)
    with pytest.raises(ValueError, match=r"refuses Python 3\.7"):
        check_pure(wheel, pythons=["3.7"])
    content = wheel.read_bytes()
    wheel.write_bytes(content.replace(b"VALUE = 1", b"VALUE = 3"))
    with pytest.raises(ValueError, match="make or download it again"):
        check_pure(wheel)
    wheel.write_bytes(content[:100])
    with pytest.raises(ValueError, match="not a whole wheel"):
        check_pure(wheel)


PROJECT_FILES = ("pyproject.toml", "dataset-metadata.json", "kernels/image-3.12.txt", "kernels/image-3.13.txt")


def test_the_kits_wheel_is_reproducible_and_holds_code_alone(root: Path, tmp_path: Path) -> None:
    (root / "cassava_kit" / "kaggle.json").write_text('{"username": "me", "key": "PLANTED"}')
    (root / "cassava_kit" / "photo.jpg").write_bytes(b"jpeg")
    (root / "cassava_kit" / "__pycache__").mkdir()
    (root / "cassava_kit" / "__pycache__" / "x.pyc").write_bytes(b"compiled")
    one, two = build_kit_wheel(root, tmp_path / "a"), build_kit_wheel(root, tmp_path / "b")
    assert one.read_bytes() == two.read_bytes()
    members, info = read_wheel(one)
    found = {name for name in members if not name.startswith(info)}
    code = {path.relative_to(root).as_posix() for path in (root / "cassava_kit").rglob("*.py")}
    report = root / "cassava_kit" / "report"
    pages = {path.relative_to(root).as_posix() for kind in ("html", "css") for path in report.rglob(f"*.{kind}")}
    notebooks = {path.relative_to(root) for path in (root / "kernels").rglob("*.py")}
    carried = {f"cassava_kit/project/{path}" for path in (*notebooks, *PROJECT_FILES)}
    assert len(pages) >= 4 and len(notebooks) >= 4 and found == code | pages | carried
    assert b"PLANTED" not in one.read_bytes()


def _python(code: str, path: Path, cwd: Path) -> str:
    """What a Python prints that finds the kit in `path` alone, beside this environment's libraries."""
    environment = os.environ | {"PYTHONPATH": str(path)}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=cwd, env=environment)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def test_page_templates_and_notebook_sources_are_found_in_the_packed_wheel(root: Path, tmp_path: Path) -> None:
    """A notebook imports from the wheel's file itself where it cannot unpack it."""
    wheel = build_kit_wheel(root, tmp_path / "a")
    code = (
        "import cassava_kit\nfrom cassava_kit.report.page import environment\n"
        "print(cassava_kit.__file__, *environment().list_templates())"
    )
    place, *templates = _python(code, wheel, tmp_path).split()
    assert place.startswith(str(wheel)) and {"eda.html", "report.html"} <= set(templates)


def test_an_installed_kit_packs_the_wheel_that_it_was_installed_from(root: Path, tmp_path: Path) -> None:
    wheel = build_kit_wheel(root, tmp_path / "a")
    command = [sys.executable, "-m", "pip", "install", "--isolated", "--no-index", "--no-deps", "--quiet"]
    subprocess.run([*command, "--target", tmp_path / "site", wheel], check=True, capture_output=True)
    code = (
        "from pathlib import Path\nfrom cassava_kit.kaggle.pack import config, kernels, wheels\n"
        "root = config.project_root()\n"
        "made = wheels.build_kit_wheel(root, Path('out'))\n"
        "text = kernels.render(kernels.SUBMISSION_KERNEL, root)['ensemble-submission.ipynb']\n"
        "print(root, made, len(text), ','.join(config.library_ranges(root)))"
    )
    place, made, length, ranges = _python(code, tmp_path / "site", tmp_path).split()
    assert place == str(tmp_path / "site" / "cassava_kit" / "project")
    assert (tmp_path / made).read_bytes() == wheel.read_bytes()
    assert int(length) > 10_000 and {"torch", "timm"} <= set(ranges.split(","))


def test_a_change_of_one_source_changes_the_kits_wheel(root: Path, tmp_path: Path) -> None:
    before = build_kit_wheel(root, tmp_path / "a").read_bytes()
    with (root / "cassava_kit" / "files.py").open("a") as file:
        file.write("# changed\n")
    assert build_kit_wheel(root, tmp_path / "b").read_bytes() != before


def test_a_folder_that_is_no_repository_is_refused(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"expected pyproject\.toml and cassava_kit/"):
        build_kit_wheel(tmp_path, tmp_path / "out")
