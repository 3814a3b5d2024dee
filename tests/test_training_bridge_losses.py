"""Bridge matching: levels and targets of published models, closed-form minimisers, sampling with what is learned."""

import math

import pytest
import torch
from torch import Tensor

from pathline.interpolants import BrownianBridge, DiffusionBridge, EDMPath, Gaussian, GaussianCoupling, VPPath
from pathline.samplers import bbdm_nodes, build_table, i2sb_nodes, resshift_nodes, run, sample
from pathline.training import (
    BRIDGE_OBJECTIVES,
    BridgeObjective,
    BridgePreconditioned,
    BridgePrediction,
    ConsecutiveBridgeObjective,
    DataPrediction,
    Drift,
    LatentPower,
    LatentPrediction,
    ScorePrediction,
    absolute_error,
    bbdm_levels,
    bridge_objective,
    i2sb_levels,
    resshift_levels,
)

F64 = torch.float64
TIMES = (0.08, 0.45, 0.86)
MEAN, SLOPE, VARIANCE = 0.7, -0.4, 0.3  # data given the source is N(MEAN + SLOPE source, VARIANCE)
PREDICTIONS = [BridgePrediction.by_name(name) for name in BridgePrediction.names()]
BRIDGES = [BrownianBridge(1.5), DiffusionBridge(VPPath(beta_min=0.1, beta_max=2.1)), resshift_levels(), bbdm_levels()]


def data_given_source(objective: BridgeObjective, x: Tensor, source: Tensor, t: Tensor) -> Tensor:
    """E[data | x, source] in closed form; flat states (B, 1)."""
    a, b, c = (entry[:, None] for entry in objective.coefficients(t))
    prior = MEAN + SLOPE * source
    return prior + b * VARIANCE / (b**2 * VARIANCE + c**2) * (x - a * source - b * prior)


def exact_output(objective: BridgeObjective, x: Tensor, source: Tensor, t: Tensor) -> Tensor:
    """The output that stands for that data prediction, worked out from the definition of each prediction."""
    a, b, c = (entry[:, None] for entry in objective.coefficients(t))
    data = data_given_source(objective, x, source, t)
    kind = objective.prediction
    if isinstance(kind, BridgePreconditioned):
        power = a**2 * kind.sigma_source**2 + b**2 * kind.sigma_data**2 + 2 * a * b * kind.covariance + c**2
        rest = a**2 * (kind.sigma_source**2 * kind.sigma_data**2 - kind.covariance**2) + kind.sigma_data**2 * c**2
        return (data - (b * kind.sigma_data**2 + a * kind.covariance) / power * x) / (rest / power).sqrt()
    return {
        "data": data,
        "latent": (x - a * source - b * data) / c,
        "score": (a * source + b * data - x) / c**2,
        "displacement": x - data,
        "scaled_displacement": (x - data) * b.sqrt() / c,
        "difference": source - data,
        "drift": (data - x) / a,
    }[kind.name]


def draws_of_moments() -> tuple[Tensor, Tensor, Tensor]:
    """Eight (source, data, latent) with exactly the means and covariances of the law, source of variance 0.8."""
    corners = torch.tensor([[i, j, k] for i in (-1, 1) for j in (-1, 1) for k in (-1, 1)], dtype=F64)
    source = 0.2 + math.sqrt(0.8) * corners[:, :1]
    return source, MEAN + SLOPE * source + math.sqrt(VARIANCE) * corners[:, 1:2], corners[:, 2:]


