"""Habits of users and pipelines that go round the usual loop: recompiling, slicing timesteps, buffers, own classes."""

from __future__ import annotations

from typing import Any

import diffusers
import pytest
import torch
from torch import Tensor

from pathline.samplers.schedulers import (
    DDPMScheduler,
    DPMSolverPPScheduler,
    GHVBScheduler,
    PathlineScheduler,
    UniPCScheduler,
)
from support.schedulers import make

START = torch.randn(2, 4, 6, 6, generator=torch.Generator().manual_seed(0))


def network(x: Tensor, t: Any) -> Tensor:
    return 0.3 * torch.tanh(x)


def finish(scheduler: Any, x: Tensor) -> Tensor:
    for t in scheduler.timesteps:
        x = scheduler.step(network(scheduler.scale_model_input(x, t), t), t, x, return_dict=False)[0]
    return x


def test_one_compiled_loop_serves_other_shifts_and_methods() -> None:
    scheduler = PathlineScheduler(use_dynamic_shifting=True, pathline={"method": "dpm++"})
    compiled = torch.compile(lambda own, x: finish(own, x), fullgraph=True, backend="aot_eager")
    for mu in (0.6, 1.15, 0.9):
        results = []
        for loop in (compiled, finish):
            scheduler.set_timesteps(4, mu=mu)
            scheduler.set_begin_index(0)
            results.append(loop(scheduler, START))
        torch.testing.assert_close(*results, rtol=0, atol=1e-6)
    for method in ("unipc", "heun"):
        other = make("flow", method=method)
        other.set_timesteps(4)
        other.set_begin_index(0)
        assert bool(torch.isfinite(compiled(other, START)).all())


@pytest.mark.parametrize("method", ["dpm2", "res", "heun", "edm", "restart", "unipc"])
def test_states_handed_out_may_be_written_over(method: str) -> None:
    """Also where the method needs an earlier state again."""
    scheduler, other = make("flow", method=method, seed=3), make("flow", method=method, seed=3)
    for one in (scheduler, other):
        one.set_timesteps(6)
    expected = finish(other, START)
    t, *rest = scheduler.timesteps
    buffer = scheduler.step(network(START, t), t, START, return_dict=False)[0]
    for t in rest:
        buffer.copy_(scheduler.step(network(buffer, t), t, buffer, return_dict=False)[0])
    torch.testing.assert_close(buffer, expected, rtol=0, atol=1e-6)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of stock's use of NumPy
@pytest.mark.parametrize("steps", [5, 9, 14])
@pytest.mark.parametrize(
    ("ours", "stock", "limit"),
    [
        (DPMSolverPPScheduler, "DPMSolverMultistepScheduler", 1e-6),
        (UniPCScheduler, "UniPCMultistepScheduler", 3e-3),  # stock corrects the step of length zero too
    ],
)
def test_the_lowered_last_step_is_the_one_of_length_zero(ours: Any, stock: str, limit: float, steps: int) -> None:
    theirs = getattr(diffusers, stock)(use_karras_sigmas=True, final_sigmas_type="sigma_min")
    mine = ours.from_config(theirs.config)
    results = []
    for one in (theirs, mine):
        one.set_timesteps(steps)
        results.append(finish(one, START * one.init_noise_sigma))
    expected, found = results
    assert float((found - expected).norm() / expected.norm()) < limit


def test_a_corrector_beyond_the_last_step_is_left_out() -> None:
    settings = {"disable_corrector": [2], "final_sigmas_type": "sigma_min", "use_karras_sigmas": True}
    scheduler = UniPCScheduler.from_config(diffusers.UniPCMultistepScheduler(**settings).config)
    scheduler.set_timesteps(3)
    assert bool(torch.isfinite(finish(scheduler, START)).all())


@pytest.mark.parametrize("family", ["betas", "flow"])
def test_timesteps_cut_by_hand_keep_their_levels(family: str) -> None:
    cut, begun = make(family, method="ddim"), make(family, method="ddim")
    for one in (cut, begun):
        one.set_timesteps(10)
    begun.set_begin_index(6)
    cut.timesteps = begun.timesteps = cut.timesteps[6:]
    assert torch.equal(finish(cut, START), finish(begun, START))


@pytest.mark.parametrize("family", ["betas", "flow"])
@pytest.mark.parametrize("time", [-1.0, 5000.0])
def test_noise_of_a_time_that_is_none_is_refused(family: str, time: float) -> None:
    with pytest.raises(ValueError, match="num_train_timesteps="):
        make(family).add_noise(START, START, torch.tensor([time, 3.0]))


def test_a_class_of_the_users_own_keeps_its_method() -> None:
    class Own(GHVBScheduler):
        pass

    assert PathlineScheduler.from_config(Own().config)._settings.method == "ghvb"


def test_the_variance_of_a_network_that_learned_one_is_left_out() -> None:
    with pytest.warns(UserWarning, match="variance_type"):
        scheduler = DDPMScheduler.from_config(diffusers.DDPMScheduler(variance_type="learned_range").config, seed=1)
    scheduler.set_timesteps(3)
    scheduler.set_seed(1)
    t, output = scheduler.timesteps[0], network(START, 0)
    both = scheduler.step(torch.cat([output, output + 1], 1), t, START).prev_sample
    scheduler.set_timesteps(3)
    assert torch.equal(both, scheduler.step(output, t, START).prev_sample)
    plain = make("betas")
    plain.set_timesteps(3)
    with pytest.raises(ValueError, match="model_output has shape"):
        plain.step(torch.cat([output, output], 1), plain.timesteps[0], START)


@pytest.mark.parametrize("generator", [5, [None, None]])
def test_what_is_no_generator_is_named(generator: Any) -> None:
    scheduler = make("flow", method="euler-ancestral")
    scheduler.set_timesteps(3)
    t = scheduler.timesteps[0]
    with pytest.raises(TypeError, match=r"generator is a torch\.Generator or a list"):
        scheduler.step(network(START, t), t, START, generator=generator)
