"""Weights from files, matched to a timm model by name and shape: `load_weights`."""

from __future__ import annotations

import argparse
import itertools
import re
import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from cassava_kit.errors import UserError
from cassava_kit.files import find_file
from cassava_kit.models.light_timm import import_timm
from cassava_kit.models.network import head_parameters


def find_weights_file(path: str | Path) -> Path:
    """Return the path of a file of first weights; FileNotFoundError, with what to do, where it is not there."""
    remedy = "`cassava-kit weights RECIPE` downloads published ones; or give a .safetensors or .pth file of your own"
    return find_file(path, "weights file", remedy)


def load_tensors(path: str | Path) -> dict[str, Any]:
    """Return the tensors of a `.safetensors` file by name, on the CPU."""
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        return dict(load_file(path))
    except (SafetensorError, OSError) as error:
        raise UserError(f"{path} is not a whole .safetensors file ({error}); copy or train it again") from None


@dataclass(frozen=True)
class WeightsReport:
    """Tensors of a weights file by what became of them.

    `matched` were loaded, `reshaped` have another shape in the model, `unknown` are not in the model; `missing` are
    the model's that the file lacks, of which `random` belong to the backbone.
    """

    matched: tuple[str, ...]
    reshaped: tuple[str, ...]
    unknown: tuple[str, ...]
    missing: tuple[str, ...]
    random: tuple[str, ...] = ()

    def __str__(self) -> str:
        text = f"{len(self.matched)} tensors loaded"
        for label, names in (
            ("other shape", self.reshaped),
            ("not in the model", self.unknown),
            ("left random", self.missing),
        ):
            if names:
                text += f", {len(names)} {label} ({_first(names)})"
        return text


def load_weights(model: nn.Module, path: str | Path, *, partial: bool = False) -> WeightsReport:
    """Copy the tensors of a `.safetensors` or `.pth` file into the model (see `match_weights`)."""
    matched, report = match_weights(model, path, partial=partial)
    model.load_state_dict(matched, strict=False)
    return report


def match_weights(
    model: nn.Module, path: str | Path, *, partial: bool = False
) -> tuple[dict[str, torch.Tensor], WeightsReport]:
    """Return the file's tensors under the model's names, and a report; the model may be on the meta device.

    Tensors are found under any wrapper's prefix (`module.`, `teacher.backbone.`, `encoder_q.`, ...), also where the
    backbone is a `Sequential` of the model's children. What then does not fit goes through timm's own
    `checkpoint_filter_fn`, which resizes a position embedding to the model's image size.

    Raises:
        UserError: nothing matches, a tensor of the backbone would stay random (unless `partial`), or the file is
            neither format. Nothing but tensors is ever unpickled.
    """
    tensors = _without_prefix(read_state_dict(path), model)
    own = model.state_dict()
    matched = {name: value for name, value in tensors.items() if name in own and own[name].shape == value.shape}
    weights = [name for name, _ in model.named_parameters()]
    head = head_parameters(model) if getattr(model, "num_classes", 0) else set()
    if not any(name in matched for name in weights if name not in head):
        raise UserError(
            f"{path} matches nothing of the model (its tensors: {_first(list(tensors)) or 'none'}; the model's: "
            f"{_first(weights)}); give the weights of the same timm model"
        )
    statistics = [name for name in own if name.endswith((".running_mean", ".running_var"))]
    report = WeightsReport(
        matched=tuple(matched),
        reshaped=tuple(name for name in tensors if name in own and name not in matched),
        unknown=tuple(name for name in tensors if name not in own),
        missing=tuple(name for name in weights if name not in matched),
        random=tuple(name for name in [*weights, *statistics] if name not in matched and name not in head),
    )
    if report.random and not partial:
        raise UserError(
            f"{path} leaves {len(report.random)} of the backbone's tensors random ({_first(report.random)}); give the "
            "weights of the same timm model and model_args, or allow it (--partial-weights)"
        )
    return matched, report


def _first(names: Sequence[str]) -> str:
    """The first three names."""
    return f"{', '.join(names[:3])}{', ...' if len(names) > 3 else ''}"


