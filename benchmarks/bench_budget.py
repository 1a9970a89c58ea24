"""Labels at a share of an ensemble's cost, the kit's own choices replayed on out-of-fold answers. Entry point: `main`.

Members are those of out-of-fold files, passes that a 14th place's answers could be the mean of, and linear heads on a
pretrained network at three sizes; the last two where the real tables and weights are at hand. Nothing is timed.

    python benchmarks/bench_budget.py [--oof runs/*/oof.csv --folds folds/kfold5.csv]
"""

from __future__ import annotations

import argparse
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pandas as pd
import timm
import torch
from bench_inference import BATCH, MEAN, STD, real_data
from replayed_votes import simulate_votes

from cassava_kit.data.transforms import normalize
from cassava_kit.inference.fuse import fuse_conv_bn
from cassava_kit.inference.pixels import PixelStore
from cassava_kit.inference.planner import Plan, choose_rows, order_units
from cassava_kit.inference.tta import make_views
from cassava_kit.inference.votes import Votes

RANK14_ROWS = 5000
RIDGE = 0.3


def main() -> None:
    """Print the shares of each ensemble at hand."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--oof", nargs="*", type=Path, default=[], help="members' out-of-fold files, at least two")
    parser.add_argument("--folds", type=Path, help="their fold file")
    print_budgets(parser.parse_args())


def print_budgets(arguments: argparse.Namespace) -> None:
    """Print labels at shares of the full cost, on out-of-fold answers of real members."""
    if len(arguments.oof) >= 2 and arguments.folds is not None:
        from cassava_kit.data.folds import read_folds
        from cassava_kit.evidence.oof import read_evidence

        evidence = read_evidence(arguments.oof, read_folds(arguments.folds))
        tell_budget("given members", evidence.pred_probs, evidence.labels, np.ones(len(evidence.names)))
    root = real_data()
    if (root / "tables" / "oof_rank14.csv").is_file():
        tell_budget("rank 14, 10 members x 4 views", *rank14_members(root))
    if (root / "weights").is_dir():
        tell_budget("MobileNetV2 at 96, 128 and 160 px x 4 views", *real_members(root / "cassava", root / "weights"))


def tell_budget(name: str, p: np.ndarray, labels: np.ndarray, costs: np.ndarray) -> None:
    """Print the share of the full ensemble's labels at shares of its cost, and the certified stop; p (U, N, K)."""
    weights = np.full(len(p), 1 / len(p))
    full = p.mean(0).argmax(1)
    print(f"{name}: {len(p)} units, {p.shape[1]} images, accuracy of all {100 * np.mean(full == labels):.2f} %")
    for share in (0.1, 0.2, 0.5, 1.0):
        answers = replay(p, weights, costs, share)
        kept, right = 100 * np.mean(answers == full), 100 * np.mean(answers == labels)
        print(f"  {100 * share:3.0f} % of the cost: {kept:.2f} % of the labels, accuracy {right:.2f} %", flush=True)
    order = np.argsort(-weights / costs, kind="stable")
    answers, used = simulate_votes(p, weights, order, certified=True)
    changed = int((answers != full).sum())
    print(f"  certified stop: {len(p) / used:.1f} x fewer votes, {changed} labels changed")


def rank14_members(root: Path) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Forty passes that a 14th place's out-of-fold answers could be the mean of: noise by member and by view."""
    answers = pd.read_csv(root / "tables" / "oof_rank14.csv").set_index("image_id").sample(RANK14_ROWS, random_state=0)
    labels = pd.read_csv(root / "tables" / "train.csv").set_index("image_id")["label"].reindex(answers.index)
    logits = np.log(np.clip(answers[[f"c{k}" for k in range(5)]].to_numpy(float), 1e-6, None))
    rng = np.random.default_rng(0)
    noisy = logits + rng.normal(0, 0.5, (10, 1, *logits.shape)) + rng.normal(0, 0.3, (10, 4, *logits.shape))
    p = np.exp(noisy - noisy.max(-1, keepdims=True)).reshape(40, *logits.shape)
    return p / p.sum(-1, keepdims=True), labels.to_numpy(int), np.ones(40)


