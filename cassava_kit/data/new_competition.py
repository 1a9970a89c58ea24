"""Gather another competition's facts from options, its folder or questions. Entry point: `init_competition`."""

from __future__ import annotations

import re
import shlex
import unicodedata
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

from cassava_kit.competition import COMPETITION_FILE, SLUG, VARIABLE, Competition, parse_facts, write_facts
from cassava_kit.data.recognise import Found, recognise
from cassava_kit.data.sheets import read_sheet
from cassava_kit.data.table import read_competition
from cassava_kit.data.to_predict import read_test
from cassava_kit.errors import UserError
from cassava_kit.files import check_writable

# What is asked for at a terminal without a folder, where it was not given.
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
# What no folder shows.
UNSHOWN = ("slug", "metric")
# Where these are taken from, and what gives others.
ASSUMED = {
    "slug": "from the folder's name; for a competition on Kaggle give --slug, the last part of its address",
    "metric": "assumed; --metric takes accuracy, macro_f1 or log_loss",
}
DEFAULTS = {field.name: field.default for field in fields(Competition)}
USUAL = {name: usual for name, usual in DEFAULTS.items() if isinstance(usual, str)} | {"ids_have_suffix": "yes"}
LONGEST_DATASET = 30  # with a kernel's name after it, Kaggle takes no more than 50 characters
# A public test set of this size is about as large as the one that is scored.
MANY_TESTS = 100

Ask = Callable[[str, str], str]


@dataclass(frozen=True)
class NewCompetition:
    """A competition's facts, and in words what was found and what was taken without being asked."""

    competition: Competition
    lines: tuple[str, ...]


def init_competition(
    given: Mapping[str, Any], out: Path, *, data: Path | None = None, ask: Ask | None = None, force: bool = False
) -> str:
    """Write the competition's file and return what was found and what to do next.

    Raises:
        UserError: The file exists and `force` is off, it cannot be written, or a fact is missing or wrong.
    """
    if out.exists() and not force:
        raise UserError(f"{out} exists already; give --force to write over it, or another --out")
    check_writable(out)
    made = gather_facts(given, data=data, ask=ask)
    write_facts(out, made.competition)
    return describe(made, out, data)


def gather_facts(given: Mapping[str, Any], *, data: Path | None = None, ask: Ask | None = None) -> NewCompetition:
    """Return a competition from fields that are `given`, else found in the folder `data`, else asked for, else default.

    `ask(question, default)` returns an answer; None asks nothing. With a folder, only what none shows is asked.

    Raises:
        UserError: A field is missing or wrong, or does not agree with the folder.
        FileNotFoundError: A file or folder of the competition is missing.
    """
    found = Found() if data is None else recognise(data, given)
    values, lines = {**found.fields, **given}, list(found.lines)
    assumed = _assume(values, data)
    if ask is not None:
        for name in QUESTIONS if data is None else UNSHOWN:
            if name not in values:
                usual = assumed.get(name) or USUAL.get(name) or ""
                if name == "title":
                    usual = make_title(values["slug"])
                answer = ask(QUESTIONS[name], usual)
                values[name] = split_names(answer) if name == "classes" else answer
    else:
        taken = {name: value for name, value in assumed.items() if name not in values}
        values |= taken
        lines += [f"{name}: {value} ({ASSUMED[name]})" for name, value in taken.items()]
    if missing := [f"--{name}" for name in ("slug", "classes") if not values.get(name)]:
        raise UserError(
            f"init needs {' and '.join(missing)}; the slug is the last part of the competition's address, the classes "
            "are names in the order of their labels, with commas; or give the folder, --data DIR, which shows them"
        )
    if not re.fullmatch(SLUG, values["slug"]):
        raise UserError(
            "--slug must be the last part of the competition's address, of a-z, 0-9 and '-' as in "
            f"plant-pathology-2020-fgvc7, got {values['slug']!r}"
        )
    values.setdefault("title", make_title(values["slug"]))
    values.setdefault("dataset", f"{values['slug'][: LONGEST_DATASET - 4].rstrip('-')}-kit")
    if values.get("metric") == "log_loss":
        values.setdefault("probability_columns", tuple(values["classes"]))
        values.pop("answer_column", None)
    for name, same in (("answer_id_column", "id_column"), ("answer_column", "label_column")):
        if values.get(name) == values.get(same, DEFAULTS[same]) and not values.get("class_folders"):
            values.pop(name, None)
    competition = parse_facts({name: value for name, value in values.items() if name in DEFAULTS}, "the competition")
    if data is not None:
        competition = replace(competition, **count_labels(data, competition))
    return NewCompetition(competition, tuple(lines))


