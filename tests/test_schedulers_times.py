"""Batches whose samples, or samples whose tokens, are at different times."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from diffusers import FlowMatchEulerDiscreteScheduler
from torch import Tensor

from pathline.samplers.schedulers import PathlineScheduler, UniPCScheduler
from support.schedulers import METHODS, latents, make, network, steps_over


def each_network(x: Tensor, labels: Tensor) -> Tensor:
    """`network` for one label for each sample."""
    return torch.cat([network(one[None], label) for one, label in zip(x, labels, strict=True)])


def times_of(scheduler: PathlineScheduler, starts: list[int], step: int) -> Tensor:
    """The time of each sample at a step; after its last call its time stands still."""
    last = len(scheduler.timesteps) - 1
    return scheduler.timesteps[[min(start + step, last) for start in starts]]


@pytest.mark.parametrize("family", ["betas", "flow"])
@pytest.mark.parametrize("method", METHODS)
def test_samples_at_different_times_are_runs_of_their_own(family: str, method: str) -> None:
    scheduler = make(family, method=method, seed=4)
    scheduler.set_timesteps(5)
    x = latents(batch=3)
    calls = len(scheduler.timesteps)
    # a time that several calls have means the one that opens a step
    starts = [scheduler._ready().find(float(scheduler.timesteps[k]), scheduler.timesteps) for k in (0, calls - 1, 2)]
    alone = []
    for b, start in enumerate(starts):
        other = copy.deepcopy(scheduler)
        other.set_sample_offset(b)
        other.set_begin_index(start)
        alone.append(steps_over(other, x[b : b + 1], other.timesteps[start:]))
    for step in range(calls):
        times = times_of(scheduler, starts, step)
        x = scheduler.step(each_network(x, times), times, x, return_dict=False)[0]
    torch.testing.assert_close(x, torch.cat(alone), rtol=0, atol=0)


@pytest.mark.parametrize("how", ["expanded", "repeated"])
def test_the_same_time_for_every_sample_is_an_ordinary_run(how: str) -> None:
    scheduler = UniPCScheduler()
    ends = []
    for vector in (False, True):
        scheduler.set_timesteps(6)
        x = latents()
        for t in scheduler.timesteps:
            times = (t.expand(len(x)) if how == "expanded" else t.repeat(len(x))) if vector else t
            x = scheduler.step(network(x, t), times, x, return_dict=False)[0]
        ends.append(x)
    assert torch.equal(*ends)
    assert scheduler.step_index == 6


def test_generators_of_samples_at_different_times_follow_the_sample() -> None:
    ends = []
    for offset in (0, 1):
        scheduler = make("flow", method="ddim", options={"eta": 1.0})
        scheduler.set_timesteps(6)
        generators = [torch.Generator().manual_seed(b) for b in range(3)][offset:]
        x = latents(batch=3)[offset:]
        for step in range(6):
            times = times_of(scheduler, [0, 2, 3][offset:], step)
            x = scheduler.step(each_network(x, times), times, x, generator=generators, return_dict=False)[0]
        ends.append(x[1 - offset :])
    assert torch.equal(*ends)


def test_times_that_fit_no_sample_are_refused() -> None:
    scheduler = make("flow")
    scheduler.set_timesteps(4)
    with pytest.raises(ValueError, match=r"shape \(3,\).*each of the 2 samples"):
        scheduler.step(latents(), scheduler.timesteps[:3], latents())
    with pytest.raises(ValueError, match="per_token_timesteps has shape"):
        scheduler.step(latents(), scheduler.timesteps[0], latents(), per_token_timesteps=torch.zeros(2, 7))
    with pytest.raises(ValueError, match="one for each token"):
        scheduler.step(latents(), scheduler.timesteps[:2], latents(), per_token_timesteps=torch.zeros(2, 3))


# --- tokens -----------------------------------------------------------------------------------------------

TOKENS = 4


def token_network(x: Tensor, times: Tensor) -> Tensor:
    """Any function of state and time, token by token."""
    return torch.tanh(1.3 * x + times[..., None] / 1000) * 0.7 + 0.2 * x


def conditioned(scheduler: Any, x: Tensor, held: Tensor, sign: float = -1.0) -> Tensor:
    """The loop of video pipelines in which token j keeps its state until the run has come down to its level."""
    for t in scheduler.timesteps:
        times = torch.minimum(t, 1000 * held)
        output = token_network(x, times)
        moved = scheduler.step(sign * output, t, x, per_token_timesteps=times, return_dict=False)[0]
        x = torch.where((t / 1000 - 1e-6 < held)[..., None], moved, x)
    return x


def tokens(dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(2, TOKENS, 3, generator=torch.Generator().manual_seed(2), dtype=torch.float64).to(dtype)


def test_tokens_step_as_in_the_stock_flow_scheduler() -> None:
    held = torch.tensor([[1.0, 0.72, 0.3, 0.0], [0.5, 0.5, 1.0, 0.0]])
    stock = FlowMatchEulerDiscreteScheduler()
    ours = PathlineScheduler.from_config(stock.config, pathline={"method": "euler"})
    ends = []
    for scheduler in (stock, ours):
        scheduler.set_timesteps(7)
        ends.append(conditioned(scheduler, tokens(torch.float32), held))
    torch.testing.assert_close(ends[1], ends[0], rtol=0, atol=2e-6)
    assert torch.equal(ends[1][:, -1], tokens(torch.float32)[:, -1])  # clean tokens stay


@pytest.mark.parametrize("family", ["betas", "flow"])
@pytest.mark.parametrize("method", METHODS)
def test_tokens_at_the_time_of_the_call_take_the_step_of_the_method(family: str, method: str) -> None:
    scheduler = make(family, method=method, seed=1)
    ends = []
    for own in (False, True):
        scheduler.set_timesteps(5)
        x = tokens()
        for t in scheduler.timesteps:
            output = token_network(x, t.expand(2, TOKENS))
            options = {"per_token_timesteps": t.expand(2, TOKENS)} if own else {}
            sign = -1.0 if own and family == "flow" else 1.0
            x = scheduler.step(sign * output, t, x, return_dict=False, **options)[0]
        ends.append(x)
    torch.testing.assert_close(*ends, rtol=0, atol=1e-12)


@pytest.mark.parametrize(
    ("method", "options"),
    [
        ("euler", {}),
        ("ddim", {}),
        ("heun", {}),
        ("dpm++", {"order": 2}),
        ("exp-adams", {"order": 2}),
        ("unipc", {"order": 1}),
    ],
)
def test_tokens_that_join_later_are_fresh_runs(method: str, options: dict[str, Any]) -> None:
    scheduler = PathlineScheduler(num_train_timesteps=1000, pathline={"method": method, "options": options})
    scheduler.set_timesteps(8)
    places = [0, 2, 4, 6]
    held = scheduler.sigmas[places].expand(2, TOKENS)
    together = conditioned(scheduler, tokens(), held)
    for j, place in enumerate(places):
        scheduler.set_timesteps(8)
        scheduler.set_begin_index(place)
        x = tokens()[:, j : j + 1]
        for t in scheduler.timesteps[place:]:
            x = scheduler.step(token_network(x, t.expand(2, 1)), t, x, return_dict=False)[0]
        torch.testing.assert_close(together[:, j : j + 1], x, rtol=0, atol=2e-6)  # times come in float32


@pytest.mark.parametrize("method", METHODS)
def test_tokens_that_join_later_reach_the_data(method: str) -> None:
    data = tokens() * 0.5
    scheduler = PathlineScheduler(num_train_timesteps=1000, pathline={"method": method, "seed": 2})
    scheduler.set_timesteps(12)
    held = torch.tensor([[1.0, 0.8, 0.5, 0.2], [0.9, 0.61, 0.33, 0.05]])
    start = torch.randn(tokens().shape, generator=torch.Generator().manual_seed(9), dtype=torch.float64)
    x = (1 - held[..., None]) * data + held[..., None] * start
    for t in scheduler.timesteps:
        times = torch.minimum(t, 1000 * held)
        output = (x - data) / (times / 1000)[..., None]  # a network that knows the data
        moved = scheduler.step(-output, t, x, per_token_timesteps=times, return_dict=False)[0]
        x = torch.where((t / 1000 - 1e-6 < held)[..., None], moved, x)
    torch.testing.assert_close(x, data, rtol=0, atol=1e-5)


def test_rules_on_the_data_and_tokens_cannot_be_combined() -> None:
    scheduler = PathlineScheduler(clip_sample=True)
    scheduler.set_timesteps(4)
    with pytest.raises(ValueError, match="per_token_timesteps cannot be combined"):
        scheduler.step(tokens(), scheduler.timesteps[0], tokens(), per_token_timesteps=torch.full((2, TOKENS), 1000.0))
