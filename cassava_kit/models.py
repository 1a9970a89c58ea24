"""timm models with the kit's heads, and weights from files."""

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

from cassava_kit.errors import UserError, closest

DENSE_HEAD_WIDTHS = (512, 128)
DENSE_HEAD_DROPOUT = 0.5
HEAD_STD = 0.01


def create_model(
    name: str, n_classes: int, *, model_args: dict[str, Any] | None = None, head: str = "linear"
) -> nn.Module:
    """A timm model with random weights and a head for `n_classes`; 0 classes give the bare backbone.

    Never asks a hub: weights come from files (`load_weights`). Raises ValueError for a name that timm does not know, or
    arguments that the model does not take.
    """
    import timm

    if not timm.is_model(name.split(".")[0]):
        near = closest(name, timm.list_models()) or "; timm.list_models() in Python lists them"
        raise UserError(f"timm has no model {name!r}{near}")
    try:
        model: nn.Module = timm.create_model(name, pretrained=False, num_classes=n_classes, **(model_args or {}))
    except (TypeError, RuntimeError, AssertionError) as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise UserError(f"timm cannot make {name} with model_args={model_args or {}}: {reason}; change them") from None
    if head == "dense" and n_classes:
        classifier = classifier_name(model)
        model.set_submodule(classifier, dense_head(model.get_submodule(classifier).in_features, n_classes))
    elif n_classes:
        start_small(model)
    return model


def check_size(name: str, size: int, model_args: dict[str, Any] | None = None) -> None:
    """ValueError where a model cannot take square images of `size` pixels; no weights are made."""
    model, image = shapes_alone(name, size, model_args=model_args)
    try:
        with torch.no_grad():
            model(image)
    except (RuntimeError, AssertionError) as error:
        reason = str(error).splitlines()[0]
        raise UserError(
            f"{name} does not take images of {size} pixels ({reason}); set image_size to what it takes, or for a "
            f'model that can be made for another size model_args={{"img_size": {size}}}'
        ) from None


def shapes_alone(
    name: str, size: int, *, model_args: dict[str, Any] | None = None, head: str = "linear"
) -> tuple[nn.Module, torch.Tensor]:
    """A model in evaluation mode and one image (1, 3, size, size) on the meta device, where nothing is computed."""
    with torch.device("meta"):
        return create_model(name, 2, model_args=model_args, head=head).eval(), torch.empty(1, 3, size, size)


def sized_args(name: str, size: int, model_args: dict[str, Any] | None = None) -> dict[str, Any]:
    """Return the arguments with `img_size`, where a model is made for one image size (a ViT) and this is another."""
    args = dict(model_args or {})
    with torch.device("meta"):
        model = create_model(name, 2, model_args=args)
        published = model.pretrained_cfg
        if not published.get("fixed_input_size") or "img_size" in args or size == published["input_size"][-1]:
            return args
        try:
            create_model(name, 2, model_args=args | {"img_size": size})
        except UserError:  # the size is fixed and cannot be chosen
            return args
    return args | {"img_size": size}


def start_small(model: nn.Module) -> None:
    """Draw the linear head anew with small weights, so that a new head on trained features starts near even odds.

    timm's EfficientNets and MobileNets draw theirs within 1/sqrt(K): with 5 classes the first losses are near 7, and
    the gradients of a random head ruin the features that it stands on.
    """
    for name in classifier_names(model):
        for module in model.get_submodule(name).modules():
            if isinstance(module, nn.Linear):
                nn.init.normal_(module.weight, std=HEAD_STD)
                nn.init.zeros_(module.bias)


def dense_head(in_features: int, n_classes: int) -> nn.Sequential:
    """Three dense layers with dropout between them."""
    layers: list[nn.Module] = []
    for width in DENSE_HEAD_WIDTHS:
        layers += [nn.Linear(in_features, width), nn.ReLU(), nn.Dropout(DENSE_HEAD_DROPOUT)]
        in_features = width
    return nn.Sequential(*layers, nn.Linear(in_features, n_classes))


