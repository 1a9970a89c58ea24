# ruff: noqa: F821, E402 - the included cells define these names
# %% [markdown]
# # {title}: a first look at the images
#
# What the training images show before anything is trained: how often each class occurs, what its images look like,
# whether the test images resemble them, which photographs are there twice, and which have no label.
#
# **Needs:** the competition [{slug}](https://www.kaggle.com/competitions/{slug}) and the dataset of
# Cassava Kit. No GPU, no internet. **Leaves:** `classes.png`.

# %% [markdown]
# ## 1. Parameters

# %%
# Images of each class in the sheet of samples.
N_EACH = 6
# Random training and test images whose size and brightness are measured.
N_MEASURED = 2000
# The first rows of the table that are compared for near-duplicates; comparing all takes a few minutes.
N_DUPLICATES = 4000

# %% [markdown]
# ## 2. Set-up
# The folded cell holds the names of the competition's files. The cell after it installs the kit from its dataset.

# %%
# include: settings

# include: ../start.py

# %%
# include: ../kit.py

# %%
from cassava_kit.data.table import read_competition
from cassava_kit.data.to_predict import read_test
from cassava_kit.report.notebook import eda_pictures as pictures
from cassava_kit.report.notebook.show import show

DATA = competition_folder(*SETTINGS["train_files"])
TABLE = read_competition(DATA)
print(f"{len(TABLE.frame):,} labelled images, {len(TABLE.unlisted):,} images without a row")
print(f"{len(read_test(DATA).names):,} test images are mounted here; the hidden ones come later")

# %% [markdown]
# ## 3. How often does each class occur?
# Where one class is most of the table, a model that always answers it already scores its share: judge every score
# against that.

# %%
show(pictures.draw_class_shares, TABLE)

# %% [markdown]
# ## 4. What do the classes look like?

# %%
from cassava_kit.report.sheet import contact_sheet

show(pictures.class_sheet, TABLE, N_EACH)
print(contact_sheet(DATA, OUTPUT / "classes.png", columns=N_EACH))

# %% [markdown]
# ## 5. Sizes and brightness: do the test images resemble the training images?
# Another camera or crop in the test set shows here first.

# %%
show(pictures.sizes_and_brightness, DATA, N_MEASURED)

# %% [markdown]
# ## 6. Near-duplicates
# Two copies of a photograph in two folds let a model look its answers up, and the out-of-fold score promises too much.

# %%
show(pictures.copies, TABLE, N_DUPLICATES)

# %% [markdown]
# ## 7. Images that no row names

# %%
show(pictures.unlisted_images, TABLE)

# %% [markdown]
# ## Next
# Train: the notebook **train-folds** of the kit keeps near-duplicates in one fold (`GROUPS = True`). The notebook
# **pretrain-ssl** needs no labels and uses the images without a row too.
