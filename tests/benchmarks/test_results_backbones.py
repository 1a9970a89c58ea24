"""The page of real backbones: figures by scikit-learn, a budget that leaves out, and every call's hours together."""

import importlib
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from sklearn.metrics import accuracy_score, recall_score

from cassava_kit.evidence.oof import Evidence
from cassava_kit.training.recipes import recipe, run_name

N, K = 200, 5
CLASSES = ("one", "two", "three", "four", "five")


@pytest.fixture(scope="module")
def backbones():
    return importlib.import_module("results_backbones")


@pytest.fixture(scope="module")
def made(backbones):
    rng = np.random.default_rng(0)
    labels = rng.integers(0, K, N)
    answers = []
    for share, seed in ((0.5, 1), (0.7, 2), (0.7, 3)):
        draw = np.random.default_rng(seed)
        said = np.where(draw.random(N) < share, labels, (labels + 1) % K)
        answers.append(draw.dirichlet(np.ones(K), N) * 0.4 + 0.6 * np.eye(K)[said])
    names = ("probe-a", "a", "b")
    ids = np.array([f"{n:03d}.jpg" for n in range(N)])
    evidence = Evidence(names, ids, labels, np.arange(N) % 5, np.array(answers), "0" * 64, "accuracy", None, ())
    return backbones.Made(evidence, {"probes": 0.5, "a": 1.25}, ("c (2.0 h, 1.0 h left)",), (("probe-a", "a"),))


def test_the_page_has_each_members_accuracy_and_recalls(backbones, made):
    text = backbones.page(made, "the command", "picture.png", CLASSES)
    labels = made.evidence.labels
    for name, p in zip(made.evidence.names, made.evidence.pred_probs, strict=True):
        said = p.argmax(axis=1)
        recalls = " | ".join(f"{each:.2f}" for each in recall_score(labels, said, average=None))
        line = next(line for line in text.splitlines() if line.startswith(f"| {name} |"))
        assert f"{accuracy_score(labels, said):.4f}" in line and line.endswith(f"{recalls} |")
    right = made.evidence.pred_probs.argmax(axis=2) == labels
    by_row = right.sum(axis=0)
    assert f"All members are right for {np.mean(by_row == 3):.3f} of the photographs, none of them for " in text
    assert f"{np.mean(by_row == 0):.3f}.\n" in text
    assert "1.75 in all" in text and "Left out for the budget: c (2.0 h, 1.0 h left)." in text
    assert "![" in text and "](picture.png)" in text and "the command" in text
    assert "Is a better finetuned than as a probe? " in text and "Temperatures of the classes, nested" in text
    assert "- Do nested temperatures of the classes help it? " in text
    packed = backbones.ensembles(made.evidence)[backbones.PACKED].argmax(axis=1)
    assert f"as they are packed, reach {accuracy_score(labels, packed):.4f} ± " in text
    assert (packed == made.evidence.pred_probs[1:].mean(axis=0).argmax(axis=1)).mean() > 0.9, "the probe has no part"
    assert "\nplain mean" in text and "\nadvice: " in text


def test_the_ensembles_weights_and_temperatures_do_not_see_the_rows_they_answer(backbones, made):
    """What one fold is answered does not change with that fold's labels."""
    plain = backbones.ensembles(made.evidence)
    out = made.evidence.fold == 2
    turned = np.where(out, (made.evidence.labels + 2) % K, made.evidence.labels)
    other = backbones.ensembles(replace(made.evidence, labels=turned))
    for name in plain:
        assert np.allclose(plain[name][out], other[name][out])
    assert not np.allclose(plain[backbones.CALIBRATED][~out], other[backbones.CALIBRATED][~out])


def test_the_picture_is_drawn(backbones, made, tmp_path):
    backbones.draw(made, tmp_path / "pictures" / "p.png")
    assert (tmp_path / "pictures" / "p.png").read_bytes()[:4] == b"\x89PNG"


def test_a_member_that_the_budget_does_not_hold_is_left_out_by_name(backbones, tmp_path, monkeypatch):
    """Ten hours in all: an earlier call's three, six for the first member; the second's two do not fit."""
    ledger = backbones.Ledger(tmp_path / "hours.json")
    ledger.spend("probes", 3.0)
    assert backbones.Ledger(tmp_path / "hours.json").spent == 3.0
    hours = {"mobilenet": 6.0, "efficientnet_lite0": 2.0}
    trained = []
    clock = iter([0, 6 * 3600, 7 * 3600, 7 * 3600])
    monkeypatch.setattr(backbones, "time", SimpleNamespace(perf_counter=lambda: next(clock)))
    monkeypatch.setattr(backbones, "expected_hours", lambda config, *_: hours[config.recipe])

    def train_recipes(planned, *_, **__):
        trained.append((planned[0].config.recipe, planned[0].config.epochs, planned[0].config.ema))
        return [SimpleNamespace(folds=[SimpleNamespace(checkpoint=Path("c"))])]

    monkeypatch.setattr(backbones, "train_recipes", train_recipes)
    monkeypatch.setattr(backbones, "run_jobs", lambda jobs, *_: {job.name: None for job in jobs})
    monkeypatch.setattr(backbones, "make_evidence", lambda *_: None)
    weights = (("mobilenet", Path("a")), ("efficientnet_lite0", Path("b")))
    plan = backbones.BackbonePlan(tmp_path, weights, tmp_path, 10.0, kinds=("finetuned",))
    found = backbones.make(plan, SimpleNamespace(folds=None))
    # What is finished is taken, though nothing is left of the budget.
    hours |= {"mobilenet": 0.0}
    monkeypatch.setattr(backbones, "time", SimpleNamespace(perf_counter=lambda: 0))
    again = backbones.make(replace(plan, budget_hours=1.0), SimpleNamespace(folds=None))
    assert again.left_out == ("efficientnet_lite0 (2.0 h, -8.0 h left)",) and trained.pop() == trained[0]
    assert trained == [("mobilenet", 12, 0.99)]
    assert found.left_out == ("efficientnet_lite0 (2.0 h, 1.0 h left)",) and found.hours["probes"] == 3.0
    shorter = replace(plan, settings=("epochs=8",))
    assert backbones.finetuning("mobilenet", shorter) == recipe("mobilenet").with_settings(["epochs=8"])
    assert run_name(backbones.finetuning("mobilenet", plan)) == "mobilenet"
