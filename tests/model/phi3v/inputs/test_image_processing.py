"""Image processing: equal to the original where golden data exists, sensible everywhere else."""

from __future__ import annotations

import io
import json
import struct
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image, ImageOps
from safetensors.torch import load_file

from model.errors import ImageError
from model.phi3v.inputs.image_processing import TILE, ImageProcessor, pad_to_tiles, resize
from model.phi3v.inputs.pictures import to_rgb

MEAN, STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)


def processor(num_crops: int = 16) -> ImageProcessor:
    return ImageProcessor(num_crops, MEAN, STD)


def test_golden_rows(golden: Path) -> None:
    """All rows of the golden table: sizes, token counts, statistics, and pixels within 1e-6."""
    rows = json.loads((golden / "image_processing.json").read_text())
    pixels = load_file(golden / "image_processing.safetensors")
    assert len(rows) == 39
    for row in rows:
        image = Image.open(golden / "images" / row["image"])
        made = processor(row["num_crops"])(image)
        crops = made.crops()
        assert made.num_tokens == row["num_img_tokens"], row
        assert len(crops) == row["crops"], row
        assert [side * TILE for side in made.grid] == row["image_size_hw"], row
        assert crops.double().mean().item() == pytest.approx(row["mean"], abs=1e-5)
        assert crops.double().std(correction=0).item() == pytest.approx(row["std"], abs=1e-4)
        means = crops.double().mean(dim=(1, 2, 3)).tolist()
        assert means == pytest.approx(row["crop_means"], abs=2e-6)
        key = f"{row['image']}/{row['num_crops']}"
        for crop, name in ((crops[0], "global"), (crops[-1], "last")):
            golden_crop = pixels[f"{key}/{name}_stride16"]
            torch.testing.assert_close(crop[:, ::16, ::16], golden_crop, atol=1e-6, rtol=0)


@pytest.mark.parametrize("size", [(1900, 1069), (500, 1300), (336, 336), (20, 10)])
@pytest.mark.parametrize("num_crops", [1, 4, 16])
def test_crops_are_the_originals_arithmetic_bit_for_bit(
    size: tuple[int, int], num_crops: int
) -> None:
    noise = np.random.default_rng(1).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    image, making = Image.fromarray(noise), processor(num_crops)
    plan = making.plan(*size)
    padded = np.array(pad_to_tiles(resize(image, plan), plan))
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in (MEAN, STD))
    expected = (torch.from_numpy(padded).permute(2, 0, 1).float() / 255 - mean) / std
    view = torch.nn.functional.interpolate(expected[None], size=(TILE, TILE), mode="bicubic")
    tiles = [tile for row in expected.split(TILE, 1) for tile in row.split(TILE, 2)]
    made = making(image)
    assert made.grid == plan.grid
    assert torch.equal(made.crops(), torch.stack([view[0], *tiles]))


def test_a_waiting_image_takes_a_byte_per_value() -> None:
    made = processor()(Image.new("RGB", (1900, 1069)))
    assert made.pixels.nbytes == 3 * 1008 * 1680
    assert made.num_crops == 16


@given(st.integers(1, 5000), st.integers(1, 5000), st.sampled_from([1, 4, 16]))
def test_plan_properties(width: int, height: int, num_crops: int) -> None:
    try:
        plan = processor(num_crops).plan(width, height)
    except ImageError:
        assert max(width, height) / min(width, height) > TILE
        return
    rows, columns = plan.grid
    assert 1 <= rows * columns <= num_crops
    assert plan.num_tokens == (rows * columns + 1) * 144 + 1 + (rows + 1) * 12
    assert plan.resized[0] <= columns * TILE
    assert plan.resized[1] <= rows * TILE
    turned = processor(num_crops).plan(height, width)
    if width != height:
        assert turned.grid == (columns, rows)


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "PA", "RGB", "RGBA", "CMYK", "YCbCr", "HSV"])
def test_any_mode(mode: str) -> None:
    grey = Image.new("L", (40, 30), 128).convert("RGB")
    image = grey.convert("L").convert(mode) if mode == "PA" else grey.convert(mode)
    crops = processor(1)(image).crops()
    assert crops.shape == (2, 3, TILE, TILE)
    assert crops.isfinite().all()


@pytest.mark.parametrize("mode", ["I;16", "I", "F"])
def test_deep_greyscale_keeps_its_shades(mode: str) -> None:
    """PIL's own conversion would clip everything but near black to white."""
    ramp = np.linspace(0, 65535, 256).astype(np.uint16)[None].repeat(8, 0)
    dtype = {"I;16": np.uint16, "I": np.int32, "F": np.float32}[mode]
    shades = np.asarray(to_rgb(Image.fromarray(ramp.astype(dtype))))[0, :, 0]
    assert shades.tolist() == pytest.approx(list(range(256)), abs=1)


