"""A new method is one file and one line: everything else takes it from there."""

import textwrap

import cv2
import numpy as np
import pytest
import torch

from cassava_kit.errors import UserError
from cassava_kit.models.checkpoint import load_model, read_info
from cassava_kit.training.ssl.collapse import CollapseError
from cassava_kit.training.ssl.cost import pretrain_hours
from cassava_kit.training.ssl.folder import pretrain_folders
from cassava_kit.training.ssl.methods import SSL_METHODS, configure, load_method
from cassava_kit.training.ssl.pretrain import pretrain
from cassava_kit.training.ssl.recipes import pretrain_recipe

SMALL = {
    "backbone": "resnet18",
    "model_args": {"layers": [1, 1, 1, 1], "channels": [8, 8, 8, 8]},
    "image_size": 16,
    "views": ({"size": 16, "count": 2},),
    "epochs": 2,
    "batch_size": 4,
}
TOY = """
    import torch
    from typing import Any, ClassVar, Literal
    from pydantic import Field
    from torch import nn

    from cassava_kit.training.ssl.config import PretrainConfig
    from cassava_kit.training.ssl.module import SSLModule
    from cassava_kit.training.ssl.view import ViewConfig


    class VICRegConfig(PretrainConfig):
        paper: ClassVar[dict[str, Any]] = {
            "views": (ViewConfig(count=2),), "optimizer": "adamw", "base_lr": 0.1, "weight_decay": 1e-3,
            "warmup_epochs": 0, "hidden_dim": 8, "output_dim": 4,
        }
        remedies = "raise variance_weight"
        method: Literal["toy"] = "toy"
        variance_weight: float = Field(default=1.0, ge=0, description="Weight of the variance term.")


    class VICReg(SSLModule):
        config_class = VICRegConfig

        def __init__(self, config, backbone):
            super().__init__(config, backbone)
            self.head = nn.Linear(self.feature_dim, config.output_dim)

        def compute_loss(self, views):
            z0, z1 = (self.head(self.backbone(x)) for x in views)
            self.embeddings = z0.detach()
            spread = sum(torch.relu(1 - z.std(dim=0)).mean() for z in (z0, z1))
            return (z0 - z1).square().mean() + self.config.variance_weight * spread
"""


@pytest.fixture
def toy(tmp_path, monkeypatch):
    """The method in one file, and its line in the list."""
    (tmp_path / "toy_method.py").write_text(textwrap.dedent(TOY))
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setitem(SSL_METHODS, "toy", "toy_method:VICReg")


@pytest.fixture
def images(tmp_path):
    folder, rng = tmp_path / "images", np.random.default_rng(0)
    folder.mkdir()
    for k in range(8):
        cv2.imwrite(str(folder / f"{k}.png"), cv2.resize(rng.integers(0, 255, (4, 5, 3), dtype=np.uint8), (20, 16)))
    return folder


@pytest.mark.parametrize("store_size", [None, (16, 20)])
def test_a_method_of_one_file_trains_and_is_exported(toy, images, tmp_path, store_size):
    config = configure("toy", **SMALL, name="mine", variance_weight=2.5, store_size=store_size)
    path = pretrain(config, sorted(images.iterdir()), tmp_path / "run")
    info = read_info(path)
    assert info.config["method"] == "toy" and configure(**info.config["pretrain"]) == config
    start = load_method("toy")(config, load_model(path)[0])
    assert set(start.backbone.state_dict()) == set(load_model(path)[0].state_dict())
    rows = (tmp_path / "run" / "metrics.csv").read_text().splitlines()
    assert len(rows) == 3 and "momentum" not in rows[0]


def test_the_verb_takes_it_with_its_own_settings(toy, images, tmp_path):
    settings = ["epochs=1", "batch_size=4", "image_size=16", 'views=[{"size": 16, "count": 2}]', "variance_weight=0.5"]
    small = ['model_args={"layers": [1, 1, 1, 1], "channels": [8, 8, 8, 8]}']
    said = pretrain_folders(
        "toy", None, [images], backbone="resnet18", out=tmp_path / "run", settings=[*settings, *small]
    )
    assert said.startswith("toy on 8 images: ")
    assert read_info(tmp_path / "run" / "backbone.safetensors").config["pretrain"]["variance_weight"] == 0.5


def test_its_settings_are_its_own(toy):
    assert configure("toy").base_lr == 0.1 and pretrain_recipe("toy").name == "toy"
    with pytest.raises(UserError, match="variance_weight: Extra inputs"):
        configure("byol", variance_weight=1)
    with pytest.raises(UserError, match="momentum: Extra inputs"):
        configure("toy", momentum=0.5)
    with pytest.raises(UserError, match="method must be one of simclr, moco, byol, swav, toy, got 'dino'"):
        configure("dino")
    with pytest.raises(UserError, match=r"no pretraining run 'toi' \(did you mean toy"):
        pretrain_recipe("toi")
    assert pretrain_hours(configure("toy"), 1000) == pytest.approx(pretrain_hours(configure("simclr"), 1000))


def test_its_collapse_is_named_with_its_remedy(toy, images, tmp_path, monkeypatch):
    monkeypatch.setattr(
        load_method("toy"),
        "compute_loss",
        lambda self, views: (
            setattr(self, "embeddings", torch.ones(4, 4)),
            self.head(self.backbone(views[0])).square().mean(),
        )[1],
    )
    config = configure("toy", **SMALL, store_size=(16, 20), watch_every=1, watch_after=0, watch_patience=1)
    with pytest.raises(CollapseError, match=r"toy has collapsed by step 1: .*; raise variance_weight, or go on"):
        pretrain(config, sorted(images.iterdir()), tmp_path / "run")
