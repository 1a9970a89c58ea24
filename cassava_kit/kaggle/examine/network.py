"""Rules on the network: how it is loaded, compiled and fed."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator

from cassava_kit.kaggle.examine.finding import Finding, found_at
from cassava_kit.kaggle.examine.program import Function, last_name
from cassava_kit.kaggle.examine.reading import Call, Reading

LOAD, SINGLE = "torch.load without weights_only", "one picture a forward pass"
NETWORK_NAME = re.compile(r"(model|net|network|learner|learn|classifier|backbone|encoder)s?\d*$", re.IGNORECASE)
NETWORK_MODULES = ("torch.nn.Module", "pytorch_lightning.LightningModule", "lightning.LightningModule")
MAKES_NETWORK = re.compile(
    r"^(timm\.(models\.)?create_model|torchvision\.models\..*|torch\.(compile|jit\.load)|tensorflow\.keras\.models\."
    r"load_model|keras\.models\.load_model|.*\.from_pretrained|.*\.load_from_checkpoint|torch\.nn\.(DataParallel|Sequential)"
    r"|tensorflow\.keras\.(Sequential|models\.Sequential|Model)|.*\.load_learner)$"
)
FORWARD = frozenset({"forward", "predict", "predict_on_batch", "predict_proba", "__call__"})
ONE_MORE = frozenset({"expand_dims", "unsqueeze"})
LOADERS = frozenset({"torch.utils.data.DataLoader", "DataLoader"})


def network_findings(reading: Reading) -> Iterator[Finding]:
    """Yield how a network is loaded unsafely, compiled wrongly or fed slowly."""
    for call in reading.calls:
        loads = call.name in ("torch.load", "torch.serialization.load") and not call.open_ended
        if loads and call.argument("weights_only") is None:
            yield found_at(
                reading,
                call.node,
                LOAD,
                "since torch 2.6 this refuses a file that holds more than tensors, before it ran any code in it; "
                "save the state dict alone and give weights_only=True (False only for a file that you made)",
            )
    yield from _single_pictures(reading)


def forward_calls(reading: Reading) -> list[ast.AST]:
    """Return the calls that run a network."""
    networks = _network_names(reading)
    return [call.node for call in reading.calls if _is_forward(reading, call, networks)]


def _network_names(reading: Reading) -> set[str]:
    """Return the names of networks: what is made by a library or a module class, put into `eval()`, or named so."""
    found = set[str]()
    modules = {name for name in reading.classes if _is_module(reading, name)}
    for (_, name), values in reading.names.values.items():
        for value in values:
            inner = value
            while (
                isinstance(inner, ast.Call)
                and isinstance(inner.func, ast.Attribute)
                and not reading.qualified(inner.func)
            ):
                inner = inner.func.value  # Model().to(device).eval()
            if isinstance(inner, ast.Call) and (
                last_name(inner.func) in modules or MAKES_NETWORK.match(reading.qualified(inner.func))
            ):
                found.add(name.rpartition(".")[2])
    for call in reading.calls:
        func = call.node.func
        if (
            isinstance(func, ast.Attribute)
            and func.attr in ("eval", "load_state_dict")
            and isinstance(func.value, ast.Name)
        ):
            found.add(func.value.id)
    return found


def _is_module(reading: Reading, name: str) -> bool:
    made = reading.classes.get(name)
    bases = [reading.qualified(base) for base in made.bases] if made else []
    own = [last_name(base) for base in made.bases] if made else []
    return any(
        base in NETWORK_MODULES or base.endswith(("nn.Module", "LightningModule", "keras.Model")) for base in bases
    ) or any(base != name and _is_module(reading, base) for base in own)


def _is_forward(reading: Reading, call: Call, networks: set[str]) -> bool:
    func = call.node.func
    if isinstance(func, ast.Attribute):
        base = last_name(func.value) or last_name(getattr(func.value, "value", func.value))
        return (
            func.attr in FORWARD
            and not reading.qualified(func)
            and (base in networks or bool(NETWORK_NAME.search(base)))
        )
    if isinstance(func, ast.Subscript):  # models[i](x)
        return last_name(func.value) in networks or bool(NETWORK_NAME.search(last_name(func.value)))
    name = last_name(func)
    own = name in reading.functions or name in reading.classes
    return bool(call.node.args) and not own and (name in networks or bool(NETWORK_NAME.search(name))) and not call.name


def _single_pictures(reading: Reading) -> Iterator[Finding]:
    """Yield passes of one picture in a loop, and loaders of one picture."""
    networks = _network_names(reading)
    for call in reading.calls:
        one = _is_forward(reading, call, networks) and call.args and _is_one(reading, call.args[0])
        if one and _repeats(reading, call.node):
            yield found_at(
                reading,
                call.node,
                SINGLE,
                "thousands of test images one at a time leave the GPU idle; read them by a DataLoader and give the "
                "network batches",
            )
        if call.name in LOADERS and not call.open_ended and not _trains(reading, call):
            yield from _small_batches(reading, call)


def _small_batches(reading: Reading, call: Call) -> Iterator[Finding]:
    """Yield a loader of one picture, where its batch size is written."""
    size = call.argument("batch_size", 1)
    values = reading.evaluator.values(size) if size is not None else []
    if [value.data for value in values] == [1]:
        at = values[0].node if values[0].node in reading.cell_of else call.node
        yield found_at(
            reading, at, SINGLE, "batch_size=1 leaves the GPU idle; take as many as its memory holds, e.g. 32"
        )
    elif size is None and call.argument("batch_sampler") is None:
        yield found_at(
            reading, call.node, SINGLE, "a DataLoader without batch_size gives one picture a pass; set it, e.g. 32"
        )


def _trains(reading: Reading, call: Call) -> bool:
    """Return whether a loader is of training rows, by the names around it."""
    statement = next((each for each in reading.above(call.node) if isinstance(each, ast.stmt)), None)
    targets = statement.targets if isinstance(statement, ast.Assign) else []
    said = [ast.unparse(each) for each in (*targets, *call.args[:1])]
    return any(re.search(r"train|valid|val_|val\b|eda|plot", text, re.IGNORECASE) for text in said)


def _is_one(reading: Reading, node: ast.AST, depth: int = 0) -> bool:
    """Return whether an expression is one picture with a batch axis put before it."""
    if isinstance(node, ast.Subscript):
        first = node.slice.elts[0] if isinstance(node.slice, ast.Tuple) and node.slice.elts else node.slice
        return (isinstance(first, ast.Constant) and first.value is None) or reading.qualified(first) == "numpy.newaxis"
    if isinstance(node, ast.Call):
        name = last_name(node.func)
        if name in ONE_MORE:
            axis = next((each.value for each in node.keywords if each.arg in ("axis", "dim")), None)
            module = reading.qualified(node.func).startswith(("numpy.", "torch.", "tensorflow."))
            places = node.args[1:] if module else node.args
            given = reading.evaluator.one(axis or (places[0] if places else None))
            return given == 0 and not isinstance(given, bool)
        inner = node.func.value if isinstance(node.func, ast.Attribute) and not reading.qualified(node.func) else None
        return (inner is not None and _is_one(reading, inner, depth)) or (
            name in ("from_numpy", "tensor", "as_tensor", "to", "float")
            and bool(node.args)
            and _is_one(reading, node.args[0], depth)
        )
    if isinstance(node, ast.Name) and depth < 3:
        given = [value for value in reading.assigned(node) or [] if value is not None]
        return any(_is_one(reading, value, depth + 1) for value in given)
    return False


def _repeats(reading: Reading, node: ast.AST, depth: int = 0) -> bool:
    """Return whether a node runs once for each picture: in a loop, or in a function that a loop or `apply` calls."""
    below = node
    for each in reading.above(node):
        if isinstance(each, ast.For | ast.AsyncFor | ast.While) and below is not getattr(each, "iter", None):
            if not _over_networks(each):
                return True
        elif isinstance(each, ast.ListComp | ast.GeneratorExp | ast.SetComp | ast.DictComp):
            if not all(_names_networks(generator.iter) for generator in each.generators):
                return True
        elif isinstance(each, Function):
            if depth > 3:
                return False
            for use in reading.nodes:
                if last_name(use) != each.name or use in set(ast.walk(each)):
                    continue
                parent = reading.parents.get(use)
                if isinstance(parent, ast.Call) and use is parent.func:
                    if _repeats(reading, parent, depth + 1):
                        return True
                elif isinstance(parent, ast.Call) and last_name(parent.func) in (
                    "apply",
                    "map",
                    "progress_apply",
                    "starmap",
                ):
                    return True
            return False
        below = each
    return False


def _over_networks(loop: ast.AST) -> bool:
    return isinstance(loop, ast.For) and _names_networks(loop.iter)


def _names_networks(node: ast.AST) -> bool:
    """Return whether a loop goes over members, folds or views, not over pictures."""
    said = ast.unparse(node)
    return bool(
        re.search(r"model|net|fold|tta|ckpt|checkpoint|weight|view|member", said, re.IGNORECASE)
    ) and not re.search(r"image|file|path|test|loader|row", said, re.IGNORECASE)