def classifier_names(model: nn.Module) -> tuple[str, ...]:
    """Dotted names of the modules that map features to logits; distilled models have two."""
    name = model.pretrained_cfg["classifier"]
    return (name,) if isinstance(name, str) else tuple(name)


def classifier_name(model: nn.Module) -> str:
    """Dotted name of the module that maps features to logits, e.g. `fc` or `head.fc`."""
    return classifier_names(model)[0]


def image_statistics(model: nn.Module) -> tuple[tuple[float, float, float], tuple[float, float, float]]:
    """Mean and standard deviation of RGB (0..1) with which the architecture's published weights were trained."""
    return tuple(model.pretrained_cfg["mean"]), tuple(model.pretrained_cfg["std"])


def head_parameters(model: nn.Module) -> set[str]:
    """Names of the parameters of the classifier; the rest is the backbone."""
    prefixes = tuple(f"{name}." for name in classifier_names(model))
    return {name for name, _ in model.named_parameters() if name.startswith(prefixes)}


def freeze_backbone(model: nn.Module) -> None:
    """Take the gradient from all but the head; `train()` must leave frozen BatchNorm alone (see `keep_frozen`)."""
    head = head_parameters(model)
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(name in head)


def stages(model: nn.Module) -> list[list[str]]:
    """Names of the backbone's parameters stage by stage, the stem first, as timm groups them; the head is none of them.

    A ResNet's stages are its stem and layers, a ViT's its embedding and blocks.
    """
    from timm.models import group_parameters

    if not hasattr(model, "group_matcher"):
        raise UserError(f"{type(model).__name__} names no stages, which layer_decay and unfreeze_every need")
    head = head_parameters(model)
    groups = group_parameters(model, model.group_matcher(coarse=True))
    named = [[name for name in groups[depth] if name not in head] for depth in sorted(groups)]
    return [names for names in named if names]


def stage_modules(model: nn.Module) -> list[nn.Module]:
    """Modules that hold a stage each, outermost alone: what a sharding strategy gathers and frees at a time."""
    found: list[str] = []
    for names in stages(model):
        prefix = _common_module(names)
        if prefix and not any(prefix == known or prefix.startswith(f"{known}.") for known in found):
            found.append(prefix)
    return [model.get_submodule(name) for name in found]


def _common_module(parameters: list[str]) -> str:
    """Dotted name of the innermost module that holds all these parameters; empty for the model itself."""
    parts = [name.split(".")[:-1] for name in parameters]
    common: list[str] = []
    for step in zip(*parts, strict=False):
        if len(set(step)) > 1:
            break
        common.append(step[0])
    return ".".join(common)


def free_stages(model: nn.Module, n: int) -> None:
    """Give the gradient to the head and the top `n` stages, and take it from the stages below."""
    parts = stages(model)
    frozen = {name for names in parts[: max(0, len(parts) - n)] for name in names}
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(name not in frozen)


def keep_frozen(model: nn.Module) -> None:
    """Put modules all of whose own parameters are frozen into eval mode, so that BatchNorm statistics stand still."""
    for module in model.modules():
        own = list(module.parameters(recurse=False))
        if isinstance(module, nn.modules.batchnorm._BatchNorm) and own and not any(p.requires_grad for p in own):
            module.eval()


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
            f"{path} matches nothing of the model (its tensors: {', '.join(list(tensors)[:3])}, ...; the model's: "
            f"{', '.join(weights[:3])}, ...); give the weights of the same timm model"
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
    from cassava_kit.checkpoint import load_tensors

    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"no weights file {path}")
    if path.suffix == ".safetensors":
        return load_tensors(path)
    if path.suffix not in (".pth", ".pt", ".bin", ".ckpt", ".tar"):
        raise UserError(f"weights must be a .safetensors or a .pth/.pt/.bin/.ckpt/.tar file, got {path}")
    try:
        with torch.serialization.safe_globals([argparse.Namespace]):
            content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:
        reason = str(error).splitlines()[0]
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
    import timm

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
