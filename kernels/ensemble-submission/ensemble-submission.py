# ruff: noqa: F821, E402 - the included cells define these names
# %% [markdown]
# # {title}: ensemble submission
#
# Predicts every test image with an ensemble of networks, offline, within the time limit, and writes `submission.csv`.
# A valid file is there within the first second; everything after that only makes it better. At the end: what was
# planned, which networks voted, what they say of some test images, and where the time went.
#
# **Needs:** the competition [{slug}](https://www.kaggle.com/competitions/{slug}), the datasets of
# Cassava Kit and of its weights, and the accelerator GPU T4 x2. No internet. **Leaves:** `submission.csv`, `run.json`.

# %% [markdown]
# ## 1. Parameters

# %%
# Test images that are shown under the result; 0: no pictures. They come after the file is safe and take 10 s at most.
N_SHOWN = 12

# %% [markdown]
# ## 2. A valid submission first
# The folded cell holds the names of the competition's files. The cell after it answers the most frequent class (or the
# class shares, where probabilities are asked) for every test image, with nothing but Python's standard library.

# %%
# include: settings

# include: ../start.py

# include: ../ids.py

# %%
SUBMISSION, PART = OUTPUT / "submission.csv", OUTPUT / "submission.csv.part"
DATA = competition_folder(*SETTINGS["test_files"])
IMAGES = DATA / SETTINGS["test_images"]
IDS = listed_ids(DATA / SETTINGS["test_table"]) if SETTINGS["test_table"] else image_ids(IMAGES)
with PART.open("w", newline="", encoding="utf-8", errors="surrogateescape") as file:
    file.writelines(map(csv_line, [SETTINGS["columns"], *([image_id, *SETTINGS["answer"]] for image_id in IDS)]))
PART.replace(SUBMISSION)
print(f"{len(IDS)} images in {IMAGES}; {SUBMISSION} holds the most frequent class for now")

# %% [markdown]
# ## 3. Install the kit and find the weights

# %%
# include: ../kit.py

# %%
WEIGHTS, MANIFEST = find_manifest("WEIGHTS_MANIFEST.json")
DAMAGED = damaged_files(WEIGHTS, MANIFEST, only="ensemble.json")
if DAMAGED:
    raise RuntimeError(f"{WEIGHTS} is damaged: {DAMAGED}; upload the weights again")
print(f"{len(MANIFEST['files']) - 1} checkpoints, build {MANIFEST['build_id'][:12]}")

# %% [markdown]
# ## 4. Predict
# The run times every network on real images, plans what fits into the time, and replaces the file again and again. A
# damaged checkpoint is left out and named; the others still make the submission.

# %%
from cassava_kit.data.to_predict import read_test
from cassava_kit.inference.run import run_submission

NAMES = read_test(DATA, check_links=False).names
REPORT = run_submission(IMAGES, WEIGHTS, SUBMISSION, time_limit=TIME_LIMIT, started=STARTED, names=NAMES)

# %% [markdown]
# ## 5. Check the file as Kaggle would

# %%
from cassava_kit.inference.submission import check_answers

print(check_answers(SUBMISSION, NAMES))
print(f"done in {time.time() - STARTED:.0f} s")

# %% [markdown]
# ## 6. What was done, and what it looks like
# The file is safe. Whatever happens below, the submission stands.

# %%
try:
    from cassava_kit.report.notebook.submission_pictures import show_submission

    show_submission(REPORT, IMAGES, weights=WEIGHTS, out=SUBMISSION, n=N_SHOWN)
except Exception as error:  # a picture must not cost the submission
    print(f"nothing is shown: {type(error).__name__}: {error}")
