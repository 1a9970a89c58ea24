"""A bar for what takes longer than two seconds."""

from __future__ import annotations

from typing import Any

BAR_AFTER_SECONDS = 2.0


def progress_bar(total: int, text: str, *, show: bool = True) -> Any:
    """A tqdm bar on a terminal that appears only after two seconds; use it as a context manager and `update(n)` it."""
    from tqdm import tqdm

    return tqdm(total=total, desc=text, unit="img", delay=BAR_AFTER_SECONDS, disable=None if show else True)
