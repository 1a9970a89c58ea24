"""Results on real photographs as one page: every member out of fold over five folds, compared in pairs, in words.

    PYTHONPATH=. python benchmarks/results.py --data DIR --weights mobilenetv2_100=FILE --out results-128.md
                                              [--work build/results] [--only NAME ...] [--best]

DIR is a competition folder, FILE the ImageNet weights of `timm.create_model("mobilenetv2_100", pad_type="same")`. What
was broken off goes on: finished runs in the work folder are reused. `--best` also tries candidates for the best recipe.
"""

from __future__ import annotations

import argparse
import shlex
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
from results_best import CANDIDATES, CHOSEN, chosen_nested
from results_members import (
    FINETUNED,
    MEMBERS,
    NETWORKS,
    PROBE,
    Made,
    Member,
    Plan,
    Shop,
    finetuned_config,
    open_shop,
    with_views,
)
from results_page import MEAN, WEIGHTED, Facts, comparisons, exit_code, page, score_rows, sentences, table

from cassava_kit.cli.dry_run_members import parse_weights
from cassava_kit.errors import UserError
from cassava_kit.evidence.nested import Judgement, blend_nested, judge_methods
from cassava_kit.evidence.oof import Evidence, make_evidence
from cassava_kit.files import write_text

METHOD = "logloss"


def wanted(members: Sequence[Member], only: Sequence[str]) -> list[Member]:
    """The members named (none: all) and those they are made from, in the list's order."""
    known = {member.name: member for member in members}
    strangers = [name for name in only if name not in known]
    if strangers:
        raise UserError(f"no member {', '.join(strangers)}; members are {', '.join(known)}")
    names, more = set(), list(only or known)
    while more:
        name = more.pop()
        names.add(name)
        more += known[name].needs
    return [member for member in members if member.name in names]


def make(shop: Shop, members: Iterable[Member]) -> None:
    """Make members one after another; each is told with its minutes."""
    for member in members:
        print(f"{member.name}: {member.about}", file=sys.stderr)
        shop.made[member.name] = member.make(shop)
        print(f"{member.name}: {shop.made[member.name].seconds / 60:.1f} minutes", file=sys.stderr)


def evidence_of(shop: Shop, names: Sequence[str]) -> Evidence:
    """Members' out-of-fold probabilities on the split's rows, contracts checked."""
    return make_evidence([shop.made[name].predictions for name in names], shop.data.folds, names)


def viewed(shop: Shop, names: Sequence[str]) -> dict[str, Made]:
    """The members through four views each."""
    return {name: with_views(name, "flips", shop) for name in names}


def ensembles(shop: Shop) -> tuple[dict[str, np.ndarray], dict[str, float], str]:
    """The networks' ensembles, plain and weighted, without and with views (N, K); seconds; what weighing proves."""
    names = [name for name in NETWORKS if name in shop.made]
    if len(names) < 2:
        return {}, {}, ""
    seen = viewed(shop, names)
    plain = evidence_of(shop, names)
    flipped = make_evidence([seen[name].predictions for name in names], shop.data.folds, names)
    made = {MEAN: plain.pred_probs.mean(axis=0), WEIGHTED: blend_nested(plain, METHOD)}
    made |= {f"{MEAN}, flips": flipped.pred_probs.mean(axis=0), f"{WEIGHTED}, flips": blend_nested(flipped, METHOD)}
    paid = [each.seconds for name, each in seen.items() if each.checkpoints and f"{name}, flips" not in shop.made]
    judgement = judge_methods(plain)
    return made, {f"{MEAN}, flips": sum(paid)}, weighing(judgement, len(names))


def weighing(judgement: Judgement, n: int) -> str:
    """What nested judging says of the ways to weigh n networks, against their plain mean."""
    each = "; ".join(f"{name} {c.summary()}" for name, c in judgement.comparisons.items())
    return f"Weights of the {n} networks, found on four folds and judged on the fifth, against the plain mean: {each}."


