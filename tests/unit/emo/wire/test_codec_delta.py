"""Deltas: they decode to the bits of the full frame, against the right base only."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from emo.config import CODECS
from emo.errors import BaseError, CodecError
from emo.wire.codec import Packed, decode, encode, head, whole

DELTAS = [codec for codec in CODECS if codec.endswith("-delta")]
LIMIT = 1 << 20
_shape = hnp.array_shapes(min_dims=1, max_dims=4, max_side=5)
_values = st.floats(width=32, min_value=-(2.0**90), max_value=2.0**90)


def pair(codec, drift=0.02):
    """(what the receiver holds, the next version)."""
    rng = np.random.default_rng(0)
    old = np.maximum(rng.standard_normal((16, 8, 4, 4)), 0).astype(np.float32)
    new = np.maximum(old + drift * rng.standard_normal(old.shape), 0).astype(np.float32)
    return decode(encode(old, codec), LIMIT), new


@given(
    _shape.flatmap(lambda s: st.tuples(*[hnp.arrays(np.float32, s, elements=_values)] * 2)),
    st.sampled_from(DELTAS),
)
def test_a_delta_decodes_to_the_bits_of_the_full_frame_and_is_never_larger(arrays, codec):
    base, array = arrays
    delta = encode(array, codec, base)
    assert len(delta) <= len(encode(array, codec)) == len(encode(array, codec.removesuffix("-delta")))
    assert decode(delta, LIMIT, base).tobytes() == decode(encode(array, codec), LIMIT).tobytes()


@given(
    _shape.flatmap(lambda s: st.tuples(*[hnp.arrays(np.float32, s, elements=_values)] * 2)),
    st.sampled_from(CODECS),
)
def test_whole_makes_the_full_frame_of_a_delta_and_leaves_a_full_one_as_it_is(arrays, codec):
    base, array = arrays
    data = encode(array, codec, base)
    decoded, full = whole(data, LIMIT, base)
    assert full == encode(array, codec)
    assert (full is data) == (not head(data, LIMIT).base)
    assert decoded.tobytes() == decode(data, LIMIT, base).tobytes() == decode(full, LIMIT).tobytes()
    assert decoded.shape == array.shape


@pytest.mark.parametrize("codec", DELTAS)
def test_a_chain_of_whole_frames_is_what_the_sender_keeps(codec):
    base, new = pair(codec)
    earlier = _encoded(base, codec)
    base = decode(earlier.full(), LIMIT)
    sender = Packed(new, codec, earlier)
    held, full = whole(sender.data(), LIMIT, base)
    assert head(sender.data(), LIMIT).base
    assert full == sender.full()
    assert whole(full, LIMIT)[0].tobytes() == held.tobytes()
    for wrong in (None, new):
        with pytest.raises(BaseError):
            whole(sender.data(), LIMIT, wrong)
    with pytest.raises(CodecError, match="over the limit"):
        whole(sender.data(), 100, base)
    with pytest.raises(CodecError, match="damaged"):
        whole(sender.data()[:-1] + b"?", LIMIT, base)


@pytest.mark.parametrize("codec", CODECS)
def test_a_head_says_codec_and_shape_without_decoding(codec):
    base, new = pair(codec if codec in DELTAS else "int8")
    found = head(encode(new, codec), LIMIT)
    assert (found.codec, found.shape, found.base) == (codec.removesuffix("-delta"), new.shape, 0)
    if codec in DELTAS:
        assert head(encode(new, codec, base), LIMIT).base
    with pytest.raises(CodecError, match="over the limit"):
        head(encode(new, codec), 100)


@pytest.mark.parametrize("codec", DELTAS)
def test_delta_and_full_frame_of_a_packed_array_decode_to_the_same_bits(codec):
    base, new = pair(codec)
    packed = Packed(new, codec, _encoded(base, codec))
    assert packed.data() != packed.full()
    held = decode(_encoded(base, codec).full(), LIMIT)
    assert packed.array(LIMIT, held).tobytes() == decode(packed.full(), LIMIT).tobytes()


def _encoded(array, codec):
    packed = Packed(array, codec)
    packed.data()
    return packed


@pytest.mark.parametrize("codec", DELTAS)
def test_errors_do_not_add_up_over_a_hundred_versions(codec):
    rng = np.random.default_rng(2)
    exact = np.maximum(rng.standard_normal((16, 8, 4, 4)), 0).astype(np.float32)
    held, off = decode(encode(exact, codec), LIMIT), []
    for _ in range(100):
        exact = np.maximum(exact + 0.01 * rng.standard_normal(exact.shape).astype(np.float32), 0)
        held = decode(encode(exact, codec, held), LIMIT, held)
        off.append(np.abs(held - exact).max() / ((exact.max() - exact.min()) / (2 ** int(codec[3]) - 1)))
    assert max(off[90:]) <= 0.51


@pytest.mark.parametrize("codec", DELTAS)
def test_a_small_change_costs_much_less_than_the_whole(codec):
    base, new = pair(codec)
    assert len(encode(new, codec, base)) < 0.8 * len(encode(new, codec))


@pytest.mark.parametrize("codec", DELTAS)
def test_only_the_very_base_is_taken(codec):
    base, new = pair(codec)
    delta = encode(new, codec, base)
    other = base.copy()
    other[3, 2, 1, 0] = np.nextafter(other[3, 2, 1, 0], np.float32(9))
    for wrong in (None, other, base[:8], base.reshape(8, 16, 4, 4)):
        with pytest.raises(BaseError):
            decode(delta, LIMIT, wrong)


@pytest.mark.parametrize("codec", DELTAS)
def test_every_flipped_bit_cut_and_trailing_byte_of_a_delta_is_refused(codec):
    base, new = pair(codec)
    base, new = base[:2, :3, :2, :2].copy(), base[:2, :3, :2, :2] * 1.01
    delta = encode(new, codec, base)
    assert delta[4 + 4 + 16 : 4 + 4 + 20] != bytes(4) or len(delta) == len(encode(new, codec))
    broken = [
        delta[:at] + bytes([delta[at] ^ 1 << bit]) + delta[at + 1 :] for at in range(len(delta)) for bit in range(8)
    ]
    broken += [delta[:size] for size in range(len(delta))] + [delta + b"\0"]
    for bad in broken:
        with pytest.raises(CodecError):
            decode(bad, LIMIT, base)


@pytest.mark.parametrize("codec", DELTAS)
def test_what_cannot_be_a_base_gives_a_full_frame(codec):
    base, new = pair(codec)
    full = encode(new, codec)
    for unfit in (base[:4], np.full_like(base, np.nan), np.full_like(base, 2e30)):
        assert encode(new, codec, unfit) == full
    assert encode(np.full_like(new, np.inf), codec, base) == encode(np.full_like(new, np.inf), "fp32")


def test_packed_deltas_chain_and_keep_no_chain():
    rng = np.random.default_rng(1)
    array = np.maximum(rng.standard_normal((16, 8, 4, 4)), 0).astype(np.float32)
    held, base = None, None
    for version in range(20):
        packed = Packed(array, "int4-delta", base)
        held = Packed(packed.data()).array(LIMIT, held)
        assert held.tobytes() == decode(packed.full(), LIMIT).tobytes(), version
        assert packed.nbytes() < 2 * len(encode(array, "int4"))
        base, array = packed, np.maximum(array + 0.05, 0) * np.float32(0.99)
    with pytest.raises(BaseError):
        packed.array(LIMIT)


def test_a_base_that_was_never_encoded_gives_a_full_frame():
    array = np.ones((2, 3), np.float32)
    assert Packed(array, "int8-delta", Packed(array, "int8-delta")).data() == encode(array, "int8")
