"""Densities by the probability flow against closed forms, and their estimators against each other."""

from __future__ import annotations

import functools
import math
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from pathline.interpolants import EDMPath, Gaussian, GaussianMixture, LinearPath, VPPath
from pathline.samplers import ClassifierFree, build_table, make_nodes, run
from pathline.samplers.likelihood import (
    Divergence,
    LogDensity,
    bits_per_dimension,
    dequantised,
    importance_weights,
    log_density,
    map_density,
    sample_with_density,
)
from pathline.samplers.likelihood.densities import log_prior

F64 = torch.float64
UNIT = Gaussian(torch.zeros(1, dtype=F64), variance=1.0)
PLANE = GaussianMixture([0.4, 0.6], [[-1.0, 0.5], [1.0, -0.3]], std=[0.4, 0.6], classes=[0, 1])
FLOW = LinearPath()


def drawn(count: int = 16) -> Tensor:
    return PLANE.sample(count, torch.Generator().manual_seed(0))


@pytest.mark.parametrize(("largest", "expected"), [(80.0, -1.1639007), (5.0, -1.1541292)])
def test_exploding_paths_give_the_closed_form_with_its_prior(largest: float, expected: float) -> None:
    path = EDMPath(sigma_min=0.002, sigma_max=largest)
    end = float(path.time_at(-math.log(0.002)))
    x = torch.tensor([[0.7]], dtype=F64)
    found = log_density(UNIT.as_model(path), x, path=path, rtol=1e-7, atol=1e-8, clean_time=end)
    assert float(found.log_density) == pytest.approx(expected, abs=2e-6)
    by_table = log_density(
        UNIT.as_model(path),
        x,
        path=path,
        method="runge-kutta",
        grid=np.asarray(path.time_at(torch.linspace(-math.log(largest), -math.log(0.002), 60, dtype=F64))),
    )
    assert float(by_table.log_density) == pytest.approx(expected, abs=2e-4)
    assert float(UNIT.log_density(x)) == pytest.approx(-1.1639385, abs=1e-7)


def test_a_mixture_on_a_flow_by_solver_and_by_table() -> None:
    x, model = drawn(), PLANE.as_model(FLOW, "velocity")
    exact = PLANE.log_density(x)
    found = log_density(model, x, path=FLOW, prediction="velocity", rtol=1e-6, atol=1e-7)
    assert float((found.log_density - exact).abs().max()) < 1e-3
    assert found.standard_error is None
    assert found.evaluations > 10
    for method, steps, bound in (("heun", 60, 3e-3), ("runge-kutta", 20, 1e-3)):
        by_table = log_density(model, x, path=FLOW, prediction="velocity", method=method, steps=steps, grid="time")
        assert float((by_table.log_density - exact).abs().max()) < bound, method
    vp = VPPath()
    noise = log_density(PLANE.as_model(vp, "noise"), x, path=vp, prediction="noise", rtol=1e-6, atol=1e-7)
    slightly = PLANE.log_density(x, *(float(c) for c in vp.at(1.0)[:2]))
    assert float((noise.log_density - slightly).abs().max()) < 5e-3


def by_method(name: str, steps: int, **options: Any) -> Tensor:
    vp = VPPath()
    times = np.asarray(vp.time_at(torch.linspace(-2.5, 3.0, steps + 1, dtype=F64)))
    given: dict[str, Any] = {"path": vp, "prediction": "noise", "method": name, "grid": times}
    return log_density(PLANE.as_model(vp, "noise"), drawn(4), **given, **options).log_density


@functools.cache
def converged() -> Tensor:
    return by_method("runge-kutta", 64)


@pytest.mark.parametrize(("method", "order"), [("euler", 1), ("dpm++", 2), ("ipndm", 2), ("runge-kutta", 4)])
def test_the_density_converges_with_the_order_of_the_method(method: str, order: int) -> None:
    options: dict[str, Any] = {"order": 2} if method == "ipndm" else {}
    counts = (8, 16) if order == 4 else (16, 32)
    coarse, fine = (float((by_method(method, n, **options) - converged()).abs().max()) for n in counts)
    assert coarse / fine > 2 ** (order - 0.5)


