"""Choice of two finals, the best expected and the best hedge, from out-of-fold evidence; entry point `propose_finals`.

Kaggle scores the better of two finals, so that the second one is the candidate that gains most where the first is weak.
A near copy of the first gains nothing.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from cassava_kit.competition import Metric, Task, common_task, current, find_facts
from cassava_kit.data.folds import Folds, read_folds
from cassava_kit.errors import UserError
from cassava_kit.evidence.blend import error_correlation, read_weighed
from cassava_kit.evidence.compare import DRAWS, LEVEL, Comparison, compare, correct
from cassava_kit.evidence.metrics import METRIC_NAMES, Score, gain, row_counts, score, statistic
from cassava_kit.evidence.nested import nested_predictions
from cassava_kit.evidence.oof import check_oof, read_evidence
from cassava_kit.evidence.predictions import Predictions, read_predictions
from cassava_kit.files import find_file, hold_lock, read_json, write_json


@dataclass(frozen=True)
class Candidate:
    """A submission: out-of-fold predictions in row order of their split, and what else is known of it.

    `members` is the number of recipes (None: not known), `public` the public score, `submission` the file.
    """

    name: str
    oof: Predictions
    split: Folds
    members: int | None = None
    public: str = ""
    submission: Path | None = None

    @property
    def predicted(self) -> np.ndarray:
        """The most probable class of every row, (N,)."""
        return self.oof.probabilities.argmax(axis=1)

    def same_rows(self, other: Candidate) -> bool:
        """Whether both are scored on the same rows and labels."""
        columns = ["image_id", "label"]
        return bool(self.split.frame[columns].equals(other.split.frame[columns]))


@dataclass(frozen=True)
class Finals:
    """Two different submissions, and how certain the choice is.

    `best` and `hedge` are indices. `win` (C,) is each candidate's share of redraws in which it is the best of all, ties
    shared; `pair_win` the share in which one of the two is. `gain` is the expected score of the better of both above
    `best` alone, with its interval. `differ` is the share of rows on which the two differ, `errors_correlate` the
    correlation of their errors. `against_best[c]` compares each other candidate with `best`, corrected for their
    number. `notes` say how labels of the scored rows came into candidates.
    """

    names: tuple[str, ...]
    scores: tuple[Score, ...]
    public: tuple[str, ...]
    best: int
    hedge: int
    win: np.ndarray
    pair_win: float
    gain: float
    gain_interval: tuple[float, float]
    differ: float
    errors_correlate: float
    against_best: dict[int, Comparison]
    rows: int
    draws: int
    metric: Metric
    notes: tuple[str, ...] = ()

    def values(self) -> dict[str, Any]:
        """Return the proposal as plain values, for JSON."""
        rows = zip(self.names, self.scores, self.public, self.win, strict=True)
        return {
            "metric": self.metric,
            "finals": [self.names[self.best], self.names[self.hedge]],
            "submissions": [
                {"name": name, "score": found.values(), "public": public, "best_of_all": float(win)}
                for name, found, public, win in rows
            ],
            "differ": self.differ,
            "errors_correlate": self.errors_correlate,
            "pair_best_of_all": self.pair_win,
            "gain": self.gain,
            "gain_interval": list(self.gain_interval),
            "against_best": [each.values() for each in self.against_best.values()],
            "private_images": self.rows,
            "redraws": self.draws,
            "notes": list(self.notes),
        }

    def __str__(self) -> str:
        return format_finals(self)


def redraw(right: np.ndarray, *, rows: int, seed: int = 0) -> np.ndarray:
    """Return accuracies (DRAWS, C) on redrawn private test sets, all candidates on the same images; right (C, N) bool.

    Each redraw resamples the rows of the evidence, and from those a test set of `rows` images. Rows on which the same
    candidates are right are one kind: two multinomials draw how many there are of each.
    """
    kinds, counts = np.unique(right.T, axis=0, return_counts=True)
    rng = np.random.default_rng(seed)
    truth = rng.multinomial(counts.sum(), counts / counts.sum(), size=DRAWS) / counts.sum()
    return np.asarray(rng.multinomial(rows, truth) @ kinds.astype(float) / rows)


def redraw_by(metric: Metric, labels: np.ndarray, probs: Sequence[np.ndarray], *, rows: int, seed: int) -> np.ndarray:
    """Return what `redraw` does, for another metric on probabilities (N, K) each; (draws, C), larger is better."""
    rng, scores = np.random.default_rng(seed), [statistic(metric, labels, p) for p in probs]
    tests = (rng.multinomial(rows, counts / len(labels)) for counts in row_counts(len(labels), seed=seed))
    return np.array([[gain(metric, 0.0, score(test)) for score in scores] for test in tests])


def propose_finals(candidates: Sequence[Candidate], *, rows: int | None = None, seed: int = 0) -> Finals:
    """Propose the candidate with the best out-of-fold score (a tie goes to fewer members), and its best hedge.

    The score is by the metric that the evidence names. The hedge has the largest expected maximum with the best.

    Raises:
        UserError: where there are no two different candidates or their evidence is not of the same rows and labels.
    """
    labels, task = _same_rows(candidates), _task_of(candidates)
    metric, rows = task.metric, rows or _private_images(task)
    predicted = np.stack([candidate.predicted for candidate in candidates])
    probs = [candidate.oof.probabilities for candidate in candidates]
    scores = tuple(score(labels, p, metric) for p in probs)
    worth = [gain(metric, 0.0, score.value) for score in scores]
    order = sorted(range(len(candidates)), key=lambda c: (-worth[c], candidates[c].members or np.inf, c))
    best = order[0]
    others = [c for c in order[1:] if _different(candidates[best], candidates[c], metric)]
    if not others:
        raise UserError(
            f"two different submissions are needed, every other one predicts just as {candidates[best].name} does; "
            "submit another recipe or ensemble first"
        )
    if metric == "accuracy":
        drawn = redraw(predicted == labels, rows=rows, seed=seed)
    else:
        drawn = redraw_by(metric, labels, probs, rows=rows, seed=seed)
    above = {c: np.maximum(drawn[:, c] - drawn[:, best], 0) for c in others}
    hedge = max(others, key=lambda c: above[c].mean())  # of equals the one with the better score
    low, high = np.quantile(above[hedge], [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    top = drawn >= drawn.max(axis=1, keepdims=True)
    names = tuple(candidate.name for candidate in candidates)
    rest = [c for c in range(len(candidates)) if c != best]
    pairs = [compare(labels, probs[best], probs[c], metric=metric, names=(names[best], names[c])) for c in rest]
    return Finals(
        names=names,
        scores=scores,
        public=tuple(candidate.public for candidate in candidates),
        best=best,
        hedge=hedge,
        win=(top / top.sum(axis=1, keepdims=True)).mean(axis=0),
        pair_win=float(top[:, [best, hedge]].any(axis=1).mean()),
        gain=float(above[hedge].mean()),
        gain_interval=(float(low), float(high)),
        differ=float((predicted[best] != predicted[hedge]).mean()),
        errors_correlate=float(error_correlation(labels, np.stack([probs[best], probs[hedge]]))[0, 1]),
        against_best=dict(zip(rest, correct(pairs), strict=True)),
        rows=rows,
        draws=len(drawn),
        metric=metric,
        notes=tuple(
            f"{each.name}: {text}"
            for each in candidates
            for text in (each.oof.header.labels_seen if each.oof.header else ())
        ),
    )


def _task_of(candidates: Sequence[Candidate]) -> Task:
    """Return the competition and metric that the candidates' files name; UserError where they differ."""
    tasks: dict[str, Task | None] = {}
    for each in candidates:
        tasks[f"the split of {each.name}"] = each.split.task
        tasks[each.name] = each.oof.header.task if each.oof.header else None
    return common_task(tasks)


