"""Guidance rules against their papers' formulas, closed-form laws, and each other."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from pathline.interpolants import EDMPath, Gaussian, GaussianMixture, GaussianPath, LinearPath, VPPath
from pathline.samplers import Hook, RunState, build_table, make_nodes, run, sample
from pathline.samplers.defaults import is_guided
from pathline.samplers.fitted import check_fit, described_fit
from pathline.samplers.guidance import (
    AutoGuidance,
    ClassifierFree,
    Interval,
    MultiCondition,
    Pair,
    Place,
    PlusPlus,
    PrecisionWeighted,
    Projected,
    Rescaled,
    Scheduled,
    StepMap,
)
from pathline.samplers.guidance.modifiers import parallel, variance_weights
from pathline.samplers.nodes import Level

PAIR = GaussianMixture([0.5, 0.5], [[-1.5, 0.2, 0.1], [1.4, 0.5, -0.3]], std=[0.2, 0.4], classes=[0, 1])
DATA = Place(Level(0.5, 1.0, 1.0), "data", step=0, steps=4)
F64 = torch.float64


def free(batch: int = 4, scale: float = 3.0, batched: bool = False) -> ClassifierFree:
    return ClassifierFree(scale, {"labels": torch.full((batch,), -1)}, batched)


def drawn(path: GaussianPath, guidance: Any, batch: int = 4, **options: Any) -> Tensor:
    x = path.prior((batch, 3), torch.Generator().manual_seed(0), dtype=F64)
    given = {"path": path, "steps": 6, "method": "dpm++", "prediction": "data"} | options
    model = PAIR.as_model(path, given["prediction"])
    return sample(model, x, guidance=guidance, model_kwargs={"labels": torch.arange(batch) % 2}, **given)


def combined(rule: Pair, own: Any, reference: Any, place: Place = DATA) -> list[float]:
    own, reference = (torch.tensor([values], dtype=F64) for values in (own, reference))
    return rule.combine(own, reference, torch.zeros_like(own), place)[0].tolist()


# --- one formula each -------------------------------------------------------------------------------------


def test_projected_guidance_on_the_published_numbers() -> None:
    own, reference, w = (3.0, 4.0), (1.0, 4.0), ClassifierFree(4.0, {})
    assert combined(Projected(w), own, reference) == pytest.approx([6.84, 1.12])
    assert combined(Projected(w, eta=1.0), own, reference) == pytest.approx([9.0, 4.0])
    assert combined(Projected(w, norm=1.0), own, reference) == pytest.approx([4.92, 2.56])
    assert combined(Projected(w, norm=50.0), own, reference) == pytest.approx([6.84, 1.12])
    place = Place(Level(0.5, 1.0, 1.0), "data", step=0, steps=3)
    rule, changes = Projected(ClassifierFree(2.0, {}), eta=1.0, momentum=-0.5), []
    for step in range(3):
        place.step = step
        changes.append(combined(rule, own, reference, place)[0] - 3.0)
    assert changes == pytest.approx([2.0, 1.0, 1.5])


def test_momentum_advances_once_per_step_and_begins_anew_in_every_run_and_chunk() -> None:
    place = Place(Level(0.5, 1.0, 1.0), "data", step=0, steps=3)
    rule, found = Projected(ClassifierFree(2.0, {}), eta=1.0, momentum=-0.5), []
    for first in (True, False, True, False):
        place.first_stage = first
        found.append(combined(rule, (3.0, 4.0), (1.0, 4.0), place)[0] - 3.0)
    assert found == pytest.approx([2.0, 2.0, 1.0, 1.0])
    apg = [Projected(free(n), eta=0.3, norm=2.0, momentum=-0.5) for n in (4, 1)]
    for method in ("dpm++", "heun"):
        whole = drawn(VPPath(), apg[0], method=method)
        assert torch.equal(whole, drawn(VPPath(), apg[0], method=method))
        assert torch.allclose(whole, drawn(VPPath(), apg[1], method=method, chunk_size=1), atol=1e-13)
    assert not torch.allclose(whole, drawn(VPPath(), Projected(free(), eta=0.3, norm=2.0), method="heun"), atol=1e-3)


def test_memory_moves_with_particles_that_change_places() -> None:
    class Swap(Hook):
        def after_row(self, run: RunState) -> None:
            if run.row == 2:
                run.gather(torch.tensor([2, 0, 3, 1]))

    for rule in (Projected(free(), eta=0.5, momentum=-0.5), PrecisionWeighted(free())):
        plain, moved = drawn(VPPath(), rule), drawn(VPPath(), rule, hooks=[Swap()])
        assert torch.allclose(moved, plain[[2, 0, 3, 1]], atol=1e-12)


def test_fitted_tables_tell_compositions_apart() -> None:
    one, other = Rescaled(free(), 0.5), Rescaled(free(), 0.7)
    made = build_table("ddim", make_nodes(VPPath(), "logsnr", 3))
    for guidance, accepted in ((one, True), (other, False), (free(), False), (None, False)):
        fitted = replace(made, provenance=described_fit(path=VPPath(), prediction="data", guidance=one))
        if accepted:
            check_fit(fitted, path=VPPath(), prediction="data", guidance=guidance)
        else:
            with pytest.raises(ValueError, match="was fitted to guidance"):
                check_fit(fitted, path=VPPath(), prediction="data", guidance=guidance)
    check_fit(replace(made, provenance={"guidance": 3.0}), guidance=free(scale=3.0))


def test_the_projected_part_is_orthogonal_to_the_prediction() -> None:
    change, data = torch.randn(2, 5, 3, 4, generator=torch.Generator().manual_seed(1), dtype=F64)
    rest = change - parallel(change, data)
    assert float((rest * data).sum((1, 2)).abs().max()) < 1e-12
    assert torch.equal(parallel(change, torch.zeros_like(data)), torch.zeros_like(data))


def test_rescaled_guidance_has_the_spread_of_the_conditional_output() -> None:
    own, reference = torch.randn(2, 4, 3, 5, generator=torch.Generator().manual_seed(2), dtype=F64)
    full = Rescaled(ClassifierFree(7.5, {}), 1.0).combine(own, reference, own, None)
    assert torch.allclose(full.std((1, 2)), own.std((1, 2)), atol=1e-6)
    plain = ClassifierFree(7.5, {}).combine(own, reference, own, None)
    mixed = Rescaled(ClassifierFree(7.5, {}), 0.7).combine(own, reference, own, None)
    assert torch.allclose(mixed, 0.7 * full + 0.3 * plain, atol=1e-12)
    zero = torch.zeros(2, 3, 3, dtype=F64)
    assert torch.equal(Rescaled(ClassifierFree(0.0, {}), 0.7).combine(own[:2, :, :3], zero, zero, None), zero)


def test_weights_follow_the_variance_of_the_last_predictions() -> None:
    history = torch.tensor([[[-1.0, -2.0], [1.0, 2.0]]], dtype=F64)  # variances 1 and 4
    assert variance_weights(history)[0].tolist() == pytest.approx([0.4, 1.6])
    assert torch.equal(variance_weights(torch.ones(3, 4, 2)), torch.ones(3, 2))
    once = PrecisionWeighted(free(), weight_map=lambda history: torch.ones_like(history[:, 0]))
    assert torch.allclose(drawn(VPPath(), once), drawn(VPPath(), free()), atol=1e-12)
    rule = PrecisionWeighted(ClassifierFree(2.0, {}), window=2)
    place = Place(Level(0.5, 1.0, 1.0), "data", step=0, steps=3)
    assert combined(rule, (-1.0, -2.0), (0.0, 0.0), place) == pytest.approx([-2.0, -4.0])
    assert combined(rule, (1.0, 2.0), (0.0, 0.0), place) == pytest.approx([0.8, 6.4])


# --- pairs ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["noise", "velocity", "v"])
def test_linear_guidance_and_projection_do_not_depend_on_the_prediction(kind: str) -> None:
    for rule in (free(), Projected(free(), eta=0.2, norm=1.0), PrecisionWeighted(free())):
        by_data = drawn(VPPath(), rule)
        assert torch.allclose(by_data, drawn(VPPath(), rule, prediction=kind), atol=1e-8)
    assert not torch.allclose(by_data, drawn(VPPath(), free()), atol=1e-3)


def test_both_conventions_and_a_schedule_are_one_rule() -> None:
    cond = {"labels": torch.full((4,), -1)}
    assert torch.equal(drawn(VPPath(), ClassifierFree.original(2.0, cond)), drawn(VPPath(), ClassifierFree(3.0, cond)))
    assert torch.equal(drawn(VPPath(), Scheduled(free(), [3.0] * 6)), drawn(VPPath(), free()))
    assert torch.equal(drawn(VPPath(), Scheduled(free(), lambda place: 1.0)), drawn(VPPath(), None))
    with pytest.raises(ValueError, match="2 scales for 6 steps"):
        drawn(VPPath(), Scheduled(free(), [3.0, 2.0]))


def test_guided_flow_of_two_gaussians_is_the_known_one() -> None:
    """N(0, 4) and N(1, 1) at scale 2 end at mean 1.375 and variance 0.249, not at the geometric mean's N(8/7, 4/7)."""
    path = VPPath()
    wide, narrow = (Gaussian(torch.tensor([mean], dtype=F64), variance=v) for mean, v in ((0.0, 4.0), (1.0, 1.0)))
    models = {0: wide.as_model(path), 1: narrow.as_model(path)}

    def network(x: Tensor, t: Tensor, which: int = 1) -> Tensor:
        return models[which](x, t)

    x = torch.linspace(-2, 2, 5, dtype=F64)[:, None]
    guided = ClassifierFree(2.0, {"which": 0}, batched=False)
    weak = AutoGuidance(2.0, models[0])
    options: dict[str, Any] = {"path": path, "method": "dpm++", "order": 2, "steps": 150, "model_kwargs": {"which": 1}}
    result = sample(network, x, guidance=guided, **options)
    slope = float((result[-1] - result[0]) / (x[-1] - x[0]))
    assert abs(float(result[2]) - 1.375) < 0.02
    assert abs(slope**2 - 0.249) < 0.01
    auto = sample(
        lambda x, t, which: models[1](x, t),
        x,
        guidance=AutoGuidance(2.0, lambda x, t, which: models[0](x, t)),
        **options,
    )
    assert torch.allclose(auto, result, atol=1e-12)
    noisy = Gaussian(torch.tensor([0.0], dtype=F64), variance=4.0).as_model(path, "noise")
    given = options | {"model_kwargs": {}, "steps": 20}
    assert torch.allclose(
        sample(models[1], x, guidance=AutoGuidance(2.0, noisy), **given),
        sample(models[1], x, guidance=weak, **given),
        atol=1e-9,
    )


