"""Build and run a command line: help by stage, mistakes as one line. Entry points: `make_app`, `exit_with`, `run_app`.

Exit codes: 0; 1 where something examined or rehearsed failed; 2 for a mistake of the user's; 70 for a bug, with its
traceback; 130 for one stopped by Ctrl-C, 143 by SIGTERM. Without a command the help is printed, with exit code 0.
"""

from __future__ import annotations

import errno
import sys
import traceback
from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, NoReturn

import typer
from typer.core import TyperCommand, TyperGroup

from cassava_kit.errors import Stopped, UserError, stopped_by_signals
from cassava_kit.files import check_writable

BUG = 70  # EX_SOFTWARE of sysexits.h
# Options of before, by command, and what they are called now.
RENAMED = {
    ("pretrain", "--init"): "--weights",
    ("pretrain", "--backbone"): "--model",
    ("ssl-report", "--init"): "--weights",
    ("predict", "--members"): "--member",
    ("submission", "--weights"): "--ensemble",
    ("submission", "--memory"): "--pixel-memory",
    ("recipes", "--images"): "--n-images",
    ("ensemble", "--recipes"): "--recipe (once for each)",
    ("train", "--recipe"): "an argument: train RECIPE",
    ("ablate", "--recipe"): "an argument: ablate RECIPE",
    ("ssl-report", "--recipe"): "an argument: ssl-report RECIPE",
}
# Stage -> command -> its function and the rest of its example.
CommandTable = Mapping[str, Mapping[str, tuple[Callable[..., Any], str]]]


class StageGroup(TyperGroup):
    """Commands listed by stage, the `rich_help_panel` of each, with a whole sentence."""

    def list_commands(self, ctx: Any) -> list[str]:
        """Return the names in the order of the stages; a group of commands comes last."""
        return sorted(self.commands, key=lambda name: isinstance(self.commands[name], TyperGroup))

    def format_commands(self, ctx: Any, formatter: Any) -> None:
        """Write one section a stage."""
        stages: dict[str, list[tuple[str, str]]] = {}
        for name in self.list_commands(ctx):
            command: Any = self.get_command(ctx, name)
            stages.setdefault(command.rich_help_panel, []).append((name, command.get_short_help_str(limit=200)))
        for stage, rows in stages.items():
            with formatter.section(stage):
                formatter.write_dl(rows)


class CheckedCommand(TyperCommand):
    """A command that refuses, before any work, a folder of data that is a file and an output that cannot be written."""

    def invoke(self, ctx: Any) -> Any:
        """Check `--data` and `--out`, and run the command."""
        data, out = ctx.params.get("data"), ctx.params.get("out")
        if isinstance(data, Path) and data.is_file():
            raise UserError(f"--data takes a competition's folder, got the file {data}; give its folder {data.parent}")
        if isinstance(out, Path):
            check_writable(out)
        return super().invoke(ctx)


class RecipeCommand(CheckedCommand):
    """A command that takes a recipe: its help lists their names and says where the settings are."""

    def format_epilog(self, ctx: Any, formatter: Any) -> None:
        """Write the recipes before the example."""
        from cassava_kit.training.recipes import recipe_names

        with formatter.section("Recipes"):
            formatter.write_text(f"{', '.join(recipe_names())}; timm:NAME for any model of timm; logreg (train alone)")
            formatter.write_text("`cassava-kit recipes` says what each is, `cassava-kit recipes NAME` its settings.")
        super().format_epilog(ctx, formatter)


def make_app(
    program: str,
    stages: CommandTable,
    *,
    text: str,
    group: type[StageGroup] = StageGroup,
    takes_recipe: Collection[str] = (),
) -> typer.Typer:
    """Return the app of these commands; `takes_recipe` names those whose help lists the recipes."""
    app = typer.Typer(
        name=program, cls=group, add_completion=False, rich_markup_mode=None, pretty_exceptions_enable=False
    )
    app.callback(help=text, epilog=f"`{program} COMMAND --help` shows its options.", invoke_without_command=True)(
        _print_help
    )
    for stage, commands in stages.items():
        for name, (function, example) in commands.items():
            kind = RecipeCommand if name in takes_recipe else CheckedCommand
            shown = f"\b\nExample:\n  {program} {name} {example}".rstrip()
            app.command(name, cls=kind, rich_help_panel=stage, epilog=shown)(function)
    return app


