"""What a submission looks like, read from a sample submission or chosen: `read_format`, `chosen_format`."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Any

from cassava_kit.data.label_names import ClassLabels
from cassava_kit.data.sheets import LOOKED_AT, Sheet, find_ids
from cassava_kit.errors import UserError


def read_format(sheet: Sheet, labels: ClassLabels, tests: Collection[str]) -> tuple[dict[str, Any], str]:
    """Return the fields that a sample submission shows, and in words what it asks for.

    Raises:
        UserError: Its columns or cells are none that the kit can write for these classes.
    """
    ids = find_ids(sheet, tests)
    id_column = ids.column if ids else sheet.columns[0]
    answers = [name for name in sheet.columns if name != id_column]
    fields: dict[str, Any] = {"answer_id_column": id_column}
    if not answers:
        raise UserError(f"{sheet.name}: expected an id and at least one more column, got {','.join(sheet.columns)}")
    if len(answers) > 1:
        columns = order_columns(answers, labels)
        if columns is None:
            raise UserError(
                f"{sheet.name}: expected one column beside {id_column}, or one for each of the {len(labels.classes)} "
                f"classes ({', '.join(labels.classes[:6])}), got {len(answers)} ({', '.join(answers[:6])}); name them "
                "in the order of the classes with --probability-columns"
            )
        return fields | {"probability_columns": columns}, "a probability for each class"
    cells = {cell for cell in sheet.cells(answers[0], LOOKED_AT) if cell}
    fields["answer_column"] = answers[0]
    for names in (labels.values, labels.classes):
        if names and cells <= set(names) and (cells or names == labels.values):
            return fields | {"answer_values": names}, f"the label as {_examples(names)}"
    if cells <= labels.numbers:
        said = "the label as a number" if labels.values else "the label"
        return fields, f"{said}, 0 to {len(labels.classes) - 1}"
    if len(labels.classes) == 2 and all(_is_share(cell) for cell in cells):
        del fields["answer_column"]
        named = labels.classes[1]
        return fields | {"probability_columns": (answers[0],)}, f"one probability, of {named}"
    raise UserError(
        f"{sheet.name}: expected a class in the column {answers[0]}, one of {', '.join(labels.classes[:6])} or 0 to "
        f"{len(labels.classes) - 1}, got {', '.join(sorted(cells)[:3])}; look at --classes and --label-column"
    )


def chosen_format(labels: ClassLabels, *, by_folder: bool) -> tuple[dict[str, Any], str]:
    """Return the fields of a submission where there is no sample of one: the labels as the training data call them."""
    fields: dict[str, Any] = {"answer_values": labels.values} if labels.values else {}
    if by_folder:
        fields |= {"answer_id_column": "image_id", "answer_column": "label"}
    numbers = f"the label, a number of 0 to {len(labels.classes) - 1}"
    return fields, f"the label as {_examples(labels.values)}" if labels.values else numbers


def order_columns(answers: Sequence[str], labels: ClassLabels) -> tuple[str, ...] | None:
    """Return the columns of probabilities in the order of the classes; None where they are not one for each."""
    for names in (labels.classes, labels.values):
        if set(answers) == set(names):
            return tuple(names)
    lower = {name.strip().lower(): name for name in answers}
    for names in (labels.classes, labels.values):
        if lower.keys() == {name.strip().lower() for name in names}:
            return tuple(lower[name.strip().lower()] for name in names)
    return tuple(answers) if len(answers) == len(labels.classes) else None


def _is_share(cell: str) -> bool:
    try:
        return 0 <= float(cell) <= 1
    except ValueError:
        return False


def _examples(names: Sequence[str]) -> str:
    return f"a name ({', '.join(names[:3])}{', ...' if len(names) > 3 else ''})"
