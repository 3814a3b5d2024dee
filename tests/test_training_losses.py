"""Losses, weights and time densities: exact minimisers, one objective under many names, laws of the times."""

import itertools
import math

import pytest
import torch
from torch import Tensor

from pathline.interpolants import (
    CosinePath,
    DiscretePath,
    EDMPath,
    GaussianPath,
    LinearPath,
    VPPath,
    convert,
)
from pathline.training import (
    P2,
    CosMap,
    CosMapWeight,
    Debiased,
    EDMWeight,
    ELBOWeight,
    GaussianObjective,
    InverseNoise,
    LogitNormal,
    LogNormalSigma,
    LossWeight,
    MinSNR,
    Mode,
    Shifted,
    SigmoidWeight,
    TimeDensity,
    UniformLogSNR,
    UniformTime,
    UnitWeight,
    Unweighted,
    error_factor,
    objective_from_config,
    per_sample_loss,
    regression_target,
    shift_time,
    squared_error,
)

F64 = torch.float64
PATHS = [LinearPath(), CosinePath(), VPPath(), DiscretePath.linear(), EDMPath()]
PREDICTIONS = ("data", "noise", "velocity", "v", "score")
WEIGHTS = [
    Unweighted(),
    UnitWeight("velocity"),
    EDMWeight(0.5),
    MinSNR(),
    P2(),
    Debiased(),
    ELBOWeight(),
    SigmoidWeight(),
    InverseNoise(),
    CosMapWeight(),
]
DENSITIES = [
    UniformTime(),
    LogitNormal(-0.4, 1.3),
    Mode(1.29),
    Mode(-0.7),
    CosMap(),
    LogNormalSigma(-0.3, 1.1),
    UniformLogSNR(),
    Shifted(3.0),
    Shifted(0.5, LogitNormal()),
]
inner_times = torch.tensor([0.13, 0.37, 0.5, 0.62, 0.85], dtype=F64)


def ids(things: list) -> list[str]:
    return [type(thing).__name__ + str(index) for index, thing in enumerate(things)]


class PixelGaussian:
    """Independent N(0, c^2) entries: the exact data prediction is x a c^2 / (a^2 c^2 + s^2)."""

    def __init__(self, path: GaussianPath, prediction: str, scale: float = 0.7) -> None:
        self.path, self.prediction, self.scale = path, prediction, scale

    def __call__(self, x: Tensor, t: Tensor) -> Tensor:
        point = self.path.at(t)
        a, s = point.signal[:, None], point.noise[:, None]
        data = x * a * self.scale**2 / (a**2 * self.scale**2 + s**2)
        return convert(x, data, point, "data", self.prediction)


@pytest.mark.parametrize("path", PATHS, ids=lambda path: path.name)
@pytest.mark.parametrize("prediction", PREDICTIONS)
@pytest.mark.parametrize("weight", [Unweighted(), MinSNR()], ids=["none", "min_snr"])
def test_the_exact_denoiser_is_where_the_gradient_vanishes(
    path: GaussianPath, prediction: str, weight: LossWeight
) -> None:
    # All integrals over data and noise are done by Gauss-Hermite nodes: exact for these quadratics.
    nodes = torch.tensor([-math.sqrt(3.0), 0.0, math.sqrt(3.0)], dtype=F64)
    mass = torch.tensor([1 / 6, 2 / 3, 1 / 6], dtype=F64)
    pairs = list(itertools.product(range(3), repeat=2))
    data = torch.stack([0.7 * nodes[i] for i, _ in pairs])[:, None]
    noise = torch.stack([nodes[j] for _, j in pairs])[:, None]
    probability = torch.stack([mass[i] * mass[j] for i, j in pairs])
    exact = PixelGaussian(path, prediction)
    for t in inner_times.tolist():
        slope = torch.ones((), dtype=F64, requires_grad=True)
        shift = torch.zeros((), dtype=F64, requires_grad=True)

        def model(x: Tensor, label: Tensor, slope: Tensor = slope, shift: Tensor = shift) -> Tensor:
            return slope * exact(x, label) + shift

        times = torch.full((9,), t, dtype=F64)
        losses = per_sample_loss(model, path, data, noise, times, prediction=prediction, weight=weight)
        expected = (probability * losses).sum()
        gradient = torch.autograd.grad(expected, (slope, shift), create_graph=True)
        assert max(abs(float(g.detach())) for g in gradient) < 1e-9 * max(1.0, float(expected.detach()))
        assert float(torch.autograd.grad(gradient[0], slope)[0]) > 0  # a minimum, and not a flat one


