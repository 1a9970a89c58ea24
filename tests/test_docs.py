"""House rules of README.md and docs/: commands exist, links lead somewhere, tables are those of the code."""

import importlib.util
import re
import shlex
import signal
import subprocess
from pathlib import Path
from typing import Any

import pytest
import typer
import yaml

from cassava_kit.cli.app import BUG
from cassava_kit.cli.submit import COMMANDS, submit_app
from cassava_kit.cli.verbs import VERBS, app
from cassava_kit.files import KIT_VERSION
from cassava_kit.training.config import RunConfig

ROOT = Path(__file__).parent.parent
PATHS = sorted(
    [*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md"), *(ROOT / name / "README.md" for name in ("folds", "kernels"))]
)
PAGES = {path.relative_to(ROOT).as_posix(): path.read_text(encoding="utf-8") for path in PATHS}
README = PAGES["README.md"]
# Pages of which every command must exist as it is written; the others are records of what was.
PRESENT = {name: text for name, text in PAGES.items() if name not in ("LOG.md", "RESULTS.md", "CHANGELOG.md")}
BLOCKS = [block for text in PRESENT.values() for block in re.findall(r"```bash\n(.*?)```", text, flags=re.DOTALL)]
COMMANDS_SHOWN = [line for block in BLOCKS for line in block.strip().splitlines()]
GROUPS: dict[str, Any] = {
    "python -m cassava_kit ": typer.main.get_command(app),
    "python submit.py ": typer.main.get_command(submit_app),
}


def without_code(text: str) -> str:
    """The page without its blocks of code."""
    return re.sub(r"```.*?```", "", text, flags=re.DOTALL)


def anchors(text: str) -> set[str]:
    """The anchors that GitHub gives a page's headings."""
    headings = re.findall(r"^#+ (.+)$", without_code(text), flags=re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def table(text: str, heading: str) -> list[list[str]]:
    """The cells of the first table below a heading, without its head."""
    lines = text.split(f"\n{heading}\n")[1].split("\n| ", 1)[1].split("\n\n")[0].splitlines()
    return [[cell.strip() for cell in row.strip("|").split(" | ")] for row in lines[2:]]


def test_the_readme_begins_with_two_commands_and_is_short():
    first = re.findall(r"```bash\n(.*?)```", README, flags=re.DOTALL)[0].splitlines()
    assert [line.split("#")[0].strip() for line in first] == ["make demo", "make test"]
    assert sum(any(map(str.isalnum, word)) for word in README.split()) < 1000


def test_the_contents_name_every_section():
    contents = README.split("## Quick start")[0]
    assert set(re.findall(r"\(#([\w-]+)\)", contents)) == anchors(README) - {"cassava-kit"}


@pytest.mark.parametrize("name", PAGES)
def test_links_lead_to_a_file_and_a_heading(name):
    for target in re.findall(r"\]\((?!https?:)([^)\s]+)\)", without_code(PAGES[name])):
        file, _, anchor = target.partition("#")
        path = (ROOT / name).parent / file if file else ROOT / name
        assert path.is_file(), f"{name}: {target}"
        if anchor:
            assert anchor in anchors(path.read_text(encoding="utf-8")), f"{name}: {target}"


def test_every_page_is_linked_from_the_readme_and_says_what_it_gives():
    for name, text in PAGES.items():
        if name.startswith("docs/"):
            assert f"]({name})" in README, name
            assert text.split("\n\n")[1].startswith("After this page you "), name


@pytest.mark.parametrize("target", sorted(set(re.findall(r"\bmake ([a-z][a-z-]+)`", "\n".join(PRESENT.values())))))
def test_make_knows_the_target(target):
    assert re.search(rf"^(?:[\w-]+ )*{target}(?: [\w-]+)*:", (ROOT / "Makefile").read_text(), flags=re.MULTILINE)


@pytest.mark.parametrize("line", sorted({line for line in COMMANDS_SHOWN if line.startswith("python ")}))
def test_every_command_of_a_block_parses(line):
    start = next(start for start in GROUPS if line.startswith(start))
    words = shlex.split(line.removeprefix(start), comments=True)
    # Parses the options and runs nothing; a usage error where a command or an option does not exist.
    GROUPS[start].get_command(None, words[0]).make_context(words[0], words[1:])


SPANS = sorted({span for text in PRESENT.values() for span in re.findall(r"`(python [^`]+)`", without_code(text))})


@pytest.mark.parametrize("span", [span for span in SPANS if span.startswith(tuple(GROUPS))])
def test_commands_within_the_text_and_their_options_exist(span):
    start = next(start for start in GROUPS if span.startswith(start))
    words = span.removeprefix(start).split()
    if words[0].isupper():  # `python -m cassava_kit VERB`
        return
    command = GROUPS[start].get_command(None, words[0])
    assert command is not None, span
    options = {name for parameter in command.params for name in (*parameter.opts, *parameter.secondary_opts)}
    assert {word for word in words if word.startswith("--")} <= options | {"--help"}, span


def test_every_verb_is_on_a_page():
    shown = "\n".join(PRESENT.values())
    for start, commands in (("cassava_kit", VERBS), ("submit.py", COMMANDS)):
        for verb in (verb for stage in commands.values() for verb in stage):
            assert re.search(rf"python (?:-m )?{re.escape(start)} {verb}\b", shown) or f"`{verb}`" in shown, verb


def test_exit_codes_are_those_of_the_command_line():
    codes = {int(row[0]) for row in table(PAGES["docs/formats.md"], "## Exit codes")}
    assert codes == {0, 1, 2, BUG, 128 + signal.SIGINT, 128 + signal.SIGTERM}


def test_every_command_with_json_has_its_keys_on_the_page():
    taking = {
        name
        for group in GROUPS.values()
        for name in group.list_commands(None)
        if "--json" in [option for parameter in group.get_command(None, name).params for option in parameter.opts]
    }
    rows = table(PAGES["docs/formats.md"].split("\n## JSON\n")[1], "```")
    assert {row[0].strip("`").split()[0] for row in rows} == taking


def test_settings_of_the_training_page_exist_with_their_values():
    for names, text in table(PAGES["docs/training.md"], "## Recipes"):
        fields = re.findall(r"`(\w+)`", names)
        assert fields and set(fields) <= set(RunConfig.model_fields), names
        choices = getattr(RunConfig.model_fields[fields[0]].annotation, "__args__", ())
        if choices and isinstance(choices[0], str):
            assert set(choices) <= set(re.findall(r"`([\w-]+)`", text)), names


def test_the_code_map_is_the_tree():
    spec = importlib.util.spec_from_file_location("code_map", ROOT / "docs" / "code_map.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    page = module.code_map(ROOT)
    assert page == PAGES["docs/code-map.md"], "docs/code-map.md is out of date; run: python docs/code_map.py"
    for path in (ROOT / "cassava_kit").rglob("*.py"):
        folder = path.parent.relative_to(ROOT).as_posix()
        section = page.split(f"\n## {folder}/\n")[1].split("\n## ")[0]
        assert path.name == "__init__.py" or re.search(rf"^\| `{path.name}` \| \S.{{10,}} \|$", section, flags=re.M), (
            path
        )


def test_the_version_is_told_once_everywhere():
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    assert citation["version"] == KIT_VERSION
    assert re.findall(r"^## (\S+)", PAGES["CHANGELOG.md"], flags=re.MULTILINE)[0] == KIT_VERSION


def test_continuous_integration_and_the_commit_hook_call_the_doors():
    doors = set(re.findall(r"^([\w-]+)(?: [\w-]+)*:", (ROOT / "Makefile").read_text(), flags=re.MULTILINE))
    workflow = yaml.safe_load((ROOT / ".github" / "workflows" / "ci.yml").read_text())
    steps = [step["run"] for job in workflow["jobs"].values() for step in job["steps"] if "run" in step]
    hooks = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text())["repos"][0]["hooks"]
    local = re.findall(r"^make [\w-]+$", (ROOT / ".ci" / "run").read_text(), flags=re.MULTILINE)
    assert steps == local and {"make check", "make test"} <= set(steps)
    assert {call.split()[1] for call in [*steps, *(hook["entry"] for hook in hooks)]} <= doors


def test_contributing_names_every_door():
    doors = set(
        re.findall(r"^([a-z][\w-]+(?: [a-z][\w-]+)*):.*  ## ", (ROOT / "Makefile").read_text(), flags=re.MULTILINE)
    )
    assert {row[0] for row in table(PAGES["CONTRIBUTING.md"], "## Set-up")} == {f"`make {door}`" for door in doors}


def test_nothing_of_the_users_is_tracked():
    listed = subprocess.run(["git", "ls-files"], capture_output=True, text=True, cwd=ROOT)
    if listed.returncode:
        pytest.skip("not a git checkout")
    names = listed.stdout.splitlines()
    assert not [
        name for name in names if name.startswith(("build/", "runs/", ".venv/")) or name.endswith((".pth", ".tfrec"))
    ]
