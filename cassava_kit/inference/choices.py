"""What a submission run may be asked for, by name; needs nothing heavy, so that a wrong name is refused at once."""

from __future__ import annotations

VIEW_PRESETS = ("none", "flips", "d4", "d4+zoom")
TTACH_ALIASES = ("flip_transform", "hflip_transform", "vlip_transform", "d4_transform")
VIEWS = (*VIEW_PRESETS, *TTACH_ALIASES)
EARLY_STOP = ("certified", "calibrated", "off")
ENGINES = ("auto", "torch", "openvino")


def check_choice(name: str, value: str, choices: tuple[str, ...]) -> str:
    """Return `value` if it is one of `choices`; ValueError with the list otherwise."""
    if value not in choices:
        raise ValueError(f"{name} must be one of {', '.join(choices)}, got {value!r}")
    return value
