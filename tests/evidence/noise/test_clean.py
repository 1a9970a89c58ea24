import json
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch
from cleanlab.filter import find_label_issues
from cleanlab.rank import get_label_quality_scores

from cassava_kit.cli.clean import clean_files
from cassava_kit.competition import CASSAVA, VARIABLE, Competition, current, write_facts
from cassava_kit.data.folds import read_folds, write_folds
from cassava_kit.data.stratify import split_folds
from cassava_kit.errors import UserError
from cassava_kit.evidence.noise.clean import describe_weakness, find_label_errors
from cassava_kit.evidence.noise.decisions import Caps, read_noise_report
from cassava_kit.evidence.noise.detect import detect_errors
from cassava_kit.evidence.noise.neighbours import neighbour_agreement
from cassava_kit.evidence.predictions import Header, Predictions, make_predictions, write_predictions
from cassava_kit.models.checkpoint import CheckpointInfo, save_checkpoint
from cassava_kit.report.review import ReviewFiles, review_files

N, K = 400, 5


@pytest.fixture
def competition(tmp_path):
    """A fold file and two members' out-of-fold files over labels of which every tenth is wrong."""
    rng = np.random.default_rng(0)
    true = rng.choice(K, N, p=[0.1, 0.15, 0.15, 0.45, 0.15])
    wrong = np.arange(N) % 10 == 0
    given = np.where(wrong, (true + 1 + rng.integers(0, K - 1, N)) % K, true)
    wrong = given != true
    ids = np.array([f"{i:03d}.jpg" for i in range(N)])
    split = split_folds(pd.DataFrame({"image_id": ids, "label": given}), n_splits=5, seed=0)
    write_folds(tmp_path / "folds.csv", split)
    for m in range(2):
        p = 0.8 * np.eye(K)[true] + 0.2 * rng.dirichlet(np.ones(K), N)
        header = Header(name=f"m{m}", kind="oof", fold_hash=split.hash)
        fold = split.frame["fold"].to_numpy()
        write_predictions(tmp_path / f"m{m}.csv", make_predictions(ids, p, header=header, fold=fold))
    return tmp_path, set(ids[wrong])


def files(folder):
    return [folder / "m0.csv", folder / "m1.csv"], folder / "folds.csv", folder / "clean.csv"


def test_the_wrong_labels_head_the_report_and_only_the_cap_is_removed(competition):
    folder, wrong = competition
    cleaning = clean_files(*files(folder), caps=Caps(0.03, 0.5))
    report = read_noise_report(folder / "clean.csv")
    assert len(set(report["image_id"][: len(wrong)]) & wrong) > 0.9 * len(wrong)
    assert (~report["keep"]).sum() == 12
    assert set(report["image_id"][~report["keep"]]) <= wrong
    assert len(report) == N
    text = str(cleaning)
    for words in ("m0, m1 on 400 rows, given labels", "12 rows are not kept", "validation keeps every row", "Healthy"):
        assert words in text
    header = json.loads((folder / "clean.json").read_text())
    assert header["removed"] == 12 and header["members"] == ["m0", "m1"] and len(header["noise_matrix"]) == K


@pytest.mark.parametrize(("own_errors", "warns"), [(60, False), (140, True)])
def test_members_that_err_more_often_than_labels_are_warned_of(own_errors, warns):
    rng = np.random.default_rng(0)
    labels = rng.integers(0, K, N)
    said = np.where(np.arange(N) < own_errors, (labels + 1) % K, labels)
    errors = detect_errors(labels, 0.6 * np.eye(K)[said] + 0.4 / K)
    warning = describe_weakness(errors)
    assert bool(warning) == warns
    if warns:  # 140 of 400 rows: 35 %; were 40 of them wrong labels, 100 of 140 are the members' own errors
        assert "disagree with 35.0% of the given labels" in warning and "at least 71% of the disagreements" in warning


