"""What `verify_dataset` compares: build and sizes that Kaggle serves against the manifest of a folder."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import pytest

from cassava_kit.files import write_json
from cassava_kit.kaggle.pack.config import METADATA_FILE
from cassava_kit.kaggle.pack.manifest import write_manifest
from cassava_kit.kaggle.send.datasets import verify_dataset
from cassava_kit.kaggle.send.remote import KaggleError

WHOLE = {"a.bin": 3, "b.bin": 5}


@pytest.fixture
def packed(tmp_path: Path) -> tuple[Path, str]:
    """A folder of two files with its manifest, and the build id."""
    for name, size in WHOLE.items():
        (tmp_path / name).write_bytes(b"x" * size)
    write_json(tmp_path / METADATA_FILE, {"id": "me/d"})
    return tmp_path, write_manifest(tmp_path, "weights", {})["build_id"]


def verify(folder: Path, build: str | None, sizes: dict[str, int] | None) -> str:
    """Verify a folder against a Kaggle that serves this build and lists these sizes."""
    remote = SimpleNamespace(dataset_build=lambda dataset, manifest: build, dataset_sizes=lambda dataset: sizes)
    return verify_dataset(SimpleNamespace(remote=remote), folder, "weights")  # type: ignore[arg-type]


@pytest.mark.parametrize("sizes", [WHOLE, WHOLE | {"weights-manifest.json": 9}, WHOLE | {"b.bin": 0}, None])
def test_a_build_is_verified_where_no_listed_size_differs(packed: tuple[Path, str], sizes: dict[str, int]) -> None:
    assert verify(*packed, sizes) == "verified against the manifest"


@pytest.mark.parametrize("sizes", [{"a.bin": 3}, WHOLE | {"b.bin": 4}])
def test_a_file_that_is_missing_or_has_another_size_is_named(packed: tuple[Path, str], sizes: dict[str, int]) -> None:
    with pytest.raises(KaggleError, match=r"another size of: b\.bin; push again"):
        verify(*packed, sizes)
    assert verify(packed[0], None, sizes) == "stale", "without its manifest it may be the version before"


def test_another_build_is_stale_and_without_a_listing_nothing_is_verified(packed: tuple[Path, str]) -> None:
    assert verify(packed[0], "other", WHOLE) == "stale"
    assert "could not be listed" in verify(packed[0], None, None)
    assert verify(packed[0], None, WHOLE) == "verified against the manifest"
