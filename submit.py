"""Take what was trained to Kaggle: `python submit.py COMMAND`, the same as `cassava-kit submit COMMAND`."""

from __future__ import annotations

import sys

from cassava_kit.cli.app import run_app
from cassava_kit.cli.submit import submit_app

if __name__ == "__main__":
    sys.exit(run_app(submit_app, sys.argv[1:]))
