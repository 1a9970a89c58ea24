"""What files say about their competition: written, read back, and held against each other."""

import dataclasses

import pytest

from cassava_kit.competition import CASSAVA, Task, common_task, current, read_task, write_facts
from cassava_kit.errors import UserError

LEAVES = Task("plant-leaves", "macro_f1", ("healthy", "rust"), "image")


def test_a_header_reads_back():
    assert LEAVES.header() == {
        "competition": "plant-leaves",
        "metric": "macro_f1",
        "classes": ["healthy", "rust"],
        "id_column": "image",
    }
    for task in (LEAVES, CASSAVA.task):
        assert read_task({**task.header(), "seed": 3}, "folds.json") == task


@pytest.mark.parametrize("header", [{}, {"seed": 42}, {"competition": None, "metric": None, "classes": []}])
def test_an_old_header_names_no_task(header):
    assert read_task(header, "folds.json") is None


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"metric": "auc"}, "folds.json: metric: .*'auc'"),
        ({"classes": ["one"]}, "folds.json: classes"),
        ({"classes": None}, "folds.json: classes"),
        ({"id_column": ""}, "folds.json: id_column"),
    ],
)
def test_a_damaged_header_is_refused(change, message):
    with pytest.raises(UserError, match=message):
        read_task({**LEAVES.header(), **change}, "folds.json")


@pytest.mark.parametrize(
    ("field", "value", "shown"),
    [
        ("competition", "other-leaves", "other-leaves"),
        ("metric", "log_loss", "log_loss"),
        ("classes", ("rust", "healthy"), "rust, healthy"),
    ],
)
def test_files_of_two_tasks_are_refused(field, value, shown):
    other = dataclasses.replace(LEAVES, **{field: value})
    assert common_task({"a.csv": None, "b.csv": LEAVES, "c.csv": LEAVES}) == LEAVES
    with pytest.raises(UserError, match=f"b.csv has {field} .*, c.csv has {shown}; give files of one competition"):
        common_task({"a.csv": None, "b.csv": LEAVES, "c.csv": other})


def test_another_id_column_is_no_other_task():
    assert common_task({"a.csv": LEAVES, "b.csv": dataclasses.replace(LEAVES, id_column="file")}) == LEAVES


def test_files_without_a_task_are_of_the_competition_at_hand(monkeypatch, tmp_path):
    write_facts(tmp_path / "competition.json", dataclasses.replace(CASSAVA, slug="at-hand", metric="macro_f1"))
    monkeypatch.chdir(tmp_path)
    assert common_task({"a.csv": None}) == common_task({}) == current().task
    assert (current().task.competition, current().task.metric) == ("at-hand", "macro_f1")
    assert common_task({"a.csv": LEAVES}) == LEAVES