def test_guidance_between_equal_covariances_is_exact_and_autoguidance_sharpens() -> None:
    path, x = VPPath(), torch.linspace(-2, 2, 5, dtype=F64)[:, None]
    near, far = (Gaussian(torch.tensor([mean], dtype=F64), variance=1.0).as_model(path) for mean in (1.0, 0.0))
    options: dict[str, Any] = {"path": path, "method": "dpm++", "steps": 60}
    found = sample(near, x, guidance=AutoGuidance(2.0, far), **options)
    assert torch.allclose(found, x + 2.0, atol=0.02)  # N(0, 1) and N(1, 1) at scale 2: N(2, 1)
    strong, weak = (Gaussian(torch.zeros(1, dtype=F64), variance=v).as_model(path, "score") for v in (1.0, 4.0))
    guided = AutoGuidance(2.0, lambda x, t: weak(x, t))(strong, x, torch.ones(5, dtype=F64), {})
    assert torch.allclose(guided, -1.75 * x, atol=2e-3)  # −(2 − ¼)·x


def test_several_conditions_meet_between_them() -> None:
    labels = [{"labels": torch.full((4,), k)} for k in (0, 1)]
    rule = MultiCondition([1.0, 0.0], labels, {"labels": torch.full((4,), -1)})
    given: dict[str, Any] = {"path": VPPath(), "method": "ddim", "steps": 8}
    x = VPPath().prior((4, 3), torch.Generator().manual_seed(0), dtype=F64)
    model = PAIR.as_model(VPPath())
    assert torch.allclose(sample(model, x, guidance=rule, **given), sample(model, x, model_kwargs=labels[0], **given))
    with pytest.raises(ValueError, match="1 weights for 2 conditions"):
        MultiCondition([1.0], labels, {})