@torch.inference_mode()
def real_members(data: Path, weights: Path) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Out-of-fold answers (12, N, K) of linear heads on a pretrained network at three sizes, through four flips."""
    from sklearn.model_selection import StratifiedKFold

    table = pd.read_csv(data / "train.csv")
    labels, paths = table["label"].to_numpy(), [data / "train_images" / name for name in table["image_id"]]
    model = timm.create_model("mobilenetv2_100", pad_type="same", num_classes=0).eval()
    state = torch.load(next(weights.glob("mobilenetv2_100*.pth")), weights_only=True)
    model.load_state_dict({key: value for key, value in state.items() if not key.startswith("classifier")})
    fuse_conv_bn(model, (96, 96))
    model = model.to(memory_format=torch.channels_last)
    folds = list(StratifiedKFold(5, shuffle=True, random_state=0).split(labels, labels))
    units, costs = [], []
    for side in (96, 128, 160):
        features: list[list[np.ndarray]] = [[] for _ in range(4)]
        with PixelStore(paths, [(side, side)], keep=False) as store:
            for batch in store.batches(np.arange(len(paths)), (side, side), BATCH):
                images = normalize(batch.pixels.permute(0, 3, 1, 2), MEAN, STD)
                for found, view in zip(features, make_views("flips"), strict=True):
                    found.append(model(view(images)).numpy()[: len(batch.rows)])
        seen = [np.concatenate(found) for found in features]
        centre, scale = seen[0].mean(axis=0), seen[0].std(axis=0) + 1e-6
        scores = np.zeros((4, len(labels), 5))
        for train, held_out in folds:
            x, y = (seen[0][train] - centre) / scale, np.eye(5)[labels[train]]
            # Ridge regression in its dual form: fewer rows than features.
            dual = np.linalg.solve(x @ x.T + RIDGE * x.shape[1] * np.eye(len(x)), y - y.mean(0))
            for found, view_features in zip(scores, seen, strict=True):
                found[held_out] = (view_features[held_out] - centre) / scale @ (x.T @ dual) + y.mean(0)
        units += list(confident_as_right(scores, labels))
        costs += [float(side**2)] * 4
    return np.stack(units), labels, np.array(costs) / costs[0]


def confident_as_right(scores: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Scores (V, N, K) as probabilities that are as sure on the whole as the plain view is right."""
    right = (scores[0].argmax(1) == labels).mean()
    for scale in np.geomspace(1, 200, 60):
        p = np.exp(scale * (scores - scores.max(-1, keepdims=True)))
        p /= p.sum(-1, keepdims=True)
        if p[0].max(1).mean() >= right:
            break
    return p


def replay(p: np.ndarray, weights: np.ndarray, costs: np.ndarray, share: float) -> np.ndarray:
    """Labels (N,) when only `share` of the full cost may be spent; p (U, N, K)."""
    n_images = p.shape[1]
    units: Any = [
        SimpleNamespace(checkpoint=SimpleNamespace(name=str(u)), view=SimpleNamespace(name="plain"), worth=w, weight=w)
        for u, w in enumerate(weights)
    ]
    left = share * n_images * float(costs.sum())
    plan = order_units(Plan(tuple(units), costs, n_images, left=left))
    votes = Votes(n_images, weights, np.full(p.shape[2], 1 / p.shape[2]))
    while True:
        worked = False
        for u in plan.order:
            rows = choose_rows(votes, plan, u, left=left, certified=True)[: int(left / costs[u] + 1e-9)]
            if len(rows):
                votes.add(u, rows, p[u, rows])
                left -= len(rows) * costs[u]
                worked = True
        if not worked:
            return votes.labels()


if __name__ == "__main__":
    main()
