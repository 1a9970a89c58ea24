import numpy as np
import pandas as pd
import pytest
import torch

from cassava_kit.evidence.noise.decisions import (
    ACTIONS,
    Caps,
    apply_noise_report,
    check_noise_report,
    choose_removed,
    class_table,
    estimate_noise_matrix,
    make_noise_report,
    read_decisions,
    read_noise_report,
    write_noise_report,
)
from cassava_kit.evidence.noise.detect import LabelErrors
from cassava_kit.training.losses import mean_without_largest

N = 200
LABELS = np.repeat([0, 1, 2], [20, 60, 120])
IDS = np.array([f"{i:03d}.jpg" for i in range(N)])


def detection(flagged):
    quality = np.linspace(0.01, 1, N)
    flags = np.isin(np.arange(N), flagged)
    suggested = np.where(flags, (LABELS + 1) % 3, LABELS)
    return LabelErrors(LABELS, quality, flags, suggested, np.full((N, 3), 1 / 3))


def decisions(*rows):
    return pd.DataFrame(rows, columns=["image_id", "decision", "label"])


def test_removal_stops_at_both_caps_and_takes_the_most_suspicious():
    flagged = detection(range(40))
    removed = choose_removed(LABELS, flagged.quality, flagged.flags, caps=Caps(0.10, 0.10))
    # Of class 0 (20 rows) two may go, of class 1 (60 rows) six: the worst of each.
    assert np.flatnonzero(removed).tolist() == [0, 1, 20, 21, 22, 23, 24, 25]
    removed = choose_removed(LABELS, flagged.quality, flagged.flags, caps=Caps(0.02, 0.10))
    assert np.flatnonzero(removed).tolist() == [0, 1, 20, 21]


def test_nothing_that_is_not_flagged_is_removed():
    report = make_noise_report(IDS, detection([5, 30]), caps=Caps(0.10, 1.0))
    assert sorted(report["image_id"][~report["keep"]]) == ["005.jpg", "030.jpg"]


def test_a_cap_of_zero_removes_nothing_and_one_over_a_tenth_is_refused():
    assert make_noise_report(IDS, detection(range(50)), caps=Caps(0.0))["keep"].all()
    with pytest.raises(ValueError, match=r"share in 0..0.1, got 0.11"):
        Caps(0.11)
    with pytest.raises(ValueError, match="cap of a class"):
        Caps(0.05, 1.5)


def test_the_default_cap_is_three_in_a_hundred():
    assert (~make_noise_report(IDS, detection(range(20, 200)))["keep"]).sum() == 6


def test_the_report_is_sorted_and_comes_back_from_the_disk(tmp_path):
    report = make_noise_report(IDS, detection([150, 3]))
    assert report["label_quality"].is_monotonic_increasing
    assert list(report.columns) == ["image_id", "label", "suggested_label", "label_quality", "keep", "by_eye"]
    write_noise_report(tmp_path / "clean.csv", report)
    read = read_noise_report(tmp_path / "clean.csv")
    pd.testing.assert_frame_equal(read, report, rtol=1e-5)
    text = (tmp_path / "clean.csv").read_text()
    assert text.splitlines()[0] == "image_id,label,suggested_label,label_quality,keep,by_eye"
    older = [line.rpartition(",")[0] for line in text.splitlines()]
    (tmp_path / "clean.csv").write_text("\n".join(older) + "\n")
    pd.testing.assert_frame_equal(read_noise_report(tmp_path / "clean.csv"), read)
    with_column = make_noise_report(IDS, detection([3]), agreement=np.linspace(0, 1, N))
    write_noise_report(tmp_path / "clean.csv", with_column)
    read = read_noise_report(tmp_path / "clean.csv").set_index("image_id")["neighbour_agreement"]
    assert read["003.jpg"] == pytest.approx(3 / 199, abs=1e-5)


def test_any_file_name_comes_back(tmp_path):
    ids = np.array(["NA", "a\rb.jpg", "null", *IDS[3:]])
    write_noise_report(tmp_path / "clean.csv", make_noise_report(ids, detection([3])))
    assert set(read_noise_report(tmp_path / "clean.csv")["image_id"]) == set(ids)
    (tmp_path / "d.csv").write_text("image_id,decision,label\nNA,drop,0\n")
    assert read_decisions([tmp_path / "d.csv"])["image_id"].tolist() == ["NA"]


def test_eyes_come_before_estimates():
    decided = decisions(("000.jpg", "keep", 0), ("199.jpg", "drop", 2), ("100.jpg", "relabel", 0))
    report = make_noise_report(IDS, detection([0, 30]), caps=Caps(0.01), decisions=decided).set_index("image_id")
    assert report.loc["000.jpg", "keep"] and report.loc["000.jpg", "suggested_label"] == 0
    assert not report.loc["199.jpg", "keep"]
    assert report.loc["100.jpg", "keep"] and report.loc["100.jpg", "suggested_label"] == 0
    assert report["by_eye"].sum() == 3
    assert report.loc["100.jpg", "label_quality"] == 0 == report.loc["199.jpg", "label_quality"], "eyes leave no doubt"
    assert report.loc["000.jpg", "label_quality"] > 0
    # One of the two rows that the cap allows was dropped by eye; one estimate still fits.
    assert not report.loc["030.jpg", "keep"]
    tighter = make_noise_report(IDS, detection([0, 30]), caps=Caps(0.005), decisions=decided).set_index("image_id")
    assert tighter.loc["030.jpg", "keep"]


