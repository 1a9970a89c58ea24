"""Run one verb: `python -m cassava_kit VERB`, the same as `cassava-kit VERB`."""

from __future__ import annotations

from cassava_kit.cli.verbs import main

if __name__ == "__main__":
    main()
