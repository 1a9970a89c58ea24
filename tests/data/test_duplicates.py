"""Near-duplicates: planted copies are found, different photographs stay apart, nothing is hashed twice."""

from __future__ import annotations

import os
import tracemalloc
from functools import cache
from itertools import permutations
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageDraw, ImageEnhance

from cassava_kit.data import duplicates, fingerprints
from cassava_kit.data.duplicates import (
    MAX_BITS,
    MIN_COSINE,
    candidates,
    detail_agreement,
    find_duplicates,
    group_duplicates,
    hash_bits,
    low_frequencies,
    match,
    turn,
    turn_frequencies,
)
from cassava_kit.data.fingerprints import THUMBNAIL_SIDE, Fingerprints

SIDE = THUMBNAIL_SIDE


@cache
def photograph(seed: int) -> Image.Image:
    """A scene of its own: blobs and stripes on a soft background, 200x150."""
    rng = np.random.default_rng(seed)
    soft = Image.fromarray(rng.integers(0, 256, (4, 5, 3), dtype=np.uint8)).resize((200, 150), Image.BICUBIC)
    y, x = np.mgrid[0:150, 0:200]
    scene = np.asarray(soft).astype(float)
    for radius in [*rng.uniform(5, 25, 25), *rng.uniform(2, 5, 150)]:
        at = rng.random(2) * (150, 200)
        scene[(y - at[0]) ** 2 + (x - at[1]) ** 2 < radius**2] = rng.integers(0, 256, 3)
    return Image.fromarray(np.clip(scene + rng.normal(0, 4, scene.shape), 0, 255).astype(np.uint8))


def cropped(image: Image.Image, share: float, at: tuple[float, float]) -> Image.Image:
    width, height = (round(side * share) for side in image.size)
    left, top = round((image.width - width) * at[0]), round((image.height - height) * at[1])
    return image.crop((left, top, left + width, top + height))


COPIES = {
    "saved again": lambda image: image,
    "half the size": lambda image: image.resize((100, 75), Image.BILINEAR),
    "brighter": lambda image: ImageEnhance.Brightness(image).enhance(1.3),
    "darker": lambda image: ImageEnhance.Brightness(image).enhance(0.6),
    "more contrast": lambda image: ImageEnhance.Contrast(image).enhance(1.3),
    "gray": lambda image: image.convert("L"),
    "cropped in the middle": lambda image: cropped(image, 0.95, (0.5, 0.5)),
    "cropped at the side": lambda image: cropped(image, 0.95, (0.0, 0.8)),
    "flipped": lambda image: image.transpose(Image.FLIP_LEFT_RIGHT),
    "upside down": lambda image: image.transpose(Image.FLIP_TOP_BOTTOM),
    "turned": lambda image: image.transpose(Image.ROTATE_90),
    "turned, flipped and cropped": lambda image: cropped(image.transpose(Image.TRANSVERSE), 0.96, (1.0, 0.2)),
}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for n in range(10):
        photograph(n).save(tmp_path / f"{n}.jpg", quality=92)
    return tmp_path


def paths(folder: Path) -> list[Path]:
    return sorted(folder.glob("*.jpg"))


@pytest.mark.parametrize("change", COPIES)
def test_planted_copies_are_found_and_nothing_else(folder, change):
    for n in (2, 7):
        COPIES[change](photograph(n)).save(folder / f"{n}-copy.jpg", quality=60)
    files = paths(folder)
    group = dict(zip([path.name for path in files], find_duplicates(files, progress=False), strict=True))
    assert group["2.jpg"] == group["2-copy.jpg"]
    assert group["7.jpg"] == group["7-copy.jpg"]
    assert len(set(group.values())) == 10


def test_a_folder_is_its_images_by_name(folder):
    COPIES["flipped"](photograph(7)).save(folder / "1-copy.jpg", quality=60)
    (folder / "notes.txt").write_text("")
    (folder / ".7.jpg").write_bytes((folder / "7.jpg").read_bytes())
    assert find_duplicates(folder, progress=False).tolist() == [0, 1, 2, 3, 4, 5, 6, 7, 1, 8, 9]
    assert find_duplicates([], progress=False).tolist() == []
    for missing in (folder / "nowhere", [folder / "nowhere.jpg"]):
        with pytest.raises(FileNotFoundError, match="nowhere"):
            find_duplicates(missing, progress=False)


def test_groups_are_numbered_in_order_of_appearance(folder):
    files = [*paths(folder), folder / "0.jpg", folder / "3.jpg"]
    assert find_duplicates(files, progress=False).tolist() == [*range(10), 0, 3]