@pytest.mark.parametrize("action", ACTIONS)
def test_what_eyes_decided_applies_whatever_the_action(action, tmp_path):
    """Row 100 (label 2, not even suspicious) is relabelled 0, row 0 dropped, row 30 kept; row 31 is an estimate."""
    decided = decisions(
        ("000.jpg", "drop", 0), ("100.jpg", "relabel", 0), ("030.jpg", "keep", 1), ("031.jpg", "relabel", 1)
    )
    write_noise_report(tmp_path / "clean.csv", make_noise_report(IDS, detection([0, 30, 31, 32]), decisions=decided))
    rows = apply_noise_report(ROWS, read_noise_report(tmp_path / "clean.csv"), action=action)
    assert "000.jpg" not in set(rows["image_id"]), "dropped by eye"
    for name, label in (("100.jpg", 0), ("030.jpg", 1), ("031.jpg", 1)):
        assert rows[rows["image_id"] == name][["label", "weight"]].to_numpy().tolist() == [[label, 1]], name
    estimate = rows[rows["image_id"] == "032.jpg"][["label", "weight"]].to_numpy()
    q = detection([]).quality[32]
    expected = {"drop": [], "flip": [[2, 1]], "weight": [[1, q]], "soften": [[1, q], [2, 1 - q]]}[action]
    assert np.allclose(estimate, np.reshape(expected, (-1, 2)), atol=1e-5)


def test_a_label_that_is_no_class_is_refused():
    with pytest.raises(ValueError, match=r"give 100.jpg label 3, not 0..2"):
        make_noise_report(IDS, detection([]), decisions=decisions(("100.jpg", "relabel", 3)))


def test_decisions_cannot_remove_more_than_a_tenth_or_name_strangers():
    many = decisions(*((f"{i:03d}.jpg", "drop", 0) for i in range(21)))
    with pytest.raises(ValueError, match="drop 21 of 200 rows, more than 10%"):
        make_noise_report(IDS, detection([]), decisions=many)
    with pytest.raises(ValueError, match=r"stranger.jpg, which is not in the fold file"):
        make_noise_report(IDS, detection([]), decisions=decisions(("stranger.jpg", "keep", 0)))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("image_id,decision\na,keep\n", "must have the columns"),
        ("image_id,decision,label\na,keep,0\na,drop,0\n", "decides a more than once"),
        ("image_id,decision,label\na,maybe,0\n", "one of keep, drop, relabel, got 'maybe'"),
        ("image_id,decision,label\na,keep,\n", "whole number as label"),
    ],
)
def test_broken_decisions_are_refused(tmp_path, text, message):
    (tmp_path / "decisions.csv").write_text(text)
    with pytest.raises(ValueError, match=message):
        read_decisions([tmp_path / "decisions.csv"])


def test_broken_reports_are_refused(tmp_path):
    path = tmp_path / "clean.csv"
    with pytest.raises(FileNotFoundError, match="cassava_kit clean"):
        read_noise_report(path)
    path.write_text("image_id,label\na,0\n")
    with pytest.raises(ValueError, match="must have the columns"):
        read_noise_report(path)
    path.write_text("image_id,label,suggested_label,label_quality,keep\na,0,0,0.5,maybe\n")
    with pytest.raises(ValueError, match="True or False in keep"):
        read_noise_report(path)
    for cells in ("0,1.5,0.5", "0.5,1,0.5", "0,1,1.2", "0,1,-0.1", "0,1,good"):
        path.write_text(f"image_id,label,suggested_label,label_quality,keep\na,{cells},True\n")
        with pytest.raises(ValueError, match=r"whole numbers as labels and a label_quality in 0\.\.1"):
            read_noise_report(path)
    path.write_text("")
    with pytest.raises(ValueError, match=r"clean.csv is empty"):
        read_noise_report(path)


ROWS = pd.DataFrame({"image_id": IDS[::-1], "label": LABELS[::-1]})


def test_training_rows_are_dropped_flipped_or_weighed():
    report = make_noise_report(IDS, detection([0, 30]))
    dropped = apply_noise_report(ROWS, report, action="drop")
    assert len(dropped) == N - 2 and not set(dropped["image_id"]) & {"000.jpg", "030.jpg"}
    assert (dropped["weight"] == 1).all() and dropped["image_id"].iloc[0] == "199.jpg"
    flipped = apply_noise_report(ROWS, report, action="flip").set_index("image_id")["label"]
    assert len(flipped) == N and flipped["000.jpg"] == 1 and flipped["030.jpg"] == 2
    assert (
        flipped.drop(["000.jpg", "030.jpg"]).to_numpy()
        == ROWS.set_index("image_id")["label"].drop(["000.jpg", "030.jpg"]).to_numpy()
    ).all()
    weighed = apply_noise_report(ROWS, report, action="weight").set_index("image_id")
    assert (
        weighed.loc["000.jpg", "weight"] == pytest.approx(0.01)
        and weighed["weight"].drop(["000.jpg", "030.jpg"]).eq(1).all()
    )
    assert ROWS.columns.tolist() == ["image_id", "label"], "the rows given are left as they were"