def test_the_smallest_flow_loss_is_the_published_one() -> None:
    t = inner_times.repeat_interleave(40_000)
    generator = torch.Generator().manual_seed(1)
    data = 0.7 * torch.randn(len(t), 4, dtype=F64, generator=generator)
    noise = torch.randn(len(t), 4, dtype=F64, generator=generator)
    exact = PixelGaussian(LinearPath(), "velocity")
    measured = per_sample_loss(exact, LinearPath(), data, noise, t).reshape(5, -1).mean(1)
    expected = 0.49 / (inner_times**2 * 0.49 + (1 - inner_times) ** 2)
    torch.testing.assert_close(measured, expected, rtol=0.01, atol=0)


@pytest.mark.parametrize("path", PATHS, ids=lambda path: path.name)
@pytest.mark.parametrize("weight", WEIGHTS[1:8], ids=ids(WEIGHTS[1:8]))
@pytest.mark.parametrize("prediction", PREDICTIONS)
def test_gradients_agree_whatever_the_prediction(path: GaussianPath, weight: LossWeight, prediction: str) -> None:
    # The same function of x, read as noise prediction and as another one, has the same weighted gradient.
    generator = torch.Generator().manual_seed(2)
    data, noise = torch.randn(2, 5, 3, dtype=F64, generator=generator)
    slope = torch.tensor(0.3, dtype=F64, requires_grad=True)

    def noise_model(x: Tensor, t: Tensor) -> Tensor:
        return torch.tanh(slope * x) + t[:, None] * slope

    def other_model(x: Tensor, t: Tensor) -> Tensor:
        return convert(x, noise_model(x, t), path.at(t), "noise", prediction)

    def gradient(model, kind: str, target: str | None) -> tuple[Tensor, Tensor]:
        losses = GaussianObjective(path, kind, target, weight)(model, data, noise, inner_times)
        return losses.detach(), torch.autograd.grad(losses.sum(), slope)[0]

    reference = gradient(noise_model, "noise", None)
    for losses, slope_gradient in (gradient(other_model, prediction, None), gradient(noise_model, "noise", prediction)):
        torch.testing.assert_close(losses, reference[0], rtol=1e-9, atol=0)
        torch.testing.assert_close(slope_gradient, reference[1], rtol=1e-9, atol=0)


@pytest.mark.parametrize("path", PATHS, ids=lambda path: path.name)
@pytest.mark.parametrize("prediction", PREDICTIONS)
def test_error_factors_are_those_of_the_conversion(path: GaussianPath, prediction: str) -> None:
    point = path.at(inner_times)
    x = torch.zeros(5, 1, dtype=F64)
    error = torch.ones(5, 1, dtype=F64)
    difference = convert(x, error, point, "noise", prediction) - convert(x, 0 * error, point, "noise", prediction)
    torch.testing.assert_close(error_factor(point, prediction), difference[:, 0] ** 2, rtol=1e-12, atol=0)


def test_edm_weight_is_the_inverse_square_of_c_out() -> None:
    path = EDMPath()
    point = path.at(inner_times)
    sigma = point.noise
    expected = (sigma**2 + 0.25) / (0.5 * sigma) ** 2
    torch.testing.assert_close(EDMWeight(0.5)(point, "data"), expected, rtol=1e-12, atol=0)


