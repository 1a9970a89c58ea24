"""A linear probe as a member: a frozen network's features, a logistic regression as its head; `fit_probe`."""

from __future__ import annotations

import copy
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from cassava_kit.data.folds import TEST
from cassava_kit.data.images import quick_check
from cassava_kit.data.progress import tell, track
from cassava_kit.errors import UserError
from cassava_kit.files import CHECKPOINT_FILE, cache_dir
from cassava_kit.inference.features import FEATURE_CHUNK, Pixels, extract_views
from cassava_kit.models.checkpoint import save_checkpoint
from cassava_kit.models.network import (
    args_for_size,
    check_image_size,
    classifier_names,
    create_model,
    image_statistics,
    meta_model,
)
from cassava_kit.models.weights import find_weights_file, load_weights
from cassava_kit.training.checks import check_table, check_weights
from cassava_kit.training.config import ProbeConfig
from cassava_kit.training.linear import choose_penalty, fit_linear, linear_head
from cassava_kit.training.recipes import run_name
from cassava_kit.training.rows import TrainData, TrainOptions, usable_rows
from cassava_kit.training.run_dir import (
    FoldResult,
    checkpoint_info,
    find_reusable,
    finish,
    prepare_run_dir,
    read_finished,
    run_fingerprint,
    write_oof_answers,
)
from cassava_kit.training.side_by_side import cpu_share, use_threads
from cassava_kit.training.sources import PROBE_ROOTS

if TYPE_CHECKING:
    import torch
    from torch import nn


@dataclass(frozen=True)
class Features:
    """A frozen network, and its features (V, N, D) of every readable row of the split; the others' are zeros."""

    network: nn.Module
    values: np.ndarray
    readable: np.ndarray


def fit_probe(config: ProbeConfig, data: TrainData, fold: int, out: Path, *, options: TrainOptions) -> FoldResult:
    """Fit a probe on all folds but one, predict that one, and write `out/<run name>/fold<k>/` as `fit_fold` does.

    `options.weights` are the network's weights; `options.existing` says what is done with a run that differs. The
    checkpoint is an ordinary one: the network, with the regression as its last layer.

    Raises:
        UserError: The weights, the image size or the table do not fit, the network has no linear classifier, or another
            run would be replaced.
    """
    check_probe(config, data, [fold], options)
    run_dir = out / run_name(config) / f"fold{fold}"
    wanted = run_fingerprint(config, data, fold, options, roots=PROBE_ROOTS)
    done = find_reusable(run_dir, wanted, options)
    if done is not None:
        return done
    started = time.perf_counter()
    with use_threads(options.threads or cpu_share(1)):
        features = network_features(config, data, options)
        weights, biases, c = fit_head(features, data, fold)
    wanted = prepare_run_dir(run_dir, config, wanted, keep=options.existing == "keep")
    network = features.network
    training, _, _ = usable_rows(data, fold, None)
    info = checkpoint_info(config, data, fold, statistics=image_statistics(network), training=training)
    save_checkpoint(run_dir / CHECKPOINT_FILE, with_head(network, weights, biases), info)
    held_out = (data.folds.frame["fold"] == fold).to_numpy()
    logits = features.values[0, held_out] @ weights.T + biases
    answers = np.exp(logits - logits.max(axis=1, keepdims=True))
    answers /= answers.sum(axis=1, keepdims=True)
    answers[~features.readable[held_out]] = info.prior
    right = write_oof_answers(run_dir, info, data, answers)
    seconds = round(time.perf_counter() - started, 3)
    facts = {"fingerprint": wanted, "seconds": seconds, "given": options.describe(), "c": c}
    finish(run_dir, info, right, held_out=data.paths(data.folds.validation(fold)), facts=facts)
    result = read_finished(run_dir)
    assert result is not None
    return replace(result[0], reused=False)


