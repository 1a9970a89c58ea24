"""Close the network around a notebook and mount its input, in the strongest way possible: `find_isolations`."""

from __future__ import annotations

import os
import site
import subprocess
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import cassava_kit
from cassava_kit.errors import UserError
from cassava_kit.files import write_text
from cassava_kit.kaggle.rehearse.layout import Mount

# Variables that the notebook gets. All others, above all KAGGLE_* and tokens, are left out.
PASSED_ON = ("PATH", "LANG", "LC_ALL", "TZ", "LD_LIBRARY_PATH", "OMP_NUM_THREADS", "MKL_NUM_THREADS")
PASSED_ON_PREFIXES = ("CUDA_", "NVIDIA_")

# An editable installation puts the checkout on every path: Kaggle has none.
HIDDEN_CHECKOUT = '''"""Put on PYTHONPATH by the rehearsal: the checkout that it runs from cannot be imported."""
import os
import sys

sys.path[:] = [folder for folder in sys.path if os.path.realpath(folder or ".") != {checkout!r}]
'''

CLOSED_SOCKETS = """
# No connection leaves this machine.
import socket


def _stays_here(host):
    return host in (None, "", "localhost", "::1") or str(host).startswith("127.")


def _closing(method, place):
    def checked(self, *arguments):
        address = arguments[place]
        if self.family != socket.AF_UNIX and not _stays_here(address[0]):
            raise OSError(101, "Network is unreachable (rehearsal: the network is closed)")
        return method(self, *arguments)

    return checked


def _resolve(host, *arguments, **options):
    if not _stays_here(host):
        raise socket.gaierror(-3, "Temporary failure in name resolution (rehearsal: the network is closed)")
    return _getaddrinfo(host, *arguments, **options)


_getaddrinfo, socket.getaddrinfo = socket.getaddrinfo, _resolve
socket.socket.connect = _closing(socket.socket.connect, 0)
socket.socket.connect_ex = _closing(socket.socket.connect_ex, 0)
socket.socket.sendto = _closing(socket.socket.sendto, -1)
"""


@dataclass(frozen=True)
class Isolation:
    """One kind of isolation: the prefix of a command that starts inside it, what it closes, and a report in words."""

    name: str
    command: tuple[str, ...]
    network: bool
    mounts: bool
    report: str

    def available(self) -> bool:
        """Return whether this machine allows it."""
        if not self.command:
            return True
        try:
            return subprocess.run([*self.command, "true"], capture_output=True, check=False).returncode == 0
        except FileNotFoundError:
            return False


_MOUNTED = "read-only mounts at /kaggle/input"
_LINKED = "input as a tree of links"
ISOLATIONS = (
    Isolation("mounts", ("unshare", "-n", "-m"), True, True, f"no network (namespace), {_MOUNTED}"),
    Isolation("user-mounts", ("unshare", "-r", "-n", "-m"), True, True, f"no network (user namespace), {_MOUNTED}"),
    Isolation("network", ("unshare", "-n"), True, False, f"no network (namespace), {_LINKED}"),
    Isolation("user-network", ("unshare", "-r", "-n"), True, False, f"no network (user namespace), {_LINKED}"),
    Isolation("sockets", (), False, False, f"Python's sockets closed (this machine has no namespaces), {_LINKED}"),
)


def find_isolations(name: str | None = None) -> Iterator[Isolation]:
    """Return the kinds that this machine allows, the strongest first, or only the one called `name`.

    Raises:
        UserError: no kind has that name.
    """
    names = [isolation.name for isolation in ISOLATIONS]
    if name is not None and name not in names:
        raise UserError(f"isolation must be one of {', '.join(names)}, got {name!r}")
    return (each for each in ISOLATIONS if name in (None, each.name) and each.available())


def private_environment(place: Path) -> dict[str, str]:
    """Return the notebook's environment: no credentials, no PYTHONPATH of the user, home and caches below `place`."""
    kept = {k: v for k, v in os.environ.items() if k in PASSED_ON or k.startswith(PASSED_ON_PREFIXES)}
    for name in ("home", "tmp", "jupyter", "ipython"):
        (place / name).mkdir()
    jupyter = {f"JUPYTER_{kind}_DIR": str(place / "jupyter") for kind in ("RUNTIME", "DATA", "CONFIG")}
    own = {
        "HOME": str(place / "home"),
        "TMPDIR": str(place / "tmp"),
        "IPYTHONDIR": str(place / "ipython"),
        # Libraries that the user installed with `pip --user` are found although HOME has moved.
        "PYTHONUSERBASE": site.getuserbase(),
    }
    return kept | jupyter | own


def link_tree(mounts: Sequence[Mount], root: Path) -> Path:
    """Make the input as links in read-only folders, for a machine on which nothing can be mounted."""
    for mount in mounts:
        target = root / mount.target
        target.parent.mkdir(parents=True, exist_ok=True)
        target.symlink_to(mount.source)
    for folder in [root, *(path for path in root.rglob("*") if path.is_dir() and not path.is_symlink())]:
        folder.chmod(0o555)
    return root


def write_start(place: Path, *, closed: bool) -> Path:
    """Return a folder for PYTHONPATH whose `sitecustomize` hides the checkout that the kit runs from.

    `closed`: it also blocks every connection to another machine.
    """
    checkout = Path(cassava_kit.__file__).resolve().parents[1]
    installed = {Path(folder).resolve() for folder in site.getsitepackages()}
    hidden = "" if checkout in installed else HIDDEN_CHECKOUT.format(checkout=str(checkout))
    write_text(place / "start" / "sitecustomize.py", hidden + (CLOSED_SOCKETS if closed else ""))
    return place / "start"
