"""Whether an ensemble is below its best member, and which members to leave out: `below_best`."""

from __future__ import annotations

import numpy as np

from cassava_kit.evidence.compare import compare
from cassava_kit.evidence.metrics import gain, score
from cassava_kit.evidence.nested import blend_nested, select_members
from cassava_kit.evidence.oof import Evidence


def below_best(evidence: Evidence, method: str) -> str:
    """Return a sentence where the ensemble scores below its best member, by the evidence's metric; else an empty text.

    The ensemble's score is nested: each fold is blended with weights found on the others. Its best member was chosen
    on the rows that are scored, which flatters it a little. Members are named that the blend is better without: one
    after the other, as long as leaving one out helps; where that leads nowhere, all but the best.
    """
    if len(evidence.names) < 2:
        return ""
    labels, metric = evidence.labels, evidence.metric
    values = [score(labels, p, metric).value for p in evidence.pred_probs]
    best = int(np.argmax([gain(metric, 0.0, value) for value in values]))
    whole = blend_nested(evidence, method)
    if gain(metric, values[best], score(labels, whole, metric).value) >= 0:
        return ""
    found = compare(labels, evidence.pred_probs[best], whole, metric=metric, names=(evidence.names[best], "ensemble"))
    leave = leave_out(evidence, method) or [name for m, name in enumerate(evidence.names) if m != best]
    size = f"{abs(found.difference):.4f} ± {found.half_width:.4f}{'' if found.proved else ' (not proved)'}"
    names = evidence.names[best], ", ".join(leave)
    return f"The ensemble is below its best member, {names[0]}, by {size}; leave out {names[1]}."


def leave_out(evidence: Evidence, method: str) -> list[str]:
    """Return the members to leave out: each time the one without which the blend scores best, as long as it gains."""
    kept, out = list(range(len(evidence.names))), []
    value = _blend_value(evidence, kept, method)
    while len(kept) > 1:
        others = {m: _blend_value(evidence, [k for k in kept if k != m], method) for m in kept}
        worst = max(kept, key=lambda m: gain(evidence.metric, 0.0, others[m]))
        if gain(evidence.metric, value, others[worst]) <= 0:
            break
        kept.remove(worst)
        out.append(evidence.names[worst])
        value = others[worst]
    return out


def _blend_value(evidence: Evidence, members: list[int], method: str) -> float:
    blended = blend_nested(select_members(evidence, members), method)
    return float(score(evidence.labels, blended, evidence.metric).value)
