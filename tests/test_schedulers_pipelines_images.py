"""Runs that begin at an image: img2img and inpainting, in the pipelines of both families."""

import dataclasses
from typing import Any

import diffusers
import numpy as np
import pytest
import torch
from torch import Tensor

from pathline.samplers import seed_of
from pathline.samplers.schedulers import PathlineScheduler
from support.pipeline_runs import Log, drive, farthest, reference
from support.pipelines import (
    BATCH,
    IMAGE,
    LATENT,
    TINY,
    Tiny,
    draw,
    flux,
    ltx_arguments,
    ltx_transformer,
    ltx_vae,
    quiet,
    sd,
    seeded,
)

STRENGTHS = (0.3, 0.6, 1.0)
ROUNDING = 2e-5
SETTINGS: dict[str, dict[str, Any]] = {
    "dpm++": {"method": "dpm++"},
    "unipc": {"method": "unipc"},
    "dpm++-sde": {"method": "dpm++-sde"},
    "heun": {"method": "heun"},
    "dpm++-single": {"method": "dpm++-single"},
    "plms": {"method": "plms"},
}
IMAGES: dict[str, Tiny] = {
    "sd": dataclasses.replace(TINY["sd"], make=sd(diffusers.StableDiffusionImg2ImgPipeline), shape=None),
    "flux": dataclasses.replace(TINY["flux"], make=flux(diffusers.FluxImg2ImgPipeline), shape=None),
}
MASK = torch.zeros(1, 1, 16, 16)
MASK[..., 8:] = 1.0  # the right half is painted anew
# stock schedulers of the multistep kind hand tensors to numpy in a way it deprecates
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")


def image_latents() -> Tensor:
    return draw(BATCH, 4, 8, 8, seed=9)


def left(scheduler: Any, name: str, steps: int, strength: float) -> int:
    """How many of the timesteps diffusers leaves; only after sending sigmas it takes their number for the steps."""
    total = len(scheduler.timesteps)
    if name == "sd":
        return total - (steps - int(steps * strength)) * int(scheduler.order)
    return total - int(total - total * strength) * int(scheduler.order)


def from_image(name: str, scheduler: Any, steps: int, strength: float) -> tuple[Any, Log]:
    tiny = IMAGES[name]
    pipe = tiny.make(scheduler)
    given = tiny.arguments()
    if name == "sd":  # takes its size from the image; one with 4 channels is in latent space already
        given = {key: value for key, value in given.items() if key not in ("height", "width")}
        given["image"] = image_latents()
    else:
        given["image"] = draw(BATCH, 3, 16, 16, seed=9).clamp(-1, 1)
    tiny = dataclasses.replace(tiny, arguments=lambda: given)
    return pipe, drive(tiny, pipe, steps, strength=strength)


@pytest.mark.parametrize("settings", SETTINGS.values(), ids=SETTINGS.keys())
@pytest.mark.parametrize("name", IMAGES)
def test_strength_leaves_the_calls_that_diffusers_says(name: str, settings: dict[str, Any]) -> None:
    tiny = IMAGES[name]
    for strength in STRENGTHS:
        scheduler = PathlineScheduler.from_config(tiny.stock().config, pathline={"seed": 3, **settings})
        pipe, log = from_image(name, scheduler, 7, strength)
        calls = len(scheduler.timesteps)
        expected = left(scheduler, name, 7, strength)
        assert len(log.calls) == len(log.shown) == expected
        assert bool(log.result.isfinite().all())
        if name == "flux":  # the latent model's levels end above noise 0
            torch.testing.assert_close(log.states[-1], scheduler.pred_original_sample, rtol=1e-4, atol=1e-4)
        check_rest(tiny, pipe, log, calls - expected)


def noise_seed(tiny: Tiny) -> int:
    """Stable Diffusion hands its generator on to the scheduler after drawing the start; Flux does not."""
    if tiny.network == "transformer":
        return 3
    generator = seeded(4)
    torch.randn(BATCH, 4, 8, 8, generator=generator)
    return seed_of(generator)


