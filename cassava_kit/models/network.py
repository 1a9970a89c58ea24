"""timm models with the kit's heads, their stages and statistics: `create_model`."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from cassava_kit.errors import UserError, closest
from cassava_kit.models.light_timm import import_timm
from cassava_kit.models.skeleton import without_weights

DENSE_HEAD_WIDTHS = (512, 128)
DENSE_HEAD_DROPOUT = 0.5
HEAD_STD = 0.01


def create_model(
    name: str, n_classes: int, *, model_args: dict[str, Any] | None = None, head: str = "linear"
) -> nn.Module:
    """Return a timm model with random weights and a head for `n_classes`; 0 classes give the bare backbone.

    Weights come from files (`load_weights`), never from a hub.

    Raises:
        UserError: timm does not know the name, or the model does not take the arguments.
    """
    timm = import_timm()
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
        reset_head(model)
    return model


def check_image_size(name: str, size: int, model_args: dict[str, Any] | None = None) -> None:
    """Refuse a model that cannot take square images of `size` pixels; no weights are made.

    Raises:
        UserError: It cannot, even where it is made for this size, or a ViT's patches would leave pixels over.
    """
    patch_embed = import_timm().layers.PatchEmbed
    model, image = meta_model(name, size, model_args=args_for_size(name, size, model_args))
    patches = getattr(model, "patch_embed", None)
    side = patches.patch_size[0] if isinstance(patches, patch_embed) else 1
    if size % side:
        raise UserError(
            f"{name} cuts images into patches of {side} pixels, and {size} is no multiple of that; set image_size to "
            f"{size // side * side} or {(size // side + 1) * side}"
        )
    try:
        with torch.no_grad():
            model(image)
    except (RuntimeError, AssertionError) as error:
        reason = str(error).splitlines()[0]
        raise UserError(
            f"{name} does not take images of {size} pixels ({reason}); set image_size to what it takes, or for a "
            f'model that can be made for another size model_args={{"img_size": {size}}}'
        ) from None


def meta_model(
    name: str, size: int, *, model_args: dict[str, Any] | None = None, head: str = "linear"
) -> tuple[nn.Module, torch.Tensor]:
    """Return a model in evaluation mode and one image (1, 3, size, size) on the meta device: shapes, no numbers."""
    with _shapes_alone():
        return create_model(name, 2, model_args=model_args, head=head).eval(), torch.empty(1, 3, size, size)


@contextmanager
def _shapes_alone() -> Iterator[None]:
    """Make networks on the meta device in the block; no weight is drawn, for which torch would load its compiler."""
    import_timm()  # torch 2.6 cannot finish this import on the meta device
    with torch.device("meta"), without_weights():
        yield


def args_for_size(name: str, size: int, model_args: dict[str, Any] | None = None) -> dict[str, Any]:
    """Return the arguments with `img_size`, where a model is made for one image size (a ViT) and this is another."""
    args = dict(model_args or {})
    with _shapes_alone():
        model = create_model(name, 2, model_args=args)
        published = model.pretrained_cfg
        if not published.get("fixed_input_size") or "img_size" in args or size == published["input_size"][-1]:
            return args
        try:
            create_model(name, 2, model_args=args | {"img_size": size})
        except UserError:  # the size is fixed and cannot be chosen
            return args
    return args | {"img_size": size}


def reset_head(model: nn.Module) -> None:
    """Draw the linear head with small weights, so that a new head on trained features starts near equal probabilities.

    timm's EfficientNets and MobileNets draw theirs within 1/sqrt(K): with 5 classes the first losses are near 7, and
    the gradients of a random head ruin the features below it.
    """
    for name in classifier_names(model):
        for module in model.get_submodule(name).modules():
            if isinstance(module, nn.Linear):
                nn.init.normal_(module.weight, std=HEAD_STD)
                nn.init.zeros_(module.bias)


def dense_head(in_features: int, n_classes: int) -> nn.Sequential:
    """Return three dense layers with dropout between them."""
    layers: list[nn.Module] = []
    for width in DENSE_HEAD_WIDTHS:
        layers += [nn.Linear(in_features, width), nn.ReLU(), nn.Dropout(DENSE_HEAD_DROPOUT)]
        in_features = width
    return nn.Sequential(*layers, nn.Linear(in_features, n_classes))


def classifier_names(model: nn.Module) -> tuple[str, ...]:
    """Return the dotted names of the modules that map features to logits; distilled models have two."""
    name = model.pretrained_cfg["classifier"]
    return (name,) if isinstance(name, str) else tuple(name)


def classifier_name(model: nn.Module) -> str:
    """Return the dotted name of the module that maps features to logits, e.g. `fc` or `head.fc`."""
    return classifier_names(model)[0]


def image_statistics(model: nn.Module) -> tuple[tuple[float, float, float], tuple[float, float, float]]:
    """Return mean and standard deviation of RGB (0..1) with which the architecture's published weights were trained."""
    return tuple(model.pretrained_cfg["mean"]), tuple(model.pretrained_cfg["std"])