def test_the_density_integrates_to_one() -> None:
    line = GaussianMixture([0.5, 0.5], [[-1.0], [0.8]], std=[0.3, 0.5])
    x = torch.linspace(-5, 5, 401, dtype=F64)[:, None]
    found = log_density(line.as_model(FLOW, "velocity"), x, path=FLOW, prediction="velocity", rtol=1e-6, atol=1e-7)
    assert float(torch.trapezoid(found.log_density.exp(), x[:, 0])) == pytest.approx(1.0, abs=1e-3)


# --- estimators -------------------------------------------------------------------------------------------


def test_hutchinson_probes_have_the_known_mean_and_variance() -> None:
    matrix = torch.tensor([[1.0, 2.0, -0.5], [0.0, -1.0, 0.7], [0.3, 0.4, 2.0]], dtype=F64)
    x = torch.zeros(1, 3, dtype=F64)

    def field(s: Tensor) -> Tensor:
        return s @ matrix.T

    value, trace = Divergence("exact", x)(field, x + 1.0)
    assert torch.equal(value, field(x + 1.0))
    assert float(trace) == pytest.approx(2.0)
    half = 0.5 * (matrix + matrix.T)
    off = half - torch.diag(half.diag())
    for kind, expected in (("rademacher", 2 * off.square().sum()), ("gaussian", 2 * half.square().sum())):
        many = x.expand(10000, 3)
        estimates = Divergence(kind, many)(field, many)[1][:, 0]
        error = math.sqrt(float(expected) / 10000)
        assert abs(float(estimates.mean()) - 2.0) < 4 * error
        assert float(estimates.var()) == pytest.approx(float(expected), rel=0.1)
    diagonal = Divergence("rademacher", x, probes=20)(lambda s: s * matrix.diag(), x)[1]
    assert float(diagonal.var()) < 1e-24
    assert float(Divergence("exact", x)(lambda s: torch.ones_like(s), x)[1]) == 0.0


def test_random_probes_estimate_the_exact_density_with_an_error() -> None:
    x, model = drawn(8), PLANE.as_model(FLOW, "velocity")
    given: dict[str, Any] = {"path": FLOW, "prediction": "velocity", "method": "heun", "steps": 8, "grid": "time"}
    exact = log_density(model, x, **given)
    found = log_density(model, x, divergence="rademacher", probes=40, **given)
    assert found.standard_error is not None
    assert bool(((found.log_density - exact.log_density).abs() < 4.5 * found.standard_error + 1e-9).all())
    assert found.evaluations == exact.evaluations
    part = log_density(model, x[2:4], divergence="rademacher", probes=40, samples=[2, 3], **given)
    assert torch.allclose(part.log_density, found.log_density[2:4], atol=1e-12)
    one = log_density(model, x, divergence="gaussian", **given)
    assert one.standard_error is None


# --- samples and their densities --------------------------------------------------------------------------


def test_sampling_forward_and_back_cancels() -> None:
    model = PLANE.as_model(FLOW, "velocity")
    table = build_table("heun", make_nodes(FLOW, "time", 50), lower_order_final=False)
    start = FLOW.prior((8, 2), torch.Generator().manual_seed(1), dtype=F64)
    found = sample_with_density(table, model, start, prediction="velocity")
    assert torch.equal(found.data, run(table, model, start, prediction="velocity"))
    assert float((found.log_density - PLANE.log_density(found.data)).abs().max()) < 2e-2
    back = log_density(model, found.data, path=FLOW, prediction="velocity", rtol=1e-6, atol=1e-7)
    assert float((back.latent - start).abs().max()) < 1e-2
    assert float((back.log_density - found.log_density).abs().max()) < 2e-2


@pytest.mark.parametrize("method", ["dpm++", "unipc", "heun"])
def test_the_density_of_the_numerical_map_is_exact(method: str) -> None:
    """For Gaussian data the map is linear: its density is a Gaussian's, whatever the method gets wrong."""
    vp = VPPath()
    data = Gaussian(torch.tensor([1.0, -1.0], dtype=F64), torch.tensor([[1.0, 0.6], [0.6, 0.5]], dtype=F64))
    model, table = data.as_model(vp), build_table(method, make_nodes(vp, "logsnr", 5))
    start = vp.prior((4, 2), torch.Generator().manual_seed(1), dtype=F64)
    found = map_density(table, model, start)
    zero = run(table, model, torch.zeros(1, 2, dtype=F64))
    columns = torch.cat([run(table, model, torch.eye(2, dtype=F64)[k : k + 1]) - zero for k in range(2)])
    expected = log_prior(start, table.start) - columns.det().abs().log()
    assert torch.allclose(found.log_density, expected, atol=1e-10)
    assert torch.allclose(found.data, run(table, model, start), atol=1e-12)
    assert found.evaluations == table.evaluations


