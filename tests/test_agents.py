"""The entry for MLE-bench: its files fit the benchmark's contract, and its start script leaves the best file."""

import os
import re
import stat
import subprocess
import tomllib
from pathlib import Path

import pytest
import yaml
from packaging.requirements import Requirement

from cassava_kit.training.recipes import recipe_names

ROOT = Path(__file__).parent.parent
AGENT = ROOT / "agents" / "cassava_kit"


def test_the_configuration_names_files_that_are_there():
    entry = yaml.safe_load((AGENT / "config.yaml").read_text())["cassava_kit"]
    assert set(entry) <= {"start", "dockerfile", "kwargs", "kwargs_type", "env_vars", "privileged"}
    for key in ("start", "dockerfile"):
        assert (ROOT / "agents" / entry[key]).is_file()
    assert entry["env_vars"] == {"TIME_LIMIT_SECS": 24 * 3600}
    assert (AGENT / "start.sh").stat().st_mode & stat.S_IXUSR


def test_every_dependency_is_pinned_to_a_version_that_the_kit_takes():
    lines = (AGENT / "requirements.txt").read_text().splitlines()
    pinned = {}
    for line in lines:
        name, version = re.fullmatch(r"([A-Za-z0-9._-]+)==([^ ;]+)", line).groups()
        pinned[name.lower().replace("_", "-")] = version
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    for text in project["dependencies"]:
        needed = Requirement(text)
        assert pinned[needed.name.lower()] in needed.specifier, text


def test_the_image_fetches_weights_of_recipes_that_exist():
    text = (AGENT / "Dockerfile").read_text()
    fetched = re.search(r"cassava-kit weights --out weights \\\n([^\n]+(?:\\\n[^\n]+)*)", text)[1].split()
    assert fetched and set(fetched) <= set(recipe_names())


@pytest.mark.parametrize(("code", "early"), [(0, False), (1, True)])
def test_the_start_script_leaves_the_best_file(tmp_path, code, early):
    """`cassava-kit` is a stub: it notes its arguments, writes a file, and a better one unless it fails first."""
    agent, bin_folder = tmp_path / "agent", tmp_path / "bin"
    (agent / "weights").mkdir(parents=True)
    (agent / "weights" / "tiny_vit.safetensors").touch()
    bin_folder.mkdir()
    stub = bin_folder / "cassava-kit"
    stub.write_text(
        "#!/bin/bash\n"
        f'printf "%s\\n" "$@" > {tmp_path}/arguments\n'
        f"echo early > {agent}/work/submission.csv\n"
        f"[ {code} = 0 ] && echo best > {agent}/work/submission.csv\n"
        f"exit {code}\n"
    )
    stub.chmod(0o755)
    environment = {
        "PATH": f"{bin_folder}:{os.environ['PATH']}",
        "AGENT_DIR": str(agent),
        "DATA_DIR": str(tmp_path / "data"),
        "SUBMISSION_DIR": str(tmp_path / "submission"),
        "LOGS_DIR": str(tmp_path / "logs"),
        "TIME_LIMIT_SECS": "86400",
        "COPY_SECS": "600",  # what waits to copy again ends with the script, and does not hold its output
    }
    start = [AGENT / "start.sh"]
    done = subprocess.run(start, env=environment, capture_output=True, text=True, check=False, timeout=300)
    assert done.returncode == code, done.stderr
    assert (tmp_path / "submission" / "submission.csv").read_text() == ("early\n" if early else "best\n")
    arguments = (tmp_path / "arguments").read_text().split("\n")
    assert arguments[:6] == ["submit", "ensemble", "--data", str(tmp_path / "data"), "--out", str(agent / "work")]
    assert arguments[arguments.index("--time-limit") + 1] == "85800"
    assert arguments[arguments.index("--weights") + 1] == "tiny_vit=weights/tiny_vit.safetensors"