def head_parameters(model: nn.Module) -> set[str]:
    """Return the names of the classifier's parameters; all others are the backbone's."""
    prefixes = tuple(f"{name}." for name in classifier_names(model))
    return {name for name, _ in model.named_parameters() if name.startswith(prefixes)}


def freeze_backbone(model: nn.Module) -> None:
    """Freeze all parameters but the head's; after every `train()` call `keep_frozen`."""
    head = head_parameters(model)
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(name in head)


def stages(model: nn.Module, *, coarse: bool = True) -> list[list[str]]:
    """Return the names of the backbone's parameters stage by stage, the stem first, as timm groups them.

    A ResNet's stages are its stem and layers, a ViT's its embedding and blocks; not `coarse`: each block of a ResNet or
    ConvNeXt too. What timm groups with the classifier (a ConvNeXt's last norm) belongs to no stage: it goes with the
    head.

    Raises:
        UserError: timm names no stages of this architecture.
    """
    group_parameters = import_timm().models.group_parameters
    if not hasattr(model, "group_matcher"):
        raise UserError(
            f"{type(model).__name__} names no stages, which layer_decay, keep_stages and unfreeze_every need; leave "
            "them out"
        )
    head = head_parameters(model)
    groups = group_parameters(model, model.group_matcher(coarse=coarse))
    return [groups[depth] for depth in sorted(groups) if not head & set(groups[depth])]


def stage_modules(model: nn.Module) -> list[nn.Module]:
    """Return the modules that hold a stage each, outermost alone: the units of a sharding strategy."""
    found: list[str] = []
    for names in stages(model):
        prefix = _common_module(names)
        if prefix and not any(prefix == known or prefix.startswith(f"{known}.") for known in found):
            found.append(prefix)
    return [model.get_submodule(name) for name in found]


def _common_module(parameters: list[str]) -> str:
    """Return the dotted name of the innermost module that holds all these parameters; empty for the model itself."""
    parts = [name.split(".")[:-1] for name in parameters]
    common: list[str] = []
    for step in zip(*parts, strict=False):
        if len(set(step)) > 1:
            break
        common.append(step[0])
    return ".".join(common)


def free_stages(model: nn.Module, n: int) -> None:
    """Unfreeze the head and the top `n` stages, and freeze the stages below."""
    parts = stages(model)
    frozen = {name for names in parts[: max(0, len(parts) - n)] for name in names}
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(name not in frozen)


def keep_frozen(model: nn.Module) -> None:
    """Put modules whose parameters are all frozen into eval mode: BatchNorm statistics stay, nothing is dropped.

    So is a child without parameters between frozen ones and the first that learns, e.g. a ViT's dropout of positions.
    """
    for module in model.modules():
        own = list(module.parameters())
        if own and not any(p.requires_grad for p in own):
            module.eval()
    below = False
    for child in model.children():
        own = list(child.parameters())
        if any(p.requires_grad for p in own):
            break
        below = below or bool(own)
        if below:
            child.eval()
