"""Look at a finished submission in its notebook, within seconds and without a risk to it: `show_submission`.

The pictures are drawn by another process, which is ended after its time: whatever happens to it, the file stands.
"""

from __future__ import annotations

import csv
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from cassava_kit.competition import current
from cassava_kit.files import read_json, write_json
from cassava_kit.inference.members import read_prior
from cassava_kit.inference.report import RunReport
from cassava_kit.inference.submission import read_answers
from cassava_kit.report.charts import CHART_WIDTH, COLORS, FEW, LONGEST_LABEL, Chart, apply_style, axes, chart
from cassava_kit.report.fonts import shorten
from cassava_kit.report.notebook.show import display_part, name_corner, photo_sheet, read_photo, short_class, show

LONGEST_SECONDS = 10.0
# Of a session with another limit than Kaggle's, the pictures take this share at most.
LARGEST_SHARE = 0.03
LEAST_SECONDS = 2.0
HEAD_LINES = 5
LONGEST_CLASS = 31
FACTS_FILE = "facts.json"
CHILD = (sys.executable, "-m", "cassava_kit.report.notebook.submission_pictures")


def show_submission(report: RunReport, images_dir: Path, *, weights: Path, out: Path, n: int) -> None:
    """Show plan, members, test images with label and confidence, predicted classes, time, and the head of the file.

    `weights` is the folder of the ensemble, whose prior has the training shares. `n` is how many images are shown, 0
    for no pictures. Nothing is raised, and `out` is only read.
    """
    show(plan_table, report)
    show(left_out_lines, report)
    if n > 0:
        _show_pictures(report, images_dir, weights=weights, out=out, n=n)
    show(head_table, out)


def _show_pictures(report: RunReport, images_dir: Path, *, weights: Path, out: Path, n: int) -> None:
    limit = report.time_limit
    seconds = LONGEST_SECONDS if limit is None else min(LONGEST_SECONDS, LARGEST_SHARE * limit)
    if seconds < LEAST_SECONDS:
        print(f"no pictures: a session of {limit:.0f} s leaves no time for them")
        return
    end = time.monotonic() + seconds
    try:
        with tempfile.TemporaryDirectory(prefix="pictures-") as folder:
            facts = picture_facts(report, images_dir, weights=weights, out=out, n=n)
            write_json(Path(folder) / FACTS_FILE, facts)
            said = draw_within([*CHILD, folder], end - time.monotonic())
            drawn = [read_picture(path) for path in sorted(Path(folder).glob("*.picture"))]
            for n in range(0, len(drawn), 2):
                display_part(tuple(drawn[n : n + 2]))
            if said:
                print(f"pictures are left out: {said}; the submission is not touched by this")
    except Exception as error:
        print(f"pictures are left out: {type(error).__name__}: {error}; the submission is not touched by this")


def read_picture(path: Path) -> Chart:
    """Return a picture that the other process has drawn; its file is named by its number and description."""
    return Chart(path.stem, path.stem.partition("-")[2], "", path.read_bytes())


def draw_within(command: Sequence[str], seconds: float) -> str:
    """Run a command for so many seconds at most; return what went wrong in a line, empty where nothing did."""
    process = subprocess.Popen(
        command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, errors="replace", start_new_session=True
    )
    try:
        _, complaint = process.communicate(timeout=max(seconds, 0.0))
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        process.communicate()
        return "drawing took longer than its time"
    last = complaint.strip().splitlines()[-1:] or [f"exit code {process.returncode}"]
    return last[0] if process.returncode else ""


