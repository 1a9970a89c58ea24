"""What all tests stand on: threads, the order of files, and a tiny drawn competition with its folds, made once."""

import os
import signal
from collections import Counter
from pathlib import Path

import pytest

# Read when torch is loaded, here and in the programs that tests start. The networks are so small that a second thread
# costs more than it brings, and threads that wait actively take the core that another process needs.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
# `make test` has a test process on each core: programs of the tests take one, unless they are told otherwise.
os.environ.setdefault("PYTHON_CPU_COUNT", "1")

from once import made_once

from cassava_kit.data.folds import Folds
from cassava_kit.data.sample.make import make_sample
from cassava_kit.data.stratify import split_folds
from cassava_kit.data.table import TrainTable, read_competition

# The kit is not installed: programs that tests start find it beside the tests.
ROOT = Path(__file__).resolve().parent.parent
os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Files with slow tests first, so that no process starts a long file when the others have ended."""
    slow = Counter(item.path for item in items if item.get_closest_marker("slow"))
    items.sort(key=lambda item: -slow[item.path])


@pytest.fixture(scope="session")
def tiny_dir(tmp_path_factory) -> Path:
    """A competition folder of 120 training and 8 test images."""
    return (
        made_once(
            tmp_path_factory, "tiny", lambda folder: make_sample(folder / "competition", n_train=120, n_test=8, seed=1)
        )
        / "competition"
    )


@pytest.fixture(scope="session")
def tiny_table(tiny_dir) -> TrainTable:
    return read_competition(tiny_dir)


@pytest.fixture(scope="session")
def tiny_folds(tiny_table) -> Folds:
    return split_folds(tiny_table.frame, n_splits=2, seed=0)


@pytest.fixture
def interruptible():
    """Ctrl-C arrives although the tests run in the background of a shell, where it is ignored."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)
