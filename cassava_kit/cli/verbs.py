"""The command line of the kit, `cassava-kit VERB`: its verbs by stage, each with one example. Entry point: `main`."""

from __future__ import annotations

from cassava_kit.cli import data, evidence, gpu_check, pages, plan, pretraining, setup, submission, training
from cassava_kit.cli.app import CommandTable, exit_with, make_app
from cassava_kit.cli.mle_bench import mle_bench_app
from cassava_kit.cli.submit import submit_app

FOLDS = "--folds folds/kfold5-seed42-groups.csv"
TWO = "--oof runs/resnet50/oof.csv --oof runs/resnext50/oof.csv"
VERBS: CommandTable = {
    "Start": {
        "init": (setup.init_command, "--slug cassava-leaf-disease-classification --data DIR"),
        "sample": (data.sample_command, ""),
        "tfrecords": (data.tfrecords_command, "train_tfrecords --out DIR"),
        "weights": (setup.weights_command, "resnet50 efficientnet_b4"),
        "gpu-check": (gpu_check.gpu_check_command, "--minutes 7"),
    },
    "Look at the data and split it": {
        "eda": (pages.eda_command, "--data DIR --out eda.html"),
        "sheet": (data.sheet_command, "--data DIR --out sheet.png"),
        "folds": (data.folds_command, "--data DIR --n-splits 5"),
    },
    "Train": {
        "recipes": (training.recipes_command, "resnet50"),
        "plan": (plan.plan_command, "--hours 30"),
        "train": (training.train_command, f"resnet50 --data DIR {FOLDS} --fold 0 --set epochs=12"),
        "pretrain": (pretraining.pretrain_command, "small_simclr --data DIR --out runs/simclr"),
        "ssl-report": (
            pretraining.ssl_report_command,
            f"small_ssl_resnet --data DIR {FOLDS} --weights simclr=runs/simclr/backbone.safetensors",
        ),
        "ablate": (evidence.ablate_command, f"small_resnet --data DIR {FOLDS} --change label_smoothing=0"),
    },
    "Judge by out-of-fold predictions": {
        "report": (pages.report_command, f"runs --data DIR {FOLDS} --out report.html"),
        "compare": (evidence.compare_command, f"runs/resnet50/oof.csv runs/resnext50/oof.csv {FOLDS}"),
        "clean": (evidence.clean_command, f"{TWO} {FOLDS} --out clean.csv"),
        "review": (evidence.review_command, "clean.csv --data DIR --out review.html"),
        "ensemble": (evidence.ensemble_command, f"{TWO} {FOLDS} --out runs/ensemble-weights.json"),
    },
    "Predict": {
        "predict": (evidence.predict_command, "--member runs/resnet50 --images DIR/test_images --out predictions.csv"),
        "submission": (submission.submission_command, "--ensemble build/mine/weights --images DIR/test_images"),
    },
    "Kaggle": {
        "kernels": (setup.kernels_command, "--check"),
    },
}

app = make_app(
    "cassava-kit",
    VERBS,
    text="From a downloaded image-classification code competition to a scored submission.",
    takes_recipe=("train", "ablate", "ssl-report"),
)
app.add_typer(
    mle_bench_app,
    name="mle-bench",
    rich_help_panel="Kaggle",
    short_help="Measure the kit on MLE-bench's split of the competition.",
)
app.add_typer(
    submit_app,
    name="submit",
    rich_help_panel="Kaggle",
    short_help="Pack, rehearse, push, submit: `cassava-kit submit`.",
)


def main() -> None:
    """Run the verb on the command line and exit with its code."""
    exit_with(app)
