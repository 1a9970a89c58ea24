"""One `.safetensors` file a model: its weights, and in its header all that inference needs to know."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from cassava_kit.competition import Competition, Metric
from cassava_kit.errors import UserError
from cassava_kit.files import CHECKPOINT_FILE, KIT_VERSION, atomic_path, find_file
from cassava_kit.models.precision import HalfVerdict

METADATA_KEY = "cassava_kit"
Side = Annotated[int, Field(ge=1, le=4096)]
Mean = Annotated[float, Field(allow_inf_nan=False)]
Deviation = Annotated[float, Field(gt=0, allow_inf_nan=False)]
Share = Annotated[float, Field(ge=0, le=1 + 1e-6, allow_inf_nan=False)]


class CheckpointInfo(BaseModel):
    """Header of a checkpoint; sizes are (height, width) in pixels, mean and std of RGB in 0..1.

    `competition`, `metric`, `classes` and `id_column` are those it was trained for (`Task`); older checkpoints lack
    them, and those of `train_fold` name no competition. `recipe` is the name of the run, `prior` the class shares of
    its training rows. `fp16` says what float16 does to the network (`judge_half`); None claims nothing: it was neither
    trained nor packed on a GPU, or is older.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")
    model: str
    model_args: dict[str, Any] = {}
    head: str = "linear"
    n_classes: int
    input_size: tuple[Side, Side]
    mean: tuple[Mean, Mean, Mean]
    std: tuple[Deviation, Deviation, Deviation]
    pixels: Literal["exact"] = "exact"
    recipe: str
    competition: str | None = None
    metric: Metric | None = None
    classes: tuple[str, ...] = ()
    id_column: str = "image_id"
    fold: int | None = None
    n_splits: int | None = None
    fold_hash: str | None = None
    oof_accuracy: float | None = None
    oof_rows: int | None = None
    prior: tuple[Share, ...] | None = None
    fp16: HalfVerdict | None = None
    kit_version: str = KIT_VERSION
    config: dict[str, Any] = {}

    @property
    def name(self) -> str:
        """Recipe and fold, e.g. `resnet50-fold3`."""
        return self.recipe if self.fold is None else f"{self.recipe}-fold{self.fold}"


def refuse_other_competition(info: CheckpointInfo, competition: Competition) -> None:
    """Refuse a checkpoint of another competition, or of other classes; what its header does not say is not compared.

    Raises:
        UserError: slugs or class names differ; the message names both, and begins with a verb.
    """
    if info.competition not in (None, competition.slug):
        raise UserError(f"was trained for the competition {info.competition}, this one is {competition.slug}")
    if _differ(info.classes, competition.classes):
        raise UserError(
            f"was trained for the classes {', '.join(info.classes)}; expected those of {competition.slug} in their "
            f"order: {', '.join(competition.classes)}"
        )


def may_share_labels(info: CheckpointInfo, competition: Competition, *, slug_known: bool = True) -> bool:
    """Return whether a checkpoint may have learnt labels of a competition's images.

    The slugs decide; where one of them is not known, class names do: those of other data differ.
    """
    if slug_known and info.competition is not None:
        return info.competition == competition.slug
    return set(info.classes) == set(competition.classes) or not _differ(info.classes, competition.classes)


def _differ(classes: tuple[str, ...], others: tuple[str, ...]) -> bool:
    """Return whether classes are known to differ; 0 to K-1 are numbers, by which any K classes may go."""
    if not classes or not others or len(classes) != len(others):
        return bool(classes and others)
    return classes != others and tuple(map(str, range(len(classes)))) not in (classes, others)


def save_checkpoint(path: str | Path, state_dict: dict[str, Any], info: CheckpointInfo) -> None:
    """Write weights and header atomically; tensors are stored contiguous and on the CPU."""
    from safetensors.torch import save_file

    tensors = {key: value.detach().cpu().contiguous() for key, value in state_dict.items()}
    with atomic_path(path) as temporary:
        save_file(tensors, temporary, metadata={METADATA_KEY: info.model_dump_json()})


