"""The array codec: error bounds, and that no damaged or crafted bytes are believed."""

import struct
import tracemalloc
import zlib

import numpy as np
import pytest
import zstandard
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from emo.errors import CodecError
from emo.wire.codec import Packed, decode, encode

CODECS = ["fp32", "fp16", "int8", "int4", "int3", "int2"]
LIMIT = 1 << 20
_shapes = st.one_of(
    hnp.array_shapes(min_dims=1, max_dims=4, max_side=6), hnp.array_shapes(min_dims=5, max_dims=8, max_side=2)
)


def arrays(bound=None):
    floats = {"width": 32} if bound is None else {"width": 32, "min_value": -bound, "max_value": bound}
    return hnp.arrays(np.float32, _shapes, elements=st.floats(**floats))


def forge(number, shape, raw_size, zstd, base=0):
    """An encoded array with a right checksum, whatever it says."""
    body = struct.pack("<2sBBB3x", b"EA", 2, number, len(shape)) + struct.pack(
        f"<{len(shape) + 2}I", *shape, base, raw_size
    )
    return body + zstd + struct.pack("<I", zlib.crc32(body + zstd))


def reseal(data):
    return data[:-4] + struct.pack("<I", zlib.crc32(data[:-4]))


def small(codec):
    return encode(np.linspace(-1, 2, 12, dtype=np.float32).reshape(2, 3, 2), codec)


@given(arrays())
def test_fp32_is_bit_exact(array):
    back = decode(encode(array, "fp32"), LIMIT)
    assert back.dtype == np.float32
    assert back.shape == array.shape
    assert back.tobytes() == array.tobytes()


@given(arrays(65504))
def test_fp16_keeps_eleven_bits(array):
    back = decode(encode(array, "fp16"), LIMIT)
    assert back.shape == array.shape
    assert (np.abs(back - array) <= np.maximum(np.abs(array) * 2.0**-11, 2.0**-25)).all()


@given(arrays(float(np.float32(1e29))), st.sampled_from([8, 4, 3, 2]))
def test_few_bits_are_within_half_a_step_of_their_channel(array, bits):
    back = decode(encode(array, f"int{bits}"), LIMIT).astype(np.float64)
    exact = array.astype(np.float64)
    assert back.shape == array.shape
    axes = tuple(axis for axis in range(array.ndim) if axis != 1)
    low, high = (f(exact, axis=axes, keepdims=True) for f in (np.min, np.max))
    if array.ndim == 1:
        low, high = exact.min(), exact.max()
    rounding = 4 * np.finfo(np.float32).eps * np.maximum(np.abs(low), np.abs(high)) + 1e-40
    half_a_step = (high - low) / (2**bits - 1) / 2 * (1 + 2**-7)
    assert (np.abs(back - exact) <= half_a_step * 1.001 + rounding).all()


@given(arrays(), st.sampled_from(CODECS), st.data())
def test_nan_and_infinity_reach_the_receiver_bit_exact(array, codec, data):
    flat = array.reshape(-1).copy()
    flat[data.draw(st.integers(0, flat.size - 1))] = data.draw(st.sampled_from([np.nan, np.inf, -np.inf]))
    assert decode(encode(flat.reshape(array.shape), codec), LIMIT).tobytes() == flat.tobytes()


def test_fp16_clips_what_it_cannot_hold():
    back = decode(encode(np.array([1e20, -1e20, 65519], np.float32), "fp16"), LIMIT)
    assert back.tolist() == [65504, -65504, 65504]


@pytest.mark.filterwarnings("ignore:overflow")
def test_int8_of_a_range_wider_than_float32_stays_finite():
    back = decode(encode(np.array([[-3e38], [1e38], [3e38]], np.float32), "int8"), LIMIT)
    assert np.abs(back.ravel() - np.array([-3e38, 1e38, 3e38])).max() <= 3e36


def test_constant_and_strided_arrays():
    constant = np.full((4, 2, 3), 7.25, np.float32)
    strided = np.arange(24, dtype=np.float32).reshape(2, 3, 4).transpose(2, 1, 0)
    assert (decode(encode(constant, "int2"), LIMIT) == constant).all()
    assert (decode(encode(strided, "fp32"), LIMIT) == strided).all()


@pytest.mark.parametrize("codec", CODECS)
def test_every_flipped_bit_cut_and_trailing_byte_is_refused(codec):
    data = small(codec)
    broken = [data[:at] + bytes([data[at] ^ 1 << bit]) + data[at + 1 :] for at in range(len(data)) for bit in range(8)]
    broken += [data[:size] for size in range(len(data))]
    broken += [data + bytes([extra]) for extra in range(256)]
    broken += [reseal(data[:-4] + b"\0" + data[-4:]), reseal(data[:-5] + data[-4:])]
    for bad in broken:
        with pytest.raises(CodecError):
            decode(bad, LIMIT)


