"""The page of the results: members' table, paired comparisons in words, and what that number of images can prove."""

from __future__ import annotations

import math
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from statistics import NormalDist, median

import numpy as np
from results_members import FINETUNED, NETWORKS, PROBE, SEED

from cassava_kit.cli.app import user_message
from cassava_kit.evidence.compare import LEVEL, POWER_Z, Comparison, compare, correct
from cassava_kit.report.runs_scores import ScoredRun
from cassava_kit.training.ssl.methods import SSL_METHODS
from cassava_kit.training.ssl.probe import balanced_accuracy

BEST_MEMBER = "best member"
MEAN, WEIGHTED = "ensemble, plain mean", "ensemble, nested weights"
LEAK = (
    "Cleaning has a small leak: which training rows look wrong was judged by models that had seen other folds' labels, "
    "the held-out fold's among them. Minutes are a member's own, a pretraining's and a probe's features among them; "
    "the trainings behind views, and those of the finetuned member and the probe behind a cleaning report, are counted "
    "once, with the members they are of."
)
QUESTIONS = (
    ("Do ImageNet weights help (the same network and settings)?", "random", FINETUNED),
    ("Does finetuning beat the frozen probe?", PROBE, FINETUNED),
    ("Does label smoothing help?", "unsmoothed", FINETUNED),
    ("Does leaving suspicious rows out help?", FINETUNED, "dropped"),
    ("Does softening suspicious labels help?", FINETUNED, "cleaned"),
    ("Does mixup help?", FINETUNED, "mixup"),
    *((f"Does {each} help the small ResNet?", "small_resnet", each) for each in SSL_METHODS),
    ("Do four views help the finetuned member?", FINETUNED, f"{FINETUNED}, flips"),
    ("Do eight?", FINETUNED, f"{FINETUNED}, d4"),
    ("Does the ensemble's plain mean beat its best member?", BEST_MEMBER, MEAN),
    ("Do weights found on the other folds beat the best member?", BEST_MEMBER, WEIGHTED),
    ("Do four views help the plain mean?", MEAN, f"{MEAN}, flips"),
    ("Do four views help the weighted ensemble?", WEIGHTED, f"{WEIGHTED}, flips"),
)


@dataclass(frozen=True)
class Facts:
    """What the page says of the run: its command, minutes by member, rows that have near-duplicates, the rest."""

    command: str
    settings: str
    seconds: Mapping[str, float]
    grouped: int
    abouts: Mapping[str, str]
    judgement: str = ""


def score_rows(labels: np.ndarray, fold: np.ndarray, probabilities: Mapping[str, np.ndarray]) -> dict[str, ScoredRun]:
    """Members by name, scored on the given labels of the same rows (N,), each (N, K)."""
    every = np.arange(len(labels))
    return {name: ScoredRun(name, every, labels, fold, p) for name, p in probabilities.items()}


def table(scored: Mapping[str, ScoredRun], abouts: Mapping[str, str], seconds: Mapping[str, float]) -> str:
    """A line a member: accuracy ± standard error, balanced accuracy, log-loss, calibration error, minutes."""
    lines = [
        "| member | what it is | accuracy ± s.e. | balanced | log-loss | ECE | minutes |",
        "|---|---|---|---|---|---|---|",
    ]
    for name, s in scored.items():
        balanced = balanced_accuracy(s.labels, s.predicted)
        minutes = f"{seconds[name] / 60:.1f}" if name in seconds else ""
        lines.append(
            f"| {name} | {abouts.get(name, '')} | {s.score} | {balanced:.3f} | {s.logloss:.3f} | {s.ece:.3f} "
            f"| {minutes} |"
        )
    return "\n".join(lines)


def best_member(scored: Mapping[str, ScoredRun]) -> str:
    """The most accurate of the ensemble's members on these rows, which flatters it; none: empty."""
    present = [name for name in NETWORKS if name in scored]
    return max(present, key=lambda name: scored[name].score.accuracy, default="")


def comparisons(
    scored: Mapping[str, ScoredRun], questions: Sequence[tuple[str, str, str]] = QUESTIONS
) -> list[tuple[str, Comparison]]:
    """Each question whose two sides were made, and its paired comparison (b against a)."""
    found, best = [], best_member(scored)
    for question, a, b in questions:
        first = best if a == BEST_MEMBER else a
        if first in scored and b in scored:
            one, other = scored[first], scored[b]
            found.append((question, compare(one.labels, one.predicted, other.predicted, names=(one.name, b))))
    return found


