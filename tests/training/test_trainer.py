"""What Lightning's Trainer is given, recorded: a CPU cannot show it."""

import pytest

from cassava_kit.training import trainer
from cassava_kit.training.devices import Devices
from cassava_kit.training.ssl.methods import SSL_METHODS, configure
from cassava_kit.training.trainer import make_trainer


@pytest.mark.parametrize("method", SSL_METHODS)
@pytest.mark.parametrize(("kind", "n"), [("gpu", 2), ("gpu", 1), ("cpu", 2)])
def test_statistics_are_shared_between_gpus_but_for_moco(method, kind, n, monkeypatch):
    """MoCo shuffles its keys over devices so that their BatchNorm statistics differ (He et al. 2019, section 3.3)."""
    given = {}
    monkeypatch.setattr(trainer.L, "Trainer", lambda **options: given.update(options))
    config = configure(method, accumulate=3, clip_norm=1.5, precision="16-mixed")
    make_trainer(config, [], devices=Devices(n, accelerator=kind), sync_batchnorm=config.sync_batchnorm)
    assert given["sync_batchnorm"] == (kind == "gpu" and n == 2 and method != "moco")
    assert (given["accelerator"], given["devices"], given["max_epochs"]) == (kind, n, 200)
    assert (given["accumulate_grad_batches"], given["gradient_clip_val"]) == (3, 1.5)
    assert given["precision"] == ("16-mixed" if kind == "gpu" else "32-true")
