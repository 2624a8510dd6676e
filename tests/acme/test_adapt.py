"""The decision table on inputs made by hypothesis: what it promises for all of them."""

import math

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from oracle import plain_adapt

from acme import Decision, adapt

exponents = st.floats(-12, 12)
magnitudes = exponents.map(lambda e: 10.0**e)
signs = st.sampled_from([-1.0, 0.0, 1.0])
slopes = st.builds(lambda s, m: s * m, signs, magnitudes)
losses = st.one_of(magnitudes, st.builds(lambda s, m: s * m, signs, magnitudes))
betas = st.one_of(st.just(0.0), st.floats(0.0, 0.999))
inputs = st.tuples(losses, losses, slopes, slopes, magnitudes, betas)
# Losses near each other, as a step makes them: all the codes are common.
near = st.tuples(losses, st.floats(-1e-3, 1e-3), slopes, slopes, magnitudes, betas).map(
    lambda x: (x[0], x[0] * (1 + x[1]), *x[2:])
)


@given(st.one_of(inputs, near))
@settings(max_examples=2000)
def test_finite_real_and_bounded(values) -> None:
    _, _, _, _, alpha, beta1 = values
    target, step, decision = adapt(*values)
    assert type(target) is float and type(step) is float
    assert math.isfinite(target) and math.isfinite(step)
    assert isinstance(decision, Decision) and decision != Decision.NON_FINITE
    if decision in (Decision.CUBIC, Decision.CUBIC_WORSE):
        assert 0 < target < alpha and step == target
    if decision == Decision.PARABOLA_AHEAD:
        assert alpha / 2 <= target <= alpha * (1 + 1e-12) and step == target
    if decision == Decision.PARABOLA_START:
        assert 0 <= target <= alpha / 2 and step == target
    if decision in (Decision.GROW, Decision.SHRINK):
        new = beta1 * alpha + (1 - beta1) * target
        assert alpha * 0.5 * (1 - 1e-9) <= new <= alpha * 2 * (1 + 1e-9)


extreme = st.floats(allow_nan=False, allow_infinity=False)


@given(extreme, extreme, extreme, extreme, st.floats(0, 1e300), betas)
@settings(max_examples=2000)
def test_never_nan_at_the_limits_of_float64(l0, l1, p0, p1, alpha, beta1) -> None:
    target, step, _ = adapt(l0, l1, p0, p1, alpha, beta1)
    assert math.isfinite(target) and math.isfinite(step)


def test_slope_that_vanishes_beside_the_other() -> None:
    """p1 underflows in units of p0, and the cubic's other terms cancel: the minimiser is at the far end."""
    target, step, decision = adapt(2.0, 1.0, 3.0, -5e-324, 1.0, 0.9)
    assert decision == Decision.CUBIC and target == step == math.nextafter(1.0, 0.0)


@given(st.one_of(inputs, near), st.floats(-3, 3).map(lambda e: 10.0**e))
@settings(max_examples=1000)
def test_scale_free(values, factor) -> None:
    l0, l1, p0, p1, alpha, beta1 = values
    # On the boundary between two rows a rounding decides; scale by a power of two there is none.
    factor = 2.0 ** round(math.log2(factor))
    expected = adapt(*values)
    scaled = adapt(l0 * factor, l1 * factor, p0 * factor, p1 * factor, alpha, beta1)
    assert scaled.decision == expected.decision
    assert scaled.target == pytest.approx(expected.target, rel=1e-9, abs=0)
    assert scaled.step == pytest.approx(expected.step, rel=1e-9, abs=0)
    stretched = adapt(l0, l1, p0 / factor, p1 / factor, alpha * factor, beta1)
    assert stretched.decision == expected.decision
    assert stretched.target == pytest.approx(expected.target * factor, rel=1e-9, abs=0)
    assert stretched.step == pytest.approx(expected.step * factor, rel=1e-9, abs=0)


