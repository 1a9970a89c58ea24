# ruff: noqa: F821, E402 - the included cells define these names
# %% [markdown]
# # Ensemble submission
# Writes `submission.csv` for the images that are mounted, offline. Before anything can go wrong there is a valid
# file of the most frequent class; everything after that only makes it better.

# %%
# include: settings

# %%
# include: ../start.py

# %%
SUBMISSION = OUTPUT / "submission.csv"
IMAGES = competition_folder(SETTINGS["test_images"], SETTINGS["sample_submission"]) / SETTINGS["test_images"]
FILES = [entry.name for entry in os.scandir(IMAGES) if not entry.name.startswith(".")]
IDS = sorted(name for name in FILES if name.lower().endswith(tuple(SETTINGS["suffixes"])))


def csv_line(cells):
    """A line of CSV; a cell with a comma, a quote or a line's end (csv.writer misses the carriage return) in quotes."""
    cells = [str(cell) for cell in cells]
    quoted = ['"{}"'.format(cell.replace('"', '""')) if set(cell) & set(',"\r\n') else cell for cell in cells]
    return ",".join(quoted) + "\n"


PART = OUTPUT / "submission.csv.part"
WRITTEN = IDS if SETTINGS["ids_have_suffix"] else [name.rpartition(".")[0] for name in IDS]
with PART.open("w", newline="", encoding="utf-8", errors="surrogateescape") as file:
    file.writelines(map(csv_line, [SETTINGS["columns"], *([image_id, *SETTINGS["answer"]] for image_id in WRITTEN)]))
PART.replace(SUBMISSION)
print(f"{len(IDS)} images in {IMAGES}; {SUBMISSION} holds the most frequent class for now")

# %%
# include: ../bootstrap.py

# %%
# A damaged checkpoint is left out and named; the others still make the submission.
WEIGHTS, MANIFEST = find_manifest("WEIGHTS_MANIFEST.json")
LEFT_OUT = damaged_files(WEIGHTS, MANIFEST)
if "ensemble.json" in LEFT_OUT:
    raise RuntimeError(f"ensemble.json in {WEIGHTS} is {LEFT_OUT['ensemble.json']}; upload the weights again")
if LEFT_OUT:
    print("WARNING left out, damaged:", LEFT_OUT)
    whole, WEIGHTS = WEIGHTS, Path(tempfile.mkdtemp(prefix="weights-"))
    for entry in MANIFEST["files"]:
        if entry["name"] not in LEFT_OUT:
            (WEIGHTS / entry["name"]).symlink_to(whole / entry["name"])
print(f"{len(MANIFEST['files']) - 1 - len(LEFT_OUT)} checkpoints, build {MANIFEST['build_id'][:12]}")

# %%
from cassava_kit.inference.run import run_submission

TIME_LIMIT = float(os.environ.get("CASSAVA_KIT_TIME_LIMIT") or SETTINGS["time_limit"])
REPORT = run_submission(IMAGES, WEIGHTS, SUBMISSION, time_limit=TIME_LIMIT, started=STARTED)
for name, reason in {**REPORT.left_out, **LEFT_OUT}.items():
    print(f"WARNING {name} was left out: {reason}")

# %%
from cassava_kit.inference.submission import check_answers

print(check_answers(SUBMISSION, IMAGES))
print(f"done in {time.time() - STARTED:.0f} s")