def test_the_warning_is_printed_and_written(competition):
    folder, _ = competition
    rng = np.random.default_rng(1)
    weak = pd.read_csv(folder / "m0.csv")
    assert "warning" not in str(clean_files(*files(folder)))
    assert json.loads((folder / "clean.json").read_text())["warning"] is None
    columns = [name for name in weak.columns if name.startswith(("p", "c")) and weak[name].dtype == float]
    assert len(columns) == K
    turned = weak[columns].to_numpy()
    rows = rng.random(N) < 0.4
    turned[rows] = np.roll(turned[rows], 1, axis=1)
    weak[columns] = turned
    weak.to_csv(folder / "m0.csv", index=False)
    said = str(clean_files([folder / "m0.csv"], *files(folder)[1:]))
    assert "warning: the members disagree with" in said
    assert json.loads((folder / "clean.json").read_text())["warning"] in said


def test_the_oof_contract_is_enforced_before_anything_is_written(competition):
    folder, _ = competition
    oof, folds, out = files(folder)
    broken = Predictions(
        make_predictions(np.array(["a"]), np.array([[0.2] * 5]), header=Header(name="x", kind="oof")).frame
    )
    write_predictions(folder / "foreign.csv", broken)
    with pytest.raises(ValueError, match="foreign"):
        clean_files([*oof, folder / "foreign.csv"], folds, out)
    assert not out.exists()


def test_decisions_reach_the_report(competition):
    folder, wrong = competition
    oof, folds, out = files(folder)
    worst = min(wrong)
    (folder / "decisions.csv").write_text(f"image_id,decision,label\n{worst},keep,0\n")
    clean_files(oof, folds, out, caps=Caps(0.1, 1.0), decisions=[folder / "decisions.csv"])
    report = read_noise_report(out).set_index("image_id")
    assert report.loc[worst, "keep"] and (~report["keep"]).sum() > 20


def test_a_second_look_keeps_the_first_ones_decisions(competition):
    folder, wrong = competition
    oof, folds, out = files(folder)
    first, second = sorted(wrong)[:2]
    one, two = folder / "one.csv", folder / "two.csv"
    one.write_text(f"image_id,decision,label\n{first},keep,0\n{second},keep,0\n")
    two.write_text(f"image_id,decision,label\n{second},drop,0\n")
    clean_files(oof, folds, out, caps=Caps(0.1, 1.0), decisions=[one, two])
    report = read_noise_report(out).set_index("image_id")
    assert report.loc[first, "keep"] and not report.loc[second, "keep"]
    assert json.loads(out.with_suffix(".json").read_text())["files"]["decisions"] == ["one.csv", "two.csv"]
    with pytest.raises(ValueError, match="give --out another name"):
        clean_files(oof, folds, two, decisions=[one, two])


@pytest.mark.parametrize(
    ("row", "message"), [("new.jpg,keep,0", "new.jpg, which is not in the fold file"), ("000.jpg,keep,9", "label 9")]
)
def test_decisions_are_checked_before_any_image_is_looked_at(competition, monkeypatch, row, message):
    folder, _ = competition
    oof, folds, out = files(folder)
    (folder / "d.csv").write_text(f"image_id,decision,label\n{row}\n")
    monkeypatch.setattr("cassava_kit.inference.features.backbone_embedding", lambda *_, **__: pytest.fail("looked"))
    write_backbone(folder / "b.safetensors")
    (folder / "train_images").mkdir()
    with pytest.raises(ValueError, match=message):
        clean_files(oof, folds, out, backbone=(folder / "b.safetensors", folder), decisions=[folder / "d.csv"])


def write_backbone(path, **header):
    """A checkpoint's header with some tensor behind it."""
    shape = {"model": "resnet18", "input_size": (32, 32), "mean": (0.5,) * 3, "std": (0.2,) * 3, "recipe": "tiny"}
    info = CheckpointInfo(**{**shape, "n_classes": 0, **header})
    save_checkpoint(path, {"weight": torch.zeros(2)}, info)


def test_a_report_that_its_header_would_replace_is_refused(competition):
    folder, _ = competition
    oof, folds, _ = files(folder)
    with pytest.raises(ValueError, match=r"expected a name that ends in .csv"):
        clean_files(oof, folds, folder / "c.json")
    assert not (folder / "c.json").exists()


