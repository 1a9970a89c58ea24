"""Errors that the user can mend: `UserError`, and `closest` for the name that was meant."""

from __future__ import annotations

from collections.abc import Iterable
from difflib import get_close_matches
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pydantic import ValidationError


class UserError(ValueError):
    """A mistake in what the user gave: an option, a setting, a file.

    The message says what was expected, what came, and what to do. The command line prints it as one line and exits
    with code 2; every other exception is a bug and keeps its traceback.

    Example:
        >>> raise UserError("fold must be in 0..4, got 7; folds/kfold5.csv has 5 folds")
        Traceback (most recent call last):
        cassava_kit.errors.UserError: fold must be in 0..4, got 7; folds/kfold5.csv has 5 folds
    """


def closest(name: str, names: Iterable[str]) -> str:
    """Return " (did you mean X or Y?)" with the nearest of `names`, or an empty text where no name is similar.

    Example:
        >>> closest("resnet5O", ["resnet50", "vit_base"])
        ' (did you mean resnet50?)'
    """
    near = get_close_matches(name, list(names), n=3)
    return f" (did you mean {' or '.join(near)}?)" if near else ""


def format_errors(error: ValidationError) -> str:
    """Return pydantic's errors as one line: field, what is wrong, what came."""
    parts = []
    for item in error.errors():
        where = ".".join(map(str, item["loc"]))
        message = item["msg"].removeprefix("Value error, ")
        parts.append(f"{where}: {message}, got {item['input']!r}" if where else message)
    return "; ".join(parts)
