"""Errors that are the user's to mend: `UserError`."""

from __future__ import annotations


class UserError(ValueError):
    """A mistake in what the user gave: an option, a setting, a file.

    The message says what was expected, what came, and what to do. The command line prints it as one line and exits
    with code 2; every other exception is a bug and keeps its traceback.

    Example:
        >>> raise UserError("fold must be in 0..4, got 7; folds/kfold5.csv has 5 folds")
        Traceback (most recent call last):
        cassava_kit.errors.UserError: fold must be in 0..4, got 7; folds/kfold5.csv has 5 folds
    """
