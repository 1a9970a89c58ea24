# ruff: noqa: F821, E402 - the included cells define these names
# %% [markdown]
# # Train folds
# One recipe, chosen folds, one fold on each GPU at a time, or every fold on both by DDP. A session that runs out of
# time loses nothing: attach this notebook's output to itself and run it again.

# %%
RECIPE = "resnet50"
FOLDS = [0, 1, 2, 3, 4]
N_SPLITS, SEED = 5, 42
# Near-duplicate photographs stay in one fold.
GROUPS = True
# 1: a fold on each GPU, nothing to synchronise, exact where data parallelism is not (BatchNorm, batch size).
# 2: every fold on both GPUs by DDP, for one fold sooner, or a batch that one GPU cannot hold.
GPUS_PER_FOLD = 1
# A weights file in what is attached (a dataset, or what pretrain-ssl left); timm cannot download any here.
WEIGHTS = ""
# A noise report of `python -m cassava_kit clean` in what is attached: which training rows are left out.
CLEAN = ""
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
RUNS, SPLITS = OUTPUT / "runs", OUTPUT / "folds"
SPLIT = SPLITS / f"kfold{N_SPLITS}-seed{SEED}{'-groups' if GROUPS else ''}.csv"
take_up(RUNS)
take_up(SPLITS)
groups = ["--groups"] if GROUPS else []
if not SPLIT.is_file() and not run(
    ["folds", "--data", DATA, "--n-splits", N_SPLITS, "--seed", SEED, *groups, "--out", SPLIT]
):
    raise RuntimeError("the folds were not made; see above")
FILES = {"--weights": find_file(WEIGHTS), "--clean": find_file(CLEAN)}
GIVEN = [part for option, file in FILES.items() if file for part in (option, file)]
COUNT = torch.cuda.device_count() if torch.cuda.is_available() else 0
FREE = SimpleQueue()
for index in range(0, COUNT, GPUS_PER_FOLD):
    FREE.put(list(range(index, min(index + GPUS_PER_FOLD, COUNT))))
if not COUNT:
    FREE.put([])  # the processor, for a rehearsal at home


def train(fold, gpus=()):
    """Train one fold, or with "all" join those that are there."""
    options = [*GIVEN, *(part for one in SET for part in ("--set", one))]
    if GPUS_PER_FOLD > 1 and len(gpus) in (0, GPUS_PER_FOLD):
        options += ["--devices", GPUS_PER_FOLD, "--strategy", "ddp"]
    return run(["train", RECIPE, "--data", DATA, "--folds", SPLIT, "--fold", fold, "--out", RUNS, *options], gpus)


def train_where_free(fold):
    """Train one fold where there are GPUs free."""
    gpus = FREE.get()
    try:
        return train(fold, gpus)
    finally:
        FREE.put(gpus)


with ThreadPoolExecutor(FREE.qsize()) as pool:
    ENDED = list(pool.map(train_where_free, FOLDS))
print({fold: "ended" if well else "NOT ENDED" for fold, well in zip(FOLDS, ENDED, strict=True)})
if not any(ENDED):
    raise RuntimeError("no fold ended; see above")
if len(list((RUNS / RECIPE).glob("fold*/oof.csv"))) == N_SPLITS and all(ENDED):
    train("all")
