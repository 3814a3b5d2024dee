"""`from_config` runs on the levels and labels of the stock class, wherever those are sound."""

import inspect
import itertools
from collections.abc import Iterable, Iterator
from typing import Any

import diffusers
import numpy as np
import numpy.typing as npt
import pytest
import torch

from pathline.evals.agreement.stock import EDM, FLOW, INDEXED, NAMES, VP
from pathline.samplers.schedulers import PathlineScheduler
from support.stock import pairs_of_states, wide_stock

# stock schedulers hand tensors to numpy in ways it deprecates, and divide by a terminal signal of 0
pytestmark = pytest.mark.filterwarnings("ignore:__array:DeprecationWarning", "ignore::RuntimeWarning")
Array = npt.NDArray[np.float64]
CLASSES = [name for name in NAMES if name not in EDM]
STEPS = (1, 2, 5, 10, 50)
SPACINGS: tuple[dict[str, Any], ...] = (
    {"timestep_spacing": "leading"},
    {"timestep_spacing": "leading", "steps_offset": 1},
    {"timestep_spacing": "linspace"},
    {"timestep_spacing": "trailing"},
)
BETAS: tuple[dict[str, Any], ...] = (
    {},
    {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"},
    {"beta_schedule": "squaredcos_cap_v2", "lambda_min_clipped": -5.1},
    {"rescale_betas_zero_snr": True, "prediction_type": "v_prediction"},
)
SWITCHES = ("use_karras_sigmas", "use_exponential_sigmas", "use_beta_sigmas", "use_lu_lambdas")
REPEATING = ("DEISMultistepScheduler", "SASolverScheduler")


def keys(name: str) -> set[str]:
    return set(inspect.signature(getattr(diffusers, name).__init__).parameters)


def configs(name: str) -> Iterator[dict[str, Any]]:
    """Every combination of what the class knows."""
    known = keys(name)
    plain = {"skip_prk_steps": True} if name == "PNDMScheduler" else {}  # its Runge-Kutta start needs 4 steps
    if name in FLOW:
        for shift, switch in itertools.product((1.0, 3.0), (None, *SWITCHES)):
            if switch is None or switch in known:
                yield {"shift": shift} | ({switch: True} if switch else {})
        return
    finals: list[dict[str, Any]] = [{}]
    finals += [{"final_sigmas_type": "sigma_min"}] if "final_sigmas_type" in known else []
    finals += [{"set_alpha_to_one": value} for value in (False, True) if "set_alpha_to_one" in known]
    levels = [*SPACINGS] if "timestep_spacing" in known else [{}]
    switched = [{**spacing, switch: True} for switch in SWITCHES if switch in known for spacing in levels[:3]]
    limits = [{"use_karras_sigmas": True, "sigma_min": 0.1, "sigma_max": 10.0}] if "sigma_min" in known else []
    for betas in BETAS:
        if set(betas) <= known:
            for level, final in itertools.product((*levels, *switched, *limits), finals):
                yield {**plain, **betas, **level, **final}
    if "use_flow_sigmas" in known:
        flow = {"prediction_type": "flow_prediction", "use_flow_sigmas": True}
        for shift, switch, final in itertools.product((1.0, 3.0), (None, *SWITCHES), finals):
            if switch is None or switch in known:
                yield {**flow, "flow_shift": shift, **final} | ({switch: True} if switch else {})


def stock_levels(name: str, config: dict[str, Any], powers: torch.Tensor | None, steps: int) -> tuple[Array, Array]:
    """Levels, the terminal one included, and labels of the steps of a stock class in float64 on the given ᾱ."""
    with wide_stock(name, config, powers) as scheduler:
        scheduler.set_timesteps(steps)
    if name in INDEXED:
        assert powers is not None
        labels = np.unique(scheduler._timesteps if name == "PNDMScheduler" else scheduler.timesteps.numpy())[::-1]
        end = 1.0 if "DDPM" in name or scheduler.config.set_alpha_to_one else float(powers[0])
        power = np.append(powers.numpy()[labels.astype(int)], end)
        return np.sqrt((1.0 - power) / power), labels.astype(float)
    sigmas, labels = scheduler.sigmas.double().numpy(), scheduler.timesteps.double().numpy()
    if "Heun" in name or name.startswith("KDPM2"):  # two calls a step
        return np.append(sigmas[: 2 * steps : 2], sigmas[-1]), labels[::2]
    return sigmas, labels


def our_levels(scheduler: PathlineScheduler) -> tuple[Array, Array]:
    """The same of a scheduler of ours whose method calls the network at the nodes."""
    nodes, flow = scheduler.nodes, scheduler.config.prediction_type == "flow_prediction"
    levels = nodes.noise if flow else nodes.noise / nodes.signal
    if len(scheduler.timesteps) == len(levels):  # a last call over a step of length zero
        levels = np.append(levels, levels[-1])
    return levels, scheduler.timesteps.double().numpy()


def wrong_in_stock(name: str, config: dict[str, Any], steps: int) -> tuple[str, str] | None:
    """What differs on purpose ("levels" or "end") and why."""
    switch = next((key for key in SWITCHES if config.get(key)), None)
    flow = config.get("use_flow_sigmas", False)
    default = inspect.signature(getattr(diffusers, name).__init__).parameters.get("timestep_spacing")
    spacing = config.get("timestep_spacing", default.default if default else None)
    limited = config.get("sigma_min") is not None
    if name in FLOW:
        return ("levels", "the shift is applied twice at the clean end") if config["shift"] != 1 and steps > 1 else None
    if flow and switch and (name, switch) != ("UniPCMultistepScheduler", "use_karras_sigmas"):
        return "levels", "levels of the betas, up to 157, are taken for those of a flow, which end at 1"
    if name not in VP and spacing == "linspace" and steps == 1 and not limited:
        return "levels", "one step starts at timestep 0, the least noisy level"
    if name in REPEATING and (flow or switch):
        return "end", "the last level is repeated, on flows far from clean"
    stops = config.get("final_sigmas_type") == "sigma_min"
    if name == "UniPCMultistepScheduler" and stops and (limited or (steps == 1 and (flow or switch))):
        return "end", "the last level is repeated, far from clean"
    stops = stops or config.get("set_alpha_to_one", name != "PNDMScheduler") is False
    if name not in VP and stops and steps == 1 and spacing == "leading" and not config.get("steps_offset"):
        return ("end", "the only step has length zero") if not limited else None
    return None


@pytest.mark.parametrize("name", CLASSES)
def test_levels_and_labels_are_the_stock_ones(name: str) -> None:
    members = [config for config in configs(name) if "beta_schedule" not in config]
    compare_levels(name, members[:: 4 if name.startswith("KDPM2") else 1], (1, 4))  # these are slow in diffusers


@pytest.mark.slow
@pytest.mark.parametrize("name", CLASSES)
def test_levels_and_labels_are_the_stock_ones_for_all_betas_and_steps(name: str) -> None:
    compare_levels(name, configs(name), STEPS)


def compare_levels(name: str, members: Iterable[dict[str, Any]], counts: tuple[int, ...]) -> None:
    for config in members:
        scheduler = PathlineScheduler.from_config(getattr(diffusers, name)(**config).config)
        powers = getattr(scheduler, "alphas_cumprod", None)
        if powers is None and "use_flow_sigmas" in config:  # a flow model whose stock class has betas all the same
            powers = getattr(diffusers, name)(**config).alphas_cumprod
        cut = (name in VP and (config.get("use_flow_sigmas") or any(map(config.get, SWITCHES)))) or (
            name.startswith("KDPM2") and config.get("use_karras_sigmas")
        )  # labels cut or rounded to integers, off the level by up to 1
        for steps in counts:
            scheduler.set_timesteps(steps)
            levels, labels = our_levels(scheduler)
            theirs, their_labels = stock_levels(name, config, None if powers is None else powers.double(), steps)
            case = f"{name}({config}), {steps} steps"
            wrong = wrong_in_stock(name, config, steps)
            kept = slice(None) if wrong is None else slice(-1)
            if wrong is None or wrong[0] == "end":
                slack = 2e-6 if config.get("use_flow_sigmas") and name.startswith("UniPC") else 1e-9  # σ = 1 − 1e-6
                np.testing.assert_allclose(levels[kept], theirs[kept], rtol=slack, atol=1e-12, err_msg=case)
                np.testing.assert_allclose(labels, their_labels, rtol=1e-6, atol=1.0 if cut else 1e-3, err_msg=case)
            if wrong is not None:  # ours is a run of that many real steps, and not theirs
                assert len(levels) == steps + 1 == len(theirs)
                assert (np.diff(levels[:-1]) < 0).all(), case
                assert not np.allclose(levels, theirs, rtol=1e-4, atol=0.0), f"{case}: listed as {wrong}"


RUNS: tuple[tuple[str, dict[str, Any], str, dict[str, Any]], ...] = (
    ("DDIMScheduler", {"clip_sample": False}, "ddim", {}),
    ("DDIMScheduler", {"clip_sample": False, "set_alpha_to_one": False, "steps_offset": 1}, "ddim", {}),
    ("DPMSolverMultistepScheduler", {}, "dpm++", {"lower_order_final": True}),
    ("DPMSolverMultistepScheduler", {"use_lu_lambdas": True}, "dpm++", {"lower_order_final": True}),
    ("DPMSolverMultistepScheduler", {"use_flow_sigmas": True, "prediction_type": "flow_prediction", "flow_shift": 3.0},
     "dpm++", {"lower_order_final": True}),
    ("DPMSolverSinglestepScheduler", {"solver_order": 1}, "dpm++", {"order": 1}),
    ("UniPCMultistepScheduler", {"use_exponential_sigmas": True}, "unipc", {"order": 2}),
    ("UniPCMultistepScheduler", {"use_karras_sigmas": True, "use_flow_sigmas": True,
     "prediction_type": "flow_prediction"}, "unipc", {"order": 2}),
    ("DEISMultistepScheduler", {}, "deis", {"order": 2, "variant": "logrho", "lower_order_final": True}),
    ("LMSDiscreteScheduler", {}, "lms", {}),
    ("EulerDiscreteScheduler", {"use_karras_sigmas": True, "timestep_spacing": "leading"}, "euler", {}),
    ("FlowMatchEulerDiscreteScheduler", {"use_karras_sigmas": True}, "euler", {}),
)  # fmt: skip


SOUND = [
    (*case, steps)
    for steps in (1, 2, 7)
    for case in RUNS
    if not wrong_in_stock(case[0], {"shift": 1.0, **case[1]}, steps)
]


@pytest.mark.parametrize(("name", "config", "method", "options", "steps"), SOUND, ids=str)
def test_every_state_of_a_run_is_the_stock_one(
    name: str, config: dict[str, Any], method: str, options: dict[str, Any], steps: int
) -> None:
    chosen = {"method": method, "options": options}
    ours = PathlineScheduler.from_config(getattr(diffusers, name)(**config).config, pathline=chosen)
    slack = 2e-5 if name.startswith("UniPC") and config.get("use_flow_sigmas") else 1e-9
    for x, y in pairs_of_states(ours, name, config, steps):
        torch.testing.assert_close(x, y, rtol=slack, atol=slack)


def test_settings_that_do_not_act_are_named() -> None:
    for config, key in (
        ({"interpolation_type": "log_linear"}, "interpolation_type"),
        ({"timestep_type": "continuous", "prediction_type": "v_prediction"}, "timestep_type"),
    ):
        with pytest.warns(UserWarning, match=key):
            PathlineScheduler.from_config(diffusers.EulerDiscreteScheduler(**config).config)
    wide = diffusers.EulerDiscreteScheduler(use_karras_sigmas=True, sigma_min=0.002, sigma_max=700.0)
    scheduler = PathlineScheduler.from_config(wide.config)
    with pytest.warns(UserWarning, match="sigma_max=700"):
        scheduler.set_timesteps(5)


def test_the_source_survives_a_round_trip() -> None:
    stock = diffusers.DPMSolverSinglestepScheduler()
    stock.set_timesteps(6)
    once = PathlineScheduler.from_config(stock.config)
    twice = PathlineScheduler.from_config(diffusers.DDIMScheduler.from_config(once.config).config)
    for scheduler in (once, twice):
        scheduler.set_timesteps(6)
        assert scheduler.timesteps.tolist() == stock.timesteps.tolist()


def test_a_key_that_the_stock_class_ignores_is_ignored() -> None:
    source = diffusers.PNDMScheduler(skip_prk_steps=True, steps_offset=1)
    stock = diffusers.DPMSolverMultistepScheduler.from_config(source.config)
    scheduler = PathlineScheduler.from_config(stock.config)
    scheduler.set_timesteps(4)
    assert float(scheduler.sigmas[-1]) == 0.0
    named = PathlineScheduler.from_config(stock.config, use_lu_lambdas=True)
    named.set_timesteps(4)
    assert not torch.equal(named.sigmas, scheduler.sigmas)