def check_rest(tiny: Tiny, pipe: Any, log: Log, begin: int) -> None:
    """What is left is a fresh run from the level of its first call; one call more if that was within a step."""
    scheduler, state = pipe.scheduler, "sample" if tiny.network == "unet" else "hidden_states"
    levels = [row.level.time for row in scheduler.table.rows if row.calls_network]
    gaps = np.abs(scheduler.nodes.time[:-1] - levels[begin])
    if gaps.min() > 1e-9:
        return  # an inner stage between two nodes; test_schedulers_state.py has those
    nodes = scheduler.nodes.part(int(gaps.argmin()))
    start = log.calls[0][state][:BATCH]
    found, states = reference(tiny, pipe, log, start=start, nodes=nodes, seed=noise_seed(tiny))
    if len(states) == len(log.states):
        assert farthest(log, states) < ROUNDING
    elif len(states) == len(log.states) - 1:
        assert float((log.states[-1] - found).abs().max() / found.abs().max()) < ROUNDING


@pytest.mark.parametrize(("name", "method"), [("flux", "heun"), ("flux", "runge-kutta"), ("sd", "plms")])
def test_strength_means_the_same_noise_for_every_method(name: str, method: str) -> None:
    """Up to a step, which is as finely as a multi-stage method can be cut.

    Pipelines that send a number of steps slice the calls of such methods as if they were steps; `order` cannot be
    right for both kinds of pipelines.
    """
    tiny, first = IMAGES[name], {}
    for which in ("dpm++", method):
        scheduler = PathlineScheduler.from_config(tiny.stock().config, pathline={"method": which})
        _, log = from_image(name, scheduler, 10, 0.3)
        first[which] = float(scheduler.timesteps[len(scheduler.timesteps) - len(log.calls)])
    assert abs(first[method] - first["dpm++"]) <= 101


@pytest.mark.parametrize("method", ["dpm++", "heun"])
def test_image_is_noised_to_the_level_of_the_first_call(method: str) -> None:
    tiny = IMAGES["sd"]
    for strength in STRENGTHS:
        scheduler = PathlineScheduler.from_config(tiny.stock().config, pathline={"method": method})
        _, log = from_image("sd", scheduler, 7, strength)
        rows = [row for row in scheduler.table.rows if row.calls_network]
        level = rows[len(rows) - len(log.calls)].level
        noise = torch.randn(BATCH, 4, 8, 8, generator=seeded(4))
        torch.testing.assert_close(
            log.calls[0]["sample"][:BATCH], level.signal * image_latents() + level.noise * noise, rtol=1e-5, atol=1e-5
        )


@pytest.mark.parametrize(
    ("name", "cls", "config", "method"),
    [
        ("sd", "DDIMScheduler", {"clip_sample": False, "set_alpha_to_one": False, "steps_offset": 1}, "ddim"),
        ("sd", "DPMSolverMultistepScheduler", {"steps_offset": 1, "solver_order": 2}, "dpm++"),
        ("sd", "UniPCMultistepScheduler", {"steps_offset": 1, "solver_order": 2}, "unipc"),
        ("flux", "FlowMatchEulerDiscreteScheduler", {"use_dynamic_shifting": True}, "euler"),
    ],
)
def test_img2img_equals_the_stock_scheduler(name: str, cls: str, config: dict[str, Any], method: str) -> None:
    stock = getattr(diffusers, cls)(**config, **(LATENT if name == "sd" else {}))
    options = {"order": 2} if "solver_order" in config else {}
    ours = PathlineScheduler.from_config(stock.config, pathline={"method": method, "options": options})
    for strength in STRENGTHS:
        found, expected = (from_image(name, scheduler, 7, strength)[1] for scheduler in (ours, stock))
        scale = float(expected.result.abs().max())
        torch.testing.assert_close(found.result, expected.result, rtol=0, atol=1e-4 * scale)


# --- inpainting --------------------------------------------------------------------------------------------------


def painted(scheduler: Any, steps: int, channels: int = 4, strength: float = 1.0) -> Log:
    tiny = dataclasses.replace(TINY["sd"], make=sd(diffusers.StableDiffusionInpaintPipeline, channels), shape=None)
    known = {"image": image_latents(), "mask_image": MASK, "masked_image_latents": image_latents()}
    return drive(tiny, tiny.make(scheduler), steps, strength=strength, **known)


