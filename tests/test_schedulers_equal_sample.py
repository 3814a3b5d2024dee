"""A pipeline's loop with a scheduler is the same table as `sample`, for every method and both families."""

from collections.abc import Iterable
from typing import Any

import diffusers
import numpy as np
import pytest
import torch
from torch import Tensor

from pathline.samplers import AnalyticStart, from_diffusers, method_info, sample
from pathline.samplers.schedulers import HeunScheduler, PathlineScheduler
from support.schedulers import METHODS, latents, make, network, steps_over

FAMILIES = ("epsilon", "v_prediction", "sample", "flow")


def made(family: str, **pathline: Any) -> PathlineScheduler:
    if family == "flow":
        return make("flow", **pathline)
    stock = diffusers.DDPMScheduler(timestep_spacing="trailing", prediction_type=family, clip_sample=False)
    return PathlineScheduler.from_config(stock.config, pathline=pathline)


def loop(scheduler: PathlineScheduler, x: Tensor, steps: int, **lists: Any) -> Tensor:
    scheduler.set_timesteps(steps, **lists)
    return steps_over(scheduler, x, scheduler.timesteps)


def sigmas(family: str, steps: int) -> dict[str, Any]:
    """Flow levels whose labels are exact in float32, so that a float64 run sees the labels of `sample`."""
    return {"sigmas": np.arange(64, 0, -64 // steps)[:steps] / 64} if family == "flow" else {}


def cases() -> list[tuple[str, dict[str, Any]]]:
    return [
        (name, dict(case.options))
        for name in METHODS
        for case in method_info(name).cases
        if case.options.get("solver") != "heun"
    ]


def test_noise_before_the_first_call_is_refused() -> None:
    scheduler = made("flow", method="sde", options={"solver": "heun"})
    with pytest.raises(ValueError, match="adds noise before its first network call"):
        scheduler.set_timesteps(3)


@pytest.mark.parametrize("family", ["epsilon", "flow"])
@pytest.mark.parametrize(("method", "options"), cases(), ids=str)
def test_loop_equals_sample(family: str, method: str, options: dict[str, Any]) -> None:
    scheduler = made(family, method=method, options=options, seed=5)
    for steps in (1, 2, 7):
        ours = loop(scheduler, latents(), steps, **sigmas(family, steps))
        wrapped = from_diffusers(network, scheduler)
        theirs = sample(wrapped, latents(), method=method, grid=scheduler.nodes, seed=5, **options)
        tolerance = 1e-11 if on_nodes(scheduler) else 1e-6  # labels between nodes are rounded to float32
        torch.testing.assert_close(ours, theirs, rtol=tolerance, atol=tolerance * float(theirs.abs().max()))


@pytest.mark.parametrize(("method", "options"), cases(), ids=str)
def test_momentum_on_any_method_equals_sample(method: str, options: dict[str, Any]) -> None:
    options = {**options, "heavy_ball": 0.8}
    scheduler = made("flow", method=method, options=options, seed=5)
    try:
        ours = loop(scheduler, latents(), 5)
    except ValueError as error:
        assert "heavy-ball momentum needs" in str(error)  # noqa: PT017
        return
    wrapped = from_diffusers(network, scheduler)
    theirs = sample(wrapped, latents(), method=method, grid=scheduler.nodes, seed=5, **options)
    torch.testing.assert_close(ours, theirs, rtol=1e-6, atol=1e-6 * float(theirs.abs().max()))


def on_nodes(scheduler: PathlineScheduler) -> bool:
    """True where every network call is made on a node, so that its label is exact."""
    return all(row.level.time in scheduler.nodes.time for row in scheduler.table.rows if row.calls_network)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("method", METHODS)
def test_float32_loop_equals_sample(family: str, method: str) -> None:
    scheduler = made(family, method=method, seed=5)
    x = latents(dtype=torch.float32)
    ours = loop(scheduler, x, 6, **sigmas(family, 6))
    wrapped = from_diffusers(network, scheduler)
    theirs, exact = (sample(wrapped, x, method=method, grid=scheduler.nodes, seed=5) for x in (x, x.double()))
    assert ours.dtype == torch.float32
    rounding = float((theirs - exact).abs().max())  # of float32, which some methods magnify
    torch.testing.assert_close(ours, theirs, rtol=2e-5, atol=1e-5 * float(theirs.abs().max()) + 2 * rounding)


@pytest.mark.parametrize("family", ["epsilon", "flow"])
@pytest.mark.parametrize("grid", ["logsnr", "karras", "time", "shifted"])
def test_grids_of_the_library_are_used(family: str, grid: str) -> None:
    scheduler = made(family, method="dpm++", grid=grid)
    ours = loop(scheduler, latents(), 7)
    theirs = sample(from_diffusers(network, scheduler), latents(), method="dpm++", grid=grid, steps=7)
    torch.testing.assert_close(ours, theirs, rtol=1e-6, atol=1e-6 * float(theirs.abs().max()))


@pytest.mark.parametrize("family", ["epsilon", "flow"])
@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize(
    "numbers",
    [pytest.param((1, 2, 3, 4, 6, 9, 50), id="some"), pytest.param(range(1, 51), id="all", marks=pytest.mark.slow)],
)
def test_every_number_of_steps_is_finite(family: str, method: str, numbers: Iterable[int]) -> None:
    scheduler = made(family, method=method, seed=1)
    for steps in numbers:
        out = loop(scheduler, torch.ones(1, 2), steps)
        assert bool(torch.isfinite(out).all())
        assert len(scheduler.sigmas) == len(scheduler.timesteps) + 1
        assert scheduler.step_index == len(scheduler.timesteps)


@pytest.mark.parametrize("family", ["epsilon", "flow"])
def test_last_step_returns_the_data_prediction(family: str) -> None:
    for method in ("ddim", "euler", "heun", "dpm++", "unipc", "exp-adams", "ipndm"):
        scheduler = made(family, method=method, seed=1)
        x = loop(scheduler, latents(), 6)
        torch.testing.assert_close(x, scheduler.pred_original_sample, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("method", ["dpm++", "unipc", "heun", "euler"])
@pytest.mark.parametrize("start", [True, {"mean": 0.4, "variance": 0.3}], ids=["unit", "mean"])
def test_analytic_first_step(family: str, method: str, start: Any) -> None:
    scheduler = made(family, method=method, options={"afs": start})
    ours = loop(scheduler, latents(), 6, **sigmas(family, 8))
    afs = start if start is True else AnalyticStart(**start)
    theirs = sample(from_diffusers(network, scheduler), latents(), method=method, grid=scheduler.nodes, afs=afs)
    torch.testing.assert_close(ours, theirs, rtol=1e-11, atol=1e-11)
    assert len(scheduler.timesteps) == scheduler.table.evaluations


def test_analytic_first_step_needs_scale_model_input() -> None:
    scheduler = made("epsilon", method="dpm++", options={"afs": True})
    scheduler.set_timesteps(4)
    with pytest.raises(RuntimeError, match="scale_model_input"):
        scheduler.step(latents(), scheduler.timesteps[0], latents())


def test_one_entry_of_timesteps_for_each_call() -> None:
    scheduler = HeunScheduler()
    scheduler.set_timesteps(4)
    assert scheduler.timesteps.tolist() == pytest.approx([1000, 667, 667, 334, 334, 1, 1][:7], abs=1)
    assert scheduler.order == 1


def test_noise_network_at_pure_noise_is_refused_before_the_run() -> None:
    scheduler = PathlineScheduler(prediction_type="epsilon", use_flow_sigmas=True)
    with pytest.raises(ValueError, match="signal 0"):
        scheduler.set_timesteps(4)
