"""What differs from competition to competition: classes, columns, file names, metric. Entry point: `current`.

`current()` reads the file that `$CASSAVA_KIT_COMPETITION` names, else `competition.json` in the working folder
(`python -m cassava_kit init` writes it); without either it is Cassava. Files that the kit writes name their own
`Task`, by which they are read from any folder.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path, PurePosixPath
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, ConfigDict, Field, TypeAdapter, ValidationError, model_validator
from pydantic.dataclasses import dataclass

from cassava_kit.errors import UserError, format_errors
from cassava_kit.files import leaves_folder, read_json, write_json

COMPETITION_FILE = "competition.json"
VARIABLE = "CASSAVA_KIT_COMPETITION"
Metric = Literal["accuracy", "macro_f1", "log_loss"]
Separator = Literal[",", ";", "\t", "|"]
SEPARATORS: tuple[Separator, ...] = (",", ";", "\t", "|")
SLUG = r"[a-z0-9]+(-[a-z0-9]+)*"
Text = Annotated[str, Field(min_length=1)]


def _stays_inside(name: str) -> str:
    if leaves_folder(name):
        raise ValueError("expected a name in the competition's folder, without '..' or a leading '/'")
    return name


# A file or folder in the competition's folder; "." is that folder itself, and an empty name stands for no file.
Inside = Annotated[str, AfterValidator(_stays_inside)]
Folder = Annotated[Inside, Field(min_length=1)]


@dataclass(frozen=True)
class Task:
    """Competition, metric, classes and id column, as headers of folds, predictions and checkpoints name them."""

    competition: Text
    metric: Metric
    classes: Annotated[tuple[Text, ...], Field(min_length=2)]
    id_column: Text = "image_id"

    def header(self) -> dict[str, Any]:
        """Return the header fields `competition`, `metric`, `classes` and `id_column`, which `read_task` reads."""
        return dict(TypeAdapter(Task).dump_python(self, mode="json"))


@dataclass(frozen=True, config=ConfigDict(extra="forbid"))
class Competition:
    """Names and numbers of one competition: slug, classes, columns, files, folders, metric.

    `class_shares`: the training labels' shares, if known; a submission's answer for an image that cannot be read.
    `id_column`, `label_column`, `separator`: of the table `train_csv`. With `label_columns` it is one-hot instead: a
    column for each class, of which one holds 1.
    `label_values`: what the table, or a class folder, calls each class; empty: the numbers 0 to K-1.
    `class_folders`: folders in `train_images` that hold a folder for each class; then there is no table.
    `image_suffix`: what file names end in, empty where suffixes are mixed; with `ids_have_suffix` off the ids leave it
    out, with `ids_have_folder` off they leave out the subfolder in which a file lies.
    `test_table`: a table of the ids to predict; empty: the images in `test_images` are.
    `test_share`: where there are no test images, the share of each class that is set apart as such.
    `answer_id_column`, `answer_column`, `answer_ids_have_suffix`: a submission's, where they differ from the table's.
    `answer_values`: what a submission calls each class; empty: numbers. `probability_columns`: one a class, in a
    submission of probabilities, or with two classes one alone, of class 1's.
    `dataset`: slug of the kit's dataset on Kaggle, from which kernels are named too; empty: the one in
    `dataset-metadata.json`. Two competitions need two, or one's kernels replace the other's.
    `hidden_images`: about how many images are scored; `gpu_hours`: how long a submission's notebook may run.
    """

    slug: Annotated[str, Field(pattern=f"^{SLUG}$")]
    title: Text
    classes: Annotated[tuple[Text, ...], Field(min_length=2)]
    class_shares: tuple[float, ...] = ()
    id_column: Text = "image_id"
    label_column: Text = "label"
    image_suffix: Annotated[str, Field(pattern=r"^(\.[A-Za-z0-9]+)?$")] = ".jpg"
    train_csv: Inside = "train.csv"
    train_images: Folder = "train_images"
    test_images: Folder = "test_images"
    sample_submission: Inside = "sample_submission.csv"
    label_map: Inside = "label_num_to_disease_map.json"
    train_tfrecords: Inside = "train_tfrecords"
    ids_have_suffix: bool = True
    ids_have_folder: bool = True
    separator: Separator = ","
    label_values: tuple[Text, ...] = ()
    label_columns: tuple[Text, ...] = ()
    class_folders: tuple[Folder, ...] = ()
    test_table: Inside = ""
    test_share: Annotated[float, Field(ge=0, le=0.5)] = 0.0
    metric: Metric = "accuracy"
    answer_id_column: str = ""
    answer_ids_have_suffix: bool | None = None
    answer_column: str = ""
    answer_values: tuple[Text, ...] = ()
    probability_columns: tuple[Text, ...] = ()
    dataset: Annotated[str, Field(pattern=f"^({SLUG})?$")] = ""
    training_images: Annotated[int, Field(ge=1)] = 21_397
    hidden_images: Annotated[int, Field(ge=1)] = 15_000
    gpu_hours: Annotated[float, Field(ge=1)] = 9.0

    @model_validator(mode="after")
    def _fits_together(self) -> Competition:
        k = self.n_classes
        for field in ("classes", "label_values", "label_columns", "answer_values"):
            names: tuple[str, ...] = getattr(self, field)
            if names and (len(set(names)) != len(names) or not all(names)):
                raise ValueError(f"{field} must be distinct names, got {', '.join(names)}")
            if names and len(names) != k:
                raise ValueError(f"{field} must be {k} names, one for each class, got {len(names)}")
        shares = self.class_shares
        if shares and (len(shares) != k or min(shares) < 0 or abs(sum(shares) - 1) > 1e-6):
            raise ValueError(f"class_shares must be {k} numbers of at least 0 that sum to 1, got {shares}")
        if self.id_column == self.label_column:
            raise ValueError(f"id_column and label_column must differ, both are {self.id_column!r}")
        if self.train_images == self.test_images and not self.test_table:
            raise ValueError(
                f"train_images and test_images must be two folders, both are {self.train_images!r}; or a test_table "
                "must say which images are to be predicted"
            )
        if bool(self.train_csv) == bool(self.class_folders):
            raise ValueError("labels are in train_csv or in class_folders: give one of them")
        if self.class_folders and not self.label_values:
            raise ValueError("class_folders need label_values, the names of the folders")
        columns = self.probability_columns
        if self.metric == "log_loss" and not columns:
            raise ValueError("the metric log_loss needs probability_columns")
        one_a_class = len(columns) == k or (len(columns) == 1 and k == 2)
        if columns and (not one_a_class or len({self.answer_id, *columns}) != len(columns) + 1):
            raise ValueError(f"probability_columns must be {k} distinct names, one for each class, got {columns}")
        return self

    @property
    def task(self) -> Task:
        """The header fields of files of this competition."""
        return Task(self.slug, self.metric, self.classes, self.id_column)

    @property
    def labels_are_numbers(self) -> bool:
        """Whether the data call the classes 0 to K-1, so that people know them by their numbers too."""
        return not self.label_values and not self.label_columns

    @property
    def majority(self) -> int:
        """The most frequent class; class 0 where the shares are not known."""
        return max(range(self.n_classes), key=self.class_shares.__getitem__) if self.class_shares else 0

    @property
    def n_classes(self) -> int:
        """Number of classes K; labels are 0..K-1."""
        return len(self.classes)

    @property
    def prior(self) -> tuple[float, ...]:
        """The class shares if they are known, else even ones."""
        return self.class_shares or (1 / self.n_classes,) * self.n_classes

    @property
    def answer_id(self) -> str:
        """The id column of a submission."""
        return self.answer_id_column or self.id_column

    @property
    def submission_columns(self) -> list[str]:
        """The columns of a submission: the id, and the label or a probability for each class."""
        return [self.answer_id, *(self.probability_columns or (self.answer_column or self.label_column,))]

    @property
    def unknown_answer(self) -> list[Any]:
        """The cells beside the id for an image that cannot be read: the majority class, or the class shares."""
        if self.probability_columns:
            return list(self.prior[-len(self.probability_columns) :])
        return [self.answer_values[self.majority] if self.answer_values else self.majority]

    @property
    def train_files(self) -> list[str]:
        """Names by which the folder with the training images is known among others."""
        if not self.class_folders:
            return [self.train_csv, self.train_images]
        return [PurePosixPath(self.train_images, self.class_folders[0], self.label_values[0]).as_posix()]

    @property
    def test_files(self) -> list[str]:
        """Names by which the folder with the test images is known among others."""
        return [name for name in (self.test_images, self.sample_submission, self.test_table) if name]

    @property
    def private_images(self) -> int:
        """How many hidden images the private score is about: two thirds."""
        return self.hidden_images * 2 // 3

    @property
    def submission_seconds(self) -> int:
        """Time limit of a submission's notebook: half an hour of Kaggle's limit is left for start-up and writing."""
        return int((self.gpu_hours - 0.5) * 3600)

    def file_name(self, image_id: str) -> str:
        """Return the image file of an id of the competition's tables; inside the kit this name is the `image_id`.

        Where ids leave out the subfolder, or mixed suffixes, the files themselves must be looked at: `written_id`.
        """
        return image_id if self.ids_have_suffix else f"{image_id}{self.image_suffix}"

    def written_id(self, file_name: str) -> str:
        """Return the id that the competition's tables have for an image file."""
        return self._short(file_name, suffix=self.ids_have_suffix)

    def submitted_id(self, file_name: str) -> str:
        """Return the id that a submission has for an image file."""
        return self._short(file_name, suffix=self.answers_have_suffix)

    @property
    def answers_have_suffix(self) -> bool:
        """Whether a submission's ids end as the files do."""
        return self.ids_have_suffix if self.answer_ids_have_suffix is None else self.answer_ids_have_suffix

    def _short(self, file_name: str, *, suffix: bool) -> str:
        name = file_name if self.ids_have_folder else file_name.rpartition("/")[2]
        return name if suffix else name.rpartition(".")[0] or name


