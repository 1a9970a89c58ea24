"""The shell commands of a notebook, whichever way they are started: `shell_commands`."""

from __future__ import annotations

import ast
import re
import shlex
from collections.abc import Iterator
from dataclasses import dataclass

from cassava_kit.kaggle.examine.cells import Cell
from cassava_kit.kaggle.examine.constants import HOLE, NOT_KNOWN
from cassava_kit.kaggle.examine.reading import Call, Reading

STARTED_BY = frozenset({"os.system", "os.popen", "subprocess.getoutput", "subprocess.getstatusoutput"})
STARTED_AS_LIST = frozenset(f"subprocess.{name}" for name in ("run", "call", "check_call", "check_output", "Popen"))
SHELL_LINE_MAGICS = frozenset({"system", "sx", "bash", "sh"})
COMMAND_MAGICS = frozenset({"pip", "conda", "mamba", "uv"})
# What may stand before a command's own name.
PREFIXES = frozenset({"sudo", "nohup", "time", "exec", "env", "yes"})


@dataclass(frozen=True)
class Command:
    """One command as words, its place, and the node that starts it (None: a line of a shell's cell)."""

    words: tuple[str, ...]
    cell: Cell
    line: int
    node: ast.AST | None

    @property
    def name(self) -> str:
        """The program's own name, without its folder; `pip` for `python -m pip`."""
        return self.words[0].rpartition("/")[2]


def shell_commands(reading: Reading) -> list[Command]:
    """Return every command, in the order of the source; `&&`, `;` and pipes part them."""
    found = [
        Command(words, cell, line.line, None)
        for cell in reading.source.cells
        for line in cell.shell
        for words in split_commands(line.text)
    ]
    for call in reading.calls:
        cell = reading.cell_of[call.node]
        for text in _texts(reading, call):
            found += [Command(words, cell, call.node.lineno, call.node) for words in split_commands(text)]
    return sorted(found, key=lambda command: (command.cell.number, command.line))


def _texts(reading: Reading, call: Call) -> Iterator[str]:
    """Yield the command lines that a call starts; names in braces are filled in where they are known."""
    method = call.node.func.attr if isinstance(call.node.func, ast.Attribute) else ""
    if call.name.startswith("get_ipython") or _is_shell(reading, call.node.func):
        given = [reading.evaluator.one(each) for each in call.args]
        texts = [each for each in given if isinstance(each, str)]
        if method in ("system", "getoutput", "getoutput_", "system_raw") and texts:
            yield _filled(reading, call.node, texts[0])
        elif method in ("run_line_magic", "magic") and texts:
            name, _, rest = " ".join(texts).partition(" ")
            if name in COMMAND_MAGICS:
                yield _filled(reading, call.node, f"{name} {rest}")
            elif name in SHELL_LINE_MAGICS:
                yield _filled(reading, call.node, rest)
        elif method == "run_cell_magic" and len(texts) == 3 and texts[0] in SHELL_LINE_MAGICS:
            yield from texts[2].splitlines()
    elif call.name in STARTED_BY | STARTED_AS_LIST and call.args:
        for value in reading.evaluator.known(call.args[0]):
            if isinstance(value.data, str):
                yield value.data
            elif isinstance(value.data, list | tuple):
                yield shlex.join(HOLE if word is NOT_KNOWN else str(word) for word in value.data)
    elif call.name in ("pip.main", "pip._internal.main", "pip._internal.cli.main.main") and call.args:
        words = reading.evaluator.one(call.args[0])
        if isinstance(words, list | tuple):
            yield shlex.join(["pip", *(HOLE if word is NOT_KNOWN else str(word) for word in words)])


def _is_shell(reading: Reading, func: ast.expr) -> bool:
    """Return whether a method is one of `get_ipython()`."""
    base = func.value if isinstance(func, ast.Attribute) else None
    return isinstance(base, ast.Call) and reading.qualified(base.func).rpartition(".")[2] == "get_ipython"


def _filled(reading: Reading, node: ast.AST, text: str) -> str:
    """Return a command with `{name}` and `$name` replaced by what they are, or by a hole."""

    def fill(match: re.Match[str]) -> str:
        name = match[1] or match[2]
        try:
            tree = ast.parse(name.strip(), mode="eval").body
        except SyntaxError:
            return match[0]
        if isinstance(tree, ast.Attribute) and name.strip() == "sys.executable":
            return "python"
        for each in ast.walk(tree):
            reading.parents.setdefault(each, node)
        known = reading.evaluator.one(tree)
        return HOLE if known is NOT_KNOWN else str(known)

    return re.sub(r"(?<!\{)\{([^{}]+)\}(?!\})|\$([A-Za-z_]\w*)", fill, text)


def split_commands(text: str) -> Iterator[tuple[str, ...]]:
    """Yield the commands of a shell line as words, without redirections; `python -m pip` becomes `pip`."""
    try:
        lexer = shlex.shlex(text, posix=True, punctuation_chars="();<>|&")
        lexer.whitespace_split, lexer.commenters = True, "#"
        words = list(lexer)
    except ValueError:
        words = text.split()
    command: list[str] = []
    skip = False
    for word in [*words, ";"]:
        if skip:
            skip = False
        elif set(word) <= set("<>") or re.fullmatch(r"[<>]+&?", word):
            skip = True
        elif set(word) <= set("();|&"):
            if cleaned := _without_prefix(command):
                yield tuple(cleaned)
            command = []
        else:
            command.append(word)


def _without_prefix(words: list[str]) -> list[str]:
    while words and (words[0] in PREFIXES or re.fullmatch(r"\w+=\S*", words[0])):
        words = words[1:]
    if len(words) > 2 and re.fullmatch(r"(.*/)?(python[\d.]*|\0)", words[0]) and words[1] == "-m":
        return words[2:]
    return ["pip", *words[1:]] if words and re.fullmatch(r"(.*/)?pip[\d.]*", words[0]) else words