@given(
    minimum=st.floats(0.05, 0.95), other=st.floats(-20, 20), curvature=st.floats(0.1, 10),
    alpha=st.floats(-6, 6).map(lambda e: 10.0**e), constant=st.floats(-5, 5),
)  # fmt: skip
@settings(max_examples=1000)
def test_exact_minimiser_of_cubics(minimum, other, curvature, alpha, constant) -> None:
    """Slope curvature·(x - minimum)·(x - other)·±1 with x = s/alpha; other outside the interval."""
    assume(not -0.05 < other < 1.05)
    sign = 1.0 if other < 0 else -1.0

    def slope(x: float) -> float:
        return sign * curvature * (x - minimum) * (x - other)

    def value(x: float) -> float:
        total, product = minimum + other, minimum * other
        return constant + sign * curvature * (x**3 / 3 - total * x**2 / 2 + product * x)

    l0, l1, p0, p1 = value(0), value(1), -slope(0) / alpha, -slope(1) / alpha
    target, _, decision = adapt(l0, l1, p0, p1, alpha, 0.9)
    if decision != Decision.UNCLEAR:
        assert decision in (Decision.CUBIC, Decision.CUBIC_WORSE)
        assert target == pytest.approx(minimum * alpha, rel=1e-7)


@given(
    minimum=st.one_of(st.floats(0.02, 0.98), st.floats(-3, -0.1), st.floats(1.1, 3)),
    curvature=st.floats(0.1, 10),
    alpha=st.floats(-6, 6).map(lambda e: 10.0**e),
)
@settings(max_examples=500)
def test_exact_minimiser_of_parabolas(minimum, curvature, alpha) -> None:
    """A parabola is the cubic without its leading term; with its minimum inside, it is found exactly."""
    l0, l1 = curvature * minimum**2, curvature * (1 - minimum) ** 2
    p0, p1 = 2 * curvature * minimum / alpha, -2 * curvature * (1 - minimum) / alpha
    target, _, decision = adapt(l0, l1, p0, p1, alpha, 0.9)
    assume(decision != Decision.UNCLEAR)
    if 0 < minimum < 1:
        assert target == pytest.approx(minimum * alpha, rel=1e-9)
    elif minimum > 1:
        assert decision == Decision.GROW
    else:
        assert decision == Decision.SHRINK


@given(st.floats(0.51, 0.99), st.floats(0.1, 10), st.floats(0.1, 10), st.floats(0.0, 5))
def test_exact_vertex_of_the_one_slope_parabolas(x, curvature, alpha, wrong_slope) -> None:
    """Codes 3 and 4 use one of the slopes; the other may have any value of the wrong sign."""
    l0, l1 = curvature * x**2, curvature * (1 - x) ** 2
    assume(abs(l0 - l1) > 2e-4 * l0)
    ahead = adapt(l0, l1, -wrong_slope, -2 * curvature * (1 - x) / alpha, alpha, 0.9)
    assert ahead.decision == Decision.PARABOLA_AHEAD
    assert ahead.target == pytest.approx(x * alpha, rel=1e-9)
    begin = adapt(l1, l0, 2 * curvature * (1 - x) / alpha, wrong_slope, alpha, 0.9)
    assert begin.decision == Decision.PARABOLA_START
    assert begin.target == pytest.approx((1 - x) * alpha, rel=1e-9)


@given(
    st.floats(0.1, 10), st.floats(0.1, 10), st.floats(-10, 10), st.floats(-10, 10), st.floats(0.1, 10), betas
)
@settings(max_examples=1000)
def test_equals_the_plain_table(l0, l1, p0, p1, alpha, beta1) -> None:
    # Moderate numbers, where the textbook formulas lose no digits that matter.
    assume(all(abs(p) > 0.01 for p in (p0, p1)))
    target, step, code = plain_adapt(l0, l1, p0, p1, alpha, beta1)
    result = adapt(l0, l1, p0, p1, alpha, beta1)
    assert result.decision == code
    assert result.target == pytest.approx(target, rel=1e-5, abs=1e-9)
    assert result.step == pytest.approx(step, rel=1e-5, abs=1e-9)
