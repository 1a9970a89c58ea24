"""House rules: the README's commands exist, its figures name their commands, and its files are there."""

import re
import shlex
import subprocess
from pathlib import Path
from typing import Any

import pytest
import typer

from cassava_kit.cli.submit import submit_app
from cassava_kit.cli.verbs import app

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"```bash\n(.*?)```", README, flags=re.DOTALL)
COMMANDS = [line for block in BLOCKS for line in block.strip().splitlines() if line and not line.startswith("#")]


def test_the_two_commands_come_first():
    assert BLOCKS[0].split("\n")[:2] == ["make demo", "make test"]


@pytest.mark.parametrize("target", sorted({line.split()[1] for line in COMMANDS if line.startswith("make ")}))
def test_make_knows_the_target(target):
    assert re.search(rf"^{target}:", (ROOT / "Makefile").read_text(), flags=re.MULTILINE)


PYTHON = [line for line in COMMANDS if line.startswith("python ")]


@pytest.mark.parametrize("command", PYTHON)
def test_every_option_in_the_readme_exists(command):
    words = shlex.split(command)
    given, arguments = (app, words[3:]) if words[1:3] == ["-m", "cassava_kit"] else (submit_app, words[2:])
    assert given is app or words[1] == "submit.py"
    group: Any = typer.main.get_command(given)
    # Parses the options and runs nothing; a usage error where a command or an option does not exist.
    group.get_command(None, arguments[0]).make_context(arguments[0], arguments[1:])


def test_linked_files_exist():
    for target in re.findall(r"\]\((?!http)([^)#]+)\)", README):
        assert (ROOT / target).is_file(), target


def test_the_file_tree_is_true_and_names_every_room():
    tree = README.split("## Where things are")[1].split("```")[1]
    named = set()
    for line in tree.strip().splitlines():
        names = re.findall(r"[\w-]+/(?=\s|$)|[\w-]+\.(?:py|txt|json)|Makefile", line)
        package = ROOT / "cassava_kit"
        places = [package, package / names[0]] if line.startswith("  ") else [ROOT]
        for name in names:
            assert any((place / name).exists() for place in places), f"{name} is in the README's tree alone"
        named |= {name.removesuffix("/") for name in names if line.startswith("  ")}
    rooms = {path.name for path in package.iterdir() if not path.name.startswith("__") and path.name != "py.typed"}
    assert rooms <= named


def test_nothing_of_the_users_is_tracked():
    listed = subprocess.run(["git", "ls-files"], capture_output=True, text=True, cwd=ROOT)
    if listed.returncode:
        pytest.skip("not a git checkout")
    names = listed.stdout.splitlines()
    assert not [
        name for name in names if name.startswith(("build/", "runs/", ".venv/")) or name.endswith((".pth", ".tfrec"))
    ]