def _print_help(
    context: typer.Context,
    verbose: Annotated[bool, typer.Option("--verbose", help="Show the whole traceback of an error.")] = False,
) -> None:
    """Print the help where no command is given; `run_app` itself takes `--verbose`, wherever it stands."""
    if context.invoked_subcommand is None:
        print(context.get_help())


def exit_with(app: typer.Typer) -> NoReturn:
    """Run the command of this process and exit with its code; a bug shows its traceback."""
    try:
        code = run_app(app, sys.argv[1:])
    except Exception:
        traceback.print_exc()
        code = BUG
    sys.exit(code)


def run_app(app: typer.Typer, arguments: Sequence[str]) -> int:
    """Run an app and return its exit code; `--verbose` anywhere shows the traceback of a mistake too."""
    verbose = "--verbose" in arguments
    arguments = [argument for argument in arguments if argument != "--verbose"]
    try:
        with stopped_by_signals():
            result = app(args=arguments, standalone_mode=False, prog_name=app.info.name)
        return result if isinstance(result, int) else 0
    except Stopped as stopped:
        if str(stopped):  # of several processes of one run the first one says it
            print(stopped, file=sys.stderr)
        return stopped.code
    except typer.Abort:  # the end of the input, where a question was asked
        print("stopped", file=sys.stderr)
        return 130
    except Exception as error:
        message = user_message(error)
        if message is None:
            raise
        if verbose:
            traceback.print_exc()
        print(f"error: {message}", file=sys.stderr)
        return 2


def user_message(error: Exception) -> str | None:
    """Return one line for an error that the user can mend; None for a bug, of the kit's or of a library's."""
    if hasattr(error, "format_message"):  # a usage error of the command line itself
        return _usage_message(error)
    return " ".join(str(error).split()) if isinstance(error, UserError) or _of_a_file(error) else None


def _of_a_file(error: Exception) -> bool:
    """Return whether an error is of a file or a folder: one that is named, not there or not permitted, a full disk."""
    kinds = (FileNotFoundError, FileExistsError, IsADirectoryError, NotADirectoryError, PermissionError)
    full = (errno.ENOSPC, errno.EDQUOT)
    return isinstance(error, kinds) or (isinstance(error, OSError) and (bool(error.filename) or error.errno in full))


def _usage_message(error: Any) -> str:
    """Return what the command line says of its own error, with the new name of a renamed option or its setting."""
    option = getattr(error, "option_name", "")
    renamed = RENAMED.get((error.ctx.info_name if error.ctx else "", option))
    if renamed is not None:
        return f"{option} is now {renamed}"
    name = option.lstrip("-").replace("-", "_")
    if name in _settings_of(error.ctx):
        return f"{option} is a setting: use --set {name}=VALUE"
    return " ".join(str(error.format_message()).split()) or "see --help"


def _settings_of(context: Any) -> Collection[str]:
    """Return the settings that `--set` of a command takes; none where it has no such option."""
    if context is None or not any("--set" in parameter.opts for parameter in context.command.params):
        return ()
    from cassava_kit.training.config import RunConfig
    from cassava_kit.training.ssl.config import PretrainConfig

    return (PretrainConfig if context.info_name == "pretrain" else RunConfig).model_fields


def named_file(text: str, expected: str) -> tuple[str, Path]:
    """Split `NAME=FILE` of an option.

    Raises:
        UserError: It is not of that form; `expected` begins the message, e.g. `--weights takes NAME=FILE`.
    """
    name, equals, file = text.partition("=")
    if not (name and equals and file):
        raise UserError(f"{expected}, got {text!r}")
    return name, Path(file)
