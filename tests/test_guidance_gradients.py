"""Guidance by gradients on linear-Gaussian problems, where the guided law is known."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from pathline.interpolants import Gaussian, GaussianMixture, LinearPath, VPPath
from pathline.samplers import build_table, make_nodes, run, sample
from pathline.samplers.guidance import (
    ClassifierFree,
    ClassifierGuidance,
    CostGuidance,
    InnerOptimisation,
    attractor,
    between_classes,
    repeller,
)

F64 = torch.float64
PATH = VPPath()
PRIOR = Gaussian(torch.zeros(1, dtype=F64), variance=1.0)
Y, R = 2.0, 0.5


def noisy(x: Tensor, t: Tensor) -> Tensor:
    """log p(y|x_t) of y = data + R·noise for data of the prior."""
    signal, noise = (c[:, None] for c in (PATH.signal(t), PATH.noise(t)))
    return (-((Y - signal * x) ** 2) / (2 * (R**2 + noise**2)))[:, 0]


def law(
    guidance: Any, *, count: int = 20000, steps: int = 60, method: str = "sde", **options: Any
) -> tuple[float, float]:
    x = PATH.prior((count, 1), torch.Generator().manual_seed(0), dtype=F64)
    grid = {"method": method, "grid": "logsnr", "steps": steps, "path": PATH, "prediction": "noise"} | options
    found = sample(PRIOR.as_model(PATH, "noise"), x, guidance=guidance, seed=1, **grid)
    return float(found.mean()), float(found.var())


def test_classifier_guidance_of_the_exact_likelihood_gives_the_posterior() -> None:
    mean, variance = law(ClassifierGuidance(1.0, noisy), method="dpm++-sde", steps=100)
    assert abs(mean - Y / (1 + R**2)) < 0.03  # N(1.6, 0.2); standard error 0.003
    assert abs(variance - R**2 / (1 + R**2)) < 0.02


@pytest.mark.parametrize("kind", ["data", "noise", "velocity", "v"])
def test_classifier_guidance_is_the_same_field_for_every_prediction(kind: str) -> None:
    x = PATH.prior((3, 1), torch.Generator().manual_seed(0), dtype=F64)
    given: dict[str, Any] = {"path": PATH, "steps": 5, "method": "dpm++", "guidance": ClassifierGuidance(2.0, noisy)}
    by_score = sample(PRIOR.as_model(PATH, "score"), x, prediction="score", **given)
    assert torch.allclose(by_score, sample(PRIOR.as_model(PATH, kind), x, prediction=kind, **given), atol=1e-9)
    around = ClassifierGuidance(2.0, noisy, inner=ClassifierFree(3.0, {"extra": 0}, batched=False))
    nested = sample(
        lambda x, t, extra: PRIOR.as_model(PATH)(x, t), x, model_kwargs={"extra": 1}, **given | {"guidance": around}
    )
    assert torch.allclose(by_score, nested, atol=1e-9)


def test_the_ancestral_form_moves_the_mean_by_the_variance_of_the_step() -> None:
    table = build_table("ddim", make_nodes(PATH, "logsnr", 6), eta=1.0)
    x = PATH.prior((3, 1), torch.Generator().manual_seed(0), dtype=F64)
    network = PRIOR.as_model(PATH)
    states: list[Tensor] = []
    given: dict[str, Any] = {"noise": lambda row, slot, like: torch.zeros_like(like)}
    run(
        table,
        network,
        x,
        guidance=ClassifierGuidance(1.5, noisy, form="ancestral"),
        callback=lambda i: states.append(i.state),
        **given,
    )
    level, end = table.rows[0].level, table.rows[1].level
    plain: list[Tensor] = []
    run(table, network, x, callback=lambda i: plain.append(i.state), **given)
    spread = end.noise**2 * (1 - math.exp(2 * (level.lam - end.lam)))
    leaf = x.clone().requires_grad_()
    (slope,) = torch.autograd.grad(noisy(leaf, torch.full((3,), level.time, dtype=F64)).sum(), leaf)
    assert torch.allclose(states[0] - plain[0], 1.5 * spread * slope, atol=1e-12)


def test_a_cost_of_the_clean_estimate_is_too_sure_of_itself() -> None:
    """Backpropagation through D leaves out Var(data|x): mean 1.9634 and variance 0.1250 in place of 1.6 and 0.2."""
    cost = CostGuidance(lambda data: ((data - Y) ** 2)[:, 0] / (2 * R**2))
    mean, variance = law(cost, method="dpm++-sde", steps=150)
    assert abs(mean - 1.9634) < 0.02
    assert abs(variance - 0.1250) < 0.01
    clean = ClassifierGuidance(1.0, lambda data: -((data - Y) ** 2)[:, 0] / (2 * R**2), on_data=True)
    x = PATH.prior((3, 1), torch.Generator().manual_seed(0), dtype=F64)
    given: dict[str, Any] = {"path": PATH, "steps": 4, "method": "dpm++"}
    assert torch.equal(
        sample(PRIOR.as_model(PATH), x, guidance=clean, **given),
        sample(PRIOR.as_model(PATH), x, guidance=cost, **given),
    )


def test_clipping_and_inner_optimisation() -> None:
    x, t, level = torch.tensor([[0.5], [-0.5]], dtype=F64), 0.5, {}
    steep = CostGuidance(lambda data: 1e6 * data.abs().sum(1), clip=True)
    table = build_table("ddim", make_nodes(PATH, [t, 0.8]))
    seen: list[Tensor] = []
    for guidance in (steep, None):
        run(
            table,
            PRIOR.as_model(PATH, "score"),
            x,
            prediction="score",
            guidance=guidance,
            callback=lambda i: seen.append(i.output),
        )
    level = table.rows[0].level
    limit = level.noise**2 / level.signal / level.noise  # 1/noise in the score, as a shift of the data prediction
    assert torch.allclose(seen[0] - seen[1], torch.tensor([[-limit], [limit]], dtype=F64), atol=1e-12)
    to = InnerOptimisation(lambda data: 0.5 * (data - 0.3).square().sum(1), rate=1.0)
    found = sample(PRIOR.as_model(PATH), x, path=PATH, guidance=to, steps=4)
    assert torch.allclose(found, torch.full_like(found, 0.3), atol=1e-12)


def test_published_costs() -> None:
    data = torch.tensor([[[0.0, 0.0], [3.0, 4.0], [0.0, 1.0]]], dtype=F64)
    assert float(attractor(torch.ones(2, dtype=F64), torch.tensor([1.0, 0.0]))(data)) == pytest.approx((1 + 2 + 1) / 3)
    assert float(repeller(2.0)(data)) == pytest.approx(0.5)  # one pair is nearer than 2, at distance 1
    leaf = torch.zeros(1, 2, 2, dtype=F64, requires_grad=True)
    (slope,) = torch.autograd.grad(repeller(1.0)(leaf).sum(), leaf)
    assert bool(slope.isfinite().all())


def test_interpolation_between_two_classes_fills_the_gap() -> None:
    """½N(±2, ¼) with log p(k|x) of a sharp classifier: almost nothing lies within 0.5 of 0, guided almost all."""
    data = GaussianMixture([0.5, 0.5], [[-2.0], [2.0]], std=[0.5, 0.5])

    def classes(x: Tensor, t: Tensor) -> Tensor:
        return torch.nn.functional.logsigmoid(torch.cat([-16 * x, 16 * x], dim=1))

    x = PATH.prior((2000, 1), torch.Generator().manual_seed(0), dtype=F64)
    given: dict[str, Any] = {"path": PATH, "method": "ddim", "eta": 1.0, "steps": 100, "grid": "time", "seed": 3}
    model = data.as_model(PATH)
    rule = ClassifierGuidance(1.0, between_classes(classes, {0: 3.5, 1: 3.5}), form="ancestral")
    plain, guided = sample(model, x, **given), sample(model, x, guidance=rule, **given)
    assert float((plain.abs() < 0.5).double().mean()) < 0.01
    assert float((guided.abs() < 0.5).double().mean()) > 0.95
    leaf = torch.tensor([[0.0], [0.3], [-0.3]], dtype=F64, requires_grad=True)
    combined = between_classes(classes, {0: 3.5, 1: 3.5})(leaf, torch.zeros(3))
    (slope,) = torch.autograd.grad(combined.sum(), leaf)
    assert float(slope[0].abs()) < 1e-12
    expected = 3.5 * 16 * (1 - 2 * torch.sigmoid(16 * leaf.detach()))
    assert torch.allclose(slope, expected, atol=1e-9)


def test_at_pure_noise_a_gradient_adds_nothing_and_functions_are_checked() -> None:
    path = LinearPath()
    x = path.prior((3, 1), torch.Generator().manual_seed(0), dtype=F64)
    model = PRIOR.as_model(path, "velocity")
    found = sample(
        model, x, path=path, prediction="velocity", guidance=CostGuidance(lambda d: d.square().sum(1)), steps=6
    )
    assert bool(found.isfinite().all())
    for wrong, message in ((lambda d: d, "one value for each"), (lambda d: torch.zeros(3), "does not depend")):
        with pytest.raises(ValueError, match=message):
            sample(model, x, path=path, prediction="velocity", guidance=CostGuidance(wrong), steps=3)
    with torch.inference_mode():
        again = sample(
            model, x, path=path, prediction="velocity", guidance=CostGuidance(lambda d: d.square().sum(1)), steps=6
        )
    assert torch.equal(again, found)
