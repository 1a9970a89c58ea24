"""Errors that the user can mend: `UserError`, and `closest` for the name that was meant."""

from __future__ import annotations

from collections.abc import Iterable
from difflib import get_close_matches


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
    """Return " (did you mean X or Y?)" with the nearest of `names`, an empty text where none is near.

    Example:
        >>> closest("resnet5O", ["resnet50", "vit_base"])
        ' (did you mean resnet50?)'
    """
    near = get_close_matches(name, list(names), n=3)
    return f" (did you mean {' or '.join(near)}?)" if near else ""
