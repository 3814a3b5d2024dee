"""Clipping and thresholding in a scheduler's config act as in diffusers and as `sample(..., thresholding=...)`."""

import inspect
from pathlib import Path
from typing import Any

import diffusers
import pytest
import torch
from diffusers.configuration_utils import FrozenDict
from torch import Tensor

from pathline.evals.agreement.stock import Setting, StockRun, output, quiet, run_stock, start_and_noises
from pathline.samplers import DynamicThreshold, StaticThreshold, from_diffusers, sample
from pathline.samplers.schedulers import DDIMScheduler, PathlineScheduler, beta_family, stepper
from support.schedulers import BETAS, METHODS, latents, network, steps_over

pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")

CLIP: dict[str, Any] = {"clip_sample": True, "clip_sample_range": 0.6}
DYNAMIC: dict[str, Any] = {"thresholding": True, "dynamic_thresholding_ratio": 0.7, "sample_max_value": 1.4}
FLOW: dict[str, Any] = {"prediction_type": "flow_prediction", "use_flow_sigmas": True, "flow_shift": 3.0}
SECOND = {"order": 2, "lower_order_final": True}
LEADING = {"timestep_spacing": "leading"}
AS_WE_DO = {"use_clipped_model_output": True}
STEPS = 8


def given(**options: Any) -> Any:
    return lambda steps, run: options


def windowed(steps: int, run: StockRun) -> dict[str, Any]:
    """The stock default of SA-Solver's tau."""
    return {"order": 2, "corrector_order": 2, "tau": [float(200 <= t <= 800) for t in run.timesteps]}


def stock_settings() -> list[Setting]:
    found = []
    for kind in ("epsilon", "sample", "v_prediction"):
        for rule in (CLIP, DYNAMIC):
            config = {**LEADING, **rule, "prediction_type": kind}
            found.append(Setting("DDIMScheduler", config, "ddim", given(), AS_WE_DO))
    for rule in (CLIP, DYNAMIC):
        found.append(Setting("DDPMScheduler", {**LEADING, **rule}, "ddim", given(eta=1.0)))
    multi = "DPMSolverMultistepScheduler"
    for config, method in (
        ({}, "dpm++"),
        (FLOW, "dpm++"),
        ({"algorithm_type": "sde-dpmsolver++"}, "dpm++-sde"),
        ({"algorithm_type": "dpmsolver", "final_sigmas_type": "sigma_min"}, "dpm"),
    ):
        found.append(Setting(multi, {**DYNAMIC, **config}, method, given(**SECOND)))
    found.append(Setting("UniPCMultistepScheduler", {**DYNAMIC}, "unipc", given(order=2)))
    found.append(Setting("UniPCMultistepScheduler", {**DYNAMIC, **FLOW}, "unipc", given(order=2)))
    deis = given(variant="logrho", **SECOND)
    found.append(Setting("DEISMultistepScheduler", {**DYNAMIC}, "deis", deis))
    found.append(Setting("SASolverScheduler", {**DYNAMIC}, "sa", windowed))
    found.append(Setting("HeunDiscreteScheduler", {**CLIP}, "heun", given()))
    return found


def widen_betas(monkeypatch: pytest.MonkeyPatch) -> None:
    """Our schedule in float64, as `run_stock` widens that of diffusers; and its stored normals, one a step."""

    def betas(config: Any) -> Tensor:
        return torch.linspace(config["beta_start"], config["beta_end"], 1000, dtype=torch.float64)

    monkeypatch.setattr(beta_family, "betas_of", betas)
    draws = start_and_noises()[1]
    monkeypatch.setattr(stepper.StepNoise, "__call__", lambda self, row, slot, like, generator: draws[row])


def ours(setting: Setting, run: StockRun, **changes: Any) -> Tensor:
    """Our run from the same config; where our spacing is not the stock one, at the levels of the stock run."""
    with quiet():
        source = getattr(diffusers, setting.name)(**setting.config).config
    pathline = {"method": setting.method, "options": setting.options(STEPS, run), "exact_sigmas": True}
    if setting.name.startswith(("DEIS", "SA")):  # end at the lowest training level, but have no key that says so
        changes["final_sigmas_type"] = "sigma_min"
    scheduler = PathlineScheduler.from_config(source, pathline=pathline, **changes)
    if "use_flow_sigmas" in setting.config:
        scheduler.set_timesteps(sigmas=[noise for _, noise in run.levels])
    elif setting.name.startswith(("Heun", "SA")):
        scheduler.set_timesteps(sigmas=[noise / signal for signal, noise in dict.fromkeys(run.levels)])
    else:
        scheduler.set_timesteps(STEPS)
    levels = [row.level for row in scheduler.table.rows if row.calls_network]
    x = start_and_noises()[0]
    for t, level in zip(scheduler.timesteps, levels, strict=True):
        out = output(x, level.signal, level.noise, scheduler.config.prediction_type)
        x = scheduler.step(out, t, x, return_dict=False)[0]
    return x


