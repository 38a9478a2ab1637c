"""Agreement with the definition: SVD of each side, 99 % of the variance, CCA, mean (Raghu et al. 2017)."""

import math
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edge_app.intervals.svcca import fold, svcca
from emo.errors import ModelError


def direct(a, b, variance=0.99):
    """The score by its definition, in float64, from singular value decompositions of the data."""
    bases = []
    for x in (a.astype(np.float64), b.astype(np.float64)):
        u, s, _ = np.linalg.svd(x - x.mean(axis=0), full_matrices=False)
        share = np.cumsum(s**2) / np.sum(s**2)
        bases.append(u[:, : int(np.argmax(share >= variance)) + 1])
    return np.linalg.svd(bases[0].T @ bases[1], compute_uv=False).mean()


def mixed(rng, n, c):
    """Channels of very different strength, mixed with each other, as a trunk's output is."""
    return rng.standard_normal((n, c)) * 2.0 ** -np.arange(c).clip(max=12) @ rng.standard_normal((c, c))


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("noise", [0.0, 0.05, 0.5, 5.0])
@pytest.mark.parametrize(("n", "c"), [(300, 24), (1500, 16), (40, 60), (2048, 3), (1025, 8)])
def test_agrees_with_the_direct_form(n, c, noise, dtype):
    rng = np.random.default_rng([n, c])
    a = (mixed(rng, n, c) + 3.0).astype(dtype)
    b = (a + noise * a.std() * rng.standard_normal((n, c))).astype(dtype)
    assert svcca(a, b) == pytest.approx(direct(a, b), abs=1e-5)
    assert svcca(b, a) == pytest.approx(svcca(a, b), abs=1e-5)


@given(st.integers(0, 10_000), st.integers(2, 200), st.integers(1, 12), st.integers(1, 12))
@settings(max_examples=60, deadline=None)
def test_agrees_on_random_shapes_also_with_unequal_channels(seed, n, c, d):
    rng = np.random.default_rng(seed)
    a = rng.standard_normal((n, c))
    b = rng.standard_normal((n, d)) + a[:, :1]
    score = svcca(a, b)
    assert 0.0 <= score <= 1.0
    assert score == pytest.approx(direct(a, b), abs=1e-5)


def test_rank_deficient_input_agrees():
    rng = np.random.default_rng(1)
    low = rng.standard_normal((400, 3))
    a = low @ rng.standard_normal((3, 20))
    b = (low + 0.3 * rng.standard_normal((400, 3))) @ rng.standard_normal((3, 20))
    b[:, 5:9] = 0.0  # dead channels, as a ReLU leaves them
    a[:, 11] = a[:, 12]
    for variance in (0.9, 0.99, 1.0):
        assert 0.0 < svcca(a, b, variance) < 1.0
    assert svcca(a, b) == pytest.approx(direct(a, b), abs=1e-6)
    assert svcca(a, b, 1.0) == pytest.approx(direct(a, b, 1 - 1e-12), abs=1e-6)


def test_blind_to_rotation_scale_and_shift():
    rng = np.random.default_rng(2)
    a = mixed(rng, 500, 16)
    rotation = np.linalg.qr(rng.standard_normal((16, 16)))[0]
    assert svcca(a, a) == pytest.approx(1.0, abs=1e-6)
    assert svcca(a, 1e4 * a @ rotation - 7.0) == pytest.approx(1.0, abs=1e-6)


def test_chance_floor():
    rng = np.random.default_rng(3)
    n, c = 1024, 32
    floor = svcca(rng.standard_normal((n, c)), rng.standard_normal((n, c)))
    assert floor == pytest.approx(0.87 * math.sqrt(c / n), rel=0.15)
    assert svcca(rng.standard_normal((16, 400)), rng.standard_normal((16, 400))) == pytest.approx(1.0)


def test_large_mean_costs_no_digits():
    rng = np.random.default_rng(4)
    a, b = rng.standard_normal((2, 300, 6))
    assert svcca(a + 1e6, b - 1e6) == pytest.approx(svcca(a, b), abs=1e-6)
    a = mixed(rng, 3000, 12).astype(np.float32) + np.float32(1e7)  # in steps of 1
    b = a + np.float32(8.0) * rng.standard_normal(a.shape).astype(np.float32).round()
    assert svcca(a, b) == pytest.approx(direct(a, b), abs=1e-6)


