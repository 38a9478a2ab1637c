"""Forms of weights: what comes back, how far off it may be, what is refused before it is believed."""

from typing import get_args

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from emo.config import Form
from emo.errors import CodecError
from emo.wire import codec
from emo.wire.compression import restore, shrink

FORMS = get_args(Form)
lossy = pytest.mark.parametrize("form", FORMS[1:])


def model(seed=0, scale=0.05):
    rng = np.random.default_rng(seed)

    def drawn(*shape):
        return (scale * rng.standard_normal(shape)).astype(np.float32)

    return {
        "conv": drawn(32, 16, 3, 3),
        "linear": drawn(10, 512),
        "bias": drawn(10),
        "steps": np.array(7),
        "scale": drawn()[()].reshape(()),
        "double": drawn(4, 4).astype(np.float64),
        "half": drawn(4, 4).astype(np.float16),
        "empty": np.zeros((0, 3), np.float32),
    }


def moved(base, seed=1):
    """`base` after a little training; integers and all."""
    step = model(seed, 0.001)
    return {name: (array + step[name]).astype(array.dtype) for name, array in base.items()}


def through(weights, form, base):
    return restore(shrink(weights, form, base), form, base)


def nbytes(weights):
    return sum(array.nbytes for array in weights.values())


def test_fp32_is_left_alone():
    base = model()
    weights = moved(base)
    assert shrink(weights, "fp32", base) is weights
    assert restore(weights, "fp32", base) is weights


@lossy
def test_names_shapes_and_dtypes_come_back_and_small_tensors_to_the_bit(form):
    base = model()
    weights = moved(base)
    back = through(weights, form, base)
    assert list(back) == list(weights)
    for name, array in weights.items():
        assert back[name].dtype == array.dtype, name
        assert back[name].shape == array.shape, name
        assert (back[name].tobytes() == array.tobytes()) == (name not in {"conv", "linear"}), name


@pytest.mark.parametrize(
    ("form", "least", "error"), [("fp16", 2, 2**-11), ("delta-fp16", 2, 2**-11), ("delta-int8", 3.5, 1 / 255)]
)
def test_bytes_and_errors(form, least, error):
    base = {name: array for name, array in model().items() if name in {"conv", "linear"}}
    weights = moved(base)
    assert nbytes(weights) / nbytes(shrink(weights, form, base)) > least
    back = through(weights, form, base)
    for name, array in weights.items():
        sent = array if form == "fp16" else array - base[name]
        axes = tuple(range(1, array.ndim))  # int8: half a step of the range of an output channel
        size = np.ptp(sent, axes, keepdims=True) * 0.51 if form == "delta-int8" else np.abs(sent)
        assert (np.abs(back[name] - array) <= size * error + 1e-7).all(), name


_floats = hnp.arrays(
    np.float32,
    hnp.array_shapes(min_dims=0, max_dims=5, min_side=0, max_side=4),
    elements=st.floats(-60000, 60000, width=32),
)


@given(_floats, st.sampled_from(FORMS), st.integers(0, 3))
def test_any_array_comes_back_near(array, form, seed):
    base = {"a": np.random.default_rng(seed).standard_normal(array.shape).astype(np.float32)}
    once = through({"a": array}, form, base)["a"]
    assert once.shape == array.shape
    assert once.dtype == np.float32
    spread = float(np.ptp(array - base["a"])) if array.size else 0.0
    assert (np.abs(once - array) <= spread / 254 + np.abs(array) * 2**-10 + 0.01).all()


@lossy
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf, 65600.0, 3e38])
def test_what_float16_does_not_hold_arrives_all_the_same(form, value):
    base = {"w": np.ones((2, 3), np.float32)}
    weights = {"w": np.array([[1, 2, 3], [4, value, 6]], np.float32)}
    np.testing.assert_array_equal(through(weights, form, base)["w"], weights["w"])


def test_a_variance_near_zero_stays_positive():
    base = {"var": np.linspace(0.3, 900, 64, dtype=np.float32)}
    weights = {"var": np.full(64, 1e-6, np.float32)}
    for form in FORMS:
        assert (through(weights, form, base)["var"] > 0).all(), form


def test_rounding_to_fp16_twice_is_rounding_once():
    base = model()
    once = through(base, "fp16", base)
    again = shrink(once, "fp16", base)
    for name, array in shrink(base, "fp16", base).items():
        assert array.tobytes() == again[name].tobytes(), name


# -- what is refused


def packed(shape, codec_name="fp16"):
    return np.frombuffer(codec.encode(np.ones(shape, np.float32), codec_name), np.uint8)


BASE = {"w": np.zeros((2, 3), np.float32), "b": np.zeros(3, np.float32)}
GOOD = {"w": packed((3, 2)), "b": np.zeros(3, np.float32)}


@lossy
@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({"more": np.zeros(2)}, "do not match the model here: more"),
        ({"w": np.zeros((2, 3), np.float32)}, r"w is float32\[2, 3\], expected uint8\[n\]"),
        ({"w": packed((3, 2)).reshape(1, -1)}, r"w is uint8\[1, \d+\], expected uint8\[n\]"),
        ({"w": packed((3, 2)).astype(np.int64)}, "w is int64"),
        ({"w": packed((3, 2))[:-1]}, "w: .*checksum"),
        ({"w": packed((2, 3))}, r"w decodes to float32\[2, 3\], expected float32\[3, 2\]"),
        ({"w": packed((6,))}, r"w decodes to float32\[6\]"),
        ({"w": packed((7,))}, "w: .*over the limit of 24 bytes"),
        ({"w": packed((4096, 4096), "int2")}, "w: .*over the limit"),
        ({"b": np.zeros(4, np.float32)}, r"b is float32\[4\], expected float32\[3\] as it is"),
        ({"b": np.zeros(3, np.float64)}, "b is float64"),
        ({"b": packed((3,))}, "b is uint8"),
    ],
)
def test_what_does_not_fit_the_base_is_refused(form, changes, text):
    restore(GOOD, form, BASE)
    with pytest.raises(CodecError, match=text):
        restore(GOOD | changes, form, BASE)


@lossy
def test_a_missing_tensor_is_refused(form):
    with pytest.raises(CodecError, match="do not match the model here: w"):
        restore({"b": GOOD["b"]}, form, BASE)


def test_a_delta_of_the_codec_is_refused():
    before = model()["linear"]
    data = codec.encode(before, "int8-delta", before)
    assert len(data) < 0.5 * len(codec.encode(before, "int8"))  # it is one
    with pytest.raises(CodecError, match=r"w: .*is a delta"):
        restore({"w": np.frombuffer(data, np.uint8)}, "fp16", {"w": before.T})


@given(st.data())
def test_flipped_bits_are_refused(data):
    raw = bytearray(GOOD["w"].tobytes())
    raw[data.draw(st.integers(0, len(raw) - 1))] ^= 1 << data.draw(st.integers(0, 7))
    with pytest.raises(CodecError):
        restore(GOOD | {"w": np.frombuffer(bytes(raw), np.uint8)}, "delta-int8", BASE)
