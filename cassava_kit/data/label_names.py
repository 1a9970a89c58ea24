"""Names of the labels of an unknown folder: given, of a JSON map, or as the data call them. Start at `name_labels`."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path

from cassava_kit.data.shape import natural
from cassava_kit.errors import UserError
from cassava_kit.files import find_file, read_json


@dataclass(frozen=True)
class ClassLabels:
    """How the training labels are called: `classes` for people, `values` in table or folders (empty: 0 to K-1)."""

    classes: tuple[str, ...]
    values: tuple[str, ...] = ()

    @property
    def numbers(self) -> set[str]:
        """The labels 0 to K-1 as text."""
        return {str(k) for k in range(len(self.classes))}


def name_labels(
    labels: ClassLabels, given: Sequence[str] | None, *, names: Sequence[str], listed: bool = False
) -> ClassLabels:
    """Return labels with the names `given` by the user, else `names` where there is one for each, else their own.

    Numbers 0 to K-1 are not listed as values unless they are `listed` somewhere, as columns are.

    Raises:
        UserError: The user gave another number of names than there are labels.
    """
    values = labels.values
    numbers = set(values) <= {str(k) for k in range(max(len(values), len(given or ())))}
    classes = labels.classes
    if given is not None:
        if not numbers and set(given) == set(values):
            return ClassLabels(tuple(given), tuple(given))
        if not numbers and len(given) != len(values):
            raise UserError(
                f"--classes gives {len(given)} names, the data have {len(values)} labels ({', '.join(values[:6])}); "
                "give a name for each, in this order"
            )
        classes = tuple(given)
    elif len(names) >= len(values) and (numbers or len(names) == len(values)) and (classes == values or numbers):
        classes = tuple(names) if set(names) != set(values) else classes
    if len(set(classes)) < len(classes):
        classes = tuple(f"{name} ({value})" for name, value in zip(classes, values, strict=True))
    return ClassLabels(classes, () if numbers and not listed else values)


def find_label_map(data: Path, wanted: str | None, values: Collection[str]) -> tuple[str, tuple[str, ...]] | None:
    """Return file name and class names of the JSON map of labels to names: the wanted one, or the only one that fits.

    Raises:
        FileNotFoundError: The wanted file is missing.
        UserError: It does not name these labels.
    """
    if wanted is not None:
        find_file(data / wanted, "file", "--label-map names a JSON file of labels and class names in --data")
    fitting = []
    for path in [data / wanted] if wanted else sorted(data.glob("*.json")):
        try:
            content = read_json(path)
        except UserError:
            if wanted:
                raise
            continue
        if not isinstance(content, dict) or not content or not all(isinstance(name, str) for name in content.values()):
            continue
        orders = (sorted(values, key=natural), [str(k) for k in range(len(content))])
        order = next((each for each in orders if content.keys() == set(each) and len(each) >= len(values)), None)
        if order is not None:
            fitting.append((path.name, tuple(content[label] for label in order)))
    if wanted and not fitting:
        raise UserError(f'{data / wanted} must map labels to names as {{"0": "healthy", "1": ...}}; or give --classes')
    return fitting[0] if len(fitting) == 1 else None
