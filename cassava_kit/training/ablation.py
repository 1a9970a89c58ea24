"""A recipe with and without a change: trained by `train_recipes`, compared by `compare`; start at `ablate_files`."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import replace as with_fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd

from cassava_kit.data.folds import read_folds
from cassava_kit.errors import UserError
from cassava_kit.evidence.compare import Comparison, compare, correct
from cassava_kit.evidence.oof import read_evidence
from cassava_kit.files import write_text
from cassava_kit.settings import replace
from cassava_kit.training.config import RunConfig
from cassava_kit.training.recipes import run_name

if TYPE_CHECKING:
    from cassava_kit.training.rows import TrainOptions


def ablate_files(
    config: RunConfig,
    data: Path,
    folds: Path,
    out: Path,
    *,
    changes: Sequence[str] = (),
    options: TrainOptions | None = None,
    jobs: int | None = None,
) -> str:
    """Train a recipe and one variant a change over all folds, and compare each variant with the recipe.

    A change is "NAME=VALUE", or several of them with blanks between. The noise report of the options makes one more
    variant, which is trained on the rows that the report leaves; the others are trained on all rows. All are scored out
    of fold on the given labels. Finished runs in `out/<run name>` are reused; on a CPU `jobs` folds are trained
    at once (default: see `choose_jobs`). P-values are corrected for the number of variants. Writes
    `out/<run name>-ablation.csv`.

    Returns:
        What to print: a comparison a variant, and the path of the table.

    Raises:
        UserError: A variant cannot be trained; said before the first run.
    """
    from cassava_kit.data.table import read_competition
    from cassava_kit.training.recipe_run import PlannedRecipe, train_recipes
    from cassava_kit.training.rows import TrainData, TrainOptions

    options = options or TrainOptions()
    plain = with_fields(options, clean=None)
    planned = variants(config, changes, cleaned=options.clean is not None)
    plan = [PlannedRecipe(variant, plain) for variant in planned]
    if options.clean is not None:
        plan.append(PlannedRecipe(replace(config, name=f"{run_name(config)}--cleaned"), options))
    table, split = read_competition(data), read_folds(folds)
    results = train_recipes(plan, TrainData(table, split), out, jobs=jobs)
    files = [result.oof_file for result in results if result.oof_file is not None]
    evidence = read_evidence(files, split)
    base, *others = evidence.pred_probs
    names = [one.name for one in plan]
    comparisons = correct(
        [
            with_fields(
                compare(evidence.labels, base, other, metric=evidence.metric, names=(names[0], name)),
                notes=evidence.seen_by(evidence.names[0], member),
            )
            for name, member, other in zip(names[1:], evidence.names[1:], others, strict=True)
        ]
    )
    seconds = [sum(fold.seconds for fold in result.folds) for result in results]
    path = out / f"{names[0]}-ablation.csv"
    table_text = ablation_table(comparisons, seconds).to_csv(index=False, float_format="%.6g", lineterminator="\n")
    write_text(path, table_text)
    return "\n\n".join([*map(str, comparisons), str(path)])


def variants(config: RunConfig, changes: Sequence[str], *, cleaned: bool = False) -> list[RunConfig]:
    """Return the recipe, then one configuration a change; each has its own run name.

    Raises:
        UserError: There is nothing to compare, or a change changes nothing or is given twice.
    """
    if not changes and not cleaned:
        raise UserError("nothing to compare: give --change NAME=VALUE, or --clean FILE")
    made = [config]
    for change in changes:
        variant = config.with_settings(re.split(r"\s+(?=[a-z_0-9]+=)", change.strip()))
        if variant in made:
            raise UserError(f"--change {change} changes nothing, or is given twice; give each change once")
        if run_name(variant) == run_name(config):  # settings of a recipe that is none of the kit's, or a name
            raise UserError(f"a variant is named by what it changes; leave recipe and name out of {change!r}")
        made.append(variant)
    return made


def ablation_table(comparisons: Sequence[Comparison], seconds: Sequence[float]) -> pd.DataFrame:
    """Return a row a variant, the recipe first: score, standard error, and what its comparison with the recipe says."""
    first = comparisons[0]
    rows: list[dict[str, Any]] = [
        {"variant": first.names[0], first.metric: first.a.value, "se": first.a.standard_error, "seconds": seconds[0]}
    ]
    for c, spent in zip(comparisons, seconds[1:], strict=True):
        rows.append(
            {
                "variant": c.names[1],
                c.metric: c.b.value,
                "se": c.b.standard_error,
                "seconds": spent,
                "difference": c.difference,
                "low": c.interval[0],
                "high": c.interval[1],
                "p_value": c.adjusted_p,
                "proved": c.proved,
                "images_needed": c.images_needed,
                "labels_seen": "; ".join(c.notes),
            }
        )
    return pd.DataFrame(rows).astype({"images_needed": "Int64", "proved": "boolean"})
