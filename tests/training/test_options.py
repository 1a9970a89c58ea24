"""What a setting or an option changes in a real run: averages, stages, noise reports, augmentation, logs."""

import numpy as np
import pandas as pd
import pytest
import torch
from tiny import SILENT, TINY

from cassava_kit.errors import UserError
from cassava_kit.evidence.predictions import read_predictions
from cassava_kit.models.checkpoint import read_info
from cassava_kit.models.weights import load_tensors
from cassava_kit.settings import replace
from cassava_kit.training import fit
from cassava_kit.training.averaging import renew_statistics
from cassava_kit.training.callbacks import Resume
from cassava_kit.training.config import RunConfig
from cassava_kit.training.devices import Devices
from cassava_kit.training.fit import fit_fold, make_batches, make_classifier
from cassava_kit.training.recipes import recipe
from cassava_kit.training.rows import TrainData, TrainOptions, clean_rows, usable_rows
from cassava_kit.training.trainer import make_trainer


@pytest.fixture
def weights_by_epoch(monkeypatch) -> list[dict[str, torch.Tensor]]:
    """The model's weights at the end of each epoch."""
    seen = []
    save = Resume.on_train_epoch_end

    def look(self, trainer, module):
        seen.append({name: value.clone() for name, value in module.model.state_dict().items()})
        save(self, trainer, module)

    monkeypatch.setattr(Resume, "on_train_epoch_end", look)
    return seen


def test_swa_is_the_mean_of_the_last_epochs_with_statistics_of_its_own(data, tmp_path, weights_by_epoch):
    result = fit_fold(replace(TINY, epochs=4, swa_epochs=2), data, 0, tmp_path, options=SILENT)
    kept, last = load_tensors(result.checkpoint), weights_by_epoch
    mean = (last[2]["layer1.0.conv1.weight"] + last[3]["layer1.0.conv1.weight"]) / 2
    assert len(last) == 4 and torch.allclose(kept["layer1.0.conv1.weight"], mean, atol=1e-6)
    assert not torch.allclose(kept["bn1.running_mean"], last[3]["bn1.running_mean"], atol=1e-6)


def test_renewed_statistics_are_the_data_sets_own():
    torch.manual_seed(0)
    norm, batches = torch.nn.BatchNorm2d(3), [(torch.randn(8, 3, 4, 4) * 5 + 2,) for _ in range(4)]
    norm(batches[0][0] + 100)  # what stood there before does not matter
    renew_statistics(norm, batches, lambda images: images)
    everything = torch.cat([batch[0] for batch in batches])
    assert torch.allclose(norm.running_mean, everything.mean(dim=(0, 2, 3)), atol=1e-5)
    assert torch.allclose(norm.running_var, everything.var(dim=(0, 2, 3)), rtol=0.05)
    assert norm.momentum == 0.1


def test_frozen_norms_keep_their_statistics():
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.BatchNorm2d(3), torch.nn.BatchNorm2d(3))
    model[0].requires_grad_(False)
    renew_statistics(model, [(torch.randn(8, 3, 4, 4) * 5 + 2,)], lambda images: images)
    assert torch.equal(model[0].running_mean, torch.zeros(3)) and (model[1].running_mean > 1).all()


@pytest.mark.parametrize(
    ("setting", "still"), [({"freeze_backbone": True}, "layer4"), ({"unfreeze_every": 2}, "layer3")]
)
def test_an_average_of_frozen_layers_is_those_layers(data, tmp_path, setting, still):
    first = fit_fold(replace(TINY, epochs=1), data, 0, tmp_path, options=SILENT)
    config = replace(TINY, recipe="swa", epochs=4, swa_epochs=2, **setting)
    result = fit_fold(config, data, 0, tmp_path, options=TrainOptions(weights=first.checkpoint, tell=lambda _: None))
    one, two = load_tensors(first.checkpoint), load_tensors(result.checkpoint)
    assert all(torch.allclose(two[name], one[name], atol=1e-7) for name in one if name.startswith((still, "bn1")))
    assert not torch.equal(one["fc.weight"], two["fc.weight"])


