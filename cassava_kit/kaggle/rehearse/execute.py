"""Run one notebook as Kaggle would: a script that `runner.py` starts with a JSON file (`run_spec`).

It imports nothing of the kit, so that the notebook cannot find it by accident. In a mount namespace it first makes
`/kaggle/input` (read-only) and `/kaggle/working` in a separate root: the machine's root is not touched. Exit code 97:
the namespace could not be set up. The result goes to `result.json`.
"""

import asyncio
import fcntl
import json
import os
import signal
import socket
import struct
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

NO_NAMESPACE = 97
WATCH_SECONDS = 0.1


def bring_up_loopback() -> None:
    """Bring up 127.0.0.1, which is down in a new network namespace; data-parallel training and Jupyter use it."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as handle:
        request = struct.pack("16sh", b"lo", 0)
        flags = struct.unpack("16sh", fcntl.ioctl(handle, 0x8913, request))[1]
        fcntl.ioctl(handle, 0x8914, struct.pack("16sh", b"lo", flags | 1))


def mount(*arguments: str | Path) -> None:
    """Call mount(8).

    Raises:
        OSError: with its error message.
    """
    done = subprocess.run(["mount", *map(str, arguments)], capture_output=True, text=True, check=False)
    if done.returncode:
        raise OSError(done.stderr.strip() or f"mount {arguments} failed")


def bind_read_only(source: Path, target: Path) -> None:
    """Bind-mount a file or folder read-only, with the flags that a user namespace may not drop."""
    mount("--bind", source, target)
    kept = {os.ST_NOSUID: "nosuid", os.ST_NODEV: "nodev", os.ST_NOEXEC: "noexec", os.ST_RELATIME: "relatime"}
    flags = os.statvfs(target).f_flag
    mount("-o", ",".join(["remount", "bind", "ro", *(name for bit, name in kept.items() if flags & bit)]), target)


def enter_kaggle_root(spec: dict[str, Any]) -> None:
    """Change into a copy of the machine's root by bind mounts, with `/kaggle` added."""
    root = Path(spec["scratch"]) / "root"
    root.mkdir()
    mount("-t", "tmpfs", "-o", "mode=755", "tmpfs", root)
    for entry in os.scandir("/"):
        place = root / entry.name
        if entry.name == "kaggle":
            continue
        if entry.is_symlink():
            place.symlink_to(Path(entry.path).readlink())
        elif entry.is_dir():
            place.mkdir()
            mount("--rbind", entry.path, place)
    given, working = root / "kaggle" / "input", root / "kaggle" / "working"
    given.mkdir(parents=True)
    mount("--bind", given, given)
    for source, target in spec["mounts"]:
        place = given / target
        if Path(source).is_dir():
            place.mkdir(parents=True)
        else:
            place.parent.mkdir(parents=True, exist_ok=True)
            place.touch()
        bind_read_only(Path(source), place)
    mount("-o", "remount,bind,ro", given)
    working.mkdir()
    mount("--bind", spec["working"], working)
    os.chroot(root)


def descendants(ancestor: int) -> set[int]:
    """Return the ids of the processes below `ancestor`."""
    children: dict[int, list[int]] = {}
    for folder in Path("/proc").iterdir():
        if folder.name.isdigit():
            try:
                fields = (folder / "stat").read_text().rpartition(")")[2].split()
            except OSError:
                continue
            children.setdefault(int(fields[1]), []).append(int(folder.name))
    found, waiting = set(), [ancestor]
    while waiting:
        for child in children.get(waiting.pop(), []):
            found.add(child)
            waiting.append(child)
    return found


def private_bytes(pids: set[int]) -> int:
    """Return the resident memory of the processes that is not shared with files or each other."""
    total = 0
    for pid in pids:
        try:
            resident, shared = Path(f"/proc/{pid}/statm").read_text().split()[1:3]
        except OSError:
            continue
        total += max(0, int(resident) - int(shared)) * os.sysconf("SC_PAGE_SIZE")
    return total