@pytest.mark.parametrize("codec", CODECS)
@pytest.mark.filterwarnings("ignore::RuntimeWarning")
def test_crafted_bytes_with_a_right_checksum_give_an_array_within_limits_or_codec_error(codec):
    data = small(codec)
    for at in range(len(data) - 4):
        for value in {0, 1, 0x7F, 0xFF, data[at] ^ 1, data[at] ^ 0x80}:
            try:
                array = decode(reseal(data[:at] + bytes([value]) + data[at + 1 :]), 96)
            except CodecError:
                continue
            assert array.dtype == np.float32
            assert array.nbytes <= 96


@given(st.binary(max_size=200))
def test_any_bytes(data):
    with pytest.raises(CodecError):
        decode(reseal(data + bytes(4)), LIMIT)


def bombs():
    zeros = zstandard.ZstdCompressor(level=19).compress(bytes(64 << 20))
    at = 5  # magic, descriptor; then 4 bytes of content size, for a frame that is one segment
    single = zstandard.ZstdCompressor(compression_params=zstandard.ZstdCompressionParameters(window_log=27))
    silent = zstandard.ZstdCompressor(write_content_size=False).compress(bytes(16))
    good = zstandard.ZstdCompressor().compress(bytes(16))
    lying = bytearray(single.compress(bytes(64 << 20)))
    assert zstandard.get_frame_parameters(bytes(lying)).content_size == 64 << 20
    lying[at : at + 4] = struct.pack("<I", 16)
    assert zstandard.get_frame_parameters(bytes(lying)).content_size == 16
    short = bytearray(good)
    short[at] = 17
    skippable = struct.pack("<II", 0x184D2A50, 0)
    return {
        "2 KB that declare 64 MiB": forge(0, [4], 16, zeros),
        "64 MiB that declare 16 bytes": forge(0, [4], 16, bytes(lying)),
        "a frame without its size": forge(0, [4], 16, silent),
        "16 bytes that declare 17": forge(0, [4], 16, bytes(short)),
        "two frames": forge(0, [4], 16, good + good),
        "a skippable frame first": forge(0, [4], 16, skippable + good),
        "a header that agrees with the bomb": forge(0, [16 << 20], 64 << 20, zeros),
        "dims whose product overflows 64 bits": forge(0, [2**32 - 1] * 8, 16, good),
        "dims whose product wraps to 4 in 64 bits": forge(0, [2**31, 2**31, 4], 16, good),
        "an empty dim": forge(0, [4, 0], 0, zstandard.ZstdCompressor().compress(b"")),
        "raw size unlike the shape": forge(1, [4], 16, good),
        "no dims": forge(0, [], 16, good),
        "nine dims": forge(0, [1] * 8 + [4], 16, good),
        "unknown codec": forge(6, [4], 16, good),
        "a delta of floats": forge(0, [4], 16, good, base=7),
    }


@pytest.mark.parametrize(("name", "data"), bombs().items())
def test_bombs_are_refused_before_anything_is_allocated(name, data):
    tracemalloc.start()
    try:
        with pytest.raises(CodecError):
            decode(data, LIMIT)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 64 * 1024, name


def test_the_limit_is_in_bytes_of_the_decoded_array():
    data = encode(np.zeros((4, 4), np.float32), "int8")
    assert decode(data, 64).nbytes == 64
    with pytest.raises(CodecError, match="limit of 63 bytes"):
        decode(data, 63)


@pytest.mark.parametrize("shape", [(0,), (3, 0), (1,) * 9])
def test_shapes_that_cannot_be_encoded(shape):
    with pytest.raises(CodecError, match="shape"):
        encode(np.zeros(shape, np.float32), "fp32")


def test_a_scalar_cannot_be_encoded():
    with pytest.raises(CodecError):
        encode(np.array(3.0, np.float32), "fp32")


def test_unknown_codec_names_the_known():
    with pytest.raises(CodecError, match="fp32, fp16, int8"):
        encode(np.zeros(1), "zip")


def test_packed_encodes_once_and_shows_what_the_receiver_sees():
    array = np.array([[0.0, 1.0001]], np.float32)
    packed = Packed(array, "fp16")
    assert packed.nbytes() == 8
    data = packed.data()
    assert packed.data() is data
    assert packed.nbytes() == len(data)
    assert packed.array(8).tolist() == Packed(data).array(8).tolist() == [[0, 1]]
    with pytest.raises(CodecError):
        packed.array(7)


def test_activations_after_relu_shrink_to_the_sizes_measured():
    rng = np.random.default_rng(0)
    array = np.maximum(rng.standard_normal((16, 8, 16, 16)).astype(np.float32), 0)
    sizes = {codec: len(encode(array, codec)) for codec in CODECS}
    assert sizes["fp32"] < array.nbytes / 1.5
    assert sizes["fp16"] < array.nbytes / 3
    assert sizes["int8"] < array.nbytes / 5
    assert sizes["int4"] < array.nbytes / 9
    assert sizes["int2"] < array.nbytes / 20
    error = np.linalg.norm(decode(encode(array, "int8"), array.nbytes) - array) / np.linalg.norm(array)
    assert error < 0.01
