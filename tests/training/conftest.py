"""What every test of training learns from."""

import pytest

from cassava_kit.training.rows import TrainData


@pytest.fixture
def data(tiny_table, tiny_folds) -> TrainData:
    return TrainData(tiny_table, tiny_folds)
