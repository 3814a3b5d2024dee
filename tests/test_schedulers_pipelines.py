"""Real pipelines with small random networks: our schedulers against `sample` and against the stock schedulers."""

import itertools
from typing import Any

import diffusers
import numpy as np
import pytest
import torch
from torch import Tensor

from pathline.samplers import schedulers as module
from pathline.samplers import seed_of
from pathline.samplers.schedulers import PathlineScheduler
from support.pipeline_runs import Log, drive, farthest, reference
from support.pipelines import BATCH, LATENT, TINY, Tiny, image_unet, quiet, seeded
from support.schedulers import METHODS

CLASSES = sorted(
    (cls for cls in vars(module).values() if isinstance(cls, type) and issubclass(cls, PathlineScheduler)),
    key=lambda cls: cls.__name__,
)
SETTINGS: dict[str, dict[str, Any]] = {
    "dpm++": {"method": "dpm++"},
    "unipc": {"method": "unipc", "options": {"order": 3}},
    "heun": {"method": "heun"},
    "dpm++-single": {"method": "dpm++-single"},
    "plms": {"method": "plms"},
    "ddim, eta 1": {"method": "ddim", "options": {"eta": 1.0}},
    "sa": {"method": "sa"},
    "dpm++ on its own grid": {"method": "dpm++", "grid": "logsnr"},
}
DRAWS_START = {"ddpm", "dit"}
ROUNDING = 2e-5  # float32 run against a float64 one; the networks amplify by up to a hundred
# stock schedulers of the multistep kind hand tensors to numpy in a way it deprecates
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")


def of_stock(tiny: Tiny, cls: type[PathlineScheduler] = PathlineScheduler, **pathline: Any) -> PathlineScheduler:
    scheduler: PathlineScheduler = cls.from_config(tiny.stock().config, pathline={"seed": 3, **pathline})
    return scheduler


def noise_seed(name: str, tiny: Tiny) -> int:
    """The config's seed; only DDPMPipeline hands its generator to the scheduler."""
    if name != "ddpm":
        return 3
    generator = seeded(4)
    torch.randn(tiny.drawn, generator=generator)
    return seed_of(generator)


def check(name: str, scheduler: PathlineScheduler, steps: int) -> Log:
    """Run the pipeline and compare with `sample`."""
    tiny = TINY[name]
    pipe = tiny.make(scheduler)
    log = drive(tiny, pipe, steps)
    calls = len(scheduler.timesteps)
    assert calls == scheduler.table.evaluations
    assert len(log.calls) == calls * tiny.calls
    assert scheduler.step_index == calls
    found, states = reference(tiny, pipe, log, seed=noise_seed(name, tiny))
    assert farthest(log, states) < ROUNDING
    assert all(bool(state.isfinite().all()) and state.dtype == torch.float32 for state in log.states)
    if tiny.shape is not None:
        assert len(log.shown) == calls
        assert all(torch.equal(shown, state) for shown, state in zip(log.shown, log.states, strict=True))
        assert tuple(log.result.shape) == tiny.shape
        assert torch.equal(log.result, log.states[-1])
    elif name == "ddpm":
        image = (found / 2 + 0.5).clamp(0, 1).permute(0, 2, 3, 1).numpy()
        np.testing.assert_allclose(log.result, image, atol=2e-4)
    return log


@pytest.mark.parametrize("settings", SETTINGS.values(), ids=SETTINGS.keys())
@pytest.mark.parametrize("name", TINY)
def test_pipeline_equals_sample(name: str, settings: dict[str, Any]) -> None:
    for steps in (1, 4):
        if (steps, settings.get("grid"), name) == (1, "logsnr", "ddpm"):
            continue
        check(name, of_stock(TINY[name], **settings), steps)


@pytest.mark.slow
@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("name", TINY)
def test_every_method_in_every_pipeline(name: str, method: str) -> None:
    for steps in (1, 2, 3, 7, 20):
        check(name, of_stock(TINY[name], method=method), steps)


@pytest.mark.parametrize("cls", CLASSES)
@pytest.mark.parametrize("name", ["sd", "flux"])
def test_every_class_in_a_pipeline(name: str, cls: type[PathlineScheduler]) -> None:
    check(name, of_stock(TINY[name], cls), 5)


def test_methods_are_told_apart() -> None:
    """What the tests above compare depends on the method: the networks are no constants."""
    for name, tiny in TINY.items():
        runs = {}
        for method in ("euler", "dpm++", "unipc", "lms"):
            runs[method] = drive(tiny, tiny.make(of_stock(tiny, method=method)), 5).states
        for one, other in itertools.combinations(runs, 2):
            pairs = zip(runs[one], runs[other], strict=True)
            gap = max(float((a - b).abs().max() / a.abs().max()) for a, b in pairs)
            assert gap > 20 * ROUNDING, (name, one, other)


@pytest.mark.parametrize("name", ["sd", "sdxl"])
@pytest.mark.parametrize("method", ["dpm++", "unipc", "heun"])
def test_analytic_first_step_with_guidance(name: str, method: str) -> None:
    """The pipeline passes doubled latents through scale_model_input, and single ones to step."""
    log = check(name, of_stock(TINY[name], method=method, options={"afs": True}, grid="logsnr"), 5)
    plain = drive(TINY[name], TINY[name].make(of_stock(TINY[name], method=method, grid="logsnr")), 5)
    assert len(log.calls) == len(plain.calls) - 1


