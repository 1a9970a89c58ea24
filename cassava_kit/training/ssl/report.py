"""Whether pretraining helped: every start on the same folds, label shares and budget. Entry point: `ssl_report`."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pandas as pd

from cassava_kit.competition import Metric
from cassava_kit.data.progress import show_progress, tell
from cassava_kit.errors import UserError
from cassava_kit.evidence.compare import Comparison, compare, correct
from cassava_kit.evidence.metrics import Score, baseline, format_score, gain, score
from cassava_kit.files import write_json, write_text
from cassava_kit.inference.features import Pixels, readable_features
from cassava_kit.models.weights import find_weights_file
from cassava_kit.training.checks import check_run
from cassava_kit.training.config import RunConfig
from cassava_kit.training.fit import fit_fold
from cassava_kit.training.linear import linear_probs
from cassava_kit.training.recipes import run_name
from cassava_kit.training.rows import TrainData, TrainOptions, usable_rows
from cassava_kit.training.run_dir import find_reusable, run_fingerprint
from cassava_kit.training.ssl.probe import balanced_accuracy, balanced_answers, knn_probs

RANDOM = "random"
SHARES = (0.01, 0.1, 1.0)
PROBES: dict[str, Callable[..., np.ndarray]] = {"knn": knn_probs, "linear": linear_probs}
FINETUNE = "finetune"


@dataclass(frozen=True)
class SslResult:
    """Out-of-fold probabilities of one start, evaluation and share of the labels, on every scored row of the split."""

    init: str
    how: str
    share: float
    n_labels: int
    metric: Metric
    score: Score
    balanced: float
    probs: np.ndarray


@dataclass(frozen=True)
class SslReport:
    """All results, each start's paired comparison with random weights, and the verdict in words.

    A difference counts as proved after correction for all comparisons of the report. `baselines` has, by metric, the
    score of one answer for every image.
    """

    results: tuple[SslResult, ...]
    comparisons: dict[tuple[str, str, float], Comparison]
    baselines: dict[Metric, Score]
    verdict: str

    def table(self) -> pd.DataFrame:
        """Return one row a result, with its gain over random weights and the interval of that gain."""
        rows = []
        for result in self.results:
            against = self.comparisons.get((result.init, result.how, result.share))
            rows.append(
                {
                    "init": result.init,
                    "evaluation": result.how,
                    "share": result.share,
                    "labels": result.n_labels,
                    "metric": result.metric,
                    "score": result.score.value,
                    "standard_error": result.score.standard_error,
                    "balanced_accuracy": result.balanced,
                    "gain": against.difference if against else None,
                    "gain_low": against.interval[0] if against else None,
                    "gain_high": against.interval[1] if against else None,
                    "proved": against.proved if against else None,
                }
            )
        return pd.DataFrame(rows)


def ssl_report(
    config: RunConfig,
    data: TrainData,
    inits: Mapping[str, Path | None],
    out: Path,
    *,
    shares: Sequence[float] = SHARES,
    finetune: bool = True,
    options: TrainOptions | None = None,
) -> SslReport:
    """Probe and finetune the recipe's network from random weights and from each file, and write the report to `out`.

    Every start gets the same folds, the same labelled rows (`shares` of each fold's training rows) and, in finetuning,
    the same recipe. Writes ssl_report.csv, .json and .md, and the finetuned runs under `out/finetune/<init>/<share>/`,
    whose members may join an ensemble.

    Raises:
        UserError: a start, share, recipe or split that cannot be reported on, before slow work.
    """
    check_request(inits, shares)
    for weights in (None, *inits.values()):
        check_run(config, data, range(data.folds.n_splits), replace(options or TrainOptions(), weights=weights))
    starts: dict[str, Path | None] = {RANDOM: None, **inits}
    for name, weights in starts.items() if finetune else ():
        for share in shares:
            refuse_other_runs(config, data, share, _finetuned(out, name, share), weights=weights, options=options)
    labels = data.folds.scored["label"].to_numpy()
    results: list[SslResult] = []
    metric = data.competition.metric
    with show_progress():
        for name, weights in starts.items():
            features = start_features(config, data, weights, out / "features")
            for share in shares:
                for how, probe in PROBES.items():
                    found = probe_oof(features, data, share, probe)
                    results.append(score_result((name, how, share), labels, *found, metric))
                if finetune:
                    tell(f"{name}: finetuning with {share:.0%} of the labels")
                    arguments = (config, data, share, _finetuned(out, name, share))
                    probs, n = finetune_oof(*arguments, weights=weights, options=options)
                    results.append(score_result((name, FINETUNE, share), labels, probs, n, metric))
    report = compare_starts(results, labels)
    write_ssl_report(report, out)
    return report


def _finetuned(out: Path, name: str, share: float) -> Path:
    return out / FINETUNE / name / f"{share:g}"


def refuse_other_runs(
    config: RunConfig, data: TrainData, share: float, out: Path, *, weights: Path | None, options: TrainOptions | None
) -> None:
    """Raise UserError where a folder holds finetuned folds that differ from those to come and may not be replaced."""
    for fold in range(data.folds.n_splits):
        limit = labels_limit(data, fold, share)
        wanted = replace(options or TrainOptions(), weights=weights, limit=limit)
        find_reusable(out / run_name(config) / f"fold{fold}", run_fingerprint(config, data, fold, wanted), wanted)


def check_request(inits: Mapping[str, Path | None], shares: Sequence[float]) -> None:
    """Refuse a start or share that cannot be reported on, as UserError or FileNotFoundError."""
    if not inits or RANDOM in inits:
        raise UserError(f"give at least one start by name and file, and none called {RANDOM!r}, which is always there")
    for name, weights in inits.items():
        if weights is None:
            raise UserError(f"the start {name!r} needs a file of weights; random ones are always there")
        find_weights_file(weights)
    if not shares or not all(0 < share <= 1 for share in shares):
        raise UserError(f"shares of the labels must lie in 0..1, got {list(shares)}")


def start_features(config: RunConfig, data: TrainData, weights: Path | None, cache: Path) -> np.ndarray:
    """Return features (N, D) of all rows, in the split's order, by the recipe's backbone from this start."""
    import torch

    from cassava_kit.models.network import args_for_size, create_model, image_statistics
    from cassava_kit.models.weights import load_weights

    torch.manual_seed(config.seed)
    args = args_for_size(config.model, config.image_size, config.model_args)
    backbone = create_model(config.model, 0, model_args=args)
    if weights is not None:
        load_weights(backbone, weights)
    mean, std = image_statistics(backbone)
    return readable_features(backbone, data.paths(data.folds.frame), Pixels(config.image_size, mean, std), cache=cache)


def labelled_rows(data: TrainData, share: float) -> Iterator[tuple[int, pd.DataFrame]]:
    """Yield each fold with its labelled training rows, the same ones that finetuning trains on."""
    for fold in range(data.folds.n_splits):
        yield fold, usable_rows(data, fold, labels_limit(data, fold, share))[0]


def labels_limit(data: TrainData, fold: int, share: float) -> int | None:
    """Return the number of training rows that keep their label, at least one a class; None for all."""
    if share == 1:
        return None
    return max(round(share * len(data.folds.training(fold))), data.competition.n_classes)


def probe_oof(
    features: np.ndarray, data: TrainData, share: float, probe: Callable[..., np.ndarray]
) -> tuple[np.ndarray, int]:
    """Return a probe's out-of-fold pred_probs (N, K) on the scored rows, and the number of labels it had in a fold.

    `features` (M, D) are of all rows of the split, in its order.
    """
    frame, n_classes = data.folds.frame, data.competition.n_classes
    position = pd.Series(np.arange(len(frame)), index=frame["image_id"])
    probs, n = np.zeros((len(frame), n_classes)), 0
    for fold, rows in labelled_rows(data, share):
        train = position[rows["image_id"]].to_numpy()
        test = np.flatnonzero(frame["fold"].to_numpy() == fold)
        seen = np.unique(rows["label"])
        if len(seen) < 2:
            probs[test, seen[0]] = 1  # one class among so few labels: there is nothing to tell apart
        else:
            probs[test] = probe(features[train], rows["label"].to_numpy(), features[test], n_classes=n_classes)
        n += len(rows)
    return probs[position[data.folds.scored["image_id"]]], n // data.folds.n_splits


def finetune_oof(
    config: RunConfig, data: TrainData, share: float, out: Path, *, weights: Path | None, options: TrainOptions | None
) -> tuple[np.ndarray, int]:
    """Return the out-of-fold pred_probs (N, K) of the trainer from these weights, and the labels it had in a fold."""
    from cassava_kit.evidence.predictions import read_predictions

    scored = data.folds.scored
    position = pd.Series(np.arange(len(scored)), index=scored["image_id"])
    probs, n = np.zeros((len(scored), data.competition.n_classes)), 0
    for fold, rows in labelled_rows(data, share):
        limit = labels_limit(data, fold, share)
        result = fit_fold(
            config, data, fold, out, options=replace(options or TrainOptions(), weights=weights, limit=limit)
        )
        part = read_predictions(result.oof_file)
        probs[position[part.ids].to_numpy()] = part.probabilities
        n += len(rows)
    return probs, n // data.folds.n_splits


def choose_metric(how: str, metric: Metric) -> Metric:
    """Return the competition's metric, but accuracy for probes where it is log loss: they are not calibrated."""
    return "accuracy" if metric == "log_loss" and how in PROBES else metric


def score_result(
    name: tuple[str, str, float], labels: np.ndarray, probs: np.ndarray, n_labels: int, metric: Metric
) -> SslResult:
    """Score probabilities (N, K) of a start, an evaluation and a share; `metric` is the competition's."""
    own = choose_metric(name[1], metric)
    balanced = balanced_accuracy(labels, balanced_answers(probs, labels))
    return SslResult(*name, n_labels, own, score(labels, probs, own), balanced, probs)


def compare_starts(results: Sequence[SslResult], labels: np.ndarray) -> SslReport:
    """Compare every start with random weights, in pairs, and put the outcome into words."""
    base = {(r.how, r.share): r for r in results if r.init == RANDOM}
    others = [r for r in results if r.init != RANDOM]
    pairs = [
        compare(labels, base[r.how, r.share].probs, r.probs, metric=r.metric, names=(RANDOM, r.init)) for r in others
    ]
    keys = [(r.init, r.how, r.share) for r in others]
    comparisons = dict(zip(keys, correct(pairs), strict=True))
    baselines = {r.metric: baseline(r.metric, labels, r.probs.shape[1]) for r in results}
    return SslReport(tuple(results), comparisons, baselines, summarize(comparisons, baselines))


def summarize(comparisons: Mapping[tuple[str, str, float], Comparison], baselines: Mapping[Metric, Score]) -> str:
    """Return a sentence for each start: where it is proved better or worse than random weights, and where neither."""
    sentences = []
    for init in dict.fromkeys(name for name, _, _ in comparisons):
        better: list[str] = []
        worse: list[str] = []
        open_: list[str] = []
        for (name, how, share), outcome in comparisons.items():
            if name != init:
                continue
            where = f"{how} with {share:.0%} of the labels ({outcome.difference:+.3f})"
            (open_ if not outcome.proved else better if outcome.difference > 0 else worse).append(where)
        said = [
            f"{word} {', '.join(places)}"
            for word, places in (("better in", better), ("worse in", worse), ("no difference proved in", open_))
            if places
        ]
        mine = [c for (name, _, _), c in comparisons.items() if name == init]
        useless = all(gain(c.metric, baselines[c.metric].value, c.b.value) <= 0 for c in mine)
        tail = "; it never beats one answer for every image" if useless else ""
        sentences.append(f"{init} against random weights: {'; '.join(said)}{tail}.")
    return "\n".join(sentences)


def write_ssl_report(report: SslReport, out: Path) -> None:
    """Write ssl_report.csv, .json and .md, each atomically."""
    table = report.table()
    write_text(out / "ssl_report.csv", table.to_csv(index=False, float_format="%.6g", lineterminator="\n"))
    constant = {m: {"score": s.value, "standard_error": s.standard_error} for m, s in report.baselines.items()}
    rows = [{k: None if pd.isna(v) else v for k, v in row.items()} for row in table.to_dict("records")]
    write_json(out / "ssl_report.json", {"results": rows, "one_answer": constant, "verdict": report.verdict})
    write_text(out / "ssl_report.md", format_markdown(report))


def format_markdown(report: SslReport) -> str:
    """Return the report as Markdown: verdict first, then the table."""
    lines = [
        "# Did self-supervised pretraining help?",
        "",
        *(f"- {sentence}" for sentence in report.verdict.splitlines()),
        f"- One answer for every image: {'; '.join(map(format_score, report.baselines.values()))}.",
        f"- Proved means proved among all {len(report.comparisons)} comparisons of this report (Holm's correction).",
        "",
        "| start | evaluation | labels | score | balanced accuracy | gain over random weights |",
        "|---|---|---|---|---|---|",
    ]
    for result in report.results:
        against = report.comparisons.get((result.init, result.how, result.share))
        verdict_of = against.verdict() if against else ""
        cells = (result.init, result.how, f"{result.n_labels:,} ({result.share:.0%})", format_score(result.score))
        lines.append(f"| {' | '.join(cells)} | {result.balanced:.3f} | {verdict_of} |")
    return "\n".join(lines) + "\n"
