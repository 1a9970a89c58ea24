"""A tiny drawn competition and its folds, made once for all tests."""

import os
from pathlib import Path

import pytest

from cassava_kit.data.folds import Folds
from cassava_kit.data.sample.make import make_sample
from cassava_kit.data.stratify import split_folds
from cassava_kit.data.table import TrainTable, read_competition

# Several test processes and small tensors: more threads a process only wait for one another.
os.environ.setdefault("OMP_NUM_THREADS", "2")
# The kit is not installed: programs that tests start find it beside the tests.
ROOT = Path(__file__).resolve().parent.parent
os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))


@pytest.fixture(scope="session")
def tiny_dir(tmp_path_factory) -> Path:
    """A competition folder of 120 training and 8 test images."""
    folder = tmp_path_factory.mktemp("tiny") / "competition"
    make_sample(folder, n_train=120, n_test=8, seed=1)
    return folder


@pytest.fixture(scope="session")
def tiny_table(tiny_dir) -> TrainTable:
    return read_competition(tiny_dir)


@pytest.fixture(scope="session")
def tiny_folds(tiny_table) -> Folds:
    return split_folds(tiny_table.frame, n_splits=2, seed=0)
