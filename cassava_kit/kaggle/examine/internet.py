"""Rules on the closed internet: packages, downloads and pretrained weights that no cell can fetch."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator, Mapping, Sequence

from cassava_kit.kaggle.examine.constants import HOLE, NOT_KNOWN
from cassava_kit.kaggle.examine.finding import Finding, found_at, found_in, note_of, place_of
from cassava_kit.kaggle.examine.reading import Call, Reading
from cassava_kit.kaggle.examine.shell import Command, shell_commands
from cassava_kit.kaggle.examine.values import PossibleValue

INSTALL, DOWNLOAD, PRETRAINED = "install from the internet", "download", "pretrained weights by name"
WHEEL = (".whl", ".tar.gz", ".zip", ".tar", ".tgz")
# Options of `pip install` that take a value.
PIP_VALUES = frozenset(
    [
        "-r",
        "--requirement",
        "-c",
        "--constraint",
        "-e",
        "--editable",
        "-f",
        "--find-links",
        "-i",
        "--index-url",
        "--extra-index-url",
        "-t",
        "--target",
        "--prefix",
        "--root",
        "--src",
        "--python-version",
        "--platform",
        "--implementation",
        "--abi",
        "--cache-dir",
        "--timeout",
        "--retries",
        "--upgrade-strategy",
        "--no-binary",
        "--only-binary",
        "--progress-bar",
        "--trusted-host",
        "--proxy",
        "--log",
    ]
)
FETCHERS = frozenset({"wget", "curl", "gdown", "aria2c", "axel"})
DOWNLOADS = {
    "urllib.request.urlretrieve": 0,
    "urllib.request.urlopen": 0,
    "requests.get": 0,
    "requests.post": 0,
    "wget.download": 0,
    "torch.hub.download_url_to_file": 0,
    "torch.hub.load_state_dict_from_url": 0,
    "torch.utils.model_zoo.load_url": 0,
    "torchvision.datasets.utils.download_url": 0,
    "tensorflow.keras.utils.get_file": 1,
    "keras.utils.get_file": 1,
    "fastai.data.external.untar_data": 0,
}
ALWAYS_DOWNLOAD = frozenset(
    {
        "gdown.download",
        "gdown.download_folder",
        "huggingface_hub.hf_hub_download",
        "huggingface_hub.snapshot_download",
        "nltk.download",
        "tensorflow_datasets.load",
        "tensorflow_hub.load",
        "git.Repo.clone_from",
        "wandb.login",
    }
)
_ADVICE = {
    INSTALL: "attach the wheel as a dataset and install with `pip install --no-index --no-deps FILE`",
    DOWNLOAD: "attach the file as a dataset and read it from /kaggle/input",
    PRETRAINED: "build the network without weights and load them from a file of an attached dataset",
}
NEEDS = "needs the internet, which is off while a submission is scored"
TIMM = ("timm.create_model", "timm.models.create_model", "timm.models.factory.create_model")
TORCHVISION = "torchvision.models."
KERAS = re.compile(r"^(tensorflow\.|tf\.)?(python\.)?keras\.applications(\.\w+)*\.[A-Z]\w+$")
KERAS_LIKE = re.compile(r"^(efficientnet\.(tfkeras|keras)|classification_models\.\w+|vit_keras\.vit|tfimm)\.\w+$")
# Where libraries look for weights before they download them, and variables that move these places.
CACHE = re.compile(
    r"\.cache/(torch|huggingface)|torch/hub/checkpoints|\.keras/models|^(TORCH|HF|KERAS)_HOME$|_OFFLINE$"
)
HUBS = ("hf_hub:", "hf-hub:")


def internet_findings(reading: Reading, images: Mapping[str, Mapping[str, str]]) -> Iterator[Finding]:
    """Yield what needs the internet; `images`: image -> library -> version, which need not be installed."""
    commands = shell_commands(reading)
    cached = _fills_cache(reading, commands)
    for command in commands:
        if said := _of_command(command):
            rule, what = said
            note = note_of(reading, command.node)
            if rule == INSTALL and not note and _in_image(command, images):
                note = "the image has it, and pip asks for nothing then"
            yield found_in(command.cell, command.line, rule, f"{what} {NEEDS}; {_ADVICE[rule]}", note=note)
    for call in reading.calls:
        yield from _downloads(reading, call)
        yield from _pretrained(reading, call, cached=cached)


def _of_command(command: Command) -> tuple[str, str] | None:
    """Return the rule that a shell command breaks, and the command in short."""
    words, name = list(command.words), command.name
    if name in ("pip", "uv", "conda", "mamba", "apt", "apt-get") and "install" in words and "--offline" not in words:
        if name == "uv" and "pip" in words:
            words = words[words.index("pip") :]
        wanted = _wanted(words[words.index("install") + 1 :]) if name in ("pip", "uv") else ["?"]
        return (INSTALL, f"`{' '.join(words)[:70]}`") if wanted else None
    web = [word for word in words[1:] if re.match(r"(https?|ftp)://", word)]
    if name in FETCHERS and (web or name == "gdown"):
        return DOWNLOAD, f"`{name} {(web or words[1:] or [''])[0][:60]}`"
    if name == "git" and "clone" in words and (web or any("@" in word for word in words)):
        return DOWNLOAD, f"`git clone {(web or words[-1:])[0][:60]}`"
    if name == "kaggle" and "download" in words:
        return DOWNLOAD, f"`{' '.join(words)[:60]}`"
    if name in ("huggingface-cli", "hf") and "download" in words:
        return DOWNLOAD, f"`{' '.join(words)[:60]}`"
    return None


def _fills_cache(reading: Reading, commands: Sequence[Command]) -> bool:
    """Return whether the notebook puts files where a library looks for weights before it downloads them."""
    words = [word for command in commands for word in command.words]
    texts = [node.value for node in reading.nodes if isinstance(node, ast.Constant) and isinstance(node.value, str)]
    return any(CACHE.search(text) for text in (*words, *texts))


def _in_image(command: Command, images: Mapping[str, Mapping[str, str]]) -> bool:
    """Return whether each image already has what a `pip install` asks for, in a version that it allows."""
    from packaging.requirements import InvalidRequirement, Requirement
    from packaging.utils import canonicalize_name

    words = list(command.words)
    if command.name != "pip" or set(words) & {"-U", "--upgrade", "--force-reinstall", "--ignore-installed", "-I", "-e"}:
        return False
    for word in _wanted(words[words.index("install") + 1 :]):
        try:
            asked = Requirement(word)
        except InvalidRequirement:
            return False
        for versions in images.values():
            held = {canonicalize_name(name): number for name, number in versions.items()}
            number = held.get(canonicalize_name(asked.name))
            if asked.url or number is None or not asked.specifier.contains(number):
                return False
    return bool(images)


def _wanted(words: list[str]) -> list[str]:
    """Return what `pip install` would ask an index for; nothing with `--no-index`."""
    if "--no-index" in words:
        return []
    asked, skip, editable = list[str](), False, False
    for word in words:
        if skip:
            skip = False
            asked += [word] if editable and re.match(r"(git\+)?https?://", word) else []
        elif word.startswith("-"):
            skip, editable = word in PIP_VALUES, word in ("-e", "--editable")
            asked += ["a file of requirements"] if word in ("-r", "--requirement") else []
        elif not _is_local(word):
            asked.append(word)
    return asked


def _is_local(word: str) -> bool:
    """Return whether a requirement is a file or folder; a part that is not known counts as one."""
    if re.match(r"(git\+)?(https?|ssh)://", word):
        return False
    return "/" in word or word.startswith((".", HOLE)) or word.endswith(WHEEL) or HOLE in word


def _downloads(reading: Reading, call: Call) -> Iterator[Finding]:
    name = call.name.removeprefix("tf.")
    what = ""
    if name in DOWNLOADS:
        texts = [value.data for value in reading.evaluator.known(call.argument("url", DOWNLOADS[name]))]
        texts += [value.data for value in reading.evaluator.known(call.argument("origin"))]
        web = [text for text in texts if isinstance(text, str) and re.match(r"(https?|ftp)://", text)]
        what = f"{name}({web[0][:50]})" if web else ""
    elif name in ALWAYS_DOWNLOAD:
        what = f"{name}()"
    elif name == "torch.hub.load":
        local = reading.evaluator.one(call.argument("source")) == "local"
        what = "" if local else "torch.hub.load() from GitHub"
    elif name == "wandb.init":
        modes = [value.data for value in reading.evaluator.known(call.argument("mode"))]
        what = "" if modes in (["offline"], ["disabled"]) or _wandb_off(reading) else "wandb.init()"
    if what:
        advice = "leave it out, or set WANDB_MODE=offline" if name.startswith("wandb") else _ADVICE[DOWNLOAD]
        yield found_at(reading, call.node, DOWNLOAD, f"{what} {NEEDS}; {advice}")


def _wandb_off(reading: Reading) -> bool:
    sets = [value for (_, name), value in reading.names.values.items() if name == "os.environ['WANDB_MODE']"]
    quiet = any(name in ("os.environ['WANDB_MODE']", "environ['WANDB_MODE']") for _, name in reading.names.values)
    lines = "\n".join(cell.source for cell in reading.source.cells if cell.code)
    return (
        bool(sets)
        or quiet
        or bool(re.search(r"WANDB_(MODE|DISABLED|SILENT_OFFLINE)|wandb offline|wandb disabled", lines))
    )


def _pretrained(reading: Reading, call: Call, *, cached: bool) -> Iterator[Finding]:
    """Yield weights that a library would fetch; the place is where the argument's value is written."""
    for value, what in _asked_weights(reading, call):
        at = value.node if value.node in reading.cell_of else call.node
        used = (
            ""
            if reading.cell_of[at] is reading.cell_of[call.node] and _same_line(at, call.node)
            else (f", for the call in {place_of(reading, call.node)},")
        )
        note = note_of(reading, call.node, at) or ("the notebook fills the library's cache itself" if cached else "")
        message = f"{what}{used} {NEEDS}; {_ADVICE[PRETRAINED]}"
        yield found_in(reading.cell_of[at], getattr(at, "lineno", 1), PRETRAINED, message, note=note)


