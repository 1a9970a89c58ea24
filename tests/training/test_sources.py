"""The hash of the code: what must change it, and what must not."""

import ast
import functools
import re

import pytest

from cassava_kit.training.sources import learning_code, learning_code_hash, read_module

read = functools.cache(read_module)  # files that change while the tests run change nothing here
PLACES = {name: module for module, name in learning_code(read)}


def edited(name: str, pattern: str, replacement: str):
    """A reader of the package in which the module of a definition has one thing changed."""
    module = PLACES.get(name, name)
    before = read(module)
    after, n = re.subn(pattern, replacement, before, count=1)
    assert n == 1 and after != before, f"{pattern} is not in {module}"
    ast.parse(after)
    return lambda wanted: after if wanted == module else read(wanted)


@pytest.mark.parametrize(
    ("name", "pattern", "replacement"),
    [
        ("smooth_targets", r"smoothing / n_classes", "smoothing / (n_classes - 1)"),
        ("HEAD_STD", r"HEAD_STD = 0\.01", "HEAD_STD = 0.02"),
        ("lr_factor", r"math\.pi \* done", "math.pi * done * done"),
        ("make_ema", r"use_warmup=True", "use_warmup=False"),
        ("mean_without_largest", r"largest=False", "largest=True"),
        ("apply_noise_report", r'action == "flip"', 'action == "drop"'),
        ("item_seed", r"(def item_seed\(.*\n(?:.*\n)*?    return )", r"\g<1>1 + "),
        ("EpochSampler", r"manual_seed\(self\.seed", "manual_seed(1 + self.seed"),
        ("make_trainer", r"gradient_clip_val=config\.clip_norm", "gradient_clip_val=None"),
        ("normalize", r"return rows\.mul_", "return 2 * rows.mul_"),
        ("Classifier", r"\.argmax\(dim=1\)", ".argmin(dim=1)"),
        ("data.augment", r"\bP = 0\.5", "P = 0.4"),
        ("KeepBest", r"loss < self\.best", "loss <= self.best"),
        ("load_weights", r"strict=False", "strict=True"),
        ("usable_rows", r"~bad", "bad"),
    ],
)
def test_a_change_of_what_is_learnt_changes_the_hash(name, pattern, replacement):
    assert learning_code_hash(edited(name, pattern, replacement)) != learning_code_hash(read)


@pytest.mark.parametrize(
    ("name", "pattern", "replacement"),
    [
        ("Classifier", r'"""Module that trains on', '"""Learns from'),
        ("smooth_targets", r"(def smooth_targets\()", r"# a comment\n\1"),
        ("training_set", r"labels: pd\.Series", "labels: object"),
        ("log_t", r"(def log_t)", r"def more() -> None: ...\n\n\n\1"),
        ("usable_rows", r"no readable training image", "not one readable image"),
        ("training.run_dir", r"unread = ", "unread = 0 * "),
        ("training.callbacks", r"self\.rows\.append", "self.rows.insert"),
        ("training.recipe_run", r"seconds = sum", "seconds = 2 * sum"),
        ("inference.predict", r"return ", "return 1 or "),
        ("report.charts", r"return ", "return 1 or "),
    ],
)
def test_words_reports_and_inference_do_not(name, pattern, replacement):
    assert learning_code_hash(edited(name, pattern, replacement)) == learning_code_hash(read)


def test_a_definition_that_has_moved_is_found_by_its_import():
    """The hash is of the definitions, wherever they are."""
    source = read(PLACES["lr_factor"])
    start = source.index("def lr_factor")
    here = source[:start].replace("import math\n", "from cassava_kit.training.rates import lr_factor\n")
    moved = {PLACES["lr_factor"]: here, "training.rates": source[start:]}
    assert learning_code_hash(lambda wanted: moved.get(wanted) or read(wanted)) == learning_code_hash(read)


def test_roots_that_are_gone_are_an_error():
    with pytest.raises(LookupError, match=r"has no Classifier: name the roots of its hash anew"):
        learning_code(lambda wanted: "" if wanted == "training.module" else read(wanted))