def check_probe(config: ProbeConfig, data: TrainData, folds: Sequence[int], options: TrainOptions) -> None:
    """Refuse what cannot be probed, before any image is read.

    Raises:
        UserError: There are no weights, they do not fit or know labels, or the network has no linear classifier.
        FileNotFoundError: There is no weights file.
    """
    from torch import nn

    check_table(data)
    if options.weights is None:
        raise UserError("a probe is of trained weights: give them by --weights FILE")
    find_weights_file(options.weights)
    check_image_size(config.model, config.image_size, config.model_args)
    args = args_for_size(config.model, config.image_size, config.model_args)
    network, _ = meta_model(config.model, config.image_size, model_args=args)
    classifiers = [network.get_submodule(name) for name in classifier_names(network)]
    if not all(isinstance(each, nn.Linear) and each.bias is not None for each in classifiers):
        raise UserError(f"{config.model} has no linear classifier, which a probe takes the place of; choose another")
    check_weights(config, data, folds, options.weights)


def network_features(config: ProbeConfig, data: TrainData, options: TrainOptions) -> Features:
    """Return the frozen network with its weights, and its features of the split's images through the probe's views.

    They are kept in the cache folder, and read back when the same images are asked for again.
    """
    from torch import nn

    from cassava_kit.inference.machine import usable_devices

    assert options.weights is not None
    args = args_for_size(config.model, config.image_size, config.model_args)
    network = create_model(config.model, data.competition.n_classes, model_args=args).eval()
    report = load_weights(network, options.weights)
    tell(f"{options.weights.name}: {report}")
    backbone = copy.deepcopy(network)
    for name in classifier_names(backbone):
        backbone.set_submodule(name, nn.Identity())
    backbone.to(usable_devices("auto")[0])
    pixels = Pixels(config.image_size, *image_statistics(network))
    paths = data.paths(data.folds.frame)
    asked = (data.folds.frame["fold"] != TEST).to_numpy()
    readable = np.array([ask and quick_check(path) is None for ask, path in zip(asked, paths, strict=True)])
    whole = [path for path, good in zip(paths, readable, strict=True) if good]
    if not whole:
        raise UserError(f"no readable training image in {data.table.image_dir}; check the download")
    parts = [
        extract_views(backbone, whole[k : k + FEATURE_CHUNK], pixels, config.views, cache=cache_dir() / "features")
        for k in track(range(0, len(whole), FEATURE_CHUNK), "Features")
    ]
    found = np.concatenate(parts, axis=1)
    values = np.zeros((len(found), len(paths), found.shape[2]), np.float32)
    values[:, readable] = found
    return Features(network, values, readable)


def with_head(network: nn.Module, weights: np.ndarray, biases: np.ndarray) -> dict[str, torch.Tensor]:
    """Return the network's tensors by name, with a regression (K, D), (K,) as each of its classifiers."""
    import torch

    state = dict(network.state_dict())
    for name in classifier_names(network):
        state[f"{name}.weight"] = torch.from_numpy(weights).float()
        state[f"{name}.bias"] = torch.from_numpy(biases).float()
    return state


def fit_head(features: Features, data: TrainData, fold: int) -> tuple[np.ndarray, np.ndarray, float]:
    """Return weights (K, D), biases (K,) and the inverse penalty of the regression without a fold.

    Each view of a training image is a row. The penalty is chosen on the split's other folds in turn, so that neither
    views nor near-duplicates of a row are on both sides; where there is one other fold, on stratified parts of it.

    Raises:
        UserError: The other folds have one class alone.
    """
    frame = data.folds.frame
    fold_of, every = frame["fold"].to_numpy(), frame["label"].to_numpy()
    rows = np.flatnonzero((fold_of != fold) & (fold_of != TEST) & features.readable)
    labels, parts = every[rows], fold_of[rows]
    if len(np.unique(labels)) < 2:
        raise UserError(f"the readable rows outside fold {fold} have one class alone; a regression needs two")
    if len(np.unique(parts[parts >= 0])) < 2:
        from sklearn.model_selection import KFold

        for k, (_, test) in enumerate(KFold(min(3, len(rows)), shuffle=True, random_state=0).split(rows)):
            parts[test] = k
    n_views = len(features.values)
    x = features.values[:, rows].reshape(n_views * len(rows), -1).astype(np.float64)
    labels, parts = np.tile(labels, n_views), np.tile(parts, n_views)
    c = choose_penalty(x, labels, parts=parts)
    weights, biases = linear_head(fit_linear(x, labels, c), data.competition.n_classes)
    return weights, biases, c