@pytest.mark.parametrize("setting", stock_settings(), ids=lambda s: s.label)
def test_the_rule_of_a_stock_scheduler_acts_as_its_own(setting: Setting, monkeypatch: pytest.MonkeyPatch) -> None:
    run = run_stock(setting, STEPS)
    widen_betas(monkeypatch)
    torch.testing.assert_close(ours(setting, run), run.sample, rtol=1e-9, atol=1e-9)
    without = ours(setting, run, clip_sample=False, thresholding=False)
    assert float((without - run.sample).abs().max()) > 0.01, "the rule changes the run"


def test_stock_defaults_clip_as_stock() -> None:
    """The config of a stock DDIM or DDPM says clip_sample unless it was told otherwise."""
    scheduler = DDIMScheduler.from_config(diffusers.DDIMScheduler().config)
    x = 3 * latents()
    scheduler.set_timesteps(5)
    assert float(steps_over(scheduler, x, scheduler.timesteps).abs().max()) == 1.0
    plain = DDIMScheduler.from_config(diffusers.DDIMScheduler(clip_sample=False).config)
    plain.set_timesteps(5)
    assert float(steps_over(plain, x, plain.timesteps).abs().max()) > 1.5


def test_keys_that_the_source_ignores_stay_without_effect() -> None:
    for source in (
        diffusers.UniPCMultistepScheduler(thresholding=True, predict_x0=False),
        diffusers.CogVideoXDDIMScheduler(snr_shift_scale=1.0),
    ):
        config = PathlineScheduler.from_config(source.config).config
        assert (config.clip_sample, config.thresholding) == (False, False), source
    assert PathlineScheduler.from_config(
        diffusers.UniPCMultistepScheduler(thresholding=True).config
    ).config.thresholding


KEYS = ("clip_sample", "clip_sample_range", "thresholding", "dynamic_thresholding_ratio", "sample_max_value")


def stock_with_keys() -> list[type]:
    found = [getattr(diffusers, name) for name in dir(diffusers) if name.endswith("Scheduler")]
    left_out = ("EDM", "CogVideoX", "Cosine", "Helios")  # refused, or never applied
    return [
        cls
        for cls in found
        if {"clip_sample", "thresholding"} & set(inspect.signature(cls.__init__).parameters)
        and not cls.__name__.startswith(left_out)
    ]


@pytest.mark.filterwarnings("ignore:.* has no equal here")
@pytest.mark.parametrize("cls", stock_with_keys(), ids=lambda cls: cls.__name__)
def test_configs_carry_the_keys_both_ways(cls: Any, tmp_path: Path) -> None:
    known = inspect.signature(cls.__init__).parameters
    own = {key: value for key, value in {**CLIP, **DYNAMIC}.items() if key in known}
    with quiet():
        stock = cls(**own)
        scheduler = PathlineScheduler.from_config(stock.config)
        assert {key: scheduler.config[key] for key in own} == own
        back = cls.from_config(scheduler.config)
        assert {key: back.config[key] for key in own} == own
        scheduler.save_pretrained(tmp_path)
        loaded = PathlineScheduler.from_pretrained(tmp_path)
        assert {key: loaded.config[key] for key in KEYS} == {key: scheduler.config[key] for key in KEYS}
        defaults = PathlineScheduler.from_config(cls().config)
    assert {key: defaults.config[key] for key in own} == {key: cls().config[key] for key in own}


def test_stock_classes_with_the_keys_are_found() -> None:
    names = {cls.__name__ for cls in stock_with_keys()}
    assert names >= {f"{name}Scheduler" for name in ("DDIM", "DDPM", "DEISMultistep", "SASolver", "HeunDiscrete")}
    assert names >= {f"{name}Scheduler" for name in ("DPMSolverMultistep", "DPMSolverSinglestep", "UniPCMultistep")}


# --- the same run through the library ---------------------------------------------------------------------


