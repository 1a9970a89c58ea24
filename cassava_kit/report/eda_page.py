"""The page of the verb `eda`: tables, charts and pictures of a competition folder; entry point `write_eda`."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np

from cassava_kit.competition import Competition
from cassava_kit.report import charts
from cassava_kit.report.charts import Chart
from cassava_kit.report.eda import QUANTITIES, Eda, Group, between_classes, explore, sizes
from cassava_kit.report.eda_test_set import LARGE, SetComparison, compare_sets, format_spread
from cassava_kit.report.page import check_out, name_classes, percent, write_page
from cassava_kit.report.sheet import draw_sheet, encode_picture
from cassava_kit.report.thumbnails import decode_thumbnail, thumbnails

GRID = 8
SHOWN_CONFLICTS, SHOWN_GROUPS, SHOWN_COPIES, SHOWN_UNLISTED = 40, 20, 6, 16
BOXED = ("brightness", "contrast", "saturation", "green")
BESIDE = ("brightness", "contrast", "saturation", "sharpness")


def write_eda(
    data: Path,
    out: Path,
    *,
    competition: Competition | None = None,
    cache: Path | None = None,
    progress: bool = True,
) -> str:
    """Write the page of a competition folder and its PNGs; return for the user where, and how the test images look."""
    check_out(out)
    eda = explore(data, competition=competition, cache=cache, progress=progress)
    beside = compare_sets(data, eda.frame, eda.competition, progress=progress)
    samples = sample_names(eda)
    shown = shown_groups(eda.groups)
    unlisted = [name for name in eda.unlisted if name not in eda.unreadable][:SHOWN_UNLISTED]
    wanted = [*chain(*samples), *(name for group in shown for name in group.names[:SHOWN_COPIES]), *unlisted]
    pictures = thumbnails(eda.image_dir, wanted, progress=progress)
    values = {
        "eda": eda,
        "classes": _short_names(eda.competition),
        "own_labels": own_labels(eda.competition),
        "samples": samples,
        "shown": shown,
        "copies": SHOWN_COPIES,
        "unlisted": unlisted,
        "pictures": pictures,
        "statistics": statistics_table(eda),
        "quantities": QUANTITIES,
        "conflicts": sum(group.conflicting for group in eda.groups),
        "exact": sum(group.exact for group in eda.groups),
        **_size_values(eda, beside),
        **_test_values(eda, beside, progress=progress),
    }
    made = [*eda_charts(eda, samples, pictures), *set_charts(beside)]
    return f"{write_page(out, 'eda.html', made, values)}\n{beside.sentence()}"


def _short_names(competition: Competition) -> tuple[str, ...]:
    return name_classes(competition.classes, numbered=competition.labels_are_numbers).short


def own_labels(competition: Competition) -> list[str] | None:
    """Return what the data call each class; None where they call it by the name that the page shows."""
    if competition.labels_are_numbers:
        found = [str(k) for k in range(competition.n_classes)]
    else:
        found = list(competition.label_values or competition.label_columns)
    return found if found != list(competition.classes) else None


def _size_values(eda: Eda, beside: SetComparison) -> dict[str, Any]:
    """Return each size in pixels with the numbers of training and test images, the most frequent in training first."""
    train, test = sizes(eda.frame), sizes(beside.frame.astype({"width": int, "height": int}))
    names = [*train.index, *(name for name in test.index if name not in train.index)]
    return {"sizes": [(name, int(train.get(name, 0)), int(test.get(name, 0))) for name in names]}


def _test_values(eda: Eda, beside: SetComparison, *, progress: bool) -> dict[str, Any]:
    """Return what the template shows of the test images beside the training images."""
    train = _random_names(eda.frame["image_id"].sort_values().to_numpy())
    test = _random_names(beside.frame["image_id"].sort_values().to_numpy())
    rows = [
        [
            one.quantity,
            format_spread(one.train),
            format_spread(one.test),
            f"{one.distance:.3f}",
            f"{one.p_value:.3g}",
            "large" if one.large else "slight" if one.found else "none found",
        ]
        for one in beside.differences
    ]
    return {
        "beside": beside,
        "set_rows": rows,
        "large": LARGE,
        "train_sample": train,
        "test_sample": test,
        "train_pictures": thumbnails(eda.image_dir, train, progress=progress),
        "test_pictures": thumbnails(beside.image_dir, test, progress=progress),
    }


def _random_names(names: np.ndarray, *, seed: int = 0) -> list[str]:
    """Return `GRID` random names; the same for the same names."""
    return [str(name) for name in np.random.default_rng(seed).permutation(names.astype(object))[:GRID]]


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
    """Return a row a class: each quantity's median (5th to 95th percentile); last the share between the classes."""
    labels = eda.frame["label"].to_numpy()
    values = {quantity: eda.frame[quantity].to_numpy() for quantity in QUANTITIES}
    names = _short_names(eda.competition)
    rows = [[name, *(format_spread(v[labels == k]) for v in values.values())] for k, name in enumerate(names)]
    shares = [percent(between_classes(v, labels) if len(v) else 0.0) for v in values.values()]
    return [*rows, ["between classes", *shares]]


def eda_charts(eda: Eda, samples: Sequence[Sequence[str]], pictures: dict[str, str]) -> list[Chart]:
    """Draw class counts, statistics by class, and the sample grid (as PNG alone)."""
    names = _short_names(eda.competition)
    labels = eda.frame["label"].to_numpy()
    groups = {q: [eda.frame[q].to_numpy()[labels == k] for k in range(len(names))] for q in BOXED}
    grid = [[decode_thumbnail(pictures[name]) for name in row if pictures[name]] for row in samples]
    sheet = encode_picture(draw_sheet(eda.competition.classes, grid), ".png")
    return [
        charts.bars("classes", "Images of each class, by given label.", names, eda.counts.tolist()),
        *(charts.boxes(q, f"{q.capitalize()}: {QUANTITIES[q]}.", names, groups[q]) for q in BOXED),
        Chart("grid", "Random pictures of each class, by given label.", "", sheet),
    ]


def set_charts(beside: SetComparison) -> list[Chart]:
    """Draw quantities of training and test images, one above the other; none where they are not compared."""
    return [
        charts.boxes(
            f"test-{one.quantity}",
            f"{one.quantity.capitalize()} of training and test images.",
            ("training", "test"),
            (one.train, one.test),
        )
        for one in beside.differences
        if one.quantity in BESIDE
    ]
