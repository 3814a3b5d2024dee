"""Exact weights at any step, energies and what is made of them, Markov chain moves."""

import math

import numpy as np
import pytest
import torch
from torch import Tensor

from pathline.interpolants import EDMPath, Gaussian, GaussianMixture, LinearPath, VPPath
from pathline.samplers import build_table, make_nodes, run
from pathline.samplers.nodes import Level
from pathline.samplers.smc import (
    Composition,
    DiscreteFeynmanKac,
    EnergyHead,
    EnergyModel,
    Policy,
    Rejuvenation,
    law,
    log_density_of,
    mala,
    mixture_energy,
    pooled,
    score_steps,
    smc_sample,
    start_log_constant,
    start_states,
    uhmc,
    ula,
    weighted_energy,
    with_noise_factor,
)
from pathline.training import energy_distillation_loss

PATH = EDMPath(sigma_min=0.02, sigma_max=80.0)
MIXTURE = GaussianMixture([0.5, 0.5], [[-2.0], [2.0]], std=[0.5, 1.0])
EXACT_Z = 0.2117419  # of the squared law at noise 0.02


def squared() -> Composition:
    return law(log_density=lambda x, level: MIXTURE.log_density(x, level.signal, level.noise)).annealed(2.0)


def exact(count: int, steps: int, seed: int):
    return smc_sample(MIXTURE.as_model(PATH), squared(), (1,), count, path=PATH, weights="exact", steps=steps + 1,
                      grid="karras", seed=seed, dtype=torch.float64)  # fmt: skip


@pytest.mark.slow
def test_exact_weights_estimate_the_normaliser_without_bias_at_any_step() -> None:
    for steps, runs, sd in ((20, 20, 0.25), (50, 5, 0.08)):
        z = np.exp([exact(64, steps, seed).log_z for seed in range(runs)])
        error = max(z.std(), 0.3 * sd) / math.sqrt(runs)
        assert abs(z.mean() - EXACT_Z) < 4 * error
    islands = [exact(64, 50, seed) for seed in range(4)]
    joined = pooled(islands)
    assert joined.log_z == pytest.approx(math.log(EXACT_Z), abs=4 * joined.log_z_error)
    assert joined.log_weights.shape == (256,)
    assert float(joined.log_weights.logsumexp(0)) - math.log(256) == pytest.approx(joined.log_z)
    with pytest.raises(ValueError, match="at least one population"):
        pooled([])
    found = exact(1000, 50, 3)
    assert found.log_z == pytest.approx(math.log(EXACT_Z), abs=4 * found.log_z_error)
    assert float(found.mean(lambda x: (x < 0).double())) == pytest.approx(0.667, abs=0.12)
    assert found.table.end.noise == pytest.approx(0.02)


@pytest.mark.slow
def test_exact_weights_at_full_length() -> None:
    for count, steps, runs in ((64, 20, 300), (1000, 50, 40), (1000, 200, 20)):
        found = [exact(count, steps, seed) for seed in range(runs)]
        z = np.exp([r.log_z for r in found])
        assert abs(z.mean() - EXACT_Z) < 4 * z.std() / math.sqrt(runs)
        below = np.array([float(r.mean(lambda x: (x < 0).double())) for r in found])
        if count == 1000:
            assert abs(below.mean() - 0.667) < 4 * below.std() / math.sqrt(runs) + 0.005


def test_weights_do_not_spread_while_the_laws_are_pure_noise() -> None:
    narrow = GaussianMixture([1.0], [[0.0]], std=1e-3)
    target = law(log_density=lambda x, level: narrow.log_density(x, level.signal, level.noise)).annealed(3.0)
    found = smc_sample(narrow.as_model(PATH), target, (1,), 200, path=PATH, weights="exact",
                       grid=[0.0, 0.1, 0.3], dtype=torch.float64)  # fmt: skip
    assert float(found.log_weights.max() - found.log_weights.min()) < 1e-6
    end = found.table.end.noise
    assert found.log_z == pytest.approx(-math.log(2 * math.pi * end**2) - 0.5 * math.log(3), abs=1e-4)
    assert start_log_constant(target, found.table.end, 1) == pytest.approx(found.log_z, abs=1e-4)