def test_the_counts_the_classes_and_the_noise_matrix_are_told_and_written(competition):
    folder, _ = competition
    cleaning = clean_files(*files(folder), caps=Caps(0.1, 0.08))
    header = json.loads((folder / "clean.json").read_text())
    evidence = cleaning.evidence
    mean, labels = evidence.pred_probs.mean(axis=0), evidence.labels
    flags = find_label_issues(labels, mean, n_jobs=1)
    assert header["flagged"] == flags.sum() > 10
    assert header["plain_disagreement"] == (mean.argmax(axis=1) != labels).sum() > 10
    assert header["never_predicted"] == [] and header["flags_taken_back"] == 0
    report = read_noise_report(folder / "clean.csv")
    removed = report[~report["keep"]]["label"].value_counts()
    for k, row in enumerate(header["by_class"]):
        assert row["rows"] == (labels == k).sum() and row["removed"] == removed.get(k, 0)
        assert row["removed"] <= 0.08 * row["rows"], "the share of a class is capped"
    assert sum(row["removed"] for row in header["by_class"]) == header["removed"]
    assert np.sum(header["noise_matrix"], axis=0) == pytest.approx(np.ones(K), abs=1e-5)
    text = str(cleaning)
    assert f"{flags.sum():,} of 400 labels (" in text and f"{header['plain_disagreement']:,} (" in text
    assert "indirectly seen labels of the fold it is scored on" in text and header["labels_seen"] in text


def test_a_foreign_file_is_held_to_its_fold_column(competition):
    folder, _ = competition
    oof, folds, out = files(folder)
    (folder / "m0.json").unlink()
    table = pd.read_csv(oof[0], dtype={"image_id": str}).sample(frac=1, random_state=0)
    table.to_csv(oof[0], index=False)
    clean_files(oof, folds, out)
    table["fold"] = (table["fold"] + (table["image_id"] == "017.jpg")) % 5
    table.to_csv(oof[0], index=False)
    with pytest.raises(ValueError, match=r"m0 has fold \d for 017.jpg, the fold file has \d"):
        clean_files(oof, folds, out)


def test_the_report_is_never_written_over_what_it_is_made_from(competition):
    folder, _ = competition
    oof, folds, _ = files(folder)
    for out in (oof[0], folds, folder / "m1.csv"):
        before = out.read_bytes()
        with pytest.raises(ValueError, match="give --out another name"):
            clean_files(oof, folds, out)
        assert out.read_bytes() == before


def test_an_embedding_is_a_second_column_and_flags_nothing(competition):
    folder, _ = competition
    oof, folds, out = files(folder)
    without = clean_files(oof, folds, out).report
    ids = np.array([f"{i:03d}.jpg" for i in range(N)])
    vectors = np.random.default_rng(0).normal(size=(N, 4))
    np.savez(folder / "e.npz", image_id=ids, embedding=vectors)
    cleaning = clean_files(oof, folds, out, embedding=folder / "e.npz")
    report = read_noise_report(out)
    pd.testing.assert_frame_equal(cleaning.report.drop(columns="neighbour_agreement"), without)
    labels = cleaning.evidence.labels
    by_id = pd.Series(neighbour_agreement(vectors, labels), index=ids)
    assert report.set_index("image_id")["neighbour_agreement"].to_dict() == pytest.approx(by_id.to_dict(), abs=1e-5)
    assert json.loads((folder / "clean.json").read_text())["embedding"] == "e.npz"
    assert "neighbours in e.npz" in str(cleaning) and "flag nothing" in str(cleaning)
    with pytest.raises(ValueError, match="not both"):
        clean_files(oof, folds, out, embedding=folder / "e.npz", backbone=(folder / "b", folder))
    write_backbone(folder / "b.safetensors")
    with pytest.raises(FileNotFoundError, match="--data must be the competition folder"):
        clean_files(oof, folds, out, backbone=(folder / "b.safetensors", folder))


@pytest.mark.parametrize("verb", ["clean", "review"])
def test_a_backbone_that_has_learnt_these_labels_is_refused(competition, verb):
    """Its features of its own training rows say what their labels say, wrong ones included."""
    folder, _ = competition
    oof, folds, out = files(folder)
    clean_files(oof, folds, out)

    def look():
        if verb == "clean":
            clean_files(oof, folds, folder / "again.csv", backbone=(folder / "b.safetensors", folder))
        else:
            review_files(out, folder, folder / "r.html", files=ReviewFiles(backbone=folder / "b.safetensors"))

    for learnt in ({"n_classes": 5, "competition": current().slug, "fold": 1}, {"config": {"init": "resnet50-fold1"}}):
        write_backbone(folder / "b.safetensors", **learnt)
        with pytest.raises(UserError, match="has learnt labels of these images"):
            look()
    for other in ({"competition": "another-competition"}, {"classes": ("a", "b", "c", "d", "e")}):
        write_backbone(folder / "b.safetensors", n_classes=5, **other)
        with pytest.raises(FileNotFoundError):
            look()


