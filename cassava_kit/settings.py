"""cassava_kit.settings."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any, Self, TypeVar

from pydantic import BaseModel, ConfigDict, ValidationError

# By it the seeds of epochs, batches and rows are kept apart.
SEED_PRIME = 1_000_003


LARGEST_SEED = 2**32 - 1  # numpy takes no larger one


class Settings(BaseModel):
    """A configuration: it cannot be changed, and a bad value dies as it is made."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    def with_settings(self, settings: Sequence[str]) -> Self:
        """This configuration with `name=value` settings applied; values are JSON, or plain strings."""
        changed = dict(parse_setting(setting) for setting in settings)
        for name in changed:
            if name not in type(self).model_fields:
                raise ValueError(f"no setting {name!r}; settings are {', '.join(type(self).model_fields)}")
        return replace(self, **changed)

    @classmethod
    def from_values(cls, values: dict[str, Any]) -> Self:
        """A configuration from plain values, its errors as one line."""
        try:
            return cls.model_validate(values)
        except ValidationError as error:
            raise ValueError(one_line(error)) from None


AnySettings = TypeVar("AnySettings", bound=Settings)


def replace(config: AnySettings, **changes: Any) -> AnySettings:
    """The configuration with some fields changed, checked again."""
    return type(config).from_values({**config.model_dump(), **changes})


def parse_setting(setting: str) -> tuple[str, Any]:
    """Split `name=value`; the value is JSON where it parses as JSON and a string otherwise."""
    name, equals, text = setting.partition("=")
    if not (name and equals):
        raise ValueError(f"expected name=value, got {setting!r}")
    try:
        return name.strip(), json.loads(text)
    except json.JSONDecodeError:
        return name.strip(), {"None": None, "True": True, "False": False}.get(text, text)


def one_line(error: ValidationError) -> str:
    """pydantic's findings as one line: field, what is wrong, what came."""
    parts = []
    for item in error.errors():
        where = ".".join(map(str, item["loc"]))
        message = item["msg"].removeprefix("Value error, ")
        parts.append(f"{where}: {message}, got {item['input']!r}" if where else message)
    return "; ".join(parts)