def test_importance_weights_of_shifted_normals() -> None:
    x = torch.randn(200_000, generator=torch.Generator().manual_seed(0), dtype=F64)
    found = importance_weights(-0.5 * (x - 0.5) ** 2, -0.5 * x**2)
    assert found.log_constant == pytest.approx(0.0, abs=4 * found.standard_error)
    assert found.effective == pytest.approx(math.exp(-0.25), abs=0.01)
    assert float(found.mean(x)) == pytest.approx(0.5, abs=0.01)
    for wrong in (torch.full((4,), -math.inf), torch.full((4,), math.nan)):
        with pytest.raises(ValueError, match="all zero"):
            importance_weights(wrong, torch.zeros(4))


def test_weights_of_a_coarse_sampler_correct_it() -> None:
    """Eight calls are biased; weighted by the density of the map itself they are not."""
    vp = VPPath()
    line = GaussianMixture([0.3, 0.7], [[-1.0], [1.0]], std=[0.5, 0.5])
    table = build_table("ddim", make_nodes(vp, "logsnr", 8, final="path"))
    start = vp.prior((20000, 1), torch.Generator().manual_seed(1), dtype=F64)
    found = map_density(table, line.as_model(vp), start)
    weights = importance_weights(line.log_density(found.data), found.log_density)
    assert abs(weights.log_constant) < 4 * weights.standard_error
    power, exact = found.data[:, 0].square(), float(line.covariance[0, 0] + line.mean[0] ** 2)
    assert abs(float(weights.mean(power)) - exact) < 0.02
    assert abs(float(power.mean()) - exact) > 0.04


# --- bits -------------------------------------------------------------------------------------------------


def test_bits_of_eight_bit_data() -> None:
    uniform = torch.full((3,), -math.log(2.0) * 10)  # the density ½ in each of ten elements of [−1, 1]
    assert torch.allclose(bits_per_dimension(uniform, 10), torch.full((3,), 8.0))
    assert torch.allclose(bits_per_dimension(torch.zeros(1), 5), torch.full((1,), 7.0))
    assert float(bits_per_dimension(torch.zeros(1), 5, levels=17, low=0.0)) == pytest.approx(math.log2(17))
    pixels = torch.arange(256).repeat(4, 1)
    found = dequantised(pixels, generator=torch.Generator().manual_seed(0), dtype=F64)
    assert torch.equal(((found + 1) * 128).floor().long(), pixels)
    for bad in (torch.tensor([256]), torch.tensor([-1]), torch.tensor([0.5])):
        with pytest.raises(ValueError, match="whole numbers"):
            dequantised(bad)


# --- refusals ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"method": "nothing"}, "method='nothing'"),
        ({"method": "dopri5", "steps": 4}, "steps belong"),
        ({"method": "ddim", "eta": 1.0}, "draws noise"),
        ({"method": "dpm", "grid": [0.0, 0.5, 0.9]}, "stores data and noise"),
        ({"method": "dpm++", "grid": [0.1, 0.5, 1.0]}, "infinite at noise 0"),
        ({"divergence": "exact", "probes": 3}, "probes=3"),
        ({"divergence": "trace"}, "divergence"),
        ({"path": None}, "path is missing"),
    ],
)
def test_impossible_densities_are_refused(given: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        log_density(
            PLANE.as_model(FLOW, "velocity").__call__, drawn(2), **{"path": FLOW, "prediction": "velocity"} | given
        )


def test_guided_and_conditional_densities() -> None:
    x, labels = drawn(4), torch.tensor([0, 1, 0, 1])
    given: dict[str, Any] = {"path": FLOW, "prediction": "velocity", "rtol": 1e-6, "atol": 1e-7}
    model = PLANE.as_model(FLOW, "velocity")
    conditional = log_density(model, x, model_kwargs={"labels": labels}, **given)
    assert torch.allclose(conditional.log_density, PLANE.log_density(x, labels=labels), atol=1e-3)
    free = ClassifierFree(1.5, {"labels": torch.full((4,), -1)})
    guided: LogDensity = log_density(model, x, model_kwargs={"labels": labels}, guidance=free, **given)
    assert not torch.allclose(guided.log_density, conditional.log_density, atol=1e-2)
