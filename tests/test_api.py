"""The public API: light to import, complete in docs/api.md, and right by outside references."""

import contextlib
import doctest
import importlib
import inspect
import io
import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image
from sklearn.metrics import accuracy_score, f1_score, log_loss
from sklearn.model_selection import StratifiedKFold

import cassava_kit
from cassava_kit import UserError

ROOT = Path(__file__).parents[1]
PAGE = (ROOT / "docs" / "api.md").read_text(encoding="utf-8")
FUNCTIONS = [name for name in cassava_kit.HOMES if name != "UserError"]


def test_importing_the_package_loads_no_library():
    heavy = ("torch", "pandas", "numpy", "sklearn", "timm", "pydantic", "cv2", "lightning")
    code = f"import cassava_kit, sys; print(*[name for name in {heavy} if name in sys.modules])"
    shown = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert shown.split() == []


@pytest.mark.parametrize("code", ["import cassava_kit.__main__", "import runpy; runpy.run_path('submit.py')"])
def test_every_entry_point_lets_waiting_threads_sleep_before_torch_is_imported(code):
    """The OpenMP library reads its variables once, when torch is imported; what the user has set stays."""
    names = ("OMP_WAIT_POLICY", "KMP_BLOCKTIME")
    shown = f"{code}; import os, sys; print('torch' in sys.modules, *(os.environ[name] for name in {names}))"
    for given, expected in (({}, "False PASSIVE 0"), ({"OMP_WAIT_POLICY": "ACTIVE"}, "False ACTIVE 0")):
        environment = {name: value for name, value in os.environ.items() if name not in names} | given
        command = [sys.executable, "-c", shown]
        done = subprocess.run(command, capture_output=True, text=True, check=True, cwd=ROOT, env=environment)
        assert done.stdout.strip() == expected


def test_a_star_import_and_dir_give_every_name():
    names: dict = {}
    exec("from cassava_kit import *", names)
    assert set(cassava_kit.HOMES) < set(names)
    assert set(cassava_kit.HOMES) < set(dir(cassava_kit))
    for name, home in cassava_kit.HOMES.items():
        assert getattr(cassava_kit, name) is getattr(importlib.import_module(f"cassava_kit.{home}"), name)
    with pytest.raises(AttributeError, match="public names are"):
        cassava_kit.make_fold  # noqa: B018


def test_the_type_checkers_names_are_those_that_are_handed_on():
    source = (ROOT / "cassava_kit" / "__init__.py").read_text(encoding="utf-8")
    pairs = {(name, home) for home, name in re.findall(r"from cassava_kit\.([\w.]+) import (\w+) as \2", source)}
    assert pairs == set(cassava_kit.HOMES.items())


