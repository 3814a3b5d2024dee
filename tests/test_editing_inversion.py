"""SDE and ODE inversion: exact retracing, orders, cycles between conditions, contraction."""

from __future__ import annotations

import math
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from pathline.interpolants import Gaussian, GaussianMixture, LinearPath, VPPath
from pathline.samplers import Level, Nodes, build_table, make_nodes, run, sample
from pathline.samplers.editing import (
    cycle_diffusion,
    editing_nodes,
    editing_table,
    forward_chain,
    inversion_table,
    invert_ode,
    invert_sde,
    renoise,
)
from pathline.samplers.guidance import ClassifierFree, PlusPlus

F64 = torch.float64
PATH = VPPath()
MIXTURE = GaussianMixture([0.5, 0.5], [[-2.0], [2.0]], std=[0.5, 1.0], classes=[0, 1])
MODEL = MIXTURE.as_model(PATH, "noise")


def nodes(steps: int, low: float = 1e-3, high: float = 0.6) -> Any:
    """Of the card: diffusion times 10⁻³ to 0.6, uniform."""
    return make_nodes(PATH, np.linspace(1 - high, 1 - low, steps + 1))


def images(count: int = 100, dtype: torch.dtype = F64) -> Tensor:
    return MIXTURE.sample(count, torch.Generator().manual_seed(0)).to(dtype)


@pytest.mark.parametrize("steps", [20, 100])
def test_sde_inversion_gives_the_image_back_to_rounding(steps: int) -> None:
    for dtype, bound in ((F64, 5e-15), (torch.float32, 2e-6)):
        x = images(dtype=dtype)
        for method, options in (("ddim", {"eta": 1.0}), ("ddim", {"eta": 0.3}), ("dpm++-sde", {})):
            table = build_table(method, nodes(steps), **options)
            found = invert_sde(table, MODEL, x, prediction="noise", seed=1)
            assert float((found.decode(MODEL) - x).abs().max()) < bound * (4 if method == "dpm++-sde" else 1)
    assert len(found.noises) == steps
    assert len(found.chain) == steps + 1


def test_any_method_with_one_noise_in_a_row_inverts_and_flows_too() -> None:
    flow = LinearPath()
    model, x = MIXTURE.as_model(flow, "velocity"), images()
    grid = make_nodes(flow, np.linspace(0.4, 0.98, 31))
    for method, options in (("sde", {}), ("er-sde", {}), ("ddim", {"eta": 1.0}), ("dpm++-sde-single", {})):
        found = invert_sde(build_table(method, grid, **options), model, x, prediction="velocity")
        assert float((found.decode(model) - x).abs().max()) < 5e-14, method
    gaps = []
    for steps in (20, 40, 80):
        grid = make_nodes(flow, np.asarray(flow.time_at(torch.linspace(-0.5, 3.0, steps + 1, dtype=F64))))
        table = build_table("ddim", grid, eta=1.0)
        mean, variance = invert_sde(table, model, images(2000), prediction="velocity").statistics()
        assert abs(mean) < 0.02
        gaps.append(variance - 1.0)  # O(step): the model's mean is not the posterior's on coarse grids
    assert [b / a for a, b in pairwise(gaps)] == pytest.approx([0.5, 0.5], abs=0.15)


def test_the_chain_is_the_noising_process() -> None:
    table = build_table("ddim", nodes(5), eta=1.0)
    x = torch.full((40000, 1), 1.5, dtype=F64)
    chain = forward_chain(table, x, seed=2)
    assert chain[-1] is x
    end, start = table.end, table.start
    keep = start.signal / end.signal
    assert float(chain[0].mean()) == pytest.approx(keep * 1.5, abs=0.02)
    assert float(chain[0].var()) == pytest.approx(start.noise**2 - (keep * end.noise) ** 2, abs=0.02)
    parts = torch.cat([forward_chain(table, x[i : i + 1], seed=2, samples=[i])[0] for i in range(3)])
    assert torch.equal(parts, chain[0][:3])
    with pytest.raises(ValueError, match="goes to more noise"):
        renoise(x, start, end, x)
    assert torch.equal(renoise(x, Level(1.0, 1.0, 0.0), Level(0.0, 0.5, 0.5), x), x)