class Watch(threading.Thread):
    """Kill the notebook's processes at the deadline or above the memory limit, and record the peak (bytes)."""

    def __init__(self, memory: int | None, deadline: float | None) -> None:
        super().__init__(daemon=True)
        self.memory, self.deadline, self.peak, self.killed = memory, deadline, 0, ""
        self.over = threading.Event()

    def run(self) -> None:
        """Check ten times a second until `over` is set."""
        while not self.over.wait(WATCH_SECONDS):
            pids = descendants(os.getpid())
            self.peak = max(self.peak, private_bytes(pids))
            if self.memory and self.peak > self.memory:
                self.killed = f"used more than {self.memory / 2**30:g} GiB of memory"
            if self.deadline and time.monotonic() > self.deadline:
                self.killed = "ran past the time limit"
            if self.killed:
                for pid in pids:
                    try:
                        os.kill(pid, signal.SIGKILL)
                    except ProcessLookupError:
                        continue
                return


def outputs_as_text(notebook: Any) -> str:
    """Return the notebook's printed output, cell after cell."""
    lines = []
    for cell in notebook.cells:
        for output in cell.get("outputs", []):
            lines.append(output.get("text") or "".join(output.get("traceback", [])) or "")
            lines.append(output.get("data", {}).get("text/plain", "") if "data" in output else "")
    return "".join(line if line.endswith("\n") else line + "\n" for line in lines if line)


def execute(spec: dict[str, Any], watch: Watch) -> dict[str, Any]:
    """Run every cell; returns `error` (empty if none) and `log`, the printed output."""
    import nbformat
    from nbclient import NotebookClient
    from nbclient.exceptions import CellExecutionError, DeadKernelError
    from traitlets.config import Config

    notebook = nbformat.read(spec["notebook"], as_version=4)
    # Sockets of the file system: a kernel on TCP hangs where the loopback device cannot be brought up.
    config = Config({"KernelManager": {"transport": "ipc"}})
    cells = sum(cell.cell_type == "code" for cell in notebook.cells)
    done = 0

    def report(**_: Any) -> None:
        nonlocal done
        done += 1
        print(json.dumps({"cell": done, "cells": cells}), flush=True)

    client = NotebookClient(
        notebook,
        kernel_name="python3",
        timeout=None,
        config=config,
        on_cell_executed=report,
        resources={"metadata": {}},
    )
    error = ""
    try:
        client.execute(cwd=spec["cwd"])
    except CellExecutionError as failure:
        error = f"{failure.ename}: {failure.evalue}"
    except (DeadKernelError, asyncio.CancelledError, RuntimeError) as failure:
        error = watch.killed or f"the kernel died ({failure})"
    nbformat.write(notebook, spec["executed"])
    return {"error": watch.killed or error, "log": outputs_as_text(notebook)}


def run_spec(path: Path) -> int:
    """Set up what a JSON file asks for, run the notebook, write the result, and return the exit code."""
    spec = json.loads(path.read_text(encoding="utf-8"))
    try:
        if spec["network_namespace"]:
            bring_up_loopback()
        if spec["mount_namespace"]:
            enter_kaggle_root(spec)
    except OSError as error:
        print(f"no namespace: {error}", file=sys.stderr)
        return NO_NAMESPACE
    os.chdir(spec["cwd"])
    if spec["cpus"]:
        os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[: spec["cpus"]])
    started = time.monotonic()
    watch = Watch(spec["memory"], started + spec["seconds"] if spec["seconds"] else None)
    watch.start()
    result = execute(spec, watch)
    watch.over.set()
    result |= {"seconds": time.monotonic() - started, "peak_memory": watch.peak}
    Path(spec["result"]).write_text(json.dumps(result), encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(run_spec(Path(sys.argv[1])))