@pytest.mark.parametrize("bridge", BRIDGES, ids=["brownian", "ddbm", "resshift", "bbdm"])
@pytest.mark.parametrize("prediction", [*PREDICTIONS, BridgePreconditioned(0.6, 1.1, -0.3)], ids=lambda p: p.name)
def test_the_closed_form_is_where_the_gradient_vanishes(bridge, prediction: BridgePrediction) -> None:
    objective = BridgeObjective(bridge, prediction, interval=(0.01, 0.99), reduction="sum")
    source, data, latent = draws_of_moments()
    for t in TIMES:
        times = torch.full((8,), t, dtype=F64)
        slope, tilt, shift = (torch.tensor(v, dtype=F64, requires_grad=True) for v in (1.0, 0.0, 0.0))

        def model(x: Tensor, label: Tensor, times=times, slope=slope, tilt=tilt, shift=shift) -> Tensor:
            at = objective.coefficients(times)
            state = x / objective.prediction.input_scale(at)[:, None]
            return slope * exact_output(objective, state, source, times) + tilt * source + shift

        gradient = torch.autograd.grad(
            objective(model, source, data, latent, times).mean(), (slope, tilt, shift), create_graph=True
        )
        assert max(abs(float(g.detach())) for g in gradient) < 1e-8
        assert float(torch.autograd.grad(gradient[0], slope)[0]) > 0


@pytest.mark.parametrize("name", ["bbdm", "consecutive"])
def test_absolute_losses_have_the_same_minimiser_on_gaussian_data(name: str) -> None:
    # The median of a Gaussian is its mean: E sign(residual) f(x) = 0 for the closed form, and only for it.
    n, objective = 200_000, bridge_objective(name)
    generator = torch.Generator().manual_seed(0)
    source = torch.full((n, 1), 0.6, dtype=F64)
    data = MEAN + SLOPE * source + math.sqrt(VARIANCE) * torch.randn(n, 1, dtype=F64, generator=generator)
    latent = torch.randn(n, 1, dtype=F64, generator=generator)
    times = torch.full((n,), 0.45, dtype=F64)
    for wrong, low, high in ((0.0, 0.0, 4.0), (0.1, 30.0, math.inf)):
        shift = torch.full((n, 1), wrong, dtype=F64, requires_grad=True)
        losses = objective(
            lambda x, label, shift=shift: exact_output(objective, x, source, times) + shift, source, data, latent, times
        )
        (gradient,) = torch.autograd.grad(losses.sum(), shift)
        assert low <= float(gradient.mean().abs() / (gradient.std() / n**0.5)) <= high


def test_drift_of_bridge_matching_is_the_velocity_and_half_the_diffusivity_of_score() -> None:
    # The Markovian projection of the bridges has their marginals: drift = velocity + epsilon score, epsilon = D / 2.
    bridge = BrownianBridge(0.9)
    coupling = GaussianCoupling(Gaussian([0.2], variance=0.8), Gaussian([0.62], variance=0.5), cross=[[0.3]])
    x = torch.tensor([[-1.0], [0.4], [2.0]], dtype=F64)
    for t in TIMES:
        point = bridge.at(t)
        score = coupling.score(x, point)
        mean_data = coupling.data.mean - score @ (
            float(point.base) * coupling.cross.T + float(point.data) * coupling.data.covariance
        )
        drift = Drift().relation(BridgeObjective(bridge, DataPrediction()).coefficients(torch.tensor([t], dtype=F64)))
        output = (drift.on_data * mean_data + drift.on_state * x) / drift.scale
        torch.testing.assert_close(output, coupling.velocity(x, point) + 0.45 * score)


@pytest.mark.parametrize("prediction", PREDICTIONS, ids=lambda p: p.name)
@pytest.mark.parametrize("bridge", BRIDGES, ids=["brownian", "ddbm", "resshift", "bbdm"])
def test_targets_stand_for_the_data_they_were_made_from(bridge, prediction: BridgePrediction) -> None:
    objective = BridgeObjective(bridge, prediction, interval=(0.01, 0.99))
    source, data, latent = torch.randn(3, 3, 4, dtype=F64)
    seen = {}

    def model(x: Tensor, label: Tensor) -> Tensor:
        seen["label"] = label
        return torch.zeros_like(x)

    times = torch.tensor(TIMES, dtype=F64)
    losses = objective(model, source, data, latent, times)
    at = objective.coefficients(times)
    x = sum(entry[:, None] * part for entry, part in zip(at, (source, data, latent), strict=True))
    wide = type(at)(*(entry[:, None] for entry in at))
    target = prediction.target(wide, x, source, data, latent)
    torch.testing.assert_close(losses, target.square().mean(1))
    torch.testing.assert_close(objective.data_model(lambda x, label: target, source)(x, seen["label"]), data)


