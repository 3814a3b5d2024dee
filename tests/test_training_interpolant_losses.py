"""Losses of stochastic interpolants: closed-form minimisers, antithetic pairs, what is refused."""

import pytest
import torch
from torch import Tensor

from pathline.interpolants import Gaussian, GaussianCoupling, StochasticInterpolant, interpolant_by_name
from pathline.training import (
    InterpolantObjective,
    LatentPower,
    LogitNormal,
    LogNormalSigma,
    interpolant_target,
    linear_error,
    squared_error,
)

F64 = torch.float64
TIMES = (0.12, 0.4, 0.77)
BASE = Gaussian([0.3, -1.0], covariance=[[1.0, 0.3], [0.3, 0.6]])
DATA = Gaussian([1.5, 0.4], covariance=[[0.5, -0.2], [-0.2, 0.9]])
COUPLED = GaussianCoupling(BASE, DATA, cross=[[0.4, 0.1], [-0.1, 0.2]])
NORMAL = GaussianCoupling(Gaussian([0.0, 0.0], variance=1.0), DATA)
TWO_SIDED = {
    "linear": interpolant_by_name("linear"),
    "trigonometric": interpolant_by_name("trigonometric", "quadratic"),
    "encoder_decoder": interpolant_by_name("encoder_decoder"),
}
MIRROR = interpolant_by_name("mirror", "brownian", diffusivity=2.0)
ONE_SIDED = interpolant_by_name("one_sided_trigonometric")
CASES = [
    *((family, COUPLED, kind) for family in TWO_SIDED for kind in ("velocity", "mean_rate", "score", "latent")),
    *(("linear", COUPLED, kind) for kind in ("base", "data")),
    *(("mirror", COUPLED, kind) for kind in ("velocity", "score", "latent", "data")),
    *(("one_sided", NORMAL, kind) for kind in ("velocity", "score", "base", "data")),
]
FAMILIES = {**TWO_SIDED, "mirror": MIRROR, "one_sided": ONE_SIDED}


def pairs_of_moments(coupling: GaussianCoupling) -> tuple[Tensor, Tensor, Tensor]:
    """Twelve (base, data, latent) whose mean and covariance are exactly those of the law."""
    top = torch.cat([coupling.base.covariance, coupling.cross], 1)
    joint = torch.block_diag(torch.cat([top, torch.cat([coupling.cross.T, coupling.data.covariance], 1)]), torch.eye(2))
    mean = torch.cat([coupling.base.mean, coupling.data.mean, torch.zeros(2, dtype=F64)])
    steps = 6**0.5 * torch.linalg.cholesky(joint.to(F64)).T
    return tuple((mean + torch.cat([steps, -steps])).split(2, dim=1))  # type: ignore[return-value]


def exact(interpolant: StochasticInterpolant, coupling: GaussianCoupling, kind: str, x: Tensor, t: float) -> Tensor:
    """Closed-form conditional mean."""
    point = interpolant.at(t)
    score = coupling.score(x, point)
    if kind == "score":
        return score
    if kind == "latent":
        return coupling.latent(x, point)
    if kind == "velocity":
        return coupling.velocity(x, point)
    if kind == "mean_rate":
        return coupling.velocity(x, point) + point.gamma_gamma_rate * score
    # E[end | x] = mean - Cov(end, x) score
    a, b = float(point.base), float(point.data)
    if kind == "base":
        return coupling.base.mean - score @ (a * coupling.base.covariance + b * coupling.cross).T
    return coupling.data.mean - score @ (a * coupling.cross.T + b * coupling.data.covariance).T


