"""Separation of data from samples, and interpolants learned with their velocity."""

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from pathline.interpolants import FourierEnds
from pathline.training import LearnedEnds, estimate_separation, fit_ends, kinetic_loss


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def test_separation_of_two_points_is_the_known_one() -> None:
    data = torch.tensor([[-3.0], [5.0]])  # after centring and scaling, −1 and 1
    found = estimate_separation(data, pieces=32, draws=40_000, generator=seeded())
    assert found.scale == pytest.approx(4.0)
    z = torch.randn(1, 200_000, dtype=torch.float64, generator=seeded(1))
    expected = (found.ratios[:, None].square() + found.ratios[:, None] * z).tanh().mean(1)
    torch.testing.assert_close(found.separation, expected, rtol=0, atol=6e-3)
    path = found.path(floor=1e-6)
    assert path.energy == pytest.approx(16 - 8 * math.cos(0.69126) + 1, rel=0.01)  # |p1 − p0|², 4 away at Θ(π/2)


def test_separation_of_normal_data_leaves_nothing_to_turn() -> None:
    # γ = 0 for normal data: E|D|²/d = sin²θ. Samples stand in for the law as long as noise covers their spacing.
    data = torch.randn(1500, 1, dtype=torch.float64, generator=seeded())
    found = estimate_separation(data, pieces=16, draws=1500, generator=seeded(1))
    sines = torch.tensor(found.ratios.tolist()).atan().sin().square().double()
    assert float((found.separation - sines)[:12].abs().max()) < 0.02
    assert max(found.metric[:9]) < 0.05


def test_estimate_depends_on_the_generator_alone_and_refuses_what_has_no_answer() -> None:
    data = torch.rand(20, 1, 2, 2)
    first, second = (estimate_separation(data, pieces=4, draws=50, generator=seeded(3)) for _ in range(2))
    assert first.metric == second.metric
    assert len(first.metric) == 5
    for call, words in (
        (lambda: estimate_separation(torch.ones(4, 2)), "all the same"),
        (lambda: estimate_separation(torch.ones(1, 2)), "at least 2 finite samples"),
        (lambda: estimate_separation(torch.tensor([[1.0], [math.nan]])), "at least 2 finite samples"),
        (lambda: estimate_separation(data, draws=0), "draws must be at least 1, got 0"),
    ):
        with pytest.raises(ValueError, match=words):
            call()


def energy(ends: FourierEnds, spread: float = 0.3) -> float:
    """∫E|b|² for independent normal ends: ∫ mean'² + (std')², by quadrature."""
    t = ((torch.arange(2000, dtype=torch.float64) + 0.5) / 2000).requires_grad_()
    mean = ends.data(t)
    std = (ends.base(t).square() + (spread * ends.data(t)).square()).sqrt()
    rates = [torch.autograd.grad(value.sum(), t, retain_graph=True)[0] for value in (mean, std)]
    return float(sum(rate.square().mean() for rate in rates))


def best_velocity(ends: FourierEnds, spread: float = 0.3) -> Callable[[Tensor, Tensor], Tensor]:
    """mean' + K/C (x − mean) with C the variance and K half its rate."""

    def velocity(x: Tensor, t: Tensor) -> Tensor:
        base, data, base_rate, data_rate = (
            f(t)[:, None] for f in (ends.base, ends.data, ends.base_rate, ends.data_rate)
        )
        variance, half_rate = base**2 + (spread * data) ** 2, base * base_rate + spread**2 * data * data_rate
        return data_rate + half_rate / variance * (x - data)

    return velocity


def test_fourier_ends_are_exact_and_their_rates_are_derivatives() -> None:
    ends = FourierEnds((0.2, -0.1, 0.05), (0.1, 0.3))
    both = torch.tensor([0.0, 1.0], dtype=torch.float64)
    assert ends.base(both).tolist() == [1.0, 0.0]
    assert ends.data(both).tolist() == [0.0, 1.0]
    t = torch.linspace(0.01, 0.99, 50, dtype=torch.float64, requires_grad=True)
    for value, rate in ((ends.base, ends.base_rate), (ends.data, ends.data_rate)):
        (slope,) = torch.autograd.grad(value(t).sum(), t)
        torch.testing.assert_close(rate(t).detach(), slope, rtol=1e-11, atol=1e-11)
    assert FourierEnds().base_rate(both).tolist() == [-1.0, -1.0]
    with pytest.raises(ValueError, match="data_terms must be finite"):
        FourierEnds((), (math.inf,))


def test_gradient_of_the_coefficients_is_that_of_the_energy() -> None:
    learned = LearnedEnds(3)
    with torch.no_grad():
        learned.base_terms.copy_(torch.tensor([0.1, -0.05, 0.02]))
        learned.data_terms.copy_(torch.tensor([-0.1, 0.04, 0.0]))
    count = 200_000
    base, data = torch.randn(2, count, 1, dtype=torch.float64, generator=seeded())
    t = (torch.randperm(count, generator=seeded(1)) + 0.5).double() / count
    model = best_velocity(learned.ends())
    loss = kinetic_loss(model, learned, base, 1 + 0.3 * data, t).mean()
    assert float(loss.detach()) == pytest.approx(-0.5 * energy(learned.ends()), abs=0.01)
    loss.backward()
    for name in ("base_terms", "data_terms"):
        values = list(getattr(learned.ends(), name))
        for k in range(3):
            around = []
            for step in (1e-4, -1e-4):
                moved = [value + step * (index == k) for index, value in enumerate(values)]
                terms = {"base_terms": learned.ends().base_terms, "data_terms": learned.ends().data_terms, name: moved}
                around.append(energy(FourierEnds(**terms)))
            expected = -0.5 * (around[0] - around[1]) / 2e-4
            assert float(getattr(learned, name).grad[k]) == pytest.approx(expected, abs=0.03)


class LinearVelocity(nn.Module):
    """p(t) + q(t)·x with polynomials: it holds the velocity of normal ends closely."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(2, 7, dtype=torch.float64))

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        powers = torch.cos(torch.acos((2 * t - 1).clamp(-1, 1))[:, None] * torch.arange(7)).to(x)  # Chebyshev's
        offset, slope = (powers @ self.weight.T).unbind(1)
        return offset[:, None] + slope[:, None] * x


def test_a_learned_interpolant_nears_optimal_transport() -> None:
    generator = seeded()

    def draw(step: int) -> tuple[Tensor, Tensor]:
        base, data = torch.randn(2, 512, 1, dtype=torch.float64, generator=generator)
        return base, 1 + 0.3 * data

    ends = fit_ends(LinearVelocity(), draw, terms=3, steps=400, model_rate=0.03, ends_rate=0.003, generator=generator)
    bound = 1 + 0.7**2
    linear, learned = energy(FourierEnds()) - bound, energy(ends) - bound
    assert linear > 0.08
    assert 0 <= learned < 0.4 * linear
    with pytest.raises(ValueError, match="terms must be at least 1"):
        fit_ends(LinearVelocity(), draw, terms=0)