def sentences(found: Sequence[tuple[str, Comparison]]) -> list[str]:
    """A line a question: difference, interval, verdict, images that would prove it, and whether it holds among all."""
    together = correct([c for _, c in found])
    return [
        f"- {question} {c.names[0]} -> {c.names[1]}: {among_all(c, len(found))}."
        for (question, _), c in zip(found, together, strict=True)
    ]


def among_all(c: Comparison, n: int) -> str:
    """Return the verdict among n questions asked at once; say so where it would be another for this one alone."""
    if n < 2 or not c.proved_alone:
        return c.summary()
    together = f"when all {n} questions are judged together (Holm)"
    if c.proved:
        return f"{c.summary()}; also {together}"
    return f"{c.difference:+.4f} ± {c.half_width:.4f}: proved alone, not {together}"


def provable(differing: float, n: int) -> float:
    """The least difference in accuracy that n rows prove four times in five, where a share of them is answered apart.

    The normal approximation of `compare.images_needed`, solved for the difference d: n d^2 = z^2 (share - d^2).
    """
    z = NormalDist().inv_cdf((1 + LEVEL) / 2) + POWER_Z
    return z * math.sqrt(differing / (n + z**2))


def honesty(found: Sequence[tuple[str, Comparison]], n: int) -> str:
    """What n rows could prove at all, from how often the compared members differ; and what else the figures hide."""
    shares = [((c.only_a or 0) + (c.only_b or 0)) / n for _, c in found]
    proved = sum(c.proved for _, c in found)
    return (
        f"With {n:,} images an accuracy near .7 has a standard error of {math.sqrt(0.21 / n):.3f}. Two members are "
        f"told apart by the rows that one of them alone has right: {min(shares):.0%} to {max(shares):.0%} of all rows "
        f"here (median {median(shares):.0%}). So a gain of {provable(min(shares), n):.3f} (the most alike), "
        f"{provable(median(shares), n):.3f} (median) or {provable(max(shares), n):.3f} (the most different) would be "
        f"proved four times in five; smaller ones are mostly out of reach, which is not to say that they are none. "
        f"{proved} of {len(found)} differences are proved, each at {LEVEL:.0%}; were there none at all, "
        f"{len(found) * (1 - LEVEL):.1f} would seem so by chance. All is one split and one seed: another moves each "
        "figure too, and no interval here holds that. Labels are the given ones, of which some are wrong."
    )


def page(scored: Mapping[str, ScoredRun], facts: Facts, best: str = "") -> str:
    """The whole of docs/results-128.md; no figure in it is written by hand."""
    first = next(iter(scored.values()))
    n, counts = len(first.labels), np.bincount(first.labels)
    found, minutes = comparisons(scored), sum(facts.seconds.values()) / 60
    copies = f"{facts.grouped} near-duplicates kept in their original's fold" if facts.grouped else "no near-duplicates"
    parts = [
        f"# Small members on {n:,} real photographs",
        "After this page you know what small or short members reach on real photographs, and which differences are "
        "proved.",
        f"{n:,} training photographs of the competition (classes {', '.join(map(str, counts))}; {copies}), five "
        f"stratified folds, seed {SEED}. Every figure is out of fold on the given labels. {minutes:.0f} minutes on "
        f"{len(os.sched_getaffinity(0))} CPU cores, by one command, which goes on where it was broken off:",
        f"```\n{facts.command}\n```",
        f"{facts.settings} Variants differ from `{FINETUNED}` in the one thing named.",
        table(scored, facts.abouts, facts.seconds),
        LEAK,
        facts.judgement,
    ]
    if found:
        parts += [
            "## Paired comparisons",
            "\n".join(sentences(found)),
            "The best member was chosen on these very rows, which flatters it against the ensemble.",
            f"## What {n:,} images can prove",
            honesty(found, n),
        ]
    return "\n\n".join(filter(None, [*parts, best])) + "\n"


def exit_code(main: Callable[[], None]) -> int:
    """Make a page; return 0, or 2 after one line on what the user can mend, as the kit's commands do."""
    try:
        main()
    except Exception as error:
        message = user_message(error)
        if message is None:
            raise
        print(f"error: {message}", file=sys.stderr)
        return 2
    return 0
