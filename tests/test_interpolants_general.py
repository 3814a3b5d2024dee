"""Stochastic interpolants: coefficients, conditional means, Brownian bridge, and the Gaussian closed form."""

import itertools
import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from pathline.interpolants import (
    INTERPOLANTS,
    BrownianBridge,
    BrownianLatent,
    Channels,
    EncoderDecoderEnds,
    Gaussian,
    GaussianCoupling,
    LatentCoefficient,
    LinearPath,
    SigmoidLatent,
    StochasticInterpolant,
    interpolant_by_name,
    latent_by_name,
    list_latents,
)

LATENTS: list[LatentCoefficient] = [latent_by_name(name) for name in list_latents()]
LATENTS += [BrownianLatent(2.0), SigmoidLatent(4.0)]


def allowed(family: str, latent: LatentCoefficient) -> bool:
    if family.endswith("trigonometric"):
        return latent.peak < 1
    return not (family in ("encoder_decoder", "mirror") and latent.name == "zero")


INTERPOLANT_LIST: list[tuple[str, StochasticInterpolant]] = [
    (f"{family}-{latent.name}-{index}", interpolant_by_name(family, latent))
    for family, (index, latent) in itertools.product(INTERPOLANTS, enumerate(LATENTS))
    if allowed(family, latent)
]
every_interpolant = pytest.mark.parametrize(
    "interpolant", [item for _, item in INTERPOLANT_LIST], ids=[name for name, _ in INTERPOLANT_LIST]
)
every_latent = pytest.mark.parametrize("latent", LATENTS, ids=repr)


