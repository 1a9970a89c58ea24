"""Training against a loop written by hand: mixing, smoothing, clipping, rates, averages, order, and what is validated.

The loop here takes the batches that the run saw and the state of numpy's generator before each, and nothing else.
"""

import copy
import dataclasses
import math

import numpy as np
import pandas as pd
import pytest
import timm
import torch
from safetensors.torch import load_file
from timm.data import Mixup
from timm.utils import ModelEmaV3
from tiny import SILENT, TINY

from cassava_kit.data.images import load_image
from cassava_kit.data.stratify import split_folds
from cassava_kit.data.table import TrainTable
from cassava_kit.settings import replace
from cassava_kit.training.config import RunConfig
from cassava_kit.training.fit import fit_fold
from cassava_kit.training.module import Classifier
from cassava_kit.training.rows import TrainData

IMAGENET = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
VIT = {"img_size": 32, "patch_size": 8, "embed_dim": 24, "depth": 2, "num_heads": 2}
# No ReLU and no max-pooling: where values tie, their last digits, which differ from torch to torch, decide a gradient.
SMOOTH = {"act_layer": "gelu", "replace_stem_pool": True}
PLAIN = replace(TINY, optimizer="sgd", lr=0.02, augmentation="none", train_pixels=(32, 32), batch_size=8, epochs=2)


@dataclasses.dataclass
class Step:
    """What a run's step was given and what it answered."""

    epoch: int
    images: torch.Tensor
    labels: torch.Tensor
    indices: torch.Tensor
    generator: tuple
    logits: torch.Tensor | None = None
    loss: float = math.nan


@pytest.fixture
def record(monkeypatch):
    """Trains a fold; returns its steps, the weights before the first, and the result."""

    def train(config: RunConfig, data: TrainData, out, **options):
        steps: list[Step] = []
        first: dict[str, torch.Tensor] = {}
        plain = Classifier.training_step

        def watched(self, batch, n):
            if not first:
                first.update({name: value.clone() for name, value in self.model.state_dict().items()})
            images, labels, indices = (part.clone() for part in batch)
            step = Step(self.current_epoch, images, labels, indices, np.random.get_state())
            hook = self.model.register_forward_hook(lambda _, __, logits: setattr(step, "logits", logits.detach()))
            loss = plain(self, batch, n)
            hook.remove()
            step.loss = loss.item()
            steps.append(step)
            return loss

        monkeypatch.setattr(Classifier, "training_step", watched)
        result = fit_fold(config, data, 0, out, options=dataclasses.replace(SILENT, **options))
        return steps, first, result

    return train


def normalised(images: torch.Tensor, statistics=IMAGENET) -> torch.Tensor:
    mean, std = (torch.tensor(values).view(1, 3, 1, 1) for values in statistics)
    return (images.float() / 255 - mean) / std


def smoothed(targets: torch.Tensor, share: float) -> torch.Tensor:
    """Szegedy et al.: a share of every target is spread over all K classes, the right one included."""
    return torch.stack([torch.stack([(1 - share) * p + share / len(row) for p in row]) for row in targets])


def mixed(config: RunConfig, step: Step) -> tuple[torch.Tensor, torch.Tensor]:
    """The pictures and the targets (B, K) of a step, as timm mixes them from numpy's state."""
    images, targets = normalised(step.images), torch.eye(5)[step.labels]
    if (config.mixup or config.cutmix) and step.epoch < config.epochs - config.plain_epochs:
        np.random.set_state(step.generator)
        return Mixup(config.mixup, config.cutmix, label_smoothing=0.0, num_classes=5)(images, step.labels)
    return images, targets


def by_hand(config: RunConfig, steps: list[Step], first: dict[str, torch.Tensor]):
    """The weights that a plain loop of torch learns from the same batches: the last ones, and timm's average."""
    model = timm.create_model(config.model, num_classes=5, **config.model_args)
    model.load_state_dict(first)
    average = ModelEmaV3(model, decay=config.ema, use_warmup=True) if config.ema else None
    model.train()
    decays = [p for p in model.parameters() if p.ndim > 1]
    others = [p for p in model.parameters() if p.ndim == 1]
    groups = [{"params": decays, "weight_decay": config.weight_decay}, {"params": others, "weight_decay": 0.0}]
    optimizer = torch.optim.SGD(groups, lr=config.lr, momentum=0.9, nesterov=True)
    per_epoch = len(steps) // config.epochs
    taken, total = 0, config.epochs * math.ceil(per_epoch / config.accumulate)
    for n, step in enumerate(steps):
        pictures, targets = mixed(config, step)
        log_p = torch.log_softmax(model(pictures), dim=1)
        loss = -(smoothed(targets, config.label_smoothing) * log_p).sum(dim=1).mean()
        (loss / config.accumulate).backward()
        last = (n + 1) % per_epoch == 0
        if last or (n % per_epoch + 1) % config.accumulate == 0:
            for group in optimizer.param_groups:
                group["lr"] = config.lr * 0.5 * (1 + math.cos(math.pi * taken / total))
            if config.clip_norm is not None:
                torch.nn.utils.clip_grad_norm_(model.parameters(), config.clip_norm)
            optimizer.step()
            optimizer.zero_grad()
            taken += 1
            if average is not None:
                average.update(model, step=taken)
    return model.state_dict(), (average.module if average is not None else model).state_dict()


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"label_smoothing": 0.3, "clip_norm": 0.05},
        {"clip_norm": None, "accumulate": 2, "weight_decay": 0.1},
        {"epochs": 3, "mixup": 0.4, "cutmix": 1.0, "plain_epochs": 1, "label_smoothing": 0.1},
        {"ema": 0.999, "mixup": 0.4},
    ],
)
def test_a_run_learns_what_a_loop_by_hand_learns(data, tmp_path, record, changes):
    config = replace(PLAIN, model_args=PLAIN.model_args | SMOOTH, **changes)
    steps, first, result = record(config, data, tmp_path)
    last, kept = by_hand(config, steps, first)
    ours = load_file(result.checkpoint)
    for name, value in kept.items():
        way = (last[name] - first[name]).double().norm()  # sums in another order differ in the last digits
        assert (ours[name].double() - value.double()).norm() <= 0.002 * way + 1e-6, name
    assert (last["fc.weight"] - first["fc.weight"]).norm() > 0.01, "a run that stands still proves nothing"