def test_levels_are_those_of_the_samplers() -> None:
    for levels, nodes in ((bbdm_levels(), bbdm_nodes(50)), (resshift_levels(), resshift_nodes(15))):
        at = levels.at_index(torch.tensor(nodes.time[:-1]))
        for ours, theirs in zip(at, (nodes.anchor, nodes.signal, nodes.noise), strict=True):
            torch.testing.assert_close(ours, torch.tensor(theirs[:-1]))
    nodes = i2sb_nodes(20)
    at = i2sb_levels().at_index(torch.tensor(nodes.time))
    torch.testing.assert_close(at.anchor, torch.tensor(nodes.anchor), rtol=0.01, atol=0)  # theirs leave out one beta
    torch.testing.assert_close(at.noise / at.signal.sqrt(), torch.tensor(nodes.noise / nodes.signal**0.5))
    schedule = resshift_levels()
    roots = schedule.anchor.sqrt()
    assert (float(roots[0]), float(roots[-1])) == pytest.approx((0.99, 0.02))
    assert bool((roots.diff() < 0).all())
    brownian = BrownianBridge(2.0)
    levels = bbdm_levels(11)
    point = brownian.at(levels.signal)
    torch.testing.assert_close(levels.noise, point.latent)


def test_every_level_is_equally_likely() -> None:
    objective = bridge_objective("resshift")
    index = objective.labels(objective.times((torch.arange(1500, dtype=F64) + 0.5) / 1500))
    assert torch.bincount(index.long()).tolist() == [100] * 15


def test_ddbm_loss_is_the_weighted_error_of_its_denoiser() -> None:
    prediction = BridgePreconditioned(0.5, 0.7, 0.1)
    objective = BridgeObjective(DiffusionBridge(EDMPath(sigma_max=80, rho=1)), prediction, interval=(0.0, 0.999))
    generator = torch.Generator().manual_seed(3)
    latent, one, two = torch.randn(3, 100_000, 1, dtype=F64, generator=generator)
    source = 0.7 * one
    data = 0.1 / 0.49 * source + math.sqrt(0.25 - 0.01 / 0.49) * two  # variance 0.25, covariance 0.1
    for t in (0.0, 0.5, 0.99, 0.999):
        times = torch.full((100_000,), t, dtype=F64)
        inputs = []

        def model(x: Tensor, label: Tensor, inputs=inputs) -> Tensor:
            inputs.append(x)
            return 0.3 * x.sin()

        losses = objective(model, source, data, latent, times)
        assert float(inputs[0].std()) == pytest.approx(1.0, abs=0.02)
        zero = objective(lambda x, label: 0 * x, source, data, latent, times)
        assert float(zero.mean()) == pytest.approx(1.0, abs=0.02)  # the residual has unit variance
        at = objective.coefficients(times[:1])
        x = at.anchor * source + at.signal * data + at.noise * latent
        denoised = objective.data_model(model, source)(x, times)
        weight = prediction.relation(at).scale ** -2
        torch.testing.assert_close(losses, (weight * (denoised - data).square())[:, 0])