def test_ema_follows_a_short_run(data, tmp_path, weights_by_epoch):
    result = fit_fold(replace(TINY, ema=0.9999), data, 0, tmp_path, options=SILENT)
    kept, name = load_tensors(result.checkpoint), "layer1.0.conv1.weight"
    first, last = weights_by_epoch[0][name], weights_by_epoch[-1][name]
    assert (kept[name] - last).norm() < 0.5 * (last - first).norm()


def test_ema_moves_once_for_each_step(data, tmp_path, monkeypatch):
    from timm.utils import ModelEmaV3

    moves = []
    update = ModelEmaV3.update
    monkeypatch.setattr(ModelEmaV3, "update", lambda self, model, step=None: (moves.append(1), update(self, model))[1])
    fit_fold(replace(TINY, epochs=2, ema=0.9, accumulate=2), data, 0, tmp_path, options=SILENT)
    batches = len(data.folds.training(0)) // 16
    assert len(moves) == 2 * -(-batches // 2)


def test_stages_are_freed_one_by_one_and_what_is_frozen_stands_still(data, tmp_path, weights_by_epoch):
    fit_fold(replace(TINY, unfreeze_every=1, layer_decay=0.5), data, 0, tmp_path, options=SILENT)
    first, second, third = weights_by_epoch

    def moved(before, after) -> set[str]:
        return {name.split(".")[0] for name in before if not torch.equal(before[name], after[name])}

    assert moved(first, second) == {"fc", "layer4"}
    assert moved(second, third) == {"fc", "layer4", "layer3"}


def test_unfreeze_resumes_at_the_stage_it_had_reached(data, tmp_path, monkeypatch):
    config = replace(TINY, unfreeze_every=1)
    whole = fit_fold(config, data, 0, tmp_path / "a", options=SILENT)
    save = Resume.on_train_epoch_end

    def save_then_die(self, trainer, module):
        save(self, trainer, module)
        raise KeyError("power cut")

    monkeypatch.setattr(Resume, "on_train_epoch_end", save_then_die)
    with pytest.raises(KeyError):
        fit_fold(config, data, 0, tmp_path / "b", options=SILENT)
    monkeypatch.setattr(Resume, "on_train_epoch_end", save)
    resumed = fit_fold(config, data, 0, tmp_path / "b", options=SILENT)
    one, two = load_tensors(whole.checkpoint), load_tensors(resumed.checkpoint)
    assert all(torch.allclose(one[name].double(), two[name].double(), atol=1e-6) for name in one)


@pytest.mark.parametrize("limit", [1, 15])
def test_an_odd_picture_of_an_only_batch_is_not_mixed(data, tmp_path, limit):
    options = TrainOptions(limit=limit, tell=lambda _: None)
    config = replace(TINY, epochs=1, mixup=0.2, image_size=64)  # one picture: BatchNorm needs more than one position
    result = fit_fold(config, data, 0, tmp_path, options=options)
    assert np.isfinite(pd.read_csv(result.run_dir / "metrics.csv")["train_loss"]).all()


def test_metrics_have_the_training_accuracy(data, tmp_path):
    result = fit_fold(replace(TINY, cutmix=1.0), data, 0, tmp_path, options=SILENT)
    assert pd.read_csv(result.run_dir / "metrics.csv")["train_accuracy"].between(0, 1).all()


@pytest.mark.parametrize("size", [32, 40])
@pytest.mark.parametrize("augmentation", ["none", "light", "strong"])
def test_augmentation_on_the_device(data, tmp_path, augmentation, size):
    config = replace(TINY, augment_on="device", augmentation=augmentation, train_pixels=(48, 64), image_size=size)
    batches = make_batches(config, data, (data.folds.training(0), data.folds.validation(0)), SILENT)
    images, _, _ = next(iter(batches.train_dataloader()))
    assert images.shape[1:] == (3, 48, 64)  # not augmented by the loader
    module = make_classifier(config, data, batches, training=data.folds.training(0), options=SILENT)
    torch.manual_seed(1)
    pictures = module.augment_images(images)
    torch.manual_seed(1)
    assert torch.equal(module.augment_images(images), pictures)
    assert pictures.shape == (16, 3, size, size)
    plain = module.augment_images(images)
    assert torch.equal(plain, pictures) == (augmentation == "none")
    # Colours stay where they were, on the whole.
    assert (pictures.mean(dim=(0, 2, 3)) - module.normalize_images(images).mean(dim=(0, 2, 3))).abs().max() < 0.35


def noise_report(data: TrainData, path, dropped: list[str]) -> None:
    frame = data.folds.frame[["image_id", "label"]].copy()
    out = frame["image_id"].isin(dropped)
    frame["suggested_label"] = np.where(out, (frame["label"] + 1) % 5, frame["label"])
    frame["label_quality"] = np.where(out, 0.1, 0.9)
    frame["keep"] = ~out
    frame.to_csv(path, index=False)


@pytest.mark.parametrize("action", ["drop", "flip", "weight", "soften"])
def test_a_noise_report_changes_training_rows_and_no_validation_row(data, tmp_path, action, monkeypatch):
    training, validation, _ = usable_rows(data, 0, None)
    bad = [training["image_id"].iloc[0], training["image_id"].iloc[7], validation["image_id"].iloc[0]]
    noise_report(data, tmp_path / "clean.csv", bad)
    options = TrainOptions(clean=tmp_path / "clean.csv", clean_action=action, tell=lambda _: None)
    rows = clean_rows(training, options).set_index("image_id")
    assert len(rows) == len(training) + {"drop": -2, "soften": 2}.get(action, 0)
    if action == "flip":
        assert rows.loc[bad[0], "label"] == (training["label"].iloc[0] + 1) % 5
    if action == "soften":
        assert sorted(rows.loc[bad[0], "weight"]) == pytest.approx([0.1, 0.9])
        started = []
        make = fit.make_classifier
        monkeypatch.setattr(fit, "make_classifier", lambda *a, **k: (started.append(make(*a, **k)), started[-1])[1])
    if action == "weight":
        assert rows.loc[bad[0], "weight"] == pytest.approx(0.1)
    plain = fit_fold(TINY, data, 0, tmp_path / "plain", options=SILENT)
    result = fit_fold(TINY, data, 0, tmp_path / "clean", options=options)
    assert result.score.n == plain.score.n == len(validation)
    plain_oof, clean_oof = (read_predictions(each.run_dir / "oof.csv").header for each in (plain, result))
    assert plain_oof.labels_seen == () and "cleaned with a noise report" in clean_oof.labels_seen[0]
    one, two = load_tensors(plain.checkpoint), load_tensors(result.checkpoint)
    assert not torch.equal(one["fc.weight"], two["fc.weight"])
    with pytest.raises(UserError, match="a finished run with other noise report"):
        fit_fold(TINY, data, 0, tmp_path / "plain", options=options)
    if action == "soften":
        weights = started[1].row_weights
        assert weights is not None and weights.sum().item() == pytest.approx(len(training)), "one in all for an image"
        shares = np.array(read_info(result.checkpoint).prior) * len(training)
        counts = np.bincount(training["label"], minlength=5).astype(float)
        for name in bad[:2]:
            label = training.set_index("image_id").loc[name, "label"]
            counts[label] -= 0.9
            counts[(label + 1) % 5] += 0.9
        assert shares == pytest.approx(counts)


def test_a_noise_report_of_another_table_is_refused_before_work(data, tmp_path):
    noise_report(data, tmp_path / "clean.csv", [])
    frame = pd.read_csv(tmp_path / "clean.csv").iloc[1:]
    frame.to_csv(tmp_path / "clean.csv", index=False)
    with pytest.raises(ValueError, match="the noise report has no row for"):
        fit_fold(TINY, data, 0, tmp_path, options=TrainOptions(clean=tmp_path / "clean.csv", tell=lambda _: None))
    assert not (tmp_path / "tiny").exists()


def test_weights_of_rows_do_not_go_with_mixed_pictures(data, tmp_path):
    noise_report(data, tmp_path / "clean.csv", [])
    options = TrainOptions(clean=tmp_path / "clean.csv", clean_action="weight", tell=lambda _: None)
    with pytest.raises(ValueError, match="mixup or cutmix"):
        fit_fold(replace(TINY, cutmix=1.0), data, 0, tmp_path, options=options)


def test_largest_losses_are_left_out_after_the_first_epochs(data, tmp_path, monkeypatch):
    import cassava_kit.training.module as module

    left_out = []
    plain = module.mean_without_largest
    monkeypatch.setattr(
        module, "mean_without_largest", lambda losses, n, **more: (left_out.append(n), plain(losses, n, **more))[1]
    )
    fit_fold(replace(TINY, ousm=3, ousm_after=2), data, 0, tmp_path, options=SILENT)
    assert left_out == [0] * (2 * len(left_out) // 3) + [3] * (len(left_out) // 3)


def test_tensorboards_log_has_the_metrics(data, tmp_path):
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    options = TrainOptions(tensorboard=True, tell=lambda _: None)
    result = fit_fold(TINY, data, 0, tmp_path, options=options)
    log = EventAccumulator(str(result.run_dir / "tensorboard"))
    log.Reload()
    metrics = pd.read_csv(result.run_dir / "metrics.csv")
    assert [event.value for event in log.Scalars("val_loss")] == pytest.approx(metrics["val_loss"], rel=1e-4)


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ({"swa_epochs": 10}, "swa_epochs must be less than epochs"),
        ({"swa_epochs": 2, "ema": 0.9}, "not with ema"),
        ({"swa_epochs": 2, "schedule": "onecycle"}, "not with schedule=onecycle"),
        ({"swa_epochs": 4, "warmup_epochs": 6}, r"less than epochs \(10\) less swa_epochs \(4\), got 6"),
        ({"layer_decay": 0.5, "freeze_backbone": True}, "layer_decay has no effect on a frozen backbone"),
        ({"unfreeze_every": 2, "freeze_backbone": True}, "unfreeze_every has no effect on a frozen backbone"),
        ({"ousm": 32}, r"ousm must be less than batch_size \(32\), got 32"),
        (
            {"plain_epochs": 10, "cutmix": 1.0},
            r"plain_epochs must be less than epochs \(10\), got 10: mixup",
        ),
        ({"ousm": 2, "ousm_after": 10}, "ousm_after must be less than epochs"),
        ({"unfreeze_every": 12}, "unfreeze_every must be less than epochs"),
        ({"cutmix": 1.0, "batch_size": 15}, "in pairs: make batch_size even, not 15"),
        ({"momentum": 0.5}, "momentum is SGD's, and has no effect on adamw"),
        ({"swa_lr_scale": 0.5}, "swa_lr_scale goes with swa_epochs on a cosine schedule"),
        ({"swa_lr_scale": 0.5, "swa_epochs": 2, "schedule": "constant"}, "on a cosine schedule"),
        ({"augment_on": "device"}, "augment_on=device needs images of one size"),
    ],
)
def test_settings_that_do_not_go_together_are_refused(setting, message):
    with pytest.raises(ValueError, match=message):
        RunConfig.from_values({"recipe": "r", "model": "resnet18", **setting})


@pytest.mark.skipif(torch.cuda.is_available(), reason="a GPU can do it")
def test_half_precision_without_a_gpu_is_told_and_not_tried(data, tmp_path):
    told = []
    half = replace(TINY, precision="16-mixed", epochs=1)
    assert make_trainer(half, [], devices=Devices()).precision == "32-true"
    fit_fold(half, data, 0, tmp_path, options=TrainOptions(tell=told.append))
    assert "16-mixed needs a GPU: this CPU trains in 32-true" in told


def test_an_action_that_is_none_is_refused(data, tmp_path):
    with pytest.raises(ValueError, match="--clean-action must be one of drop, flip, weight, soften, got 'burn'"):
        fit_fold(TINY, data, 0, tmp_path, options=TrainOptions(clean_action="burn", tell=lambda _: None))


def test_a_size_that_the_model_does_not_take_is_refused_before_any_work(data, tmp_path):
    with pytest.raises(ValueError, match=r'does not take images of 64 pixels .* model_args=\{"img_size": 64\}'):
        fit_fold(replace(recipe("small_vit"), image_size=64), data, 0, tmp_path, options=SILENT)
    assert not list(tmp_path.iterdir())
