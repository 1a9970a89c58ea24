"""A recipe of seconds, and a options that says nothing."""

from cassava_kit.training.config import RunConfig
from cassava_kit.training.rows import TrainOptions

SILENT = TrainOptions(tell=lambda _: None)
TINY = RunConfig(
    recipe="tiny",
    model="resnet18",
    model_args={"layers": [1, 1, 1, 1], "channels": [8, 8, 16, 16]},
    image_size=32,
    epochs=3,
    batch_size=16,
    lr=3e-3,
)