LATENT_DPM = {**LATENT, "steps_offset": 1}
LEADING = {"timestep_spacing": "leading", "steps_offset": 1}
SIX = {"sigmas": np.linspace(1.0, 1 / 6, 6).tolist()}
# pipeline, stock scheduler with its config, our method, and arguments under which both mean the same run
STOCK: dict[str, tuple[str, str, dict[str, Any], str, dict[str, Any]]] = {
    "ddpm, ddim": ("ddpm", "DDIMScheduler", {"clip_sample": False}, "ddim", {}),
    "dit, ddim": ("dit", "DDIMScheduler", {"clip_sample": False}, "ddim", {}),
    "dit, dpm++ 2M": ("dit", "DPMSolverMultistepScheduler", {}, "dpm++", {}),
    "sd, ddim": ("sd", "DDIMScheduler", {"clip_sample": False, "set_alpha_to_one": False, **LATENT_DPM}, "ddim", {}),
    "sd, dpm++ 2M": ("sd", "DPMSolverMultistepScheduler", LATENT_DPM, "dpm++", {}),
    "sd, unipc": ("sd", "UniPCMultistepScheduler", LATENT_DPM, "unipc", {}),
    "sdxl, dpm++ 2M": ("sdxl", "DPMSolverMultistepScheduler", LATENT_DPM, "dpm++", {}),
    "sdxl, euler": ("sdxl", "EulerDiscreteScheduler", {**LATENT, **LEADING}, "euler", {}),
    "sdxl, heun": ("sdxl", "HeunDiscreteScheduler", {**LATENT, **LEADING}, "heun", {}),
    "sd3, euler": ("sd3", "FlowMatchEulerDiscreteScheduler", {"shift": 3.0}, "euler", SIX),
    "sd3, heun": ("sd3", "FlowMatchHeunDiscreteScheduler", {}, "heun", {}),
    "flux, euler": ("flux", "FlowMatchEulerDiscreteScheduler", {"use_dynamic_shifting": True}, "euler", {}),
    "wan, euler": ("wan", "FlowMatchEulerDiscreteScheduler", {}, "euler", {}),
    "ltx, euler": (
        "ltx",
        "FlowMatchEulerDiscreteScheduler",
        {"use_dynamic_shifting": True, "shift_terminal": 0.1},
        "euler",
        {},
    ),
}


@pytest.mark.parametrize("case", STOCK)
def test_pipeline_equals_the_stock_scheduler(case: str) -> None:
    """Schedulers that scale the noise up (σ_max) start elsewhere by a factor, so that the ends are compared."""
    name, cls, config, method, extra = STOCK[case]
    tiny, stock = TINY[name], getattr(diffusers, cls)(**config)
    ours = PathlineScheduler.from_config(stock.config, pathline={"method": method, "options": order_of(stock)})
    steps = 6
    log, theirs = (drive(tiny, tiny.make(scheduler), steps, **extra) for scheduler in (ours, stock))
    assert len(log.calls) == len(theirs.calls)
    times = [torch.stack([call["timestep"].double().reshape(-1)[0] for call in run.calls]) for run in (log, theirs)]
    torch.testing.assert_close(times[0], times[1], rtol=1e-6, atol=1e-3)
    final, expected = log.states[-1][:BATCH], theirs.states[-1][:BATCH]
    torch.testing.assert_close(final, expected, rtol=0, atol=1e-4 * float(expected.abs().max()))


def order_of(stock: Any) -> dict[str, Any]:
    order = stock.config.get("solver_order")
    return {} if order is None else {"order": order}


# --- DDIMPipeline ------------------------------------------------------------------------------------------------


def ddim_pipeline() -> Any:
    return quiet(diffusers.DDIMPipeline(image_unet(), diffusers.DDIMScheduler(clip_sample=False)))


def ddim_images(pipe: Any, **extra: Any) -> Tensor:
    images = pipe(batch_size=2, num_inference_steps=5, generator=seeded(4), output_type="np", **extra).images
    return torch.tensor(images)


def test_ddim_pipeline_converts_what_it_is_given_but_not_what_is_assigned() -> None:
    pipe = ddim_pipeline()
    stock = ddim_images(pipe)
    ours = module.DDIMScheduler.from_config(pipe.scheduler.config)
    assert type(diffusers.DDIMPipeline(image_unet(), ours).scheduler) is diffusers.DDIMScheduler
    pipe.scheduler = ours
    torch.testing.assert_close(ddim_images(pipe), stock, atol=2e-4, rtol=0)
    pipe.scheduler = module.UniPCScheduler.from_config(pipe.scheduler.config)
    assert float((ddim_images(pipe) - stock).abs().max()) > 1e-3


def test_eta_of_ddim_pipeline_belongs_into_the_config() -> None:
    pipe = ddim_pipeline()
    pipe.scheduler = module.DDIMScheduler.from_config(pipe.scheduler.config, pathline={"options": {"eta": 1.0}})
    first = ddim_images(pipe)
    assert torch.equal(ddim_images(pipe), first)
    with pytest.raises(ValueError, match=r"eta=0\.5"):
        ddim_images(pipe, eta=0.5)


def test_generators_of_the_images_reach_the_noise() -> None:
    """DDPMPipeline passes its generators on; a list makes an image independent of the batch it is in."""
    tiny = TINY["ddpm"]
    scheduler = of_stock(tiny, method="ddpm")
    pipe = quiet(tiny.make(scheduler))

    def images(*seeds: int) -> Tensor:
        generators = [seeded(seed) for seed in seeds]
        found = pipe(batch_size=len(seeds), generator=generators, num_inference_steps=4, output_type="np").images
        return torch.tensor(found)

    both = images(1, 2)
    torch.testing.assert_close(both, torch.cat([images(1), images(2)]), atol=2e-4, rtol=0)
    assert float((both[0] - both[1]).abs().max()) > 0.01