def plan_table(report: RunReport) -> list[Any]:
    """Return the plan as a table: what each member weighs and costs, and how many of its votes were needed."""
    import pandas as pd

    done = {unit["unit"]: unit for unit in report.timings.get("units", [])}
    member_of = {each["file"]: each["member"] for each in report.members_used}
    rows: dict[str, dict[str, Any]] = {}
    for unit in report.plan.get("units", []):
        file, _, view = unit["unit"].partition(" ")
        row = rows.setdefault(
            member_of.get(file, file), {"files": set(), "views": set(), "weight": 0.0, "ms": 0.0, "votes": 0, "s": 0.0}
        )
        row["files"].add(file)
        row["views"].add(view)
        row["weight"] += unit["weight"]
        row["ms"] += 1000 * unit["seconds_per_image"]
        row["votes"] += done.get(unit["unit"], {}).get("images", 0)
        row["s"] += done.get(unit["unit"], {}).get("seconds", 0.0)
    if not rows:
        return ["no plan: no member ran"]
    shown = [
        {
            "member": name,
            "checkpoints": len(row["files"]),
            "views": len(row["views"]),
            "weight": f"{row['weight']:.3f}",
            "ms an image": f"{row['ms']:.1f}",
            "votes needed": f"{row['votes'] / max(len(row['files']) * len(row['views']) * report.n_images, 1):.0%}",
            "seconds": f"{row['s']:.1f}",
        }
        for name, row in rows.items()
    ]
    said = f"{report.n_images:,} images by {len(report.members_used)} checkpoints, on {', '.join(report.devices)}; "
    said += "an image whose label can no longer change needs no further vote"
    return [said, name_corner(pd.DataFrame(shown).set_index("member"))]


def left_out_lines(report: RunReport) -> str | None:
    """Return what was left out and why, one line each; None where nothing was."""
    lines = [f"WARNING {name} was left out: {reason}" for name, reason in report.left_out.items()]
    lines += [f"WARNING {name} cannot be read: {reason}" for name, reason in list(report.images_failed.items())[:5]]
    return "\n".join(lines) or None


def head_table(out: Path) -> Any:
    """Return the first rows of the submission as a table."""
    from itertools import islice

    import pandas as pd

    with out.open(encoding="utf-8", errors="backslashreplace", newline="") as file:
        rows = list(islice(csv.reader(file), HEAD_LINES + 1))
    return [
        f"the first rows of {out.name}:",
        name_corner(pd.DataFrame(rows[1:], columns=rows[0]).set_index(rows[0][0])),
    ]


def picture_facts(report: RunReport, images_dir: Path, *, weights: Path, out: Path, n: int) -> dict[str, Any]:
    """Return what the pictures show, as plain values: counts, shares, times, and the images chosen."""
    competition = current()
    names, labels = report.names, np.array(list(read_answers(out, competition).values()), int)
    sure = None
    if report.probabilities is not None and len(report.probabilities) == len(labels):
        sure = report.probabilities[np.arange(len(labels)), labels]
    chosen = choose_images(len(labels), sure, n)
    return {
        "classes": list(competition.classes),
        "shares": list(read_prior(weights, competition)),
        "counts": np.bincount(labels, minlength=competition.n_classes).tolist(),
        "times": list(used_seconds(report).items()),
        "rows": {
            heading: [
                [str(images_dir / names[k]), int(labels[k]), None if sure is None else float(sure[k])] for k in rows
            ]
            for heading, rows in chosen.items()
        },
    }


