# ruff: noqa: F821, E402 - the included cells define these names
# %% [markdown]
# # Self-supervised pretraining
# A backbone from the training images without their labels, for `train --weights`. Both GPUs work on every batch.

# %%
METHOD = "byol"
# Changes to the method's settings, as for `python -m cassava_kit pretrain --set`.
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
import torch

DATA = competition_folder(SETTINGS["train_csv"], SETTINGS["train_images"])
RUN = OUTPUT / f"pretrain-{METHOD}"
take_up(RUN)
DEVICES = [f"devices={torch.cuda.device_count()}"] if torch.cuda.device_count() > 1 else []
options = [part for one in [*DEVICES, *SET] for part in ("--set", one)]
if not run(["pretrain", METHOD, "--data", DATA, "--out", RUN, *options]):
    raise RuntimeError("pretraining did not end; see above")