def test_edm_loss_of_matched_data_is_one_at_every_level() -> None:
    # Data N(0, sigma_data^2): the preconditioned network is 0 at the optimum and E loss = 1 per entry.
    path, generator = EDMPath(), torch.Generator().manual_seed(3)
    t = path.time_at(-torch.tensor([0.01, 0.5, 20.0], dtype=F64).log()).repeat_interleave(50_000)
    data = 0.5 * torch.randn(len(t), 2, dtype=F64, generator=generator)
    noise = torch.randn(len(t), 2, dtype=F64, generator=generator)
    exact = PixelGaussian(path, "data", 0.5)
    losses = per_sample_loss(exact, path, data, noise, t, prediction="data", weight=EDMWeight(0.5))
    torch.testing.assert_close(losses.reshape(3, -1).mean(1), torch.ones(3, dtype=F64), rtol=0.02, atol=0)


FLOW = GaussianObjective(LinearPath(), "velocity")


def test_published_effective_weights() -> None:
    """Rows of the table of Kingma and Gao 2023: each objective as a weight over log-SNR."""
    t = torch.linspace(0.05, 0.95, 19, dtype=F64)

    def shape(objective: GaussianObjective) -> tuple[Tensor, Tensor]:
        level, weight = objective.effective_weight(t)
        return level, weight

    level, weight = shape(FLOW)  # flow matching: exp(-level / 2), with d log-SNR density sech^2(level / 4) / 8
    torch.testing.assert_close(weight / torch.exp(-level / 2), torch.full_like(t, weight[0] / math.exp(-level[0] / 2)))
    level, weight = shape(GaussianObjective(CosinePath(), "noise"))
    torch.testing.assert_close(weight, 1 / (2 * math.pi * torch.cosh(level / 2)))
    level, weight = shape(GaussianObjective(CosinePath(), "v"))
    torch.testing.assert_close(weight * torch.exp(level / 2), torch.full_like(t, 1 / math.pi))
    level, weight = shape(GaussianObjective(CosinePath(), "noise", weight=Debiased(1e9)))
    torch.testing.assert_close(weight, torch.sigmoid(-level) / math.pi)
    for path, density in itertools.product(PATHS[:3], DENSITIES[:4]):
        level, weight = shape(GaussianObjective(path, "noise", weight=ELBOWeight(), density=density))
        torch.testing.assert_close(weight, torch.ones_like(t))
        level, weight = shape(GaussianObjective(path, "velocity", weight=SigmoidWeight(2.0), density=density))
        torch.testing.assert_close(weight, torch.sigmoid(2.0 - level))


def test_the_time_density_does_not_change_a_loss_stated_in_log_snr() -> None:
    # Expected loss of a fixed wrong model under two densities, divided out: the same integral.
    generator = torch.Generator().manual_seed(4)
    results = []
    for density in (UniformLogSNR(), LogitNormal(0.0, 1.5)):
        objective = GaussianObjective(CosinePath(), "noise", weight=SigmoidWeight(0.0), density=density)
        u = (torch.arange(400_000, dtype=F64) + 0.5) / 400_000
        ends = torch.tensor([-4.0, 4.0], dtype=F64)
        t = objective.density.times(u, CosinePath(), tuple(CosinePath().time_at(ends).tolist()))
        data, noise = torch.randn(2, len(t), 1, dtype=F64, generator=generator)
        mass = density.cdf(CosinePath().time_at(ends), CosinePath())
        losses = objective(lambda x, t: 0.5 * x, data, noise, t)
        results.append(float(losses.mean() * (mass[1] - mass[0])))
    assert results[0] == pytest.approx(results[1], rel=0.02)


