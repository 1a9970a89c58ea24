"""Every block of README.md and docs/, typed in from top to bottom in an empty folder; Kaggle is the stub."""

import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from forked_python import interpreter
from gpu_report import gpu_report
from kaggle_stub import USER, Stub, environment, running
from PIL import Image
from processes import run_python
from safetensors.torch import save_file

from cassava_kit.data.sample.make import make_sample
from cassava_kit.models.checkpoint import read_info, save_checkpoint
from cassava_kit.models.weights import load_tensors

ROOT = Path(__file__).resolve().parents[2]
# In this order each page finds what the pages before it made, as they say.
PAGES = ("training", "self-supervision", "evidence", "noise", "inference", "formats", "kaggle", "another-competition")
PATHS = (ROOT / "README.md", *(ROOT / "docs" / f"{name}.md" for name in PAGES))
BLOCKS = [
    block
    for path in PATHS
    for block in re.findall(r"```bash\n(.*?)```", path.read_text(encoding="utf-8"), flags=re.DOTALL)
]
# What sets up an environment, fetches from the competition's own page, or takes minutes and has tests of its own.
ELSEWHERE = (
    "make ",
    "kaggle competitions ",
    "unzip ",
    "python submit.py ensemble ",
    "python -m cassava_kit recipes --hours",
)
# Networks are trained for two epochs; what they learn does not matter here.
EPOCHS = {
    "train small_resnet --data DIR --folds folds/kfold5.csv\n": " --set epochs=2 --name small_resnet",
    "train small_ssl_resnet": " --set epochs=2 --name small_ssl_resnet",
    "ablate small_resnet": " --set epochs=2",
    "pretrain small_simclr": " --set epochs=2",
}
# What bash alone understands: patterns, variables, pipes, several commands.
SHELL_SYNTAX = r"[*?~$`|&;<>(){}\[\]]"
# The runs that the stub gives back are those of the blocks before, under the names that Kaggle's would have.
TRAINED = {"resnet50": "bitempered", "ssl_transfer": "small_ssl_resnet", "efficientnet_b4": "bitempered"}


class Reader:
    """Someone with the pages, an empty folder and a competition's data."""

    def __init__(self, home: Path, stub: Stub) -> None:
        self.home, self.stub, self.typed, self.others = home, stub, set[str](), 0
        self.data = make_sample(home / "data" / "cassava", n_train=110, n_test=6)
        for path in self.data.rglob("*.jpg"):  # decoding would take most of the time
            Image.open(path).resize((160, 120)).save(path)

    def type_block(self, block: str) -> None:
        """The lines of a block, each once; a block that sets another competition up is typed in a folder of its own."""
        if "cassava_kit init" in block:
            self.others += 1
        folder = self.home / f"other{self.others}" if "cassava_kit init" in block else self.home
        folder.mkdir(exist_ok=True)
        for line in block.strip().splitlines():
            if not line.startswith(("#", *ELSEWHERE)) and line not in self.typed:
                self.typed.add(line)
                self.type(line, folder)

    def type(self, line: str, folder: Path) -> None:
        """One line of a block; it must end well."""
        words = line.replace("epochs=12", "epochs=2")
        words += "".join(added for start, added in EPOCHS.items() if start in f"{line}\n")
        words += " --yes" if "submit --bundle" in line else ""  # a reader at a terminal agrees
        words = words.replace("DIR", str(self.data)).replace("SLUG", "leaf-trouble")
        words = re.sub(r"\bNAME\b", USER, words)
        words = re.sub(r"^python submit\.py", f"{sys.executable} {ROOT / 'submit.py'}", words)
        words = re.sub(r"^python ", f"{sys.executable} ", words)
        words = re.sub(r"^kaggle ", f"{Path(sys.executable).parent / 'kaggle'} ", words)
        self.prepare(line)
        variables = environment(self.stub, self.home / "user", os.environ["PATH"])
        variables |= {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
        if words.startswith(sys.executable) and not re.search(SHELL_SYNTAX, words):
            done = run_python(shlex.split(words)[1:], cwd=folder, env=variables, timeout=1800)
        else:
            command = ["bash", "-c", words.replace(sys.executable, interpreter())]
            done = subprocess.run(command, cwd=folder, env=variables, capture_output=True, text=True, timeout=1800)
        assert done.returncode == 0, f"{line}\n{done.stdout[-3000:]}\n{done.stderr[-3000:]}"

    def prepare(self, line: str) -> None:
        """Let the stub leave what the notebook, or the hub, would have left."""
        if "--kernel pretrain-ssl" in line:
            backbone = self.home / "runs" / "simclr" / "backbone.safetensors"
            self.stub.output = {"pretrain-byol_resnet50/backbone.safetensors": backbone.read_bytes()}
        elif "--kernel gpu-check" in line:
            self.stub.output = {"gpu.json": gpu_report(factor=0.8).model_dump_json().encode()}
        elif "push --kernel train-folds" in line:
            self.stub.output = self.trained()
        elif "cassava_kit weights" in line:  # what is there is not downloaded
            (self.home / "weights").mkdir()
            for recipe in ("resnet50", "efficientnet_b4"):
                save_file({"fc.bias": torch.zeros(1000)}, self.home / "weights" / f"{recipe}.safetensors")
        elif "submit --bundle" in line:
            left = next((self.home / "build" / "first").rglob("working/submission.csv")).parent
            self.stub.output = {name: (left / name).read_bytes() for name in ("submission.csv", "run.json")}

    def trained(self) -> dict[str, bytes]:
        """The runs and the split that train-folds leaves, by name; every checkpoint says which recipe it is of."""
        runs = {}
        for name, source in TRAINED.items():
            shutil.copytree(self.home / "runs" / source, self.home / "kaggle" / name, dirs_exist_ok=True)
            for path in (self.home / "kaggle" / name).rglob("*.safetensors"):
                info = read_info(path)
                named = info.model_copy(update={"name": f"{name}-fold{info.fold}", "recipe": name})
                save_checkpoint(path, load_tensors(path), named)
            files = [file for file in (self.home / "kaggle" / name).rglob("*") if file.is_file()]
            runs |= {f"runs/{file.relative_to(self.home / 'kaggle')}": file.read_bytes() for file in files}
        split = {end: (self.home / "folds" / f"kfold5{end}").read_bytes() for end in (".csv", ".json")}
        return runs | {f"folds/kfold5-seed42-groups{end}": content for end, content in split.items()}


@pytest.mark.slow
def test_the_pages_can_be_typed_in(tmp_path):
    with running(Stub()) as stub:
        reader = Reader(tmp_path, stub)
        for block in BLOCKS:
            reader.type_block(block)
    assert len(reader.typed) > 40 and (tmp_path / "other2" / "competition.json").is_file()