# --- intervals and the count of calls ---------------------------------------------------------------------


@pytest.mark.parametrize("by", ["sigma", "step", "fraction"])
def test_an_interval_of_everything_is_guidance_and_of_nothing_the_conditional(by: str) -> None:
    everything = {"sigma": (0.0, 1e9), "step": (0, 99), "fraction": (0.0, 1.0)}[by]
    for method in ("dpm++", "heun"):
        whole = drawn(VPPath(), Interval(free(), *everything, by=by), method=method)
        assert torch.equal(whole, drawn(VPPath(), free(), method=method))
        nothing = drawn(VPPath(), Interval(free(), -2.0 if by == "step" else 0.0, -1.0 if by == "step" else 0.0, by=by))
        assert torch.equal(nothing, drawn(VPPath(), None))


def test_the_published_interval_counts_calls_by_step_and_by_level() -> None:
    """Steps 17 to 22 of the 32-step EDM grid (released switch), and the same levels judged for each stage."""
    path = EDMPath(sigma_min=0.002, sigma_max=80.0)
    x = path.prior((2, 3), torch.Generator().manual_seed(0), dtype=F64)
    nodes = make_nodes(path, "karras", 32)
    sigmas = nodes.noise / nodes.signal
    assert sigmas[17:24] == pytest.approx([1.6086, 1.1743, 0.8446, 0.5977, 0.4154, 0.2830, 0.1886], abs=1e-4)
    seen: list[int] = []

    def network(x: Tensor, t: Tensor, labels: Tensor) -> Tensor:
        seen.append(len(x))
        return PAIR.as_model(path)(x, t, labels)

    given: dict[str, Any] = {
        "grid": nodes,
        "method": "heun",
        "full": True,
        "model_kwargs": {"labels": torch.tensor([0, 1])},
    }
    by_step = sample(network, x, guidance=Interval(free(2), 17, 22, by="step"), **given)
    assert (len(seen), by_step.evaluations, by_step.options["forwards"]) == (63 + 12, 63, 63 + 12)
    seen.clear()
    by_level = sample(network, x, guidance=Interval(free(2), 0.5, 1.0), **given)
    assert len(seen) == by_level.options["forwards"] == 63 + 4  # two levels, each met by two stages
    assert not torch.allclose(by_level.sample, by_step.sample, atol=1e-3)
    batched = Interval(free(2, batched=True), 17, 22, by="step")
    assert sample(network, x, guidance=batched, **given).options["forwards"] == 63 + 12
    assert sample(network, x, **given).options["forwards"] == 63


