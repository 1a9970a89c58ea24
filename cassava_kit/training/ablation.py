"""One recipe with and without something, over the same folds, into one table with paired intervals.

Every variant is trained on the same split and scored out of fold on the given labels of all rows, cleaned or not. The
intervals are over images: a repetition with another seed moves an accuracy too, and is no part of them.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd

from cassava_kit.data.folds import Folds, read_folds
from cassava_kit.evidence.compare import Comparison, compare, correct
from cassava_kit.evidence.metrics import METRIC_NAMES
from cassava_kit.evidence.oof import read_evidence
from cassava_kit.files import write_text
from cassava_kit.settings import parse_setting, replace
from cassava_kit.training.config import RunConfig

if TYPE_CHECKING:
    from cassava_kit.data.table import TrainTable
    from cassava_kit.training.rows import TrainOptions

BASE = "as it is"
CLEANED = "cleaned"


@dataclass(frozen=True)
class Variant:
    """A configuration under the name by which the table knows it; `cleaned` trains on the rows a noise report keeps."""

    name: str
    config: RunConfig
    cleaned: bool = False


@dataclass(frozen=True)
class Ablation:
    """The variants' out-of-fold files, the unchanged recipe's first, and each other one compared with it."""

    recipe: str
    oof: dict[str, Path]
    comparisons: dict[str, Comparison]
    seconds: dict[str, float]

    def table(self) -> pd.DataFrame:
        """A row a variant: its score ± standard error, and difference from the unchanged recipe with its interval."""
        first = next(iter(self.comparisons.values()))
        rows: list[dict[str, Any]] = [{"variant": BASE, first.metric: first.a.value, "se": first.a.standard_error}]
        rows += [
            {
                "variant": name,
                c.metric: c.b.value,
                "se": c.b.standard_error,
                "difference": c.difference,
                "low": c.interval[0],
                "high": c.interval[1],
                "p_value": c.p_value,
                "verdict": "proved" if c.proved else "not proved",
                "images_needed": c.images_needed,
            }
            for name, c in self.comparisons.items()
        ]
        table = pd.DataFrame(rows).assign(seconds=[round(self.seconds[row["variant"]], 1) for row in rows])
        return table.assign(images_needed=table["images_needed"].astype("Int64"))

    def markdown(self) -> str:
        """The table for a README, and what it rests on."""
        first = next(iter(self.comparisons.values()))
        lines = [
            f"| {self.recipe} | {METRIC_NAMES[first.metric]} | against `{BASE}` | interval | images that would prove it |",
            "|---|---|---|---|---|",
            f"| {BASE} | {first.a} | | | |",
        ]
        for name, c in self.comparisons.items():
            needed = "" if c.proved else f"{c.images_needed:,}" if c.images_needed else "none would"
            interval = f"{c.interval[0]:+.4f} to {c.interval[1]:+.4f}"
            lines.append(f"| {name} | {c.b} | {c.verdict()} | {interval} | {needed} |")
        said = (
            f"Out of fold on the given labels of the same {first.a.n:,} rows; paired intervals at {first.level:.0%}; "
            f"proved means among all {len(self.comparisons)} (Holm). One seed: another moves each line too."
        )
        return "\n".join([*lines, "", said])


def changed(config: RunConfig, change: str) -> Variant:
    """The recipe with `NAME=VALUE` or several of them, parted by blanks, under a folder name of its own."""
    settings = re.split(r"\s+(?=[a-z_0-9]+=)", change.strip())
    new = config.with_settings(settings)
    if new == config:
        raise ValueError(f"{change} changes nothing: recipe {config.recipe} has it so already")
    if "recipe" in dict(map(parse_setting, settings)):
        raise ValueError(f"a variant is named by what it changes; leave recipe out of {change!r}")
    return Variant(" ".join(settings), replace(new, recipe=f"{config.recipe}--{_slug(' '.join(settings))}"))


def _slug(text: str) -> str:
    """The text as part of a folder's name: `loss=focal label_smoothing=0` -> `loss-focal-label_smoothing-0`."""
    return re.sub(r"[^A-Za-z0-9_.]+", "-", text).strip("-")


