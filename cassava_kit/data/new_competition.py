"""Gather another competition's facts from options, its folder or questions. Entry point: `init_competition`."""

from __future__ import annotations

import csv
import re
from collections.abc import Callable, Mapping
from dataclasses import fields, replace
from itertools import islice
from pathlib import Path
from typing import Any

from cassava_kit.competition import COMPETITION_FILE, SLUG, VARIABLE, Competition, parse_facts, write_facts
from cassava_kit.data.table import IMAGE_SUFFIXES, list_images, read_competition
from cassava_kit.errors import UserError
from cassava_kit.files import read_json

# What is asked for at a terminal, where it was neither given nor found.
QUESTIONS = {
    "slug": "Slug, the last part of the competition's address on kaggle.com",
    "title": "Title",
    "classes": "Class names in the order of their labels, with commas",
    "id_column": "Column of train.csv that names the image",
    "label_column": "Column of train.csv that holds the label",
    "image_suffix": "Suffix of the image files",
    "ids_have_suffix": "Do the ids end in it (yes or no)",
    "metric": "Metric: accuracy, macro_f1 or log_loss",
}
DEFAULTS = {field.name: field.default for field in fields(Competition)}
USUAL = {name: usual for name, usual in DEFAULTS.items() if isinstance(usual, str)} | {"ids_have_suffix": "yes"}
LONGEST_DATASET = 30  # with a kernel's name after it, Kaggle takes no more than 50 characters

Ask = Callable[[str, str], str]


def init_competition(
    given: Mapping[str, Any], out: Path, *, data: Path | None = None, ask: Ask | None = None, force: bool = False
) -> str:
    """Write the competition's file and return what to do next.

    Raises:
        UserError: The file exists and `force` is off, or a fact is missing or wrong.
    """
    if out.exists() and not force:
        raise UserError(f"{out} exists already; give --force to write over it, or another --out")
    competition = new_competition(given, data=data, ask=ask)
    write_facts(out, competition)
    return describe_next_steps(competition, out, data)


def new_competition(given: Mapping[str, Any], *, data: Path | None = None, ask: Ask | None = None) -> Competition:
    """Return a competition from fields that are `given`, else found in the folder `data`, else asked for, else default.

    `ask(question, default)` returns an answer; None asks nothing.

    Raises:
        UserError: A field is missing or wrong, or does not agree with the folder.
        FileNotFoundError: A file or folder of the competition is missing.
    """
    values = {**(find_fields(data, given) if data is not None else {}), **given}
    for name, question in QUESTIONS.items() if ask is not None else ():
        if name not in values and ask is not None:
            usual = USUAL.get(name) or (make_title(values["slug"]) if name == "title" else "")
            answer = ask(question, usual)
            values[name] = split_names(answer) if name == "classes" else answer
    if missing := [f"--{name}" for name in ("slug", "classes") if not values.get(name)]:
        raise UserError(
            f"init needs {' and '.join(missing)}; the slug is the last part of the competition's address, the classes "
            "are names in the order of their labels, with commas, or are read from --data DIR --label-map FILE"
        )
    if not re.fullmatch(SLUG, values["slug"]):
        raise UserError(
            "--slug must be the last part of the competition's address, of a-z, 0-9 and '-' as in "
            f"plant-pathology-2020-fgvc7, got {values['slug']!r}"
        )
    values.setdefault("title", make_title(values["slug"]))
    values.setdefault("dataset", f"{values['slug'][: LONGEST_DATASET - 4].rstrip('-')}-kit")
    if values.get("metric") == "log_loss":
        columns = values.setdefault("probability_columns", values["classes"])
        if "probability_columns" not in given and set(columns) == set(values["classes"]):
            values["probability_columns"] = values["classes"]  # in the order of labels; the sample may have another
    competition = parse_facts(values, "the competition")
    return competition if data is None else replace(competition, **count_labels(data, competition))


def make_title(slug: str) -> str:
    """Return the slug's words as a title."""
    return slug.replace("-", " ").title()


def split_names(text: str) -> tuple[str, ...]:
    """Return the names between commas."""
    return tuple(name.strip() for name in text.split(",") if name.strip())


def find_fields(data: Path, given: Mapping[str, Any]) -> dict[str, Any]:
    """Return the fields that a competition's folder shows, its file and folder names as given or default."""
    if not data.is_dir():
        raise FileNotFoundError(f"no folder {data}; --data is the competition's folder as it was downloaded")
    usual = {**DEFAULTS, **given}
    table, sample = _top(data, usual["train_csv"]), _top(data, usual["sample_submission"])
    columns, answers = table[0], sample[0][1:]
    found: dict[str, Any] = {"id_column": sample[0][0]}
    id_column = given.get("id_column", sample[0][0])
    if id_column not in columns:
        raise UserError(
            f"{data / usual['train_csv']}: expected the column {id_column}, got {','.join(columns)}; "
            "say with --id-column which one names the image"
        )
    if "label_column" not in given:
        found["label_column"] = _label_column(columns, id_column, answers, data / usual["train_csv"])
    if len(answers) > 1 and given.get("metric", "log_loss") == "log_loss":
        found |= {"metric": "log_loss", "probability_columns": tuple(answers)}
    found |= _class_names(data, usual["label_map"], required="label_map" in given)
    if "classes" not in found and len(answers) > 1:
        found["classes"] = tuple(answers)
    first = table[1][columns.index(id_column)] if len(table) > 1 else ""
    return found | _image_facts(data / usual["train_images"], first, given.get("image_suffix"))


