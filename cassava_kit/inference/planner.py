"""The order of work within the time: `make_units`, `order_units`, and `choose_rows` for each unit."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from cassava_kit.inference.members import MemberCheckpoint, Members
from cassava_kit.inference.tta import View, make_views
from cassava_kit.inference.votes import Votes
from cassava_kit.models.checkpoint import CheckpointInfo

# A checkpoint's further views repeat much of what its plain view says: the i-th adds .3 / (i (i + 1)) of it (the
# variance of a mean of v correlated answers falls as 1/v, and .3 is about what the answers to two views do not share).
VIEW_GAIN = 0.3
# Under pressure a unit stays in the plan as long as this share of the images, the least sure, could take it.
LEAST_SHARE = 0.15


@dataclass(frozen=True)
class Unit:
    """One (checkpoint, view) pair.

    `weight` is its share of the ensemble, `worth` its marginal value after the earlier views of the same checkpoint.
    """

    checkpoint: MemberCheckpoint
    view: View
    weight: float
    worth: float

    @property
    def name(self) -> str:
        """File and view, for the plan and the report."""
        return f"{self.checkpoint.name} {self.view.name}"


def make_units(members: Members, views: str) -> tuple[Unit, ...]:
    """Return every checkpoint through every view its input size allows; views share the checkpoint's weight evenly."""
    units = []
    for checkpoint in members.checkpoints:
        seen = make_views(views, size=checkpoint.info.input_size)
        worth = checkpoint.weight * member_worth(members, checkpoint)
        for i, view in enumerate(seen):
            gain = 1.0 if i == 0 else VIEW_GAIN / (i * (i + 1))
            units.append(Unit(checkpoint, view, checkpoint.weight / len(seen), worth * gain))
    return tuple(units)


def member_worth(members: Members, checkpoint: MemberCheckpoint) -> float:
    """Return what the ensemble loses out of fold without the checkpoint's member; 1 where this is not known.

    `ensemble.json` has it as `oof.loss_without`, by the competition's metric; older files have accuracies.
    A loss of 0 counts as a small one: differences below a standard error must not drop a member.
    """
    oof = members.ensemble.oof if members.ensemble else {}
    losses: Any = oof.get("loss_without")
    if losses is None and "accuracy" in oof:
        losses = {name: float(oof["accuracy"]) - float(kept) for name, kept in oof.get("without", {}).items()}
    if not losses or checkpoint.member not in losses or not np.isfinite(losses[checkpoint.member]):
        return 1.0
    return max(0.0, float(losses[checkpoint.member])) * 100 + 0.1


def cost_key(info: CheckpointInfo) -> tuple[str, ...]:
    """Return what decides a checkpoint's cost: architecture, head, input size, and what its header says of float16."""
    return info.model, str(info.model_args), info.head, str(info.input_size), str(info.fp16)


@dataclass
class Plan:
    """Units, their seconds per image (U,), which of them are kept, and the order of work."""

    units: tuple[Unit, ...]
    seconds: np.ndarray
    n_images: int
    data_seconds: float = 0.0
    left: float = float("inf")
    overlap: bool = False
    order: tuple[int, ...] = ()
    kept: np.ndarray = field(default_factory=lambda: np.empty(0, bool))

    def __post_init__(self) -> None:
        if not len(self.kept):
            self.kept = np.ones(len(self.units), bool)

    @property
    def total(self) -> float:
        """Seconds that every kept unit over every image takes, reading included; early stopping only shortens it."""
        rest = float(self.seconds[list(self.order[1:])].sum())
        return (self.first_pass_seconds(self.order[0]) if self.order else 0.0) + self.n_images * rest

    def first_pass_seconds(self, first: int) -> float:
        """Seconds for the one pass that reads the images, with `first` as its unit.

        On a GPU the images are read while the unit computes; on the CPU both need the same cores.
        """
        model = float(self.seconds[first])
        return self.n_images * (max(model, self.data_seconds) if self.overlap else model + self.data_seconds)

    @property
    def fits(self) -> bool:
        """Whether the kept units run over every image in the time left."""
        return self.total <= self.left

    def format_lines(self) -> list[str]:
        """Return the plan as text: one line per member and view (its checkpoints together), then the sums."""
        groups: dict[str, list[int]] = {}
        for u in (*self.order, *np.flatnonzero(~self.kept).tolist()):
            groups.setdefault(f"{self.units[u].checkpoint.member} {self.units[u].view.name}", []).append(u)
        width = max(map(len, groups), default=0)
        text = [f"{'member and view':{width}}  checkpoints  ms/image  seconds  weight   worth  plan"]
        for name, group in groups.items():
            cost = float(self.seconds[group].sum())
            weight, worth = (sum(getattr(self.units[u], of) for u in group) for of in ("weight", "worth"))
            text.append(
                f"{name:{width}}  {len(group):11}  {1000 * cost:8.2f}  {cost * self.n_images:7.1f}  {weight:6.3f}  "
                f"{worth:6.3f}  {self._describe(group)}"
            )
        limit = "no time limit" if np.isinf(self.left) else f"{self.left:.1f} s left"
        text.append(
            f"{self.n_images} images: reading {1000 * self.data_seconds:.2f} ms each, "
            f"at most {self.total:.1f} s in all; {limit}"
        )
        return text

    def _describe(self, group: Sequence[int]) -> str:
        kept = int(self.kept[group].sum())
        if not kept:
            return "dropped"
        which = "all images" if self.fits or self.order[0] in group else "least sure images first"
        return which if kept == len(group) else f"{which}; {len(group) - kept} checkpoints dropped"

    def to_json(self) -> dict[str, Any]:
        """Return the plan for `run.json`."""
        units = [
            {
                "unit": self.units[u].name,
                "seconds_per_image": float(self.seconds[u]),
                "weight": self.units[u].weight,
                "worth": self.units[u].worth,
                "kept": bool(self.kept[u]),
            }
            for u in (*self.order, *np.flatnonzero(~self.kept))
        ]
        return {
            "units": units,
            "reading_seconds_per_image": self.data_seconds,
            "total_seconds": self.total,
            "seconds_left": None if np.isinf(self.left) else self.left,
            "fits": self.fits,
        }


