"""The noise of stochastic methods in a pipeline."""

from typing import Any

import pytest
import torch
from torch import Tensor

from pathline.samplers.schedulers import DDIMScheduler, PathlineScheduler
from support.schedulers import BETAS, latents, point_mass, steps_over

STOCHASTIC = {"method": "ddim", "options": {"eta": 1.0}}


def stochastic(seed: int | None = 3, **more: Any) -> PathlineScheduler:
    return PathlineScheduler(pathline={**STOCHASTIC, "seed": seed}, **BETAS, **more)


def whole_run(scheduler: PathlineScheduler, x: Tensor, **options: Any) -> Tensor:
    scheduler.set_timesteps(5)
    return steps_over(scheduler, x, scheduler.timesteps, **options)


def test_noise_is_keyed_by_the_seed_of_the_config() -> None:
    first, second = whole_run(stochastic(), latents()), whole_run(stochastic(), latents())
    assert torch.equal(first, second)
    assert not torch.allclose(first, whole_run(stochastic(4), latents()))
    other = stochastic(4)
    other.set_seed(3)
    assert torch.equal(first, whole_run(other, latents()))


def test_a_split_batch_gets_the_same_noise() -> None:
    x = latents(batch=4)
    whole = whole_run(stochastic(), x)
    scheduler, parts = stochastic(), []
    for start in (0, 1, 3):
        scheduler.set_sample_offset(start)
        parts.append(whole_run(scheduler, x[start : {0: 1, 1: 3, 3: 4}[start]]))
    torch.testing.assert_close(torch.cat(parts), whole, rtol=1e-12, atol=1e-12)


def test_generators_win_and_follow_the_image() -> None:
    def generators(*seeds: int) -> list[torch.Generator]:
        return [torch.Generator().manual_seed(seed) for seed in seeds]

    x = latents(batch=1).repeat(3, 1, 1, 1)
    out = whole_run(stochastic(), x, generator=generators(1, 2, 1))
    assert torch.equal(out[0], out[2])
    assert not torch.allclose(out[0], out[1])
    alone = whole_run(stochastic(), x[:1], generator=generators(2)[0])
    torch.testing.assert_close(out[1:2], alone, rtol=1e-12, atol=1e-12)
    with pytest.raises(ValueError, match="2 generators were given for a batch of 3"):
        whole_run(stochastic(), x, generator=generators(1, 2))


def test_without_a_seed_every_run_differs_and_torch_fixes_it() -> None:
    scheduler = stochastic(None)
    first, second = whole_run(scheduler, latents()), whole_run(scheduler, latents())
    assert not torch.allclose(first, second)
    torch.manual_seed(11)
    third = whole_run(scheduler, latents())
    torch.manual_seed(11)
    assert torch.equal(third, whole_run(scheduler, latents()))


def test_step_noise_is_not_the_start_noise() -> None:
    """A network that predicts zero data leaves the noise of the step visible."""
    shape = (1, 4, 32, 32)
    start = torch.randn(shape, generator=torch.Generator().manual_seed(3))
    for generator in (None, torch.Generator().manual_seed(3)):
        scheduler = stochastic()
        scheduler.set_timesteps(4)
        t = scheduler.timesteps[0]
        state = scheduler.step(point_mass(scheduler, torch.zeros(shape), start, t), t, start, generator).prev_sample
        deterministic = DDIMScheduler(**BETAS)
        deterministic.set_timesteps(4)
        plain = deterministic.step(point_mass(scheduler, torch.zeros(shape), start, t), t, start).prev_sample
        overlap = torch.corrcoef(torch.stack([(state - plain).flatten(), torch.randn(shape).flatten()]))[0, 1]
        fresh = state - plain * float((state * plain).mean() / plain.square().mean())
        assert abs(float(torch.corrcoef(torch.stack([fresh.flatten(), start.flatten()]))[0, 1])) < 0.05
        assert abs(float(overlap)) < 0.05
