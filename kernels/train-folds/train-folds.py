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
# Loader processes for each GPU; the session has four cores.
WORKERS = 2
# A weights file in what is attached (a dataset, or what pretrain-ssl left); timm cannot download any here.
WEIGHTS = ""
# A noise report of `python -m cassava_kit clean` in what is attached: which training rows are left out.
CLEAN = ""
# Changes to the recipe, as for `python -m cassava_kit train --set`.
SET = []
# A finished fold that was trained with other files, settings or code ends the run, unless it is to "replace" it, or to
# "keep" it where only the code differs. Another name in SET (name=...) trains beside it.
EXISTING = ""

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

from cassava_kit.training.recipes import recipe, run_name

# The name of the run's folder; a wrong RECIPE or SET raises here.
NAME = RECIPE if RECIPE == "logreg" else run_name(recipe(RECIPE).with_settings(SET))
DATA = competition_folder(SETTINGS["train_csv"], SETTINGS["train_images"])
RUNS, SPLITS = OUTPUT / "runs", OUTPUT / "folds"
SPLIT = SPLITS / f"kfold{N_SPLITS}-seed{SEED}{'-groups' if GROUPS else ''}.csv"
take_up(RUNS)
take_up(SPLITS)
groups = "--groups" if GROUPS else "--no-groups"
if not SPLIT.is_file() and not run(
    ["folds", "--data", DATA, "--n-splits", N_SPLITS, "--seed", SEED, groups, "--out", SPLIT]
):
    raise RuntimeError("the folds were not made; see above")
FILES = {"--weights": find_file(WEIGHTS), "--clean": find_file(CLEAN)}
GIVEN = [part for option, file in FILES.items() if file for part in (option, file)]
COUNT = torch.cuda.device_count() if torch.cuda.is_available() else 0
# The same number for every fold: it is part of what identifies a run.
EACH = min(GPUS_PER_FOLD, COUNT or GPUS_PER_FOLD)
FREE = SimpleQueue()
for index in range(0, COUNT - EACH + 1, EACH):
    FREE.put(list(range(index, index + EACH)))
if not COUNT:
    FREE.put([])  # the processor, for a rehearsal at home


def train(fold=None, gpus=()):
    """Train one fold; without one, join those that are there."""
    options = [*GIVEN, *(part for one in SET for part in ("--set", one))]
    if RECIPE != "logreg":
        options += ["--workers", WORKERS, *([f"--{EXISTING}"] if EXISTING else [])]
    if EACH > 1:
        options += ["--devices", EACH, "--strategy", "ddp"]
    options += [] if fold is None else ["--fold", fold]
    return run(["train", RECIPE, "--data", DATA, "--folds", SPLIT, "--out", RUNS, *options], gpus)


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


def kind(fold):
    """Return settings, given files, split, code and version of a fold's finished run; None where there is none."""
    files = [RUNS / NAME / f"fold{fold}" / name for name in ("run.json", "config.json", "oof.json")]
    if not all(file.is_file() for file in files):
        return None
    done, config, header = (json.loads(file.read_text(encoding="utf-8")) for file in files)
    code = (done.get("fingerprint") or {}).get("code")
    return done.get("given"), config, header["fold_hash"], code, header["kit_version"]


KINDS = [kind(fold) for fold in range(N_SPLITS)]
if all(ENDED) and None not in KINDS and all(each == KINDS[0] for each in KINDS):
    train()
else:
    # Joining would train folds again that nobody asked for.
    print(f"not joined: not all {N_SPLITS} folds are there with the same settings, files, split and kit version")
