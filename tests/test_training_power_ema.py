"""Power-function averages: their profiles, and lengths reconstructed from snapshots."""

import numpy as np
import pytest

from pathline.training.power_ema import Profile, combination, decay, exponent_of, overlap, std_of


@pytest.mark.parametrize(("std", "exponent"), [(0.05, 16.972), (0.10, 6.937)])
def test_published_exponents(std: float, exponent: float) -> None:
    assert exponent_of(std) == pytest.approx(exponent, abs=1e-3)
    assert std_of(exponent_of(std)) == pytest.approx(std, rel=1e-12)


def test_profile_has_the_moments_it_is_named_by() -> None:
    """Mean t(γ + 1)/(γ + 2) and standard deviation t·s, also of the tracked average."""
    end, std, steps = 1000.0, 0.08, 4000
    gamma, times = exponent_of(std), np.linspace(0, end, steps + 1)[1:]
    weights = np.zeros(steps)
    for k, t in enumerate(times):
        beta = decay(std, t, end / steps)
        weights *= beta
        weights[k] += 1 - beta
    mean = (weights * times).sum()
    assert weights.sum() == pytest.approx(1.0)
    assert mean == pytest.approx(end * (gamma + 1) / (gamma + 2), rel=1e-3)
    assert ((weights * (times - mean) ** 2).sum()) ** 0.5 == pytest.approx(end * std, rel=5e-3)


def test_overlap_is_the_integral() -> None:
    tau = np.linspace(0, 30, 400_001)
    for first, second in [(Profile(20, 0.1), Profile(30, 0.05)), (Profile(30, 0.07), Profile(20, 0.2))]:
        curves = [
            np.where(tau <= p.end, (p.exponent + 1) * tau**p.exponent / p.end ** (p.exponent + 1), 0.0)
            for p in (first, second)
        ]
        assert overlap(first, second) == pytest.approx(np.trapezoid(curves[0] * curves[1], tau), rel=1e-4)
        assert overlap(first, second) == pytest.approx(overlap(second, first))


def test_a_stored_profile_is_itself() -> None:
    stored = [Profile(t, s) for t in (4.0, 8.0, 12.0, 16.0) for s in (0.05, 0.1)]
    for place, profile in enumerate(stored):
        np.testing.assert_allclose(combination(stored, profile), np.eye(len(stored))[place], atol=1e-4)


@pytest.mark.parametrize("wanted", [Profile(100.0, 0.075), Profile(100.0, 0.12), Profile(90.0, 0.06)])
def test_reconstruction_is_the_tracked_average(wanted: Profile) -> None:
    """Of a path of weights with waves of many lengths, from snapshots of two averages."""
    steps, end = 4000, 100.0
    times = np.linspace(0, end, steps + 1)[1:]
    path = np.sin(times / 3) + np.cos(times / 17) + 0.02 * times
    stored, values = [], []
    tracked = {0.05: 0.0, 0.1: 0.0, wanted.std: 0.0}
    found = 0.0
    for k, t in enumerate(times):
        for std in tracked:
            beta = decay(std, t, end / steps)
            tracked[std] = beta * tracked[std] + (1 - beta) * path[k]
        if abs(t - wanted.end) < 1e-9:
            found = tracked[wanted.std]
        if (k + 1) % 200 == 0:
            stored += [Profile(t, 0.05), Profile(t, 0.1)]
            values += [tracked[0.05], tracked[0.1]]
    weights = combination(stored, wanted)
    assert abs(weights @ np.array(values) - found) < 1e-3
    assert min(abs(value - found) for value in values[-2:]) > 5e-3
    assert weights.sum() == pytest.approx(1.0)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: exponent_of(0.0), r"std=0\.0"),
        (lambda: exponent_of(0.3), r"std=0\.3"),
        (lambda: Profile(0.0, 0.1), r"end=0\.0"),
        (lambda: decay(0.1, 1.0, 2.0), r"passed=2\.0"),
        (lambda: combination([], Profile(1.0, 0.1)), "no stored averages"),
        (lambda: combination([Profile(1.0, 0.1)], Profile(2.0, 0.1)), "ends at 2 cannot"),
        (lambda: combination([Profile(1.0, 0.1)], Profile(1.0, 0.2)), "far outside those stored"),
    ],
)
def test_bad_input(call: object, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        call()  # type: ignore[operator]
