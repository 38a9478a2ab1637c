"""One way of reading a picture: what a device trains on is what the endpoint shows the model."""

import io

import numpy as np
import pytest
from PIL import Image

from cloud_app.serving.images import pixels
from cloud_app.serving.infer_request import Signature
from emo.config import Data
from emo.data import folder

COLOURS = np.random.default_rng(0).integers(0, 256, (4, 6, 4), np.uint8)
GREY16 = (np.arange(24, dtype=np.uint16) * 2747).reshape(4, 6)


def turned(orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    return exif


def picture(mode):
    return Image.fromarray(COLOURS).convert(mode)


def palette(transparent=None):
    image = Image.fromarray(np.arange(24, dtype=np.uint8).reshape(4, 6)).convert("P")
    image.putpalette(COLOURS.reshape(-1, 4)[:, :3].tobytes())
    if transparent is not None:
        image.info["transparency"] = transparent
    return image


def frames():
    return {"save_all": True, "append_images": [Image.new("RGB", (6, 4), "red")], "duration": 100}


# name: (what to save, how)
ODD = {
    "rgb.png": (picture("RGB"), {}),
    "grey.png": (picture("L"), {}),
    "bit.png": (picture("1"), {}),
    "alpha.png": (picture("RGBA"), {}),
    "grey-alpha.png": (picture("LA"), {}),
    "key.png": (picture("RGB"), {"transparency": tuple(COLOURS[0, 0, :3].tolist())}),
    "grey-key.png": (picture("L"), {"transparency": 77}),
    "palette.png": (palette(), {}),
    "palette-key.png": (palette(3), {}),
    "palette-alpha.png": (palette(bytes(range(0, 240, 10))), {}),
    "deep.png": (Image.fromarray(GREY16), {}),
    "deep.tif": (Image.fromarray(GREY16), {}),
    "animated.png": (picture("RGB"), frames()),
    "turned.png": (picture("RGB"), {"exif": turned(8)}),
    "grey.jpg": (picture("L"), {}),
    "rgb.jpeg": (picture("RGB"), {}),
    "cmyk.jpg": (picture("CMYK"), {}),
    "several.jpg": (picture("RGB"), {"format": "MPO", "save_all": True, "append_images": [picture("RGB")]}),
    **{f"turned{n}.jpg": (picture("RGB"), {"exif": turned(n), "quality": 95}) for n in range(1, 9)},
    "plain.jfif": (picture("RGB"), {"format": "JPEG"}),
    "rgb.webp": (picture("RGB"), {"lossless": True}),
    "alpha.webp": (picture("RGBA"), {"lossless": True}),
    "animated.webp": (picture("RGB"), frames()),
    "turned.webp": (picture("RGB"), {"lossless": True, "exif": turned(6)}),
    "palette.gif": (palette(), {}),
    "key.gif": (palette(), {"transparency": 3}),
    "animated.gif": (picture("RGB"), frames()),
    "rgb.bmp": (picture("RGB"), {}),
    "bit.bmp": (picture("1"), {}),
    "rgb.tif": (picture("RGB"), {}),
    "alpha.tif": (picture("RGBA"), {}),
    "cmyk.tif": (picture("CMYK"), {}),
    "turned.tif": (picture("RGB"), {"exif": turned(5)}),
    "rgb.ppm": (picture("RGB"), {}),
}


def served(data, channels, height, width):
    return pixels(
        data, Signature("m", 1, "images", (channels, height, width), "UINT8", {"probabilities": (2,)}, (), 1)
    )[0][0]


@pytest.mark.parametrize("name", ODD)
def test_training_and_serving_see_the_same_pixels(tmp_path, name):
    image, how = ODD[name]
    for label in ("a", "b"):
        for k in range(3):  # three, so that one of them goes to each part of the folder's split
            (tmp_path / label).mkdir(exist_ok=True)
            path = tmp_path / label / f"{k}-{name}"
            image.save(path, **how)
    train, test = folder.load(Data(name="folder", dir=tmp_path))
    for trained in (*train.images, *test.images):
        np.testing.assert_array_equal(trained, served(path.read_bytes(), *trained.shape))


def shown(image, channels=3, **how):
    file = io.BytesIO()
    image.save(file, **{"format": "PNG"} | how)
    width, height = image.size
    return served(file.getvalue(), channels, height, width)


def test_what_is_transparent_is_white_and_shows_nothing_that_lies_beneath():
    found = shown(Image.fromarray(np.dstack([COLOURS[..., :3], np.full((4, 6), 0, np.uint8)])))
    assert (found == 255).all()
    half = Image.new("RGBA", (6, 4), (0, 0, 0, 128))
    assert set(shown(half).ravel()) == {127}


def test_sixteen_bits_are_read_as_their_upper_eight():
    np.testing.assert_array_equal(shown(Image.fromarray(GREY16), 1)[0], (GREY16 >> 8).astype(np.uint8))


def test_a_photograph_that_lies_on_its_side_is_stood_up():
    exif = turned(6)  # to be turned by a quarter, clockwise
    lying = Image.fromarray(COLOURS[..., :3]).transpose(Image.Transpose.ROTATE_90)
    file = io.BytesIO()
    lying.save(file, "PNG", exif=exif)
    np.testing.assert_array_equal(served(file.getvalue(), 3, 4, 6), COLOURS[..., :3].transpose(2, 0, 1))