def _same_line(a: ast.AST, b: ast.AST) -> bool:
    return bool(getattr(a, "lineno", 0) == getattr(b, "lineno", 0))


def _asked_weights(reading: Reading, call: Call) -> Iterator[tuple[PossibleValue, str]]:
    name, short = call.name, call.name.rpartition(".")[2]
    flag = call.argument("pretrained", 1 if name in TIMM else 0 if name.startswith(TORCHVISION) else None)
    local = call.argument("pretrained_cfg_overlay") is not None or call.argument("pretrained_cfg") is not None
    if name and flag is not None and not local and not short.startswith(("list_", "is_", "get_")):
        for value in reading.evaluator.known(flag):
            if value.data is True or (
                isinstance(value.data, str) and value.data and name.startswith("pretrainedmodels")
            ):
                yield value, f"{short}(pretrained={value.data!r})"
    if name in TIMM:
        for value in reading.evaluator.known(call.argument("model_name", 0)):
            if isinstance(value.data, str) and value.data.startswith(HUBS):
                yield value, f"the hub name {value.data!r}"
    if name.startswith(TORCHVISION) and (weights := call.argument("weights")) is not None:
        yield from _torchvision_weights(reading, weights)
    if short == "from_pretrained" or (not name and _method(call) == "from_pretrained"):
        yield from _from_pretrained(reading, call)
    if KERAS.match(name) or KERAS_LIKE.match(name):
        yield from _keras_weights(reading, call, short)
    if name.startswith("segmentation_models_pytorch.") and short[:1].isupper() and "losses" not in name:
        weights = call.argument("encoder_weights", 2)
        values = [PossibleValue("imagenet", call.node)] if weights is None else reading.evaluator.known(weights)
        for value in values:
            if isinstance(value.data, str):
                yield value, f"{short}(encoder_weights={value.data!r})"
    if name.startswith("fastai.") and short in ("cnn_learner", "vision_learner", "unet_learner"):
        values = reading.evaluator.known(flag) if flag is not None else [PossibleValue(True, call.node)]
        if flag is None and all(value.data is True for value in values):
            yield PossibleValue(True, call.node), f"{short}() with its default pretrained=True"


