"""ODE and SDEs carry the marginals: exactly in the moments of Gaussian problems, and in simulation."""

import math
from collections.abc import Callable

import pytest
import torch
import torchdiffeq
from torch import Tensor

from pathline.interpolants import (
    EPSILONS,
    PREDICTIONS,
    SDE,
    BrownianBridge,
    CosinePath,
    EDMPath,
    Gaussian,
    GaussianCoupling,
    GaussianMixture,
    GaussianPath,
    LinearPath,
    StochasticInterpolant,
    SubVPPath,
    VEPath,
    VPPath,
    constant_epsilon,
    epsilon_by_name,
    interpolant_by_name,
    noising_sde,
    probability_flow,
    sbdm_epsilon,
    sde,
)

Model = Callable[[Tensor, Tensor], Tensor]
D = 2
PATHS: list[GaussianPath] = [
    LinearPath(),
    CosinePath(),
    VPPath(),
    SubVPPath(),
    VEPath(0.1, 5.0),
    EDMPath(0.1, 5.0, 2.0),
]
every_path = pytest.mark.parametrize("path", PATHS, ids=[path.name for path in PATHS])


def draws(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def correlated_pair() -> GaussianCoupling:
    factor = draws(2 * D, 2 * D, seed=1)
    joint = factor @ factor.T + torch.eye(2 * D).double()
    base = Gaussian([0.5, -1.0], covariance=joint[:D, :D])
    return GaussianCoupling(base, Gaussian([-0.3, 2.0], covariance=joint[D:, D:]), joint[:D, D:])


FAMILIES: dict[str, StochasticInterpolant] = {
    "linear": interpolant_by_name("linear", "zero"),
    "brownian": BrownianBridge(1.5),
    "trigonometric": interpolant_by_name("trigonometric", "quadratic"),
    "trigonometric-brownian": interpolant_by_name("trigonometric"),
    "encoder-decoder": interpolant_by_name("encoder_decoder"),
    "mirror": interpolant_by_name("mirror"),
    "sigmoid": interpolant_by_name("linear", "sigmoid"),
}
every_family = pytest.mark.parametrize("interpolant", FAMILIES.values(), ids=list(FAMILIES))


def integrate(field: Callable[[Tensor, Tensor], Tensor], state: Tensor, start: float, end: float) -> Tensor:
    """Fixed steps of order 4; t = 1/2, where the encoder-decoder has a kink, is a node of [0, 1]."""
    times = torch.tensor([start, end], dtype=torch.float64)
    return torchdiffeq.odeint(field, state, times, method="rk4", options={"step_size": abs(end - start) / 120})[-1]


def moment_rates(system: SDE, t: float | Tensor, mean: Tensor, covariance: Tensor, sign: float = 1.0) -> Tensor:
    """Rates of mean (first row) and covariance under an SDE whose drift is affine in the state.

    d m/dt = drift(m), d C/dt = A C + C A^T + diffusion^2 with A the slope of the drift; going back in time the
    noise still adds, so its sign turns.
    """
    identity = torch.eye(len(mean), dtype=torch.float64)
    drift = system.drift(t, torch.cat([mean[None], mean + identity]))
    slope = (drift[1:] - drift[0]).T
    spread = slope @ covariance
    return torch.cat([drift[:1], spread + spread.T + sign * system.diffusion(t) ** 2 * identity])


def pair_models(pair: GaussianCoupling, interpolant: StochasticInterpolant) -> tuple[Model, Model]:
    def velocity(x: Tensor, t: Tensor) -> Tensor:
        assert t.shape == (len(x),)
        assert bool((t == t[0]).all())
        return pair.velocity(x, interpolant.at(t[0].item()))

    def score(x: Tensor, t: Tensor) -> Tensor:
        return pair.score(x, interpolant.at(t[0].item()))

    return velocity, score


@every_family
@pytest.mark.parametrize("epsilon", [0.0, 0.4, 2.0])
@pytest.mark.parametrize(("direction", "sign"), [("forward", 1.0), ("backward", -1.0)])
def test_gaussian_marginals_are_kept_for_every_epsilon_and_direction(
    interpolant: StochasticInterpolant, epsilon: float, direction: str, sign: float
) -> None:
    """Any coefficients, correlated ends: mean and covariance move as those of the interpolant, at every time."""
    pair = correlated_pair()
    velocity, score = pair_models(pair, interpolant)
    system = sde(interpolant, velocity, "velocity", epsilon, direction=direction, score=score)
    for t in (0.0, 1e-9, 0.1, 0.3, 0.49, 0.51, 0.8, 1.0):
        point = interpolant.at(t)
        a, b, _, da, db, _, product = (float(entry) for entry in point)
        law = pair.marginal(point)
        both = pair.cross + pair.cross.T
        covariance_rate = 2 * a * da * pair.base.covariance + 2 * b * db * pair.data.covariance
        covariance_rate = covariance_rate + (a * db + b * da) * both + 2 * product * torch.eye(D).double()
        expected = torch.cat([(da * pair.base.mean + db * pair.data.mean)[None], covariance_rate])
        rates = moment_rates(system, t, law.mean, law.covariance, sign)
        torch.testing.assert_close(rates, expected, rtol=1e-10, atol=1e-10)


@every_family
@pytest.mark.parametrize("epsilon", [0.0, 0.5])
def test_gaussian_to_gaussian_ends_in_the_data_law(interpolant: StochasticInterpolant, epsilon: float) -> None:
    pair = correlated_pair()
    velocity, score = pair_models(pair, interpolant)
    system = sde(interpolant, velocity, "velocity", epsilon, score=score)

    def field(t: Tensor, state: Tensor) -> Tensor:
        return moment_rates(system, t, state[0], state[1:])

    first = pair.marginal(interpolant.at(0.0))
    final = integrate(field, torch.cat([first.mean[None], first.covariance]), 0.0, 1.0)
    torch.testing.assert_close(final[0], pair.data.mean, rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(final[1:], pair.data.covariance, rtol=1e-6, atol=1e-6)


@every_family
def test_probability_flow_of_an_interpolant_moves_samples_to_the_data_law(interpolant: StochasticInterpolant) -> None:
    """The flow of an affine velocity is affine, so three points tell its action on every law."""
    pair = correlated_pair()
    field = probability_flow(interpolant, pair_models(pair, interpolant)[0])
    moved = integrate(field, torch.cat([torch.zeros(1, D), torch.eye(D)]).double(), 0.0, 1.0)
    slope = (moved[1:] - moved[0]).T
    first = pair.marginal(interpolant.at(0.0))
    torch.testing.assert_close(moved[0] + slope @ first.mean, pair.data.mean, rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(slope @ first.covariance @ slope.T, pair.data.covariance, rtol=1e-6, atol=1e-6)


def test_mirror_flow_follows_from_the_score_alone_with_the_right_sign() -> None:
    interpolant, pair = interpolant_by_name("mirror"), correlated_pair()
    velocity, score = pair_models(pair, interpolant)
    x = draws(5, D)
    from_score = probability_flow(interpolant, score, "score")
    direct = probability_flow(interpolant, velocity)
    for t in (0.0, 0.2, 0.7, 1.0):
        torch.testing.assert_close(from_score(t, x), direct(t, x), rtol=1e-12, atol=1e-12)
    noisy = sde(interpolant, score, "score", 0.3)
    full = sde(interpolant, velocity, "velocity", 0.3, score=score)
    torch.testing.assert_close(noisy.drift(0.2, x), full.drift(0.2, x), rtol=1e-12, atol=1e-12)


@every_path
@pytest.mark.parametrize("prediction", PREDICTIONS)
def test_probability_flow_of_every_prediction_is_the_velocity(path: GaussianPath, prediction: str) -> None:
    data = correlated_pair().data
    field = probability_flow(path, data.as_model(path, prediction), prediction)
    velocity = data.as_model(path, "velocity")
    for t in (0.05, 0.4, 0.9):
        x = draws(6, D, seed=3)
        torch.testing.assert_close(field(t, x), velocity(x, t), rtol=1e-9, atol=1e-9)


@every_path
def test_probability_flow_integrates_to_the_closed_form_map(path: GaussianPath) -> None:
    data = correlated_pair().data
    x = path.noise(0.1) * draws(6, D, seed=3)
    moved = integrate(probability_flow(path, data.as_model(path), "data"), x, 0.1, 0.9)
    torch.testing.assert_close(moved, data.flow_map(x, path.at(0.1)[:2], path.at(0.9)[:2]), rtol=1e-6, atol=1e-6)


def test_adaptive_solvers_may_look_beyond_the_end() -> None:
    data, path = correlated_pair().data, LinearPath()
    field = probability_flow(path, data.as_model(path, "velocity"))
    x, times = draws(3, D), torch.tensor([0.0, 1.0], dtype=torch.float64)
    moved = torchdiffeq.odeint(field, x, times, method="dopri5", rtol=1e-9, atol=1e-10)[-1]
    torch.testing.assert_close(moved, data.flow_map(x, (0.0, 1.0), (1.0, 0.0)), rtol=1e-5, atol=1e-5)


@every_path
@pytest.mark.parametrize("name", EPSILONS)
@pytest.mark.parametrize(("direction", "sign"), [("forward", 1.0), ("backward", -1.0)])
def test_every_noise_level_keeps_the_marginals_of_a_path(
    path: GaussianPath, name: str, direction: str, sign: float
) -> None:
    data = correlated_pair().data
    system = sde(path, data.as_model(path), "data", epsilon_by_name(name, path, 0.8), direction=direction)
    identity = torch.eye(D).double()
    for t in (0.05, 0.3, 0.6, 0.9):
        a, s, da, ds = (float(entry) for entry in path.at(t))
        covariance = a**2 * data.covariance + s**2 * identity
        rates = moment_rates(system, t, a * data.mean, covariance, sign)
        expected = torch.cat([da * data.mean[None], 2 * a * da * data.covariance + 2 * s * ds * identity])
        torch.testing.assert_close(rates, expected, rtol=1e-8, atol=1e-8)


@every_path
def test_noising_needs_no_model_and_is_the_backward_sde_of_score_based_diffusion(path: GaussianPath) -> None:
    data = correlated_pair().data
    free = noising_sde(path)
    modelled = sde(path, data.as_model(path, "v"), "v", sbdm_epsilon(path), direction="backward")
    x = draws(5, D)
    for t in (0.1, 0.5, 0.9):
        torch.testing.assert_close(free.drift(t, x), modelled.drift(t, x), rtol=1e-9, atol=1e-9)
        torch.testing.assert_close(free.diffusion(t), modelled.diffusion(t))


def test_named_noise_levels_have_their_published_values() -> None:
    t = torch.linspace(0.1, 0.9, 5, dtype=torch.float64)
    linear, vp = LinearPath(), VPPath()
    torch.testing.assert_close(epsilon_by_name("sbdm", linear)(t), (1 - t) / t)
    torch.testing.assert_close(epsilon_by_name("sbdm", vp)(t), 0.5 * (20 * (1 - t) + 0.1 * t))
    torch.testing.assert_close(epsilon_by_name("sigma", vp, 2.0)(t), 2 * vp.noise(t))
    torch.testing.assert_close(epsilon_by_name("linear", scale=3.0)(t), 3 * (1 - t))
    torch.testing.assert_close(epsilon_by_name("decreasing", scale=0.5)(t), (0.5 * (math.pi * t).cos() + 1) ** 2 / 4)
    torch.testing.assert_close(epsilon_by_name("increasing_decreasing")(t), (math.pi * t).sin() ** 2)
    assert torch.equal(epsilon_by_name("constant", scale=0.7)(t), torch.full_like(t, 0.7))
    assert sbdm_epsilon(vp)(torch.tensor(1.0, dtype=torch.float64)).item() == pytest.approx(0.05)


@pytest.mark.parametrize("epsilon", [0.0, 0.5, 1.5])
def test_simulated_sde_of_a_mixture_has_the_marginal_moments(epsilon: float) -> None:
    """Euler-Maruyama with small steps, within five standard errors plus the bias of the steps."""
    target = GaussianMixture([0.3, 0.7], [[-1.5, 0.0], [1.0, 1.0]], [0.4, 0.6])
    path, start, end, n, steps = LinearPath(), 0.1, 0.8, 3000, 150
    system = sde(path, target.as_model(path, "velocity"), "velocity", epsilon)
    clean = target.sample(n, torch.Generator().manual_seed(1))
    x = path.sample(clean, draws(n, D, seed=2), start)
    generator = torch.Generator().manual_seed(3)
    h = (end - start) / steps
    for step in range(steps):
        t = start + step * h
        z = torch.randn(n, D, generator=generator, dtype=torch.float64)
        x = x + h * system.drift(t, x) + h**0.5 * system.diffusion(t) * z
    mean = path.signal(end) * target.mean
    covariance = path.signal(end) ** 2 * target.covariance + path.noise(end) ** 2 * torch.eye(D).double()
    assert float(((x.mean(0) - mean).abs() / (x.std(0) / n**0.5)).max()) < 5
    products = (x - mean)[:, :, None] * (x - mean)[:, None, :]
    error = (products.mean(0) - covariance).abs() - 2 * h
    assert float((error / (products.std(0) / n**0.5)).max()) < 5


def test_one_sided_interpolant_needs_no_score_model() -> None:
    interpolant, path = interpolant_by_name("one_sided_trigonometric"), CosinePath()
    data = correlated_pair().data
    model = data.as_model(path, "velocity")
    general, gaussian = sde(interpolant, model, "velocity", 0.6), sde(path, model, "velocity", 0.6)
    x = draws(4, D)
    for t in (0.2, 0.8):
        torch.testing.assert_close(general.drift(t, x), gaussian.drift(t, x), rtol=1e-10, atol=1e-10)


def test_model_sees_batched_times_inside_the_interval_and_is_called_once() -> None:
    calls = []

    def model(x: Tensor, t: Tensor) -> Tensor:
        calls.append(t)
        return -x

    x = torch.ones(3, 2, 2)
    field = probability_flow(LinearPath(), model)
    assert field(torch.tensor(1.0 + 1e-3), x).shape == x.shape
    assert calls[0].tolist() == [1.0, 1.0, 1.0]
    assert calls[0].dtype == torch.float32
    system = sde(LinearPath(), model, "velocity", lambda t: 0.5)
    system.drift(0.5, x)
    assert len(calls) == 2
    assert float(system.diffusion(0.5)) == 1.0


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda m: probability_flow(LinearPath(), m, "epsilon"), "unknown prediction 'epsilon'"),
        (lambda m: sde(LinearPath(), m, "data", 1.0, direction="back"), "did you mean 'backward'"),
        (lambda m: sde(LinearPath(), m, "data", -1.0), "epsilon must be finite and not negative, got -1.0"),
        (lambda m: constant_epsilon(math.inf), "epsilon must be finite"),
        (lambda m: epsilon_by_name("sigm", LinearPath()), "did you mean 'sigma'"),
        (lambda m: epsilon_by_name("sbdm"), "needs a path"),
        (lambda m: epsilon_by_name("linear", scale=-1.0), "scale must be"),
        (lambda m: sde(LinearPath(), m, "data", 1.0, score=m), "score is for interpolants"),
        (lambda m: probability_flow(BrownianBridge(), m, "score"), "only for the mirror"),
        (lambda m: probability_flow(BrownianBridge(), m, "data"), "unknown prediction of an interpolant 'data'"),
        (lambda m: sde(BrownianBridge(), m, "velocity", 1.0), "needs the score as well"),
    ],
)
def test_bad_input_is_refused_before_the_model_is_called(call: object, words: str) -> None:
    def model(x: Tensor, t: Tensor) -> Tensor:
        raise AssertionError("the model was called")

    with pytest.raises(ValueError, match=words):
        call(model)  # type: ignore[operator]