def test_the_page_runs_from_top_to_bottom(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    blocks = re.findall(r"```python\n(.*?)```", PAGE, flags=re.DOTALL)
    assert len(blocks) >= len(FUNCTIONS) - 3
    names: dict = {}
    with contextlib.redirect_stdout(io.StringIO()) as shown:
        for block in blocks:
            exec(compile(block, "docs/api.md", "exec"), names)
    assert "one-more.jpg" in shown.getvalue() and "flips" not in shown.getvalue()
    assert (tmp_path / "submission.csv").is_file()


def test_the_snippets_of_the_readme_run(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    rng = np.random.default_rng(0)
    for folder in ("train_images", "test_images"):
        Path(folder).mkdir()
        for number in range(12):
            picture = Image.fromarray(rng.integers(0, 256, (6, 8, 3), dtype=np.uint8)).resize((40, 30))
            picture.save(f"{folder}/{number:02d}.jpg")
    names = [f"{number:02d}.jpg" for number in range(12)]
    labels = rng.integers(0, 3, 300)
    oof_a = 0.6 * np.eye(3)[labels] + 0.4 * rng.dirichlet(np.ones(3), 300)
    given: dict = {
        "train": pd.DataFrame({"image_id": names, "label": [0, 1, 2] * 4}),
        "labels": np.where(np.arange(300) < 4, (labels + 1) % 3, labels),
        "oof_a": oof_a,
        "oof_b": rng.dirichlet(np.ones(3), 300),
    }
    blocks = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(encoding="utf-8"), flags=re.DOTALL)
    assert len(blocks) == 2 and sum(block.count("\n") for block in blocks) <= 12
    with contextlib.redirect_stdout(io.StringIO()) as shown:
        for block in blocks:
            exec(compile(block, "README.md", "exec"), given)
    said = shown.getvalue()
    assert ": proved" in said and "'a':" in said and "suggested_label" in said


@pytest.mark.parametrize("name", FUNCTIONS)
def test_the_page_has_each_function_with_its_arguments_and_an_example(name):
    blocks = "\n".join(re.findall(r"```python\n(.*?)```", PAGE, flags=re.DOTALL))
    assert re.search(rf"^\| .*`{name}`", PAGE, flags=re.MULTILINE), "not in the table"
    assert re.search(rf"\b{name}\(", blocks), "no example"
    shown = re.search(rf"`{name}\((.*?)\)`", PAGE, flags=re.DOTALL)
    assert shown, "no signature"
    documented = re.findall(r"(\w+)(?==|,|$)", re.sub(r'=("[^"]*"|\([^)]*\)|[\w.]+)', "", shown[1]).replace("*", ""))
    parameters = inspect.signature(getattr(cassava_kit, name)).parameters
    assert documented == [each for each in parameters if each != "level"]


@pytest.mark.parametrize("name", FUNCTIONS)
def test_docstrings_say_what_comes_out_and_their_examples_run(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    function = getattr(cassava_kit, name)
    text = inspect.getdoc(function)
    assert "Example" in text, "a public function has an example"
    module = importlib.import_module(function.__module__)
    tests = doctest.DocTestFinder(recurse=False).find(function, name, module=module, globs=dict(vars(module)))
    runner = doctest.DocTestRunner(optionflags=doctest.NORMALIZE_WHITESPACE | doctest.ELLIPSIS)
    assert not sum(runner.run(test).failed for test in tests)


def test_folds_of_text_labels_are_as_even_as_scikit_learns():
    rng = np.random.default_rng(0)
    table = pd.DataFrame({"id": [f"i{n}" for n in range(203)], "species": rng.choice(["yak", "zebra", "gnu"], 203)})
    ours = cassava_kit.make_folds(table, n_splits=5, id_column="id", label_column="species")
    theirs = np.zeros(203, int)
    for k, (_, rows) in enumerate(StratifiedKFold(5, shuffle=True, random_state=0).split(table, table["species"])):
        theirs[rows] = k
    counts = pd.crosstab(ours["species"], ours["fold"]).to_numpy()
    expected = pd.crosstab(table["species"], theirs).to_numpy()
    assert np.array_equal(np.sort(counts, axis=1), np.sort(expected, axis=1))
    shuffled = cassava_kit.make_folds(table.sample(frac=1, random_state=1), 5, id_column="id", label_column="species")
    assert shuffled.sort_index()["fold"].tolist() == ours["fold"].tolist()


def test_scores_are_scikit_learns():
    rng = np.random.default_rng(1)
    labels, probs = rng.integers(0, 4, 200), rng.dirichlet(np.ones(4), 200)
    answers = probs.argmax(axis=1)
    assert cassava_kit.score(labels, probs).value == pytest.approx(accuracy_score(labels, answers))
    assert cassava_kit.score(labels, probs, "macro_f1").value == pytest.approx(
        f1_score(labels, answers, average="macro")
    )
    assert cassava_kit.score(labels, probs, "log_loss").value == pytest.approx(log_loss(labels, probs))
    lists = cassava_kit.score(labels.tolist(), probs.tolist())
    frames = cassava_kit.score(pd.Series(labels), pd.DataFrame(probs))
    assert lists == frames == cassava_kit.score(labels, probs)


def test_views_are_torchs_flips_and_turns():
    images = torch.rand(2, 3, 8, 8)
    views = {view.name: view(images) for view in cassava_kit.make_views("d4")}
    assert torch.equal(views["hflip"], images.flip(3)) and torch.equal(views["vflip"], images.flip(2))
    eight = [turned for k in range(4) for turned in (images.rot90(k, (2, 3)), images.rot90(k, (2, 3)).flip(3))]
    assert len(views) == 8
    assert all(any(torch.equal(view, each) for each in eight) for view in views.values())
    assert all(any(torch.equal(view, each) for view in views.values()) for each in eight)
    model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(192, 5))
    expected = torch.stack([model(each).softmax(1) for each in eight]).mean(0).detach().numpy()
    np.testing.assert_allclose(cassava_kit.predict_views(model, images, "d4"), expected, atol=1e-6)


def test_a_submission_of_another_competition_reads_back(tmp_path):
    ids, probs = ["a,1", 'b"2', "c\r3"], np.array([[0.25, 0.75], [1, 0], [0.5, 0.5]])
    path = tmp_path / "s.csv"
    cassava_kit.write_submission(path, ids, probs, id_column="pic", columns=["cat", "dog"])
    back = pd.read_csv(path, lineterminator="\n")
    assert back["pic"].tolist() == ids and np.allclose(back[["cat", "dog"]], probs)
    cassava_kit.check_submission(path, ids, id_column="pic", columns=["cat", "dog"])
    cassava_kit.check_submission(path, pd.DataFrame({"pic": ids}), id_column="pic", columns=["cat", "dog"])


GOOD = np.full((4, 2), 0.5)
FIVE = pd.DataFrame({"image_id": ["a"], "label": [5]})


@pytest.mark.parametrize(
    ("call", "said"),
    [
        (lambda: cassava_kit.make_folds(pd.DataFrame({"image_id": ["a"]})), "label"),
        (lambda: cassava_kit.make_folds([0, 0, 1], n_splits=2), "2"),
        (lambda: cassava_kit.make_folds([0, 0, 1, 1], n_splits=2, groups=[1, 2]), "4"),
        (lambda: cassava_kit.make_folds(pd.DataFrame({"image_id": list("aab"), "label": [0, 1, 0]}), 2), "a"),
        (lambda: cassava_kit.find_label_errors([0, 1, 0], GOOD), "3"),
        (lambda: cassava_kit.find_label_errors([0, 1, 0, 2], GOOD), "0..1"),
        (lambda: cassava_kit.score([0, 1], GOOD), "2"),
        (lambda: cassava_kit.score([0, 1, 0, 1], GOOD, "f1"), "macro_f1"),
        (lambda: cassava_kit.compare([0, 1], [0, 1, 1], [0, 1]), "2"),
        (lambda: cassava_kit.weigh([0, 1, 0, 1], {"a": GOOD, "b": GOOD[:2]}), "b"),
        (lambda: cassava_kit.make_views("flip"), "flips"),
        (lambda: cassava_kit.predict_views(torch.nn.Flatten(), torch.rand(3, 8, 8)), r"\(N, C, H, W\)"),
        (lambda: cassava_kit.write_submission("x.csv", ["a", "a"], [0, 1]), "a"),
        (lambda: cassava_kit.check_submission(pd.DataFrame({"id": ["a"], "label": [0]}), ["a"]), "image_id"),
        (
            lambda: cassava_kit.check_submission(pd.DataFrame({"image_id": ["a"], "label": [5]}), ["a"], n_classes=5),
            "0..4",
        ),
        (lambda: cassava_kit.write_oof("x.csv", pd.DataFrame({"image_id": ["a"]}), [[1.0, 0.0]]), "fold"),
    ],
)
def test_a_mistake_says_what_was_expected(call, said, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match=said) as caught:
        call()
    assert "\n" not in str(caught.value) and len(str(caught.value)) > 20
    assert not list(tmp_path.iterdir())