def read_state_dict(path: str | Path) -> dict[str, torch.Tensor]:
    """Tensors by dotted name from a `.safetensors` or a `.pth`/`.pt`/`.bin`/`.ckpt`/`.tar` file, nested dicts joined.

    Files are loaded with `weights_only`; beside tensors only plain values and `argparse.Namespace` (in which DINO keeps
    its options) are read.
    """
    from cassava_kit.models.weights import load_tensors

    path = find_weights_file(path)
    if path.suffix == ".safetensors":
        return load_tensors(path)
    if path.suffix not in (".pth", ".pt", ".bin", ".ckpt", ".tar"):
        raise UserError(f"weights must be a .safetensors or a .pth/.pt/.bin/.ckpt/.tar file, got {path}")
    try:
        with torch.serialization.safe_globals([argparse.Namespace]):
            content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise UserError(
            f"{path} is not a plain state dict ({reason}); it holds more than tensors, or is broken"
        ) from None
    tensors = dict(_flat(content))
    if not tensors:
        raise UserError(f"{path} holds no tensors by name; give a state dict")
    return tensors


def _flat(content: Any, prefix: str = "") -> Iterator[tuple[str, torch.Tensor]]:
    """Tensors of nested dicts under their joined names; an optimiser's state, which has numbers for keys, is left."""
    if isinstance(content, torch.Tensor):
        yield prefix.removesuffix("."), content
    elif isinstance(content, dict):
        for key, value in content.items():
            if isinstance(key, str):
                yield from _flat(value, f"{prefix}{key}.")


# Of a network that a file holds twice: the copy not to take is the key encoder, the student, the target network.
SECOND_COPY = re.compile(r"encoder_k|momentum|student|target")


AVERAGE = re.compile(r"(^|[._])ema([._]|$)")


def _without_prefix(tensors: dict[str, torch.Tensor], model: nn.Module) -> dict[str, torch.Tensor]:
    """Return the tensors under the prefix that matches the model best, by the model's names."""
    own = model.state_dict()
    # A backbone made as Sequential(*model.children()) has numbers in the place of the children's names.
    children = {str(n): name for n, (name, _) in enumerate(model.named_children())}

    def own_name(parts: list[str], numbered: bool) -> str:
        return ".".join([children.get(parts[0], parts[0]), *parts[1:]] if numbered else parts)

    matches: Counter[tuple[str, bool]] = Counter({("", False): 0})
    for name, value in tensors.items():
        parts = name.split(".")
        for k, numbered in itertools.product(range(len(parts)), (False, True)):
            known = own.get(own_name(parts[k:], numbered))
            if known is not None:
                matches["".join(f"{part}." for part in parts[:k]), numbered] += 2 if known.shape == value.shape else 1
    prefix, numbered = max(
        matches, key=lambda key: (matches[key], not SECOND_COPY.search(key[0]), bool(AVERAGE.search(key[0])))
    )
    named = {
        own_name(name.removeprefix(prefix).split("."), numbered): value
        for name, value in tensors.items()
        if name.startswith(prefix)
    }
    return _converted(named, model)


def _converted(tensors: dict[str, torch.Tensor], model: nn.Module) -> dict[str, torch.Tensor]:
    """Return the tensors after timm's filter for published weights, where more of them fit the model then."""
    timm = import_timm()
    own = model.state_dict()

    def fitting(named: dict[str, torch.Tensor]) -> int:
        return sum(name in own and own[name].shape == value.shape for name, value in named.items())

    # timm has one filter a module of architectures; it is handed to no model.
    names = (timm.models.model_entrypoint(model.pretrained_cfg["architecture"]).__module__, type(model).__module__)
    filters = [getattr(sys.modules[name], "checkpoint_filter_fn", None) for name in names]
    for convert in filter(None, filters):
        try:
            converted = convert(dict(tensors), model)
        except Exception:  # a filter that does not know this file's names fails in its own way
            continue
        if fitting(converted) > fitting(tensors):
            return dict(converted)
    return tensors
