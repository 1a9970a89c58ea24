"""What `submit.py` does with a packed bundle: rehearse it again, examine it, send it."""

from __future__ import annotations

import sys
from pathlib import Path

from cassava_kit.kaggle.bundle import read_bundle

ROOT = Path(__file__).resolve().parents[2]


def rehearse_bundle(bundle: Path, data: Path | None, *, image: bool = False) -> int:
    """Run the bundle's notebook offline in both mount layouts, with one test image and with all; 1 if any run failed.

    Without `data` the embedded sample is the competition. With `image` the notebook runs in an environment with the
    versions of Kaggle's image, made in `.venv-image` the first time. What each run leaves lies beside the bundle, in
    `rehearsal-*`.
    """
    from cassava_kit.kaggle.image import image_environment
    from cassava_kit.kaggle.rehearsal import Setting, rehearse
    from cassava_kit.sample import ensure_sample

    packed, competition = read_bundle(bundle), data or ensure_sample()
    python = str(image_environment(ROOT, ROOT / ".venv-image")) if image else sys.executable
    failed = 0
    for layout in ("new", "old"):
        for images in (1, None):
            out = bundle.parent / f"rehearsal-{'image-' if image else ''}{layout}-{images or 'all'}"
            setting = Setting(images=images, python=python)
            result = rehearse(packed, competition, out, layout=layout, setting=setting)
            print(result.verdict)
            failed += not result.ok
    return int(failed > 0)


def examine(bundle: Path) -> int:
    """Print a line for each known cause of failure; 1 if the bundle has one of them."""
    from cassava_kit.kaggle.doctor import doctor

    checks = doctor(ROOT, bundle)
    print(*checks, sep="\n")
    return int(any(check.status == "failed" for check in checks))


def send(bundle: Path, *, submit: bool, dry_run: bool) -> int:
    """Push the bundle, and with `submit` submit it; with `dry_run` print the calls and make none."""
    from cassava_kit.kaggle.push import go, planned_calls

    packed = read_bundle(bundle)
    if dry_run:
        print(*planned_calls(packed, submit=submit), sep="\n")
    else:
        go(ROOT, packed, send=submit)
    return 0
