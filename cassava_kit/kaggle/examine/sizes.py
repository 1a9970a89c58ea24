"""Rule on input sizes: a network that is fed another size than its weights were made for."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from functools import lru_cache
from typing import Any

from cassava_kit.kaggle.examine.constants import NOT_KNOWN
from cassava_kit.kaggle.examine.finding import Finding, found_at, place_of
from cassava_kit.kaggle.examine.internet import KERAS, TIMM
from cassava_kit.kaggle.examine.reading import Call, Reading

SIZE = "input size"
# Steps that decide the size of a picture; of a pipeline the last one counts.
STEPS = frozenset(
    [
        "Resize",
        "RandomResizedCrop",
        "CenterCrop",
        "RandomCrop",
        "RandomSizedCrop",
        "PadIfNeeded",
        "LongestMaxSize",
        "SmallestMaxSize",
    ]
)
LIBRARIES = ("albumentations.", "torchvision.transforms.")
# A size in the name of a file of weights: three or four digits between `_`, `-`, `.` and the ends.
IN_NAME = re.compile(r"(?:^|[_\-.])(?:sz|size|img|im|r)?(\d{3,4})(?:x\1)?(?:px)?(?=[_\-.]|$)")
SIZES = range(96, 1025, 32)
Fed = tuple[Any, ast.AST]


def size_findings(reading: Reading) -> Iterator[Finding]:
    """Yield pictures of another size than the network takes, where every size is written in the notebook."""
    fed = fed_sizes(reading)
    if not fed or NOT_KNOWN in [size for size, _ in fed]:
        return
    for wanted, why, at in [*_fixed_sizes(reading), *_sizes_of_files(reading)]:
        if wanted not in [size for size, _ in fed]:
            size, node = fed[-1]
            message = f"pictures of {size} pixels are given to {why} ({place_of(reading, at)}), which takes {wanted}"
            yield found_at(reading, node, SIZE, f"{message}; make both the same")
            return


def fed_sizes(reading: Reading) -> list[Fed]:
    """Return the sizes of pictures that are made, and where: the last step of each pipeline, and plain resizing.

    A size is NOT_KNOWN where it is not a square of constant sides.
    """
    live = [call for call in reading.calls if reading.runs(call.node) == "yes"]
    steps = [(call, sizes) for call in live if (sizes := _sizes_of(reading, call))]
    found = list[Fed]()
    for place, (call, sizes) in enumerate(steps):
        pipeline = _pipeline(reading, call)
        later = [o for o, _ in steps[place + 1 :] if pipeline is not None and _pipeline(reading, o) is pipeline]
        if not later:
            found += [(size, call.node) for size in sizes]
    return found


def _pipeline(reading: Reading, call: Call) -> ast.AST | None:
    """Return the list of steps that a call stands in."""
    return next((each for each in reading.above(call.node) if isinstance(each, ast.List | ast.Tuple)), None)


def _sizes_of(reading: Reading, call: Call) -> list[Any]:
    """Return the sides in pixels that a call may make; nothing for a call that leaves the size as it is."""
    short = call.name.rpartition(".")[2]
    if call.name.startswith(LIBRARIES) and short in STEPS:
        given = next(
            (each for name in ("size", "height", "max_size", "min_height") if (each := call.argument(name, 0))), None
        )
    elif call.name in ("cv2.resize", "tensorflow.image.resize"):
        given = call.argument("dsize" if call.name == "cv2.resize" else "size", 1)
    elif call.argument("target_size") is not None:
        given = call.argument("target_size")
    elif not call.name and getattr(call.node.func, "attr", "") == "resize" and call.args:
        given = call.args[0]  # of a PIL image
    else:
        return []
    return [_side(value.data) for value in reading.evaluator.values(given)] if given is not None else [NOT_KNOWN]


def _side(value: Any) -> Any:
    """Return the side of a square size, as a number or a pair; NOT_KNOWN for anything else."""
    pair = value if isinstance(value, tuple | list) else (value, value)
    square = len(pair) == 2 and isinstance(pair[0], int) and pair[0] == pair[1]
    return pair[0] if square else NOT_KNOWN


def _fixed_sizes(reading: Reading) -> Iterator[tuple[int, str, ast.AST]]:
    """Yield the size that a network is built for and cannot leave, what it is, and where."""
    for call in reading.calls:
        if reading.runs(call.node) != "yes":
            continue
        if call.name in TIMM and not call.open_ended:
            own = reading.evaluator.one(call.argument("img_size"))
            for value in reading.evaluator.known(call.argument("model_name", 0)):
                if not isinstance(value.data, str) or call.argument("dynamic_img_size") is not None:
                    continue
                if call.argument("img_size") is not None:
                    if isinstance(own, int):
                        yield own, f"{value.data} with img_size={own}", call.node
                elif (size := fixed_size(value.data)) is not None:
                    yield size, value.data, call.node
        elif KERAS.match(call.name) and (shape := call.argument("input_shape")) is not None:
            sides = reading.evaluator.one(shape)
            if (
                isinstance(sides, tuple | list)
                and len(sides) == 3
                and isinstance(sides[0], int)
                and sides[0] == sides[1]
            ):
                yield sides[0], f"{call.name.rpartition('.')[2]} with this input_shape", call.node


@lru_cache
def fixed_size(model: str) -> int | None:
    """Return the side in pixels that a timm model takes and no other; None for models of any size, or unknown ones."""
    import timm

    name = model.partition(".")[0]
    if not timm.is_model(name):
        return None
    settings = timm.get_pretrained_cfg(model, allow_unregistered=True) or timm.get_pretrained_cfg(name)
    if settings is None or not settings.fixed_input_size:
        return None
    return int(settings.input_size[-1])


def _sizes_of_files(reading: Reading) -> Iterator[tuple[int, str, ast.AST]]:
    """Yield the size in the name of a file of weights that is loaded, the file, and where."""
    for call in reading.calls:
        loads = call.name in ("torch.load", "safetensors.torch.load_file") or call.name.endswith("load_model")
        if not loads or reading.runs(call.node) != "yes":
            continue
        for value in reading.evaluator.known(call.args[0] if call.args else None):
            if isinstance(value.data, str):
                name = value.data.rpartition("/")[2].rpartition(".")[0]
                sizes = [int(each) for each in IN_NAME.findall(name) if int(each) in SIZES]
                if len(sizes) == 1:
                    yield sizes[0], f"the weights {value.data.rpartition('/')[2]}", call.node