def test_learned_networks_run_in_the_samplers() -> None:
    # The data is a function of the source; the exact network of each model, in its own convention, leads to it.
    source = torch.randn(3, 5, dtype=F64)
    data = 0.5 * source - 0.3
    betas = torch.linspace((1e-4) ** 0.5, (3e-4) ** 0.5, 1000, dtype=F64).square()
    std = torch.cat([betas[:500], betas[:500].flip(0)]).cumsum(0).sqrt()
    i2sb = bridge_objective("i2sb").data_model(lambda x, n: (x - data) / std[n.long()][:, None], source)
    x = run(build_table("i2sb", i2sb_nodes(10), source_time=999), i2sb, source)
    torch.testing.assert_close(x, data, rtol=0, atol=0.06)  # its last level has noise 0.01
    torch.testing.assert_close(i2sb(x, torch.zeros(3)), data)
    m = torch.linspace(0.001, 0.999, 1000, dtype=F64)
    networks = {
        "displacement": lambda x, n: x - data,
        "difference": lambda x, n: source - data,
        "latent": lambda x, n: (
            (x - m[n.long()][:, None] * source - (1 - m[n.long()][:, None]) * data)
            / (2 * m * (1 - m)).sqrt()[n.long()][:, None]
        ),
    }
    for prediction, network in networks.items():
        predict = bridge_objective("bbdm", prediction=prediction).data_model(network, source)
        x = run(build_table("bbdm", bbdm_nodes(12)), predict, source)
        torch.testing.assert_close(x, data)
    nodes = resshift_nodes(15)
    scaled = []

    def resshift_network(x: Tensor, n: Tensor) -> Tensor:
        scaled.append(float(x.std()))
        return data

    resshift = bridge_objective("resshift").data_model(resshift_network, source)
    x = run(build_table("resshift", nodes), resshift, source + nodes.noise[0] * torch.randn(3, 5, dtype=F64))
    torch.testing.assert_close(x, data)
    assert max(scaled) < 2.5  # the network's input is scaled down from a spread of about 2.2
    ddbm = bridge_objective("ddbm")

    def ddbm_network(x: Tensor, t: Tensor) -> Tensor:
        at = ddbm.coefficients(t)
        power = 0.25 * at.anchor**2 + 0.25 * at.signal**2 + at.noise**2
        out = ((at.anchor**2 / 16 + at.noise**2 / 4) / power).sqrt()
        return (data - (0.25 * at.signal / power)[:, None] * x * power.sqrt()[:, None]) / out[:, None]

    assert isinstance(ddbm.bridge, DiffusionBridge)
    x = sample(ddbm.data_model(ddbm_network, source), source, path=ddbm.bridge, method="dbim", nfe=6)
    torch.testing.assert_close(x, data)


def test_consecutive_bridge_trains_one_side_and_shows_the_other() -> None:
    objective = ConsecutiveBridgeObjective(bridge_objective("consecutive"))
    previous, after, data, latent = torch.randn(4, 4, 3, dtype=F64)
    t = torch.tensor([0.0, 0.3, 0.7, 0.9995], dtype=F64)
    following = torch.tensor([True, False, True, False])
    calls = []

    def model(x: Tensor, label: Tensor, companion: Tensor) -> Tensor:
        calls.append((x, label, companion))
        return torch.zeros_like(x)

    losses = objective(model, (previous, after), data, latent, t, following)
    levels = bbdm_levels()
    at = levels.at(t)
    a, b, c = (entry[:, None] for entry in at)
    sides = [a * end + b * data + c * latent for end in (previous, after)]
    x, label, companion = calls[0]
    pick = following[:, None]
    torch.testing.assert_close(x, torch.where(pick, sides[1], sides[0]))
    torch.testing.assert_close(companion, torch.where(pick, sides[0], sides[1]))
    assert label.tolist() == [2000.0, 1000.0 - 700, 1000.0 + 300, 1000.0 - 1]
    weight = (1 / at.noise).clamp(max=5.0)
    torch.testing.assert_close(losses, weight * (x - data).abs().mean(1))
    assert float(weight[-1]) == 5.0


