"""A training killed at random moments, again and again, ends as one that was left alone; a stopped one says so."""

import random
import signal
import time

import pandas as pd
import pytest
from processes import start_python
from programs import command, run

from cassava_kit.data.folds import write_folds
from cassava_kit.models.weights import load_tensors


@pytest.mark.slow
def test_killed_again_and_again(tiny_dir, tiny_folds, tmp_path):
    folds = tmp_path / "folds.csv"
    write_folds(folds, tiny_folds)
    settings = ("epochs=16", "batch_size=8")
    unbroken, broken = (command(tiny_dir, folds, tmp_path / name, settings=settings) for name in ("a", "b"))
    run(unbroken)
    run_dir = tmp_path / "b/small_vit/fold0"
    dice = random.Random(5)
    for _ in range(3):
        process = start_python(broken)
        (run_dir / "metrics.csv").unlink(missing_ok=True)  # written anew once an epoch is finished
        process.wait_until((run_dir / "metrics.csv").is_file)
        time.sleep(dice.uniform(0, 0.3))
        process.kill()
        if (run_dir / "metrics.csv").is_file():
            pd.read_csv(run_dir / "metrics.csv")  # whole, whenever the blow fell
    run(broken)
    figures = [pd.read_csv(tmp_path / name / "small_vit/fold0/metrics.csv") for name in ("a", "b")]
    pd.testing.assert_frame_equal(*(frame.drop(columns=["seconds"]) for frame in figures), rtol=1e-5)
    one, two = (load_tensors(tmp_path / name / "small_vit/fold0/best.safetensors") for name in ("a", "b"))
    assert all((one[name] - two[name]).abs().max() < 1e-6 for name in one)


@pytest.mark.slow
def test_a_terminated_training_did_not_end_well(tiny_dir, tiny_folds, tmp_path):
    folds = tmp_path / "folds.csv"
    write_folds(folds, tiny_folds)
    process = start_python(command(tiny_dir, folds, tmp_path / "a", settings=("epochs=100000", "batch_size=8")))
    process.wait_until((tmp_path / "a/small_vit/fold0/metrics.csv").is_file)
    process.send_signal(signal.SIGTERM)
    assert process.wait() == 128 + signal.SIGTERM
    assert not (tmp_path / "a/small_vit/fold0/run.json").exists()
