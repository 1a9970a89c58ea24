"""Find the user's credentials and keep them out of what is packed or printed: `collect_secrets`, `refuse_secrets`."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterable, Mapping
from pathlib import Path

from cassava_kit.errors import UserError

# Variables with a secret value: a long word anywhere in the name, or a short one between underscores.
SECRET_NAME = re.compile(
    r"TOKEN|SECRET|PASSWO?R?D|PASSPHRASE|API_?KEY|CREDENTIAL|(^|_)(PAT|KEY|PASS|PW)(_|\d|$)|_PWD(_|\d|$)", re.IGNORECASE
)
# Access tokens of Kaggle, Hugging Face, GitHub, GitLab, OpenAI, AWS, Slack and Google, JSON web tokens, private keys,
# and bare hexadecimal keys: 32 digits as in kaggle.json, 40 as of Weights & Biases.
TOKEN_SHAPES = re.compile(
    rb"\bKGAT_[A-Za-z0-9]{16,}|\bhf_[A-Za-z0-9]{20,}|\bgh[pousr]_[A-Za-z0-9]{20,}|\bgithub_pat_\w{20,}"
    rb"|\bglpat-[\w-]{20,}|\bsk-[\w-]{20,}|\bAKIA[A-Z0-9]{16}\b|\bxox[abprs]-[\w-]{10,}|\bAIza[\w-]{35}"
    rb"|-----BEGIN [A-Z ]*PRIVATE KEY-----|\beyJ[\w-]{10,}\.[\w-]{10,}\."
    rb"|(?<![0-9A-Za-z])([0-9a-f]{32}|[0-9a-f]{40})(?![0-9A-Za-z])"
)
SECRET_FILES = ("kaggle.json", "access_token", "access_token.txt", "credentials.json")
SECRET_KEYS = ("key", "access_token", "refresh_token", "token")
SHORTEST = 8
READ_BYTES = 1 << 20
# The query of an address, which may be a signature that gives access to the file; a backslash is an escape of JSON.
QUERY = re.compile(r"\?[^\s'\"<>()=\\]+=[^\s'\"<>()\\]*")


def collect_secrets(folders: Iterable[Path] = (), environment: Mapping[str, str] | None = None) -> set[str]:
    """Return the secrets in the environment, in the Kaggle client's files, and in files of those names in `folders`."""
    environment = os.environ if environment is None else environment
    values = {value for name, value in environment.items() if SECRET_NAME.search(name)}
    named = [Path(environment[name]) for name in ("KAGGLE_CONFIG_DIR",) if environment.get(name)]
    for folder in [*named, Path.home() / ".kaggle", Path.home() / ".config" / "kaggle", *folders]:
        for name in SECRET_FILES:
            values |= _read_secrets(folder / name)
    # KAGGLE_API_TOKEN may name a file that holds the token.
    values |= _read_secrets(Path(environment.get("KAGGLE_API_TOKEN") or "/nonexistent"))
    return {value.strip() for value in values if len(value.strip()) >= SHORTEST}


def _read_secrets(path: Path) -> set[str]:
    """Return the secrets in one of the client's files: the values of known keys in JSON, else the whole text."""
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, ValueError):
        return set()
    try:
        content = json.loads(text)
    except json.JSONDecodeError:
        return {text}
    return {str(content[key]) for key in SECRET_KEYS if key in content} if isinstance(content, dict) else {text}


def refuse_written_secrets(paths: Iterable[Path], secrets: set[str], *, root: Path) -> None:
    """Refuse source files that hold one of the secrets, or a string in the shape of an access token.

    Raises:
        UserError: with each file, below `root`, and line; never with the value.
    """
    needles = [secret.encode() for secret in secrets]
    found = []
    for path in sorted(paths):
        for number, line in enumerate(path.read_bytes().splitlines(), start=1):
            if TOKEN_SHAPES.search(line) or any(needle in line for needle in needles):
                found.append(f"{path.relative_to(root)}:{number}")
    if found:
        raise UserError(
            f"{', '.join(found)}: the line holds a credential, or what looks like one (its value is not shown); "
            "read it from a file outside the repository, or from the environment, and package again"
        )


def refuse_secrets(folder: Path, secrets: set[str]) -> None:
    """Refuse a folder with a file that holds one of the secrets.

    Raises:
        UserError: with the name of the file, never with the value.
    """
    needles = [secret.encode() for secret in secrets]
    for path in sorted(folder.iterdir()):
        if needles and _holds(path, needles):
            raise UserError(f"{path.name} holds one of your credentials; remove it from the sources and package again")


def _holds(path: Path, needles: list[bytes]) -> bool:
    overlap, before = max(map(len, needles)), b""
    with path.open("rb") as file:
        while chunk := file.read(READ_BYTES):
            window = before + chunk
            if any(needle in window for needle in needles):
                return True
            before = window[-overlap:]
    return False


def redact(text: str, secrets: Iterable[str]) -> str:
    """Return the text with every secret replaced by `***`, longer ones first."""
    for secret in sorted(secrets, key=len, reverse=True):
        text = text.replace(secret, "***")
    return text


def strip_queries(text: str) -> str:
    """Return the text with the query of every address replaced by `***`."""
    return QUERY.sub("?***", text)
