"""Print a verb's result as text or, with `--json`, as one JSON document. Entry points: `AsJson`, `print_result`."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from contextlib import nullcontext, redirect_stdout
from dataclasses import dataclass
from typing import Annotated, Any

import typer

AsJson = Annotated[
    bool, typer.Option("--json", help="Print one JSON document; everything else goes to standard error.")
]


@dataclass(frozen=True)
class Result:
    """What a verb found: lines for a terminal, and the same as values that JSON can hold."""

    text: str
    values: dict[str, Any]


def print_result(make: Callable[[], Result], *, as_json: bool) -> Result:
    """Print what `make` returns, and return it; with `as_json` the JSON document alone is on standard output."""
    with redirect_stdout(sys.stderr) if as_json else nullcontext():
        result = make()
    print(json.dumps(result.values, indent=2, ensure_ascii=False, allow_nan=False) if as_json else result.text)
    return result
