"""Guidance in the place of a diffusers pipeline's own."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from diffusers.pipelines.stable_diffusion.pipeline_stable_diffusion import rescale_noise_cfg

from pathline.samplers import ClassifierFree
from pathline.samplers.guidance import Interval, PlusPlus, Projected, Rescaled, guided_pipeline
from pathline.samplers.schedulers import PathlineScheduler
from support.pipeline_runs import drive
from support.pipelines import TINY, Tiny

# stock schedulers of the multistep kind hand tensors to numpy in a way it deprecates
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")
STRONG = ClassifierFree(3.0, {})


def of_stock(tiny: Tiny, **pathline: Any) -> PathlineScheduler:
    return PathlineScheduler.from_config(tiny.stock().config, pathline=pathline)


def driven(name: str, guidance: Any = None, steps: int = 4, scale: float = 3.0, ours: bool = True) -> Any:
    tiny = TINY[name]
    pipe = tiny.make(of_stock(tiny, method="dpm++") if ours else tiny.stock())
    if guidance is None:
        return drive(tiny, pipe, steps, guidance_scale=scale)
    with guided_pipeline(pipe, guidance, conditional_first=name == "dit"):
        log = drive(tiny, pipe, steps, guidance_scale=scale)
    return log


def gap(first: Any, second: Any) -> float:
    return max(float((a - b).abs().max() / a.abs().max()) for a, b in zip(first.states, second.states, strict=True))


@pytest.mark.parametrize("name", ["sd", "sdxl", "sd3", "ltx", "dit"])
def test_plain_guidance_is_the_pipelines_own_whatever_scale_it_is_given(name: str) -> None:
    for ours in (True, False):
        usual = driven(name, ours=ours)
        assert gap(usual, driven(name, STRONG, scale=1.7, ours=ours)) < 1e-5
        assert gap(usual, driven(name, ClassifierFree(5.0, {}), scale=1.7, ours=ours)) > 1e-4


@pytest.mark.parametrize("name", ["sd", "sd3"])
def test_other_rules_and_their_memory_of_one_run(name: str) -> None:
    apg = Projected(STRONG, eta=0.3, norm=2.0, momentum=-0.5)
    plain, whole = driven(name), Rescaled(apg, 0.5)
    assert gap(plain, driven(name, Projected(STRONG, eta=1.0))) < 1e-5
    assert gap(plain, driven(name, apg)) > 1e-4
    tiny = TINY[name]
    pipe = tiny.make(of_stock(tiny, method="dpm++"))
    with guided_pipeline(pipe, whole):
        first, second = drive(tiny, pipe, 4), drive(tiny, pipe, 4)
    assert gap(first, second) == 0.0
    assert gap(drive(tiny, pipe, 4), plain) < 1e-6  # outside, the pipeline's own


def test_outside_an_interval_one_half_is_evaluated() -> None:
    tiny, sizes = TINY["sd"], list[int]()
    pipe = tiny.make(of_stock(tiny, method="dpm++"))
    unet, forward = pipe.unet, pipe.unet.forward

    def counted(sample: Any, timestep: Any, encoder_hidden_states: Any, **kwargs: Any) -> Any:
        sizes.append(len(sample))
        return forward(sample, timestep, encoder_hidden_states, **kwargs)

    unet.forward = counted
    try:
        with guided_pipeline(pipe, Interval(STRONG, 1, 2, by="step")):
            drive(tiny, pipe, 4)
    finally:
        unet.forward = forward
    assert sizes == [2, 4, 4, 2]
    assert gap(driven("sd", Interval(STRONG, 0, 9, by="step")), driven("sd")) < 1e-5


def test_rescaling_is_that_of_diffusers() -> None:
    own, free = torch.randn(2, 3, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    plain = free + 3.0 * (own - free)
    assert torch.allclose(
        Rescaled(STRONG, 0.7).combine(own, free, own, None), rescale_noise_cfg(plain, own, 0.7), atol=1e-5
    )


def test_what_a_pipeline_cannot_do_is_refused() -> None:
    pipe = TINY["sd"].make(of_stock(TINY["sd"]))
    for guidance, message in (
        (PlusPlus(ClassifierFree(0.5, {})), "step of a table"),
        (lambda *a: None, "two branches"),
    ):
        with pytest.raises(ValueError, match=message), guided_pipeline(pipe, guidance):
            pass
    with pytest.raises(ValueError, match="no network denoiser"), guided_pipeline(pipe, STRONG, network="denoiser"):
        pass
    with guided_pipeline(pipe, STRONG), pytest.raises(ValueError, match="guidance_scale above 1"):
        pipe.unet(torch.zeros(1, 4, 8, 8), 500, encoder_hidden_states=torch.zeros(1, 5, 8))
