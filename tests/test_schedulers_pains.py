"""Faults that users of schedulers have met elsewhere, each as a property that holds for every method."""

import itertools
import math
from typing import Any

import diffusers
import numpy as np
import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from pathline.samplers import from_diffusers, grid_info, list_grids, reversed_flow, sample
from pathline.samplers.schedulers import DDIMScheduler, EulerScheduler, PathlineScheduler
from support.schedulers import BETAS, METHODS, latents, make, network, point_mass, shared_out, steps_over

FAMILIES = ("betas", "flow")
GRIDS = [name for name in list_grids() if not grid_info(name).requires]
RULES: tuple[dict[str, Any], ...] = ({"clip_sample": True}, {"thresholding": True, "sample_max_value": 2.0})


def deterministic(scheduler: PathlineScheduler) -> bool:
    return not any(z >= 0 for row in scheduler.table.rows for z in row.noises)


# --- levels and ends ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("method", METHODS)
def test_each_sigma_is_the_level_of_the_latents_of_its_call(method: str, family: str) -> None:
    """Also inside a step of several calls: fed with the true data and noise, latents k are at sigmas[k]."""
    scheduler, data, noise = make(family, method=method, seed=0), latents(2), latents(3)
    scheduler.set_timesteps(6)
    if not deterministic(scheduler):
        return  # their noise is fresh; the spread of it is measured elsewhere
    sigmas = scheduler.sigmas.double().tolist()
    signals = [1 - s if family == "flow" else (1 + s * s) ** -0.5 for s in sigmas]
    levels = [s if family == "flow" else s * a for s, a in zip(sigmas, signals, strict=True)]
    x = signals[0] * data + levels[0] * noise
    for k, t in enumerate(scheduler.timesteps):
        torch.testing.assert_close(x, signals[k] * data + levels[k] * noise, rtol=0, atol=3e-6)
        x = scheduler.step(noise - data if family == "flow" else noise, t, x, return_dict=False)[0]
    torch.testing.assert_close(x, signals[-1] * data + levels[-1] * noise, rtol=0, atol=3e-6)


@pytest.mark.parametrize("family", [*FAMILIES, "zero signal"])
@pytest.mark.parametrize("grid", GRIDS)
def test_any_grid_runs_on_any_family_between_its_exact_ends(grid: str, family: str) -> None:
    if family == "zero signal":
        settings = {"prediction_type": "v_prediction", "rescale_betas_zero_snr": True}
        scheduler = PathlineScheduler(**settings, pathline={"grid": grid})
    else:
        scheduler = make(family, grid=grid)
    highest = float(scheduler.sigmas[0])
    for steps in (2, 5, 12):
        scheduler.set_timesteps(steps)
        sigmas = scheduler.sigmas.tolist()
        assert sigmas[-1] == 0.0
        if grid != "leading":  # which begins lower by its definition
            assert sigmas[0] == pytest.approx(highest, rel=1e-6 if family != "flow" else 0)
        assert all(a > b for a, b in itertools.pairwise(sigmas))
        assert len(sigmas) == steps + 1
        assert torch.isfinite(steps_over(scheduler, latents(), scheduler.timesteps)).all()


@pytest.mark.parametrize("kind", ["karras", "exponential", "beta"])
def test_levels_of_other_models_keep_the_ends_of_a_flow(kind: str) -> None:
    plain, switched = PathlineScheduler(shift=3.0), PathlineScheduler(shift=3.0, **{f"use_{kind}_sigmas": True})
    for steps in (2, 5, 30):
        for scheduler in (plain, switched):
            scheduler.set_timesteps(steps)
        torch.testing.assert_close(switched.sigmas[[0, -2, -1]], plain.sigmas[[0, -2, -1]], rtol=3e-7, atol=0)
        assert bool((switched.sigmas.diff() < 0).all())
        if steps > 2:
            assert not torch.allclose(switched.sigmas, plain.sigmas)
    steps_over(switched, latents(), switched.timesteps)


SCHEDULES: tuple[dict[str, Any], ...] = (
    {"final_sigmas_type": "sigma_min"},
    {"invert_sigmas": True},
    {"use_karras_sigmas": True, "use_flow_sigmas": True, "flow_shift": 3.0},
    {"shift_terminal": 0.1},
    {**BETAS, "final_sigmas_type": "sigma_min"},
    {**BETAS, "use_karras_sigmas": True, "final_sigmas_type": "sigma_min"},
    {**BETAS, "timestep_spacing": "linspace", "use_exponential_sigmas": True},
    {**BETAS, "prediction_type": "v_prediction", "rescale_betas_zero_snr": True},
    {"prediction_type": "sample", "use_flow_sigmas": True},
    {"prediction_type": "v_prediction", "use_flow_sigmas": True},
)


