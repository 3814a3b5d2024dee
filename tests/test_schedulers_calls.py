"""Call forms, members and refusals that pipelines rely on."""

import copy
from typing import Any

import numpy as np
import pytest
import torch

from pathline.samplers.schedulers import DDIMScheduler, PathlineScheduler
from support.schedulers import BETAS, latents, make, steps_over

FAMILIES = ("betas", "flow")


def test_exact_sigmas_are_bit_exact() -> None:
    given = torch.rand(9, generator=torch.Generator().manual_seed(0)).sort(descending=True).values
    scheduler = PathlineScheduler(shift=3.0, pathline={"exact_sigmas": True})
    scheduler.set_timesteps(sigmas=given)
    assert torch.equal(scheduler.sigmas[:-1], given)
    assert torch.equal(scheduler.timesteps, given * 1000)
    labels = (given * 900).tolist()
    scheduler.set_timesteps(sigmas=given, timesteps=labels)
    assert torch.equal(scheduler.sigmas[:-1], given)
    assert torch.equal(scheduler.timesteps, torch.tensor(labels))
    by_label = scheduler.add_noise(torch.zeros(2, 3), torch.ones(2, 3), scheduler.timesteps[[2, 5]])
    assert torch.equal(by_label[:, 0], given[[2, 5]])


def test_given_timesteps_are_levels_of_their_own() -> None:
    scheduler = PathlineScheduler(shift=3.0)
    scheduler.set_timesteps(timesteps=[1000.0, 600.0, 250.0])
    assert scheduler.timesteps.tolist() == [1000.0, 600.0, 250.0]
    torch.testing.assert_close(scheduler.sigmas, torch.tensor([1.0, 0.6, 0.25, 0.0]))
    betas = PathlineScheduler(**BETAS)
    betas.set_timesteps(timesteps=[999, 500, 24])
    assert betas.timesteps.tolist() == [999.0, 500.0, 24.0]
    betas.set_timesteps(sigmas=[5.0, 1.0, 0.1, 0.0])
    assert betas.sigmas.tolist() == torch.tensor([5.0, 1.0, 0.1, 0.0]).tolist()


