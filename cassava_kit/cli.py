"""What the command lines share: errors as one line with exit code 2, and the traceback on request."""

from __future__ import annotations

import signal
import sys
from collections.abc import Sequence
from pathlib import Path

import typer


def run_app(app: typer.Typer, arguments: Sequence[str]) -> int:
    """Run a typer app and return its exit code; `--verbose` anywhere shows the traceback of an error."""
    verbose = "--verbose" in arguments
    arguments = [argument for argument in arguments if argument != "--verbose"]
    try:
        result = app(args=arguments, standalone_mode=False, prog_name=app.info.name or "python -m cassava_kit")
        return result if isinstance(result, int) else 0
    except (KeyboardInterrupt, typer.Abort):
        print("stopped", file=sys.stderr)
        return 130
    except SystemExit as ended:
        if ended.code is not None:
            raise
        print("stopped", file=sys.stderr)  # Lightning leaves a fit that SIGTERM reached by an exit without a code
        return 128 + signal.SIGTERM
    except Exception as error:
        if verbose:
            raise
        message = user_message(error)
        if message is None:
            raise
        print(f"error: {message}", file=sys.stderr)
        return 2


def user_message(error: Exception) -> str | None:
    """One line for an error that the user can mend; None for one that is ours."""
    if hasattr(error, "format_message"):  # a usage error of the command line itself
        return " ".join(str(error.format_message()).split()) or "see --help"
    if isinstance(error, ValueError | OSError):  # a file that is a folder, a full disk, no permission
        return " ".join(str(error).split())
    return None


def named_file(text: str, expected: str) -> tuple[str, Path]:
    """`NAME=FILE` of an option; ValueError that says what was expected, e.g. `--init takes NAME=FILE`."""
    name, equals, file = text.partition("=")
    if not (name and equals and file):
        raise ValueError(f"{expected}, got {text!r}")
    return name, Path(file)
