"""timm, imported without what no network of it needs: `import_timm`.

timm imports all of torchvision, whose operators import torch's compiler, and keeps methods of its own out of compiled
code: the compiler is two thirds of the time that `import timm` takes, and nothing here compiles. So those packages of
torchvision are loaded when one of their names is first asked for, by whomever, and those methods name themselves to the
compiler when they are first called.
"""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec, PathFinder
from threading import RLock
from types import ModuleType
from typing import Any

LATE_PACKAGES = ("torchvision.models", "torchvision.ops")
_LOADING = RLock()


class _LatePackage(ModuleType):
    """A package whose code runs when a name that it does not have yet is asked for; its submodules can be imported."""

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):  # what the import system and inspection look for
            raise AttributeError(name)
        _run(self)
        return getattr(self, name)

    def __dir__(self) -> list[str]:
        _run(self)
        return dir(self)


def _run(package: ModuleType) -> None:
    """Run a package's own code, once."""
    with _LOADING:
        if type(package) is _LatePackage:
            package.__class__ = ModuleType  # type: ignore[assignment]
            spec = package.__spec__
            assert spec is not None and isinstance(spec.loader, _LateLoader)
            spec.loader = package.__loader__ = spec.loader.own
            assert spec.loader is not None
            spec.loader.exec_module(package)


class _LateLoader(Loader):
    """Gives a package without running its code; `own` is the loader that runs it."""

    def __init__(self, own: Loader | None) -> None:
        self.own = own

    def create_module(self, spec: ModuleSpec) -> ModuleType:
        return _LatePackage(spec.name)

    def exec_module(self, module: ModuleType) -> None:
        pass


class _LateFinder(MetaPathFinder):
    """Finds the packages of `LATE_PACKAGES` where Python finds them, and leaves the others to Python."""

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        spec = PathFinder.find_spec(fullname, path, target) if fullname in LATE_PACKAGES else None
        if spec is not None:
            spec.loader = _LateLoader(spec.loader)
        return spec


def _disable_late(fn: Callable[..., Any], recursive: bool = True, **further: Any) -> Callable[..., Any]:
    """Return a function that torch's compiler leaves alone: `torch.compiler.disable`, at the first call."""

    @functools.wraps(fn)
    def call(*args: Any, **kwargs: Any) -> Any:
        if not kept:
            import torch._dynamo

            kept.append(torch._dynamo.disable(fn, recursive, **further))
        return kept[0](*args, **kwargs)

    kept: list[Callable[..., Any]] = []
    return call


@contextmanager
def _late_imports() -> Iterator[None]:
    """In the block, import torchvision's packages and torch's compiler late."""
    import torch.compiler

    finder, disable = _LateFinder(), torch.compiler.disable
    sys.meta_path.insert(0, finder)
    torch.compiler.disable = _disable_late
    try:
        yield
    finally:
        torch.compiler.disable = disable
        sys.meta_path.remove(finder)


def import_timm() -> Any:
    """Return timm; what is imported for the first time here is imported without torch's compiler.

    Example::

        model = import_timm().create_model("resnet50")
    """
    if "timm" not in sys.modules:
        with _late_imports():
            import timm  # noqa: F401 - it matters how the first import is made
    return sys.modules["timm"]
