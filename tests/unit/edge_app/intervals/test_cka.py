"""Agreement with the definition of linear CKA (Kornblith et al. 2019, section 3)."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edge_app.intervals.cka import cka
from emo.errors import ModelError


def direct(a, b):
    """By n x n kernels, in float64: HSIC(K, L) / sqrt(HSIC(K, K) HSIC(L, L))."""
    kernels = []
    for x in (a.astype(np.float64), b.astype(np.float64)):
        centred = x - x.mean(axis=0)
        kernels.append(centred @ centred.T)
    k, m = kernels
    return (k * m).sum() / np.sqrt((k * k).sum() * (m * m).sum())


@given(
    st.integers(0, 10_000),
    st.integers(2, 200),
    st.integers(1, 12),
    st.integers(1, 12),
    st.sampled_from([np.float32, np.float64]),
)
@settings(max_examples=60, deadline=None)
def test_agrees_with_the_kernel_form(seed, n, c, d, dtype):
    rng = np.random.default_rng(seed)
    a = (3.0 * rng.standard_normal((n, c)) + 10.0).astype(dtype)
    b = (rng.standard_normal((n, d)) + a[:, :1]).astype(dtype)
    score = cka(a, b)
    assert 0.0 <= score <= 1.0
    assert score == pytest.approx(direct(a, b), abs=1e-5)
    assert score == pytest.approx(cka(b, a), abs=1e-5)


@pytest.mark.parametrize(("n", "c"), [(2500, 16), (30, 200)])
def test_agrees_over_several_pieces_and_below_c_datapoints(n, c):
    rng = np.random.default_rng(1)
    a = rng.standard_normal((n, c)) * np.logspace(-4, 0, c) + np.linspace(0, 5, n)[:, None]
    b = a + 0.5 * rng.standard_normal((n, c))
    assert cka(a, b) == pytest.approx(direct(a, b), abs=1e-5)


def test_blind_to_rotation_common_scale_and_shift_but_not_to_scale_of_a_channel():
    rng = np.random.default_rng(2)
    a = rng.standard_normal((500, 16))
    rotation = np.linalg.qr(rng.standard_normal((16, 16)))[0]
    assert cka(a, 1e4 * a @ rotation - 7.0) == pytest.approx(1.0, abs=1e-6)
    assert cka(a, a * np.logspace(0, 1, 16)) < 0.9


def test_chance_floor():
    rng = np.random.default_rng(3)
    n, c = 1024, 64
    floor = cka(rng.standard_normal((n, c)), rng.standard_normal((n, c)))
    assert floor == pytest.approx(c / (n + c), rel=0.1)


@pytest.mark.parametrize("scale", [1e-30, 1e-22, 1e30])
def test_scales_that_float32_cannot_square(scale):
    rng = np.random.default_rng(4)
    a, b = rng.standard_normal((2, 100, 5))
    assert cka((scale * a).astype(np.float32), b) == pytest.approx(direct(a, b), abs=1e-5)


@pytest.mark.parametrize("shape", [(3000, 8), (50, 8), (5, 8), (1, 8), (1, 1), (0, 4), (4, 0)])
@pytest.mark.parametrize("value", [0.0, 0.1, 12345.678, np.nan, np.inf])
def test_constant_or_broken_activations_have_no_score(shape, value):
    x = np.full(shape, value, np.float32)
    good = np.random.default_rng(5).standard_normal(shape).astype(np.float32)
    assert math.isnan(cka(x, good))
    assert math.isnan(cka(good, x))


def test_shapes_that_cannot_be_compared():
    with pytest.raises(ModelError, match="same n"):
        cka(np.zeros((4, 2)), np.zeros((5, 2)))
    with pytest.raises(ModelError, match="same n"):
        cka(np.zeros(4), np.zeros(4))
