# ruff: noqa: F821, E402 - the included cells define these names
# %% [markdown]
# # {title}: train one recipe over folds
#
# Trains a network on each fold of a split that keeps near-duplicates together, and judges it by the images that each
# fold held out: curves, confusion matrix, recall of each class, the worst mistakes, and the score with its error.
#
# **Needs:** the competition [{slug}](https://www.kaggle.com/competitions/{slug}), the dataset of
# Cassava Kit, and the accelerator GPU T4 x2. No internet. **Leaves:** `runs/` with a checkpoint and the out-of-fold
# predictions of each fold, and `folds/`.
#
# A session that runs out of time loses nothing: attach this notebook's output to itself and run it again.

# %% [markdown]
# ## 1. Parameters

# %%
# Recipe by name (`cassava-kit recipes` lists them), or any timm model as "timm:NAME".
RECIPE = "resnet50"
# Folds to train in this session.
FOLDS = [0, 1, 2, 3, 4]
# Number of folds of the split, and the seed of its shuffle.
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
# A noise report of `cassava-kit clean` in what is attached: which training rows are left out.
CLEAN = ""
# Changes to the recipe, as for `cassava-kit train --set`, e.g. ["epochs=12", "image_size=384"].
SET = []
# A finished fold that was trained with other files, settings or code ends the run, unless it is to "replace" it, or to
# "keep" it where only the code differs. Another name in SET (name=...) trains beside it.
EXISTING = ""

# %% [markdown]
# ## 2. Set-up
# The folded cell holds the names of the competition's files. The cell after it installs the kit from its dataset.

# %%
# include: settings

# include: ../start.py

# %%
# include: ../kit.py

# %% [markdown]
# ## 3. The split
# Stratified folds; the same parameters give the same split, byte for byte, in every session.

# %%
from cassava_kit.kaggle.session import Session, are_joinable, share_gpus, train_folds
from cassava_kit.training.recipes import recipe, run_name

# The name of the run's folder; a wrong RECIPE or SET raises here.
NAME = RECIPE if RECIPE == "logreg" else run_name(recipe(RECIPE).with_settings(SET))
SESSION = Session(INPUT, OUTPUT, STARTED, TIME_LIMIT)
DATA = competition_folder(*SETTINGS["train_files"])
RUNS, SPLITS = OUTPUT / "runs", OUTPUT / "folds"
SESSION.take_up(RUNS)
SESSION.take_up(SPLITS)
SPLIT = SPLITS / f"kfold{N_SPLITS}-seed{SEED}{'-groups' if GROUPS else ''}.csv"
GROUPING = "--groups" if GROUPS else "--no-groups"
OPTIONS = ["--data", DATA, "--n-splits", N_SPLITS, "--seed", SEED, GROUPING, "--out", SPLIT]
if not SPLIT.is_file() and not SESSION.run(["folds", *OPTIONS]):
    raise RuntimeError("the folds were not made; see above")

# %% [markdown]
# ## 4. Training
# One fold on each GPU at a time. The curves are drawn anew while the folds train.

# %%
import torch

from cassava_kit.report.notebook.fold_pictures import FoldPictures, LiveCurves
from cassava_kit.report.notebook.show import show

EACH, GPUS = share_gpus(torch.cuda.device_count() if torch.cuda.is_available() else 0, GPUS_PER_FOLD)
COMMAND = ["train", RECIPE, "--data", DATA, "--folds", SPLIT, "--out", RUNS]
for option, file in {"--weights": SESSION.find_file(WEIGHTS), "--clean": SESSION.find_file(CLEAN)}.items():
    COMMAND += [option, file] if file else []
COMMAND += [part for setting in SET for part in ("--set", setting)]
if RECIPE != "logreg":
    COMMAND += ["--workers", WORKERS, *([f"--{EXISTING}"] if EXISTING else [])]
if EACH > 1:
    COMMAND += ["--devices", EACH, "--strategy", "ddp"]
ENDED = train_folds(SESSION, COMMAND, FOLDS, gpus=GPUS, watch=LiveCurves(RUNS / NAME))
print({fold: "ended" if well else "NOT ENDED" for fold, well in ENDED.items()})
if not any(ENDED.values()):
    raise RuntimeError("no fold ended; see above")
if all(ENDED.values()) and are_joinable(RUNS / NAME, N_SPLITS):
    SESSION.run(COMMAND)  # joins the folds that are there
else:
    # Joining would train folds again that nobody asked for.
    print(f"not joined: not all {N_SPLITS} folds are there with the same settings, files, split and kit version")

# %% [markdown]
# ## 5. The score, out of fold
# Every image is judged by the network that has not seen it.

# %%
PICTURES = FoldPictures(RUNS / NAME, SPLIT, DATA)
show(PICTURES.table)

# %% [markdown]
# ## 6. Which classes are confused?
# Rows of the matrix are given labels; each row sums to 100 %.

# %%
show(PICTURES.confusion)

# %% [markdown]
# ## 7. The worst mistakes
# The given labels that the network finds least probable. Look closely: some of these labels may be wrong.

# %%
show(PICTURES.mistakes, 12)

# %% [markdown]
# ## Next
# Fetch what this notebook left (`python submit.py fetch --kernel train-folds`), then at home:
#
# - `cassava-kit report runs --folds folds/... --data DIR` compares runs and says which difference is proved;
# - `cassava-kit clean --oof ...` lists labels that may be wrong, `cassava-kit review` shows them;
# - `cassava-kit ensemble --oof ...` weighs several recipes;
# - `python submit.py package` and `python submit.py submit` take them to Kaggle.
