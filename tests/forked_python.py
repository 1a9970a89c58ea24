"""Programs that are forked from a process with the libraries loaded: `become` one, or start them by `interpreter`.

Loading torch and Lightning takes longer than what most of the tests' programs compute. `interpreter` is the path of a
program to start in place of `python`: it gets the same arguments, variables, folder, namespaces, open files, exit code
and signals, and is forked from a process that has loaded the libraries and not the kit, which each program finds where
its own path leads: in the wheel that a notebook has installed, say. What that interpreter cannot do it leaves to the
real one. Memory and processor time of such a program are not those of its own start.
"""

from __future__ import annotations

import atexit
import contextlib
import ctypes
import fcntl
import functools
import gc
import importlib
import json
import multiprocessing
import os
import runpy
import select
import shutil
import signal
import socket
import struct
import sys
import tempfile
import threading
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

FORKS = multiprocessing.get_context("forkserver")
# The kit's modules bring theirs; the others are loaded late. Kaggle's may be another version, on a path of its own.
LOADED = (
    *(() if os.environ.get("CASSAVA_KIT_KAGGLE_SITE") else ("kagglesdk",)),
    *("albumentations", "lightning", "scipy.stats", "sklearn.linear_model", "timm"),
    *("cassava_kit.cli.data", "cassava_kit.cli.kaggle", "cassava_kit.cli.verbs", "cassava_kit.inference.run"),
    *("cassava_kit.kaggle.send.push", "cassava_kit.training.ssl.pretrain", "cassava_kit.training.train"),
)
FORKS.set_forkserver_preload(list(LOADED))
# What notebooks load too. No pyplot: a kernel chooses how it draws by a variable.
NOTEBOOKS = (
    *("ipykernel.ipkernel", "ipykernel.kernelapp", "IPython", "nbclient", "nbformat.v4", "matplotlib.figure"),
    *("matplotlib.font_manager", "matplotlib.backends.backend_agg", "pip._internal.commands.install"),
)
# It hands over what it was given, passes signals on, and ends as the program ends.
STARTER = """#!{real} -IS
import array, json, os, signal, socket, sys
words, flags = sys.argv[1:], []
while words and words[0] in ("-B", "-P", "-u"):
    flags.append(words.pop(0))
if not words or words[0].startswith("-") and words[0] not in ("-m", "-c"):
    os.execv({real!r}, [{real!r}, *sys.argv[1:]])
def is_open(file):
    try:
        return bool(os.fstat(file))
    except OSError:
        return False
# Without the listing's own, whose number the link would take.
files = [file for file in map(int, os.listdir("/proc/self/fd")) if is_open(file)]
link = socket.socket(socket.AF_UNIX)
link.connect({place!r})
text = json.dumps({{
    "arguments": words, "flags": flags, "cwd": os.getcwd(), "environment": dict(os.environ), "files": files,
    "cores": sorted(os.sched_getaffinity(0)), "executable": sys.argv[0],
    "blocked": [int(number) for number in signal.pthread_sigmask(signal.SIG_BLOCK, [])],
}}).encode()
for number in (signal.SIGINT, signal.SIGTERM):
    signal.signal(number, lambda number, _: link.send(bytes([number])))
link.sendmsg([len(text).to_bytes(8, "big")], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", files))])
link.sendall(text)
ended = int(link.recv(8) or b"-9")
if ended < 0:
    if ended != -signal.SIGKILL:
        signal.signal(-ended, signal.SIG_DFL)
    os.kill(os.getpid(), -ended)
os._exit(ended)
"""
MOST_FILES = 64


def become(arguments: list[str], cwd: str, env: dict[str, str], *, flags: Sequence[str] = ()) -> None:
    """Be a program, in a forked process with its streams; `flags` are those of the interpreter: -B, -P, -u."""
    os.setsid()
    signal.signal(signal.SIGINT, signal.default_int_handler)  # tests in the background of a shell ignore it
    sys.stdin, sys.stdout = (open(n, mode, encoding="utf-8", closefd=False) for n, mode in ((0, "r"), (1, "w")))  # noqa: SIM115
    sys.stderr = open(2, "w", encoding="utf-8", closefd=False, buffering=1)  # noqa: SIM115
    os.chdir(cwd)
    tempfile.tempdir = None  # TMPDIR may be another one
    sys.dont_write_bytecode = "-B" in flags or bool(env.get("PYTHONDONTWRITEBYTECODE"))
    os.environ.clear()
    os.environ.update(env)
    installed = [path for path in sys.path if path.startswith((sys.prefix, sys.base_prefix))]
    first, *rest = arguments
    place = "" if first in ("-m", "-c") else str(Path(first).resolve().parent)
    given = filter(None, env.get("PYTHONPATH", "").split(os.pathsep))
    sys.path[:] = [*([] if "-P" in flags else [place]), *given, *installed]
    with contextlib.suppress(ImportError):  # which an interpreter looks for at its start
        sys.modules.pop("sitecustomize", None)
        importlib.import_module("sitecustomize")
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