def choose_images(n_images: int, sure: np.ndarray | None, n: int, *, seed: int = 0) -> dict[str, list[int]]:
    """Return which images are shown, by heading: random ones, and the least sure where confidence (N,) is known."""
    order = np.random.default_rng(seed).permutation(n_images)
    if sure is None or n_images <= n:
        return {"test images": sorted(order[:n].tolist())} if n_images else {}
    unsure = np.argsort(sure, kind="stable")[: n // 2]
    drawn = [int(k) for k in order if k not in set(unsure.tolist())][: n - n // 2]
    return {"random test images": sorted(drawn), "the least sure": unsure.tolist()}


def used_seconds(report: RunReport) -> dict[str, float]:
    """Return the seconds of the run's parts by name: until the run began, loading, each member's votes, the rest."""
    member_of = {each["file"]: each["member"] for each in report.members_used}
    timings = report.timings
    parts = {"set-up": timings.get("first_file", 0.0), "loading checkpoints": timings.get("loading", 0.0)}
    votes: dict[str, float] = {}
    for unit in timings.get("units", []):
        file = unit["unit"].partition(" ")[0]
        votes[member_of.get(file, file)] = votes.get(member_of.get(file, file), 0.0) + unit["seconds"]
    parts |= votes
    rest = timings.get("total", 0.0) - sum(parts.values())
    return {name: round(seconds, 3) for name, seconds in {**parts, "everything else": max(rest, 0.0)}.items()}


@apply_style
def draw_classes(classes: Sequence[str], counts: Sequence[int], shares: Sequence[float]) -> Chart:
    """Draw the share of each predicted class beside its share of the training labels, where that is known."""
    line, size = (0.5, 9) if len(classes) <= FEW else (0.26, 7)
    figure, (ax,) = axes(CHART_WIDTH, 1.2 + line * len(classes))
    at, total = np.arange(len(classes)), max(sum(counts), 1)
    predicted = np.array(counts) / total
    ax.barh(at - 0.19, predicted, height=0.36, color=COLORS[0], label=f"predicted ({sum(counts):,})")
    if shares:
        ax.barh(at + 0.19, shares, height=0.36, color=COLORS[1], label="training labels")
    beside: Any = {"xytext": (4, 0), "textcoords": "offset points", "va": "center", "size": size}
    for y, share in enumerate(predicted):
        ax.annotate(f"{counts[y]:,}", (share, y - 0.19), **beside)
    ax.set_yticks(at, [shorten(name, LONGEST_CLASS) for name in classes], fontsize=size)
    ax.set_ylim(len(classes) - 0.4, -0.6)
    ax.margins(x=0.12)
    ax.set_xlabel("share of images")
    figure.legend(loc="outside lower center", ncols=2)
    return chart("classes", "Predicted classes beside the training shares.", figure)


@apply_style
def draw_times(times: dict[str, float]) -> Chart:
    """Draw the seconds of each part of the run."""
    figure, (ax,) = axes(CHART_WIDTH, 0.9 + 0.34 * len(times))
    at = np.arange(len(times))
    ax.barh(at, list(times.values()), height=0.65, color=COLORS[2])
    for y, seconds in enumerate(times.values()):
        ax.annotate(f"{seconds:.1f} s", (seconds, y), xytext=(4, 0), textcoords="offset points", va="center", size=9)
    ax.set_yticks(at, [shorten(name, LONGEST_LABEL) for name in times])
    ax.set_ylim(len(times) - 0.4, -0.6)
    ax.margins(x=0.12)
    ax.set_xlabel(f"seconds, {sum(times.values()):.1f} in all")
    return chart("times", "Seconds of each part of the run.", figure)


def draw_images(facts: dict[str, Any]) -> Iterator[Chart]:
    """Draw the chosen test images, each with its class and the confidence of it, a sheet a heading."""
    for heading, images in facts["rows"].items():
        photos = [
            read_photo(Path(path), short_class(facts["classes"][label]) + ("" if sure is None else f"  {sure:.0%}"))
            for path, label, sure in images
        ]
        alt = f"Test images ({heading}) with predicted class and confidence."
        yield photo_sheet(heading, alt, {heading: photos}, columns=3)


def draw_pictures(folder: Path) -> None:
    """Draw every picture of the facts in `folder` into it, the quick ones first; numbers give the order to look at."""
    facts = read_json(folder / FACTS_FILE)
    write_picture(folder, 8, draw_classes(facts["classes"], facts["counts"], facts["shares"]))
    write_picture(folder, 9, draw_times(dict(facts["times"])))
    for number, drawn in enumerate(draw_images(facts)):
        write_picture(folder, number, drawn)


def write_picture(folder: Path, number: int, drawn: Chart) -> None:
    """Write a picture as `<number>-<description>.picture`; `read_picture` reads it."""
    part = folder / f"{number}.part"
    part.write_bytes(drawn.png)
    part.rename(folder / f"{number}-{drawn.alt.rstrip('.')}.picture")


if __name__ == "__main__":
    draw_pictures(Path(sys.argv[1]))
