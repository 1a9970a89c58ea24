"""The members of a dry run: options, recipes and first weights, training. Entry points: `DryRun`, `plan_members`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from cassava_kit.cli.app import named_file
from cassava_kit.cli.dry_run_plan import Expected, expect_stages
from cassava_kit.competition import Competition, current
from cassava_kit.data.folds import Folds
from cassava_kit.data.images import quick_check
from cassava_kit.data.progress import tell
from cassava_kit.data.table import TrainTable
from cassava_kit.errors import Stopped, UserError
from cassava_kit.evidence.oof import Evidence, make_evidence
from cassava_kit.evidence.predictions import read_predictions
from cassava_kit.kaggle.rehearse.options import RehearsalOptions
from cassava_kit.models.weights import find_weights_file
from cassava_kit.training.config import RunConfig
from cassava_kit.training.recipes import recipe, recipe_names
from cassava_kit.training.ssl.recipes import small_simclr
from cassava_kit.training.ssl.run_folder import BACKBONE
from cassava_kit.training.workers import Job, run_jobs

if TYPE_CHECKING:
    from cassava_kit.inference.clock import Clock
    from cassava_kit.training.recipe_run import PlannedRecipe, RecipeResult
    from cassava_kit.training.rows import TrainData
    from cassava_kit.training.ssl.config import PretrainConfig

SSL_RECIPE, PRETRAINING = "small_ssl_resnet", "pretraining (simclr)"
SMALL_MEMBERS = ("small_resnet", "small_vit", SSL_RECIPE)


@dataclass(frozen=True)
class DryRun:
    """Options of one dry run.

    `data` is a competition folder, None the embedded sample; `recipes` and `weights` (recipe, file) give the members,
    three small ones where neither is given; `settings` (NAME=VALUE) change each of them. `setting` holds limits of the
    rehearsal and its number of hidden images. `existing` says what happens to finished runs that differ, as
    `TrainOptions.existing` does. `jobs` folds are trained at once (None: see `choose_jobs`). `time_limit` are seconds
    from the start of the process, training included.
    """

    data: Path | None = None
    out: Path | None = None
    recipes: tuple[str, ...] = ()
    weights: tuple[tuple[str, Path], ...] = ()
    settings: tuple[str, ...] = ()
    n_splits: int = 3
    seed: int = 42
    groups: bool = True
    views: str = "flips"
    owner: str | None = None
    existing: Literal["refuse", "replace", "keep"] = "refuse"
    setting: RehearsalOptions = field(default_factory=RehearsalOptions)
    jobs: int | None = None
    time_limit: float | None = None
    competition: Competition = field(init=False, default_factory=current)


def parse_weights(given: Sequence[str]) -> tuple[tuple[str, Path], ...]:
    """Return (recipe, file) of `NAME=FILE` arguments; NAME is a recipe or a timm model.

    Raises:
        UserError: An argument has another form.
        FileNotFoundError: A file does not exist.
    """
    parsed = []
    for text in given:
        name, path = named_file(text, "--weights takes NAME=FILE (a recipe or a timm model, and its weights)")
        parsed.append((recipe_for(name), find_weights_file(path)))
    return tuple(parsed)


def recipe_for(name: str) -> str:
    """Return the recipe of that name, else that timm model's recipe with the smallest images, else `timm:NAME`.

    The smallest, because this runs at home: `dinov2_top` for DINOv2's ViT-S, where `dinov2_small` is for a GPU. A name
    with a tag (`.dino`) is only a recipe's that has the same: mean and std are the tag's.
    """
    if name in recipe_names():
        return name
    known = [recipe(each) for each in recipe_names()]
    same_model = [config for config in known if name in (config.model, config.model.split(".")[0])]
    smallest = min(same_model, key=lambda config: config.image_size, default=None)
    return smallest.recipe if smallest else f"timm:{name.removeprefix('timm:')}"


def member_configs(plan: DryRun) -> list[tuple[RunConfig, Path | None]]:
    """Return the members' configurations and first weights: the chosen recipes, and one for each weights file.

    Where neither is given, the three small ones.

    Raises:
        UserError: A recipe is given twice.
    """
    weights = dict(plan.weights)
    names = list(plan.recipes or (() if weights else SMALL_MEMBERS))
    names += [name for name in weights if name not in names]
    chosen = [(recipe(name).with_settings(plan.settings), weights.get(name)) for name in names]
    weighed = [name for name, _ in plan.weights]
    for option, given in (("--weights", weighed), ("--recipe", [config.recipe for config, _ in chosen])):
        if twice := sorted({name for name in given if given.count(name) > 1}):
            raise UserError(f"{option} names {', '.join(twice)} more than once; each recipe is one member")
    return chosen


@dataclass(frozen=True)
class PlannedMembers:
    """The members' recipes with their options, and the pretraining that one of them starts from."""

    recipes: tuple[PlannedRecipe, ...]
    at_once: int
    pretraining: Job | None = None
    pretraining_config: PretrainConfig | None = None
    n_pretraining: int = 0

    def keep(self, recipes: tuple[PlannedRecipe, ...]) -> PlannedMembers:
        """Return these recipes alone, with the pretraining only where one of them starts from it."""
        needed = self.pretraining is not None and self.pretraining.name in {one.after for one in recipes}
        return replace(self, recipes=recipes, pretraining=self.pretraining if needed else None)

    def ready(self, n_due: int) -> int:
        """Return how many processes to start early for so many jobs: none where this one does them."""
        at_once = min(self.at_once, n_due)
        return at_once if at_once > 1 else 0

    def expect(self, table: TrainTable, out: Path, plan: DryRun) -> Expected:
        """Return how long the run will take."""
        due = None
        if self.pretraining and self.pretraining_config and not (out / "pretrain" / BACKBONE).is_file():
            due = (self.pretraining.name, self.pretraining_config, self.n_pretraining)
        return expect_stages(self.recipes, table, out, n_splits=plan.n_splits, at_once=self.at_once, pretraining=due)


