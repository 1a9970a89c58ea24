"""Rule on albumentations: arguments that the version in Kaggle's image ignores or refuses."""

from __future__ import annotations

import ast
import importlib
import inspect
import warnings
from collections.abc import Iterator, Mapping
from importlib.metadata import PackageNotFoundError, version
from typing import Any

from cassava_kit.kaggle.examine.constants import NOT_KNOWN
from cassava_kit.kaggle.examine.finding import Finding, found_at
from cassava_kit.kaggle.examine.reading import Call, Reading

ALBUMENTATIONS = "albumentations"
# What to write in place of names and arguments that are gone, where it is another one.
REPLACED = {
    "Cutout": "CoarseDropout(num_holes_range=, hole_height_range=, hole_width_range=)",
    "Flip": "HorizontalFlip and VerticalFlip",
    "IAAAdditiveGaussianNoise": "GaussNoise",
    "IAAPiecewiseAffine": "PiecewiseAffine",
    "IAAPerspective": "Perspective",
    "IAASharpen": "Sharpen",
    "IAAEmboss": "Emboss",
    "JpegCompression": "ImageCompression",
    "RandomBrightness": "RandomBrightnessContrast",
    "RandomContrast": "RandomBrightnessContrast",
    "ToTensor": "ToTensorV2",
    "max_holes": "num_holes_range",
    "max_height": "hole_height_range",
    "max_width": "hole_width_range",
    "min_holes": "num_holes_range",
    "fill_value": "fill",
    "var_limit": "std_range",
    "value": "fill",
    "mask_value": "fill_mask",
    "height": "size=(height, width)",
    "width": "size=(height, width)",
    "quality_lower": "quality_range",
    "quality_upper": "quality_range",
}


def augment_findings(reading: Reading, images: Mapping[str, str]) -> Iterator[Finding]:
    """Yield names and arguments of albumentations that fail; `images`: image -> its version of albumentations."""
    modules = ("albumentations", "albumentations.pytorch")
    imported = [name for name in reading.names.imports.values() if name.split(".")[0] == ALBUMENTATIONS]
    if not imported and not any(name.startswith(modules) for name in reading.names.stars):
        return
    wanted = set(images.values())
    try:
        here = version(ALBUMENTATIONS)
    except PackageNotFoundError:
        here = "none"
    image = f"albumentations {here}"
    if wanted != {here}:
        return  # `skipped_rules` says so
    yield from _gone_imports(reading, image)
    for call in reading.calls:
        if call.name.startswith(f"{ALBUMENTATIONS}."):
            yield from _transform(reading, call, image)


def _gone_imports(reading: Reading, image: str) -> Iterator[Finding]:
    for node in reading.nodes:
        if not isinstance(node, ast.ImportFrom) or (node.module or "").split(".")[0] != ALBUMENTATIONS:
            continue
        for alias in node.names:
            if alias.name != "*" and _object(f"{node.module}.{alias.name}") is None:
                yield _gone(reading, alias, node, f"{node.module}.{alias.name}", image)


def _gone(reading: Reading, at: ast.AST, statement: ast.AST, name: str, image: str) -> Finding:
    short = name.rpartition(".")[2]
    instead = f"; write {REPLACED[short]}" if short in REPLACED else "; take another transform"
    place = at if at in reading.cell_of else statement
    return found_at(reading, place, ALBUMENTATIONS, f"{image}, the image's, has no {name}{instead}")


def _object(name: str) -> Any:
    """Return what a dotted name is in the installed library; None where it is not there."""
    parts = name.split(".")
    for end in range(len(parts), 0, -1):
        try:
            found: Any = importlib.import_module(".".join(parts[:end]))
        except ImportError:
            continue
        for part in parts[end:]:
            found = getattr(found, part, None)
        return found
    return None


