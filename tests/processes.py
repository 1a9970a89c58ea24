"""Python programs in processes of their own: `run_python` to the end, `start_python` to stop them in the middle.

Each is forked from one process that has loaded the libraries (`LOADED`) and done nothing else, because loading torch
and Lightning takes longer than what most of the tests' programs compute. What is tested at the start of a real
interpreter (installation, wheels, imports, and a few cases of every command) starts one by `subprocess`.
"""

from __future__ import annotations

import atexit
import contextlib
import multiprocessing
import os
import runpy
import signal
import subprocess
import sys
import tempfile
import threading
import time
import weakref
from collections.abc import Callable, Mapping, Sequence
from multiprocessing.process import BaseProcess
from pathlib import Path
from types import ModuleType

FORKS = multiprocessing.get_context("forkserver")
# The kit's modules bring theirs; the others are loaded late. Kaggle's may be another version, on a path of its own.
LOADED = (
    *(() if os.environ.get("CASSAVA_KIT_KAGGLE_SITE") else ("kagglesdk",)),
    *("albumentations", "lightning", "scipy.stats", "sklearn.linear_model", "timm"),
    *("cassava_kit.cli.data", "cassava_kit.cli.kaggle", "cassava_kit.cli.verbs", "cassava_kit.inference.run"),
    *("cassava_kit.kaggle.send.push", "cassava_kit.training.ssl.pretrain", "cassava_kit.training.train"),
)
FORKS.set_forkserver_preload(list(LOADED))


class Program:
    """A program that runs, or has ended; what it printed goes to files that go with this object."""

    def __init__(self, arguments: Sequence[object], *, cwd: Path | None, env: Mapping[str, str] | None) -> None:
        self.arguments = [str(word) for word in arguments]
        self._folder = tempfile.TemporaryDirectory(prefix="program-")
        self.out, self.err = (Path(self._folder.name) / name for name in ("out.txt", "err.txt"))
        for path in (self.out, self.err):
            path.touch()
        given = (self.arguments, str(cwd or Path.cwd()), dict(os.environ if env is None else env))
        self._process = FORKS.Process(target=_run, args=(*given, str(self.out), str(self.err)))
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


def _run(arguments: list[str], cwd: str, env: dict[str, str], out: str, err: str) -> None:
    """Be the program; runs in the forked process."""
    os.setsid()
    signal.signal(signal.SIGINT, signal.default_int_handler)  # tests in the background of a shell ignore it
    for target, path in ((0, os.devnull), (1, out), (2, err)):
        source = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND)
        os.dup2(source, target)
        os.close(source)
    sys.stdin, sys.stdout = (open(n, mode, encoding="utf-8", closefd=False) for n, mode in ((0, "r"), (1, "w")))  # noqa: SIM115
    sys.stderr = open(2, "w", encoding="utf-8", closefd=False, buffering=1)  # noqa: SIM115
    os.chdir(cwd)
    tempfile.tempdir = None  # TMPDIR may be another one
    os.environ.clear()
    os.environ.update(env)
    installed = [path for path in sys.path if path.startswith((sys.prefix, sys.base_prefix))]
    first, *rest = arguments
    place = "" if first in ("-m", "-c") else str(Path(first).resolve().parent)
    sys.path[:] = [place, *filter(None, env.get("PYTHONPATH", "").split(os.pathsep)), *installed]
    try:
        if first == "-m":
            sys.argv = rest
            runpy.run_module(rest[0], run_name="__main__", alter_sys=True)
        elif first == "-c":
            sys.argv = ["-c", *rest[1:]]
            sys.modules["__main__"] = main = ModuleType("__main__")
            exec(compile(rest[0], "<string>", "exec"), main.__dict__)
        else:
            sys.argv = arguments
            runpy.run_path(first, run_name="__main__")
    except KeyboardInterrupt:  # as the interpreter ends by it
        signal.signal(signal.SIGINT, signal.SIG_DFL)
        os.kill(os.getpid(), signal.SIGINT)
    finally:
        threading._shutdown()
        atexit._run_exitfuncs()
