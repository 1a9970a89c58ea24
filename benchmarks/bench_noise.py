"""Wrong labels that `clean` finds, and what acting on them is worth; entry point `main`.

Wrong labels of three kinds are planted at known places (`noise_data.py`). Members are predicted out of fold on the
given labels. Three ways of finding stand side by side: plain disagreement (the most probable class is another),
cleanlab, which `clean` uses, and the labels of the nearest ten in an embedding.

    python benchmarks/bench_noise.py [--seeds 5] [--part digits photos simulated worth]
"""

from __future__ import annotations

import argparse
import os
import warnings
from collections.abc import Callable
from typing import Any, NamedTuple

os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np
import pandas as pd
from noise_data import REAL, Planted, digit_members, digits, photo_members, photographs, planted_on, simulated
from sklearn.exceptions import ConvergenceWarning
from sklearn.metrics import average_precision_score, f1_score, precision_score, recall_score
from sklearn.neural_network import MLPClassifier

from cassava_kit.evidence.noise.decisions import apply_noise_report, make_noise_report
from cassava_kit.evidence.noise.detect import LabelErrors, detect_errors
from cassava_kit.evidence.noise.neighbours import neighbour_agreement

KINDS, RATES = ("class", "instance", "clustered"), (0.09, 0.18)
# How members learn clustered errors would be an assumption in the simulation, so it has the other two kinds alone.
SIMULATED_KINDS = KINDS[:2]
FIGURES = ("precision", "recall", "F1", "average precision")
LEARNERS = 3  # trainings of each way, whose hits are averaged: one network's luck is as large as a way's gain


class Found(NamedTuple):
    """Flags (N,) bool, and how suspicious each row is (N,), larger is more."""

    flags: np.ndarray
    suspicion: np.ndarray


# Finding


def find_ways(data: Planted) -> dict[str, Found]:
    """Return what each way of finding says of the rows; `best member` is cleanlab on the member most often right."""
    mean = data.members.mean(axis=0)
    accuracy = [(member.argmax(axis=1) == data.given).mean() for member in data.members]
    cleanlab, of_best = (
        detect_errors(data.given, data.members),
        detect_errors(data.given, data.members[np.argmax(accuracy)]),
    )
    agreement = neighbour_agreement(data.embedding, data.given)
    return {
        "disagreement": Found(mean.argmax(axis=1) != data.given, 1 - mean[np.arange(len(mean)), data.given]),
        "cleanlab": Found(cleanlab.flags, -cleanlab.quality),
        "cleanlab, best member": Found(of_best.flags, -of_best.quality),
        "neighbours": Found(agreement < 0.5, 1 - agreement),
    }


def figures(data: Planted, found: Found) -> tuple[float, ...]:
    """Return precision, recall and F1 of the flags, and the average precision of the order."""
    wrong = data.true != data.given
    of_flags = [float(score(wrong, found.flags)) for score in (precision_score, recall_score, f1_score)]
    return (*of_flags, float(average_precision_score(wrong, found.suspicion)))


def print_found(
    title: str, make: Callable[[str, float, int], Planted], seeds: int, kinds: tuple[str, ...] = KINDS
) -> None:
    """Print `figures` of each way of finding, means over seeds."""
    print(f"\n## {title}: planted errors found", flush=True)
    for kind in kinds:
        for rate in RATES:
            runs = [make(kind, rate, seed) for seed in range(seeds)]
            right = np.mean([(run.members.mean(axis=0).argmax(axis=1) == run.true).mean() for run in runs])
            print(f"{kind} {rate:.0%} (accuracy of the members' mean on true labels {right:.3f})")
            rows = [{way: figures(run, found) for way, found in find_ways(run).items()} for run in runs]
            for way in rows[0]:
                means = np.mean([row[way] for row in rows], axis=0)
                shown = ", ".join(f"{what} {value:.3f}" for what, value in zip(FIGURES, means, strict=True))
                print(f"  {way:22s} {shown}", flush=True)


# What acting is worth


def print_worth(title: str, x: np.ndarray, y: np.ndarray, members: Callable[[int], list[Any]], seeds: int) -> None:
    """Print held-out accuracy (30 % of the rows, with the table's own labels) after each way of training."""
    print(
        f"\n## Worth, {title}: accuracy of a network on 30 % held out, and the gain over all rows as they are",
        flush=True,
    )
    for kind in KINDS:
        for rate in (0.0, *RATES):
            if rate == 0 and kind != KINDS[0]:
                continue
            right: dict[str, list[np.ndarray]] = {}
            for seed in range(seeds):
                test = np.random.default_rng(seed).random(len(y)) < 0.3
                data = planted_on(x[~test], y[~test], members)(kind, rate, seed)
                for name, hit in train_ways(data, x[test], y[test], seed).items():
                    right.setdefault(name, []).append(hit)
            accuracy = (data.members.mean(axis=0).argmax(axis=1) == data.given).mean()
            planted = f"{kind} {rate:.0%}" if rate else "own labels"
            print(f"{planted} (members agree with {accuracy:.3f} of the given labels)")
            for line in worth_lines({name: np.concatenate(each) for name, each in right.items()}):
                print(f"  {line}", flush=True)