@pytest.mark.parametrize("settings", SETTINGS.values(), ids=SETTINGS.keys())
def test_known_region_ends_as_the_image(settings: dict[str, Any]) -> None:
    """Before, it holds the image at the level of the next call, which the network is told."""
    scheduler = PathlineScheduler.from_config(TINY["sd"].stock().config, pathline={"seed": 3, **settings})
    for strength in (0.6, 1.0):
        log = painted(scheduler, 5, strength=strength)
        rows = [row for row in scheduler.table.rows if row.calls_network]
        assert len(log.calls) == left(scheduler, "sd", 5, strength)
        assert torch.equal(log.result[..., :4], image_latents()[..., :4])
        assert bool(log.result.isfinite().all())
        noise = torch.randn(BATCH, 4, 8, 8, generator=seeded(4))
        following = rows[len(rows) - len(log.calls) + 1 :]
        for row, latents, call in zip(following, log.shown, log.calls[1:], strict=False):
            image = row.level.signal * image_latents() + row.level.noise * noise
            torch.testing.assert_close(latents[..., :4], image[..., :4], rtol=1e-5, atol=1e-5)
            assert torch.equal(call["sample"][:BATCH], latents)


def test_network_with_mask_channels() -> None:
    scheduler = PathlineScheduler.from_config(TINY["sd"].stock().config, pathline={"method": "unipc"})
    log = painted(scheduler, 5, channels=9)
    assert len(log.calls) == 5
    assert bool(log.result.isfinite().all())


@pytest.mark.parametrize(
    ("cls", "config", "method"),
    [
        ("DDIMScheduler", {"clip_sample": False, "set_alpha_to_one": False}, "ddim"),
        ("DPMSolverMultistepScheduler", {}, "dpm++"),
        ("EulerDiscreteScheduler", {"timestep_spacing": "leading"}, "euler"),
    ],
)
def test_inpainting_equals_the_stock_scheduler(cls: str, config: dict[str, Any], method: str) -> None:
    """Each takes the blended latents as the state it continues from."""
    stock = getattr(diffusers, cls)(steps_offset=1, **config, **LATENT)
    ours = PathlineScheduler.from_config(stock.config, pathline={"method": method})
    for strength in (0.6, 1.0):
        found, expected = (painted(scheduler, 6, strength=strength) for scheduler in (ours, stock))
        scale = float(expected.result.abs().max())
        torch.testing.assert_close(found.result, expected.result, rtol=0, atol=1e-4 * scale)


def test_flux_inpainting() -> None:
    tiny = dataclasses.replace(TINY["flux"], make=flux(diffusers.FluxInpaintPipeline), shape=None)
    image = draw(BATCH, 3, 16, 16, seed=9).clamp(-1, 1)
    results = []
    for make in (
        lambda config: diffusers.FlowMatchEulerDiscreteScheduler.from_config(config),
        lambda config: PathlineScheduler.from_config(config, pathline={"method": "euler"}),
    ):
        pipe = tiny.make(make(tiny.stock().config))
        log = drive(tiny, pipe, 6, image=image, mask_image=MASK, strength=0.8, **IMAGE)
        assert len(log.calls) == left(pipe.scheduler, "flux", 6, 0.8)
        results.append(log.result)
    torch.testing.assert_close(results[1], results[0], rtol=0, atol=1e-4 * float(results[0].abs().max()))


def video_from_frame(scheduler: Any, strength: float = 1.0) -> Tensor:
    """A video whose first frame is given: its tokens have times of their own."""
    pipe = quiet(diffusers.LTXConditionPipeline(scheduler, ltx_vae(), None, None, ltx_transformer()))
    frame = draw(BATCH, 3, 64, 64, seed=9).clamp(-1, 1)
    given = {**ltx_arguments(), "image": frame, "strength": strength, "generator": seeded(4)}
    result: Tensor = pipe(**given, num_inference_steps=6)[0]
    return result


# the stock class doubts timesteps without sigmas, as this pipeline sends them
@pytest.mark.filterwarnings("ignore:.timesteps. were passed without .sigmas.")
@pytest.mark.parametrize("strength", [1.0, 0.7])
def test_tokens_with_times_of_their_own(strength: float) -> None:
    config = diffusers.FlowMatchEulerDiscreteScheduler().config
    expected = video_from_frame(diffusers.FlowMatchEulerDiscreteScheduler(), strength)
    ours = video_from_frame(PathlineScheduler.from_config(config, pathline={"method": "euler"}), strength)
    torch.testing.assert_close(ours, expected, rtol=0, atol=1e-4 * float(expected.abs().max()))
    for method in ("dpm++", "unipc", "dpm++-sde"):
        other = video_from_frame(
            PathlineScheduler.from_config(config, pathline={"method": method, "seed": 3}), strength
        )
        assert bool(other.isfinite().all())
        assert float((other - expected).abs().max()) > 1e-3