@pytest.mark.parametrize("name", BRIDGE_OBJECTIVES)
def test_losses_are_finite_per_sample_and_independent_of_the_split(name: str) -> None:
    objective = bridge_objective(name)
    generator = torch.Generator().manual_seed(5)
    source, data, latent = torch.randn(3, 6, 1, 2, 2, generator=generator)
    t = objective.times(torch.tensor([1e-9, 0.2, 0.4, 0.6, 0.8, 1 - 1e-9], dtype=F64))

    def loss(part: slice) -> Tensor:
        return objective(lambda x, label: x.sin(), source[part], data[part], latent[part], t[part])

    whole = loss(slice(None))
    assert whole.shape == (6,)
    assert whole.dtype == torch.float32
    assert bool(whole.isfinite().all())
    assert torch.equal(whole, torch.cat([loss(slice(0, 4)), loss(slice(4, 6))]))


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: bridge_objective("i2bs"), "unknown bridge objective 'i2bs'; did you mean 'i2sb'"),
        (lambda: bridge_objective("bbdm", beta_max=0.3), "do not fit the bridge objective 'bbdm'"),
        (lambda: bridge_objective("bbdm", prediction="data"), "unknown prediction of BBDM 'data'"),
        (lambda: BridgePrediction.by_name("drif"), "did you mean 'drift'"),
        (lambda: BridgeObjective(BrownianBridge(), Drift()), "'drift' is not bounded at an end"),
        (lambda: BridgeObjective(BrownianBridge(), ScorePrediction()), "'score' is not bounded at an end"),
        (lambda: BridgeObjective(BrownianBridge(), LatentPrediction(), "l3"), "unknown norm 'l3'"),
        (lambda: BridgeObjective(BrownianBridge(), interval=(0.5, 0.5)), "interval must increase"),
        (lambda: BridgePreconditioned(covariance=0.25), "covariance of bridge prediction 'preconditioned'"),
        (lambda: BridgePreconditioned(sigma_data=0.0), "sigma_data of a bridge prediction"),
        (lambda: i2sb_levels(1), "train_steps=1 is not possible"),
        (lambda: resshift_levels(end=1.0), "end=1.0 is not possible"),
        (lambda: bbdm_levels(max_variance=-1.0), "max_variance=-1.0 is not possible"),
        (lambda: bbdm_levels().at_index(torch.tensor([1000.0])), "must be one of 0 ... 999"),
        (lambda: ConsecutiveBridgeObjective(bridge_objective("ddbm")), "sides on training levels"),
        (
            lambda: bridge_objective("bbdm")(lambda x, t: x, torch.zeros(2, 3), torch.zeros(2, 3), torch.zeros(2, 4),
                                             torch.zeros(2)),
            "must have one shape",
        ),
        (
            lambda: bridge_objective("bbdm")(lambda x, t: x, *torch.zeros(3, 2, 3), torch.zeros(3)),
            r"t must have shape \(2,\)",
        ),
        (
            lambda: ConsecutiveBridgeObjective(bridge_objective("consecutive"))(
                lambda x, t, companion: x, (torch.zeros(2, 3), torch.zeros(2, 3)), *torch.zeros(2, 2, 3),
                torch.zeros(2), torch.zeros(2)
            ),
            "following must be a bool tensor",
        ),
        (lambda: absolute_error(torch.zeros(2, 3), torch.zeros(2, 4)), "the model returned shape"),
    ],
)  # fmt: skip
def test_bad_input_is_refused_with_words(call, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        call()


def test_weights_by_the_noise() -> None:
    std = torch.tensor([0.0, 0.1, 0.5, 2.0], dtype=F64)
    assert LatentPower()(std).tolist() == [1.0] * 4
    torch.testing.assert_close(LatentPower(2.0)(std), std.square())
    assert LatentPower(-1.0, 5.0)(std).tolist() == [5.0, 5.0, 2.0, 0.5]