@pytest.mark.parametrize("shape", [(3000, 8), (50, 8), (5, 8), (1, 8), (1, 1), (0, 4), (4, 0)])
@pytest.mark.parametrize("value", [0.0, 0.1, 12345.678, np.nan, np.inf])
def test_constant_or_broken_activations_have_no_score(shape, value):
    x = np.full(shape, value, np.float32)
    good = np.random.default_rng(5).standard_normal(shape).astype(np.float32)
    assert math.isnan(svcca(x, good))
    assert math.isnan(svcca(good, x))


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("shape", [(2000, 4), (3, 9)])
def test_one_broken_value_is_enough(bad, shape):
    a, b = np.random.default_rng(6).standard_normal((2, *shape)).astype(np.float32)
    a[-1, -1] = bad
    assert math.isnan(svcca(a, b))
    assert math.isnan(svcca(b, a))


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("top", [0.985, 0.9899])
def test_a_nearly_flat_tail_under_one_direction_agrees(top, dtype):
    """The hardest for float32: 98.5 % of the variance in one direction, and the cut inside a nearly flat rest."""
    strengths = np.linspace(1.0, 0.99, 64) ** 2
    strengths *= (1 - top) / strengths[1:].sum()
    strengths[0] = top
    for seed in range(6):
        rng = np.random.default_rng([8, seed])
        a = rng.standard_normal((256, 64)) * np.sqrt(strengths)
        b = a + 10 ** rng.uniform(-2, 0.3) * np.sqrt(strengths[-1]) * rng.standard_normal(a.shape)
        rotation = np.linalg.qr(rng.standard_normal((64, 64)))[0]
        a, b = (a @ rotation + 0.4).astype(dtype), (b @ rotation).astype(dtype)
        assert svcca(a, b) == pytest.approx(direct(a, b), abs=1e-6)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize(("scale_a", "scale_b"), [(1e-22, 1.0), (1e-30, 1.0), (1.0, 1e25), (1e25, 1e-25)])
def test_scales_that_float32_cannot_square(scale_a, scale_b, dtype):
    rng = np.random.default_rng(9)
    a = rng.standard_normal((300, 6))
    b = a + rng.standard_normal((300, 6))
    scaled = (scale_a * a).astype(dtype), (scale_b * b).astype(dtype)
    assert svcca(*scaled) == pytest.approx(direct(a, b), abs=1e-5)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("n", [50, 3000])
def test_outlier_in_front_and_weak_channels_cost_no_digits(n, dtype):
    rng = np.random.default_rng(10)
    a = mixed(rng, n, 8) * np.logspace(-4, 0, 8)
    b = a + 0.3 * a.std(axis=0) * rng.standard_normal((n, 8))
    for first in (0.0, 1e3):
        a[0] = b[0] = first
        x, y = a.astype(dtype), b.astype(dtype)
        assert svcca(x, y) == pytest.approx(direct(x, y), abs=1e-5)
        assert svcca(x, y, 1.0) == pytest.approx(direct(x, y, 1 - 1e-12), abs=1e-4)


def test_input_is_left_alone():
    a, b = np.random.default_rng(7).standard_normal((2, 64, 4)).astype(np.float32)
    before = a.copy(), b.copy()
    svcca(a, b)
    assert (a == before[0]).all()
    assert (b == before[1]).all()


def test_shapes_that_cannot_be_compared():
    with pytest.raises(ModelError, match="same n"):
        svcca(np.zeros((4, 2)), np.zeros((5, 2)))
    with pytest.raises(ModelError, match="N, C"):
        fold(np.zeros(4))


def test_fold_makes_each_place_a_datapoint():
    x = np.arange(2 * 3 * 4 * 5).reshape(2, 3, 4, 5)
    folded = fold(x)
    assert folded.shape == (40, 3)
    assert (folded[1 * 20 + 2 * 5 + 3] == x[1, :, 2, 3]).all()
    assert (fold(x[:, :, 0, 0]) == x[:, :, 0, 0]).all()


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("case", ["noise0.5_256x64", "half_256x64", "independent_256x64"])
def test_agrees_with_what_google_svcca_gives(case, dtype):
    """Scores of google/svcca's cca_core after the SVD step that its paper asks for (99 %), epsilon 1e-10."""
    with np.load(Path(__file__).parents[3] / "data" / "svcca_reference.npz", allow_pickle=False) as file:
        a, b, score = (file[f"{case}_{part}"] for part in ("a", "b", "svcca"))
    assert svcca(a.astype(dtype), b.astype(dtype)) == pytest.approx(float(score), abs=1e-5)