def train_ways(data: Planted, x: np.ndarray, y: np.ndarray, seed: int) -> dict[str, np.ndarray]:
    """Return the share of learners that are right, for each row of the held-out part, after each way of training.

    What is done by `train --clean-action` stands beside dropping all that a way of finding flags, which no verb does.
    `oracle` leaves the planted errors out.
    """
    errors = detect_errors(data.given, data.members)
    rows = pd.DataFrame({"image_id": np.arange(len(data.given)).astype(str), "label": data.given, "weight": 1.0})
    trainings = {"all rows": rows}
    trainings |= apply_actions(rows[["image_id", "label"]], errors)
    for way, found in find_ways(data).items():
        if way != "cleanlab, best member":
            trainings[f"drop all by {way}"] = rows[~found.flags]
    trainings["relabel all by cleanlab"] = rows.assign(label=errors.suggested)
    trainings["oracle"] = rows[data.given == data.true]
    return {name: hits(data.embedding, training, x, y, seed) for name, training in trainings.items()}


def apply_actions(rows: pd.DataFrame, errors: LabelErrors) -> dict[str, pd.DataFrame]:
    """Return the training rows after each `--clean-action`."""
    report = make_noise_report(rows["image_id"].to_numpy(), errors)
    named = {"drop": "drop, cap 3 %", "flip": "flip, cap 3 %", "weight": "weight, cap 3 %", "soften": "soften"}
    return {name: apply_noise_report(rows, report, action=action) for action, name in named.items()}


def hits(known: np.ndarray, training: pd.DataFrame, x: np.ndarray, y: np.ndarray, seed: int) -> np.ndarray:
    """Return the share of learners that are right, for each held-out row; known (N, D) are the pictures by their ids.

    The learner can learn wrong labels by heart, as the kit's networks can.
    """
    at = training["image_id"].to_numpy(int)
    weight = training["weight"].to_numpy() if "weight" in training else None
    learners = [MLPClassifier((64,), alpha=1e-4, max_iter=200, random_state=1000 * k + seed) for k in range(LEARNERS)]
    fitted = [each.fit(known[at], training["label"], sample_weight=weight) for each in learners]
    return np.mean([model.predict(x) == y for model in fitted], axis=0)


def worth_lines(right: dict[str, np.ndarray]) -> list[str]:
    """Return a line a way: accuracy, gain over all rows with its paired 95 % interval, share of the oracle's gain."""
    base = right["all rows"]
    drawn = np.random.default_rng(0).integers(0, len(base), (2000, len(base)))
    room = right["oracle"].mean() - base.mean()
    lines = []
    for name, hit in right.items():
        gain = hit - base
        low, high = np.quantile(gain[drawn].mean(axis=1), [0.025, 0.975])
        share = (
            f"   {gain.mean() / room:.0%} of the oracle's gain"
            if room > 0 and name not in ("all rows", "oracle")
            else ""
        )
        shown = "" if name == "all rows" else f"   {gain.mean():+.4f} ({low:+.4f} to {high:+.4f}){share}"
        lines.append(f"{name:28s} {hit.mean():.4f}{shown}")
    return lines


def main() -> None:
    """Run the parts asked for."""
    parts = ("digits", "photos", "simulated", "worth")
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--part", nargs="+", choices=parts, default=parts)
    options = parser.parse_args()
    warnings.simplefilter("ignore", ConvergenceWarning)  # members are stopped early on purpose
    photos = photographs()
    if photos is None and {"photos", "worth"} & set(options.part):
        print(f"no photographs at {REAL}: parts on them are skipped")
    if "digits" in options.part:
        print_found("Digits with the competition's shares", planted_on(*digits(), digit_members), options.seeds)
    if "simulated" in options.part:
        print_found("Simulated 21,397 x 5", simulated, options.seeds, SIMULATED_KINDS)
    if "photos" in options.part and photos is not None:
        title = "Photographs (their own labels, about a tenth of them wrong, count as true)"
        print_found(title, planted_on(*photos, photo_members), options.seeds)
    if "worth" in options.part:
        print_worth("digits", *digits(), digit_members, options.seeds)
        if photos is not None:
            print_worth("photographs (own labels count as true)", *photos, photo_members, options.seeds)


if __name__ == "__main__":
    main()