CASSAVA = Competition(
    slug="cassava-leaf-disease-classification",
    title="Cassava Leaf Disease Classification",
    classes=(
        "Cassava Bacterial Blight (CBB)",
        "Cassava Brown Streak Disease (CBSD)",
        "Cassava Green Mottle (CGM)",
        "Cassava Mosaic Disease (CMD)",
        "Healthy",
    ),
    class_shares=(1087 / 21397, 2189 / 21397, 2386 / 21397, 13158 / 21397, 2577 / 21397),
)


def current() -> Competition:
    """Return the competition of `$CASSAVA_KIT_COMPETITION`, else of `competition.json` in this folder, else Cassava."""
    named = os.environ.get(VARIABLE)
    path = Path(named or COMPETITION_FILE)
    return read_facts(path) if named or path.is_file() else CASSAVA


def find_facts(slug: str | None, here: Competition | None = None) -> Competition | None:
    """Return the facts of the competition that a file names: `here` (default: the current one) or Cassava.

    They are those of `here` where the file names none, and None where they are not at hand.
    """
    here = here or current()
    return {each.slug: each for each in (CASSAVA, here)}.get(slug) if slug else here


def known_competition(slug: str | None) -> Competition:
    """Return the facts of the competition that a file names; the current one's where it names none.

    Raises:
        UserError: They are not at hand: it is neither the current competition nor Cassava.
    """
    found = find_facts(slug)
    if found is None:
        raise UserError(
            f"the files are of {slug}, this folder is for {current().slug}; run it in the folder with the "
            f"competition.json of {slug}"
        )
    return found