@pytest.mark.parametrize(("family", "coupling", "kind"), CASES)
@pytest.mark.parametrize("form", ["squared", "linear"])
@pytest.mark.parametrize("antithetic", [False, True])
def test_the_closed_form_is_where_the_gradient_vanishes(
    family: str, coupling: GaussianCoupling, kind: str, form: str, antithetic: bool
) -> None:
    interpolant = FAMILIES[family]
    if antithetic and family == "one_sided":
        return
    objective = InterpolantObjective(interpolant, kind, antithetic=antithetic, form=form, reduction="half_sum")
    base, data, latent = pairs_of_moments(coupling)
    for t in TIMES:
        slope = torch.eye(2, dtype=F64, requires_grad=True)
        shift = torch.zeros(2, dtype=F64, requires_grad=True)

        def model(x: Tensor, label: Tensor, t: float = t, slope: Tensor = slope, shift: Tensor = shift) -> Tensor:
            return exact(interpolant, coupling, kind, x, t) @ slope + shift

        losses = objective(model, base, data, latent, torch.full((12,), t, dtype=F64))
        gradient = torch.autograd.grad(losses.mean(), (slope, shift), create_graph=True)
        assert max(float(g.detach().abs().max()) for g in gradient) < 1e-9
        assert float(torch.autograd.grad(gradient[0][0, 0], slope)[0][0, 0]) > 0
        if form == "linear" and not antithetic:  # the least value is minus half the mean square of what is learned
            x, _, _ = interpolant_target(interpolant, kind, base, data, latent, torch.full((12,), t, dtype=F64))
            size = exact(interpolant, coupling, kind, x, t).square().sum(1).mean()
            assert float(losses.mean().detach()) == pytest.approx(-0.5 * float(size), rel=1e-9)


def test_linear_and_squared_errors_differ_by_a_constant() -> None:
    output, target = torch.randn(2, 5, 2, 3, dtype=F64)
    for reduction in ("mean", "sum", "half_sum"):
        constant = squared_error(0 * target, target, reduction)
        torch.testing.assert_close(
            linear_error(output, target, reduction) + constant, squared_error(output, target, reduction)
        )
    paper = (0.5 * output.square() - output * target).flatten(1).sum(1)
    torch.testing.assert_close(linear_error(output, target, "half_sum"), paper)


@pytest.mark.parametrize("kind", ["velocity", "score"])
def test_antithetic_pairs_bound_the_variance_of_the_gradient_near_the_ends(kind: str) -> None:
    n, t = 20_000, 1e-4
    generator = torch.Generator().manual_seed(0)
    base, data = COUPLED.sample(n, generator)
    latent = torch.randn(n, 2, dtype=F64, generator=generator)
    times = torch.full((n,), t, dtype=F64)
    spread, mean = {}, {}
    for antithetic in (False, True):
        slope = torch.full((n, 1), 0.7, dtype=F64, requires_grad=True)  # one copy per sample: per-sample gradients
        objective = InterpolantObjective(TWO_SIDED["linear"], kind, antithetic=antithetic, form="linear")
        losses = objective(lambda x, label, slope=slope: torch.tanh(slope * x), base, data, latent, times)
        (gradient,) = torch.autograd.grad(losses.sum(), slope)
        spread[antithetic], mean[antithetic] = float(gradient.std()), float(gradient.mean())
    assert spread[True] < 0.05 * spread[False]
    assert mean[True] == pytest.approx(mean[False], abs=4 * spread[False] / n**0.5)


def test_a_pair_is_the_mean_of_its_two_halves() -> None:
    generator = torch.Generator().manual_seed(1)
    base, data, latent = torch.randn(3, 6, 2, 2, dtype=F64, generator=generator)
    t = torch.rand(6, dtype=F64, generator=generator)
    single = InterpolantObjective(TWO_SIDED["linear"], "velocity")
    paired = InterpolantObjective(TWO_SIDED["linear"], "velocity", antithetic=True)

    def model(x: Tensor, label: Tensor, factor: Tensor) -> Tensor:
        return x.sin() * factor[:, None, None] + label[:, None, None]

    def loss(objective: InterpolantObjective, noise: Tensor, part: slice = slice(None)) -> Tensor:
        factor = torch.arange(6, dtype=F64)[part]
        return objective(model, base[part], data[part], noise[part], t[part], {"factor": factor})

    torch.testing.assert_close(loss(paired, latent), 0.5 * (loss(single, latent) + loss(single, -latent)))
    assert torch.equal(loss(paired, latent), loss(paired, -latent))
    split = torch.cat([loss(paired, latent, slice(0, 2)), loss(paired, latent, slice(2, 6))])
    assert torch.equal(loss(paired, latent), split)