def _top(data: Path, name: str) -> list[list[str]]:
    """Read the header of a table and its first row."""
    path = data / name
    if not path.is_file():
        raise FileNotFoundError(
            f"no {path}; give the competition's folder as it was downloaded, or other names with --train-csv and "
            "--sample-submission"
        )
    with path.open(newline="", encoding="utf-8-sig") as file:
        rows = list(islice(csv.reader(file), 2))
    if not rows or len(rows[0]) < 2:
        raise UserError(f"{path}: expected a header with an id and at least one more column, got {rows[:1]}")
    return rows


def _label_column(columns: list[str], id_column: str, answers: list[str], path: Path) -> str:
    """Return the column that can hold the labels; UserError where none or several can."""
    others = [name for name in columns if name != id_column]
    likely = [name for name in (*(answers if len(answers) == 1 else ()), DEFAULTS["label_column"]) if name in others]
    if likely or len(others) == 1:
        return str([*likely, *others][0])
    if set(answers) <= set(others):
        raise UserError(
            f"{path}: expected one column of labels 0, 1, ..., got one for each class ({','.join(answers)}); put the "
            "number of the class that is 1 into a new column and name it with --label-column"
        )
    raise UserError(f"{path} has the columns {','.join(columns)}; say with --label-column which holds the labels")


def _class_names(data: Path, label_map: str, *, required: bool) -> dict[str, Any]:
    """Return class names from the JSON map of labels to names: the named file, or the only one of that form."""
    paths = [data / label_map] if required or (data / label_map).is_file() else sorted(data.glob("*.json"))
    if required and not paths[0].is_file():
        raise FileNotFoundError(f"no {paths[0]}; --label-map names a JSON file of labels and class names in --data")
    maps = {path: content for path in paths if isinstance(content := _json(path, required), dict)}
    good = {
        path: tuple(str(content[str(k)]) for k in range(len(content)))
        for path, content in maps.items()
        if content and content.keys() == {str(k) for k in range(len(content))}
    }
    if required and not good:
        raise UserError(f'{paths[0]} must map labels to names as {{"0": "healthy", "1": ...}}; or give --classes')
    if len(good) != 1:
        return {}
    ((path, names),) = good.items()
    return {"classes": names, "label_map": path.name}


def _json(path: Path, required: bool) -> Any:
    """Read a JSON file; None for a damaged one, unless it is required."""
    try:
        return read_json(path)
    except UserError:
        if required:
            raise
        return None


def _image_facts(folder: Path, image_id: str, suffix: str | None) -> dict[str, Any]:
    """Return the suffix of one row's image, and whether its id has it."""
    if not folder.is_dir():
        raise FileNotFoundError(f"no folder {folder}; name the one of the training images with --train-images")
    tried = [image_id, *(f"{image_id}{each}" for each in ([suffix] if suffix else IMAGE_SUFFIXES))]
    path = next((folder / name for name in tried if image_id and (folder / name).is_file()), None)
    if path is None:
        there = ", ".join(list_images(folder)[:2]) or "no image"
        raise FileNotFoundError(
            f"expected an image {' or '.join(tried[:3])} in {folder}, got {there}; look at --image-suffix, --id-column "
            "and --train-images"
        )
    return {"ids_have_suffix": path.name == image_id, "image_suffix": path.suffix}


def count_labels(data: Path, competition: Competition) -> dict[str, Any]:
    """Return the number of training images and the classes' shares; UserError where folder and competition disagree."""
    table = read_competition(data, competition)
    tests = data / competition.test_images
    if not tests.is_dir() or not list_images(tests):
        raise FileNotFoundError(f"expected a folder {tests} with images, got none; name it with --test-images")
    header = _top(data, competition.sample_submission)[0]
    expected = competition.submission_columns
    if (header[0], sorted(header)) != (expected[0], sorted(expected)):
        raise UserError(
            f"{data / competition.sample_submission}: expected the columns {','.join(expected)} "
            f"for {competition.metric}, got {','.join(header)}; look at --metric, --id-column, --label-column and "
            "--probability-columns"
        )
    counts = table.frame["label"].value_counts()
    if absent := [k for k in range(competition.n_classes) if k not in counts.index]:
        raise UserError(
            f"expected rows of every class, got none of {absent[0]} ({competition.classes[absent[0]]}) in "
            f"{competition.train_csv}; look at --classes, there are {competition.n_classes} names"
        )
    n = len(table.frame)
    shares = tuple(float(counts[k] / n) for k in range(competition.n_classes))
    return {"class_shares": shares, "training_images": n}


def describe_next_steps(competition: Competition, out: Path, data: Path | None) -> str:
    """Return what was written, and the next commands."""
    folder = data or "DIR"
    where = "in this folder" if out == Path(COMPETITION_FILE) else f"with {VARIABLE}={out}"
    lines = [
        f"{out}: {competition.title}, {competition.n_classes} classes, scored by {competition.metric}",
        f"submission: {','.join(competition.submission_columns)}",
        f"datasets and kernels on Kaggle: {competition.dataset}, {competition.dataset}-weights, "
        f"{competition.dataset}-ensemble-submission, of the owner that --owner or your credentials name",
        f"Next, {where}:",
        f"  python -m cassava_kit folds --data {folder}",
        f"  python -m cassava_kit submit ensemble --data {folder}",
    ]
    return "\n".join(lines)
