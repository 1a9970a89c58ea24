"""GPUs played on the CPU: `CudaDouble`. Work runs as late as it may, and what a GPU would get wrong is a fault.

Tensors on `cuda:N` hold no values before their stream has run, and streams run only when the host waits for them: a
value read before its event is NaN, pixels overwritten before their event are the new ones, and a kernel that does not
wait for its upload finds nothing. Memory is counted, and may run out.
"""

import threading
import weakref
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map_only

from cassava_kit.data import transforms

COPIES = ("aten::to", "aten::_to_copy")
READS = ("aten::_local_scalar_dense", "aten::item", "aten::is_nonzero", "aten::equal", "aten::nonzero")
NUMBERS = (torch.Tensor.__bool__, torch.Tensor.__int__, torch.Tensor.__float__, torch.Tensor.item)
PATCHED = (
    "Stream", "Event", "stream", "current_stream", "synchronize", "empty_cache", "mem_get_info", "device_count",
    "is_available", "get_device_name", "get_device_capability", "current_device",
)  # fmt: skip


class Block:
    """Memory of a device: it belongs to the stream on which it was allocated."""

    def __init__(self, double: "CudaDouble", n_bytes: int, stream: "Stream") -> None:
        self.serial = next(double.serials)
        double.allocate(stream, n_bytes)
        weakref.finalize(self, double.free, self.serial, n_bytes, stream)


@dataclass
class Cell:
    """Where a tensor's value will be once its stream has run."""

    value: torch.Tensor | None = None


class DeviceTensor(torch.Tensor):
    """A tensor that says it is on a GPU: shape and strides in `meta`, its value in `cell`."""

    @staticmethod
    def __new__(cls, double: "CudaDouble", meta: torch.Tensor, cell: Cell, block: Block, device: torch.device) -> Any:
        """Return a tensor without memory of its own."""
        layout = {"strides": meta.stride(), "storage_offset": meta.storage_offset(), "dtype": meta.dtype}
        return torch.Tensor._make_wrapper_subclass(cls, meta.shape, device=device, **layout)

    def __init__(self, double: "CudaDouble", meta: torch.Tensor, cell: Cell, block: Block, _: torch.device) -> None:
        self.played_by, self.meta, self.cell, self.block = double, meta, cell, block

    @classmethod
    def __torch_function__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Replace what asks the driver for the current device, or for what it can do: indices and attention."""
        with torch._C.DisableTorchFunctionSubclass():
            if func is torch.Tensor.__getitem__:
                return take(*args)
            if func is torch.Tensor.__setitem__:
                return put(*args)
            if func in NUMBERS:
                return func(args[0].cpu())
            if func is torch.Tensor.contiguous:
                layout = (kwargs or {}).get("memory_format", torch.contiguous_format)
                whole = args[0].is_contiguous(memory_format=layout)
                return args[0] if whole else args[0].clone(memory_format=layout)
            if func is torch.nn.functional.scaled_dot_product_attention:
                return attend(*args[:3])
            return func(*args, **(kwargs or {}))

    def __deepcopy__(self, memo: dict[int, Any]) -> Any:
        twin: torch.Tensor = self.detach().clone()
        if isinstance(self, torch.nn.Parameter):
            twin = torch.nn.Parameter(twin, requires_grad=self.requires_grad)
        memo[id(self)] = twin
        return twin

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Order the operation."""
        some = next(x for x in tree_leaves((args, kwargs)) if isinstance(x, DeviceTensor))
        return some.played_by.dispatch(func, args, kwargs or {})


def take(x: torch.Tensor, key: Any) -> torch.Tensor:
    """Return `x[key]` for slices, whole numbers and None, or for a tensor of rows."""
    if isinstance(key, torch.Tensor):
        return x.index_select(0, key)
    axis = 0
    for one in key if isinstance(key, tuple) else (key,):
        if isinstance(one, int):
            x = x.select(axis, one)
        elif one is None:
            x, axis = x.unsqueeze(axis), axis + 1
        else:
            assert isinstance(one, slice)
            x, axis = torch.ops.aten.slice.Tensor(x, axis, one.start, one.stop, one.step or 1), axis + 1
    return x


def put(x: torch.Tensor, key: torch.Tensor, value: torch.Tensor) -> None:
    """Set `x[key]` for a tensor of rows."""
    x.index_copy_(0, key, value)