def test_steps_are_told_from_the_levels_of_rows() -> None:
    path = EDMPath()
    churned = StepMap(build_table("edm", make_nodes(path, "karras", 5), churn=10.0))
    rows = [k for k, row in enumerate(churned.table.rows) if row.calls_network]
    assert [churned.step(k) for k in rows] == [0, 0, 1, 1, 2, 2, 3, 3, 4]
    assert [churned.first_stage(k) for k in rows] == [True, False] * 4 + [True]
    for method, expected in (("dpm++", [0, 1, 2]), ("heun", [0, 0, 1, 1, 2]), ("unipc", [0, 1, 2])):
        steps = StepMap(build_table(method, make_nodes(VPPath(), "logsnr", 3)))
        assert [steps.step(k) for k in range(len(steps.table.rows))] == expected
    middle = StepMap(build_table("dpm-single", make_nodes(VPPath(), "logsnr", 6), order=3))
    assert [middle.step(k) for k in range(3)] == sorted(middle.step(k) for k in range(3))


def test_momentum_waits_or_begins_anew_across_a_gap() -> None:
    def of(forget: bool) -> Tensor:
        apg = Projected(free(), eta=1.0, momentum=-0.5)
        return drawn(VPPath(), _Gap(apg, 1, 1, by="step", forget=forget))

    class _Gap(Interval):
        def inside(self, place: Place) -> bool:
            return not super().inside(place)

    assert not torch.allclose(of(True), of(False), atol=1e-6)


# --- CFG++ ------------------------------------------------------------------------------------------------


def test_a_step_of_cfgpp_is_guidance_at_a_scale_that_depends_on_the_step() -> None:
    path = VPPath()
    lam = torch.tensor([0.0, 0.1, 5.0], dtype=F64)
    table = build_table("ddim", make_nodes(path, path.time_at(lam).tolist(), final="path"))
    assert PlusPlus(ClassifierFree(0.6, {})).scale_of_row(table, 0, 0.6) == pytest.approx(6.3050, abs=1e-4)