@functools.cache
def interpreter() -> str:
    """Return the path of what starts programs in forks; it works until this process ends."""
    folder = Path(tempfile.mkdtemp(prefix="python-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    place, starter = folder / "socket", folder / "python"
    starter.write_text(STARTER.format(real=sys.executable, place=str(place)))
    starter.chmod(0o755)
    process = FORKS.Process(target=_serve, args=(str(place), str(starter)))
    process.start()
    atexit.register(process.kill)
    while not place.exists():
        assert process.is_alive(), "the process that programs are forked from has ended"
        select.select([], [], [], 0.01)
    return str(starter)


def use_interpreter(path: str) -> None:
    """Let this process start its own programs, and `spawn` of multiprocessing, by that interpreter."""
    sys.executable = path
    multiprocessing.set_executable(path)


def _serve(place: str, starter: str) -> None:
    """Load the libraries, forget the kit, and fork a process for everyone who connects; ends with who started it."""
    for name in NOTEBOOKS:
        with contextlib.suppress(ImportError):  # another version has it elsewhere, and loads it late
            importlib.import_module(name)
    for name in [name for name in sys.modules if name.partition(".")[0] in ("cassava_kit", "sitecustomize")]:
        del sys.modules[name]
    use_interpreter(starter)
    gc.collect()
    gc.freeze()
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    parent = os.getppid()
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(f"{place}.new")
        listener.listen(64)
        Path(f"{place}.new").rename(place)
        while os.getppid() == parent:
            if select.select([listener], [], [], 1)[0]:
                link, _ = listener.accept()
                if os.fork() == 0:
                    listener.close()
                    _keep(link)
                link.close()
    os._exit(0)


def _keep(link: socket.socket) -> None:
    """Fork the program, pass signals to it, end it with who asked for it, and report how it ended."""
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    head, files, _, _ = socket.recv_fds(link, 8, MOST_FILES)
    text = b""
    while len(text) < int.from_bytes(head, "big"):
        text += link.recv(1 << 16)
    peer = struct.unpack("3i", link.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12))[0]
    pid = os.fork()
    if pid == 0:
        _be(json.loads(text), files, peer, link)
    for file in files:
        os.close(file)
    watch, code = os.pidfd_open(pid), -int(signal.SIGKILL)
    while watch not in select.select([watch, link], [], [])[0]:
        number = link.recv(1)
        with contextlib.suppress(ProcessLookupError):
            os.killpg(pid, number[0] if number else signal.SIGKILL)
        if not number:
            os._exit(0)
    code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    with contextlib.suppress(OSError):
        link.sendall(str(code).encode())
    os._exit(0)


def _be(given: dict[str, Any], files: list[int], peer: int, link: socket.socket) -> None:
    """Be the program that was asked for, where it was asked for; ends the process."""
    code = 1
    try:
        _enter(peer)
        link.close()
        for given_here, wanted in zip([_move_up(file) for file in files], given["files"], strict=True):
            os.dup2(given_here, wanted)
            os.close(given_here)
        os.sched_setaffinity(0, given["cores"])
        signal.pthread_sigmask(signal.SIG_SETMASK, given["blocked"])
        use_interpreter(given["executable"])
        become(given["arguments"], given["cwd"], given["environment"], flags=given["flags"])
        code = 0
    except SystemExit as ended:
        code = ended.code if isinstance(ended.code, int) else int(ended.code is not None)
        if not isinstance(ended.code, int | None):
            print(ended.code, file=sys.stderr)
    except BaseException:
        sys.excepthook(*sys.exc_info())
    finally:
        for stream in (sys.stdout, sys.stderr):
            with contextlib.suppress(OSError, ValueError):
                stream.flush()
        os._exit(code)


def _move_up(file: int) -> int:
    """Give a file a number that no program asks for."""
    moved = fcntl.fcntl(file, fcntl.F_DUPFD, 500)
    os.close(file)
    return moved


def _enter(peer: int) -> None:
    """Go to the namespaces and the root of another process."""
    root = os.open(f"/proc/{peer}/root", os.O_RDONLY)
    places = [(Path(f"/proc/self/ns/{kind}"), Path(f"/proc/{peer}/ns/{kind}")) for kind in ("user", "net", "mnt")]
    wanted = [os.open(theirs, os.O_RDONLY) for ours, theirs in places if ours.readlink() != theirs.readlink()]
    for place in wanted:
        if ctypes.CDLL(None, use_errno=True).setns(place, 0):
            raise OSError(ctypes.get_errno(), "the namespace of the starting process could not be entered")
        os.close(place)
    os.fchdir(root)
    os.close(root)
    if wanted:
        os.chroot(".")
