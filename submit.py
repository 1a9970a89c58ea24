"""Take what was trained to Kaggle: `python submit.py COMMAND`, the same as `cassava-kit submit COMMAND`."""

from __future__ import annotations

from cassava_kit.cli.app import exit_with
from cassava_kit.cli.submit import submit_app

if __name__ == "__main__":
    exit_with(submit_app)