def draws(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def correlated_pair() -> GaussianCoupling:
    factor = draws(4, 4, seed=1)
    joint = factor @ factor.T + 0.2 * torch.eye(4).double()
    base = Gaussian([0.5, -1.0], covariance=joint[:2, :2])
    data = Gaussian([-0.3, 2.0], covariance=joint[2:, 2:])
    return GaussianCoupling(base, data, joint[:2, 2:])


@every_latent
def test_latent_vanishes_at_the_ends_and_its_rates_are_derivatives(latent: LatentCoefficient) -> None:
    ends = torch.tensor([0.0, 1.0], dtype=torch.float64)
    assert latent.value(ends).tolist() == [0.0, 0.0]
    assert bool(latent.product(ends).isfinite().all())
    t = torch.linspace(0.03, 0.97, 48, dtype=torch.float64, requires_grad=True)
    value = latent.value(t)
    assert bool(((value >= 0) & (value <= latent.peak + 1e-15)).all())
    assert latent.value(torch.tensor(0.5, dtype=torch.float64)).item() == pytest.approx(latent.peak)
    (slope,) = torch.autograd.grad((value + 0 * t).sum(), t, retain_graph=True)
    (product,) = torch.autograd.grad((value.square() / 2 + 0 * t).sum(), t)
    torch.testing.assert_close(latent.rate(t).detach(), slope, rtol=1e-10, atol=1e-12)
    torch.testing.assert_close(latent.product(t).detach(), product, rtol=1e-10, atol=1e-12)


def test_brownian_product_is_finite_where_its_rate_is_not() -> None:
    latent = BrownianLatent(2.0)
    ends = torch.tensor([0.0, 1.0], dtype=torch.float64)
    assert latent.rate(ends).tolist() == [math.inf, -math.inf]
    assert latent.product(ends).tolist() == [1.0, -1.0]


@every_interpolant
def test_rates_of_the_ends_are_derivatives(interpolant: StochasticInterpolant) -> None:
    t = torch.linspace(0.021, 0.977, 48, dtype=torch.float64, requires_grad=True)
    point = interpolant.at(t)
    for value, rate in ((point.base, point.base_rate), (point.data, point.data_rate)):
        (slope,) = torch.autograd.grad((value + 0 * t).sum(), t, retain_graph=True)
        torch.testing.assert_close(rate.detach(), slope, rtol=1e-9, atol=1e-11)
    assert bool(torch.isfinite(torch.stack([*interpolant.at(0.0)[:5], interpolant.gamma_gamma_rate(0.0)])).all())


@every_interpolant
def test_ends_are_base_and_data(interpolant: StochasticInterpolant) -> None:
    base, data, z = draws(3, 3, 2)
    first = data if interpolant.ends.name == "mirror" else base
    torch.testing.assert_close(interpolant.sample(base, data, z, 0.0), first, rtol=0, atol=1e-15)
    torch.testing.assert_close(interpolant.sample(base, data, z, 1.0), data, rtol=0, atol=1e-15)


def test_trigonometric_keeps_unit_variance_and_encoder_decoder_is_pure_latent_halfway() -> None:
    point = interpolant_by_name("trigonometric", "quadratic").at(torch.linspace(0, 1, 11, dtype=torch.float64))
    total = point.base**2 + point.data**2 + point.latent**2
    torch.testing.assert_close(total, torch.ones_like(total), rtol=1e-14, atol=0)
    middle = interpolant_by_name("encoder_decoder").at(0.5)
    assert float(middle.base) < 1e-30
    assert middle.data == 0
    assert middle.latent == 1
    assert isinstance(interpolant_by_name("encoder_decoder").ends, EncoderDecoderEnds)


def test_one_sided_linear_is_the_linear_path() -> None:
    noise, data = draws(2, 3, 3)
    interpolant, path = interpolant_by_name("one_sided_linear"), LinearPath()
    t = torch.tensor([0.1, 0.4, 0.8], dtype=torch.float64)
    unused = torch.zeros_like(data)
    torch.testing.assert_close(interpolant.sample(noise, data, unused, t), path.sample(data, noise, t))
    torch.testing.assert_close(interpolant.velocity(noise, data, unused, t), path.velocity(data, noise, t))


@every_interpolant
def test_velocity_is_the_rate_of_the_state(interpolant: StochasticInterpolant) -> None:
    base, data, z = draws(3, 3, 3)
    t = torch.tensor([0.13, 0.47, 0.81], dtype=torch.float64)
    h = 1e-6
    slope = (interpolant.sample(base, data, z, t + h) - interpolant.sample(base, data, z, t - h)) / (2 * h)
    torch.testing.assert_close(interpolant.velocity(base, data, z, t), slope, rtol=1e-6, atol=1e-7)
    without = interpolant.velocity(base, data, torch.zeros_like(z), t)
    torch.testing.assert_close(interpolant.mean_rate(base, data, t), without)


@every_interpolant
def test_three_channels_of_a_gaussian_pair_agree_with_velocity_and_score(interpolant: StochasticInterpolant) -> None:
    pair, x = correlated_pair(), draws(5, 2, seed=4)
    point = interpolant.at(0.37)
    a, b, g = (float(entry) for entry in point[:3])
    total = pair.marginal(point).covariance
    white = torch.linalg.solve(total, (x - pair.marginal(point).mean).T).T
    exact = Channels(
        pair.base.mean + white @ (a * pair.base.covariance + b * pair.cross.T),
        pair.data.mean + white @ (a * pair.cross + b * pair.data.covariance),
        g * white,
    )
    score, velocity = pair.score(x, point), pair.velocity(x, point)
    torch.testing.assert_close(interpolant.velocity_from_channels(exact, 0.37), velocity, rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(pair.latent(x, point), exact.latent, rtol=1e-12, atol=1e-12)
    mean_rate = float(point.base_rate) * exact.base + float(point.data_rate) * exact.data
    torch.testing.assert_close(
        interpolant.velocity_from_score(mean_rate, score, 0.37), velocity, rtol=1e-10, atol=1e-10
    )
    for missing in range(3):
        if float(point[missing]) > 0:
            known = {name: value for name, value in exact._asdict().items() if name != Channels._fields[missing]}
            full = interpolant.complete(x, 0.37, **known)
            torch.testing.assert_close(full[missing], exact[missing], rtol=1e-9, atol=1e-9)
    if interpolant.latent.name != "zero":
        torch.testing.assert_close(interpolant.score_from_channels(exact, 0.37), score, rtol=1e-10, atol=1e-10)
    if interpolant.ends.name in ("linear", "trigonometric"):
        solved = interpolant.channels(x, velocity, score, 0.37)
        for result, expected in zip(solved, exact, strict=True):
            torch.testing.assert_close(result, expected, rtol=1e-9, atol=1e-9)


def test_one_sided_score_comes_from_the_base() -> None:
    """-E[x0|x] / base for a standard normal base, with and without latent noise."""
    for latent in ("zero", "brownian"):
        interpolant = interpolant_by_name("one_sided_linear", latent)
        pair = GaussianCoupling(Gaussian([0.0, 0.0], variance=1.0), correlated_pair().data)
        x, point = draws(5, 2), interpolant.at(0.4)
        score = pair.score(x, point)
        channels = interpolant.channels(x, pair.velocity(x, point), score, 0.4)
        torch.testing.assert_close(-channels.base / point.base, score, rtol=1e-10, atol=1e-10)
        torch.testing.assert_close(interpolant.score_from_channels(channels, 0.4), score, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("family", ["linear", "trigonometric", "mirror", "encoder_decoder"])
@pytest.mark.parametrize("t", [0.3, 0.8])
def test_velocity_and_latent_are_the_regression_optimum(family: str, t: float) -> None:
    """Least squares of the conditional targets on the state, within five standard errors."""
    n, pair, interpolant = 20000, correlated_pair(), interpolant_by_name(family)
    base, data = pair.sample(n, torch.Generator().manual_seed(5))
    z = draws(n, 2, seed=6)
    x = interpolant.sample(base, data, z, t)
    design = torch.cat([x, torch.ones(n, 1).double()], 1)
    probe = torch.tensor([[1.0, 0.0, 1.0], [0.0, 1.0, 1.0], [0.0, 0.0, 1.0]], dtype=torch.float64)
    point = interpolant.at(t)
    normal = torch.linalg.inv(design.T @ design)
    targets = (
        (interpolant.velocity(base, data, z, t), pair.velocity(probe[:, :2], point)),
        (z, pair.latent(probe[:, :2], point)),
    )
    for target, exact in targets:
        weights = normal @ design.T @ target
        residual = (target - design @ weights).square().mean(0)
        error = (torch.einsum("ij,jk,ik->i", probe, normal, probe)[:, None] * residual).sqrt()
        assert float(((probe @ weights - exact).abs() / error).max()) < 5


def test_marginal_covariance_moves_with_the_velocity() -> None:
    """d C_t/dt = K + K^T, with K the slope of the velocity times C_t."""
    pair, interpolant, t, h = correlated_pair(), interpolant_by_name("linear"), 0.3, 1e-5
    probe = torch.eye(2).double()
    point = interpolant.at(t)
    slope = (pair.velocity(probe, point) - pair.velocity(0 * probe, point)).T
    k = slope @ pair.marginal(point).covariance
    after, before = (pair.marginal(interpolant.at(t + sign * h)).covariance for sign in (1, -1))
    torch.testing.assert_close(k + k.T, (after - before) / (2 * h), rtol=1e-7, atol=1e-8)


def test_brownian_bridge_transitions_compose_and_have_the_right_marginals() -> None:
    bridge = BrownianBridge(3.0)
    start, data = draws(2, 4, 2)
    mean, std = bridge.transition(start, data, 0.0, 0.3)
    point = bridge.at(0.3)
    torch.testing.assert_close(mean, bridge.sample(start, data, 0 * data, 0.3))
    assert std == pytest.approx(float(point.latent), rel=1e-14)
    second, second_std = bridge.transition(mean, data, 0.3, 0.7)
    direct, direct_std = bridge.transition(start, data, 0.0, 0.7)
    torch.testing.assert_close(second, direct)
    carried = (1 - 0.7) / (1 - 0.3) * std
    assert second_std**2 + carried**2 == pytest.approx(direct_std**2, rel=1e-13)
    last, last_std = bridge.transition(mean, data, 0.3, 1.0)
    torch.testing.assert_close(last, data)
    assert last_std == 0
    assert bridge.diffusivity == 3.0


def test_bbdm_schedule_is_the_bridge_of_twice_its_scale() -> None:
    """BBDM: variance 2 s (m - m^2), with the weight m of the source."""
    scale, m = 1.3, torch.linspace(0.001, 0.999, 7, dtype=torch.float64)
    point = BrownianBridge(2 * scale).at(1 - m)
    torch.testing.assert_close(point.latent**2, 2 * scale * (m - m**2))
    torch.testing.assert_close(point.base, m)


def test_entropic_coupling_gives_the_schroedinger_bridge() -> None:
    """With the entropic plan and its Brownian latent, the SDE of epsilon / 2 reproduces the plan itself."""
    level, s0, s1 = 0.7, 0.8, 1.5
    cross = 0.5 * (math.sqrt(level**2 + 4 * s0**2 * s1**2) - level)
    pair = GaussianCoupling(Gaussian([0.0], variance=s0**2), Gaussian([0.0], variance=s1**2), [[cross]])
    bridge = BrownianBridge(level)
    one = torch.ones(1, 1, dtype=torch.float64)

    def slope(t: float) -> float:
        point = bridge.at(t)
        return float(pair.velocity(one, point) + 0.5 * level * pair.score(one, point))

    # E[X_1 | X_0 = x] = x exp(integral of the slope), by Simpson's rule.
    values = torch.tensor([slope(index / 200) for index in range(201)], dtype=torch.float64)
    simpson = (values[0] + values[-1] + 4 * values[1::2].sum() + 2 * values[2:-1:2].sum()) / 600
    assert math.exp(float(simpson)) == pytest.approx(cross / s0**2, rel=1e-8)


def test_floats_and_types() -> None:
    interpolant = interpolant_by_name("linear")
    assert interpolant.at(0.3).base.dtype == torch.float64
    assert interpolant.at(torch.tensor([0.3])).latent.dtype == torch.float32
    base, data, z = torch.randn(3, 2, 3)
    assert interpolant.sample(base, data, z, 0.3).dtype == torch.float32
    assert interpolant_by_name("linear", "brownian", diffusivity=2.0).latent == BrownianLatent(2.0)
    assert interpolant_by_name("linear", "brownian") == interpolant_by_name("linear")


@given(t=st.floats(0.01, 0.99), latent=st.sampled_from(LATENTS), x=st.floats(-3, 3), score=st.floats(-3, 3))
def test_channels_reproduce_state_velocity_and_score(
    t: float, latent: LatentCoefficient, x: float, score: float
) -> None:
    interpolant = interpolant_by_name("linear", latent)
    state, gradient = (torch.tensor([[value]], dtype=torch.float64) for value in (x, score))
    velocity = torch.tensor([[0.7]], dtype=torch.float64)
    channels = interpolant.channels(state, velocity, gradient, t)
    point = interpolant.at(t)
    rebuilt = point.base * channels.base + point.data * channels.data + point.latent * channels.latent
    torch.testing.assert_close(rebuilt, state, rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(interpolant.velocity_from_channels(channels, t), velocity, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: interpolant_by_name("liner"), "unknown interpolant 'liner'; did you mean 'linear'"),
        (lambda: interpolant_by_name("linear", "brownain"), "did you mean 'brownian'"),
        (lambda: interpolant_by_name("linear", "brownian", diffusvity=1.0), "did you mean 'diffusivity'"),
        (lambda: interpolant_by_name("linear", BrownianLatent(), diffusivity=1.0), "latent given by name"),
        (lambda: interpolant_by_name("linear", "zero", a=1.0), "valid names: \\(none\\)"),
        (lambda: interpolant_by_name("mirror", "zero"), "needs a latent coefficient that is not zero"),
        (lambda: interpolant_by_name("trigonometric", "sin_squared"), "below 1 everywhere.*diffusivity below 4"),
        (lambda: BrownianBridge(-1.0), "diffusivity must be"),
        (lambda: BrownianBridge().transition(draws(1, 1), draws(1, 1), 0.5, 0.5), "time < next_time"),
        (lambda: interpolant_by_name("linear").at(-0.1), "t must lie in"),
        (lambda: interpolant_by_name("linear").complete(draws(1, 1), 0.5, base=draws(1, 1)), "exactly two"),
        (
            lambda: GaussianCoupling(Gaussian([0.0], variance=1.0), Gaussian([0.0], variance=1.0), [[2.0]]),
            "joint covariance",
        ),
        (
            lambda: GaussianCoupling(Gaussian([0.0], variance=1.0), Gaussian([0.0, 1.0], variance=1.0)),
            "equal dimensions, got 1, 2",
        ),
        (
            lambda: GaussianCoupling(Gaussian([0.0], variance=1.0), Gaussian([0.0], variance=1.0), [0.1]),
            r"cross must have shape \(1, 1\)",
        ),
    ],
)
def test_bad_input_is_refused_with_words(call: object, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        call()  # type: ignore[operator]
