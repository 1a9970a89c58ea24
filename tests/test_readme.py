"""House rules: the README's commands exist, its figures name their commands, and its files are there."""

import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

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
    program = words[1:4] if words[1] == "-m" else words[1:2]
    shown = subprocess.run([sys.executable, *program, "--help"], capture_output=True, text=True, cwd=ROOT, timeout=60)
    assert shown.returncode == 0, shown.stderr
    for option in (word for word in words if word.startswith("--")):
        assert re.search(rf"{option}\b", shown.stdout), f"{option} is not an option of {' '.join(program)}"


def test_linked_files_exist():
    for target in re.findall(r"\]\((?!http)([^)#]+)\)", README):
        assert (ROOT / target).is_file(), target


def test_the_file_tree_is_true():
    tree = README.split("## Where things are")[1].split("```")[1]
    for line in tree.strip().splitlines():
        inside = line.startswith("  ")
        base = ROOT / "cassava_kit" if inside else ROOT
        for name in re.findall(r"[\w-]+/(?=\s|$)|[\w-]+\.(?:py|txt|json)|Makefile", line):
            assert (base / name).exists() or (ROOT / name).exists(), f"{name} is in the README's tree alone"


def test_nothing_of_the_users_is_tracked():
    listed = subprocess.run(["git", "ls-files"], capture_output=True, text=True, cwd=ROOT)
    if listed.returncode:
        pytest.skip("not a git checkout")
    names = listed.stdout.splitlines()
    assert not [
        name for name in names if name.startswith(("build/", "runs/", ".venv/")) or name.endswith((".pth", ".tfrec"))
    ]