def test_sixteen_bit_png() -> None:
    file = io.BytesIO()
    Image.fromarray(np.full((20, 20), 32896, dtype=np.uint16)).save(file, "PNG")
    assert to_rgb(Image.open(file)).getpixel((3, 3)) == (128, 128, 128)


def test_animation_gives_its_first_frame() -> None:
    frames = [Image.new("RGB", (32, 32), colour) for colour in ("red", "blue")]
    file = io.BytesIO()
    frames[0].save(file, "GIF", save_all=True, append_images=frames[1:])
    animation = Image.open(file)
    animation.seek(1)
    assert to_rgb(animation).getpixel((5, 5)) == (255, 0, 0)


def test_exif_orientation_is_applied() -> None:
    image = Image.new("RGB", (60, 20), "white")
    image.putpixel((0, 0), (255, 0, 0))
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned by 90 degrees clockwise
    file = io.BytesIO()
    image.save(file, "PNG", exif=exif)
    upright = to_rgb(Image.open(file))
    assert upright.size == (20, 60)
    assert upright.getpixel((19, 0)) == (255, 0, 0)
    assert processor()(Image.open(file)).grid == processor()(upright).grid


def jpeg_with_exif(*entries: bytes) -> Image.Image:
    """A picture of 40 x 30 whose EXIF block holds these 12-byte entries and says "turn by 90"."""
    turn = struct.pack("<HHI4s", 0x112, 3, 1, b"\6\0\0\0")
    block = struct.pack("<IH", 8, 1 + len(entries)) + turn + b"".join(entries) + bytes(4)
    file = io.BytesIO()
    Image.new("RGB", (40, 30)).save(file, "JPEG", exif=b"Exif\0\0II*\0" + block)
    return Image.open(file)


@pytest.mark.parametrize("orientation", range(10))
@pytest.mark.parametrize("kind", ["JPEG", "PNG", "TIFF", "WEBP"])
def test_orientations_are_as_pil_turns_them(kind: str, orientation: int) -> None:
    noise = np.random.default_rng(1).integers(0, 255, (20, 31, 3), dtype=np.uint8)
    exif = Image.Exif()
    exif[0x0112] = orientation
    file = io.BytesIO()
    Image.fromarray(noise).save(file, kind, exif=exif)
    expected = ImageOps.exif_transpose(Image.open(file)).convert("RGB")
    assert np.array_equal(np.asarray(to_rgb(Image.open(file))), np.asarray(expected))


@pytest.mark.filterwarnings("ignore:Tag data larger than file")
def test_odd_exif_tags_do_not_matter() -> None:
    for entry in (
        struct.pack("<HHI4s", 0x103, 6, 4, b"\xff" * 4),  # PIL cannot write this one back
        struct.pack("<HHI4s", 0x8769, 4, 1, b"\x08\0\0\0"),  # a directory within itself
        struct.pack("<HHI4s", 0x10F, 2, 5000, b"\xff\xff\0\0"),  # beyond the end
    ):
        assert to_rgb(jpeg_with_exif(entry)).size == (30, 40)


def test_whatever_pil_raises_is_the_images_fault(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise struct.error("unpack requires a buffer of 4 bytes")

    image = Image.new("RGB", (40, 30))
    monkeypatch.setattr(image, "convert", fail)
    with pytest.raises(ImageError, match="unpack requires a buffer"):
        processor()(image)


@pytest.mark.parametrize("size", [(1, 30000), (30000, 1)])
def test_hopeless_sizes_are_refused(size: tuple[int, int]) -> None:
    with pytest.raises(ImageError, match=r"ratio of 30000 to 1; the limit is 5376 to 1"):
        processor()(Image.new("L", size))


def test_fewer_crops() -> None:
    """As many as a checkpoint with that limit makes, bit for bit; never more than this one's."""
    picture = Image.linear_gradient("L").resize((1900, 1069)).convert("RGB")
    assert processor()(picture, 1).num_tokens == 313
    for most in (1, 2, 5, 9):
        made, other = processor()(picture, most), processor(most)(picture)
        assert made.grid == other.grid
        assert made.digest == other.digest
        assert torch.equal(made.crops(), other.crops())
    assert processor(4)(picture, 16).digest == processor(4)(picture).digest


def test_digest_tells_pictures_and_plans_apart() -> None:
    red, blue = (Image.new("RGB", (64, 48), colour) for colour in ("red", "blue"))
    digests = {
        processor()(red).digest,
        processor()(blue).digest,
        processor()(red, 1).digest,
        processor(4)(red).digest,
        processor()(red.resize((48, 64))).digest,
    }
    assert len(digests) == 5
    assert processor()(red).digest == processor()(red.convert("P")).digest