def labels_are_numbers(task: Task | None, here: Competition | None = None) -> bool:
    """Return whether a file's labels are numbers in its competition's own data; False where its facts are not at hand.

    Only then pages and lines show numbers beside the classes' names.
    """
    found = find_facts(task.competition if task else None, here)
    return found is not None and found.labels_are_numbers


def read_task(header: Mapping[str, Any], name: str) -> Task | None:
    """Return the task that a file's header names; None for an old header without one.

    Raises:
        UserError: A field is missing or of another kind; the message begins with `name`, the file's.
    """
    if header.get("competition") is None or header.get("metric") is None:
        return None
    try:
        fields = {key: header[key] for key in ("competition", "metric", "classes", "id_column") if key in header}
        return TypeAdapter(Task).validate_python(fields)
    except ValidationError as error:
        raise UserError(f"{name}: {format_errors(error)}; make the file again") from None


def common_task(tasks: Mapping[str, Task | None]) -> Task:
    """Return the one task of several files, given by file name; where no file names one, the current competition's.

    Raises:
        UserError: Two files are of different competitions, metrics or classes.
    """
    named = {name: task for name, task in tasks.items() if task is not None}
    if not named:
        return current().task
    (first, task), *others = named.items()
    for name, other in others:
        for field in ("competition", "metric", "classes"):
            mine, theirs = getattr(task, field), getattr(other, field)
            if mine != theirs:
                raise UserError(
                    f"files must be of one competition and metric: {first} has {field} {_shown(mine)}, {name} has "
                    f"{_shown(theirs)}; give files of one competition"
                )
    return task


def _shown(value: str | tuple[str, ...]) -> str:
    return value if isinstance(value, str) else ", ".join(value)


def class_name(label: Any, task: Task | None) -> str:
    """Return the name of a label's class; `class 7` where the task is not known or has no such label.

    Example:
        >>> class_name(4, CASSAVA.task), class_name(5, CASSAVA.task)
        ('Healthy', 'class 5')
    """
    return task.classes[label] if task is not None and label in range(len(task.classes)) else f"class {label}"


def facts(competition: Competition) -> dict[str, Any]:
    """Return a competition as plain values, which `parse_facts` reads."""
    return dict(TypeAdapter(Competition).dump_python(competition, mode="json"))


def parse_facts(values: dict[str, Any], name: str) -> Competition:
    """Return a competition from plain values.

    Raises:
        UserError: A value does not fit; the message begins with `name` and names the field.
    """
    try:
        return TypeAdapter(Competition).validate_python(values)
    except ValidationError as error:
        raise UserError(f"{name}: {format_errors(error)}") from None


def write_facts(path: str | Path, competition: Competition) -> None:
    """Write the competition's file, atomically."""
    write_json(path, facts(competition))


def read_facts(path: str | Path) -> Competition:
    """Read and check a competition's file; FileNotFoundError or UserError where that fails."""
    if not Path(path).is_file():
        raise FileNotFoundError(f"no {path}, which ${VARIABLE} names; write it with: python -m cassava_kit init")
    return parse_facts(read_json(path), str(path))