@pytest.mark.parametrize("verb", ["clean", "review"])
def test_whose_labels_a_backbone_has_learnt_is_known_in_any_folder(competition, monkeypatch, verb):
    """The fold file and the report name their competition; the folder that a user works in says nothing of them."""
    folder, _ = competition
    oof, folds, out = files(folder)
    write_folds(folds, replace(read_folds(folds), task=CASSAVA.task), replace=True)
    clean_files(oof, folds, out)
    header = json.loads((folder / "clean.json").read_text())
    assert {key: header[key] for key in CASSAVA.task.header()} == CASSAVA.task.header()
    write_facts(folder / "other.json", Competition(slug="flowers", title="Flowers", classes=("rose", "tulip")))
    monkeypatch.setenv(VARIABLE, str(folder / "other.json"))
    backbone = folder / "b.safetensors"

    def look():
        if verb == "clean":
            clean_files(oof, folds, folder / "again.csv", backbone=(backbone, folder))
        else:
            review_files(out, folder, folder / "r.html", files=ReviewFiles(backbone=backbone))

    same_split = {"competition": "flowers", "fold_hash": read_folds(folds).hash, "fold": 0}
    for learnt in ({"competition": CASSAVA.slug}, same_split):
        write_backbone(backbone, n_classes=5, **learnt)
        with pytest.raises(UserError, match="has learnt labels of these images"):
            look()
    write_backbone(backbone, n_classes=2, competition="flowers")
    with pytest.raises(FileNotFoundError, match="train_images"):
        look()
    own = replace(CASSAVA.task, competition="cassava-again")
    write_folds(folds, replace(read_folds(folds), task=own), replace=True)
    (folder / "clean.json").write_text(json.dumps(header | own.header()))
    with pytest.raises(UserError, match="the files are of cassava-again, this folder is for flowers"):
        look()


def test_label_errors_of_plain_arrays_are_cleanlabs_in_the_given_order():
    rng = np.random.default_rng(1)
    true = rng.choice(K, 300)
    given = np.where(np.arange(300) % 8 == 0, (true + 1) % K, true)
    p = 0.8 * np.eye(K)[true] + 0.2 * rng.dirichlet(np.ones(K), 300)
    names = [f"img{i}.png" for i in range(300)]
    table = find_label_errors(given.tolist(), [p.tolist(), p.tolist()], image_ids=names)
    assert list(table.columns) == ["image_id", "label", "suggested_label", "label_quality", "keep", "flagged"]
    assert table["image_id"].tolist() == names and table["label"].tolist() == given.tolist()
    flags = find_label_issues(given, p, n_jobs=1)
    assert np.array_equal(table["flagged"], flags) and flags.sum() > 30
    assert np.allclose(table["label_quality"], get_label_quality_scores(given, p, method="normalized_margin"))
    assert (~table["keep"]).sum() == 9 and table["flagged"][~table["keep"]].all()
    worst = table[table["flagged"]].sort_values("label_quality").head(9)
    assert not worst["keep"].any(), "the three in a hundred with the lowest quality"
    assert (~find_label_errors(given, p, max_share=0.01)["keep"]).sum() == 3
    vectors = rng.normal(size=(300, 4))
    more = find_label_errors(given, p, embedding=vectors)
    assert more["image_id"].tolist() == [str(i) for i in range(300)]
    assert more["neighbour_agreement"].tolist() == pytest.approx(neighbour_agreement(vectors, given).tolist())


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ({"image_ids": ["a", "a", "b", "c"]}, r"4 different names, one for each label, got 4 \(3 different\)"),
        ({"image_ids": ["a"]}, "4 different names"),
        ({"embedding": np.zeros((3, 2))}, "one vector for each of 4 labels, got 3"),
        ({"max_share": 0.2}, "max_share must be a share in 0..0.1, got 0.2"),
    ],
)
def test_what_label_errors_cannot_use_is_refused(more, message):
    with pytest.raises(UserError, match=message):
        find_label_errors([0, 1, 0, 1], np.full((4, 2), 0.5), **more)
