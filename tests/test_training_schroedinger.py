"""Schrödinger bridges of Gaussians: plan, marginals and drift against closed forms."""

import math

import pytest
import torch
from torch import Tensor

from pathline.interpolants import Gaussian, gaussian_plan
from pathline.training import SchroedingerBridge


def normals(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def laws() -> tuple[Gaussian, Gaussian]:
    first = torch.tensor([[1.0, 0.4], [0.4, 0.5]], dtype=torch.float64)
    second = torch.tensor([[0.3, -0.2], [-0.2, 2.0]], dtype=torch.float64)
    return Gaussian([0.0, 0.0], covariance=first), Gaussian([1.0, -0.5], covariance=second)


def test_plan_between_numbers_is_the_known_one() -> None:
    first, second, sigma = 0.7, 1.6, 0.9
    plan = gaussian_plan(Gaussian([0.0], variance=first**2), Gaussian([2.0], variance=second**2), 2 * sigma**2)
    expected = 0.5 * (math.sqrt(sigma**4 + 4 * first**2 * second**2) - sigma**2)
    assert float(plan.cross) == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("sigma", [0.3, 1.0, 3.0])
def test_plan_has_the_form_of_an_entropic_one(sigma: float) -> None:
    """exp(f(x) + g(y) − |x − y|²/2σ²): the cross block of the precision is −1/σ², whatever f and g are."""
    base, data = laws()
    cross = gaussian_plan(base, data, 2 * sigma**2).cross
    joint = torch.cat([torch.cat([base.covariance, cross], 1), torch.cat([cross.T, data.covariance], 1)])
    block = torch.linalg.inv(joint)[:2, 2:]
    torch.testing.assert_close(block, -torch.eye(2, dtype=torch.float64) / sigma**2, rtol=1e-8, atol=1e-8)


def fields(bridge: SchroedingerBridge, t: float, coupled: bool) -> tuple[Tensor, Tensor, Tensor]:
    """Linear velocity, score and drift that minimise the two losses at a time, by pairs of batches."""
    base, data = laws()
    generator = torch.Generator().manual_seed(1)
    parts = []
    for _ in range(4):
        x0, x1 = base.sample(500, generator), data.sample(500, generator)
        if coupled:
            pairs = bridge.coupling(x0, x1, generator=generator)
            x0, x1 = x0[pairs.base], x1[pairs.data]
        parts.append((x0, x1))
    x0, x1 = (torch.cat(side) for side in zip(*parts, strict=True))
    latent, times = torch.randn(len(x0), 2, dtype=torch.float64, generator=generator), torch.full((len(x0),), t)
    maps = []
    for objective in (bridge.flow, bridge.score):
        weights = torch.zeros(3, 2, dtype=torch.float64, requires_grad=True)

        def model(x: Tensor, label: Tensor, weights: Tensor = weights) -> Tensor:
            return torch.cat([x, torch.ones_like(x[:, :1])], 1) @ weights

        optimizer = torch.optim.LBFGS([weights], max_iter=50, line_search_fn="strong_wolfe")

        def loss(objective=objective, optimizer=optimizer, model=model) -> Tensor:  # type: ignore[no-untyped-def]
            optimizer.zero_grad()
            value = objective(model, x0, x1, latent, times.double()).mean()
            value.backward()
            return value

        optimizer.step(loss)
        maps.append(weights.detach())
    return maps[0], maps[1], bridge.drift(*maps)


@pytest.mark.parametrize("t", [0.25, 0.6])
def test_losses_and_coupling_find_the_drift_of_the_bridge(t: float) -> None:
    """E[(x_1 − x)/(1 − t) | x_t = x] of the closed-form bridge, which independent pairs miss."""
    bridge = SchroedingerBridge(0.8)
    base, data = laws()
    plan = gaussian_plan(base, data, 2 * bridge.sigma**2)
    marginal = plan.marginal(bridge.interpolant.at(t))
    with_data = (1 - t) * plan.cross.T + t * data.covariance  # Cov(x_1, x_t)
    slope = (with_data @ torch.linalg.inv(marginal.covariance) - torch.eye(2, dtype=torch.float64)) / (1 - t)
    _, score, drift = fields(bridge, t, coupled=True)
    torch.testing.assert_close(drift[:2], slope.T, atol=0.12, rtol=0)
    torch.testing.assert_close(score[:2], -torch.linalg.inv(marginal.covariance), atol=0.12, rtol=0.1)
    shift = data.mean - slope @ ((1 - t) * base.mean + t * data.mean) - base.mean
    torch.testing.assert_close(drift[2], shift, atol=0.12, rtol=0)
    independent = fields(bridge, t, coupled=False)[2]
    assert float((independent[:2] - slope.T).abs().max()) > 0.3


def test_the_closed_form_drift_carries_one_law_into_the_other() -> None:
    """Forward from the base with noise of variance σ², in 600 steps."""
    bridge = SchroedingerBridge(0.8)
    base, data = laws()
    plan = gaussian_plan(base, data, 2 * bridge.sigma**2)
    mean, covariance, steps = base.mean, base.covariance, 600
    for k in range(steps):
        t = k / steps
        marginal = plan.marginal(bridge.interpolant.at(t))
        with_data = (1 - t) * plan.cross.T + t * data.covariance
        step = torch.eye(2, dtype=torch.float64)
        slope = (with_data @ torch.linalg.inv(marginal.covariance) - step) / (1 - t)
        shift = data.mean - base.mean - slope @ ((1 - t) * base.mean + t * data.mean)
        step = step + slope / steps
        mean = mean + (slope @ mean + shift) / steps
        covariance = step @ covariance @ step.T + bridge.sigma**2 / steps * torch.eye(2, dtype=torch.float64)
    torch.testing.assert_close(mean, data.mean, atol=8e-3, rtol=0)
    torch.testing.assert_close(covariance, data.covariance, atol=2e-2, rtol=0)


def test_bad_values() -> None:
    with pytest.raises(ValueError, match=r"sigma=0\.0 is not possible"):
        SchroedingerBridge(0.0)
    with pytest.raises(ValueError, match="unknown plan 'exat'"):
        SchroedingerBridge(1.0, "exat")
    with pytest.raises(ValueError, match="regularisation must be a finite number above 0"):
        gaussian_plan(*laws(), 0.0)