def best_part(shop: Shop, candidates: Sequence[Member]) -> str:
    """The candidates' table, what choosing among them is worth where it is judged on other rows, and comparisons."""
    names = [PROBE, FINETUNED, *(member.name for member in candidates)]
    answers, chosen = chosen_nested(evidence_of(shop, names))
    probabilities = {name: shop.made[name].predictions.probabilities for name in names} | {CHOSEN: answers}
    scored = score_rows(shop.labels, shop.fold, probabilities)
    found = comparisons(scored, [("", PROBE, name) for name in [*names[1:], CHOSEN]])
    abouts = {member.name: member.about for member in (*MEMBERS, *candidates)}
    seconds = {name: shop.made[name].seconds for name in names}
    return "\n\n".join(
        [
            "## How far above the frozen probe?",
            table(scored, abouts, seconds),
            f"The best line of a table is flattered by having been chosen on these rows. The last one is not: for each "
            f"fold it is what was best on the other four ({', '.join(chosen)}). Minutes of a mean are its members'.",
            "\n".join(line.replace("-  ", "- ", 1) for line in sentences(found)),
        ]
    )


def results(plan: Plan, out: Path, *, command: str, best: bool = False) -> Path:
    """Make what the plan asks for, then write the page; returns where it lies."""
    members = wanted(MEMBERS, plan.only)
    if best:
        members = wanted(MEMBERS, [*(member.name for member in members), PROBE, FINETUNED])
    shop = open_shop(plan)
    make(shop, members)
    blends, paid, judgement = ensembles(shop)
    probabilities = {member.name: shop.made[member.name].predictions.probabilities for member in members} | blends
    seconds = {member.name: shop.made[member.name].seconds for member in members} | paid
    section = ""
    if best:
        make(shop, CANDIDATES)
        section = best_part(shop, CANDIDATES)
    config = finetuned_config(shop)
    said = (
        f"The ImageNet backbone is {config.model} ({plan.weights[1].name}) at {config.image_size} pixels, "
        f"{config.epochs} epochs in batches of {config.batch_size}; every network sees light augmentation."
    )
    facts = Facts(command, said, seconds, shop.grouped, {member.name: member.about for member in members}, judgement)
    write_text(out, page(score_rows(shop.labels, shop.fold, probabilities), facts, section))
    return out


def command_line(arguments: argparse.Namespace) -> str:
    """The command as another reader would give it: folders by their meaning, choices as they were."""
    parts = ["PYTHONPATH=. python benchmarks/results.py --data DIR"]
    parts.append(f"--weights {arguments.weights.partition('=')[0]}=FILE --out {arguments.out.name}")
    for option, values in (("--only", arguments.only), ("--set", arguments.set), ("--ssl-set", arguments.ssl_set)):
        parts += [f"{option} {shlex.join(values)}"] if values else []
    return " ".join([*parts, *(["--best"] if arguments.best else [])])


def main() -> None:
    """Read the arguments, make the page, say where it is."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="competition folder")
    parser.add_argument("--weights", required=True, metavar="NAME=FILE", help="ImageNet backbone and its weights")
    parser.add_argument("--out", type=Path, required=True, help="page to write")
    parser.add_argument("--work", type=Path, default=Path("build/results"), help="folder of runs, reused")
    parser.add_argument("--only", nargs="+", default=[], metavar="NAME", help="members to make (default: all)")
    parser.add_argument(
        "--set", nargs="+", default=[], metavar="NAME=VALUE", help="for every network; sizes: the finetuned"
    )
    parser.add_argument("--ssl-set", nargs="+", default=[], metavar="NAME=VALUE", help="change every pretraining")
    parser.add_argument("--best", action="store_true", help="also try candidates for the best recipe")
    arguments = parser.parse_args()
    (weights,) = parse_weights([arguments.weights])
    plan = Plan(
        data=arguments.data,
        weights=weights,
        work=arguments.work,
        only=tuple(arguments.only),
        settings=tuple(arguments.set),
        ssl_settings=tuple(arguments.ssl_set),
    )
    print(results(plan, arguments.out, command=command_line(arguments), best=arguments.best))


if __name__ == "__main__":
    sys.exit(exit_code(main))
