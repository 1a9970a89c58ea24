"""Frozen configurations that are checked as they are made. Entry point: the base class `Settings`."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any, Self, TypeVar

from pydantic import BaseModel, ConfigDict, ValidationError

from cassava_kit.errors import UserError, closest, format_errors

# Turns (seed, epoch) into one seed: `seed * SEED_PRIME + epoch` does not collide.
SEED_PRIME = 1_000_003
LARGEST_SEED = 2**32 - 1  # numpy takes no larger one


class Settings(BaseModel):
    """A frozen configuration; a bad value is refused when it is made."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    def with_settings(self, settings: Sequence[str]) -> Self:
        """Return this configuration with `name=value` settings applied; values are JSON, or plain strings.

        Raises:
            UserError: A name is no setting, or a value does not fit.
        """
        changed = dict(parse_setting(setting) for setting in settings)
        for name in changed:
            if name not in type(self).model_fields:
                names = type(self).model_fields
                raise UserError(f"no setting {name!r}{closest(name, names)}; settings are {', '.join(names)}")
        return replace(self, **changed)

    @classmethod
    def from_values(cls, values: dict[str, Any]) -> Self:
        """Return a configuration from plain values.

        Raises:
            UserError: A value does not fit; the message is one line.
        """
        try:
            return cls.model_validate(values)
        except ValidationError as error:
            raise UserError(format_errors(error)) from None


AnySettings = TypeVar("AnySettings", bound=Settings)


def replace(config: AnySettings, **changes: Any) -> AnySettings:
    """Return the configuration with some fields changed, checked again; UserError for a value that does not fit."""
    return type(config).from_values({**config.model_dump(), **changes})


def parse_setting(setting: str) -> tuple[str, Any]:
    """Split `name=value`; the value is JSON where it parses as JSON and a string otherwise."""
    name, equals, text = setting.partition("=")
    if not (name and equals):
        raise UserError(f"expected name=value, got {setting!r}")
    try:
        return name.strip(), json.loads(text)
    except json.JSONDecodeError:
        return name.strip(), {"None": None, "True": True, "False": False}.get(text, text)