def _private_images(task: Task) -> int:
    """Return about how many hidden images decide; UserError where the competition's facts are not at hand."""
    found = find_facts(task.competition)
    if found is None:
        raise UserError(
            f"the evidence is of {task.competition}, whose number of hidden images is not known here; run this in the "
            "folder with its competition.json"
        )
    return found.private_images


def _same_rows(candidates: Sequence[Candidate]) -> np.ndarray:
    """Return the labels (N,) that all candidates are scored on; UserError for fewer than two, or where they differ."""
    names = [candidate.name for candidate in candidates]
    if len(names) < 2 or len(set(names)) != len(names):
        raise UserError(f"finals are chosen among two or more submissions of distinct names, got {names or 'none'}")
    for candidate in candidates[1:]:
        if not candidate.same_rows(candidates[0]):
            raise UserError(
                f"{candidate.name} and {names[0]} are scored on other rows or labels; only evidence on the same ones "
                "is paired"
            )
    return candidates[0].split.scored["label"].to_numpy()


def _different(one: Candidate, other: Candidate, metric: Metric) -> bool:
    """Whether two submissions predict differently, out of fold or in their files."""
    if (one.predicted != other.predicted).any():
        return True
    if metric == "log_loss" and (one.oof.probabilities != other.oof.probabilities).any():
        return True
    files = [each.submission for each in (one, other) if each.submission is not None]
    return len(files) == 2 and files[0].read_bytes() != files[1].read_bytes()


