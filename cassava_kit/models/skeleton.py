"""A network without initial weights, for one whose tensors all come from a file: `without_weights`.

A parameter is memory that is reserved and, never written, takes none. Buffers are made as always: a relative position
index or a rope table that no file holds is right in every version of timm, which on the meta device it is not (timm 1.0
leaves out the buffers of a module whose parameters are there).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

from torch import nn
from torch.overrides import TorchFunctionMode

# What torch.nn.init and timm do to a parameter in place, one after the other.
FILLS = frozenset(
    {
        *("add_", "clamp_", "copy_", "div_", "erfinv_", "fill_", "mul_", "normal_", "sub_", "uniform_", "zero_"),
        *("kaiming_normal_", "kaiming_uniform_", "xavier_normal_", "xavier_uniform_", "trunc_normal_", "orthogonal_"),
        *("constant_", "ones_", "zeros_", "dirac_", "eye_"),
    }
)


class without_weights(TorchFunctionMode):  # noqa: N801 - a context manager, as torch.no_grad
    """In the block, and in this thread alone, parameters keep what lies in their memory: nothing is drawn or written.

    Every parameter has to be replaced afterwards: a strict `load_state_dict` refuses a missing one.

    Example::

        with without_weights():
            model = create_model("resnet50", 5)
        model.load_state_dict(load_tensors(path), assign=True)
    """

    def __torch_function__(
        self, func: Callable[..., Any], types: Iterable[type], args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Return a parameter that would be filled as it is; all other calls are made."""
        kwargs = kwargs or {}
        filled = args[0] if args else kwargs.get("tensor")
        if isinstance(filled, nn.Parameter) and getattr(func, "__name__", "") in FILLS:
            return filled
        return func(*args, **kwargs)
