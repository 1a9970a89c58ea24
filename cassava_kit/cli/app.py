"""Run a typer app for the command line: grouped help, errors as one line with exit code 2. Entry point: `run_app`."""

from __future__ import annotations

import signal
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import typer
from typer.core import TyperCommand, TyperGroup

from cassava_kit.errors import UserError

# Options of before, by verb, and what they are called now.
RENAMED = {
    ("pretrain", "--init"): "--weights",
    ("pretrain", "--backbone"): "--model",
    ("ssl-report", "--init"): "--weights",
    ("predict", "--members"): "--member",
    ("submission", "--weights"): "--ensemble",
    ("submission", "--memory"): "--pixel-memory",
    ("recipes", "--images"): "--n-images",
    ("ensemble", "--recipes"): "--recipe (once for each)",
}


class StageGroup(TyperGroup):
    """Commands listed by stage, the `rich_help_panel` of each, with a whole sentence."""

    def format_commands(self, ctx: Any, formatter: Any) -> None:
        """Write one section a stage."""
        stages: dict[str, list[tuple[str, str]]] = {}
        for name in self.list_commands(ctx):
            command: Any = self.get_command(ctx, name)
            stages.setdefault(command.rich_help_panel, []).append((name, command.get_short_help_str(limit=200)))
        for stage, rows in stages.items():
            with formatter.section(stage):
                formatter.write_dl(rows)


class RecipeCommand(TyperCommand):
    """A command that takes a recipe: its help lists their names and says where the settings are."""

    def format_epilog(self, ctx: Any, formatter: Any) -> None:
        """Write the recipes before the example."""
        from cassava_kit.training.recipes import recipe_names

        with formatter.section("Recipes"):
            formatter.write_text(f"{', '.join(recipe_names())}; timm:NAME for any model of timm; logreg (train alone)")
            formatter.write_text("`cassava-kit recipes` says what each is, `cassava-kit recipes NAME` its settings.")
        super().format_epilog(ctx, formatter)


def example(command: str) -> str:
    """Return the epilog that shows one command, unwrapped."""
    return f"\b\nExample:\n  {command}"


def run_app(app: typer.Typer, arguments: Sequence[str]) -> int:
    """Run a typer app and return its exit code: 0, 2 for a mistake of the user's, 130 or 143 for a stopped run.

    `--verbose` anywhere shows the traceback of a mistake too.
    """
    verbose = "--verbose" in arguments
    arguments = [argument for argument in arguments if argument != "--verbose"]
    try:
        result = app(args=arguments, standalone_mode=False, prog_name=app.info.name or "cassava-kit")
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
    """Return one line for an error that the user can mend; None for a bug."""
    if hasattr(error, "format_message"):  # a usage error of the command line itself
        return _usage_message(error)
    if isinstance(error, ValueError | OSError):  # a file that is a folder, a full disk, no permission
        return " ".join(str(error).split())
    return None


def _usage_message(error: Any) -> str:
    """Return what the command line says of its own error, with the new name of a renamed option."""
    renamed = RENAMED.get((error.ctx.info_name if error.ctx else "", getattr(error, "option_name", "")))
    if renamed is not None:
        return f"{error.option_name} is now {renamed}"
    return " ".join(str(error.format_message()).split()) or "see --help"


def named_file(text: str, expected: str) -> tuple[str, Path]:
    """Split `NAME=FILE` of an option.

    Raises:
        UserError: It is not of that form; `expected` begins the message, e.g. `--weights takes NAME=FILE`.
    """
    name, equals, file = text.partition("=")
    if not (name and equals and file):
        raise UserError(f"{expected}, got {text!r}")
    return name, Path(file)
