"""Decoding and resizing: the same pixels as PIL's, and a reason for whatever is no image."""

from __future__ import annotations

import io
import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, features

from cassava_kit.data import images
from cassava_kit.data.images import ImageError, decode, decode_small, load_image, quick_check, read_image, resize

AVIF = features.check("avif")


def picture(height: int = 120, width: int = 160, seed: int = 0) -> np.ndarray:
    """Smooth colours with some fine grain, (H, W, 3) uint8: compresses like a photograph."""
    rng = np.random.default_rng(seed)
    coarse = Image.fromarray(rng.integers(0, 256, (6, 8, 3), dtype=np.uint8)).resize((width, height), Image.BICUBIC)
    return np.clip(np.asarray(coarse) + rng.normal(0, 6, (height, width, 1)), 0, 255).astype(np.uint8)


def encoded(image: Image.Image | np.ndarray, kind: str = "JPEG", **options) -> bytes:
    buffer = io.BytesIO()
    image = image if isinstance(image, Image.Image) else Image.fromarray(image)
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def largest_difference(a: np.ndarray, b: np.ndarray) -> int:
    assert a.shape == b.shape
    return int(np.abs(a.astype(int) - b.astype(int)).max())


@pytest.mark.parametrize("options", [{}, {"progressive": True}, {"subsampling": 0}, {"quality": 40}])
def test_jpegs_decode_as_pil_decodes_them(options):
    content = encoded(picture(), **options)
    image = decode(content)
    assert image.dtype == np.uint8
    assert image.flags.c_contiguous
    assert largest_difference(image, np.asarray(Image.open(io.BytesIO(content)).convert("RGB"))) <= 3


@pytest.mark.parametrize("kind", ["PNG", "BMP", "TIFF"])
def test_lossless_formats_come_back_exactly(kind):
    assert np.array_equal(decode(encoded(picture(), kind)), picture())


@pytest.mark.parametrize("mode", ["L", "CMYK"])
def test_gray_and_cmyk_jpegs_become_rgb(mode):
    image = Image.fromarray(picture()).convert(mode)
    decoded = decode(encoded(image, quality=95))
    assert np.abs(decoded.astype(int) - np.asarray(image.convert("RGB"))).mean() < 2


@pytest.mark.parametrize("mode", ["RGBA", "P", "LA", "1"])
def test_other_png_modes_become_rgb(mode):
    image = Image.fromarray(picture()).convert(mode)
    assert np.array_equal(decode(encoded(image, "PNG")), np.asarray(image.convert("RGB")))