@pytest.mark.parametrize("order", permutations(("whole", "bridge", "narrow")))
def test_links_join_into_one_group(tmp_path, order):
    """The whole picture and a narrow crop differ too much to be matched; a crop between them joins all three."""
    share = {"whole": 1.0, "bridge": 0.94, "narrow": 0.88}
    for name in order:
        cropped(photograph(3), share[name], (0, 0)).save(tmp_path / f"{name}.jpg", quality=92)
    files = [tmp_path / f"{name}.jpg" for name in order]
    assert find_duplicates([file for file in files if file.stem != "bridge"], progress=False).tolist() == [0, 1]
    assert find_duplicates(files, progress=False).tolist() == [0, 0, 0]


def test_many_equal_files_are_compared_once(folder, monkeypatch):
    seen = []
    monkeypatch.setattr(duplicates, "candidates", lambda thumbnails, position: seen.append(len(thumbnails)) or [])
    files = [folder / "1.jpg"] * 50 + [folder / "4.jpg"] * 50
    assert find_duplicates(files, progress=False).tolist() == [0] * 50 + [1] * 50
    assert set(seen) == {2}


def test_nearly_blank_images_are_not_taken_for_copies(tmp_path):
    shade = 10 * np.hypot(*np.mgrid[-1:1:150j, -1:1:200j])
    for n, base in enumerate((20, 120)):
        Image.fromarray((base + shade).astype(np.uint8)).save(tmp_path / f"{n}.png")
    assert find_duplicates(sorted(tmp_path.glob("*.png")), progress=False).tolist() == [0, 1]


def test_broken_and_blank_images_match_only_their_equals(folder):
    (folder / "x1.jpg").write_bytes(b"<html>")
    (folder / "x2.jpg").write_bytes(b"")
    (folder / "x3.jpg").write_bytes(b"")
    Image.new("RGB", (200, 150), "white").save(folder / "y1.jpg", quality=90)
    Image.new("RGB", (200, 150), "gray").save(folder / "y2.jpg", quality=90)
    assert find_duplicates(paths(folder), progress=False).tolist() == [*range(10), 10, 11, 11, 12, 13]


@pytest.mark.parametrize("position", range(8))
def test_frequencies_turn_as_pictures_do(position):
    image = np.random.default_rng(0).integers(0, 256, (SIDE, SIDE), dtype=np.uint8)
    theirs = low_frequencies(turn(image, position)[None])
    np.testing.assert_allclose(turn_frequencies(low_frequencies(image[None]), position), theirs, rtol=1e-4, atol=0.5)


def test_the_eight_positions_are_different_and_all_there():
    image = np.arange(9).reshape(3, 3)
    theirs = {np.rot90(side, k).tobytes() for side in (image, image.T) for k in range(4)}
    assert {turn(image, position).tobytes() for position in range(8)} == theirs


def test_low_frequencies_are_scipys_cosine_transform():
    from scipy.fft import dctn

    image = np.random.default_rng(1).integers(0, 256, (SIDE, SIDE), dtype=np.uint8)
    theirs = dctn(image.astype(float), type=2)[:8, :8] / 4
    np.testing.assert_allclose(low_frequencies(image[None])[0], theirs, rtol=1e-3, atol=1.0)


def test_blocks_miss_no_pair(monkeypatch):
    rng = np.random.default_rng(0)
    thumbnails = np.stack([np.asarray(photograph(n).convert("L").resize((SIDE, SIDE))) for n in range(20)])
    noise = rng.normal(0, 8, (20, SIDE, SIDE))
    both = np.concatenate([thumbnails, np.clip(thumbnails + noise, 0, 255).astype(np.uint8)])
    expected = {(n, n + 20) for n in range(20)}
    for block in (1, 7, 40):
        monkeypatch.setattr(duplicates, "BLOCK", block)
        assert expected <= set(candidates(both, 0))
    digests = rng.integers(0, 256, (40, 16), dtype=np.uint8)
    assert group_duplicates(Fingerprints(both, digests)).tolist() == [*range(20), *range(20)]


@pytest.mark.parametrize("position", [0, 3, 5])
def test_candidates_are_all_near_pairs_each_once_whatever_the_blocks(position, monkeypatch):
    rng = np.random.default_rng(0)
    thumbnails = np.stack([thumbnail_of(seed) for seed in range(30)])
    copies = np.stack([turn(one, position) for one in thumbnails])
    both = np.concatenate([thumbnails, copies])[rng.permutation(60)]
    low = low_frequencies(both)
    low_turned = turn_frequencies(low, position)
    hashes, hashes_turned = hash_bits(low), hash_bits(low_turned)
    unit, unit_turned = duplicates._unit(low), duplicates._unit(low_turned)
    expected = [
        (i, j)
        for i in range(60)
        for j in range(i + 1, 60)
        if int(hashes[i] ^ hashes_turned[j]).bit_count() <= MAX_BITS and unit[i] @ unit_turned[j] >= MIN_COSINE
    ]
    assert len(expected) >= (30 if position != 5 else 10)
    for block in (1, 7, 20, 60, 100):
        monkeypatch.setattr(duplicates, "BLOCK", block)
        assert sorted(candidates(both, position)) == expected