def test_ddim_inversion_is_first_order_and_its_fixed_point_exact() -> None:
    x, errors = images(), []
    for steps in (20, 40, 80):
        start = invert_ode(nodes(steps), MODEL, x, prediction="noise")
        errors.append(
            float((sample(MODEL, start, grid=nodes(steps), method="ddim", prediction="noise") - x).abs().max())
        )
    assert 0.1 < errors[0] < 0.8
    assert [b / a for a, b in pairwise(errors)] == pytest.approx([0.5, 0.5], abs=0.1)
    exact = invert_ode(nodes(80), MODEL, x, prediction="noise", fixed_point=10)
    assert float((sample(MODEL, exact, grid=nodes(80), method="ddim", prediction="noise") - x).abs().max()) < 1e-10
    assert inversion_table(nodes(20), fixed_point=10).evaluations == 20 * 11


@pytest.mark.parametrize(("method", "order"), [("heun", 2), ("dpm++", 2), ("exp-adams", 2), ("runge-kutta", 4)])
def test_methods_of_higher_order_invert_with_it(method: str, order: int) -> None:
    """Adams methods begin cold, with a step of order one."""

    def grid(steps: int) -> Nodes:
        return make_nodes(PATH, np.asarray(PATH.time_at(torch.linspace(-1.2, 2.0, steps + 1, dtype=F64))))

    x = images(5)
    exact = invert_ode(grid(64), MODEL, x, method="runge-kutta", prediction="noise")
    errors = [invert_ode(grid(n), MODEL, x, method=method, prediction="noise") - exact for n in (16, 32)]
    coarse, fine = (float(error.abs().max()) for error in errors)
    assert coarse / fine > 2 ** (order - 0.4)


def test_gaussian_data_turn_by_the_angle_between_levels() -> None:
    """On VP with N(0, 1) data a DDIM step multiplies by αα' + σσ', both ways."""
    data = Gaussian(torch.zeros(1, dtype=F64), variance=1.0).as_model(PATH)
    grid = nodes(3)
    factor = np.prod(
        [
            a.signal * b.signal + a.noise * b.noise
            for a, b in zip(map(grid.level, range(3)), map(grid.level, range(1, 4)), strict=True)
        ]
    )
    x = torch.ones(1, 1, dtype=F64)
    assert float(invert_ode(grid, data, x)) == pytest.approx(factor, abs=1e-12)
    assert float(sample(data, x, grid=grid, method="ddim")) == pytest.approx(factor, abs=1e-12)


def test_cycles_move_between_conditions_and_keep_what_both_share() -> None:
    x = MIXTURE.sample(400, torch.Generator().manual_seed(0), labels=0)
    source, target = ({"labels": torch.full((400,), k)} for k in (0, 1))
    table = build_table("ddim", make_nodes(PATH, np.linspace(0.0, 0.999, 41)), eta=1.0)
    given: dict[str, Any] = {"prediction": "noise", "source": source}
    same = cycle_diffusion(table, MODEL, x, target=source, **given)
    assert torch.allclose(same, x, atol=1e-11)
    moved = cycle_diffusion(table, MODEL, x, target=target, **given)
    assert abs(float(moved.mean()) - 2.0) < 0.2
    assert abs(float(moved.std()) - 1.0) < 0.2
    assert float(torch.corrcoef(torch.cat([x, moved], 1).T)[0, 1]) > 0.8  # one noise, one place in both classes
    free = ClassifierFree(2.0, {"labels": torch.full((400,), -1)})
    guided = cycle_diffusion(table, MODEL, x, target=target, source_guidance=free, target_guidance=free, **given)
    assert float(guided.mean()) > 1.8


def test_cfgpp_inversion_mirrors_data_and_noise() -> None:
    labels, x = torch.ones(5, dtype=torch.int64), images(5)
    guidance, grid = PlusPlus(ClassifierFree(0.3, {"labels": torch.full((5,), -1)})), nodes(1)
    clean, noisy = grid.level(1), grid.level(0)
    found = invert_ode(grid, MODEL, x, prediction="noise", guidance=guidance, model_kwargs={"labels": labels})
    t = torch.full((5,), clean.time, dtype=F64)
    free, own = MODEL(x, t), MODEL(x, t, labels)
    data = (x - clean.noise * free) / clean.signal
    assert torch.allclose(found, noisy.signal * data + noisy.noise * (free + 0.3 * (own - free)), atol=1e-12)


