"""Configs: from every stock scheduler, round trips, spacing as stock, saving and loading with a pipeline."""

import inspect
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import diffusers
import numpy as np
import pytest
import torch

from pathline.samplers import sample
from pathline.samplers import schedulers as module
from pathline.samplers.schedulers import (
    DDIMScheduler,
    DPMSolverPPScheduler,
    HeunScheduler,
    PathlineScheduler,
    UniPCScheduler,
)
from pathline.samplers.wrappers import from_diffusers

CLASSES = [cls for cls in vars(module).values() if inspect.isclass(cls) and issubclass(cls, PathlineScheduler)]
# stock schedulers of the multistep kind hand tensors to numpy in a way it deprecates
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")
LATENT = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}


def unet(seed: int = 0) -> Any:
    torch.manual_seed(seed)
    return diffusers.UNet2DModel(
        sample_size=8,
        in_channels=3,
        out_channels=3,
        block_out_channels=(8, 8),
        layers_per_block=1,
        norm_num_groups=4,
        down_block_types=("DownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "UpBlock2D"),
    ).eval()


def test_module_is_what_a_saved_pipeline_names() -> None:
    assert module.SchedulerMixin is diffusers.SchedulerMixin
    for cls in CLASSES:
        assert cls.__module__ == "pathline.samplers.schedulers"
        assert getattr(module, cls.__name__) is cls
        assert cls.order == 1
        assert "eta" not in inspect.signature(cls.step).parameters


def test_defaults_are_those_of_the_stock_flow_scheduler() -> None:
    stock = diffusers.FlowMatchEulerDiscreteScheduler().config
    ours = PathlineScheduler().config
    assert {key: ours[key] for key in stock if not key.startswith("_")} == {
        key: value for key, value in stock.items() if not key.startswith("_")
    }


@pytest.mark.parametrize(
    ("stock", "options"),
    [
        ("DDPMScheduler", {}),
        ("DDIMScheduler", {"timestep_spacing": "trailing", **LATENT}),
        ("DDIMScheduler", {"steps_offset": 1, **LATENT}),
        ("PNDMScheduler", {"skip_prk_steps": True, "steps_offset": 1, **LATENT}),
        ("EulerDiscreteScheduler", {"timestep_spacing": "trailing"}),
        ("DPMSolverMultistepScheduler", {}),
        ("DPMSolverMultistepScheduler", {"timestep_spacing": "leading", "steps_offset": 1, **LATENT}),
        ("UniPCMultistepScheduler", {"prediction_type": "v_prediction", "beta_schedule": "squaredcos_cap_v2"}),
        ("DEISMultistepScheduler", {}),
        ("DDPMScheduler", {"rescale_betas_zero_snr": True, "prediction_type": "v_prediction"}),
        ("DDPMScheduler", {"trained_betas": [0.1, 0.2, 0.3, 0.4], "num_train_timesteps": 4}),
    ],
)
def test_beta_schedule_and_spacing_are_the_stock_ones(stock: str, options: dict[str, Any]) -> None:
    theirs = getattr(diffusers, stock)(**options)
    ours = PathlineScheduler.from_config(theirs.config)
    assert torch.equal(ours.betas, theirs.betas)
    assert torch.equal(ours.alphas_cumprod[:-1], theirs.alphas_cumprod[:-1])
    assert ours.config.prediction_type == theirs.config.prediction_type
    for steps in (3, 4) if "trained_betas" in options else (1, 7, 20, 50):
        ours.set_timesteps(steps)
        theirs.set_timesteps(steps)
        expected = np.unique(theirs.timesteps.numpy())[::-1] if stock == "PNDMScheduler" else theirs.timesteps.numpy()
        assert ours.timesteps.tolist() == expected.tolist()


@pytest.mark.parametrize("kind", ["karras", "exponential", "beta"])
def test_switches_for_levels_reach_the_stock_levels(kind: str) -> None:
    theirs = diffusers.UniPCMultistepScheduler(**{f"use_{kind}_sigmas": True})
    ours = PathlineScheduler.from_config(theirs.config)
    ours.set_timesteps(12)
    theirs.set_timesteps(12)
    torch.testing.assert_close(ours.sigmas, theirs.sigmas, rtol=2e-4, atol=1e-6)


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"shift": 3.0},
        {"shift_terminal": 0.1},
        {"use_karras_sigmas": True},
        {"use_exponential_sigmas": True},
        {"use_beta_sigmas": True, "shift": 2.0},
        {"use_dynamic_shifting": True},
        {"use_dynamic_shifting": True, "time_shift_type": "linear"},
        {"invert_sigmas": True},
    ],
)
def test_flow_sigmas_sent_by_a_pipeline_become_the_stock_ones(options: dict[str, Any]) -> None:
    theirs = diffusers.FlowMatchEulerDiscreteScheduler(**options)
    ours = PathlineScheduler.from_config(theirs.config)
    mu = {"mu": 0.8} if options.get("use_dynamic_shifting") else {}
    given = np.linspace(1.0, 1 / 9, 9)
    ours.set_timesteps(sigmas=given, **mu)
    theirs.set_timesteps(sigmas=given, **mu)
    torch.testing.assert_close(ours.sigmas, theirs.sigmas, rtol=2e-6, atol=1e-6)
    torch.testing.assert_close(ours.timesteps, theirs.timesteps, rtol=2e-6, atol=2e-3)