def _transform(reading: Reading, call: Call, image: str) -> Iterator[Finding]:
    made = _object(call.name)
    if made is None:
        imported_gone = any(name == call.name for name in reading.names.imports.values())
        if not imported_gone:  # else the import is named
            yield _gone(reading, call.node, call.node, call.name, image)
        return
    if not inspect.isclass(made):
        return
    said = refusal(made, *_arguments(reading, call), open_ended=call.open_ended)
    if said:
        yield found_at(reading, call.node, ALBUMENTATIONS, f"{image}, the image's, {said}")


def _arguments(reading: Reading, call: Call) -> tuple[list[Any], dict[str, Any]]:
    return (
        [reading.evaluator.one(each) for each in call.args if not isinstance(each, ast.Starred)],
        {name: reading.evaluator.one(value) for name, value in call.keywords.items()},
    )


def refusal(made: type, args: list[Any], keywords: dict[str, Any], *, open_ended: bool = False) -> str:
    """Return what a transform's class does not take, with what to write; empty where it takes all.

    Arguments that are known are tried in the class itself; of the others the names alone are compared.
    """
    name, parameters = made.__name__, inspect.signature(made).parameters
    unknown = [each for each in keywords if each not in parameters]
    composed = any(base.__name__ == "BaseCompose" for base in inspect.getmro(made))
    spread = any(each.kind is inspect.Parameter.VAR_KEYWORD for each in parameters.values()) and composed
    if unknown and not spread:
        effective = [each for each in unknown if _matters(each, keywords, parameters)]
        missing = [] if open_ended else _missing(parameters, args, keywords)
        if missing:
            return (
                f"refuses {name} without {', '.join(missing)}: {', '.join(unknown)} is no argument{_instead(unknown)}"
            )
        if composed:
            return f"refuses {name}({', '.join(unknown)}=){_instead(unknown)}"
        if effective:
            return f"ignores {name}({', '.join(effective)}=) and takes its default{_instead(effective)}"
    known = {each: value for each, value in keywords.items() if each in parameters}
    if composed or open_ended or _has_unknown([args, list(known.values())]):
        return ""
    return _tried(made, args, known)


def _missing(parameters: Mapping[str, inspect.Parameter], args: list[Any], keywords: dict[str, Any]) -> list[str]:
    needed = [each for each, p in parameters.items() if p.default is p.empty and p.kind is p.POSITIONAL_OR_KEYWORD]
    return [each for each in needed[len(args) :] if each not in keywords]


def _matters(name: str, keywords: dict[str, Any], parameters: Mapping[str, inspect.Parameter]) -> bool:
    """Return whether an ignored argument changes what is done; `always_apply` does not where p is 1 all the same."""
    if name != "always_apply":
        return True
    p = keywords.get("p", parameters["p"].default if "p" in parameters else 1.0)
    return keywords[name] is True and p != 1


def _instead(names: list[str]) -> str:
    known = [f"{REPLACED[each]} for {each}" for each in names if each in REPLACED]
    return f"; write {', '.join(dict.fromkeys(known))}" if known else "; leave it out"


def _has_unknown(value: Any) -> bool:
    if isinstance(value, list | tuple | set):
        return any(_has_unknown(each) for each in value)
    return value is NOT_KNOWN or isinstance(value, dict)


def _tried(made: type, args: list[Any], keywords: dict[str, Any]) -> str:
    """Make the transform and return why it is refused; empty where it is not."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            made(*args, **keywords)
        except Exception as error:
            lines = [line.strip() for line in str(error).splitlines() if line.strip()]
            detail = (
                "; ".join(line for line in lines[1:] if "further information" not in line)[:160] or str(error)[:160]
            )
            given = ", ".join([*map(repr, args), *(f"{name}={value!r}" for name, value in keywords.items())])
            takes = ", ".join(list(inspect.signature(made).parameters)[:3])
            return f"refuses {made.__name__}({given[:60]}): {detail}; it takes {made.__name__}({takes}, ...)"
    return ""