def read_info(path: str | Path) -> CheckpointInfo:
    """Read a checkpoint's header alone.

    Raises:
        FileNotFoundError: There is no such file.
        UserError: The file is not a checkpoint that the kit wrote.
    """
    from safetensors import SafetensorError, safe_open

    path = find_file(path, "checkpoint", f"`cassava-kit train` writes runs/RECIPE/fold0/{CHECKPOINT_FILE}")
    try:
        with safe_open(path, framework="numpy") as file:
            text = (file.metadata() or {}).get(METADATA_KEY)
    except (SafetensorError, OSError) as error:
        raise UserError(f"{path} is not a whole .safetensors file ({error}); copy or train it again") from None
    if text is None:
        raise UserError(f"{path} has no {METADATA_KEY} header; only checkpoints written by the kit say what they are")
    try:
        return CheckpointInfo.model_validate_json(text)
    except ValidationError as error:
        first = error.errors()[0]
        raise UserError(
            f"{path} has a header this kit cannot read ({'.'.join(map(str, first['loc']))}: {first['msg']})"
        ) from None


def fold_checkpoints(folder: str | Path) -> list[Path]:
    """Return the checkpoints of a folder of runs (`runs/RECIPE/fold*/`), in order of their folds.

    Raises:
        FileNotFoundError: The folder holds none.
    """
    found = [path / CHECKPOINT_FILE for path in Path(folder).glob("fold*") if (path / CHECKPOINT_FILE).is_file()]
    if not found:
        raise FileNotFoundError(
            f"{folder} holds no fold*/{CHECKPOINT_FILE}; give a recipe's folder of runs, or train it"
        )
    return sorted(found, key=lambda path: read_info(path).fold or 0)


def load_model(path: str | Path) -> tuple[Any, CheckpointInfo]:
    """Load a checkpoint as a torch module, in evaluation mode on the CPU, with its header.

    `path` is a `.safetensors` file that the kit wrote. The header says what the model takes: `model` (timm name),
    `input_size` (height, width) in pixels, `mean` and `std` of the channels, `n_classes`.

    Raises:
        FileNotFoundError: There is no such file.
        UserError: The file is no checkpoint of the kit, or its tensors are not the model's.

    Example::

        model, info = load_model("runs/small_resnet/fold0/best.safetensors")
        logits = model(torch.zeros(1, 3, *info.input_size))  # (1, info.n_classes)
    """
    from cassava_kit.models.network import create_model
    from cassava_kit.models.skeleton import without_weights
    from cassava_kit.models.weights import load_tensors

    info = read_info(path)
    with without_weights():
        model = create_model(info.model, info.n_classes, model_args=info.model_args, head=info.head)
    own = model.state_dict()
    # The file's tensors become the model's. Copied: they lie in the mapped file, which may be changed or taken away.
    tensors = {
        name: value.to(own[name].dtype, copy=True) if name in own else value
        for name, value in load_tensors(path).items()
    }
    try:
        model.load_state_dict(tensors, assign=True)
    except RuntimeError as error:  # a title, and then a line for every kind of weights that do not fit
        reason = str(error).splitlines()[:2][-1].strip()[:200]
        raise UserError(
            f"{path} does not fit {info.model} of this timm: {reason}; install the timm it was trained with, or train "
            "it again"
        ) from None
    return model.eval(), info


def labels_learnt(weights: Path) -> CheckpointInfo | None:
    """Return the header of weights of the kit that were trained on labels, or began with such weights; else None."""
    if weights.suffix != ".safetensors":
        return None
    from safetensors import safe_open

    with safe_open(weights, framework="numpy") as file:
        if METADATA_KEY not in (file.metadata() or {}):
            return None
    info = read_info(weights)
    return info if info.n_classes or info.config.get("init") else None