@pytest.mark.parametrize("density", DENSITIES, ids=ids(DENSITIES))
@pytest.mark.parametrize("path", [LinearPath(), VPPath(), EDMPath()], ids=lambda path: path.name)
def test_densities_are_the_laws_they_say(density: TimeDensity, path: GaussianPath) -> None:
    u = torch.linspace(0.02, 0.98, 25, dtype=F64)
    t = density.times(u, path)
    low, high = density.cdf(torch.tensor([0.0, 1.0], dtype=F64), path)
    # quantile and cdf are inverse (within the mass that the path has), and the density is the cdf's slope
    torch.testing.assert_close(density.cdf(t, path), low + (high - low) * u, rtol=1e-6, atol=1e-9)
    step = 1e-6
    inside = (t > 1e-3) & (t < 1 - 1e-3)
    slope = (density.cdf(t + step, path) - density.cdf(t - step, path)) / (2 * step)
    torch.testing.assert_close(density.density(t, path)[inside], slope[inside], rtol=1e-4, atol=1e-5)
    assert bool((t.diff() > 0).all())


def test_logit_normal_and_edm_laws_by_their_moments() -> None:
    u = (torch.arange(200_000, dtype=F64) + 0.5) / 200_000
    logits = LogitNormal(0.4, 1.3).times(u, LinearPath()).logit()
    assert float(logits.mean()) == pytest.approx(0.4, abs=1e-3)
    assert float(logits.std()) == pytest.approx(1.3, abs=1e-3)
    sigma = EDMPath().noise(LogNormalSigma().times(u, EDMPath()))
    assert float(sigma.log().mean()) == pytest.approx(-1.2, abs=2e-3)
    assert float(sigma.log().std()) == pytest.approx(1.2, abs=2e-3)


def test_published_maps_of_mode_cosmap_and_shift() -> None:
    u = torch.linspace(0.01, 0.99, 9, dtype=F64)
    noise_time = 1 - u - 1.29 * ((math.pi / 2 * u).cos() ** 2 - 1 + u)
    torch.testing.assert_close(1 - Mode(1.29).quantile(u, LinearPath()), noise_time)
    cosine_level = CosinePath().lam(u)  # cosmap gives the linear path the log-SNR of the cosine path
    torch.testing.assert_close(LinearPath().lam(CosMap().quantile(u, LinearPath())), cosine_level)
    tau = 1 - u
    torch.testing.assert_close(1 - shift_time(u, 3.0), 3 * tau / (1 + 2 * tau))
    torch.testing.assert_close(shift_time(shift_time(u, 3.0), 1 / 3), u)


@pytest.mark.parametrize("prediction", PREDICTIONS)
@pytest.mark.parametrize("path", PATHS, ids=lambda path: path.name)
def test_losses_are_finite_up_to_the_ends_of_the_training_interval(path: GaussianPath, prediction: str) -> None:
    objective = GaussianObjective(path, prediction)
    t = torch.tensor(objective.interval, dtype=F64)
    data, noise = torch.randn(2, 2, 3)
    losses = objective(lambda x, t: 0.1 * x, data, noise, t)
    assert losses.dtype == torch.float32
    assert bool(torch.isfinite(losses).all())
    uniforms = torch.tensor([1e-9, 0.5, 1 - 1e-9], dtype=F64)
    times = objective.times(uniforms)
    assert float(times.min()) >= objective.interval[0]
    assert float(times.max()) <= objective.interval[1]


def test_reductions_and_batch_splits() -> None:
    output, target = torch.randn(2, 6, 2, 3, dtype=F64)
    mean, total, half = (squared_error(output, target, kind) for kind in ("mean", "sum", "half_sum"))
    torch.testing.assert_close(total, 6 * mean)
    torch.testing.assert_close(half, 3 * mean)
    data, noise = torch.randn(2, 6, 4)
    t = torch.rand(6, dtype=F64)
    whole = FLOW(lambda x, t: x * t[:, None], data, noise, t)
    parts = [FLOW(lambda x, t: x * t[:, None], data[i : i + 2], noise[i : i + 2], t[i : i + 2]) for i in (0, 2, 4)]
    assert torch.equal(whole, torch.cat(parts))


