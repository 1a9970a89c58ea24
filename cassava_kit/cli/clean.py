"""Noise reports from files: out-of-fold files in, the report and its header out; entry point `clean_files`."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from cassava_kit.competition import known_competition
from cassava_kit.data.folds import read_folds
from cassava_kit.evidence.noise.clean import Cleaning, clean_labels
from cassava_kit.evidence.noise.decisions import Caps, check_decisions, read_decisions, write_noise_report
from cassava_kit.evidence.oof import read_evidence
from cassava_kit.files import check_apart, header_path, write_json
from cassava_kit.inference.features import check_embedding_source, embed_images


def clean_files(
    oof: Sequence[Path],
    folds: Path,
    out: Path,
    *,
    caps: Caps | None = None,
    embedding: Path | None = None,
    backbone: tuple[Path, Path] | None = None,
    decisions: Sequence[Path] = (),
) -> Cleaning:
    """Run `clean_labels` on out-of-fold files; write the report `out` and its header with the fold file's hash.

    Neighbours come from a file `embedding`, or from `backbone`: a checkpoint and a competition folder. Later files of
    `decisions` override earlier ones.

    Raises:
        UserError: A file is damaged or of another split, or `out` is one of the inputs.
    """
    check_apart([out, header_path(out)], [folds, *oof, *decisions, *filter(None, [embedding])])
    split = read_folds(folds)
    facts = known_competition(split.task.competition if split.task and backbone else None)
    check_embedding_source(embedding, backbone and backbone[0], competition=facts, fold_hash=split.hash)
    decided = read_decisions(decisions) if decisions else None
    evidence = read_evidence(oof, split)
    if decided is not None:
        check_decisions(decided, evidence.image_ids, evidence.pred_probs.shape[2])
    vectors, source = embed_images(evidence.image_ids, embedding, backbone, facts)
    found = clean_labels(evidence, caps=caps, embedding=vectors, decisions=decided)
    cleaning = replace(found, embedding=source)
    write_noise_report(out, cleaning.report)
    given = {"folds": [folds], "oof": oof, "embedding": [embedding] if embedding else [], "decisions": decisions}
    files = {kind: [os.path.relpath(path, Path(out).parent) for path in paths] for kind, paths in given.items()}
    write_json(header_path(out), {**cleaning.header(), "files": files})
    return cleaning
