"""What a dry run says in its last lines of its members' scores and of the submission's answers."""

from __future__ import annotations

from dataclasses import replace
from io import StringIO
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
from rich.console import Console
from sklearn.metrics import f1_score

from cassava_kit.cli.dry_run_summary import name_unanswered, print_scores
from cassava_kit.competition import CASSAVA
from cassava_kit.evidence.metrics import METRIC_NAMES
from cassava_kit.evidence.nested import judge_methods
from cassava_kit.evidence.oof import Evidence

USELESS = (
    "no member is better than the majority class; give pretrained weights: cassava-kit weights mobilenet, then "
    "--weights mobilenet=weights/mobilenet.safetensors"
)


def evidence(share_right: float, metric: str) -> Evidence:
    """Two members on 200 rows, 60 % of class 0; the share of rows that they answer right, the others by class 2."""
    rng = np.random.default_rng(0)
    labels = rng.permutation(np.repeat([0, 1, 2], [120, 60, 20]))
    right = rng.random((2, len(labels))) < share_right
    answers = np.where(right, labels, (labels + 1) % 3)
    p = np.eye(3)[answers] * 0.97 + 0.01
    names = np.arange(len(labels)).astype(str)
    return Evidence(("a", "b"), names, labels, rng.integers(0, 2, len(labels)), p, "0" * 64, metric=metric)


def closing(found: Evidence, **options: bool) -> str:
    out = StringIO()
    print_scores(Console(file=out, width=200, soft_wrap=True), found, judge_methods(found), **options)
    return out.getvalue()


@pytest.mark.parametrize("metric", ["accuracy", "macro_f1", "log_loss"])
def test_members_that_learned_nothing_are_called_so(metric):
    said = closing(evidence(0.05, metric))
    assert USELESS in said.splitlines()
    assert "--set epochs=N" in closing(evidence(0.05, metric), pretrained=True)
    assert "no member is" not in closing(evidence(0.95, metric))


def test_a_gain_of_a_few_lucky_rows_is_not_proved():
    found = evidence(0.0, "accuracy")
    lucky = np.tile(np.eye(3)[0], (200, 1))
    row = int(np.flatnonzero(found.labels == 1)[0])
    lucky[row] = np.eye(3)[1]
    said = closing(replace(found, pred_probs=np.stack([lucky, lucky])))
    assert "no member is proved better than the majority class; give pretrained weights" in said


@pytest.mark.parametrize("metric", ["macro_f1", "log_loss"])
def test_the_table_gives_the_metric_alone(metric):
    found = evidence(0.9, metric)
    said = closing(found)
    cells = [line for line in said.splitlines() if "│" in line and "±" in line]
    assert len(cells) == 4 and not any("accuracy" in cell or METRIC_NAMES[metric] in cell for cell in cells)
    if metric == "macro_f1":
        value = f1_score(found.labels, found.pred_probs[0].argmax(axis=1), average="macro")
        assert f"{value:.4f} ± " in cells[0]


def test_classes_without_an_answer_are_named():
    table = SimpleNamespace(frame=pd.DataFrame({"label": [0, 1, 3, 3, 4]}))  # none of class 2
    answers = {f"{n}.jpg": 3 for n in range(6)}
    names = CASSAVA.classes
    assert name_unanswered(answers, table, CASSAVA) == f"never answered: {names[0]}, {names[1]}, {names[4]}"
    every = {f"{n}.jpg": n for n in range(5)}
    assert name_unanswered(every, table, CASSAVA) is None
    assert name_unanswered({"one.jpg": 3}, table, CASSAVA) is None  # one image cannot have every class