def test_weighted_score_loss_is_the_loss_of_the_latent() -> None:
    interpolant = TWO_SIDED["linear"]
    base, data, latent = torch.randn(3, 5, 2, dtype=F64)
    t = torch.linspace(0.1, 0.9, 5, dtype=F64)
    std = interpolant.at(t).latent[:, None]
    on_score = InterpolantObjective(interpolant, "score", weight=LatentPower(2.0))
    on_latent = InterpolantObjective(interpolant, "latent")
    torch.testing.assert_close(
        on_score(lambda x, t: -x.cos() / std, base, data, latent, t),
        on_latent(lambda x, t: x.cos(), base, data, latent, t),
    )


def test_training_times_keep_away_from_unbounded_targets_only() -> None:
    brownian, smooth = TWO_SIDED["linear"], TWO_SIDED["trigonometric"]
    assert InterpolantObjective(brownian, "velocity").interval == (0.001, 0.999)
    assert InterpolantObjective(brownian, "mean_rate").interval == (0.0, 1.0)
    assert InterpolantObjective(brownian, "latent").interval == (0.0, 1.0)
    assert InterpolantObjective(smooth, "velocity").interval == (0.0, 1.0)
    assert InterpolantObjective(smooth, "score", margin=0.01).interval == (0.01, 0.99)
    assert InterpolantObjective(interpolant_by_name("one_sided_linear"), "score").interval == (0.0, 0.999)
    objective = InterpolantObjective(brownian, "velocity", density=LogitNormal(0.5, 0.8))
    times = objective.times(torch.linspace(1e-6, 1 - 1e-6, 101, dtype=F64))
    assert 0.001 <= float(times.min()) < float(times.max()) <= 0.999
    assert float(times[50].logit()) == pytest.approx(0.5, abs=0.01)
    for kind in ("velocity", "score", "latent"):
        objective = InterpolantObjective(brownian, kind)
        ends = torch.tensor(objective.interval)
        assert bool(objective(lambda x, t: x, *torch.randn(3, 2, 4), ends).isfinite().all())


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: InterpolantObjective(MIRROR, "velocty"), "did you mean 'velocity'"),
        (lambda: InterpolantObjective(MIRROR, "base"), "mirror interpolant has no base"),
        (lambda: InterpolantObjective(ONE_SIDED, "latent"), "no latent to learn"),
        (lambda: InterpolantObjective(interpolant_by_name("linear", "zero"), "score"), "no score to learn"),
        (lambda: InterpolantObjective(ONE_SIDED, "velocity", antithetic=True), "antithetic pairs differ"),
        (lambda: InterpolantObjective(MIRROR, "score", form="mse"), "unknown form 'mse'"),
        (lambda: InterpolantObjective(MIRROR, "score", margin=0.5), r"margin must lie in \[0, 1/2\), got 0.5"),
        (
            lambda: InterpolantObjective(MIRROR, "score", density=LogNormalSigma()).times(torch.tensor([0.5])),
            "stated in the log-SNR of a Gaussian path",
        ),
        (
            lambda: InterpolantObjective(MIRROR, "score")(lambda x, t: x, *torch.zeros(3, 2, 3), torch.zeros(3)),
            r"t must have shape \(2,\)",
        ),
        (
            lambda: interpolant_target(
                MIRROR, "score", torch.zeros(2), torch.zeros(2, 1), torch.zeros(2), torch.ones(2)
            ),
            "must have one shape",
        ),
        (lambda: LatentPower(float("nan")), "power of a latent weight"),
        (lambda: LatentPower(-1.0, 0.0), "limit of a loss weight"),
    ],
)
def test_bad_input_is_refused_with_words(call, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        call()