def made(family: str, rule: dict[str, Any], **pathline: Any) -> PathlineScheduler:
    base = {**BETAS, "prediction_type": family} if family != "flow" else {"num_train_timesteps": 1024}
    return PathlineScheduler(pathline=pathline, **base, **rule)


RULES = [
    pytest.param(CLIP, StaticThreshold(0.6), id="clip"),
    pytest.param(DYNAMIC, DynamicThreshold(0.7, max_value=1.4), id="dynamic"),
    pytest.param({**CLIP, **DYNAMIC}, DynamicThreshold(0.7, max_value=1.4), id="both"),
]


@pytest.mark.parametrize(
    ("family", "method"),
    [(f, m) for f in ("epsilon", "flow") for m in METHODS]
    + [(f, m) for f in ("sample", "v_prediction") for m in ("dpm++", "ipndm", "euler")],
)
@pytest.mark.parametrize(("config", "rule"), RULES[:2])
def test_loop_equals_sample(family: str, method: str, config: dict[str, Any], rule: Any) -> None:
    scheduler = made(family, config, method=method, seed=5)
    sigmas = {"sigmas": [s / 64 for s in (64, 50, 31, 16, 5, 1)]} if family == "flow" else {}
    scheduler.set_timesteps(6, **sigmas)
    found = steps_over(scheduler, 2 * latents(), scheduler.timesteps)
    wrapped = from_diffusers(network, scheduler)
    told: dict[str, Any] = {"method": method, "grid": scheduler.nodes, "seed": 5}
    expected = sample(wrapped, 2 * latents(), thresholding=rule, **told)
    on_nodes = all(row.level.time in scheduler.nodes.time for row in scheduler.table.rows if row.calls_network)
    tolerance = 1e-11 if on_nodes else 1e-6  # labels between nodes are rounded to float32
    torch.testing.assert_close(found, expected, rtol=tolerance, atol=tolerance)
    assert not torch.allclose(found, sample(wrapped, 2 * latents(), **told), atol=1e-3)