def test_shift_is_applied_once() -> None:
    ours = PathlineScheduler(shift=3.0)
    ours.set_timesteps(10)
    plain = np.linspace(1.0, 0.001, 10)
    np.testing.assert_allclose(ours.sigmas[:-1].numpy(), 3 * plain / (1 + 2 * plain), rtol=1e-6)


def test_flow_shift_of_multistep_schedulers_is_kept() -> None:
    theirs = diffusers.UniPCMultistepScheduler(prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=5.0)
    ours = UniPCScheduler.from_config(theirs.config)
    assert ours.shift == 5.0
    assert ours.config.pathline["options"] == {"order": 2}
    ours.set_timesteps(20)
    theirs.set_timesteps(20)
    torch.testing.assert_close(ours.sigmas, theirs.sigmas, rtol=1e-6, atol=2e-6)
    for_flux = UniPCScheduler.from_config(theirs.config, use_flow_sigmas=False)
    assert for_flux.shift == 5.0
    assert not for_flux.config.use_flow_sigmas


def test_dynamic_shift_without_mu_says_what_it_uses_once() -> None:
    ours = PathlineScheduler(use_dynamic_shifting=True, shift=2.0)
    with pytest.warns(UserWarning, match="static shift 2"):
        ours.set_timesteps(4)
    ours.set_timesteps(5)
    other = PathlineScheduler(use_dynamic_shifting=True, pathline={"mu": 1.1})
    with pytest.warns(UserWarning, match=r"mu=1\.1"):
        other.set_timesteps(4)
    given = PathlineScheduler(use_dynamic_shifting=True)
    given.set_timesteps(4, mu=1.1)
    assert torch.equal(given.sigmas, other.sigmas)


@pytest.mark.parametrize("cls", CLASSES)
def test_round_trips_keep_everything(cls: type, tmp_path: Path) -> None:
    settings = {"options": {}, "grid": "karras", "grid_options": {"rho": 5.0}, "seed": 7}
    source = diffusers.DDIMScheduler(steps_offset=1, **LATENT)
    first = cls.from_config(source.config, pathline=settings)
    first.save_pretrained(tmp_path)
    assert json.loads((tmp_path / "scheduler_config.json").read_text())["pathline"] == settings
    second = cls.from_pretrained(tmp_path)
    through_stock = diffusers.DPMSolverMultistepScheduler.from_config(second.config)
    third = cls.from_config(through_stock.config)
    for copy in (second, third):
        assert copy.config.pathline == settings
        assert copy.config.steps_offset == 1
        for scheduler in (first, copy):
            scheduler.set_timesteps(6)
        assert torch.equal(first.sigmas, copy.sigmas)
        assert copy.table.rows == first.table.rows


def test_stock_config_file_without_keys_takes_the_defaults_of_its_class(tmp_path: Path) -> None:
    (tmp_path / "scheduler_config.json").write_text(
        json.dumps({"_class_name": "DPMSolverMultistepScheduler", "num_train_timesteps": 1000, **LATENT})
    )
    ours = PathlineScheduler.from_pretrained(tmp_path)
    assert ours.config.prediction_type == "epsilon"
    assert ours.config.timestep_spacing == "linspace"


