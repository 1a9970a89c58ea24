"""Python programs in processes of their own: `run_python` to the end, `start_python` to stop them in the middle.

Each is forked from one process that has loaded the libraries and the kit and done nothing else, and starts others by
`forked_python.interpreter`. What is tested at the start of a real interpreter (installation, wheels, imports, and a few
cases of every command) starts one by `subprocess`.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import tempfile
import time
import weakref
from collections.abc import Callable, Mapping, Sequence
from multiprocessing.process import BaseProcess
from pathlib import Path

from forked_python import FORKS, become, interpreter, use_interpreter


class Program:
    """A program that runs, or has ended; what it printed goes to files that go with this object."""

    def __init__(self, arguments: Sequence[object], *, cwd: Path | None, env: Mapping[str, str] | None) -> None:
        self.arguments = [str(word) for word in arguments]
        self._folder = tempfile.TemporaryDirectory(prefix="program-")
        self.out, self.err = (Path(self._folder.name) / name for name in ("out.txt", "err.txt"))
        for path in (self.out, self.err):
            path.touch()
        given = (self.arguments, str(cwd or Path.cwd()), dict(os.environ if env is None else env))
        files, own = (str(self.out), str(self.err)), {"starter": interpreter()}
        self._process = FORKS.Process(target=_run, args=(*given, *files), kwargs=own)
        self._process.start()
        self.pid = int(self._process.pid or 0)
        weakref.finalize(self, _kill_group, self.pid, self._process)  # pytest would wait for what a failed test left

    def poll(self) -> int | None:
        """Return the exit code, a signal's number as a negative one; None while it runs."""
        return self._process.exitcode

    def wait(self, timeout: float = 600) -> int:
        """Wait for the end and return the exit code; TimeoutExpired after that many seconds."""
        self._process.join(timeout)
        code = self.poll()
        if code is None:
            raise subprocess.TimeoutExpired(self.arguments, timeout, self.out.read_bytes(), self.err.read_bytes())
        return code

    def wait_until(self, happened: Callable[[], object], timeout: float = 600) -> None:
        """Wait for something that the program does while it runs; AssertionError where it ends first."""
        deadline = time.monotonic() + timeout
        while not happened():
            assert self.poll() is None and time.monotonic() < deadline, self.printed()
            time.sleep(0.01)

    def send_signal(self, number: int) -> None:
        """Send a signal to the program alone."""
        os.kill(self.pid, number)

    def kill(self) -> None:
        """End the program and all that it started, at once."""
        _kill_group(self.pid, self._process)
        self.wait()

    def printed(self) -> tuple[str, str]:
        """Return what came on standard output and on standard error so far."""
        return self.out.read_text(), self.err.read_text()


def _kill_group(pid: int, process: BaseProcess) -> None:
    """Send SIGKILL to a process and all that it started; nothing where it has ended."""
    if process.exitcode is None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(pid, signal.SIGKILL)


def start_python(
    arguments: Sequence[object], *, cwd: Path | None = None, env: Mapping[str, str] | None = None
) -> Program:
    """Start `python ARGUMENTS`, which begin with `-m MODULE`, `-c CODE` or a script; it leads a process group."""
    return Program(arguments, cwd=cwd, env=env)


def run_python(
    arguments: Sequence[object],
    *,
    cwd: Path | None = None,
    env: Mapping[str, str] | None = None,
    timeout: float = 600,
) -> subprocess.CompletedProcess[str]:
    """Run `python ARGUMENTS` (see `start_python`) to its end and return its exit code and what it printed."""
    program = start_python(arguments, cwd=cwd, env=env)
    try:
        code = program.wait(timeout)
    except BaseException:
        program.kill()
        raise
    return subprocess.CompletedProcess(program.arguments, code, *program.printed())


def _run(arguments: list[str], cwd: str, env: dict[str, str], out: str, err: str, *, starter: str) -> None:
    """Be the program, with its output in files; runs in the forked process."""
    for target, path in ((0, os.devnull), (1, out), (2, err)):
        source = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND)
        os.dup2(source, target)
        os.close(source)
    use_interpreter(starter)
    become(arguments, cwd, env)
