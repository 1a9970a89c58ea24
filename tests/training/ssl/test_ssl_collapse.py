"""Collapse is seen at the head's output, and stops a run that was broken on purpose."""

import math
from types import SimpleNamespace

import cv2
import numpy as np
import pytest
import torch
from torch import nn

from cassava_kit.files import read_json
from cassava_kit.models.checkpoint import load_model
from cassava_kit.training.ssl import callbacks
from cassava_kit.training.ssl.collapse import CollapseError, find_collapse, measure_health, prototype_usage, rank_me
from cassava_kit.training.ssl.methods import configure, make_ssl_module
from cassava_kit.training.ssl.pretrain import pretrain

LIMITS = {"min_std": 0.15, "min_rank": 1.5}


def isotropic(n=512, d=64):
    return torch.randn(n, d, generator=torch.Generator().manual_seed(0))


def test_isotropic_embeddings_are_healthy():
    measured = measure_health(isotropic())
    assert measured.std == pytest.approx(1, abs=0.02)
    assert measured.cosine == pytest.approx(0, abs=0.01)
    assert measured.rank > 55
    assert find_collapse(measured, **LIMITS) is None


def test_the_mean_cosine_is_that_of_all_pairs():
    z = isotropic(20, 5) + 1
    unit = nn.functional.normalize(z, dim=1)
    pairs = [float(unit[i] @ unit[j]) for i in range(20) for j in range(20) if i != j]
    assert measure_health(z).cosine == pytest.approx(np.mean(pairs), abs=1e-5)


def test_constant_embeddings_are_a_collapse():
    measured = measure_health(torch.ones(256, 64) + 0.01 * isotropic(256))
    assert measured.std < 0.05 and measured.cosine > 0.99
    assert "embeddings hardly differ" in find_collapse(measured, **LIMITS)


def test_a_line_is_a_collapse():
    along = torch.randn(256, 1) @ torch.randn(1, 64)
    measured = measure_health(along)
    assert measured.std > 0.5 and measured.rank < 1.2
    assert "effective rank" in find_collapse(measured, **LIMITS)


def test_rank_me_is_the_papers():
    z = isotropic(30, 7).double()
    values = np.linalg.svd(z.numpy(), compute_uv=False)
    p = values / values.sum() + 1e-7
    assert rank_me(z) == pytest.approx(math.exp(-(p * np.log(p)).sum()), rel=1e-5)
    orthogonal = torch.linalg.qr(torch.randn(30, 7))[0]
    assert rank_me(orthogonal) == pytest.approx(7, rel=1e-3)


def test_what_is_not_finite_is_a_collapse():
    z = isotropic(8)
    z[0, 0] = torch.nan
    try:
        measured = measure_health(z)
    except torch.linalg.LinAlgError:
        pytest.fail("a broken embedding must be reported, not crash the report")
    assert "not finite" in find_collapse(measured, **LIMITS)


def test_prototype_usage_is_the_share_in_use():
    assert prototype_usage(torch.eye(8).repeat(4, 1)) == pytest.approx(1)
    assert prototype_usage(torch.eye(8)[:2].repeat(16, 1)) == pytest.approx(2 / 8)
    assert prototype_usage(torch.eye(8)[:1].repeat(32, 1)) == pytest.approx(1 / 8)
    assert prototype_usage(torch.eye(300)[:10]) == pytest.approx(1), "ten images cannot use more than ten"


def test_swav_that_answers_alike_is_a_collapse():
    scores = torch.randn(64, 30)
    stuck = measure_health(isotropic(64), scores, loss=math.log(30))
    assert "same probability" in find_collapse(stuck, **LIMITS)
    assert find_collapse(measure_health(isotropic(64), scores, loss=0.8 * math.log(30)), **LIMITS) is None
    few = torch.zeros(64, 60)
    few[:, 3] = 1
    assert "few prototypes are used" in find_collapse(measure_health(isotropic(64), few, loss=1.0), **LIMITS)


@pytest.fixture
def images(tmp_path):
    rng, paths = np.random.default_rng(0), []
    for k in range(32):
        path = tmp_path / f"{k}.png"
        cv2.imwrite(str(path), cv2.resize(rng.integers(0, 255, (4, 5, 3), dtype=np.uint8), (20, 16)))
        paths.append(path)
    return paths


def byol(**settings):
    """A small BYOL without BatchNorm in the heads, at a rate that shows a collapse quickly."""
    return configure(
        "byol",
        backbone="resnet18",
        model_args={"layers": [1, 1, 1, 1], "channels": [8, 8, 16, 16]},
        image_size=16,
        views=({"size": 16}, {"size": 16}),
        store_size=(16, 20),
        epochs=15,
        warmup_epochs=0,
        batch_size=16,
        optimizer="adamw",
        base_lr=0.16,
        weight_decay=1e-4,
        hidden_dim=32,
        output_dim=16,
        predictor_dim=32,
        momentum=0.9,
        watch_every=1,
        watch_after=3,
        accelerator="cpu",
        **settings,
    )


def break_on_purpose(monkeypatch):
    """Remove the predictor and let the gradient into the target, which then equals the online network."""

    def broken(config, *, init=None):
        module = make_ssl_module(config, init=init)
        module.prediction_head = nn.Identity()
        module.target = lambda images: module.projection_head(module.backbone(images))
        return module

    monkeypatch.setattr("cassava_kit.training.ssl.methods.make_ssl_module", broken)


