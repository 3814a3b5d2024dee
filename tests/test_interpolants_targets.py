"""Closed-form models against brute force: quadrature-free formulas, autograd of the density, Monte Carlo."""

import itertools
import math
from collections.abc import Callable

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from pathline.interpolants import (
    PREDICTIONS,
    CosinePath,
    EDMPath,
    FiniteDataset,
    Gaussian,
    GaussianMixture,
    LinearPath,
    Target,
    VPPath,
    convert,
)

D, K, RANK = 5, 4, 2
LEVELS = [(0.3, 0.9), (1.0, 0.05), (0.0, 1.0), (1.0, 80.0), (0.99, 0.14), (1.0, 0.0)]


def draws(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


WEIGHTS = torch.tensor([0.1, 0.2, 0.3, 0.4], dtype=torch.float64)
MEANS = 2 * draws(K, D, seed=1)
STD = torch.tensor([0.3, 0.5, 0.8, 0.2], dtype=torch.float64)
VARIANCES = draws(K, D, seed=2).square() + 0.05
BASIS = torch.linalg.qr(draws(K, D, RANK, seed=3))[0]
SPECTRUM = draws(K, RANK, seed=4).square()
CLASSES = torch.tensor([0, 1, 0, 1])

MIXTURES: dict[str, tuple[GaussianMixture, Tensor]] = {
    "isotropic": (
        GaussianMixture(WEIGHTS, MEANS, STD, classes=CLASSES),
        torch.diag_embed(STD.square()[:, None].expand(K, D)),
    ),
    "diagonal": (GaussianMixture(WEIGHTS, MEANS, variances=VARIANCES, classes=CLASSES), torch.diag_embed(VARIANCES)),
    "low-rank": (
        GaussianMixture(WEIGHTS, MEANS, STD, basis=BASIS, spectrum=SPECTRUM, classes=CLASSES),
        BASIS @ torch.diag_embed(SPECTRUM) @ BASIS.mT + torch.diag_embed(STD.square()[:, None].expand(K, D)),
    ),
}
FULL = draws(D, D, seed=5) @ draws(D, D, seed=5).T + 0.1 * torch.eye(D).double()
TARGETS: dict[str, Target] = {
    **{name: mixture for name, (mixture, _) in MIXTURES.items()},
    "gaussian": Gaussian(MEANS[0], covariance=FULL),
    "diagonal-gaussian": Gaussian(MEANS[0], variance=VARIANCES[0]),
    "points": FiniteDataset(MEANS, CLASSES, WEIGHTS),
}
every_target = pytest.mark.parametrize("target", TARGETS.values(), ids=list(TARGETS))
every_mixture = pytest.mark.parametrize(("mixture", "covariances"), MIXTURES.values(), ids=list(MIXTURES))


def brute_force(
    covariances: Tensor, x: Tensor, signal: float, noise: float, labels: Tensor | None = None
) -> tuple[Tensor, Tensor, Tensor]:
    """Data prediction, score and log density from full covariances, component by component."""
    logits, means, slopes = [], [], []
    for weight, mean, covariance in zip(WEIGHTS, MEANS, covariances, strict=True):
        total = signal**2 * covariance + noise**2 * torch.eye(D, dtype=torch.float64)
        law = torch.distributions.MultivariateNormal(signal * mean, total)
        white = torch.linalg.solve(total, (x - signal * mean).T).T
        logits.append(weight.log() + law.log_prob(x))
        means.append(mean + signal * white @ covariance)
        slopes.append(-white)
    table = torch.stack(logits, 1)
    prior = WEIGHTS.log().expand(len(x), K)
    if labels is not None:
        outside = (labels[:, None] != CLASSES) & (labels[:, None] >= 0)
        table, prior = table.masked_fill(outside, -math.inf), prior.masked_fill(outside, -math.inf)
    share = table.softmax(1)[..., None]
    density = table.logsumexp(1) - prior.logsumexp(1)
    return (share * torch.stack(means, 1)).sum(1), (share * torch.stack(slopes, 1)).sum(1), density


@every_mixture
@pytest.mark.parametrize("labels", [None, torch.tensor([0, 1, -1, 1, 0, -1])], ids=["all", "classes"])
@pytest.mark.parametrize(("signal", "noise"), LEVELS)
def test_mixtures_equal_the_dense_formulas(
    mixture: GaussianMixture, covariances: Tensor, signal: float, noise: float, labels: Tensor | None
) -> None:
    x = signal * mixture.sample(6, torch.Generator().manual_seed(7)) + noise * draws(6, D, seed=8)
    data, score, density = brute_force(covariances, x, signal, noise, labels)
    torch.testing.assert_close(mixture.data_prediction(x, signal, noise, labels), data, rtol=1e-11, atol=1e-11)
    torch.testing.assert_close(mixture.score(x, signal, noise, labels), score, rtol=1e-10, atol=1e-12)
    torch.testing.assert_close(mixture.log_density(x, signal, noise, labels), density, rtol=1e-11, atol=1e-11)


@every_target
@pytest.mark.parametrize(("signal", "noise"), LEVELS[:5])
def test_score_is_the_gradient_of_the_density_and_tweedie_gives_the_data(
    target: Target, signal: float, noise: float
) -> None:
    x = (signal * target.sample(6, torch.Generator().manual_seed(1)) + noise * draws(6, D, seed=9)).requires_grad_()
    density = target.log_density(x, signal, noise)
    (gradient,) = torch.autograd.grad(density.sum(), x)
    score = target.score(x, signal, noise).detach()
    torch.testing.assert_close(score, gradient, rtol=1e-9, atol=1e-11)
    data = target.data_prediction(x, signal, noise).detach()
    x = x.detach()
    if signal > 0:
        torch.testing.assert_close(data, (x + noise**2 * gradient) / signal, rtol=1e-8, atol=1e-8)
    else:
        torch.testing.assert_close(data, target.mean.expand(6, D), rtol=1e-11, atol=1e-11)


@every_target
def test_density_integrates_to_the_law_of_the_samples(target: Target) -> None:
    """Mean, covariance and mean score of many states, within five standard errors."""
    n, signal, noise = 20000, 0.7, 0.6
    samples = target.sample(n, torch.Generator().manual_seed(2))
    spread = target.covariance.diagonal().sqrt()
    assert bool(((samples.mean(0) - target.mean).abs() < 5 * spread / n**0.5).all())
    centred = samples - target.mean
    products = centred[:, :, None] * centred[:, None, :]
    errors = (products.mean(0) - target.covariance).abs() / (products.std(0) / n**0.5 + 1e-12)
    assert float(errors.max()) < 5
    x = signal * samples + noise * draws(n, D, seed=3)
    score = target.score(x, signal, noise)
    assert float((score.mean(0).abs() / (score.std(0) / n**0.5)).max()) < 5
    # Stein: E[score x^T] = -I, which a wrong normalisation or temperature breaks.
    stein = score[:, :, None] * x[:, None, :]
    errors = (stein.mean(0) + torch.eye(D).double()).abs() / (stein.std(0) / n**0.5)
    assert float(errors.max()) < 5


@pytest.mark.parametrize("signal", [0.2, 1.0])
def test_two_opposite_points_give_a_hyperbolic_tangent(signal: float) -> None:
    mu, noise = draws(D, seed=6), 0.7
    target = FiniteDataset(torch.stack([mu, -mu]))
    x = draws(9, D, seed=7)
    expected = mu * (signal * x @ mu / noise**2).tanh()[:, None]
    torch.testing.assert_close(target.data_prediction(x, signal, noise), expected, rtol=1e-12, atol=1e-13)


def test_a_finite_data_set_at_noise_zero_is_its_nearest_point_of_the_class() -> None:
    target = FiniteDataset(MEANS, CLASSES)
    x = MEANS + 0.01 * draws(K, D, seed=1)
    torch.testing.assert_close(target.data_prediction(x, 1.0, 0.0), MEANS, rtol=0, atol=0)
    other = target.data_prediction(x, 1.0, 0.0, 1 - CLASSES)
    nearest = torch.stack([MEANS[1 - c == CLASSES][torch.cdist(p[None], MEANS[1 - c == CLASSES]).argmin()]
                           for p, c in zip(x, CLASSES, strict=True)])  # fmt: skip
    assert torch.equal(other, nearest)
    with pytest.raises(ValueError, match="only at noise above 0"):
        target.log_density(x)


def test_a_finite_data_set_is_the_limit_of_narrow_mixtures() -> None:
    x = draws(6, D, seed=1)
    points, narrow = FiniteDataset(MEANS, None, WEIGHTS), GaussianMixture(WEIGHTS, MEANS, 1e-7)
    torch.testing.assert_close(points.data_prediction(x, 0.5, 0.9), narrow.data_prediction(x, 0.5, 0.9))
    assert points.covariance.shape == (D, D)
    assert points.shape == (D,)


def test_gaussian_agrees_with_a_mixture_of_one() -> None:
    x = draws(6, D, seed=1)
    single = Gaussian(MEANS[0], variance=0.3)
    mixture = GaussianMixture([2.0], MEANS[:1], 0.3**0.5)
    for call in ("data_prediction", "score", "log_density"):
        torch.testing.assert_close(getattr(single, call)(x, 0.4, 0.8), getattr(mixture, call)(x, 0.4, 0.8))


@pytest.mark.parametrize("target", [TARGETS["gaussian"], TARGETS["diagonal-gaussian"]], ids=["full", "diagonal"])
def test_flow_map_solves_the_probability_flow(target: Gaussian) -> None:
    """Against small Runge-Kutta steps of the velocity model, and as a group."""
    path = CosinePath()
    model = target.as_model(path, "velocity")
    x = draws(4, D, seed=2)
    times = torch.linspace(0.1, 0.9, 161, dtype=torch.float64)
    state = x
    for start, end in itertools.pairwise(times):
        h, middle = end - start, 0.5 * (start + end)
        k1 = model(state, start)
        k2 = model(state + 0.5 * h * k1, middle)
        k3 = model(state + 0.5 * h * k2, middle)
        k4 = model(state + h * k3, end)
        state = state + h / 6 * (k1 + 2 * k2 + 2 * k3 + k4)
    levels = [(path.signal(t), path.noise(t)) for t in (0.1, 0.4, 0.9)]
    torch.testing.assert_close(target.flow_map(x, levels[0], levels[2]), state, rtol=1e-7, atol=1e-7)
    halfway = target.flow_map(x, levels[0], levels[1])
    torch.testing.assert_close(target.flow_map(halfway, levels[1], levels[2]), target.flow_map(x, levels[0], levels[2]))
    torch.testing.assert_close(target.flow_map(state, levels[2], levels[0]), x, rtol=1e-7, atol=1e-7)


@every_target
@pytest.mark.parametrize("path", [LinearPath(), VPPath(), EDMPath()], ids=lambda path: path.name)
@pytest.mark.parametrize("prediction", PREDICTIONS)
def test_models_of_every_prediction_are_conversions_of_the_data_model(
    target: Target, path: LinearPath, prediction: str
) -> None:
    x = draws(6, D, seed=4)
    t = path.time_at(torch.linspace(-2.0, 2.0, 6, dtype=torch.float64))
    data = target.as_model(path)(x, t)
    expected = convert(x, data, path.at(t), "data", prediction)
    result = target.as_model(path, prediction)(x, t)
    torch.testing.assert_close(result, expected, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("name", ["isotropic", "diagonal", "low-rank", "gaussian"])
@pytest.mark.parametrize("path", [LinearPath(), CosinePath(), VPPath(), EDMPath()], ids=lambda path: path.name)
def test_models_are_continuous_up_to_both_ends(name: str, path: LinearPath) -> None:
    target = TARGETS[name]
    x = draws(3, D, seed=5)
    for prediction in PREDICTIONS:
        model = target.as_model(path, prediction)
        for end, near in ((0.0, 1e-9), (1.0, 1 - 1e-12)):
            value = model(x, end)
            assert bool(value.isfinite().all())
            torch.testing.assert_close(value, model(x, near), rtol=1e-4, atol=1e-4)


@every_target
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_other_types_follow_the_input(target: Target, dtype: torch.dtype) -> None:
    x = draws(6, D, seed=4).to(dtype)
    t = torch.linspace(0.2, 0.8, 6)
    model = target.as_model(LinearPath(), "velocity")
    result = model(x, t)
    assert result.dtype == dtype
    exact = model(x.double(), t.double())
    tolerance = 1e-4 if dtype == torch.float32 else 3e-2
    torch.testing.assert_close(result.double(), exact, rtol=tolerance, atol=tolerance)


def test_images_are_flattened_inside_and_levels_are_per_sample() -> None:
    means = 2 * draws(3, 2, 2, 2, seed=1)
    target = GaussianMixture([1.0, 1.0, 2.0], means, 0.4, classes=[0, 1, 1])
    assert target.shape == (2, 2, 2)
    assert target.dimension == 8
    assert target.sample(5, torch.Generator().manual_seed(0)).shape == (5, 2, 2, 2)
    x = draws(3, 2, 2, 2, seed=2)
    signal, noise = torch.tensor([0.1, 0.5, 0.9]), torch.tensor([0.9, 0.5, 0.1])
    together = target.data_prediction(x, signal, noise, torch.tensor([0, 1, -1]))
    for index, label in enumerate([0, 1, None]):
        one = target.data_prediction(x[index : index + 1], signal[index].item(), noise[index].item(), label)
        torch.testing.assert_close(together[index], one[0], rtol=1e-12, atol=1e-12)


def test_samples_repeat_and_carry_their_class() -> None:
    target = MIXTURES["low-rank"][0]

    def seeded() -> torch.Generator:
        return torch.Generator().manual_seed(3)

    assert torch.equal(target.sample(10, seeded()), target.sample(10, seeded()))
    samples, labels = target.sample_with_labels(4000, seeded())
    assert samples.shape == (4000, D)
    share = (labels == 1).double().mean().item()
    assert share == pytest.approx(0.6, abs=5 * (0.24 / 4000) ** 0.5)
    apart = FiniteDataset(MEANS, CLASSES)
    only = apart.sample(50, seeded(), labels=torch.full((50,), 1))
    assert bool(torch.cdist(only, MEANS[CLASSES == 1]).amin(1).eq(0).all())


def test_diagonal_blocks_do_not_change_the_result(monkeypatch: pytest.MonkeyPatch) -> None:
    mixture, x = MIXTURES["diagonal"][0], draws(7, D, seed=1)
    whole = mixture.data_prediction(x, 0.5, 0.5), mixture.log_density(x, 0.5, 0.5)
    monkeypatch.setattr("pathline.interpolants.mixture._BLOCK_ENTRIES", 2 * K * D)
    torch.testing.assert_close(mixture.data_prediction(x, 0.5, 0.5), whole[0], rtol=1e-13, atol=1e-13)
    torch.testing.assert_close(mixture.log_density(x, 0.5, 0.5), whole[1], rtol=1e-13, atol=1e-13)


def test_no_cancellation_at_low_noise_far_from_the_origin() -> None:
    """An expanded square would lose every digit here."""
    points = 1e3 + torch.tensor([[0.0], [1e-4]], dtype=torch.float64)
    x = points.mean(0, keepdim=True) + 1e-5
    expected = points[0] + 1e-4 * torch.sigmoid(torch.tensor(1e-5 * 1e-4 / 1e-8, dtype=torch.float64))
    result = FiniteDataset(points).data_prediction(x, 1.0, 1e-4)
    assert float(result - 1e3) == pytest.approx(float(expected - 1e3), rel=1e-6)


@settings(deadline=None)
@given(signal=st.floats(0.0, 1.0), noise=st.floats(1e-3, 90.0), seed=st.integers(0, 1000))
def test_the_denoiser_of_points_stays_in_their_convex_hull(signal: float, noise: float, seed: int) -> None:
    points = draws(6, 1, seed=1)
    result = FiniteDataset(points).data_prediction(100 * draws(8, 1, seed=seed), signal, noise)
    assert bool(((result >= points.min() - 1e-12) & (result <= points.max() + 1e-12)).all())


def mixture_with(**changes: object) -> Callable[[], object]:
    options: dict[str, object] = {"weights": WEIGHTS, "means": MEANS, "std": STD, **changes}
    return lambda: GaussianMixture(**options)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (mixture_with(std=None), "exactly one of std and variances"),
        (mixture_with(variances=VARIANCES), "exactly one of std and variances"),
        (mixture_with(std=0.0), "std must be above 0; for point masses use FiniteDataset"),
        (mixture_with(std=[1.0, 2.0]), r"std must have shape \(4,\)"),
        (mixture_with(weights=[1.0, -1.0, 1.0, 1.0]), "weights must not be negative"),
        (mixture_with(weights=[1.0]), r"weights must have shape \(4,\)"),
        (mixture_with(basis=BASIS), "given together"),
        (mixture_with(basis=2 * BASIS, spectrum=SPECTRUM), "orthonormal"),
        (mixture_with(basis=BASIS, spectrum=-SPECTRUM), "no negative entry"),
        (mixture_with(basis=BASIS[:, :3], spectrum=SPECTRUM), r"basis must have shape \(4, 5, r\)"),
        (mixture_with(classes=[0, 1, 2, -1]), "none negative"),
        (lambda: FiniteDataset([1.0, 2.0]), r"shape \(K, ...\)"),
        (lambda: Gaussian([0.0, 0.0]), "exactly one of covariance and variance"),
        (lambda: Gaussian([0.0, 0.0], variance=-1.0), "no negative eigenvalue, got -1.0"),
        (lambda: Gaussian([0.0, 0.0], covariance=[[1.0, 0.5], [0.0, 1.0]]), "symmetric"),
        (lambda: Gaussian([0.0, 0.0], covariance=[[1.0]]), r"shape \(2, 2\)"),
        (lambda: Gaussian([0.0, 0.0], variance=[1.0, 1.0, 1.0]), "1 or 2 entries"),
        (lambda: TARGETS["gaussian"].data_prediction(draws(2, D), 1.0, 1.0, 0), "no classes"),
        (lambda: TARGETS["isotropic"].data_prediction(draws(2, D), 1.0, 1.0, 7), r"label 7 is not a class.*\[0, 1\]"),
        (lambda: TARGETS["isotropic"].data_prediction(draws(2, D), 1.0, 1.0, [0, 1, 0]), "2 integers"),
        (lambda: GaussianMixture([1.0], MEANS[:1], 1.0).data_prediction(draws(2, D), 1.0, 1.0, 0), "has no classes"),
        (lambda: GaussianMixture([1.0], MEANS[:1], 1.0).sample_with_labels(2), "has no classes"),
        (lambda: TARGETS["gaussian"].data_prediction(draws(2, 3), 1.0, 1.0), "5 entries per sample"),
        (lambda: TARGETS["gaussian"].score(draws(2, D), torch.ones(3), 1.0), "per-sample value"),
        (lambda: TARGETS["gaussian"].as_model(LinearPath(), "epsilon"), "unknown prediction 'epsilon'"),
    ],
)
def test_bad_input_is_refused_with_words(call: Callable[[], object], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        call()
