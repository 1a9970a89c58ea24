"""Pictures of the notebook `eda`: `class_sheet`, `sizes_and_brightness`, `copies` and others."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np

from cassava_kit.competition import Competition, current
from cassava_kit.data.table import TrainTable, read_competition
from cassava_kit.data.to_predict import read_test
from cassava_kit.report.charts import CHART_WIDTH, COLORS, Chart, apply_style, axes, bars, chart
from cassava_kit.report.notebook.show import photo_sheet, read_photo, read_photos, short_class, split_sheet

MOST_CLASSES = 12
MOST_SIZES = 6
MOST_PAIRS = 8


def draw_class_shares(table: TrainTable, competition: Competition | None = None) -> Chart:
    """Draw how many images each class has, by name."""
    competition = competition or current()
    counts = np.bincount(table.frame["label"], minlength=competition.n_classes)
    return bars("classes", "Training images of each class.", competition.classes, counts.tolist())


def class_sheet(table: TrainTable, n_each: int, competition: Competition | None = None) -> list[object]:
    """Draw `n_each` random images of each class with their file names; of many classes the largest and smallest."""
    competition = competition or current()
    labels = table.frame["label"].to_numpy()
    counts = np.bincount(labels, minlength=competition.n_classes)
    shown = choose_classes(counts)
    rng = np.random.default_rng(0)
    sheets = []
    for k in shown:
        names = table.frame["image_id"].to_numpy()[labels == k]
        chosen = [str(name) for name in rng.permutation(names)[:n_each]]
        heading = f"{competition.classes[k]}   {counts[k]:,} ({counts[k] / max(len(labels), 1):.1%})"
        photos = read_photos([table.image_dir / name for name in chosen], [_short(name) for name in chosen])
        sheets.append(photo_sheet(f"class{k}", f"Images of {competition.classes[k]}.", {heading: photos}, columns=3))
    left_out = competition.n_classes - len(shown)
    note = f"{left_out} classes between the largest and the smallest are not shown" if left_out else None
    return [part for part in (tuple(sheets), note) if part is not None]


def choose_classes(counts: np.ndarray, most: int = MOST_CLASSES) -> list[int]:
    """Return the classes to show, in their order: all, or of more than `most` the largest and the smallest halves."""
    if len(counts) <= most:
        return list(range(len(counts)))
    order = np.argsort(-counts, kind="stable")
    return sorted([*order[: most - most // 2].tolist(), *order[-(most // 2) :].tolist()])


def sizes_and_brightness(data: Path, n: int, competition: Competition | None = None) -> list[object]:
    """Draw sizes in pixels and mean brightness of `n` random training and test images, one beside the other."""
    from cassava_kit.data.images import in_threads
    from cassava_kit.report.eda import measure_image

    competition = competition or current()
    rng = np.random.default_rng(0)
    table, test = read_competition(data, competition), read_test(data, competition)
    kinds = {
        "training": [table.image_dir / str(name) for name in table.frame["image_id"]],
        "test": [test.folder / name for name in test.names],
    }
    measured, unreadable = {}, 0
    for kind, paths in kinds.items():
        chosen = [paths[k] for k in rng.permutation(len(paths))[:n]]
        found = list(in_threads(measure_image, chosen, title=kind, progress=False))
        good = [one for one in found if not one.reason]
        unreadable += len(found) - len(good)
        if good:
            measured[kind] = ([(one.width, one.height) for one in good], np.array([one.values[0] for one in good]))
    if not measured:
        return ["no image can be read"]
    drawn: list[object] = [(draw_sizes(measured), draw_brightness(measured))]
    if unreadable:
        drawn.append(f"{unreadable} images cannot be read")
    if "test" in measured and "training" in measured and len(measured["test"][1]) < 30:
        drawn.append(f"only {len(measured['test'][1])} test images are mounted here: too few to compare brightness")
    return drawn


Measured = dict[str, tuple[list[tuple[int, int]], np.ndarray]]


@apply_style
def draw_sizes(measured: Measured) -> Chart:
    """Draw, for each kind of image, the share of each size (width, height)."""
    figure, (ax,) = axes(CHART_WIDTH, 3.2)
    everything = [size for sizes, _ in measured.values() for size in sizes]
    common = sorted(set(everything), key=lambda size: (-everything.count(size), size))[:MOST_SIZES]
    labels = [f"{wide} × {high}" for wide, high in common]
    labels += ["other"] if any(size not in common for size in everything) else []
    for n, (kind, (sizes, _)) in enumerate(measured.items()):
        shares = [sizes.count(size) / len(sizes) for size in common]
        shares += [1 - sum(shares)] * (len(labels) - len(common))
        at = np.arange(len(labels)) + (n - (len(measured) - 1) / 2) * 0.38
        ax.barh(at, shares, height=0.36, color=COLORS[n], label=f"{kind} ({len(sizes):,})")
    ax.set_yticks(range(len(labels)), labels)
    ax.set(title="size in pixels", xlabel="share of images", xlim=(0, 1.02), ylim=(max(len(labels), 3) - 0.4, -0.6))
    figure.legend(loc="outside lower center", ncols=len(measured))
    return chart("sizes", f"Sizes of {' and '.join(measured)} images.", figure)


@apply_style
def draw_brightness(measured: Measured) -> Chart:
    """Draw, for each kind of image, how its mean brightness (n,) is distributed."""
    figure, (ax,) = axes(CHART_WIDTH, 3.2)
    bins = np.linspace(0, 255, 26)
    for n, (kind, (_, values)) in enumerate(measured.items()):
        options: Any = {"bins": bins, "weights": np.full(len(values), 1 / len(values)), "color": COLORS[n]}
        ax.hist(values, alpha=0.3, **options)
        ax.hist(values, histtype="step", linewidth=1.6, label=f"{kind} ({len(values):,})", **options)
    ax.set(title="mean brightness, 0 to 255", ylabel="share of images", xlim=(0, 255))
    figure.legend(loc="outside lower center", ncols=len(measured))
    return chart("brightness", f"Mean brightness of {' and '.join(measured)} images.", figure)


def copies(table: TrainTable, n: int, competition: Competition | None = None) -> list[object]:
    """Count near-duplicates among the first `n` rows, and draw pairs side by side, contradicting labels first."""
    from cassava_kit.data.fingerprints import fingerprint
    from cassava_kit.report.eda import copy_groups

    competition = competition or current()
    names = [str(name) for name in table.frame["image_id"][:n]]
    label_of = dict(zip(names, table.frame["label"][:n].tolist(), strict=True))
    groups = copy_groups(names, label_of, fingerprint([table.image_dir / name for name in names], progress=False))
    if not groups:
        return [f"no near-duplicates among {len(names):,} images"]
    extra, conflicts = sum(len(group.names) - 1 for group in groups), sum(group.conflicting for group in groups)
    said = f"{extra:,} of {len(names):,} images are near-duplicates of another; keep them in one fold"
    said += f"\n{conflicts} of the {len(groups)} groups have contradicting labels (orange)" if conflicts else ""
    photos = []
    for number, group in enumerate(groups[:MOST_PAIRS], start=1):
        for name, label in differing_pair(group.names, group.labels):
            named = "no label" if label is None else short_class(competition.classes[label])
            caption = f"{number}. {PurePosixPath(name).stem}\n{named}"
            photos.append(read_photo(table.image_dir / name, caption, right=False if group.conflicting else None))
    return [said, split_sheet("copies", "Pairs of near-duplicate images side by side.", photos, columns=4)]


def differing_pair(names: Sequence[str], labels: Sequence[int | None]) -> list[tuple[str, int | None]]:
    """Return the first of some copies, and the next one with another label; without one the second."""
    pairs = list(zip(names, labels, strict=True))
    other = next((pair for pair in pairs[1:] if pair[1] is not None and pair[1] != pairs[0][1]), pairs[1])
    return [pairs[0], other]


def unlisted_images(table: TrainTable, *, most: int = 12) -> list[object]:
    """Draw some of the images that no row of the table names."""
    names: Sequence[str] = table.unlisted
    if not names:
        return ["every image of the folder has a row"]
    said = f"{len(names):,} images have no row: no label is known; pretraining can use them"
    photos = read_photos([table.image_dir / name for name in names[:most]], [_short(name) for name in names[:most]])
    return [said, split_sheet("unlisted", "Images that no row of the table names.", photos, columns=3)]


def _short(name: str) -> str:
    return PurePosixPath(name).name