def _assume(values: Mapping[str, Any], data: Path | None) -> dict[str, str]:
    """Return what is taken for the facts that no folder shows: its name as the slug, and a metric."""
    if data is None:
        return {}
    metric = "log_loss" if values.get("probability_columns") else "accuracy"
    return {"slug": make_slug(data.resolve().name), "metric": metric}


def make_title(slug: str) -> str:
    """Return the slug's words as a title."""
    return slug.replace("-", " ").title()


def make_slug(name: str) -> str:
    """Return a folder's name as a slug.

    Example:
        >>> make_slug("My Flowers (2024)"), make_slug("写真")
        ('my-flowers-2024', 'images')
    """
    plain = unicodedata.normalize("NFKD", name).encode("ascii", "ignore").decode().lower()
    return re.sub(r"[^a-z0-9]+", "-", plain).strip("-") or "images"


def split_names(text: str) -> tuple[str, ...]:
    """Return the names between commas."""
    return tuple(name.strip() for name in text.split(",") if name.strip())


def count_labels(data: Path, competition: Competition) -> dict[str, Any]:
    """Return the numbers of training and test images and the classes' shares.

    Raises:
        UserError: Folder and competition disagree, e.g. a row has another label, or a class has no row.
        FileNotFoundError: An image of a row, or the images to predict, are missing.
    """
    check_sample(data, competition)
    table = read_competition(data, competition)
    tests = read_test(data, competition)
    if not tests.names:
        raise FileNotFoundError(f"expected a folder {tests.folder} with images, got none; name it with --test-images")
    counts = Counter(table.frame["label"].tolist())
    if absent := [k for k in range(competition.n_classes) if not counts[k]]:
        raise UserError(
            f"expected rows of every class, got none of {absent[0]} ({competition.classes[absent[0]]}) in "
            f"{competition.train_csv or competition.train_images}; look at --classes, there are "
            f"{competition.n_classes} names"
        )
    n = len(table.frame)
    shares = tuple(counts[k] / n for k in range(competition.n_classes))
    hidden = {"hidden_images": len(tests.names)} if len(tests.names) >= MANY_TESTS else {}
    return {"class_shares": shares, "training_images": n, **hidden}


def check_sample(data: Path, competition: Competition) -> None:
    """Refuse facts with which a submission would have other columns than the sample submission."""
    if not competition.sample_submission:
        return
    sheet = read_sheet(data, competition.sample_submission)
    columns, expected = sheet.columns if sheet else [], competition.submission_columns
    if sorted(columns) != sorted(expected) or columns[0] != expected[0]:
        raise UserError(
            f"{data / competition.sample_submission}: expected the columns {','.join(expected)} for "
            f"{competition.metric}, got {','.join(columns)}; look at --metric, --id-column, --label-column and "
            "--probability-columns"
        )


def describe(made: NewCompetition, out: Path, data: Path | None) -> str:
    """Return what was found and written, and the next commands."""
    competition, folder = made.competition, shlex.quote(str(data)) if data else "DIR"
    where = "in this folder" if out == Path(COMPETITION_FILE) else f"with {VARIABLE}={shlex.quote(str(out))}"
    name = data.resolve().name if data else "DIR"
    names = ", ".join(competition.classes[:8]) + (", ..." if competition.n_classes > 8 else "")
    lines = [f"Found in {data}:", *(f"  {line}" for line in made.lines)] if made.lines else []
    lines += [
        f"Wrote {out}: {competition.title}, {competition.n_classes} classes ({names}), scored by {competition.metric}",
        f"Next, {where}:",
        f"  python -m cassava_kit eda --data {folder} --out eda.html",
        "      a page to look at: classes, pictures, copies, broken files",
        f"  python -m cassava_kit submit ensemble --data {folder}",
        f"      train, combine, rehearse the notebook; ends with build/{name}/submission.csv",
    ]
    return "\n".join(lines)
