"""The page of the verb `eda`: tables, charts and pictures of a competition folder; entry point `write_eda`."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import chain
from pathlib import Path

import numpy as np

from cassava_kit.competition import Competition
from cassava_kit.report import charts
from cassava_kit.report.charts import Chart
from cassava_kit.report.eda import QUANTITIES, Eda, Group, between_classes, explore, sizes
from cassava_kit.report.page import check_out, percent, short_names, write_page
from cassava_kit.report.thumbnails import decode_thumbnail, thumbnails

GRID = 8
SHOWN_CONFLICTS, SHOWN_GROUPS, SHOWN_COPIES, SHOWN_UNLISTED = 40, 20, 6, 16


def write_eda(
    data: Path,
    out: Path,
    *,
    competition: Competition | None = None,
    cache: Path | None = None,
    progress: bool = True,
) -> str:
    """Write the page of a competition folder and its PNGs; return a line for the user."""
    check_out(out)
    eda = explore(data, competition=competition, cache=cache, progress=progress)
    samples = sample_names(eda)
    shown = shown_groups(eda.groups)
    unlisted = [name for name in eda.unlisted if name not in eda.unreadable][:SHOWN_UNLISTED]
    wanted = [*chain(*samples), *(name for group in shown for name in group.names[:SHOWN_COPIES]), *unlisted]
    pictures = thumbnails(eda.image_dir, wanted, progress=progress)
    values = {
        "eda": eda,
        "classes": short_names(eda.competition.classes),
        "samples": samples,
        "shown": shown,
        "copies": SHOWN_COPIES,
        "unlisted": unlisted,
        "pictures": pictures,
        "sizes": list(sizes(eda.frame).items()),
        "statistics": statistics_table(eda),
        "quantities": QUANTITIES,
        "conflicts": sum(group.conflicting for group in eda.groups),
        "exact": sum(group.exact for group in eda.groups),
    }
    return write_page(out, "eda.html", eda_charts(eda, samples, pictures), values)


def sample_names(eda: Eda, *, columns: int = GRID, seed: int = 0) -> list[list[str]]:
    """Return the names of `columns` random readable images of each class; the same for the same table."""
    rng = np.random.default_rng(seed)
    by_class = [eda.frame["image_id"][eda.frame["label"] == k].sort_values() for k in range(eda.competition.n_classes)]
    return [rng.permutation(names.to_numpy().astype(object))[:columns].tolist() for names in by_class]


def shown_groups(groups: Sequence[Group]) -> list[Group]:
    """Return the groups whose pictures the page shows: at most a fixed number, conflicting labels first."""
    conflicting = [group for group in groups if group.conflicting]
    others = [group for group in groups if not group.conflicting]
    return [*conflicting[:SHOWN_CONFLICTS], *others[:SHOWN_GROUPS]]


def statistics_table(eda: Eda) -> list[list[str]]:
    """Return a row a quantity: median (5th to 95th percentile) in each class, share of variance between classes."""
    labels = eda.frame["label"].to_numpy()
    rows = []
    for quantity in QUANTITIES:
        values = eda.frame[quantity].to_numpy()
        cells = [_spread(values[labels == k]) for k in range(eda.competition.n_classes)]
        share = between_classes(values, labels) if len(values) else 0.0
        rows.append([quantity, *cells, percent(share)])
    return rows


def _spread(values: np.ndarray) -> str:
    if not len(values):
        return "none"
    low, middle, high = np.percentile(values, [5, 50, 95])
    return f"{middle:.0f} ({low:.0f}–{high:.0f})" if middle >= 10 else f"{middle:.1f} ({low:.1f}–{high:.1f})"


def eda_charts(eda: Eda, samples: Sequence[Sequence[str]], pictures: dict[str, str]) -> list[Chart]:
    """Draw class counts, statistics by class, and the sample grid (as PNG alone)."""
    names = short_names(eda.competition.classes)
    labels = eda.frame["label"].to_numpy()
    shown = ("brightness", "contrast", "saturation", "green")
    groups = {q: [eda.frame[q].to_numpy()[labels == k] for k in range(len(names))] for q in shown}
    grid = [[decode_thumbnail(pictures[name]) for name in row if pictures[name]] for row in samples]
    return [
        charts.bars("classes", "Images of each class, by given label.", names, eda.counts.tolist()),
        charts.boxes("statistics", "Median, quartiles and 5th to 95th percentile of each class.", names, groups),
        charts.picture_grid("grid", "Random pictures of each class, by given label.", eda.competition.classes, grid),
    ]