def test_a_softened_row_is_trained_as_a_soft_label_whatever_the_cap():
    report = make_noise_report(IDS, detection([0, 30]), caps=Caps(0.0))
    assert report["keep"].all()
    rows = apply_noise_report(ROWS, report, action="soften")
    assert len(rows) == N + 2 and (rows.groupby("image_id")["weight"].sum().to_numpy() == pytest.approx(np.ones(N)))
    assert rows["image_id"].iloc[0] == "199.jpg" and set(rows["image_id"].iloc[-2:]) == {"000.jpg", "030.jpg"}
    assert rows["label"].dtype == ROWS["label"].dtype
    said = report.set_index("image_id").loc["000.jpg"]
    logits = torch.tensor([[0.3, -1.0, 2.0]])
    both = rows[rows["image_id"] == "000.jpg"]
    losses = torch.nn.functional.cross_entropy(
        logits.expand(2, -1), torch.tensor(both["label"].to_numpy()), reduction="none"
    )
    soft = torch.zeros(1, 3)
    soft[0, said["label"]], soft[0, said["suggested_label"]] = said["label_quality"], 1 - said["label_quality"]
    assert (losses * torch.tensor(both["weight"].to_numpy())).sum().item() == pytest.approx(
        torch.nn.functional.cross_entropy(logits, soft).item(), rel=1e-5
    )


def test_a_report_for_other_rows_or_labels_is_refused():
    report = make_noise_report(IDS, detection([]))
    with pytest.raises(ValueError, match=r"no row for new.jpg"):
        apply_noise_report(pd.DataFrame({"image_id": ["new.jpg"], "label": [0]}), report)
    with pytest.raises(ValueError, match=r"made for other labels: 199.jpg is 1 here"):
        apply_noise_report(ROWS.assign(label=[1, *ROWS["label"].iloc[1:]]), report)
    with pytest.raises(ValueError, match="one of drop, flip, weight, soften, got 'delete'"):
        apply_noise_report(ROWS, report, action="delete")


def test_a_report_must_be_of_the_whole_table_and_of_no_other():
    report, table = make_noise_report(IDS, detection([3])), ROWS.assign(fold=0)
    check_noise_report(report, table, 3)
    with pytest.raises(ValueError, match=r"names 1 images that the table does not have \(first: 000.jpg\)"):
        check_noise_report(report, table[table["image_id"] != "000.jpg"], 3)
    with pytest.raises(ValueError, match=r"no row for 000.jpg"):
        check_noise_report(report[report["image_id"] != "000.jpg"], table, 3)
    with pytest.raises(ValueError, match=r"000.jpg is 2 here and 0 in the report"):
        check_noise_report(report, table.assign(label=table["label"].where(table["image_id"] != "000.jpg", 2)), 3)
    with pytest.raises(ValueError, match=r"suggests label 1 for 003.jpg, not 0..0"):
        check_noise_report(report, table, 1)


def test_counts_and_noise_matrix_say_what_the_report_says():
    report = make_noise_report(IDS, detection([0, 1, 30]), caps=Caps(0.005))
    table = class_table(report, ["a", "b", "c", "never seen"])
    assert table["rows"].tolist() == [20, 60, 120, 0]
    assert table["flagged"].tolist() == [2, 1, 0, 0]
    assert table["removed"].tolist() == [1, 0, 0, 0]
    matrix = estimate_noise_matrix(report, 4)
    assert matrix.sum(axis=0) == pytest.approx(np.ones(4))
    assert matrix[0, 1] == pytest.approx(2 / 61), "two of the 61 rows that look like b were given as a"


def test_the_largest_losses_are_left_out_and_have_no_gradient():
    losses = torch.tensor([1.0, 5.0, 2.0, 9.0], requires_grad=True)
    mean = mean_without_largest(losses, 2)
    mean.backward()
    assert mean.item() == 1.5 and losses.grad.tolist() == [0.5, 0, 0.5, 0]
    assert mean_without_largest(losses, 0).item() == pytest.approx(4.25)
    assert mean_without_largest(losses, 9).item() == 1.0, "of a short batch one loss is left"


def test_losses_left_count_by_their_weights_and_the_largest_are_judged_without():
    losses, weights = torch.tensor([1.0, 5.0, 2.0, 9.0]), torch.tensor([1.0, 0.0, 0.5, 0.001])
    assert mean_without_largest(losses, 1, weights=weights).item() == pytest.approx((1.0 + 0.0 + 1.0) / 3)
    assert mean_without_largest(losses, 0, weights=torch.ones(4)).item() == pytest.approx(4.25)