def test_grouping_takes_little_more_memory_than_the_fingerprints():
    rng = np.random.default_rng(0)
    prints = Fingerprints(
        rng.integers(0, 256, (4000, SIDE, SIDE), dtype=np.uint8),
        rng.integers(0, 256, (4000, 16), dtype=np.uint8),
    )
    tracemalloc.start()
    group_duplicates(prints)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 3 * prints.thumbnails.nbytes


def thumbnail_of(seed: int) -> np.ndarray:
    return np.asarray(photograph(seed).convert("L").resize((SIDE, SIDE), Image.BOX))


def test_the_hash_is_sixty_three_signs():
    low = np.random.default_rng(0).normal(size=(50, 8, 8)).astype(np.float32)
    hashes = hash_bits(low)
    assert hashes.dtype == np.uint64
    expected = (low.reshape(50, 64)[:, 1:] > 0).sum(axis=1)
    assert np.array_equal(np.bitwise_count(hashes), expected)
    assert np.array_equal(hash_bits(low * 3), hashes)


def test_the_cache_spares_unchanged_files_alone(folder, monkeypatch):
    seen = []
    original = fingerprints._fingerprint
    monkeypatch.setattr(fingerprints, "_fingerprint", lambda path: seen.append(path.name) or original(path))
    kept = folder / "cache" / "prints.npz"
    first = find_duplicates(paths(folder), cache=kept, progress=False)
    assert len(seen) == 10
    seen.clear()
    assert np.array_equal(find_duplicates(paths(folder), cache=kept, progress=False), first)
    assert seen == []
    photograph(3).save(folder / "5.jpg", quality=80)
    assert find_duplicates(paths(folder), cache=kept, progress=False)[5] == 3
    assert seen == ["5.jpg"]
    os.utime(folder / "6.jpg", (1, 1))
    find_duplicates(paths(folder), cache=kept, progress=False)
    assert seen == ["5.jpg", "6.jpg"]


def test_another_folders_file_of_the_same_name_size_and_time_is_another_image(tmp_path, monkeypatch):
    """As in two data sets whose archives set every file's time to 1980."""
    kept = tmp_path / "prints.npz"
    for seed, name in enumerate("ab"):
        (tmp_path / name).mkdir()
        for n in range(2):
            photograph(2 * seed + n * (1 - seed)).save(tmp_path / name / f"{n}.bmp")
            os.utime(tmp_path / name / f"{n}.bmp", (1, 1))
    assert find_duplicates(tmp_path / "a", cache=kept, progress=False).tolist() == [0, 1]
    assert find_duplicates(tmp_path / "b", cache=kept, progress=False).tolist() == [0, 0]
    monkeypatch.setattr(fingerprints, "_fingerprint", lambda path: pytest.fail("fingerprinted again"))
    assert find_duplicates(tmp_path / "a", cache=kept, progress=False).tolist() == [0, 1]


def test_an_edit_that_keeps_size_and_time_is_noticed(folder, tmp_path_factory):
    kept = tmp_path_factory.mktemp("cache") / "prints.npz"
    for n in range(3):
        photograph(n).save(folder / f"{n}.bmp")
    files = sorted(folder.glob("*.bmp"))
    assert find_duplicates(files, cache=kept, progress=False).tolist() == [0, 1, 2]
    before = files[1].stat()
    files[1].write_bytes(files[0].read_bytes())
    os.utime(files[1], ns=(before.st_atime_ns, before.st_mtime_ns))
    assert find_duplicates(files, cache=kept, progress=False).tolist() == [0, 0, 1]


@pytest.mark.parametrize("content", [b"", b"not an archive", b"PK\x03\x04 cut off"])
def test_a_broken_cache_is_made_again(folder, content):
    kept = folder / "prints.npz"
    kept.write_bytes(content)
    assert find_duplicates(paths(folder), cache=kept, progress=False).tolist() == list(range(10))
    with np.load(kept) as file:
        assert len(file["paths"]) == 10


def test_an_interruption_keeps_what_was_done(folder, monkeypatch):
    original = fingerprints._fingerprint

    def stop_at_the_last(path: Path):
        if path.name == "9.jpg":
            raise KeyboardInterrupt
        return original(path)

    kept = folder / "prints.npz"
    monkeypatch.setattr(fingerprints, "_fingerprint", stop_at_the_last)
    with pytest.raises(KeyboardInterrupt):
        find_duplicates(paths(folder), cache=kept, progress=False)
    again = []
    monkeypatch.setattr(fingerprints, "_fingerprint", lambda path: again.append(path.name) or original(path))
    assert find_duplicates(paths(folder), cache=kept, progress=False).tolist() == [*range(10)]
    assert again == ["9.jpg"]


