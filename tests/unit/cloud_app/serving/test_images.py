"""An image file's bytes become what the model takes, or a sentence that says why not."""

import io
import struct
import zlib

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from cloud_app.serving.images import MAX_SCANS, pixels
from cloud_app.serving.infer_request import Refused, Signature
from emo.data.image import FORMATS, MAX_PIXELS


def takes(*sample, datatype="UINT8"):
    return Signature("tiny", 1, "images", sample, datatype, {"probabilities": (3,)}, (), 64)


def encoded(image, kind="PNG", **more):
    file = io.BytesIO()
    image.save(file, kind, **more)
    return file.getvalue()


RED_BLUE = Image.fromarray(np.array([[[255, 0, 0], [0, 0, 255]]], np.uint8))  # 2 wide, 1 high


def test_pixels_are_channels_then_rows_and_nothing_else_happens_to_them():
    image = np.random.default_rng(0).integers(0, 256, (5, 7, 3), np.uint8)
    found, size = pixels(encoded(Image.fromarray(image)), takes(3, 5, 7))
    np.testing.assert_array_equal(found[0], image.transpose(2, 0, 1))
    assert (found.shape, found.dtype, size) == ((1, 3, 5, 7), np.uint8, (7, 5))


@pytest.mark.parametrize("kind", FORMATS)
def test_formats(kind):
    found, _ = pixels(encoded(Image.new("RGB", (8, 8), (200, 30, 30)), kind), takes(3, 8, 8))
    assert abs(found[0].reshape(3, -1).mean(1) - [200, 30, 30]).max() < 12


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGB", "RGBA", "CMYK", "YCbCr"])
@pytest.mark.parametrize("sample", [(1, 4, 4), (3, 4, 4), (4, 4, 4)])
def test_modes_are_converted(mode, sample):
    kind = "JPEG" if mode in {"CMYK", "YCbCr"} else "PNG"
    found, size = pixels(encoded(Image.new(mode, (9, 3)), kind), takes(*sample))
    assert (found.shape, size) == ((1, *sample), (9, 3))


def test_a_photograph_is_turned_as_it_says():
    exif = Image.Exif()
    exif[0x0112] = 3  # upside down
    found, _ = pixels(encoded(RED_BLUE, exif=exif), takes(3, 1, 2))
    np.testing.assert_array_equal(found[0, :, 0, 0], [0, 0, 255])


def scans(times):
    """A progressive JPEG that goes so many times over its pixels."""
    data = encoded(Image.new("L", (8, 8), 9), "JPEG", progressive=True)
    last = data[data.rindex(b"\xff\xda") : -2]
    return data[:-2] + last * (times - data.count(b"\xff\xda")) + data[-2:]


def test_a_jpeg_may_have_scans_but_not_any_number():
    assert pixels(scans(MAX_SCANS), takes(1, 8, 8))[0].shape == (1, 1, 8, 8)
    with pytest.raises(Refused, match="scans") as caught:
        pixels(scans(MAX_SCANS + 1), takes(1, 8, 8))
    assert caught.value.status == 413


@pytest.mark.parametrize("data", [b"", b"no image", b"GIF89a", encoded(RED_BLUE)[:40], encoded(RED_BLUE, "EPS")])
def test_why_an_image_is_not_read_names_no_object_of_ours(data):
    with pytest.raises(Refused) as caught:
        pixels(data, takes(3, 4, 4))
    assert "<" not in str(caught.value)
    assert " 0x" not in str(caught.value)


def bomb(width, height):
    """A PNG that announces so many pixels, and holds a few bytes."""

    def chunk(kind, data):
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    head = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(b"")) + chunk(b"IEND", b"")


@pytest.mark.parametrize(
    ("data", "status", "why"),
    [
        (bomb(MAX_PIXELS // 4, 5), 413, "pixels"),
        (bomb(2**31 - 1, 2**31 - 1), 413, "pixels"),
        (bomb(0, 5), 400, "can be read"),
        (encoded(Image.new("RGB", (300, 300)))[:-30], 400, "can be read"),
        (encoded(Image.effect_noise((300, 300), 50), "JPEG")[:-900], 400, "can be read"),
        (encoded(Image.new("F", (3, 3)), "TIFF"), 400, "8 or 16 bits a channel"),
        (encoded(RED_BLUE, "EPS"), 400, "can be read"),
        (b"", 400, "can be read"),
        (b"GIF89a", 400, "can be read"),
    ],
)
def test_what_is_no_image_for_us(data, status, why):
    with pytest.raises(Refused, match=why) as caught:
        pixels(data, takes(3, 4, 4))
    assert caught.value.status == status


@pytest.mark.parametrize("model", [takes(3, 4, 4, datatype="FP32"), takes(3, 4), takes(2, 4, 4)])
def test_a_model_that_takes_no_images(model):
    with pytest.raises(Refused, match="takes"):
        pixels(encoded(RED_BLUE), model)


@given(st.data())
def test_damaged_images_are_refused_or_read(data):
    kind = data.draw(st.sampled_from(sorted(FORMATS)))
    changed = bytearray(encoded(Image.linear_gradient("L").resize((16, 16)), kind))
    for _ in range(data.draw(st.integers(1, 4))):
        changed[data.draw(st.integers(0, len(changed) - 1))] = data.draw(st.integers(0, 255))
    try:
        assert pixels(bytes(changed), takes(1, 4, 4))[0].shape == (1, 1, 4, 4)
    except Refused as error:
        refusal = error
        assert refusal.status in {400, 413}
