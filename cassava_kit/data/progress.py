"""Progress of long work on standard error: bars on a terminal, elsewhere a line an epoch or a minute.

Entry points: `show_progress` around a whole command, `track` and `count_steps` around a loop in it. What is nested
shares one display.
"""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sized
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

if TYPE_CHECKING:
    from rich.console import Console
    from rich.progress import Progress

Item = TypeVar("Item")
LINE_SECONDS, REMIND_SECONDS = 60.0, 5.0
EPOCH_LINE_SECONDS = 10.0  # the lines of shorter epochs are left out


class Display(Protocol):
    """Where progress is shown: the terminal or its lines (`Screen`), or another process's."""

    def add(self, label: str, total: float, done: float = 0) -> None:
        """Begin a task of `total` steps; its label tells it from the others."""

    def advance(self, label: str, steps: float = 1) -> None:
        """Count steps of a task."""

    def epoch(self, label: str, done: int, epochs: int, figure: str) -> None:
        """Say that an epoch has ended, with a figure of it."""

    def remove(self, label: str) -> None:
        """End a task."""

    def tell(self, text: str) -> None:
        """Print a line."""


@dataclass
class ShownTask:
    """A task at hand: steps, finished epochs, and when a line of it was last printed."""

    total: float
    done: float
    started: float
    said: float
    epochs: int = 0
    bar: Any = None


@dataclass
class Screen:
    """The display of one program on a console. `clock` returns seconds.

    `expect` gives it an overall bar: expected seconds by label, of which tasks and `finish` take their part.
    """

    console: Console
    clock: Callable[[], float] = time.monotonic
    tasks: dict[str, ShownTask] = field(default_factory=dict)
    expected: dict[str, float] = field(default_factory=dict)
    finished: set[str] = field(default_factory=set)
    bars: Progress | None = None
    overall: Any = None
    closed: threading.Event = field(default_factory=threading.Event)

    def __enter__(self) -> Screen:
        if self.console.is_terminal:
            self.bars = make_bars(self.console)
            self.bars.start()
        else:
            threading.Thread(target=self._remind_often, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self.closed.set()
        if self.bars is not None:
            self.bars.stop()

    def add(self, label: str, total: float, done: float = 0) -> None:
        """Begin a task of `total` steps."""
        now = self.clock()
        self.tasks[label] = ShownTask(total, done, now, now)
        if self.bars is not None:
            self.tasks[label].bar = self.bars.add_task(label, total=total, completed=int(done))

    def advance(self, label: str, steps: float = 1) -> None:
        """Count steps."""
        task = self.tasks[label]
        task.done += steps
        if self.bars is not None:
            self.bars.advance(task.bar, steps)
        self._draw_overall()

    def epoch(self, label: str, done: int, epochs: int, figure: str) -> None:
        """Show an epoch's figure; without a terminal in a line, unless the last one is a few seconds old."""
        task = self.tasks[label]
        task.epochs = done
        if self.bars is not None:
            self.bars.update(task.bar, description=f"{label}  epoch {done}/{epochs}  {figure}")
        elif self.clock() - task.said >= EPOCH_LINE_SECONDS or done == epochs:
            self._say(label, f"epoch {done} of {epochs}, {figure}")

    def remind(self) -> None:
        """Print a line of each task of which none has been printed for a minute."""
        for label, task in list(self.tasks.items()):
            if self.clock() - task.said >= LINE_SECONDS:
                self._say(label, f"{task.done:,.0f} of {task.total:,.0f}")

    def _remind_often(self) -> None:
        """Remind until the display is closed, also while one step takes minutes."""
        while not self.closed.wait(REMIND_SECONDS):
            self.remind()

    def remove(self, label: str) -> None:
        """End a task; its part of the overall bar is full."""
        task = self.tasks.pop(label, None)
        if task is not None and self.bars is not None:
            self.bars.remove_task(task.bar)
        self.finish(label)

    def tell(self, text: str) -> None:
        """Print a line, above the bars."""
        self.console.print(text, soft_wrap=True, highlight=False, markup=False)

    def expect(self, title: str, seconds: Mapping[str, float]) -> None:
        """Open the overall bar: the seconds that each label is expected to take."""
        self.expected = dict(seconds)
        if self.bars is not None:
            self.overall = self.bars.add_task(title, total=sum(seconds.values()))

    def finish(self, label: str) -> None:
        """Fill a label's part of the overall bar."""
        self.finished.add(label)
        self._draw_overall()

    def share_done(self) -> float:
        """Return the expected seconds of what is done."""
        whole = sum(seconds for label, seconds in self.expected.items() if label in self.finished)
        parts = (
            self.expected.get(label, 0) * task.done / task.total for label, task in self.tasks.items() if task.total
        )
        return whole + sum(parts)

    def _draw_overall(self) -> None:
        if self.bars is not None and self.overall is not None:
            self.bars.update(self.overall, completed=self.share_done())

    def _say(self, label: str, text: str) -> None:
        task = self.tasks.get(label)
        if task is None:  # it has ended meanwhile
            return
        task.said = self.clock()
        self.tell(f"{label}: {text} ({task.said - task.started:.0f} s)")


def make_bars(console: Console) -> Progress:
    """Return rich's bars: share done, elapsed and remaining time of each task; they vanish at the end."""
    from rich.progress import (
        BarColumn,
        Progress,
        TaskProgressColumn,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
    )

    columns = (TextColumn("{task.description}", markup=False), BarColumn(bar_width=30), TaskProgressColumn())
    return Progress(
        *columns,
        TimeElapsedColumn(),
        TimeRemainingColumn(),
        console=console,
        transient=True,
        redirect_stdout=sys.stdout.isatty(),
    )


# The displays in use, the present one last.
_displays: list[Display] = []


def current_display() -> Display | None:
    """Return the display in use; None where there is none."""
    return _displays[-1] if _displays else None


@contextmanager
def use_display(display: Display) -> Iterator[None]:
    """Make a display the one that is used in the block."""
    _displays.append(display)
    try:
        yield
    finally:
        _displays.remove(display)


@contextmanager
def show_progress() -> Iterator[Display]:
    """Yield the display in use, or a new one on standard error for the block."""
    present = current_display()
    if present is not None:
        yield present
        return
    from rich.console import Console

    with Screen(Console(file=sys.stderr, soft_wrap=True)) as screen, use_display(screen):
        yield screen


def tell(text: str) -> None:
    """Print a line on standard error, above the bars where there are any."""
    present = current_display()
    if present is not None:
        present.tell(text)
    else:
        print(text, file=sys.stderr, flush=True)


@contextmanager
def count_steps(title: str, total: float, *, show: bool = True) -> Iterator[Callable[[float], None]]:
    """Yield a function that counts steps, shown as a bar or as a line a minute.

    Example:
        >>> with count_steps("Reading", 3, show=False) as count:
        ...     count(2)
    """
    if not show or not total:
        yield lambda steps: None
        return
    with show_progress() as display:
        display.add(title, total)
        try:
            yield partial(display.advance, title)
        finally:
            display.remove(title)


def track(items: Iterable[Item], title: str, *, total: int | None = None, show: bool = True) -> Iterator[Item]:
    """Yield items, counting those that have been dealt with; `total` where the items do not know their number.

    Example:
        >>> list(track([3, 4], "Reading", show=False))
        [3, 4]
    """
    number = len(items) if total is None and isinstance(items, Sized) else total
    with count_steps(title, number or 0, show=show) as count:
        for item in items:
            yield item
            count(1)