def test_real_photographs_stay_apart_and_their_copies_do_not(real_photographs: list[Path], tmp_path: Path):
    chosen = real_photographs[:300]
    copies = []
    for path in chosen[::10]:
        copies.append(tmp_path / path.name)
        with Image.open(path) as image:
            cropped(image.transpose(Image.FLIP_LEFT_RIGHT), 0.95, (0.3, 0.9)).save(copies[-1], quality=70)
    group = find_duplicates([*chosen, *copies], progress=False)
    assert len(set(group[:300])) == 300
    assert (group[300:] == group[:300:10]).mean() > 0.9


@pytest.fixture
def real_photographs() -> list[Path]:
    default = Path(__file__).resolve().parents[2].parent / "shared" / "data"
    folder = Path(os.environ.get("CASSAVA_KIT_REAL_DATA") or default) / "cassava" / "train_images"
    if not folder.is_dir():
        pytest.skip(f"real photographs are not at {folder}; set CASSAVA_KIT_REAL_DATA")
    return sorted(folder.glob("*.jpg"))


def with_white(seed: int, shape: str, share: float) -> Image.Image:
    """A scene with a white rectangle or ellipse in its middle, of a share of each side."""
    image = photograph(seed).copy()
    (width, height), edge = image.size, (1 - share) / 2
    box = [width * edge, height * edge, width * (1 - edge), height * (1 - edge)]
    getattr(ImageDraw.Draw(image), shape)(box, fill="white")
    return image


@pytest.mark.parametrize("shape", ["rectangle", "ellipse"])
@pytest.mark.parametrize("share", [0.6, 0.75, 0.85, 0.95])
def test_different_pictures_with_a_white_middle_stay_apart(tmp_path, shape, share):
    for n in range(12):
        with_white(n, shape, share).save(tmp_path / f"{n:02}.png")
    assert find_duplicates(sorted(tmp_path.glob("*.png")), progress=False).tolist() == list(range(12))


@pytest.mark.parametrize("change", COPIES)
@pytest.mark.parametrize("shape", ["rectangle", "ellipse"])
def test_copies_of_a_picture_with_a_white_middle_are_found(tmp_path, shape, change):
    for n in range(4):
        with_white(n, shape, 0.75).save(tmp_path / f"{n}.png")
    COPIES[change](with_white(3, shape, 0.75)).save(tmp_path / "copy.jpg", quality=80)
    files = [*sorted(tmp_path.glob("*.png")), tmp_path / "copy.jpg"]
    assert find_duplicates(files, progress=False).tolist() == [0, 1, 2, 3, 3]


def test_tiny_and_black_images_stay_apart(tmp_path):
    for n in range(6):
        Image.fromarray(np.full((n + 1, 3, 3), 40 * n, np.uint8)).save(tmp_path / f"a{n}.png")
        Image.new("L", (100 + n, 100)).save(tmp_path / f"b{n}.png")
    assert find_duplicates(sorted(tmp_path.glob("*.png")), progress=False).tolist() == list(range(12))


def test_a_template_without_contrast_matches_nothing():
    rng = np.random.default_rng(0)
    noisy = rng.integers(0, 256, (SIDE, SIDE), dtype=np.uint8)
    for flat in (0, 200, 255):
        blank = np.full((SIDE, SIDE), flat, np.uint8)
        assert match(blank, blank) == match(blank, noisy) == match(noisy, blank) == -1
    assert match(noisy, noisy) == pytest.approx(1, abs=1e-3)


def test_detail_agreement_is_the_correlation_where_there_is_detail():
    rng = np.random.default_rng(0)
    a, b = rng.integers(0, 256, (2, 40, 40), dtype=np.uint8)
    expected = np.corrcoef(a.ravel(), b.ravel())[0, 1]
    assert detail_agreement(a, b) == pytest.approx(expected)
    a[:30], b[:30] = (
        255,
        255,
    )  # rows 0..28 are flat in both, and two more are their rim
    left = slice(31, 40)
    assert detail_agreement(a, b) == pytest.approx(np.corrcoef(a[left].ravel(), b[left].ravel())[0, 1])
    a[:38], b[:38] = 255, 255
    assert detail_agreement(a, b) == -1


def test_fingerprints_that_cannot_be_kept_cost_no_run(folder, capsys):
    (folder / "file").write_text("")
    assert find_duplicates(paths(folder), cache=folder / "file" / "prints.npz", progress=False).tolist() == [*range(10)]
    assert "fingerprints are not cached" in capsys.readouterr().err
