"""Steering inside diffusers pipelines: the batch is the population."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor

from pathline.samplers import from_diffusers, run
from pathline.samplers.keyed_noise import keyed_normal
from pathline.samplers.schedulers import ParticleScheduler, PathlineScheduler
from pathline.samplers.smc import Policy
from pathline.samplers.steering import DataReward, Selection, Steering, Twisted, through_decoder
from support.pipeline_runs import drive
from support.pipelines import TINY, image_vae

# stock schedulers of the multistep kind hand tensors to numpy in a way it deprecates
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")
BETAS: dict[str, Any] = {"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012}
SHAPE = (6, 3, 4, 4)


def total(x: Tensor) -> Tensor:
    return x.flatten(1).sum(1)


def network(x: Tensor, label: Tensor) -> Tensor:
    return torch.tanh(x + 0.001 * label.reshape(-1, *([1] * (x.ndim - 1))))


def looped(scheduler: Any, x: Tensor, steps: int) -> Tensor:
    """What pipelines do."""
    scheduler.set_timesteps(steps)
    for t in scheduler.timesteps:
        x = scheduler.step(network(x, t.expand(len(x))), t, x, return_dict=False)[0]
    return x


@pytest.mark.parametrize("prediction", ["epsilon", "flow_prediction"])
@pytest.mark.parametrize(
    "pathline",
    [{}, {"method": "dpm++-sde", "options": {"order": 2}}, {"method": "er-sde"}, {"method": "euler-ancestral"}],
)
def test_a_steered_scheduler_is_the_steered_run(prediction: str, pathline: dict[str, Any]) -> None:
    settings = {"method": "ddim", "options": {"eta": 1.0}, **pathline, "seed": 5}
    settings = settings if pathline.get("options") or not pathline else {**settings, "options": {}}
    family = BETAS if prediction == "epsilon" else {}
    scheduler = ParticleScheduler(prediction_type=prediction, pathline=settings, **family)
    x = keyed_normal(SHAPE[1:], 9, range(6), dtype=torch.float64)
    for make in (
        lambda: Steering(total, Policy(ess=0.9), scale=0.5, checkpoints=2),
        lambda: Steering(total, Policy(ess=1.0, last=True), scale=0.5, potential="max"),
        lambda: Selection(total, 3, checkpoints=3, temperature=0.5),
    ):
        steering, other = make(), make()
        scheduler.steer(steering)
        found = looped(scheduler, x, 8)
        model = from_diffusers(network, scheduler)
        expected = run(scheduler.table, model, x, prediction=model.prediction, seed=5, hooks=[other])
        torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)  # labels are float32 there
        if isinstance(steering, Steering) and isinstance(other, Steering):
            assert steering.log_z() == pytest.approx(other.log_z(), abs=1e-4)
            assert [c.resampled for c in steering.population.trace] == [c.resampled for c in other.population.trace]
            assert any(c.resampled for c in steering.population.trace)
        assert steering.reward.calls == other.reward.calls
        assert torch.equal(looped(scheduler, x, 8), found)  # a second run begins afresh
    scheduler.steer(None)
    plain = PathlineScheduler(prediction_type=prediction, pathline=settings, **family)
    assert torch.equal(looped(scheduler, x, 8), looped(plain, x, 8))


@pytest.mark.parametrize("name", ["ddpm", "sd", "sd3"])
def test_real_pipelines_are_steered(name: str) -> None:
    tiny = TINY[name]
    seeded = {"method": "ddim", "options": {"eta": 1.0}, "seed": 1}
    scheduler = ParticleScheduler.from_config(tiny.stock().config, pathline=seeded)
    pipe = tiny.make(scheduler)
    plain = drive(tiny, pipe, 6)
    steering = Steering(total, Policy(ess=1.0, last=True), scale=10.0)
    scheduler.steer(steering)
    steered = drive(tiny, pipe, 6)
    assert steering.reward.calls == 5 * len(steered.states[-1])
    assert any(c.resampled for c in steering.population.trace)
    assert torch.equal(steered.states[0], plain.states[0])  # nothing to choose by yet
    assert not torch.equal(steered.states[-1], plain.states[-1])
    kept = total(steered.states[-1])
    assert float(kept.max() - kept.min()) < 1e-3 * float(kept.abs().max())  # the better of two, twice
    again = drive(tiny, pipe, 6)
    assert all(torch.equal(a, b) for a, b in zip(steered.states, again.states, strict=True))


def test_rewards_of_images_through_the_decoder() -> None:
    vae = image_vae()
    reward = DataReward(through_decoder(vae, lambda images: images.flatten(1).mean(1)), chunk_size=2)
    latents = keyed_normal((4, 4, 4), 0, range(5))
    with torch.no_grad():
        images = vae.decode(latents / vae.config.scaling_factor).sample
        torch.testing.assert_close(reward(latents), images.flatten(1).mean(1).double(), rtol=1e-5, atol=1e-5)
    assert reward.calls == 5


def test_copies_and_what_a_scheduler_cannot_do() -> None:
    scheduler = ParticleScheduler(prediction_type="epsilon", pathline={"seed": 1}, **BETAS)
    with pytest.raises(ValueError, match="Twisted cannot steer a pipeline"):
        scheduler.steer(Twisted(total))  # type: ignore[arg-type]
    scheduler.steer(Steering(total, Policy(ess=1.0)))
    scheduler.set_timesteps(4)
    x = torch.randn(SHAPE, generator=torch.Generator().manual_seed(0))
    x = scheduler.step(network(x, scheduler.timesteps[:1]), scheduler.timesteps[0], x)[0]
    twin = copy.deepcopy(scheduler)
    for t in scheduler.timesteps[1:]:
        out = network(x, t.expand(6))
        x, y = scheduler.step(out, t, x)[0], twin.step(out, t, x)[0]
        assert torch.equal(x, y)
    scheduler.set_timesteps(4)
    with pytest.raises(ValueError, match="at one time"):
        scheduler.step(x, torch.tensor([999.0, 1.0, 1.0, 1.0, 1.0, 1.0]), x)
    assert "steering" not in str(scheduler.config)