def test_rewards_without_gradients_and_several_branches_weigh_exactly() -> None:
    first, second = (Gaussian([m], variance=v) for m, v in ((-1.0, 1.0), (1.0, 0.25)))
    path = VPPath(beta_min=0.1, beta_max=20.0)
    options = {"path": path, "steps": 40, "weights": "exact", "dtype": torch.float64}
    factors = [
        law(None if k == 0 else q.as_model(path), log_density=lambda x, level, q=q: q.log_density(x, *level[1:3]))
        for k, q in enumerate((first, second))
    ]
    found = smc_sample(first.as_model(path), factors[0] * factors[1], (1,), 2000, **options)
    mean = float(found.mean())
    assert mean == pytest.approx(0.6, abs=0.06)
    assert found.log_z == pytest.approx(
        -2 / 1.25 - 0.5 * math.log(2 * math.pi * 1.25), abs=4 * found.log_z_error + 0.01
    )
    last = lambda t: float(t > 0.9987)  # noqa: E731 (only the last level lies there)
    above = factors[0].tilted(lambda x: torch.where(x[:, 0] > -1, 0.0, -torch.inf), last)
    found = smc_sample(first.as_model(path), above, (1,), 2000, **options)
    assert found.log_z == pytest.approx(math.log(0.5), abs=0.12)
    assert found.reward_gradients == 0
    assert float((found.weights * (found.sample[:, 0] <= -1)).sum()) == 0.0


def test_tables_that_are_not_gaussian_moves_are_refused() -> None:
    model, options = MIXTURE.as_model(PATH), {"path": PATH, "weights": "exact", "steps": 6, "grid": "karras"}
    for method in ("ddim", "heun", "unipc"):
        with pytest.raises(ValueError, match="not one"):
            smc_sample(model, squared(), (1,), 4, method=method, **options)
    with pytest.raises(ValueError, match="log_density"):
        DiscreteFeynmanKac(law())
    nodes = make_nodes(PATH, "karras", 6)
    table = score_steps(nodes)
    assert with_noise_factor(table, 1.0) is table
    with pytest.raises(ValueError, match="row 5"):
        run(table, model, torch.randn(4, 1), guidance=DiscreteFeynmanKac(squared()))


def test_moves_between_rows_keep_the_law_and_bring_diversity() -> None:
    model, nodes = MIXTURE.as_model(PATH), make_nodes(PATH, "karras", 31).part(0, 30)
    table = with_noise_factor(build_table("ddpm", nodes), math.sqrt(0.5))
    estimates = []
    for seed in range(5):
        hook = DiscreteFeynmanKac(squared(), Policy(ess=0.9))
        moves = Rejuvenation(hook, step=0.2, steps=2)
        x = start_states(squared(), table.start, (1,), range(300), seed, dtype=torch.float64)
        run(table, model, x, guidance=hook, hooks=[moves], seed=seed)
        estimates.append(math.exp(hook.log_z()))
        assert len(moves.accepted) == 30
    z = np.array(estimates)
    assert abs(z.mean() - EXACT_Z) < 4 * z.std() / math.sqrt(len(z))
    assert 0.5 < float(torch.stack(moves.accepted).mean()) < 1.0


def quadratic(mean: float, variance: float):
    return lambda x, t, **kwargs: 0.5 * (x - mean).square().flatten(1).sum(1) / variance


def score(energy, x: Tensor) -> Tensor:
    return EnergyModel(energy, LinearPath())(x, torch.full((len(x),), 0.5, dtype=x.dtype))


def test_mixtures_products_negation_and_temperature_of_energies() -> None:
    x = torch.tensor([[0.0], [2.0]], dtype=torch.float64)
    mixed = score(mixture_energy([quadratic(-2, 1), quadratic(2, 1)]), x)
    assert mixed[0].item() == pytest.approx(0.0, abs=1e-12)
    assert mixed[1].item() == pytest.approx(-0.0013414, abs=1e-7)
    shifted = score(mixture_energy([quadratic(-2, 1), quadratic(2, 1)], [50.0, 0.0]), x)
    assert torch.allclose(shifted, 2 - x)
    apart = score(weighted_energy([quadratic(0, 1), quadratic(2, 1)], [1.0, -0.5]), x)
    assert torch.allclose(apart, -0.5 * (x + 2))
    cold = score(weighted_energy([quadratic(1, 2)], [1 / 0.25]), x)
    assert torch.allclose(cold, -2 * (x - 1))
    with pytest.raises(ValueError, match="weights"):
        weighted_energy([quadratic(0, 1)], [1.0, 2.0])
    with pytest.raises(ValueError, match="shifts"):
        mixture_energy([])


