# ruff: noqa: F821, E402 - the included cells define these names
# %% [markdown]
# # A first look at the data
# Class shares, unlisted images, near-duplicates, and some images of every class.

# %%
# How many images are compared for near-duplicates; all of them take a few minutes.
N_DUPLICATES = 4000

# %%
# include: settings

# %%
# include: ../start.py

# %%
# include: ../bootstrap.py

# %%
from cassava_kit.competition import current
from cassava_kit.data.table import list_images, read_competition

DATA = competition_folder(SETTINGS["train_csv"], SETTINGS["train_images"])
TABLE = read_competition(DATA)
print(f"{len(TABLE.frame)} rows, {len(TABLE.unlisted)} unlisted images")
print(f"{len(list_images(DATA / SETTINGS['test_images']))} test images")
for label, share in TABLE.frame["label"].value_counts(normalize=True).sort_index().items():
    print(f"{label} {current().classes[label]:40} {share:6.1%}")

# %%
from cassava_kit.report.sheet import contact_sheet

print(contact_sheet(DATA, OUTPUT / "classes.png"))
from IPython.display import Image, display

display(Image(str(OUTPUT / "classes.png")))

# %%
from cassava_kit.data.duplicates import find_duplicates

PATHS = [TABLE.image_dir / name for name in TABLE.frame["image_id"][:N_DUPLICATES]]
GROUPS = find_duplicates(PATHS, progress=False)
print(f"{len(PATHS) - len(set(GROUPS))} of {len(PATHS)} images are near-duplicates of another")