@pytest.mark.parametrize("path", [VPPath(), EDMPath(), LinearPath()], ids=lambda path: path.name)
@pytest.mark.parametrize("method", ["ddim", "euler", "euler-ancestral", "dpm++", "ddim1"])
def test_cfgpp_is_the_published_loop(path: GaussianPath, method: str) -> None:
    """Guided data, unconditional noise; multistep history and noise as released."""
    strength, steps, labels = 0.6, 7, torch.tensor([0, 1, 0, 1])
    nodes = make_nodes(path, "logsnr", steps)
    x0 = path.prior((4, 3), torch.Generator().manual_seed(3), dtype=F64)
    network, name = PAIR.as_model(path), "ddim" if method == "ddim1" else method
    options = {"variant": "midpoint"} if method == "dpm++" else {"eta": 1.0} if method == "ddim1" else {}
    zs = torch.randn(steps, 4, 3, generator=torch.Generator().manual_seed(4), dtype=F64)
    x, before, h_before = x0, None, 0.0
    for i in range(steps):
        here, there = nodes.level(i), nodes.level(i + 1)
        t = torch.full((4,), here.time, dtype=F64)
        plain = network(x, t)
        guided = plain + strength * (network(x, t, labels) - plain)
        noise = (x - here.signal * plain) / here.noise
        down, up = there.noise, 0.0
        h = there.lam - here.lam
        if name == "euler-ancestral" or options.get("eta"):
            up = there.noise * (1 - torch.tensor(-2 * h).exp().item()) ** 0.5
            down = (there.noise**2 - up**2) ** 0.5
        moved = there.signal * guided + down * noise + up * zs[i]
        if (
            method == "dpm++"
            and before is not None
            and 0 < i < steps - 1
            and here.signal > 0
            and torch.isfinite(torch.tensor(h_before))
        ):
            r = h_before / h
            moved = moved + there.signal * (1 - torch.tensor(-h).exp().item()) * (guided - before) / (2 * r)
        x, before, h_before = moved, plain, h
    guidance = PlusPlus(ClassifierFree(strength, {"labels": torch.full((4,), -1)}, batched=False))
    table = build_table(name, nodes, **options | ({"lower_order_final": False} if method == "dpm++" else {}))
    found = run(
        table, network, x0, guidance=guidance, model_kwargs={"labels": labels}, noise=lambda row, slot, like: zs[row]
    )
    assert torch.allclose(found, x, atol=1e-9), float((found - x).abs().max())
    zero = PlusPlus(ClassifierFree(0.0, {"labels": torch.full((4,), -1)}, batched=False))
    unconditional = run(table, network, x0, noise=lambda row, slot, like: zs[row])
    assert torch.allclose(
        run(table, network, x0, guidance=zero, model_kwargs={"labels": labels}, noise=lambda row, slot, like: zs[row]),
        unconditional,
        atol=1e-12,
    )


def test_cfgpp_refuses_what_is_not_a_step() -> None:
    rule = PlusPlus(free(scale=0.5))
    for method in ("heun", "unipc", "dopri5"):
        with pytest.raises(ValueError, match=r"not one whole step|adaptive"):
            drawn(VPPath(), rule, method=method, **({"steps": None} if method == "dopri5" else {}))
    with pytest.raises(ValueError, match="strength in"):
        PlusPlus(free(scale=1.5))


# --- composition and refusals -----------------------------------------------------------------------------


def test_compositions_nest() -> None:
    weak = AutoGuidance(2.0, GaussianMixture([1.0], [[0.0, 0.0, 0.0]], std=[1.0]).as_model(VPPath()), {"labels": None})
    whole = Rescaled(Interval(Projected(weak, eta=0.5, norm=1.0, momentum=-0.3), 1, 3, by="step"), 0.5)
    result = drawn(VPPath(), whole)
    assert bool(result.isfinite().all())
    assert not torch.allclose(result, drawn(VPPath(), weak), atol=1e-3)
    off = Rescaled(Interval(Projected(weak, eta=1.0), 0, 9, by="step"), 0.0)
    assert torch.allclose(drawn(VPPath(), off), drawn(VPPath(), weak), atol=1e-12)
    assert is_guided(Interval(free(scale=7.5), 0, 1))
    assert not is_guided(Rescaled(free(scale=1.5)))
    assert is_guided(PlusPlus(free(scale=0.5)))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Projected(Rescaled(free())), "directly around ClassifierFree"),
        (lambda: Rescaled(free(), 1.5), "factor=1.5"),
        (lambda: Interval(free(), 2.0, 1.0), "no interval"),
        (lambda: Interval(free(), 0.0, 1.0, by="time"), "kind of interval"),
        (lambda: Interval(lambda *a: None, 0.0, 1.0), "two branches"),
        (lambda: Projected(free(), norm=-1.0), "norm=-1.0"),
        (lambda: PrecisionWeighted(free(), window=1), "window=1"),
    ],
)
def test_impossible_guidance_is_refused(make: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()


def test_adaptive_methods_take_guidance_that_needs_no_steps() -> None:
    given: dict[str, Any] = {"method": "dopri5", "steps": None, "rtol": 1e-3, "atol": 1e-4}
    apg = Projected(free(), eta=0.2)
    by_level = drawn(VPPath(), Interval(apg, 0.3, 3.0), **given)
    assert not torch.allclose(by_level, drawn(VPPath(), apg, **given), atol=1e-3)
    with pytest.raises(ValueError, match="needs steps"):
        drawn(VPPath(), Interval(apg, 1, 2, by="step"), **given)
    with pytest.raises(ValueError, match=r"momentum=-0\.5"):
        drawn(VPPath(), Projected(free(), momentum=-0.5), **given)