def test_a_run_broken_on_purpose_is_stopped_within_a_few_steps(images, tmp_path, monkeypatch):
    break_on_purpose(monkeypatch)
    with pytest.raises(CollapseError, match=r"byol has collapsed by step \d+: embeddings hardly differ") as caught:
        pretrain(byol(), images, tmp_path / "run")
    step = int(str(caught.value).split("step ")[1].split(":")[0])
    assert step <= 25
    assert not (tmp_path / "run" / "backbone.safetensors").exists(), "a collapsed backbone is not exported"


def test_a_fresh_head_has_longer_to_become_healthy_than_a_good_one_to_stay_so():
    class Module(callbacks.SSLModule):
        def __init__(self):
            nn.Module.__init__(self)
            self.config, self.scores = byol(), None

    def alarm(first_looks, bad_from):
        watch, module = callbacks.CollapseWatch(), Module()
        good, bad = isotropic(32, 16), torch.ones(32, 16) + 0.01 * isotropic(32, 16)
        for step in range(1, 60):
            module.embeddings = good if first_looks and step < bad_from else bad
            trainer = SimpleNamespace(global_step=step, accumulate_grad_batches=1)
            try:
                watch.on_train_batch_end(trainer, module, {"loss": torch.tensor(1.0)}, None, 0)
            except CollapseError:
                return step
        return None

    assert alarm(first_looks=True, bad_from=30) == 32, "three bad looks in a row"
    assert alarm(first_looks=True, bad_from=2) == 6, "three bad looks after the first three steps"
    assert alarm(first_looks=False, bad_from=1) == 18, "three bad looks after five times as many"


def test_a_stopped_run_goes_on_from_its_last_epoch_as_it_was_told_to(images, tmp_path, monkeypatch):
    break_on_purpose(monkeypatch)
    with pytest.raises(CollapseError, match="or go on with on_collapse=warn"):
        pretrain(byol(), images, tmp_path / "run")
    done = len((tmp_path / "run" / "metrics.csv").read_text().splitlines()) - 1
    assert 0 < done < 15
    epochs = []
    start = callbacks.PretrainMetrics.on_train_epoch_start
    monkeypatch.setattr(
        callbacks.PretrainMetrics, "on_train_epoch_start", lambda *a: (epochs.append(a[1].current_epoch), start(*a))[1]
    )
    with pytest.warns(UserWarning, match="byol has collapsed"):
        assert pretrain(byol(on_collapse="warn"), images, tmp_path / "run").is_file()
    assert epochs == list(range(done, 15))


def test_a_healthy_measurement_between_bad_ones_starts_the_count_again(monkeypatch):
    module = SimpleNamespace(config=byol(), scores=None)
    monkeypatch.setattr(callbacks, "SSLModule", SimpleNamespace)
    good, bad = isotropic(32, 16), torch.ones(32, 16) + 0.01 * isotropic(32, 16)
    watch = callbacks.CollapseWatch()
    for step in range(1, 60):
        module.embeddings = good if step % 3 == 0 else bad
        trainer = SimpleNamespace(global_step=step, accumulate_grad_batches=1)
        watch.on_train_batch_end(trainer, module, {"loss": torch.tensor(1.0)}, None, 0)
    assert watch.bad == 2 and watch.was_healthy


def test_a_collapsed_run_starts_anew_with_other_settings(images, tmp_path, monkeypatch):
    """The remedies are settings: the folder must take them."""
    with monkeypatch.context() as broken:
        break_on_purpose(broken)
        with pytest.raises(CollapseError):
            pretrain(byol(), images, tmp_path / "run")
    assert "has collapsed" in read_json(tmp_path / "run" / "failed.json")["reason"]
    whole = pretrain(byol(seed=7), images, tmp_path / "whole")
    again = pretrain(byol(seed=7), images, tmp_path / "run")
    a, b = (load_model(path)[0].state_dict() for path in (whole, again))
    assert all(torch.equal(a[name], b[name]) for name in a)
    assert not (tmp_path / "run" / "failed.json").exists()


def test_batches_that_are_gathered_for_one_step_are_looked_at_once(monkeypatch):
    module = SimpleNamespace(config=byol(), embeddings=isotropic(32, 16), scores=None)
    monkeypatch.setattr(callbacks, "SSLModule", SimpleNamespace)
    looks = []
    monkeypatch.setattr(callbacks, "measure_health", lambda *a: (looks.append(1), measure_health(*a))[1])
    watch = callbacks.CollapseWatch()
    for step in (1, 1, 1, 2, 2, 2):
        trainer = SimpleNamespace(global_step=step, accumulate_grad_batches=3)
        watch.on_train_batch_end(trainer, module, {"loss": torch.tensor(1.0)}, None, 0)
    again = callbacks.CollapseWatch()
    again.load_state_dict(watch.state_dict())
    again.on_train_batch_end(trainer, module, {"loss": torch.tensor(1.0)}, None, 0)
    assert len(looks) == 2


def test_the_same_run_unbroken_goes_through(images, tmp_path):
    assert pretrain(byol(), images, tmp_path / "run").is_file()


def test_a_collapsed_run_goes_on_if_asked_and_says_so(images, tmp_path, monkeypatch):
    break_on_purpose(monkeypatch)
    with pytest.warns(UserWarning, match="byol has collapsed"):
        assert pretrain(byol(on_collapse="warn"), images, tmp_path / "run").is_file()
