"""What the work costs and is worth: the order of units, what fits into the time, and what is dropped first."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from cassava_kit.inference.members import Members, Part
from cassava_kit.inference.tta import View, make_views
from cassava_kit.inference.votes import StopRule, Votes
from cassava_kit.models.checkpoint import CheckpointInfo

# A checkpoint's further views repeat much of what its plain view says: the i-th adds .3 / (i (i + 1)) of it (the
# variance of a mean of v correlated answers falls as 1/v, and .3 is about what the answers to two views do not share).
VIEW_NEWS = 0.3
# Under pressure a unit stays in the plan as long as this share of the images, the least sure, could take it.
LEAST_SHARE = 0.15


@dataclass(frozen=True)
class Unit:
    """One checkpoint through one view: the weight of its vote, and what it is worth beside the units before it."""

    part: Part
    view: View
    weight: float
    worth: float

    @property
    def name(self) -> str:
        """File and view, for the plan and the report."""
        return f"{self.part.name} {self.view.name}"


def make_units(members: Members, views: str) -> tuple[Unit, ...]:
    """Every checkpoint through every view its input size allows; a member's weight is shared evenly among them."""
    units = []
    for part in members.parts:
        seen = make_views(views, size=part.info.input_size)
        worth = part.weight * member_worth(members, part)
        for i, view in enumerate(seen):
            news = 1.0 if i == 0 else VIEW_NEWS / (i * (i + 1))
            units.append(Unit(part, view, part.weight / len(seen), worth * news))
    return tuple(units)


def member_worth(members: Members, part: Part) -> float:
    """What the ensemble loses out of fold without the part's member, by the competition's metric; 1 if nobody says.

    `ensemble.json` has it as `oof.loss_without`; older ones have the accuracies themselves, `oof.without`. No loss
    counts as a small one: differences below a standard error must not put a member out of the plan.
    """
    oof = members.ensemble.oof if members.ensemble else {}
    losses: Any = oof.get("loss_without")
    if losses is None and "accuracy" in oof:
        losses = {name: float(oof["accuracy"]) - float(kept) for name, kept in oof.get("without", {}).items()}
    if not losses or part.member not in losses or not np.isfinite(losses[part.member]):
        return 1.0
    return max(0.0, float(losses[part.member])) * 100 + 0.1


def kind_of(info: CheckpointInfo) -> tuple[str, ...]:
    """What decides a checkpoint's cost: architecture, head and input size."""
    return info.model, str(info.model_args), info.head, str(info.input_size)


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
        return (self.once(self.order[0]) if self.order else 0.0) + self.n_images * rest

    def once(self, first: int) -> float:
        """Seconds for the one pass that reads the images, with `first` as its unit.

        On a GPU the images are read while the unit computes; on the CPU both need the same cores.
        """
        model = float(self.seconds[first])
        return self.n_images * (max(model, self.data_seconds) if self.overlap else model + self.data_seconds)

    @property
    def fits(self) -> bool:
        """Whether the kept units run over every image in the time left."""
        return self.total <= self.left

    def lines(self) -> list[str]:
        """The plan as text: one line per member and view (its checkpoints together), then the sums."""
        groups: dict[str, list[int]] = {}
        for u in (*self.order, *np.flatnonzero(~self.kept).tolist()):
            groups.setdefault(f"{self.units[u].part.member} {self.units[u].view.name}", []).append(u)
        width = max(map(len, groups), default=0)
        text = [f"{'member and view':{width}}  checkpoints  ms/image  seconds  weight   worth  plan"]
        for name, group in groups.items():
            cost = float(self.seconds[group].sum())
            weight, worth = (sum(getattr(self.units[u], of) for u in group) for of in ("weight", "worth"))
            text.append(
                f"{name:{width}}  {len(group):11}  {1000 * cost:8.2f}  {cost * self.n_images:7.1f}  {weight:6.3f}  "
                f"{worth:6.3f}  {self._fate(group)}"
            )
        limit = "no time limit" if np.isinf(self.left) else f"{self.left:.1f} s left"
        text.append(
            f"{self.n_images} images: reading {1000 * self.data_seconds:.2f} ms each, "
            f"at most {self.total:.1f} s in all; {limit}"
        )
        return text

    def _fate(self, group: Sequence[int]) -> str:
        kept = int(self.kept[group].sum())
        if not kept:
            return "dropped"
        which = "all images" if self.fits or self.order[0] in group else "least sure images first"
        return which if kept == len(group) else f"{which}; {len(group) - kept} checkpoints dropped"

    def as_json(self) -> dict[str, Any]:
        """The plan for `run.json`."""
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


def arranged(plan: Plan) -> Plan:
    """Order the kept units; drop the least valuable while not even the least sure images have time for them.

    First comes the cheapest checkpoint's plain view, over all images. With enough time the others follow by weight
    per second, a checkpoint's views together: that settles most images soonest. Without, by worth per second.
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
    base = plan.once(first)
    while len(ranked) > 1 and base + LEAST_SHARE * plan.n_images * plan.seconds[ranked[1:]].sum() > plan.left:
        kept[ranked.pop()] = False
    return replace(plan, order=tuple(ranked), kept=kept)


def _by_weight(plan: Plan, usable: Sequence[int], first: int) -> tuple[int, ...]:
    """`first`, then by checkpoint, the most weight per second first; within one, the views as they come."""
    weight: Counter[str] = Counter()
    cost: Counter[str] = Counter()
    for u in usable:
        weight[plan.units[u].part.name] += plan.units[u].weight  # type: ignore[assignment]
        cost[plan.units[u].part.name] += float(plan.seconds[u])  # type: ignore[assignment]
    leading = plan.units[first].part.name

    def place(u: int) -> tuple[bool, float, str, int]:
        name = plan.units[u].part.name
        return name != leading, -weight[name] / max(cost[name], 1e-9), name, u

    return (first, *sorted((u for u in usable if u != first), key=place))


def choose_rows(votes: Votes, plan: Plan, unit: int, *, left: float, rule: StopRule) -> np.ndarray:
    """Rows (n,) that take a unit now: all that still need it if there is time for everything, else the least sure.

    When time is short, images without any vote come first, and then as many of the least sure as could go all the way
    through the units still to come. Those who were passed over come back in the next sweep, if time remains.
    """
    waiting = ~rule.finished(votes, plan.kept)
    rows = np.flatnonzero(waiting & ~votes.seen[:, unit])
    todo = ~votes.seen[waiting] & plan.kept
    if float((todo @ plan.seconds).sum()) <= left:
        return rows
    without_vote = np.flatnonzero(waiting & votes.unseen())
    if len(without_vote):
        return without_vote
    ahead = [u for u in plan.order[plan.order.index(unit) :] if plan.kept[u]]
    affordable = max(1, int(left / max(float(plan.seconds[ahead].sum()), 1e-9)))
    least_sure = rows[np.argsort(-votes.unsureness()[rows], kind="stable")]
    return np.sort(least_sure[:affordable])
