"""The Makefile: `make clean` keeps results."""

import shutil
import subprocess
from pathlib import Path

from cassava_kit.cli.kaggle import LEDGER, OUTPUTS

ROOT = Path(__file__).resolve().parent.parent


def test_clean_removes_what_can_be_made_again_and_keeps_results(tmp_path):
    shutil.copy(ROOT / "Makefile", tmp_path)
    made = [Path(".venv/bin/python"), Path("build/sample-v1/bundle/kit.whl"), Path(".mypy_cache/x")]
    evidence = LEDGER.parent / LEDGER.stem / "7" / "oof.csv"
    trained = [Path("build/cassava/runs/a/oof.csv"), Path("runs/a/oof.csv"), Path("folds/a.csv")]
    results = [LEDGER, evidence, OUTPUTS / "train-folds" / "oof.csv", *trained]
    for name in (*made, *results):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("x")
    subprocess.run(["make", "clean"], cwd=tmp_path, check=True, capture_output=True)
    assert not any((tmp_path / name).exists() for name in made)
    assert all((tmp_path / name).exists() for name in results)
