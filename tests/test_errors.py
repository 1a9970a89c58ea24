"""Ends of a command by a signal: the exit code, one line, and what repeats at once counts once."""

import os
import signal
import time

import pytest
import typer

from cassava_kit.cli.app import run_app
from cassava_kit.errors import Stopped, stopped_by_signals


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_verb_that_is_stopped_ends_in_one_line_and_leaves_the_handlers_as_they_were(
    number, code, capsys, interruptible
):
    app = typer.Typer(name="kit")

    @app.command()
    def wait() -> None:
        os.kill(os.getpid(), number)
        time.sleep(60)

    before = [signal.getsignal(each) for each in (signal.SIGINT, signal.SIGTERM)]
    assert run_app(app, []) == code
    assert capsys.readouterr().err == "stopped\n"
    assert [signal.getsignal(each) for each in (signal.SIGINT, signal.SIGTERM)] == before


def test_a_signal_that_comes_twice_at_once_does_not_break_the_cleaning_up():
    cleaned = False
    with pytest.raises(Stopped) as caught, stopped_by_signals():
        try:
            os.kill(os.getpid(), signal.SIGTERM)
            time.sleep(60)
        finally:
            os.kill(os.getpid(), signal.SIGTERM)
            cleaned = True
    assert cleaned and caught.value.code == 143


def test_a_signal_that_is_ignored_stays_so():
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        with stopped_by_signals():
            os.kill(os.getpid(), signal.SIGINT)  # as of a program in the background, under nohup
    finally:
        signal.signal(signal.SIGINT, before)