@pytest.mark.parametrize(("method", "config"), shared_out(METHODS, SCHEDULES, every=3), ids=str)
def test_few_steps_of_every_schedule(method: str, config: dict[str, Any]) -> None:
    """One and two steps too, and those that end above 0, begin at signal 0 or run on inverted levels: the table's."""
    scheduler = PathlineScheduler(**config, pathline={"method": method, "seed": 1})
    for steps in (1, 2, 5):
        scheduler.set_timesteps(steps)
        assert torch.isfinite(scheduler.sigmas).all()
        x = steps_over(scheduler, latents(), scheduler.timesteps)
        assert torch.isfinite(x).all()
        assert scheduler.step_index == len(scheduler.timesteps) == len(scheduler.sigmas) - 1
        wrapped = from_diffusers(network, scheduler)
        theirs = sample(wrapped, latents(), method=method, grid=scheduler.nodes, seed=1)
        torch.testing.assert_close(x, theirs, rtol=1e-5, atol=1e-5 * float(theirs.abs().max()))


def test_grids_are_named_or_listed_in_the_config_and_loaded_with_it(tmp_path: Any) -> None:
    listed = [0.0, 0.13, 0.3, 0.61, 1.0]
    for family in FAMILIES:
        for settings in ({"grid": listed}, {"grid": "logsnr"}, {"grid": "karras", "grid_options": {"rho": 3.0}}):
            scheduler = make(family, method="unipc", **settings)
            scheduler.save_pretrained(tmp_path / family)
            loaded = PathlineScheduler.from_pretrained(tmp_path, subfolder=family)
            for s in (scheduler, loaded):
                s.set_timesteps(4)
            assert torch.equal(scheduler.sigmas, loaded.sigmas)
            times = listed if settings["grid"] == listed else None
            more = {"grid": times} if times else {"steps": 4, **settings}
            theirs = sample(from_diffusers(network, scheduler), latents(), method="unipc", **more)
            ours = steps_over(loaded, latents(), loaded.timesteps)
            torch.testing.assert_close(ours, theirs, rtol=1e-6, atol=1e-6)
        flow = make("flow", grid=listed)
        flow.set_timesteps(4)
        np.testing.assert_allclose(flow.sigmas.numpy(), 1.0 - np.array(listed), rtol=0, atol=1e-7)
        with pytest.raises(ValueError, match="num_inference_steps=4"):
            flow.set_timesteps(5)


# --- half precision -----------------------------------------------------------------------------------------------


def naive_error(noise: Tensor, velocity: Tensor, steps: int) -> float:
    """RMS error where the rounding of every step is lost, as it is without a carried remainder."""
    x = noise.bfloat16()
    for _ in range(steps):
        x = (x.float() - velocity.float() / steps).bfloat16()
    return rms(x, noise, velocity)


def rms(x: Tensor, noise: Tensor, velocity: Tensor) -> float:
    return float((x.float() - (noise.bfloat16().float() - velocity.float())).square().mean().sqrt())


@pytest.mark.parametrize(("steps", "lost"), [(50, 0.03), (200, 0.12)])
@pytest.mark.parametrize("method", ["euler", "unipc", "dpm++", "deis", "heun", "exp-adams"])
def test_half_precision_does_not_drift_with_the_number_of_steps(method: str, steps: int, lost: float) -> None:
    """Constant velocity in bfloat16: the error stays that of one rounding, 0.0017, at any number of steps."""
    noise, data = torch.randn(2, 1, 4, 32, 32, generator=torch.Generator().manual_seed(0))
    velocity = (noise - data).bfloat16()
    assert naive_error(noise, velocity, steps) > lost
    scheduler, x = PathlineScheduler(pathline={"method": method}), noise.bfloat16()
    scheduler.set_timesteps(steps)
    for t in scheduler.timesteps:
        x = scheduler.step(velocity, t, x, return_dict=False)[0]
    assert rms(x, noise, velocity) < 0.0018


@pytest.mark.parametrize("method", METHODS)
def test_half_precision_ends_within_one_rounding_for_every_method(method: str) -> None:
    noise, data = torch.randn(2, 1, 4, 16, 16, generator=torch.Generator().manual_seed(0))
    velocity = (noise - data).bfloat16()
    scheduler, x = PathlineScheduler(pathline={"method": method}), noise.bfloat16()
    scheduler.set_timesteps(40)
    if not deterministic(scheduler):
        return
    for t in scheduler.timesteps:
        x = scheduler.step(velocity, t, x, return_dict=False)[0]
    assert rms(x, noise, velocity) < 0.0022