@pytest.mark.parametrize("family", ["epsilon", "v_prediction", "sample", "flow"])
@pytest.mark.parametrize(("config", "rule"), RULES)
@pytest.mark.parametrize("method", ["dpm++", "euler", "ipndm"])
def test_pred_original_sample_is_the_thresholded_one(
    family: str, config: dict[str, Any], rule: Any, method: str
) -> None:
    scheduler, plain = made(family, config, method=method), made(family, {}, method=method)
    x = 2 * latents()
    for each in (scheduler, plain):
        each.set_timesteps(5)
    t = scheduler.timesteps[0]
    raw = plain.step(network(x, t), t, x).pred_original_sample
    found = scheduler.step(network(x, t), t, x)
    assert raw is not None
    torch.testing.assert_close(found.pred_original_sample, rule(raw), rtol=1e-12, atol=1e-12)
    assert scheduler.pred_original_sample is found.pred_original_sample
    x = found.prev_sample
    for t in scheduler.timesteps[1:]:
        x = scheduler.step(network(x, t), t, x).prev_sample
    torch.testing.assert_close(x, scheduler.pred_original_sample, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("method", ["dpm++", "heun"])
def test_samples_do_not_see_one_another(method: str) -> None:
    scheduler = made("epsilon", DYNAMIC, method=method)
    x = latents(batch=3) * torch.tensor([0.5, 30.0, 2.0], dtype=torch.float64).reshape(3, 1, 1, 1)
    scheduler.set_timesteps(5)
    whole = steps_over(scheduler, x, scheduler.timesteps)
    for b in range(3):
        scheduler.set_timesteps(5)
        assert torch.equal(steps_over(scheduler, x[b : b + 1], scheduler.timesteps), whole[b : b + 1])


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("method", ["dpm++", "euler"])
@pytest.mark.parametrize(("config", "rule"), RULES[:2])
def test_half_precision(dtype: torch.dtype, method: str, config: dict[str, Any], rule: Any) -> None:
    """The rule acts in float32: the same run with the same half-precision outputs differs by their rounding alone."""
    scheduler, wide = made("epsilon", config, method=method), made("epsilon", config, method=method)
    x = (2 * latents()).to(dtype)
    reference = x.float()
    for each in (scheduler, wide):
        each.set_timesteps(5)
    for t in scheduler.timesteps:
        out = network(x, t)
        x, data = scheduler.step(out, t, x, return_dict=False)
        reference, exact = wide.step(out.float(), t, reference, return_dict=False)
        assert x.dtype == data.dtype == dtype
        assert torch.equal(data, exact.to(dtype))
        assert float(data.abs().max()) <= (0.6 if config is CLIP else 1.0) * (1 + 2**-7)
    assert torch.equal(x, reference.to(dtype))


# --- where the rule comes from and goes -------------------------------------------------------------------


def plan_of(scheduler: PathlineScheduler, index: int = 0) -> Any:
    return scheduler._ready().plan(index)


def test_without_a_rule_nothing_is_added() -> None:
    scheduler = PathlineScheduler()
    assert {key: scheduler.config[key] for key in KEYS} == {
        key: inspect.signature(diffusers.DDPMScheduler.__init__).parameters[key].default for key in KEYS[1:]
    } | {"clip_sample": False}
    scheduler.set_timesteps(4)
    assert plan_of(scheduler).rule is None
    stored = PathlineScheduler(pathline={"method": "dpm++"})
    stored.set_timesteps(4)
    assert all((call.data is None) == call.stored for call in plan_of(stored).calls), "stored data are the prediction"
    numbers = PathlineScheduler(clip_sample_range=-1.0, dynamic_thresholding_ratio=7.0, sample_max_value=0.0)
    numbers.set_timesteps(4)
    assert plan_of(numbers).rule is None, "numbers of a rule that is off are not looked at"


def test_a_late_start_and_a_new_terminal_sigma_keep_the_rule() -> None:
    scheduler = made("epsilon", CLIP, method="dpm++")
    scheduler.set_timesteps(6)
    scheduler.set_begin_index(3)
    x = steps_over(scheduler, 2 * latents(), scheduler.timesteps[3:])
    assert float(x.abs().max()) == 0.6
    scheduler.set_timesteps(6)
    scheduler.sigmas[-1] = 1e-4
    x = steps_over(scheduler, 2 * latents(), scheduler.timesteps)
    assert float(x.abs().max()) == pytest.approx(0.6, rel=0.01)
    assert scheduler._ready().rule == StaticThreshold(0.6)


def test_a_pipeline_that_turns_clipping_off_is_obeyed() -> None:
    """Latent pipelines replace the scheduler's config when they are built."""
    scheduler = made("epsilon", CLIP, method="dpm++")
    scheduler.set_timesteps(4)
    clipped = steps_over(scheduler, 2 * latents(), scheduler.timesteps)
    scheduler._internal_dict = FrozenDict({**scheduler.config, "clip_sample": False})
    scheduler.set_timesteps(4)
    free = steps_over(scheduler, 2 * latents(), scheduler.timesteps)
    plain = made("epsilon", {}, method="dpm++")
    plain.set_timesteps(4)
    assert torch.equal(free, steps_over(plain, 2 * latents(), plain.timesteps))
    assert float(clipped.abs().max()) == 0.6 < float(free.abs().max())


def test_the_argument_of_pipelines_for_clipped_outputs_is_taken() -> None:
    scheduler = made("epsilon", CLIP, method="ddim")
    results = []
    for value in (None, False, True):
        scheduler.set_timesteps(3)
        results.append(steps_over(scheduler, latents(), scheduler.timesteps, use_clipped_model_output=value))
    assert torch.equal(results[0], results[1])
    assert torch.equal(results[0], results[2])


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"clip_sample": True, "clip_sample_range": 0.0}, r"clip_sample_range=0.0 \(limit\).*above 0"),
        ({"thresholding": True, "dynamic_thresholding_ratio": 99.5}, r"dynamic_thresholding_ratio=99.5.*in \(0, 1\]"),
        ({"thresholding": True, "sample_max_value": 0.5}, r"sample_max_value=0.5.*at least limit=1.0"),
    ],
)
def test_impossible_numbers_are_refused(config: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        PathlineScheduler(**config)


def test_data_that_the_network_does_not_tell_cannot_be_clipped() -> None:
    """A noise network at signal 0: the method alone could start there, the rule cannot."""
    config: dict[str, Any] = {"prediction_type": "epsilon", "use_flow_sigmas": True, "pathline": {"method": "euler"}}
    config["pathline"]["options"] = {"variant": "sigma"}
    scheduler = PathlineScheduler(clip_sample=True, **config)
    with pytest.raises(ValueError, match=r"applies StaticThreshold\(limit=1.0\) to the data prediction, which a noise"):
        scheduler.set_timesteps(4)