def test_half_precision_outputs_are_compared_in_float32() -> None:
    output = torch.full((1, 4), 300.0, dtype=torch.float16)
    assert float(squared_error(output, torch.zeros(1, 4))[0]) == 90_000.0  # overflows in float16


@pytest.mark.parametrize("weight", WEIGHTS, ids=ids(WEIGHTS))
@pytest.mark.parametrize("density", DENSITIES, ids=ids(DENSITIES))
def test_objectives_survive_json(weight: LossWeight, density: TimeDensity) -> None:
    import json

    objective = GaussianObjective(DiscretePath.linear(steps=10), "v", "data", weight, density, "sum")
    assert objective_from_config(json.loads(json.dumps(objective.config()))) == objective


@pytest.mark.parametrize("density", [LogitNormal(), Shifted(3.0, LogitNormal(1.0, 0.5)), LogNormalSigma()])
def test_densities_have_their_limits_at_both_ends(density: TimeDensity) -> None:
    ends = density.density(torch.tensor([0.0, 1.0, 0.5], dtype=torch.float64), LinearPath())
    assert ends[:2].tolist() == [0.0, 0.0]
    assert float(ends[2]) > 0


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: LossWeight.by_name("min_snrr"), "unknown loss weight 'min_snrr'; did you mean 'min_snr'"),
        (lambda: LossWeight.by_name("min_snr", gama=1.0), "unknown parameter of loss weight 'min_snr' 'gama'"),
        (lambda: MinSNR(-1.0), "gamma of a loss weight must be a finite number above 0, got -1.0"),
        (lambda: UnitWeight("vel"), "unknown prediction 'vel'"),
        (lambda: TimeDensity.by_name("logitnormal"), "did you mean 'logit_normal'"),
        (lambda: LogitNormal(0.0, 0.0), "std of a time density must be"),
        (lambda: Mode(2.0), r"scale of density 'mode' must lie in \[-1, 1.7519\], got 2.0"),
        (lambda: Shifted(-1.0), "shift of a time density"),
        (lambda: GaussianObjective(LinearPath(), "velocty"), "unknown prediction 'velocty'; did you mean 'velocity'"),
        (lambda: GaussianObjective(LinearPath(), "v", reduction="avg"), "unknown reduction 'avg'"),
        (lambda: GaussianObjective(LinearPath(), "v", weight="edm"), "weight must be a loss weight.* got 'edm'"),
        (
            lambda: GaussianObjective(LinearPath(), "v", density="uniform"),
            "density must be a time density.* got 'uniform'",
        ),
        (
            lambda: GaussianObjective(LinearPath(), "v", weight=ELBOWeight()).sample_weight(torch.zeros(1)),
            "the 'elbo' weight of 'v' has no value at time t=0; t must lie between",
        ),
        (
            lambda: GaussianObjective(LinearPath(), "v").effective_weight(torch.tensor([0.5, 0.0])),
            "the 'none' weight of 'v' has no value at time t=0",
        ),
        (lambda: ELBOWeight()(LinearPath().at(0.5), "noise"), "needs level_density"),
        (
            lambda: FLOW(lambda x, t: x, torch.zeros(2, 3), torch.zeros(2, 3), torch.zeros(3)),
            r"t must have shape \(2,\)",
        ),
        (lambda: FLOW(lambda x, t: x, torch.zeros(2, 3), torch.zeros(2, 4), torch.zeros(2)), "one shape"),
        (
            lambda: FLOW(lambda x, t: x[:1], torch.zeros(2, 3), torch.zeros(2, 3), torch.zeros(2)),
            "the model returned shape",
        ),
        (lambda: regression_target(LinearPath(), "x0", *torch.zeros(2, 1, 1), torch.zeros(1)), "unknown prediction"),
        (
            lambda: LogNormalSigma(40.0, 0.1).times(torch.tensor([0.5], dtype=F64), EDMPath(), (0.0, 0.7)),
            "lies outside the times",
        ),
    ],
)
def test_bad_input_is_refused_with_words(call, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        call()