def order_units(plan: Plan) -> Plan:
    """Return the plan with its kept units in order; the least valuable are dropped until the rest fits the time.

    The cheapest checkpoint's plain view comes first, over all images. With enough time the others follow by weight per
    second, a checkpoint's views together: most images are finished soonest that way. Without, they follow by worth per
    second, and a unit is dropped when not even `LEAST_SHARE` of the images have time for it.
    """
    usable = [int(u) for u in np.flatnonzero(plan.kept)]
    if not usable:
        return replace(plan, order=())
    first = min((u for u in usable if plan.units[u].view.name == "plain"), key=lambda u: (plan.seconds[u], u))
    whole = replace(plan, order=_by_weight(plan, usable, first))
    if whole.total <= plan.left:
        return whole
    value = {u: plan.units[u].worth / max(float(plan.seconds[u]), 1e-9) for u in usable}
    ranked = [first, *sorted((u for u in usable if u != first), key=lambda u: (-value[u], u))]
    kept = plan.kept.copy()
    base = plan.first_pass_seconds(first)
    while len(ranked) > 1 and base + LEAST_SHARE * plan.n_images * plan.seconds[ranked[1:]].sum() > plan.left:
        kept[ranked.pop()] = False
    return replace(plan, order=tuple(ranked), kept=kept)


def _by_weight(plan: Plan, usable: Sequence[int], first: int) -> tuple[int, ...]:
    """`first`, then by checkpoint, the most weight per second first; within one, the views as they come."""
    weight: Counter[str] = Counter()
    cost: Counter[str] = Counter()
    for u in usable:
        weight[plan.units[u].checkpoint.name] += plan.units[u].weight  # type: ignore[assignment]
        cost[plan.units[u].checkpoint.name] += float(plan.seconds[u])  # type: ignore[assignment]
    leading = plan.units[first].checkpoint.name

    def place(u: int) -> tuple[bool, float, str, int]:
        name = plan.units[u].checkpoint.name
        return name != leading, -weight[name] / max(cost[name], 1e-9), name, u

    return (first, *sorted((u for u in usable if u != first), key=place))


def choose_rows(votes: Votes, plan: Plan, unit: int, *, left: float, certified: bool) -> np.ndarray:
    """Return the rows (n,) that take a unit now: all that need it if there is time for everything, else the least sure.

    When time is short, images without any vote come first, then as many of the least sure as there is time to take
    through all units still to come. The others may take the unit in a later round, if time remains.
    """
    waiting = ~votes.finished(plan.kept, certified=certified)
    rows = np.flatnonzero(waiting & ~votes.seen[:, unit])
    if fits_all(votes, plan, left=left, certified=certified):
        return rows
    without_vote = np.flatnonzero(waiting & votes.without_vote())
    if len(without_vote):
        return without_vote
    ahead = [u for u in plan.order[plan.order.index(unit) :] if plan.kept[u]]
    affordable = max(1, int(left / max(float(plan.seconds[ahead].sum()), 1e-9)))
    least_sure = rows[np.argsort(votes.margins()[rows], kind="stable")]
    return np.sort(least_sure[:affordable])


def fits_all(votes: Votes, plan: Plan, *, left: float, certified: bool = False) -> bool:
    """Return whether there is time for every planned unit that an image still needs."""
    waiting = ~votes.finished(plan.kept, certified=certified)
    todo = ~votes.seen[waiting] & plan.kept
    return float((todo @ plan.seconds).sum()) <= left