def format_finals(finals: Finals) -> str:
    """Return the proposal in words."""
    best, hedge = finals.names[finals.best], finals.names[finals.hedge]
    width, n, name_of = max(map(len, finals.names)), finals.scores[0].n, METRIC_NAMES[finals.metric]
    lines = [f"{len(finals.names)} submissions on the same {n:,} rows: out-of-fold {name_of} ± standard error"]
    for name, found, public, win in zip(finals.names, finals.scores, finals.public, finals.win, strict=True):
        lines.append(f"  {name:{width}}  {found}  best of all in {win:4.0%}" + (f"  public {public}" if public else ""))
    low, high = finals.gain_interval
    return "\n".join(
        [
            *lines,
            "",
            f"final 1, best expected: {best}",
            f"final 2, best hedge:    {hedge} (differs on {finals.differ:.1%} of the rows, "
            f"errors correlate {finals.errors_correlate:.2f})",
            "",
            f"How certain: in {finals.draws:,} redraws of the evidence and of {finals.rows:,} private images one of "
            f"the two is the best of all in {finals.pair_win:.0%}, {best} alone in {finals.win[finals.best]:.0%}.",
            f"The better of the two is expected {finals.gain:+.4f} above {best} alone ({LEVEL:.0%} of the redraws: "
            f"{low:+.4f} to {high:+.4f}).",
            _first_place(finals),
            f"Out-of-fold {name_of} is against the given labels, wrong ones among them, as on the leaderboard; the "
            "public score is not used.",
            *(f"note: {note}" for note in finals.notes),
        ]
    )


def _first_place(finals: Finals) -> str:
    """Return whether the best is proved better than the others, and than which it is not."""
    best = finals.names[finals.best]
    open_ones = [comparison for comparison in finals.against_best.values() if not comparison.proved]
    if not open_ones:
        return f"{best} is proved better than every other one."
    said = "; ".join(
        f"{comparison.names[1]} {comparison.difference:+.4f} ± {comparison.half_width:.4f}" for comparison in open_ones
    )
    return f"That {best} is the best is not proved. Not proved worse than it (difference from {best}): {said}."


