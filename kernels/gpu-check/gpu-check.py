# ruff: noqa: F821, E402 - the included cells define these names
# %% [markdown]
# # {title}: check the GPUs in minutes
#
# Numbers in half precision, training speed, a submission run in little time and memory, and two processes: on random
# weights and drawn pictures, before hours of GPU time are spent.
#
# **Needs:** the competition [{slug}](https://www.kaggle.com/competitions/{slug}) (attached, not read), the dataset of
# Cassava Kit, and the accelerator GPU T4 x2. No internet. **Leaves:** `gpu.json`.

# %% [markdown]
# ## 1. Parameters

# %%
# What the check may take. Parts that do not fit are skipped by name.
MINUTES = 7.0

# %% [markdown]
# ## 2. Set-up
# The folded cell holds the names of the competition's files. The cell after it installs the kit from its dataset.

# %%
# include: settings

# include: ../start.py

# %%
# include: ../kit.py

# %% [markdown]
# ## 3. The check
# A table, and one line that says what passed. Without a GPU a processor stands in: every part runs on small networks,
# and speeds are not judged.

# %%
import torch

from cassava_kit.kaggle.session import Session

SESSION = Session(INPUT, OUTPUT, STARTED, TIME_LIMIT)
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
PASSED = SESSION.run(["gpu-check", "--out", OUTPUT, "--minutes", MINUTES, "--device", DEVICE])
if not (OUTPUT / "gpu.json").is_file():
    raise RuntimeError("the check left no file; see above")
print("all parts passed" if PASSED else "NOT ALL PARTS PASSED: the table above names them, and gpu.json has all of it")

# %% [markdown]
# ## Next
# Fetch the file (`python submit.py fetch --kernel gpu-check`). Then, at home, the hours that recipes take are counted
# from what was measured here:
#
# - `cassava-kit recipes --hours --gpu outputs/gpu-check/gpu.json`
# - `cassava-kit plan --hours 30 --gpu outputs/gpu-check/gpu.json`