def test_sixteen_bits_become_eight():
    values = np.linspace(0, 65535, 64 * 64).astype(np.uint16).reshape(64, 64)
    assert largest_difference(decode(encoded(Image.fromarray(values), "PNG"))[..., 0], values / 257) <= 1


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation_is_applied(orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    content = encoded(picture(), exif=exif)
    from PIL import ImageOps

    upright = np.asarray(ImageOps.exif_transpose(Image.open(io.BytesIO(content))))
    assert largest_difference(decode(content), upright) <= 3


def test_the_name_does_not_decide_the_format(tmp_path):
    path = tmp_path / "really_a_png.jpg"
    path.write_bytes(encoded(picture(), "PNG"))
    assert np.array_equal(read_image(path), picture())


WHOLE = encoded(picture())


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "empty"),
        (b"<html><body>404</body></html>", "not a JPEG, PNG"),
        (b"%PDF-1.7" + b"\x00" * 50, "not a JPEG, PNG"),
        (b"GIF89a" + b"\x00" * 50, "header|decoded"),
        (encoded(picture(), "GIF")[:300], "decoded|header"),
        (encoded(picture(), "AVIF")[:-100] if AVIF else b"\x00\x00\x00 ftypavif", "decoded|header"),
        (WHOLE[: len(WHOLE) // 2], "cut off"),
        (WHOLE[: -len(WHOLE) // 3], "cut off"),
        (WHOLE[:200], "header|cut off"),
        (WHOLE[:3], "header"),
        (WHOLE[: len(WHOLE) // 2] + bytes(len(WHOLE) // 2), "cut off"),
        (b"\xff\xd8\xff\xd9", "header"),
        (b"\xff\xd8" + os.urandom(2000), "header|cut off|decoded"),
        (encoded(picture(), "PNG")[:500], "decoded|header"),
        (b"\x89PNG\r\n\x1a\n" + bytes(100), "header|decoded"),
        (b"BM" + bytes(60), "header|decoded"),
        (b"RIFF\x00\x00\x00\x00WEBP" + bytes(40), "header|decoded"),
    ],
)
def test_what_is_no_whole_image_is_an_error_with_its_reason(tmp_path, content, reason):
    with pytest.raises(ImageError, match=reason):
        decode(content)
    path = tmp_path / "broken.jpg"
    path.write_bytes(content)
    assert quick_check(path) is not None
    with pytest.raises(ImageError, match=r"broken\.jpg: "):
        load_image(path, (32, 32))


def test_a_thumbnails_end_does_not_hide_a_cut(tmp_path):
    thumbnail = encoded(picture(24, 32))
    exif = b"Exif\x00\x00" + thumbnail
    segment = b"\xff\xe1" + (len(exif) + 2).to_bytes(2, "big") + exif
    whole = WHOLE[:2] + segment + WHOLE[2:]
    assert largest_difference(decode(whole), decode(WHOLE)) == 0
    with pytest.raises(ImageError, match="a JPEG cut off before its end"):
        decode(whole[:-500])


def test_fill_bytes_between_segments_are_passed_over():
    assert np.array_equal(decode(WHOLE[:2] + b"\xff\xff\xff" + WHOLE[2:]), decode(WHOLE))


def test_folders_and_missing_files_are_image_errors(tmp_path):
    for path in (tmp_path, tmp_path / "nowhere.jpg"):
        assert "cannot be read" in quick_check(path)
        with pytest.raises(ImageError, match="cannot be read"):
            load_image(path, (32, 32))


def test_broken_images_print_nothing(capfd):
    for content in (WHOLE[: len(WHOLE) // 2], encoded(picture(), "TIFF")[:-3000], b"BM" + bytes(60)):
        with pytest.raises(ImageError):
            decode(content)
    assert capfd.readouterr() == ("", "")


def test_huge_pngs_are_refused_undecoded(monkeypatch):
    content = encoded(Image.new("1", (20_000, 20_000)), "PNG")
    decoded = []
    monkeypatch.setattr(images, "_opencv", lambda *given: decoded.append("OpenCV"))
    monkeypatch.setattr(images, "_pillow", lambda *given: decoded.append("PIL"))
    monkeypatch.setattr(Image.Image, "load", lambda *given: decoded.append("load"))
    with pytest.raises(ImageError, match=r"20000x20000 pixels are more|more pixels than"):
        decode(content)
    assert decoded == []


@pytest.mark.parametrize("kind", ["GIF", "AVIF"])
@pytest.mark.parametrize("by", ["OpenCV", "PIL"])
def test_gif_and_avif_decode_as_pil_decodes_them(tmp_path, monkeypatch, kind, by):
    if kind == "AVIF" and not AVIF:
        pytest.skip("this PIL has no AVIF")
    if by == "PIL":
        monkeypatch.setattr(images, "_opencv", lambda *given: None)
    path = tmp_path / "a.jpg"
    path.write_bytes(encoded(picture(), kind))
    theirs = np.asarray(Image.open(path).convert("RGB"))
    assert largest_difference(read_image(path), theirs) <= (0 if kind == "GIF" else 3)
    assert quick_check(path) is None


def test_an_animated_gif_is_its_first_frame():
    first, second = (Image.fromarray(picture(seed=seed)).quantize(64) for seed in (0, 1))
    buffer = io.BytesIO()
    first.save(buffer, "GIF", save_all=True, append_images=[second])
    assert largest_difference(decode(buffer.getvalue()), np.asarray(first.convert("RGB"))) == 0


def test_a_png_without_its_end_is_decoded():
    assert np.array_equal(decode(encoded(picture(), "PNG")[:-12]), picture())


@pytest.mark.parametrize("lost", [1, 2])
@pytest.mark.parametrize("options", [{}, {"quality": 40}, {"subsampling": 0}, {"restart_marker_rows": 2}])
def test_a_jpeg_without_its_end_marker_has_the_same_pixels(tmp_path, lost, options):
    for orientation in (1, 3, 6, 8):
        exif = Image.Exif()
        exif[0x0112] = orientation
        whole = encoded(picture(240, 320), exif=exif, **options)
        path = tmp_path / "a.jpg"
        path.write_bytes(whole[:-lost])
        assert np.array_equal(read_image(path), decode(whole))
        assert quick_check(path) is None


def test_a_progressive_jpeg_without_its_last_byte_has_the_same_pixels():
    whole = encoded(picture(), progressive=True)
    assert np.array_equal(decode(whole[:-1]), decode(whole))


@pytest.mark.parametrize("lost", [3, 8, 20])
def test_a_jpeg_without_its_last_bytes_has_all_rows_but_the_last(lost):
    whole = encoded(picture(240, 320))
    image = decode(whole[:-lost])
    assert np.array_equal(image[:-32], decode(whole)[:-32])
    small = decode_small(whole[:-lost], 60)
    assert small.shape == (60, 80, 3) and np.array_equal(small[:-8], decode_small(whole, 60)[:-8])


def test_other_formats_cannot_be_decoded_smaller(monkeypatch):
    monkeypatch.setattr(images, "MAX_DECODED_PIXELS", 120 * 160 - 1)
    with pytest.raises(ImageError, match="160x120 pixels are more"):
        decode(encoded(picture(), "PNG"))


def test_large_jpegs_are_decoded_smaller(monkeypatch):
    content = encoded(picture(300, 400))
    monkeypatch.setattr(images, "MAX_DECODED_PIXELS", 300 * 400 // 4)
    assert decode(content).shape == (150, 200, 3)
    monkeypatch.setattr(images, "MAX_DECODED_PIXELS", 300 * 400 // 4 - 1)
    assert decode(content).shape == (75, 100, 3)
    monkeypatch.setattr(images, "MAX_DECODED_PIXELS", 300 * 400 // 64 - 1)
    with pytest.raises(ImageError, match="400x300 pixels are more"):
        decode(content)


def test_large_progressive_jpegs_are_refused(monkeypatch):
    monkeypatch.setattr(images, "MAX_PROGRESSIVE_PIXELS", 300 * 400 - 1)
    with pytest.raises(ImageError, match="400x300 pixels are more"):
        decode(encoded(picture(300, 400), progressive=True))
    assert decode(encoded(picture(300, 400))).shape == (300, 400, 3)


@pytest.mark.parametrize("size", [(64, 64), (96, 40), (120, 80), (200, 240), (1, 1)])
def test_resize_equals_pil(size):
    image = picture(seed=3)
    theirs = np.asarray(Image.fromarray(image).resize(size[::-1], Image.BILINEAR))
    assert largest_difference(resize(image, size), theirs) <= 2


def test_resize_leaves_the_right_size_alone_and_owns_nothing_strange():
    image = picture()
    assert resize(image, (120, 160)) is image
    small = resize(image[::-1, ::2], (30, 30))
    assert small.flags.c_contiguous
    assert small.shape == (30, 30, 3)


def test_threads_get_the_pixels_that_one_thread_gets(tmp_path):
    paths = []
    for seed in range(16):
        paths.append(tmp_path / f"{seed}.jpg")
        paths[-1].write_bytes(encoded(picture(seed=seed)))
    alone = [load_image(path, (48, 56)) for path in paths]
    with ThreadPoolExecutor(4) as pool:
        together = list(pool.map(lambda path: load_image(path, (48, 56)), paths * 4))
    assert all(np.array_equal(a, b) for a, b in zip(alone * 4, together, strict=True))


def test_small_jpegs_are_decoded_at_a_part_of_their_size_where_enough_is_left(monkeypatch):
    import cv2

    content = encoded(picture(240, 320))
    seen = []
    original = cv2.imdecode
    monkeypatch.setattr(cv2, "imdecode", lambda data, flag: seen.append(flag) or original(data, flag))
    shapes = [decode_small(content, side).shape[:2] for side in (30, 31, 60, 61, 120, 121)]
    assert shapes == [(30, 40), (60, 80), (60, 80), (120, 160), (120, 160), (240, 320)]
    assert decode_small(content, 30, most=2).shape == (120, 160, 3)
    half, quarter, eighth = (getattr(cv2, f"IMREAD_REDUCED_GRAYSCALE_{n}") for n in (2, 4, 8))
    assert [flag & ~cv2.IMREAD_COLOR_RGB for flag in seen] == [eighth, quarter, quarter, half, half, 0, half]


def test_small_pixels_are_near_the_exact_ones():
    content = encoded(picture(240, 320))
    exact, small = decode(content), decode_small(content, 60)
    error = np.mean((resize(exact, (60, 80)).astype(float) - small) ** 2)
    assert 10 * np.log10(255**2 / max(error, 1e-9)) > 30


@pytest.mark.parametrize("tail", [b"", b"\x00" * 10, b"trailing words", b"x" * 10_000])
def test_quick_check_passes_whole_jpegs_whatever_trails_them(tmp_path, tail):
    path = tmp_path / "a.jpg"
    path.write_bytes(WHOLE + tail)
    assert quick_check(path) is None


@pytest.mark.parametrize("kind", ["PNG", "WEBP", "BMP", "TIFF", "GIF"])
def test_quick_check_passes_other_formats(tmp_path, kind):
    path = tmp_path / "a.jpg"
    path.write_bytes(encoded(picture(), kind))
    assert quick_check(path) is None


def test_quick_check_does_not_decode_a_plain_jpeg(tmp_path, monkeypatch):
    path = tmp_path / "a.jpg"
    path.write_bytes(encoded(picture(240, 320)))
    monkeypatch.setattr(images, "decode", lambda content: pytest.fail("decoded"))
    assert quick_check(path) is None


def test_real_photographs_have_pils_pixels(real_data: Path):
    for path in sorted((real_data / "originals").glob("*.jpg"))[:5]:
        with Image.open(path) as image:
            theirs = np.asarray(image.convert("RGB").resize((224, 224), Image.BILINEAR))
        assert largest_difference(load_image(path, (224, 224)), theirs) <= 3
        assert quick_check(path) is None


@pytest.fixture
def real_data() -> Path:
    default = Path(__file__).resolve().parents[2].parent / "shared" / "data"
    folder = Path(os.environ.get("CASSAVA_KIT_REAL_DATA") or default)
    if not (folder / "originals").is_dir():
        pytest.skip(f"real photographs are not at {folder}; set CASSAVA_KIT_REAL_DATA")
    return folder