def parse_candidates(given: Sequence[str], folds: Path) -> list[Candidate]:
    """Read `NAME=FILE[,SUBMISSION]` arguments: FILE is out-of-fold predictions or a weights file of `ensemble`."""
    split, found = read_folds(folds), []
    for text in given:
        name, _, files = text.partition("=")
        evidence, _, submission = files.partition(",")
        if not (name and evidence):
            raise UserError(f"--candidate takes NAME=OOF.csv or NAME=WEIGHTS.json[,submission.csv], got {text!r}")
        if submission:
            find_file(submission, "submission", f"--candidate {text} names it after the comma; mend it or leave it out")
        oof, members = _evidence(Path(evidence), split, name)
        found.append(Candidate(name, oof, split, members, submission=Path(submission) if submission else None))
    return found


def _evidence(path: Path, split: Folds, name: str) -> tuple[Predictions, int | None]:
    """Return out-of-fold predictions in the split's row order, and the number of recipes where it is known."""
    if path.suffix != ".json":
        oof = check_oof(read_predictions(path), split, name)
        recipes = {source.name.rpartition("-fold")[0] for source in (oof.header.sources if oof.header else ())}
        return oof, len(recipes) or None
    weighed = read_weighed(path)
    evidence = read_evidence(list(weighed.oof.values()), split)
    return nested_predictions(evidence, weighed.blend, name), int((weighed.blend.weights > 0).sum())


def add_to_ledger(ledger: Path, entry: dict[str, Any]) -> None:
    """Write a submission into the ledger, in place of an entry with the same reference on Kaggle or the same build."""
    same = [(key, entry[key]) for key in ("ref", "build_id") if entry.get(key) is not None]
    with hold_ledger(ledger):
        known = read_entries(ledger) if ledger.is_file() else []
        others = [each for each in known if not any(each.get(key) == value for key, value in same)]
        write_json(ledger, {"submissions": [*others, entry]})


def hold_ledger(ledger: Path) -> AbstractContextManager[None]:
    """Return the context in which a ledger is read and written: no other process writes it between."""
    return hold_lock(ledger.with_name(f".{ledger.name}.lock"))


def read_entries(ledger: Path) -> list[dict[str, Any]]:
    """Return the submissions of a ledger; UserError where the file has another shape."""
    content = read_json(ledger)
    entries = content.get("submissions") if isinstance(content, dict) else None
    if not isinstance(entries, list) or not all(
        isinstance(e, dict) and isinstance(e.get("name"), str) and isinstance(e.get("evidence"), str) for e in entries
    ):
        raise UserError(f"{ledger} has no list of submissions, each with name and evidence; mend it, or move it away")
    return entries


def read_ledger(ledger: Path) -> tuple[list[Candidate], tuple[str, ...]]:
    """Return the submissions that can be paired with the newest, and why each other one is left out.

    Only evidence on the same rows and labels is paired; a submission without evidence is left out too. The folders of
    the evidence are relative to the ledger's.
    """
    find_file(ledger, "ledger", "`submit` writes it; or give --folds FILE --candidate NAME=OOF.csv for each submission")
    found, left_out, here = [], [], current().slug
    for entry in read_entries(ledger):
        evidence = ledger.parent / entry["evidence"]
        if not evidence.is_dir() and Path(entry["evidence"]).is_dir():
            evidence = Path(entry["evidence"])  # older ledgers: relative to the working directory
        if entry.get("competition") not in (None, here):
            left_out.append(f"{entry['name']} was submitted to {entry['competition']}, this folder is for {here}")
            continue
        try:
            split = read_folds(evidence / "folds.csv")
            oof = check_oof(read_predictions(evidence / "oof.csv"), split, entry["name"])
        except FileNotFoundError:
            left_out.append(f"{entry['name']} has no out-of-fold evidence in {evidence}")
            continue
        except UserError as error:
            left_out.append(str(error))
            continue
        found.append(Candidate(entry["name"], oof, split, entry.get("members"), str(entry.get("public_score", ""))))
    paired = [each for each in found if each.same_rows(found[-1])]
    left_out += [
        f"{each.name} is scored on other rows or labels than {found[-1].name}, the newest"
        for each in found
        if not each.same_rows(found[-1])
    ]
    return paired, tuple(left_out)