def plan_members(
    plan: DryRun, configs: list[tuple[RunConfig, Path | None]], table: TrainTable, out: Path
) -> PlannedMembers:
    """Return what is to be trained for these configurations and first weights."""
    from cassava_kit.inference.machine import cpu_count
    from cassava_kit.training.devices import Devices, uses_gpu
    from cassava_kit.training.recipe_run import PlannedRecipe
    from cassava_kit.training.rows import TrainOptions
    from cassava_kit.training.side_by_side import choose_jobs

    recipes, pretraining, pretraining_config, images = [], None, None, []
    for config, weights in configs:
        after = None
        if config.recipe == SSL_RECIPE and weights is None:
            names = sorted([*table.frame["image_id"], *table.unlisted])
            images = [path for path in (table.image_dir / name for name in names) if quick_check(path) is None]
            after, weights = PRETRAINING, out / "pretrain" / BACKBONE
            pretraining = Job(after, pretrain_backbone, (images, out / "pretrain", plan.existing))
            if not weights.is_file():
                pretraining_config = sample_pretraining(len(images))
        cache = out / "pixels" if config.train_pixels else None
        workers = cpu_count() if uses_gpu(Devices()) else 0  # a GPU would wait for one process that decodes
        options = TrainOptions(weights=weights, cache=cache, existing=plan.existing, workers=workers)
        recipes.append(PlannedRecipe(config, options, after))
    n_jobs = plan.n_splits * len(recipes)
    at_once = choose_jobs((one.bytes() for one in recipes), n_jobs, Devices(), plan.jobs)
    return PlannedMembers(tuple(recipes), at_once, pretraining, pretraining_config, len(images))


def sample_pretraining(n_images: int) -> PretrainConfig:
    """Return the configuration of the self-supervised member's pretraining, its batch no larger than the images."""
    config = small_simclr()
    return config.with_settings([f"batch_size={n_images}"]) if n_images < config.batch_size else config


def pretrain_backbone(images: Sequence[Path], out: Path, existing: Literal["refuse", "replace", "keep"]) -> Path:
    """Return the self-supervised member's backbone, trained on images without labels, or reused.

    Raises:
        UserError: Another pretraining is in `out`, and `existing` does not say what is done with it.
    """
    from cassava_kit.training.ssl.pretrain import pretrain

    return pretrain(sample_pretraining(len(images)), images, out, existing=existing)


def train_members(
    plan: DryRun, members: PlannedMembers, *, table: TrainTable, split: Folds, out: Path, clock: Clock | None = None
) -> tuple[Evidence, dict[str, list[Path]]]:
    """Train or reuse every member over all folds; return the out-of-fold evidence and checkpoints by recipe.

    Members from given weights are judged through the views that they are packed with; without any such, as in the demo,
    the plain view has to do, for time's sake. Within the limit of `clock` members are trained one after the other, and
    those whose time is over are left out.

    Raises:
        UserError: A fold failed, or no member was finished within the limit.
    """
    from cassava_kit.training.recipe_run import train_recipes
    from cassava_kit.training.rows import TrainData
    from cassava_kit.training.through_views import predict_through_views

    data = TrainData(table, split, plan.competition)
    recipes, first = members.recipes, members.pretraining
    if first is not None and (out / "pretrain" / BACKBONE).is_file():  # taken as it is, or refused: no process for it
        run_jobs([first], 1)
        recipes, first = tuple(replace(one, after=None) for one in recipes), None
    if clock is None or clock.limit is None:
        jobs = () if first is None else (first,)
        results = train_recipes(recipes, data, out / "runs", jobs=members.at_once, first=jobs)
    else:
        results = _train_in_time(replace(members, recipes=recipes, pretraining=first), data, out / "runs", clock)
        recipes = recipes[: len(results)]
    oof, checkpoints = [], {}
    for one, result in zip(recipes, results, strict=True):
        assert result.oof_file is not None  # all folds were asked for
        name = one.name
        checkpoints[name] = [fold.checkpoint for fold in result.folds]
        if plan.weights and plan.views != "none":
            oof.append(predict_through_views(name, checkpoints[name], data, out / "views", views=plan.views))
        else:
            oof.append(read_predictions(result.oof_file))
    return make_evidence(oof, split, list(checkpoints)), checkpoints


def _train_in_time(members: PlannedMembers, data: TrainData, runs: Path, clock: Clock) -> list[RecipeResult]:
    """Train recipes one after the other until the time for training is over; return those that are whole.

    Raises:
        UserError: None is whole.
    """
    from cassava_kit.cli.dry_run_limit import is_time_up, training_seconds, until
    from cassava_kit.training.recipe_run import train_recipes

    results: list[RecipeResult] = []
    for one in members.recipes:
        first = () if one.after is None or members.pretraining is None else (members.pretraining,)
        try:
            with until(training_seconds(clock)):
                results += train_recipes((one,), data, runs, jobs=members.at_once, first=first)
        except Stopped as stopped:
            if not is_time_up(stopped):
                raise
            tell(f"the time for training is over: {one.name} is not whole, what follows is left out")
            break
    if not results:
        raise UserError(
            f"no member was whole within {clock.limit:g} s; the same command goes on where it stopped, with a larger "
            "--time-limit"
        )
    return results