def attend(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
    """Return attention without a mask, (B, heads, N, D)."""
    return (query @ key.transpose(-2, -1) / query.shape[-1] ** 0.5).softmax(dim=-1) @ value


@dataclass
class Work:
    """One operation of a stream: what it runs, and the blocks that it touches."""

    run: Callable[[], None]
    blocks: frozenset[int] = frozenset()


@dataclass(eq=False)
class Marker:
    """An event's place in a stream."""

    stream: "Stream"
    done: bool = False


@dataclass(eq=False)
class Stream:
    """Work in order, done by `run_until` alone."""

    device: torch.device
    waiting: deque[Work | Marker] = field(default_factory=deque)

    def wait_event(self, event: "Event") -> None:
        """Do what is ordered from now on after the event."""
        marker = event.marker
        if marker is not None:
            self.waiting.append(Work(lambda: marker.stream.run_until(marker)))

    def synchronize(self) -> None:
        """Do all work."""
        self.run_until(None)

    def run_until(self, marker: Marker | None) -> None:
        """Do the work up to a marker, or all of it."""
        while self.waiting and not (marker is not None and marker.done):
            first = self.waiting.popleft()
            if isinstance(first, Marker):
                first.done = True
            else:
                first.run()


class Event:
    """A point in a stream."""

    def __init__(self, double: "CudaDouble", **_: Any) -> None:
        self.double = double
        self.marker: Marker | None = None

    def record(self, stream: Stream | None = None) -> None:
        """Set the point to the end of a stream; without one, of the current device's."""
        stream = stream or self.double.current_stream()
        self.marker = Marker(stream)
        stream.waiting.append(self.marker)

    def synchronize(self) -> None:
        """Wait for the point."""
        with self.double.lock:
            if self.marker is not None:
                self.marker.stream.run_until(self.marker)


class CudaDouble(TorchDispatchMode):
    """So many GPUs, each with `memory` bytes; `errors` by the number of the allocation that raises them.

    `uploads` are the bytes of each copy of uint8 pixels to a device, `blocking` what made the host wait for all work of
    a stream, `faults` what may go wrong on a GPU without an error.
    """

    def __init__(self, devices: int = 1, memory: float = float("inf")) -> None:
        super().__init__()
        self.lock, self.local = threading.RLock(), threading.local()
        self.serials, self.memory = iter(range(1 << 60)), memory
        self.used = [0.0] * devices
        self.streams = [[Stream(torch.device("cuda", i))] for i in range(devices)]
        self.uploads: list[int] = []
        self.blocking: list[str] = []
        self.faults: list[str] = []
        self.errors: dict[int, Exception] = {}
        self.freed: list[tuple[int, Stream]] = []
        self.allocations = self.emptied = 0
        self.pinned: set[int] = set()

    def Stream(self, device: torch.device) -> Stream:  # noqa: N802 (torch's name)
        """Make a stream."""
        made = Stream(torch.device("cuda", self.index(device)))
        self.streams[made.device.index].append(made)
        return made

    def Event(self, **options: Any) -> Event:  # noqa: N802
        """Make an event."""
        return Event(self, **options)

    def index(self, device: Any = None) -> int:
        """Return the number of a device, by default the current one's."""
        found = None if device is None else torch.device(device).index
        return self.current_device() if found is None else found

    def current_device(self) -> int:
        """Return the thread's device: 0 until it is set."""
        return getattr(self.local, "device", 0)

    def current_stream(self, device: Any = None) -> Stream:
        """Return the thread's stream on a device."""
        i = self.index(device)
        return getattr(self.local, "streams", {}).get(i, self.streams[i][0])

    @contextmanager
    def stream(self, stream: Stream) -> Iterator[None]:
        """Make a stream and its device the current ones."""
        before = self.current_device(), getattr(self.local, "streams", {})
        self.local.device, self.local.streams = stream.device.index, before[1] | {stream.device.index: stream}
        try:
            yield
        finally:
            self.local.device, self.local.streams = before

    def synchronize(self, device: Any = None) -> None:
        """Do all work of a device."""
        with self.lock:
            for stream in self.streams[self.index(device)]:
                stream.run_until(None)

    def empty_cache(self) -> None:
        """Count the call."""
        self.emptied += 1

    def mem_get_info(self, device: Any = None) -> tuple[int, int]:
        """Return free and all bytes."""
        most = min(self.memory, 1 << 40)
        return int(most - self.used[self.index(device)]), int(most)

    def device_count(self) -> int:
        """Return how many devices there are."""
        return len(self.used)

    def is_available(self) -> bool:
        """Return that there are some."""
        return True

    def get_device_capability(self, _: Any = None) -> tuple[int, int]:
        """Return a T4's."""
        return 7, 5

    def get_device_name(self, _: Any = None) -> str:
        """Return a name."""
        return "double"

    def allocate(self, stream: Stream, n_bytes: int) -> None:
        """Take memory on a stream, or raise the error planned for this allocation, or one of memory.

        As torch does, a stream takes what it has given back; a fault where another stream has not yet used that.
        """
        self.allocations += 1
        device = stream.device.index
        if self.allocations in self.errors:
            raise self.errors.pop(self.allocations)
        if self.used[device] + n_bytes > self.memory:
            raise torch.OutOfMemoryError(f"CUDA out of memory. Tried to allocate {n_bytes} bytes")
        self.used[device] += n_bytes
        taken = {serial for serial, owner in self.freed if owner is stream}
        self.freed = [(serial, owner) for serial, owner in self.freed if owner is not stream]
        others = [w for other in self.streams[device] if other is not stream for w in other.waiting]
        if any(isinstance(w, Work) and taken & w.blocks for w in others):
            self.faults.append("memory was taken again before another stream had used it")

    def free(self, serial: int, n_bytes: int, stream: Stream) -> None:
        """Give memory back to its stream."""
        self.used[stream.device.index] -= n_bytes
        self.freed.append((serial, stream))

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Order operations that concern a device, and do the others."""
        return self.dispatch(func, args, kwargs or {})

    def dispatch(self, func: Any, args: Any, kwargs: dict[str, Any]) -> Any:
        """Order one operation on the current stream of its device; copies between host and device are their own."""
        tensors = [x for x in tree_leaves((args, kwargs)) if isinstance(x, torch.Tensor)]
        on_device = [x for x in tensors if isinstance(x, DeviceTensor)]
        named = kwargs.get("device", next((x for x in args if isinstance(x, torch.device)), None))
        to_device = named is not None and named.type == "cuda"
        name = func._schema.name
        with self.lock:
            if name == "aten::_has_compatible_shallow_copy_type" or not (on_device or to_device):
                return self.on_host(func, args, kwargs)
            if name in READS or (name in COPIES and on_device and named is not None and not to_device):
                return self.read(func, args, kwargs, on_device[0])
            if name == "aten::copy_" and not isinstance(args[0], DeviceTensor):
                return self.download(args[0], args[1], len(args) > 2 and args[2])
            if name in COPIES and not on_device:
                return self.upload(func, args, kwargs, named)
            devices = {self.index(x.device) for x in on_device} | ({self.index(named)} if to_device else set())
            if len(devices) > 1 or any(not isinstance(x, DeviceTensor) and x.ndim for x in tensors):
                raise RuntimeError(f"{name}: expected all tensors to be on the same device")
            return self.order(func, args, kwargs, self.current_stream(torch.device("cuda", devices.pop())))

    def on_host(self, func: Any, args: Any, kwargs: dict[str, Any]) -> Any:
        """Run an operation of the host; pinned memory is plain memory full of NaN, or of 255."""
        if func._schema.name == "aten::_has_compatible_shallow_copy_type":
            return False
        if func._schema.name == "aten::is_pinned":
            return args[0].untyped_storage().data_ptr() in self.pinned
        if func._schema.name in ("aten::pin_memory", "aten::_pin_memory"):
            result = args[0].clone()
        elif kwargs.pop("pin_memory", False):
            result = func(*args, **kwargs)
            result.fill_(float("nan") if result.is_floating_point() else 255)
        else:
            return func(*args, **kwargs)
        self.pinned.add(result.untyped_storage().data_ptr())
        return result

    def upload(self, func: Any, args: Any, kwargs: dict[str, Any], device: torch.device) -> DeviceTensor:
        """Copy from the host: later where it is pinned and need not wait, else at once, behind all work."""
        host = args[0]
        stream = self.current_stream(device)
        if host.dtype == torch.uint8:
            self.uploads.append(host.nbytes)
        result = self.order(func, args, kwargs, stream, waits=False)
        if not (kwargs.get("non_blocking") and host.untyped_storage().data_ptr() in self.pinned):
            self.block(f"upload of {tuple(host.shape)}", stream)
        return result

    def download(self, host: torch.Tensor, source: DeviceTensor, non_blocking: bool) -> torch.Tensor:
        """Copy to the host, later where it is pinned and need not wait."""
        stream, cell = self.current_stream(source.device), source.cell

        def run() -> None:
            with torch.inference_mode():
                host.copy_(found(cell))

        stream.waiting.append(Work(run, frozenset([source.block.serial])))
        if not (non_blocking and host.untyped_storage().data_ptr() in self.pinned):
            self.block(f"download of {tuple(host.shape)}", stream)
        return host

    def read(self, func: Any, args: Any, kwargs: dict[str, Any], source: DeviceTensor) -> Any:
        """Give the host a value, which waits for all work of the stream."""
        self.block(func._schema.name, self.current_stream(source.device))
        return func(*tree_map_only(DeviceTensor, lambda x: found(x.cell), args), **kwargs)

    def block(self, what: str, stream: Stream) -> None:
        """Wait for all work of a stream."""
        self.blocking.append(what)
        stream.run_until(None)

    def order(self, func: Any, args: Any, kwargs: dict[str, Any], stream: Stream, *, waits: bool = True) -> Any:
        """Put an operation at a stream's end and return its results, which have no values yet."""
        inputs = [x for x in tree_leaves((args, kwargs)) if isinstance(x, DeviceTensor)]
        kwargs = {key: value for key, value in kwargs.items() if key != "pin_memory"}

        def on(device: str, values: Callable[[DeviceTensor], torch.Tensor]) -> Any:
            moved = tree_map_only(DeviceTensor, values, (args, kwargs))
            moved = tree_map_only(torch.device, lambda _: torch.device(device), moved)
            if device == "meta":
                moved = tree_map_only(torch.Tensor, lambda x: x.to("meta"), moved)
            return func(*moved[0], **moved[1])

        by_meta = {id(x.meta): x for x in inputs}
        by_storage = {x.meta.untyped_storage()._cdata: x for x in inputs}

        def result(meta: torch.Tensor) -> DeviceTensor:
            if id(meta) in by_meta:  # in place
                return by_meta[id(meta)]
            base = by_storage.get(meta.untyped_storage()._cdata)
            block = Block(self, meta.untyped_storage().nbytes(), stream) if base is None else base.block
            # A view of a tensor that was made outside inference mode is one as well.
            inference = torch.is_inference_mode_enabled() and (base is None or base.is_inference())
            with torch.inference_mode(inference):
                return DeviceTensor(self, meta, Cell(), block, stream.device)

        results = tree_map_only(torch.Tensor, result, on("meta", lambda x: x.meta))
        cells = [x.cell for x in tree_leaves(results) if isinstance(x, DeviceTensor)]
        serials = frozenset(x.block.serial for x in [*inputs, *tree_leaves(results)] if isinstance(x, DeviceTensor))
        # The work holds values and not the tensors, whose end is the end of their memory.
        args, kwargs = tree_map_only(DeviceTensor, lambda x: Held(x.cell), (args, kwargs))

        def run() -> None:
            moved = tree_map_only(Held, lambda x: found(x.cell), (args, kwargs))
            moved = tree_map_only(torch.device, lambda _: torch.device("cpu"), moved)
            with torch.inference_mode():
                values = func(*moved[0], **moved[1])
            leaves = [x for x in tree_leaves(values) if isinstance(x, torch.Tensor)]
            for cell, value in zip(cells, leaves, strict=True):
                # A copy from the host must not stay the host's own memory.
                cell.value = value.clone() if not waits else value

        stream.waiting.append(Work(run, serials))
        return results


@dataclass(frozen=True)
class Held:
    """An operand of work that was ordered."""

    cell: Cell


def found(cell: Cell) -> torch.Tensor:
    """Return a cell's value, which its stream must have made by now."""
    assert cell.value is not None, "a stream used what another one had not yet made: it must wait for its event"
    return cell.value


def forget_constants() -> None:
    """Make constants anew: those that are kept belong to another double."""
    transforms._constants.cache_clear()
    transforms.constant.cache_clear()


@contextmanager
def play_cuda(monkeypatch: pytest.MonkeyPatch, devices: int = 1, memory: float = float("inf")) -> Iterator[CudaDouble]:
    """Play GPUs in this thread, and check at the end that no memory was taken too early."""
    from cassava_kit.inference import machine, runner

    double, make_tensor, work = CudaDouble(devices, memory), torch.tensor, runner._work

    def tensor(data: Any, *, device: Any = None, **options: Any) -> torch.Tensor:
        return make_tensor(data, **options) if device is None else make_tensor(data, **options).to(device)

    def work_in_thread(*arguments: Any) -> None:  # a dispatch mode holds for one thread alone
        with nullcontext() if threading.current_thread() is threading.main_thread() else double:
            work(*arguments)

    with monkeypatch.context() as patch:
        for name in PATCHED:
            patch.setattr(torch.cuda, name, getattr(double, name))
        patch.setattr(torch.cuda, "_lazy_init", lambda: None)
        patch.setattr(torch, "tensor", tensor)
        patch.setattr(machine, "_computes", lambda _: True)
        patch.setattr(runner, "_work", work_in_thread)
        forget_constants()
        # A module's `to` puts its tensors into new parameters, where it would exchange the memory of the old ones.
        torch.__future__.set_overwrite_module_params_on_conversion(True)
        try:
            with double:
                yield double
        finally:
            torch.__future__.set_overwrite_module_params_on_conversion(False)
            forget_constants()
    assert not double.faults
