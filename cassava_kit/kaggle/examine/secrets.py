"""Rule on secrets: keys and tokens in a notebook's cells and kept outputs; a value is never shown."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator

from cassava_kit.kaggle.examine.cells import Cell
from cassava_kit.kaggle.examine.finding import Finding, found_in
from cassava_kit.kaggle.examine.reading import Reading
from cassava_kit.kaggle.pack.credentials import SECRET_NAME, TOKEN_SHAPES

SECRET = "secret in a cell"
_ADVICE = (
    "take it out, make a new one, and read it by kaggle_secrets.UserSecretsClient().get_secret(NAME) where there is "
    "internet; its value is not shown here"
)
BARE_KEY = re.compile(r"(?<![0-9A-Za-z])([0-9a-f]{32}|[0-9a-f]{40})(?![0-9A-Za-z])")
# What makes a bare hexadecimal number a key.
KEY_WORDS = re.compile(r"wandb|login|api|key|token|secret|password|kaggle\.json", re.IGNORECASE)
PASSWORD = re.compile(r"passw(or)?d|passphrase|secret|api_?key|access_?key", re.IGNORECASE)
_PLACEHOLDER = re.compile(
    r"your|xxx|\*\*\*|\.\.\.|<|>|\{|example|secret|token|password|changeme|here|none|null|dummy", re.IGNORECASE
)


def secret_findings(reading: Reading) -> Iterator[Finding]:
    """Yield lines that hold a secret, each once."""
    for cell in reading.source.cells:
        lines = {number for number, line in enumerate(cell.source.splitlines(), start=1) if _is_token(line)}
        lines |= set(_named_secrets(reading, cell))
        for line in sorted(lines):
            yield found_in(cell, line, SECRET, f"this line holds a key or token; {_ADVICE}", code="")
        if any(_is_token(line) for line in cell.outputs.splitlines()):
            yield found_in(
                cell, 1, SECRET, f"the kept output of this cell holds a key or token; clear it, then {_ADVICE}", code=""
            )


def _is_token(line: str) -> bool:
    """Return whether a line holds a string in the shape of an access token."""
    match = TOKEN_SHAPES.search(line.encode())
    if match is None:
        return False
    bare = BARE_KEY.fullmatch(match[0].decode())
    return bare is None or bool(
        KEY_WORDS.search(line.replace(match[0].decode(), "")) and not re.search("md5|sha|commit|git", line)
    )


def _named_secrets(reading: Reading, cell: Cell) -> Iterator[int]:
    """Yield the lines on which a name of a secret is given a value that is written out."""
    for node in ast.walk(cell.tree) if cell.tree is not None else ():
        pairs: list[tuple[str, ast.expr]] = []
        if isinstance(node, ast.Assign):
            pairs = [(_name(target), node.value) for target in node.targets]
        elif isinstance(node, ast.keyword) and node.arg:
            pairs = [(node.arg, node.value)]
        elif isinstance(node, ast.Dict):
            pairs = [
                (key.value, value)
                for key, value in zip(node.keys, node.values, strict=True)
                if isinstance(key, ast.Constant) and isinstance(key.value, str)
            ]
        for name, value in pairs:
            text = value.value if isinstance(value, ast.Constant) else None
            if SECRET_NAME.search(name) and isinstance(text, str) and _is_written_out(name, text):
                yield value.lineno


def _name(target: ast.expr) -> str:
    if isinstance(target, ast.Name | ast.Attribute):
        return target.id if isinstance(target, ast.Name) else target.attr
    key = target.slice if isinstance(target, ast.Subscript) else None
    return key.value if isinstance(key, ast.Constant) and isinstance(key.value, str) else ""


def _is_written_out(name: str, value: str) -> bool:
    """Return whether a value is a secret and no placeholder, path, column or model's name."""
    if _PLACEHOLDER.search(value) or re.search(r"[\s/\\]", value):
        return False
    if PASSWORD.search(name) and len(value) >= 6 and not re.fullmatch(r"[A-Z_]+", value):
        return True
    digits, letters = sum(map(str.isdigit, value)), sum(map(str.isalpha, value))
    words = re.fullmatch(r"[a-z]+\d*([_\-.][a-z]*\d*[a-z]*)*", value)
    return len(value) >= 16 and digits >= 3 and letters >= 3 and not words
