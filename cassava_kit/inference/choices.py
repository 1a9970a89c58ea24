"""What a submission run may be asked for, by name; imports nothing heavy, so that a wrong name is refused at once."""

from __future__ import annotations

import re
from collections.abc import Sequence

from cassava_kit.errors import UserError

VIEWS = ("none", "flips", "d4", "d4+zoom")
EARLY_STOP = ("certified", "off")


def check_choice(name: str, value: str, choices: tuple[str, ...]) -> str:
    """Return `value` if it is one of `choices`; UserError with the list otherwise."""
    if value not in choices:
        raise UserError(f"{name} must be one of {', '.join(choices)}, got {value!r}")
    return value


def check_device(device: str | Sequence[str]) -> None:
    """UserError unless it is `auto`, `cpu`, `cuda` or a numbered GPU, or a list of the last three."""
    named = [device] if isinstance(device, str) else device
    if device != "auto" and not (named and all(re.fullmatch(r"cpu|cuda(:\d+)?", name) for name in named)):
        raise UserError(f"device must be auto, cpu, cuda or a GPU such as cuda:0, got {device!r}")