def test_impossible_inversions_are_refused() -> None:
    x = images(3)
    cases = [
        (lambda: invert_sde(build_table("ddim", nodes(4)), MODEL, x), "draws no noise"),
        (lambda: invert_sde(build_table("ddim", make_nodes(PATH, "time", 4), eta=1.0), MODEL, x), "final='path'"),
        (lambda: invert_sde(build_table("seeds", nodes(4)), MODEL, x), "one noise"),
        (lambda: inversion_table(nodes(4), "ddim", eta=1.0), "no inverse flow"),
        (lambda: inversion_table(nodes(4), "heun", fixed_point=2), "plain 'ddim'"),
        (lambda: editing_nodes(PATH, 10, 0.0), "strength=0.0"),
        (lambda: editing_nodes(PATH, 10, 0.01), "strength=0.01"),
    ]
    for make, message in cases:
        with pytest.raises(ValueError, match=message):
            make()
    assert editing_table(PATH, 10, 0.6).evaluations == 6
    assert editing_table(PATH, 10, method="er-sde").stochastic


def contraction(zeta: float, x: Tensor, start: float, steps: int) -> Tensor:
    """The SDE of noise ζ·g from diffusion time `start` to near the data."""
    grid = make_nodes(PATH, np.linspace(1 - start, 1 - 1e-3, steps + 1))
    table = build_table("sde", grid, epsilon="sbdm", scale=zeta**2)
    return run(table, MODEL, x, prediction="noise", seed=5)


def divergence(x: Tensor, level: Level) -> float:
    """KL of a 300-bin histogram to the model's marginal."""
    edges = torch.linspace(-7, 7, 301, dtype=F64)
    counts = torch.histogram(x.flatten(), edges).hist / len(x)
    middle = 0.5 * (edges[1:] + edges[:-1])
    exact = MIXTURE.log_density(middle[:, None], level.signal, level.noise).exp() * (edges[1] - edges[0])
    return float(torch.where(counts > 0, counts * (counts / exact).log(), 0.0).sum())


def test_noise_contracts_an_edit_and_the_flow_does_not() -> None:
    """Card §7 (i): N(0, 1) data, edit N(μ, 1): KL μ²/2 → (μ²/2)·exp(−ζ²B)."""
    data = Gaussian(torch.zeros(1, dtype=F64), variance=1.0).as_model(PATH)
    log_signal = math.log(2.0)  # B = ln 4, so that signal at the start is ½
    first = float(PATH.time_at(torch.tensor(-0.5 * math.log(3.0), dtype=F64)))
    assert float(PATH.signal(first)) == pytest.approx(math.exp(-log_signal), abs=1e-6)
    grid = make_nodes(PATH, np.linspace(first, 1.0 - 1e-6, 101))
    for zeta, expected in ((0.0, 2.0), (1.0, 0.5)):
        x = 2.0 + torch.randn(8000, 1, generator=torch.Generator().manual_seed(1), dtype=F64)
        end = run(build_table("sde", grid, epsilon="sbdm", scale=zeta**2), data, x, seed=4)
        kl = 0.5 * (float(end.mean()) ** 2 + float(end.var()) - 1 - math.log(float(end.var())))
        assert kl == pytest.approx(expected, abs=0.09)


@pytest.mark.slow
def test_the_published_contraction_of_a_mixture() -> None:
    """Card §7 (ii): 0.88 at the start; 0.878, 0.593, 0.231 and 0.060 at the end for ζ = 0, ½, 1, 1½."""
    point = PATH.at(0.5)
    signal, noise = float(point.signal), float(point.noise)
    generator = torch.Generator().manual_seed(0)
    clean = MIXTURE.sample(50_000, generator)
    x = signal * clean + noise * torch.randn(clean.shape, generator=generator, dtype=F64) + 1.5
    level, end = Level(0.5, signal, noise), Level(1 - 1e-3, *(float(c) for c in PATH.at(1 - 1e-3)[:2]))
    start = divergence(x, level)
    assert start == pytest.approx(0.88, abs=0.02)
    found = [divergence(contraction(zeta, x, 0.5, 400), end) for zeta in (0.0, 0.5, 1.0, 1.5)]
    assert found == pytest.approx([0.878, 0.593, 0.231, 0.060], abs=0.02)
    assert abs(found[0] - start) < 0.01
