"""Progress: lines without a terminal, bars and an overall bar on one, nested work on one display."""

import io
import time
from contextlib import contextmanager

import pytest
from rich.console import Console

from cassava_kit.data import progress
from cassava_kit.data.progress import Screen, count_steps, current_display, show_progress, tell, track, use_display


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


@contextmanager
def screen(*, terminal: bool = False):
    """A screen on a text, with a clock that the test sets."""
    text, clock = io.StringIO(), Clock()
    console = Console(file=text, force_terminal=terminal, width=200, color_system=None)
    with Screen(console, clock) as made, use_display(made):
        yield made, clock, text


def test_without_a_terminal_a_line_a_minute():
    with screen() as (made, clock, text), count_steps("Reading", 4000) as count:
        for seconds, steps in ((59, 1000), (60, 1000), (119, 1000), (121, 0)):  # the last step takes its time
            clock.now = 100 + seconds
            count(steps)
            made.remind()
    assert text.getvalue().splitlines() == ["Reading: 2,000 of 4,000 (60 s)", "Reading: 3,000 of 4,000 (121 s)"]


def test_the_minute_passes_while_one_step_goes_on(monkeypatch):
    monkeypatch.setattr(progress, "REMIND_SECONDS", 0.001)
    with screen() as (_, clock, text), count_steps("Notebook", 5) as count:
        count(2)
        clock.now += 60
        deadline = time.monotonic() + 300
        while not text.getvalue() and time.monotonic() < deadline:
            time.sleep(0.001)
    assert text.getvalue() == "Notebook: 2 of 5 (60 s)\n"


def test_an_epoch_is_a_line_unless_the_last_is_seconds_old():
    with screen() as (made, clock, text):
        made.add("resnet fold0", 400)
        for epoch, seconds in enumerate((4, 9, 14, 18), start=1):
            clock.now = 100 + seconds
            made.advance("resnet fold0", 100)
            made.epoch("resnet fold0", epoch, 4, f"val accuracy .{epoch}")
    assert text.getvalue().splitlines() == [
        "resnet fold0: epoch 3 of 4, val accuracy .3 (14 s)",
        "resnet fold0: epoch 4 of 4, val accuracy .4 (18 s)",
    ]


def test_a_loop_is_counted_item_by_item_and_says_nothing_where_it_is_short():
    with screen() as (made, _, text):
        seen = []
        for item in track("abc", "Letters"):
            seen.append((item, made.tasks["Letters"].done))
        assert seen == [("a", 0), ("b", 1), ("c", 2)] and not made.tasks
    assert text.getvalue() == ""


def test_the_overall_bar_is_the_share_of_the_expected_seconds():
    with screen() as (made, _, _):
        made.expect("all", {"Folds": 5, "resnet fold0": 40, "resnet fold1": 40, "Check": 15})
        made.finish("Folds")
        made.add("resnet fold0", 200, 20)
        made.advance("resnet fold0", 30)
        assert made.share_done() == 5 + 40 * 50 / 200
        made.remove("resnet fold0")
        made.add("something else", 10)
        made.advance("something else", 10)
        assert made.share_done() == 45


def test_a_terminal_gets_bars_that_vanish_and_lines_that_stay():
    with screen(terminal=True) as (made, _, text):
        made.expect("all of it", {"Reading": 10})
        for _ in track(range(3), "Reading"):
            made.bars.refresh()
        tell("a line [with brackets]")
        made.bars.refresh()
    shown = text.getvalue()
    assert "Reading" in shown and "all of it" in shown and "33%" in shown and "a line [with brackets]" in shown


def test_nested_work_shares_the_display_and_the_last_one_out_ends_it(capsys):
    assert current_display() is None
    with show_progress() as outer, show_progress() as inner:
        assert inner is outer and current_display() is outer
    assert current_display() is None
    tell("alone")
    assert capsys.readouterr().err == "alone\n"


def test_a_failed_loop_ends_its_task():
    with screen() as (made, _, _):
        with pytest.raises(ValueError, match="broken"):
            for _ in track(range(3), "Reading"):
                raise ValueError("broken")
        assert not made.tasks


def test_nothing_is_shown_where_it_is_not_wanted(monkeypatch):
    monkeypatch.setattr(progress, "Screen", None)  # making one would fail
    assert list(track([1, 2], "Reading", show=False)) == [1, 2] and list(track([], "Reading")) == []
