import json

import numpy as np
import pytest

from cassava_kit.folds import make_folds, write_folds
from cassava_kit.noise.clean import clean_files, read_embedding, write_embedding
from cassava_kit.noise.decisions import Caps, read_report
from cassava_kit.predictions import Header, Predictions, make_predictions, write_predictions

N, K = 400, 5


@pytest.fixture
def competition(tmp_path):
    """A fold file and two members' out-of-fold files over labels of which every tenth is wrong."""
    import pandas as pd

    rng = np.random.default_rng(0)
    true = rng.choice(K, N, p=[0.1, 0.15, 0.15, 0.45, 0.15])
    wrong = np.arange(N) % 10 == 0
    given = np.where(wrong, (true + 1 + rng.integers(0, K - 1, N)) % K, true)
    wrong = given != true
    ids = np.array([f"{i:03d}.jpg" for i in range(N)])
    split = make_folds(pd.DataFrame({"image_id": ids, "label": given}), n_splits=5, seed=0)
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
    report = read_report(folder / "clean.csv")
    assert len(set(report["image_id"][: len(wrong)]) & wrong) > 0.9 * len(wrong)
    assert (~report["keep"]).sum() == 12
    assert set(report["image_id"][~report["keep"]]) <= wrong
    assert len(report) == N
    text = str(cleaning)
    for words in ("m0, m1 on 400 rows, given labels", "12 rows are removed", "validation keeps every row", "Healthy"):
        assert words in text
    header = json.loads((folder / "clean.json").read_text())
    assert header["removed"] == 12 and header["members"] == ["m0", "m1"] and len(header["noise_matrix"]) == K


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
    clean_files(oof, folds, out, caps=Caps(0.1, 1.0), decisions=folder / "decisions.csv")
    report = read_report(out).set_index("image_id")
    assert report.loc[worst, "keep"] and (~report["keep"]).sum() > 20


def test_an_embedding_is_joined_by_id(competition):
    folder, _ = competition
    rng = np.random.default_rng(0)
    ids, vectors = np.array([f"{i:03d}.jpg" for i in range(N)]), rng.normal(size=(N, 4)).astype(np.float32)
    order = rng.permutation(N)
    write_embedding(folder / "e.npz", ids[order], vectors[order])
    assert np.array_equal(read_embedding(folder / "e.npz", ids), vectors)
    clean_files(*files(folder), embedding=folder / "e.npz")
    write_embedding(folder / "short.npz", ids[1:], vectors[1:])
    with pytest.raises(ValueError, match=r"no vector for 000.jpg"):
        clean_files(*files(folder), embedding=folder / "short.npz")
    (folder / "bad.npz").write_bytes(b"nothing")
    with pytest.raises(ValueError, match=r"must be an .npz file"):
        read_embedding(folder / "bad.npz", ids)