def tempered(logits: list[float], t: float) -> list[float]:
    """Amid et al.'s tempered softmax, its normaliser found by halving an interval."""

    def exp_t(x: float) -> float:
        return max(1 + (1 - t) * x, 0.0) ** (1 / (1 - t))

    low, high = max(logits), max(logits) + 1e3
    for _ in range(200):
        middle = (low + high) / 2
        low, high = (middle, high) if sum(exp_t(a - middle) for a in logits) > 1 else (low, middle)
    return [exp_t(a - low) for a in logits]


def bi_tempered_by_hand(logits: list[float], target: list[float], t1: float, t2: float) -> float:
    """Equation 8 of Amid et al. 2019."""

    def log_t(x: float) -> float:
        return (x ** (1 - t1) - 1) / (1 - t1)

    return sum(
        (y * (log_t(y) - log_t(p)) if y else 0.0) - (y ** (2 - t1) - p ** (2 - t1)) / (2 - t1)
        for y, p in zip(target, tempered(logits, t2), strict=True)
    )


def taylor_by_hand(logits: list[float], target: list[float], order: int) -> float:
    """Equation 7 of Feng et al. 2020, for one class."""
    p = math.exp(logits[target.index(1)]) / sum(map(math.exp, logits))
    return sum((1 - p) ** i / i for i in range(1, order + 1))


@pytest.mark.parametrize(
    ("changes", "formula"),
    [
        (
            {"loss": "bitempered", "label_smoothing": 0.2, "loss_args": {"t1": 0.6, "t2": 1.3}},
            lambda logits, target: bi_tempered_by_hand(logits, target, 0.6, 1.3),
        ),
        (
            {"loss": "bitempered", "label_smoothing": 0.2, "mixup": 0.5},
            lambda logits, target: bi_tempered_by_hand(logits, target, 0.8, 1.4),
        ),
        (
            {"loss": "taylor", "label_smoothing": 0, "loss_args": {"order": 3}},
            lambda logits, target: taylor_by_hand(logits, target, 3),
        ),
    ],
)
def test_the_loss_of_each_step_is_its_formula(data, tmp_path, record, changes, formula):
    config = replace(PLAIN, epochs=1, **changes)
    steps, _, _ = record(config, data, tmp_path)
    for step in steps:
        targets = smoothed(mixed(config, step)[1].double(), config.label_smoothing)
        rows = zip(step.logits.double().tolist(), targets.tolist(), strict=True)
        assert step.loss == pytest.approx(np.mean([formula(*row) for row in rows]), abs=1e-4)


def test_rows_count_by_the_weights_of_their_own_images(data, tmp_path, record):
    """The mean of weight times loss; OUSM leaves out the largest losses, whatever their weights."""
    rng = np.random.default_rng(0)
    report = data.folds.frame[["image_id", "label"]].copy()
    report["suggested_label"] = (report["label"] + 1) % 5
    report["label_quality"], report["keep"] = rng.uniform(0.1, 0.9, len(report)).round(3), False
    report.to_csv(tmp_path / "clean.csv", index=False)
    config = replace(PLAIN, ousm=2, ousm_after=1)
    steps, _, _ = record(config, data, tmp_path / "runs", clean=tmp_path / "clean.csv", clean_action="weight")
    quality = report.set_index("image_id")["label_quality"]
    weights = quality[data.folds.training(0)["image_id"]].to_numpy()
    for step in steps:
        targets = smoothed(torch.eye(5)[step.labels].double(), config.label_smoothing)
        losses = -(targets * torch.log_softmax(step.logits.double(), dim=1)).sum(dim=1)
        kept = sorted(range(len(losses)), key=losses.__getitem__)[: len(losses) - (2 if step.epoch >= 1 else 0)]
        expected = np.mean([weights[step.indices[k]] * losses[k].item() for k in kept])
        assert step.loss == pytest.approx(expected, abs=1e-5)