@pytest.mark.parametrize("head", ["half-square", "inner", "denoiser"])
def test_heads_make_energies_whose_score_is_their_gradient(head: str) -> None:
    path = LinearPath()
    energy = EnergyHead(lambda x, t: torch.tanh(x) * t.reshape(-1, 1), head, path)
    x, t = torch.randn(3, 2, dtype=torch.float64), torch.tensor([0.2, 0.5, 0.8], dtype=torch.float64)
    found = EnergyModel(energy, path)(x, t)
    h = 1e-6
    for j in range(2):
        step = torch.zeros(3, 2, dtype=torch.float64)
        step[:, j] = h
        slope = (energy(x + step, t) - energy(x - step, t)) / (2 * h)
        assert torch.allclose(found[:, j], -slope, atol=1e-6)
    assert not found.requires_grad or torch.is_grad_enabled()
    with pytest.raises(ValueError, match="did you mean"):
        EnergyHead(lambda x, t: x, "iner")


def test_an_energy_samples_and_weighs() -> None:
    path = VPPath(beta_min=0.1, beta_max=20.0)
    q = Gaussian([1.0], variance=0.25)

    def energy(x: Tensor, t: Tensor) -> Tensor:
        return -q.log_density(x, path.signal(t), path.noise(t))

    model = EnergyModel(energy, path)
    target = law(log_density=model.log_density).annealed(2.0)
    found = smc_sample(model, target, (1,), 1500, weights="exact", steps=40, dtype=torch.float64)
    assert float(found.mean(lambda x: (x - 1) ** 2)) == pytest.approx(0.125, abs=0.02)
    level = Level(0.5, *(float(v) for v in path.at(0.5)))
    x = torch.randn(3, 1, dtype=torch.float64)
    assert torch.equal(model.log_density(x, level), log_density_of(energy)(x, level))


def test_langevin_moves_have_the_variance_of_theory() -> None:
    density = lambda x: -0.5 * x.square().flatten(1).sum(1)  # noqa: E731
    x = torch.randn(20000, 1, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    assert ula(x, density, 0.5, steps=12).var().item() == pytest.approx(4 / 3, rel=0.04)
    moved = mala(x, density, 0.5, steps=8, seed=2)
    assert moved.state.var().item() == pytest.approx(1.0, rel=0.04)
    assert 0.8 < moved.accepted.mean().item() < 1.0
    for keep in (0.0, 0.7):
        swung = uhmc(x, density, 0.9, steps=4, leaps=3, keep=keep, seed=3)
        assert swung.state.var().item() == pytest.approx(1.0, rel=0.04)
    parts = torch.cat([mala(p, density, 0.5, seed=4, samples=s).state for p, s in
                       zip(x[:10].split(5), torch.arange(10).split(5), strict=True)])  # fmt: skip
    assert torch.equal(parts, mala(x[:10], density, 0.5, seed=4).state)
    walled = mala(x, lambda x: torch.where(x[:, 0] > 0, -0.5 * x[:, 0] ** 2, -torch.inf), 0.1, seed=5)
    assert (walled.state[x[:, 0] > 0] > 0).all()
    with pytest.raises(ValueError, match="step"):
        mala(x, density, 0.0)


def test_distillation_finds_the_gradient_part_of_a_teacher() -> None:
    path = VPPath(beta_min=0.1, beta_max=20.0)
    q = Gaussian([0.0, 0.0], variance=[1.5, 0.5])
    turn = torch.tensor([[0.0, 1.0], [-1.0, 0.0]], dtype=torch.float64)
    spectrum = torch.zeros(2, dtype=torch.float64, requires_grad=True)

    def energy(x: Tensor, t: Tensor) -> Tensor:
        variance = path.signal(t).square()[:, None] * spectrum.exp() + path.noise(t).square()[:, None]
        return 0.5 * (x.square() / variance).sum(1)

    def teacher(x: Tensor, t: Tensor) -> Tensor:
        return q.as_model(path, "score")(x, t) + 0.2 * x @ turn

    generator = torch.Generator().manual_seed(0)
    data = q.sample(2000, generator)
    noise = torch.randn(2000, 2, generator=generator, dtype=torch.float64)
    t = torch.rand(2000, generator=generator, dtype=torch.float64) * 0.98 + 0.01
    optimiser = torch.optim.Adam([spectrum], lr=0.1)
    for _ in range(60):
        optimiser.zero_grad()
        loss = energy_distillation_loss(energy, teacher, path, data, noise, t, prediction="score")
        loss.mean().backward()
        optimiser.step()
    assert torch.allclose(spectrum.detach().exp(), torch.tensor([1.5, 0.5], dtype=torch.float64), rtol=0.06)
    state = path.sample(data, noise, t)
    rest = (path.noise(t)[:, None] * 0.2 * state).square().mean(1)
    assert loss.mean().item() == pytest.approx(rest.mean().item(), rel=0.05)
    with pytest.raises(ValueError, match="did you mean 'score'"):
        energy_distillation_loss(energy, teacher, path, data, noise, t, prediction="scores")