@pytest.mark.parametrize("name", ["EDMEulerScheduler", "ScoreSdeVeScheduler", "IPNDMScheduler"])
def test_schedulers_of_other_families_are_refused(name: str) -> None:
    with pytest.raises(ValueError, match="neither a flow model nor a schedule with betas"):
        PathlineScheduler.from_config(getattr(diffusers, name)().config)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"pathline": {"methd": "ddim"}}, "did you mean 'method'"),
        ({"pathline": {"method": "unipcc"}}, "did you mean 'unipc'"),
        ({"pathline": {"method": "dopri5"}}, "'dopri5' chooses its own steps"),
        ({"pathline": {"method": "unipc", "options": {"ordr": 2}}}, "did you mean 'order'"),
        ({"pathline": {"grid": "karas"}}, "did you mean 'karras'"),
        ({"pathline": {"seed": "one"}}, "seed='one'"),
        ({"prediction_type": "epsilom"}, "did you mean 'epsilon'"),
        ({"time_shift_type": "exp"}, "time_shift_type"),
        ({"prediction_type": "epsilon", "beta_schedule": "lineer"}, "did you mean 'linear'"),
        ({"prediction_type": "epsilon", "timestep_spacing": "trailin"}, "did you mean 'trailing'"),
        ({"final_sigmas_type": "sigma"}, "final_sigmas_type"),
        ({"stochastic_sampling": True}, "name one in 'pathline'"),
        ({"use_karras_sigmas": True, "use_beta_sigmas": True}, "only one of"),
        ({"pathline": "unipc"}, "give a dict"),
        ({"pathline": {"options": 3}}, "options=3 .* it is a dict"),
        ({"pathline": {"mu": "a"}}, "mu='a' .* it is a int or float"),
        ({"pathline": {"exact_sigmas": "yes"}}, "exact_sigmas='yes' .* it is a bool"),
        ({"pathline": {"method": "i2sb"}}, "'i2sb' runs on bridges"),
        ({"num_train_timesteps": 0}, "num_train_timesteps=0"),
        ({"shift": -1.0}, "shift=-1.0 .* positive"),
    ],
)
def test_wrong_settings_are_named(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        PathlineScheduler(**arguments)


def test_named_classes_are_default_configurations() -> None:
    methods = {
        DDIMScheduler: "ddim",
        HeunScheduler: "heun",
        DPMSolverPPScheduler: "dpm++",
        UniPCScheduler: "unipc",
    }
    for cls, method in methods.items():
        scheduler = cls()
        scheduler.set_timesteps(5)
        assert scheduler.table.method == method
        assert set(CLASSES) <= set(scheduler.compatibles)
    scheduler = DDIMScheduler(pathline={"options": {"eta": 0.5}})
    scheduler.set_timesteps(5)
    assert scheduler.table.options["eta"] == 0.5


@pytest.mark.parametrize("cls", CLASSES)
@pytest.mark.parametrize("flow", [False, True])
def test_ddpm_pipeline_equals_sample(cls: type, flow: bool) -> None:
    source = diffusers.FlowMatchEulerDiscreteScheduler() if flow else diffusers.DDPMScheduler(clip_sample=False)
    scheduler = cls.from_config(source.config, pathline={"seed": 3})
    pipe = diffusers.DDPMPipeline(unet(), scheduler)
    pipe.set_progress_bar_config(disable=True)
    shown = pipe(
        batch_size=2, num_inference_steps=5, generator=torch.Generator().manual_seed(4), output_type="np"
    ).images
    generator = torch.Generator().manual_seed(4)  # the pipeline hands it to `step` as well
    start = torch.randn(2, 3, 8, 8, generator=generator)
    method, options = scheduler.table.method, scheduler._settings.options
    network = from_diffusers(pipe.unet, scheduler)
    ours = sample(network, start, method=method, grid=scheduler.nodes, seed=generator, **options)
    expected = (ours / 2 + 0.5).clamp(0, 1).permute(0, 2, 3, 1).numpy()
    np.testing.assert_allclose(shown, expected, atol=2e-4)


LOAD = """
import sys, torch, diffusers
import pathline.samplers.schedulers
pipe = diffusers.DiffusionPipeline.from_pretrained(sys.argv[1])
pipe.set_progress_bar_config(disable=True)
print(type(pipe.scheduler).__name__, pipe.scheduler.config.pathline)
images = pipe(batch_size=1, num_inference_steps=4, generator=torch.Generator().manual_seed(0), output_type="np").images
print(repr(float(images.sum())))
"""


def test_saved_pipeline_opens_in_a_fresh_process(tmp_path: Path) -> None:
    scheduler = UniPCScheduler.from_config(diffusers.DDPMScheduler().config, pathline={"options": {"order": 2}})
    pipe = diffusers.DDPMPipeline(unet(), scheduler)
    pipe.set_progress_bar_config(disable=True)
    pipe.save_pretrained(tmp_path)
    index = json.loads((tmp_path / "model_index.json").read_text())
    assert index["scheduler"] == ["pathline.samplers.schedulers", "UniPCScheduler"]
    images = pipe(
        batch_size=1, num_inference_steps=4, generator=torch.Generator().manual_seed(0), output_type="np"
    ).images
    done = subprocess.run([sys.executable, "-c", LOAD, str(tmp_path)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    name, total = done.stdout.strip().splitlines()[-2:]
    assert name == "UniPCScheduler {'options': {'order': 2}}"
    assert float(total) == pytest.approx(float(images.sum()), rel=1e-5)


@pytest.mark.parametrize("name", ["LCMScheduler", "TCDScheduler", "DDIMInverseScheduler", "FlowMatchLCMScheduler"])
def test_classes_whose_rule_is_not_taken_over_say_so(name: str) -> None:
    stock = getattr(diffusers, name)()
    with pytest.warns(UserWarning, match=rf"{name}( or \w+)? has no equal here"):
        PathlineScheduler.from_config(stock.config)
