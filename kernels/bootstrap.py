# ruff: noqa: F821 - the notebook that runs this file defines these names
"""Install the kit in a notebook, offline, and try the GPUs: run by the notebook's cell `kit.py`, from its dataset.

It needs the standard library alone: it runs before anything of ours is installed.
"""

import hashlib
import importlib
import importlib.metadata
import json
import os
import re
import sys
import tempfile
import zipfile
from pathlib import Path


def find_manifest(marker):
    """Return the one attached folder with the manifest `marker`, and its content."""
    found = [folder for folder in input_folders() if (folder / marker).is_file()]
    if len(found) != 1:
        listed = ", ".join(map(str, found)) or "none (just attached? start the notebook again)"
        raise FileNotFoundError(f"expected one dataset with {marker} in the input, found {listed}")
    manifest = json.loads((found[0] / marker).read_text(encoding="utf-8"))
    pinned = SETTINGS["builds"].get(marker)
    if pinned and pinned != manifest["build_id"]:
        raise RuntimeError(
            f"{found[0]} holds build {manifest['build_id'][:12]}, this notebook was made for {pinned[:12]}: the "
            "dataset is stale, still processing or another one; update the notebook's input to its latest version"
        )
    return found[0], manifest


def damaged_files(folder, manifest, only=""):
    """Return name -> reason for each listed file, or that one, that is missing or differs from what was packed."""
    damaged = {}
    for entry in manifest["files"]:
        path = folder / entry["name"]
        if only and entry["name"] != only:
            continue
        if not path.is_file():
            damaged[entry["name"]] = "missing"
        elif path.stat().st_size != entry["size"]:
            damaged[entry["name"]] = f"{path.stat().st_size} bytes instead of {entry['size']}"
        else:
            with path.open("rb") as file:
                if hashlib.file_digest(file, "sha256").hexdigest() != entry["sha256"]:
                    damaged[entry["name"]] = "content differs (sha256)"
    return damaged


def install(wheels):
    """Unpack pure wheels into a private folder, which leaves the image unchanged; return the places on the path.

    That is all that an installer does with a pure wheel whose hash is right, but for scripts, which no cell calls.
    Where there is no room for their files, they are imported from the wheels.
    """
    places = [target := tempfile.mkdtemp(prefix="kit-")]
    try:
        for wheel in wheels:
            with zipfile.ZipFile(wheel) as archive:
                archive.extractall(target)
    except OSError as error:
        print("the wheels could not be unpacked, importing from them:", error)
        places = [str(wheel) for wheel in wheels]
    sys.path[:0] = places
    os.environ["PYTHONPATH"] = os.pathsep.join([*places, *filter(None, [os.environ.get("PYTHONPATH")])])
    importlib.invalidate_caches()
    return places


def version_key(text):
    return tuple(int(part) for part in re.findall(r"\d+", text.split("+")[0])[:3])


def print_versions(tested):
    """Print each library's version, with a warning where it is outside the range that the kit was tested with."""
    print("python", sys.version.split()[0], "| cassava_kit", KIT["kit_version"], "build", KIT["build_id"][:12])
    for name, wanted in tested.items():
        try:
            version = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            print(f"WARNING {name} is not installed; the kit was tested with {wanted}")
            continue
        have, fits = version_key(version), True
        for operator, bound in re.findall(r"(>=|<=|==|!=|<|>)([^,]+)", wanted):
            limit = version_key(bound)
            fits &= {">=": have >= limit, "<=": have <= limit, "==": have == limit}.get(operator, True)
            fits &= {"!=": have != limit, "<": have < limit, ">": have > limit}.get(operator, True)
        print(name, version, "" if fits else f"WARNING: outside the tested range {wanted}")


def check_gpus():
    """Compute once on every GPU: training on one that does not work fails here and not hours later.

    A submission only warns: it runs on the devices that work, and a scored notebook that raises scores nothing.
    """
    import torch

    if not torch.cuda.is_available():
        print("no GPU: everything runs on the CPU")
    for index in range(torch.cuda.device_count()):
        name = torch.cuda.get_device_name(index)
        try:
            x = torch.ones(256, 256, device=f"cuda:{index}", dtype=torch.float16)
            ok = float((x @ x)[0, 0]) == 256.0
        except RuntimeError as error:
            message = f"this torch cannot use {name} ({error}); choose the accelerator GPU T4 x2"
            if "lightning" in SETTINGS["install"]:  # what trains
                raise RuntimeError(message) from error
            print("WARNING:", message)
            continue
        print(f"cuda:{index}", name, "works" if ok else "WARNING: computes wrongly")


KIT_FOLDER, KIT = find_manifest("KIT_MANIFEST.json")
if damaged := damaged_files(KIT_FOLDER, KIT):
    raise RuntimeError(f"the kit's dataset {KIT_FOLDER} is damaged: {damaged}; upload it again")
WHEELS = [KIT_FOLDER / KIT["wheels"][name] for name in SETTINGS["install"]]
PLACES = install(WHEELS)
# The competition's facts, for this process and the verbs that it starts.
FACTS = Path(tempfile.mkdtemp(prefix="competition-")) / "competition.json"
FACTS.write_text(json.dumps(SETTINGS["facts"]), encoding="utf-8")
os.environ["CASSAVA_KIT_COMPETITION"] = str(FACTS)
cassava_kit = importlib.import_module("cassava_kit")
if not str(cassava_kit.__file__).startswith(tuple(PLACES)):
    raise RuntimeError(f"another cassava_kit was imported, {cassava_kit.__file__}; restart the notebook")
print_versions(KIT["tested"])
check_gpus()