# --- hidden waits for the device ----------------------------------------------------------------------------------


class OnHost(TorchDispatchMode):
    """Collects operations that make tensors on the host; latents lie on a device whose values nobody can read."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        if isinstance(out, Tensor) and out.device.type == "cpu":
            self.seen.append(func.overloadpacket.__name__)
        return out


RULED = [(method, rule) for method in ("dpm++", "heun", "sa") for rule in RULES]
RULED += [(method, {}) for method in METHODS]


@pytest.mark.parametrize(("ruled", "family"), shared_out(RULED, FAMILIES, every=2), ids=str)
def test_steps_neither_read_from_the_device_nor_compute_on_the_host(
    ruled: tuple[str, dict[str, Any]], family: str
) -> None:
    """On the meta device every read of a value raises: first step, edited latents, generators and rules included.

    The only work on the host is the one draw of a seed from each generator, in a run with noise.
    """
    method, rule = ruled
    config = BETAS if family == "betas" else {}
    scheduler = PathlineScheduler(**config, **rule, pathline={"method": method})
    for generators, count in ((None, 1), ([torch.Generator(), torch.Generator()], 2)):
        scheduler.set_timesteps(3, device="meta")
        assert scheduler.begin_index is None
        x = torch.empty(2, 3, 4, device="meta", dtype=torch.bfloat16)
        mode = OnHost()
        with mode:
            for t in scheduler.timesteps:
                x = scheduler.step(torch.empty_like(x), t, x * 1.0, generator=generators, return_dict=False)[0]
        assert mode.seen == ["randint"] * (0 if deterministic(scheduler) else count)
        assert x.device.type == "meta"


def test_the_meta_device_would_tell() -> None:
    x = torch.empty(2, device="meta")
    for read in (lambda: x[0].item(), lambda: x.tolist(), lambda: bool(x[0] > 0), lambda: x.cpu(), x.nonzero):
        with pytest.raises((RuntimeError, NotImplementedError)):
            read()


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("lists", [False, True])
def test_adding_noise_in_a_loop_reads_nothing(family: str, lists: bool) -> None:
    """In-painting adds noise in every step, at a time without dimensions."""
    scheduler, x = make(family), torch.empty(2, 3, device="meta")
    scheduler.set_timesteps(4, device="meta", **({"sigmas": [0.9, 0.5], "timesteps": [800.0, 400.0]} if lists else {}))
    mode = OnHost()
    for t in (*scheduler.timesteps, scheduler.timesteps[:1], scheduler.timesteps[:2]):
        scheduler.add_noise(x, x, t)
        with mode:
            scheduler.add_noise(x, x, t)
            scheduler.get_velocity(x, x, t)
    assert mode.seen == []


# --- sign of time, gradients, counts ------------------------------------------------------------------------------


@pytest.mark.parametrize("inverted", [False, True])
def test_the_sign_of_flow_networks_is_noise_less_data(inverted: bool) -> None:
    """A step adds (σ' − σ)·output, as in the stock class: σ falls from the noise, or rises on inverted levels."""
    scheduler, data, noise = EulerScheduler(invert_sigmas=inverted), latents(2), latents(3)
    stock = diffusers.FlowMatchEulerDiscreteScheduler(invert_sigmas=inverted)
    for s in (scheduler, stock):
        s.set_timesteps(sigmas=np.linspace(1.0, 0.125, 8))
    torch.testing.assert_close(scheduler.sigmas, stock.sigmas, rtol=0, atol=1e-6)
    x, y, sign = noise, noise.float(), -1.0 if inverted else 1.0
    for k, t in enumerate(scheduler.timesteps):
        left = float(1.0 - scheduler.sigmas[k] if inverted else scheduler.sigmas[k])
        output = sign * (x - data) / left
        y = stock.step(output.float(), stock.timesteps[k], y, return_dict=False)[0]
        x = scheduler.step(output, t, x, return_dict=False)[0]
        torch.testing.assert_close(x, y.double(), rtol=0, atol=1e-5)
    torch.testing.assert_close(x, data, rtol=0, atol=1e-6)
    target = scheduler.get_velocity(data, noise, scheduler.timesteps[:2])
    torch.testing.assert_close(target, sign * (noise - data))


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("method", ["euler", "dpm++", "unipc", "heun"])
def test_a_network_of_the_wrong_sign_is_seen_at_once(family: str, method: str) -> None:
    """On Gaussian data the right sign gives their mean and spread; the reversed field is off by many spreads."""
    scheduler = make(family, method=method, grid="logsnr")
    x0 = torch.randn(4000, 1, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    ends = {}
    for sign in (1.0, -1.0):
        scheduler.set_timesteps(40)
        x = x0
        for k, t in enumerate(scheduler.timesteps):
            sigma = float(scheduler.sigmas[k])
            signal = 1 - sigma if family == "flow" else (1 + sigma**2) ** -0.5
            noise = sigma if family == "flow" else sigma * signal
            data = posterior(x, signal, noise)
            eps = (x - signal * data) / noise
            x = scheduler.step(sign * (eps - data if family == "flow" else eps), t, x, return_dict=False)[0]
        ends[sign] = x
    assert float(ends[1.0].mean()) == pytest.approx(2.0, abs=0.05)
    assert float(ends[1.0].std()) == pytest.approx(0.5, abs=0.08)
    assert abs(float(ends[-1.0].mean()) - 2.0) > 1.0


def posterior(x: Tensor, signal: float, noise: float, mean: float = 2.0, variance: float = 0.25) -> Tensor:
    """Data prediction of Gaussian data."""
    return mean + signal * variance / (signal**2 * variance + noise**2) * (x - signal * mean)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("method", ["dpm++", "unipc", "heun", "sa"])
def test_gradients_flow_through_the_loop_of_a_pipeline(method: str, family: str) -> None:
    def loop(x: Tensor, gain: Tensor) -> Tensor:
        scheduler = make(family, method=method, seed=1)
        scheduler.set_timesteps(3)
        for t in scheduler.timesteps:
            x = scheduler.step(torch.tanh(gain * x), t, x, return_dict=False)[0]
        return x

    start = torch.linspace(-1, 1, 4, dtype=torch.float64).reshape(1, 4).requires_grad_()
    gain = torch.tensor(0.7, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(loop, (start, gain))


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("method", METHODS)
def test_timesteps_are_the_network_calls(method: str, family: str) -> None:
    """What a pipeline loops over is what it pays: as many entries as `sample` is counted to call the network."""
    calls = 0

    def counting(x: Tensor, label: Any) -> Tensor:
        nonlocal calls
        calls += 1
        return network(x, label)

    scheduler = make(family, method=method, seed=1)
    for steps in (1, 5):
        scheduler.set_timesteps(steps)
        assert len(scheduler.timesteps) == scheduler.table.evaluations
        calls = 0
        sample(from_diffusers(counting, scheduler), latents(), method=method, grid=scheduler.nodes, seed=1)
        assert calls == len(scheduler.timesteps)


def test_a_step_index_is_not_a_time_but_a_small_time_is() -> None:
    """An integer that is both an entry of the timesteps and an index is a time; one that is an index only is named."""
    scheduler = DDIMScheduler(**BETAS)
    scheduler.set_timesteps(1000)
    scheduler.step(latents(), 3, latents())
    assert scheduler.step_index == 997
    scheduler.set_timesteps(10)
    for wrong in (0, 4, torch.tensor(9)):
        with pytest.raises(ValueError, match=r"is an index, not a time; .* \(999 to 99\)"):
            scheduler.step(latents(), wrong, latents())
    for near in (498, 501.3, 10_000):
        scheduler.set_timesteps(10)
        scheduler.step(latents(), near, latents())
    assert scheduler.step_index == 1


def test_strength_leaves_the_calls_it_promises() -> None:
    """19 timesteps at strength 0.6 leave about 11 calls of a two-call method, and some at 0.3, as the order is 1."""
    scheduler = make("betas", method="heun")
    scheduler.set_timesteps(10)
    times = scheduler.timesteps
    for strength in (0.3, 0.6, 1.0):
        count = len(times)
        start = max(count - min(int(count * strength), count), 0)
        left = times[start * scheduler.order :]
        assert len(left) == math.ceil(count - start) >= int(count * strength)
        scheduler.set_timesteps(10)
        scheduler.set_begin_index(start * scheduler.order)
        data = latents(2)
        x = scheduler.add_noise(data, latents(3), left[:1])
        for t in scheduler.timesteps[start:]:
            x = scheduler.step(point_mass(scheduler, data, x, t), t, x, return_dict=False)[0]
        torch.testing.assert_close(x, data, rtol=0, atol=2e-4)


def test_the_wrapper_for_flow_networks_turns_sign_and_time() -> None:
    """A network of diffusers' convention is called at N·(1 − t), and its output noise − data is taken negative."""
    x, t = latents()[:, 0, 0], torch.full((2,), 0.25, dtype=torch.float64)
    torch.testing.assert_close(reversed_flow(network)(x, t), -network(x, 1000 * (1 - t)))
