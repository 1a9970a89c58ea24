# ruff: noqa: F821, E402 - the included cells define these names
# %% [markdown]
# # Train folds
# One recipe, chosen folds, one fold on each GPU at a time. A session that runs out of time loses nothing: attach this
# notebook's output to itself and run it again.

# %%
RECIPE = "resnet50"
FOLDS = [0, 1, 2, 3, 4]
N_SPLITS, SEED = 5, 42
# Name of a weights file in an attached dataset; timm cannot download any here.
WEIGHTS = ""
# Changes to the recipe, as for `python -m cassava_kit train --set`.
SET = []

# %%
# include: settings

# %%
# include: ../start.py

# %%
# include: ../bootstrap.py

# %%
# include: ../commands.py

# %%
from concurrent.futures import ThreadPoolExecutor
from queue import SimpleQueue

import torch

DATA = competition_folder(SETTINGS["train_csv"], SETTINGS["train_images"])
RUNS, SPLIT = OUTPUT / "runs", OUTPUT / f"kfold{N_SPLITS}.csv"
take_up(RUNS)
if not run(["folds", "--data", DATA, "--n-splits", N_SPLITS, "--seed", SEED, "--out", SPLIT]):
    raise RuntimeError("the folds were not made; see above")
# One fold a GPU: nothing to synchronise, and exact where data parallelism is not (BatchNorm, batch size).
GPUS = SimpleQueue()
for index in range(torch.cuda.device_count()) if torch.cuda.is_available() else [None]:
    GPUS.put(index)


def train(fold, gpu=None):
    """Train one fold, or with "all" join those that are there."""
    first = find_file(WEIGHTS)
    options = [*(["--weights", first] if first else []), *(part for one in SET for part in ("--set", one))]
    return run(["train", RECIPE, "--data", DATA, "--folds", SPLIT, "--fold", fold, "--out", RUNS, *options], gpu)


def train_where_free(fold):
    """Train one fold on whichever GPU is free."""
    gpu = GPUS.get()
    try:
        return train(fold, gpu)
    finally:
        GPUS.put(gpu)


with ThreadPoolExecutor(GPUS.qsize()) as pool:
    ENDED = list(pool.map(train_where_free, FOLDS))
print({fold: "ended" if well else "NOT ENDED" for fold, well in zip(FOLDS, ENDED, strict=True)})
if not any(ENDED):
    raise RuntimeError("no fold ended; see above")
if len(list((RUNS / RECIPE).glob("fold*/oof.csv"))) == N_SPLITS and all(ENDED):
    train("all")