def test_every_epoch_has_another_order_and_other_augmentation(data, tmp_path, record):
    steps, _, _ = record(replace(PLAIN, epochs=3, augmentation="light", train_pixels=(48, 64)), data, tmp_path)
    epochs = [[step for step in steps if step.epoch == epoch] for epoch in range(3)]
    orders = [torch.cat([step.indices for step in epoch]).tolist() for epoch in epochs]
    n = len(data.folds.training(0))
    assert all(len(set(order)) == len(order) == n // 8 * 8 for order in orders)
    for one, two in ((0, 1), (1, 2), (0, 2)):
        assert sum(a == b for a, b in zip(orders[one], orders[two], strict=True)) < n / 4
    assert all(order != sorted(order) for order in orders)
    labels = data.folds.training(0)["label"].to_numpy()
    assert all((labels[step.indices] == step.labels.numpy()).all() for step in steps)
    pictures = [
        {int(i): image for step in epoch for i, image in zip(step.indices, step.images, strict=True)}
        for epoch in epochs
    ]
    for one, two in ((0, 1), (1, 2), (0, 2)):
        both = pictures[one].keys() & pictures[two].keys()
        same = sum(torch.equal(pictures[one][i], pictures[two][i]) for i in both)
        assert len(both) > n / 2 and same < len(both) / 4


def test_the_resumable_state_is_saved_after_every_epoch(data, tmp_path, monkeypatch):
    found = []
    start = Classifier.on_train_epoch_start

    def look(self):
        file = tmp_path / "tiny" / "fold0" / "last.ckpt"
        found.append(torch.load(file, weights_only=True)["epoch"] if file.is_file() else None)
        start(self)

    monkeypatch.setattr(Classifier, "on_train_epoch_start", look)
    fit_fold(replace(PLAIN, epochs=4), data, 0, tmp_path, options=SILENT)
    assert found == [None, 0, 1, 2]


@pytest.mark.parametrize(("model", "args"), [("vit_tiny_patch16_224", VIT), (TINY.model, TINY.model_args)])
def test_what_is_validated_is_what_the_checkpoint_answers(tiny_table, tmp_path, model, args):
    """Accuracy and loss of the last epoch, the out-of-fold file and a plain loop over the checkpoint agree.

    With an average of the weights, a last batch of another size, a network with a mean and std of its own, and a noise
    report that says other labels for validation rows, which must not be heeded.
    """
    table = TrainTable(tiny_table.frame.iloc[:-1].reset_index(drop=True), tiny_table.image_dir, ())
    data = TrainData(table, split_folds(table.frame, n_splits=2, seed=0))
    fold = next(k for k in range(2) if len(data.folds.validation(k)) % 2)
    held_out = data.folds.validation(fold)
    report = data.folds.frame[["image_id", "label"]].copy()
    wrong = report["image_id"].isin(held_out["image_id"][::5])
    report["suggested_label"] = np.where(wrong, (report["label"] + 1) % 5, report["label"])
    report["label_quality"], report["keep"] = np.where(wrong, 0.1, 0.9), ~wrong
    report.to_csv(tmp_path / "clean.csv", index=False)
    config = replace(
        TINY, model=model, model_args=args, ema=0.95, epochs=4, batch_size=16, lr=5e-3, augmentation="none"
    )
    options = dataclasses.replace(SILENT, clean=tmp_path / "clean.csv", clean_action="flip")
    result = fit_fold(config, data, fold, tmp_path / "runs", options=options)

    network = timm.create_model(model, num_classes=5, **args)
    network.load_state_dict(load_file(result.checkpoint))
    network.eval()
    statistics = network.pretrained_cfg["mean"], network.pretrained_cfg["std"]
    losses, right, answers = [], [], []
    for name, label in zip(held_out["image_id"], held_out["label"], strict=True):
        pixels = torch.from_numpy(copy.copy(load_image(table.image_dir / name, (32, 32)))).permute(2, 0, 1)[None]
        with torch.no_grad():
            p = network(normalised(pixels, statistics)).softmax(dim=1)[0].double()
        losses.append(-math.log(p[label]))
        right.append(int(p.argmax()) == label)
        answers.append(p.numpy())
    last = pd.read_csv(result.run_dir / "metrics.csv").iloc[-1]
    assert last["val_loss"] == pytest.approx(np.mean(losses), abs=2e-4)
    assert last["val_accuracy"] == pytest.approx(np.mean(right), abs=1e-5) and len(right) % 2
    for k in range(5):
        assert last[f"val_share_{k}"] == pytest.approx(np.mean([p.argmax() == k for p in answers]), abs=1e-5)
    oof = pd.read_csv(result.oof_file).set_index("image_id").loc[held_out["image_id"], [f"p{k}" for k in range(5)]]
    assert np.abs(oof.to_numpy() - np.array(answers)).max() < 1e-4
    assert result.score.accuracy == pytest.approx(np.mean(right))