def variants(config: RunConfig, changes: Sequence[str], *, cleaned: bool = False) -> list[Variant]:
    """The unchanged recipe, then one variant a change, then the unchanged one on cleaned rows; all names differ."""
    made = [Variant(BASE, config), *(changed(config, change) for change in changes)]
    if cleaned:
        made.append(Variant(CLEANED, replace(config, recipe=f"{config.recipe}--{CLEANED}"), cleaned=True))
    if len(made) == 1:
        raise ValueError("nothing to compare: give --change NAME=VALUE, --cleaning or --clean FILE")
    folders = [variant.config.recipe for variant in made]
    repeated = sorted({folder for folder in folders if folders.count(folder) > 1})
    if repeated:
        raise ValueError(f"two variants have the same folder {repeated[0]}; give each change once")
    return made


def compared(names: Sequence[str], oof: Sequence[Path], folds: Folds) -> dict[str, Comparison]:
    """Every later out-of-fold file against the first, on the same rows; corrected for their number."""
    evidence = read_evidence(oof, folds)
    first, *others = evidence.pred_probs
    pairs = [
        compare(evidence.labels, first, other, metric=evidence.metric, names=(names[0], name))
        for name, other in zip(names[1:], others, strict=True)
    ]
    return dict(zip(names[1:], correct(pairs), strict=True))


def ablate(
    plan: Sequence[Variant], table: TrainTable, split: Folds, out: Path, *, options: TrainOptions | None = None
) -> Ablation:
    """Train all variants over all folds, `out/<recipe>--<change>/` each; finished runs are reused.

    A cleaned variant takes the options's noise report; without one, a report that confident learning makes of the
    unchanged recipe's own out-of-fold predictions.
    """
    from dataclasses import replace as with_fields

    from cassava_kit.training.checks import check_row_weights, check_run
    from cassava_kit.training.recipe_run import train_recipe
    from cassava_kit.training.rows import TrainData, TrainOptions

    given = options or TrainOptions()
    plain = with_fields(given, clean=None)
    for variant in plan:
        if variant.cleaned:
            check_row_weights(variant.config, given.clean_action)  # a report of its own is not there to check yet
        options = given if variant.cleaned else plain
        check_run(variant.config, TrainData(table, split), range(split.n_splits), options)
    oof: dict[str, Path] = {}
    seconds: dict[str, float] = {}
    for variant in plan:
        chosen = plain
        if variant.cleaned:
            report = given.clean or own_report(oof[BASE], split, out / variant.config.recipe / "clean.csv")
            chosen = with_fields(given, clean=report)
        result = train_recipe(variant.config, table, split, out, options=chosen)
        assert result.oof_file is not None, "all folds were asked for"
        oof[variant.name] = result.oof_file
        seconds[variant.name] = sum(fold.seconds for fold in result.folds)
    return Ablation(plan[0].config.recipe, oof, compared(list(oof), list(oof.values()), split), seconds)


def own_report(oof: Path, split: Folds, out: Path) -> Path:
    """A noise report from a recipe's own out-of-fold predictions, at the default caps."""
    from cassava_kit.evidence.noise.clean import clean_labels
    from cassava_kit.evidence.noise.decisions import write_noise_report

    found = clean_labels(read_evidence([oof], split))
    write_noise_report(out, found.report)
    return out


def ablate_files(
    config: RunConfig,
    data: Path,
    folds: Path,
    out: Path,
    *,
    changes: Sequence[str] = (),
    cleaning: bool = False,
    options: TrainOptions | None = None,
) -> str:
    """The verb `ablate`: trains, writes `out/<recipe>-ablation.csv` and `.md`, and returns what to tell the user."""
    from cassava_kit.data.table import read_competition

    plan = variants(config, changes, cleaned=cleaning or (options is not None and options.clean is not None))
    split = read_folds(folds)
    found = ablate(plan, read_competition(data), split, out, options=options)
    path = out / f"{config.recipe}-ablation.csv"
    write_text(path, found.table().to_csv(index=False, float_format="%.6g", lineterminator="\n"))
    write_text(path.with_suffix(".md"), found.markdown() + "\n")
    sentences = "\n\n".join(str(comparison) for comparison in found.comparisons.values())
    return f"{sentences}\n\n{found.markdown()}\n\n{path}"