@pytest.mark.parametrize(
    ("family", "arguments", "message"),
    [
        ("flow", {}, "needs num_inference_steps"),
        ("flow", {"num_inference_steps": 0}, "at least 1 step"),
        ("flow", {"num_inference_steps": 2000}, "levels"),
        ("flow", {"sigmas": [0.5, 0.7]}, "must decrease"),
        ("flow", {"sigmas": [80.0, 1.0]}, r"lie in \(0, 1\]"),
        ("flow", {"sigmas": [1.0, float("nan")]}, "finite"),
        ("flow", {"num_inference_steps": True}, "a whole number"),
        ("flow", {"timesteps": [1, 2]}, "timesteps must decrease, but go from 1 to 2"),
        ("flow", {"timesteps": [1200, 2]}, r"timesteps of a flow model lie in \(0, 1024\], got 1200"),
        ("flow", {"sigmas": [1.0, 0.5], "timesteps": [1000.0]}, "2 entries|they must agree"),
        ("flow", {"num_inference_steps": 3, "strength": 0.5}, "strength"),
        ("betas", {"num_inference_steps": 1001}, "levels"),
        ("betas", {"timesteps": [1000]}, "levels 0 to 999"),
        ("betas", {"timesteps": [10, 20]}, "must decrease"),
        ("betas", {"sigmas": [1.0, 2.0]}, "decrease"),
    ],
)
def test_impossible_timesteps_are_refused(family: str, arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make(family).set_timesteps(**arguments)


def test_arguments_that_do_not_apply_are_refused() -> None:
    scheduler = DDIMScheduler()
    scheduler.set_timesteps(3)
    x = latents()
    scheduler.step(x, scheduler.timesteps[0], x, eta=0.0, use_clipped_model_output=None)
    with pytest.raises(ValueError, match=r"eta=0\.5"):
        scheduler.step(x, scheduler.timesteps[1], x, eta=0.5)
    with pytest.raises(ValueError, match="s_noise"):
        scheduler.step(x, scheduler.timesteps[1], x, s_noise=1.1)


def test_members_that_pipelines_read() -> None:
    flow, betas = PathlineScheduler(shift=2.0), PathlineScheduler(**BETAS)
    for scheduler in (flow, betas):
        assert scheduler.num_inference_steps is None
        assert scheduler.init_noise_sigma == 1.0
        assert len(scheduler) == 1000
        assert len(scheduler.timesteps) == 1000
        assert len(scheduler.sigmas) == 1001
        x = latents()
        assert scheduler.scale_model_input(x, 3.0) is x
        scheduler.set_timesteps(7)
        assert scheduler.num_inference_steps == 7
        assert scheduler.timesteps.dtype == scheduler.sigmas.dtype == torch.float32
        assert bool((scheduler.timesteps.diff() < 0).all())
        assert scheduler.begin_index is None
        tuple_out = copy.deepcopy(scheduler).step(x, scheduler.timesteps[0], x, return_dict=False)
        named = scheduler.step(x, scheduler.timesteps[0], x)
        assert torch.equal(tuple_out[0], named.prev_sample)
        assert torch.equal(tuple_out[1], named.pred_original_sample)
    assert not hasattr(flow, "betas")
    assert not hasattr(flow, "alphas_cumprod")
    assert betas.betas.shape == betas.alphas_cumprod.shape == (1000,)
    assert flow.shift == 2.0
    flow.set_shift(4.0)
    flow.set_timesteps(7)
    plain = np.linspace(1, 0.001, 7)
    np.testing.assert_allclose(flow.sigmas[:-1], 4 * plain / (1 + 3 * plain), rtol=1e-6)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_forward_process_uses_the_level_of_the_timestep(dtype: torch.dtype) -> None:
    data, noise = latents(1).to(dtype), latents(2).to(dtype)
    flow, betas = PathlineScheduler(), PathlineScheduler(**BETAS)
    t = torch.tensor([250.0, 731.0])
    sigma = (t / 1000).reshape(2, 1, 1, 1)
    mixed = flow.add_noise(data, noise, t)
    assert mixed.dtype == dtype
    torch.testing.assert_close(mixed.float(), (1 - sigma) * data.float() + sigma * noise.float(), rtol=1e-2, atol=1e-2)
    assert torch.equal(mixed, flow.scale_noise(data, t, noise))
    torch.testing.assert_close(flow.get_velocity(data, noise, t), noise - data)
    index = torch.tensor([250, 731])
    signal = betas.alphas_cumprod[index].sqrt().reshape(2, 1, 1, 1)
    level = (1 - betas.alphas_cumprod[index]).sqrt().reshape(2, 1, 1, 1)
    tolerance = {"rtol": 1e-2, "atol": 2e-2} if dtype == torch.bfloat16 else {"rtol": 1e-5, "atol": 1e-5}
    torch.testing.assert_close(betas.add_noise(data, noise, index).float(), signal * data + level * noise, **tolerance)
    torch.testing.assert_close(
        betas.get_velocity(data, noise, index).float(), signal * noise - level * data, **tolerance
    )
    with pytest.raises(ValueError, match="needs the noise"):
        flow.scale_noise(data, t)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("device", ["cpu", "meta"])
def test_noise_is_added_on_any_device(device: str, family: str) -> None:
    scheduler = make(family)
    data, noise = latents().to(device), latents(3).to(device)
    scheduler.set_timesteps(5)  # timesteps stay on the host
    for times in (scheduler.timesteps[:1], scheduler.timesteps[2], scheduler.timesteps[[1, 3]].to(device)):
        for mixed in (scheduler.add_noise(data, noise, times), scheduler.scale_noise(data, times, noise)):
            assert mixed.device.type == device
            assert mixed.shape == data.shape
    scheduler.set_timesteps(5, device=device)
    assert scheduler.add_noise(data, noise, scheduler.timesteps[:1].repeat(2)).device.type == device
    assert scheduler.get_velocity(data, noise, scheduler.timesteps[:2]).device.type == device


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("lists", [False, True])
def test_noise_is_added_at_the_level_of_each_time_given(lists: bool, family: str) -> None:
    """Not at the level of the run, and whatever it is: before, in and after a run, for every sample its own."""
    scheduler = make(family, **({"exact_sigmas": True} if lists else {}))
    if lists:
        sigmas = np.array([0.9, 0.6, 0.3, 0.1]) * (1.0 if family == "flow" else 5.0)
        scheduler.set_timesteps(sigmas=sigmas, timesteps=[901.0, 577.0, 313.0, 8.0])
    else:
        scheduler.set_timesteps(4)
    one = torch.ones(4, 3, dtype=torch.float64)
    order = torch.tensor([2, 0, 3, 1])
    for _ in range(3):
        signal = scheduler.add_noise(one, 0 * one, scheduler.timesteps[order])[:, 0]
        noise = scheduler.add_noise(0 * one, one, scheduler.timesteps[order])[:, 0]
        ratio = noise if family == "flow" else noise / signal
        torch.testing.assert_close(ratio, scheduler.sigmas[order].double(), rtol=2e-5, atol=1e-7)
        total = signal + noise if family == "flow" else signal**2 + noise**2
        torch.testing.assert_close(total, torch.ones(4, dtype=torch.float64), rtol=1e-6, atol=0)
        steps_over(scheduler, latents(), scheduler.timesteps[-2:])
        scheduler._step_index = None


def test_an_output_of_another_shape_is_refused() -> None:
    scheduler = PathlineScheduler()
    scheduler.set_timesteps(3)
    with pytest.raises(ValueError, match=r"model_output has shape \(1, 4\) and sample \(2, 4\)"):
        scheduler.step(torch.zeros(1, 4), scheduler.timesteps[0], torch.zeros(2, 4))
