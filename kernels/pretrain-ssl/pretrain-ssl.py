# ruff: noqa: F821, E402 - the included cells define these names
# %% [markdown]
# # {title}: pretraining without labels
#
# Trains a backbone on the training images without their labels, for `WEIGHTS` of the notebook **train-folds**. It
# learns to recognise two views of one image. The labels only measure, by nearest neighbours, whether that helps.
#
# **Needs:** the competition [{slug}](https://www.kaggle.com/competitions/{slug}), the dataset of
# Cassava Kit, and the accelerator GPU T4 x2; both GPUs work on every batch. No internet. **Leaves:**
# `pretrain-METHOD/backbone.safetensors`.
#
# A session that runs out of time loses nothing: attach this notebook's output to itself and run it again.

# %% [markdown]
# ## 1. Parameters

# %%
# Method or recipe: byol, simclr, moco, swav, or one of the small ones, e.g. "small_simclr".
METHOD = "byol"
# Changes to the method's settings, as for `cassava-kit pretrain --set`, e.g. ["epochs=100", "batch_size=128"].
SET = []

# %% [markdown]
# ## 2. Set-up
# The folded cell holds the names of the competition's files. The cell after it installs the kit from its dataset.

# %%
# include: settings

# include: ../start.py

# %%
# include: ../kit.py

# %% [markdown]
# ## 3. Pretraining

# %%
import torch

from cassava_kit.kaggle.session import Session
from cassava_kit.report.notebook import pretrain_pictures as pictures
from cassava_kit.report.notebook.show import show

SESSION = Session(INPUT, OUTPUT, STARTED, TIME_LIMIT)
DATA = competition_folder(*SETTINGS["train_files"])
RUN = OUTPUT / f"pretrain-{METHOD}"
SESSION.take_up(RUN)
DEVICES = [f"devices={torch.cuda.device_count()}"] if torch.cuda.device_count() > 1 else []
OPTIONS = [part for setting in [*DEVICES, *SET] for part in ("--set", setting)]
ENDED = SESSION.run(["pretrain", METHOD, "--data", DATA, "--out", RUN, *OPTIONS])
if not ENDED:
    raise RuntimeError("pretraining did not end; see above")

# %% [markdown]
# ## 4. Did it learn, or did it collapse?
# A falling loss alone proves nothing: an encoder that maps every image to one point has a low loss too. Spread and
# effective rank of the embeddings then fall to the broken line. The kNN probe asks whether neighbours share a label.

# %%
show(pictures.pretraining_curves, RUN)

# %% [markdown]
# ## 5. What it was shown
# Each column is one image and two of the views cut from it. The network must recognise the two as one image.

# %%
show(pictures.view_pairs, RUN, DATA, 4)

# %% [markdown]
# ## 6. Nearest neighbours before and after
# The five images that the backbone finds most alike; a green frame: the same label, an orange one: another label.

# %%
show(pictures.neighbours, RUN, DATA)

# %% [markdown]
# ## Next
# `python submit.py push --kernel train-folds --attach pretrain-ssl --param WEIGHTS=backbone.safetensors` trains folds
# from this backbone. `cassava-kit ssl-report` says whether it is better than random weights, on the same folds.