def _method(call: Call) -> str:
    return call.node.func.attr if isinstance(call.node.func, ast.Attribute) else ""


def _torchvision_weights(reading: Reading, weights: ast.expr) -> Iterator[tuple[PossibleValue, str]]:
    if "_Weights" in reading.qualified(weights):
        yield PossibleValue(True, weights), f"weights={ast.unparse(weights)}"
        return
    for value in reading.evaluator.known(weights):
        if isinstance(value.data, str) and value.data:
            yield value, f"weights={value.data!r}"


def _from_pretrained(reading: Reading, call: Call) -> Iterator[tuple[PossibleValue, str]]:
    """Yield hub names; a name without a folder that begins with `/` or `.` is looked for on the hub."""
    local_only = reading.evaluator.one(call.argument("local_files_only")) is True
    own = isinstance(call.node.func, ast.Attribute) and reading.qualified(call.node.func.value) == ""
    owner = call.node.func.value if isinstance(call.node.func, ast.Attribute) else None
    if own and isinstance(owner, ast.Name) and owner.id in reading.classes:
        return  # a class of the notebook's own
    where = call.args[0] if call.args else call.argument("pretrained_model_name_or_path") or call.argument("model_name")
    if call.argument("weights_path") is not None:
        return  # efficientnet_pytorch: from a file
    for value in reading.evaluator.known(where):
        text = value.data
        if isinstance(text, str) and not local_only and re.fullmatch(r"[\w.-]+(/[\w.-]+)?", text) and _no_path(text):
            yield value, f"from_pretrained({text!r})"


def _no_path(text: str) -> bool:
    return not text.startswith((".", "/")) and not re.search(r"\.(pth?|bin|safetensors|h5|ckpt)$", text)


def _keras_weights(reading: Reading, call: Call, short: str) -> Iterator[tuple[PossibleValue, str]]:
    """Yield weights that Keras fetches; without the argument it takes ImageNet's."""
    if short in ("preprocess_input", "decode_predictions", "get", "center_crop_and_resize"):
        return
    given = call.argument("weights", 1 if KERAS.match(call.name) else None)
    if given is None:
        given = call.argument("pretrained")
    if given is None:
        if KERAS.match(call.name) and not call.open_ended:
            yield PossibleValue("imagenet", call.node), f"{short}() with its default weights='imagenet'"
        return
    for value in reading.evaluator.known(given):
        fetched = value.data is True or (isinstance(value.data, str) and not re.search(r"[/\0]|\.\w+$", value.data))
        if fetched and value.data is not NOT_KNOWN:
            yield value, f"{short}(weights={value.data!r})"
