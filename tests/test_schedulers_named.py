"""Named schedulers: default configurations, and the run of the stock class after `from_config` of it."""

import json
from pathlib import Path
from typing import Any

import diffusers
import pytest
import torch

from pathline.samplers import schedulers as module
from pathline.samplers.schedulers import (
    DDIMScheduler,
    DDPMScheduler,
    DEISScheduler,
    DPMSolverPPScheduler,
    DPMSolverPPSDEScheduler,
    DPMSolverPPSinglestepScheduler,
    EulerAncestralScheduler,
    EulerScheduler,
    GHVBScheduler,
    HeunScheduler,
    KDPM2AncestralScheduler,
    KDPM2Scheduler,
    LMSScheduler,
    PathlineScheduler,
    PNDMScheduler,
    SASolverScheduler,
    UniPCScheduler,
)
from support.stock import pairs_of_states

# stock schedulers hand tensors to numpy in ways it deprecates, and divide by a terminal signal of 0
pytestmark = pytest.mark.filterwarnings("ignore:__array:DeprecationWarning", "ignore::RuntimeWarning")
DPM, SINGLE = "DPMSolverMultistepScheduler", "DPMSolverSinglestepScheduler"
UNIPC, DEIS, SA = "UniPCMultistepScheduler", "DEISMultistepScheduler", "SASolverScheduler"
V = {"prediction_type": "v_prediction"}
LATENT = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}
FLOW = {"prediction_type": "flow_prediction", "use_flow_sigmas": True, "flow_shift": 3.0}
SHORT, LONG = (1, 2, 5), (2, 16)
Run = tuple[type[PathlineScheduler], str, dict[str, Any], tuple[int, ...]]


def simple_runs() -> list[Run]:
    plain = {"clip_sample": False}
    return [
        (DDIMScheduler, "DDIMScheduler", {**plain, "set_alpha_to_one": False, "steps_offset": 1}, (2, 5)),
        (DDIMScheduler, "DDIMScheduler", {**plain, **V, "timestep_spacing": "trailing", **LATENT}, SHORT),
        (DDPMScheduler, "DDPMScheduler", plain, SHORT),
        (DDPMScheduler, "DDPMScheduler", {**plain, **V, "timestep_spacing": "trailing"}, SHORT),
        (EulerScheduler, "EulerDiscreteScheduler", {"use_karras_sigmas": True}, SHORT[1:]),
        (EulerScheduler, "FlowMatchEulerDiscreteScheduler", {"use_beta_sigmas": True}, SHORT),
        (EulerAncestralScheduler, "EulerAncestralDiscreteScheduler", {"timestep_spacing": "trailing"}, SHORT),
        (HeunScheduler, "HeunDiscreteScheduler", {"timestep_spacing": "trailing"}, SHORT),
        (HeunScheduler, "HeunDiscreteScheduler", {**V, "use_karras_sigmas": True}, SHORT[1:]),
        (HeunScheduler, "FlowMatchHeunDiscreteScheduler", {}, SHORT),
        (KDPM2Scheduler, "KDPM2DiscreteScheduler", {"timestep_spacing": "trailing"}, SHORT),
        (KDPM2Scheduler, "KDPM2DiscreteScheduler", {**V, "use_karras_sigmas": True}, SHORT[1:]),
        (KDPM2AncestralScheduler, "KDPM2AncestralDiscreteScheduler", {"timestep_spacing": "leading"}, SHORT),
        (LMSScheduler, "LMSDiscreteScheduler", {"use_exponential_sigmas": True}, SHORT[1:]),
        (PNDMScheduler, "PNDMScheduler", {"skip_prk_steps": True, "steps_offset": 1, **LATENT}, (2, 5)),
        (PNDMScheduler, "PNDMScheduler", {"skip_prk_steps": True, "set_alpha_to_one": True}, (2, 5)),
        (PNDMScheduler, "PNDMScheduler", {}, (5, 10)),
    ]


def dpm_runs() -> list[Run]:
    found: list[Run] = []
    for algorithm in ("dpmsolver++", "dpmsolver", "sde-dpmsolver++", "sde-dpmsolver"):
        final = "zero" if algorithm.endswith("++") else "sigma_min"
        for order, rule in ((1, "midpoint"), (2, "midpoint"), (2, "heun"), (3, "midpoint")):
            config = {"algorithm_type": algorithm, "solver_order": order, "solver_type": rule}
            if order < 3 or not algorithm.startswith("sde"):
                found.append((DPMSolverPPScheduler, DPM, {**config, "final_sigmas_type": final}, LONG))
        for order, rule in ((1, "midpoint"), (2, "midpoint"), (2, "heun")):
            config = {"algorithm_type": algorithm, "solver_order": order, "solver_type": rule}
            if not algorithm.startswith("sde") or (order == 1 and final == "zero"):
                config |= {"lower_order_final": final == "zero", "final_sigmas_type": final}
                found.append((DPMSolverPPSinglestepScheduler, SINGLE, config, (1, 4, 5)))
    sde = {"algorithm_type": "sde-dpmsolver++"}
    found += [
        (DPMSolverPPSDEScheduler, DPM, {**sde, "use_karras_sigmas": True}, LONG),
        (DPMSolverPPScheduler, DPM, {**FLOW, **sde}, LONG),
        (DPMSolverPPScheduler, DPM, {**V, "lower_order_final": False, "euler_at_final": True}, LONG),
        (DPMSolverPPScheduler, DPM, {"use_lu_lambdas": True, **LATENT}, LONG),
        (DPMSolverPPSinglestepScheduler, SINGLE, {"use_exponential_sigmas": True, "lower_order_final": True}, (4, 5)),
    ]
    return found


def other_runs() -> list[Run]:
    found: list[Run] = []
    for order, rule, data in (
        (1, "bh1", True),
        (2, "bh2", True),
        (3, "bh1", True),
        (2, "bh1", False),
        (3, "bh2", False),
    ):
        final = "zero" if rule == "bh2" and data else "sigma_min"  # the others are NaN at sigma 0 in diffusers
        config = {"solver_order": order, "solver_type": rule, "predict_x0": data, "final_sigmas_type": final}
        found.append((UniPCScheduler, UNIPC, config, (2, 5)))
    found += [
        (UniPCScheduler, UNIPC, {"disable_corrector": [0, 2]}, SHORT),
        (UniPCScheduler, UNIPC, {**V, "lower_order_final": False, "final_sigmas_type": "sigma_min"}, (5,)),
        (UniPCScheduler, UNIPC, {**FLOW, "use_karras_sigmas": True}, SHORT),
    ]
    for order in (1, 2, 3):
        found.append((DEISScheduler, DEIS, {"solver_order": order, "timestep_spacing": "trailing"}, LONG))
    for order, corrector, algorithm in ((1, 1, "data"), (2, 2, "data"), (3, 4, "data"), (2, 2, "noise")):
        config = {"predictor_order": order, "corrector_order": corrector, "algorithm_type": f"{algorithm}_prediction"}
        found.append((SASolverScheduler, SA, config, (6, 16)))
    found.append((SASolverScheduler, SA, {"timestep_spacing": "leading", "steps_offset": 1}, (6, 15)))
    found.append((SASolverScheduler, SA, {"timestep_spacing": "trailing", "lower_order_final": False}, (6, 15)))
    return found


RUNS = [*simple_runs(), *dpm_runs(), *other_runs()]


@pytest.mark.parametrize(("cls", "name", "config", "counts"), RUNS, ids=lambda v: getattr(v, "__name__", str(v)))
def test_every_state_is_that_of_the_stock_class(
    cls: type[PathlineScheduler], name: str, config: dict[str, Any], counts: tuple[int, ...]
) -> None:
    ours = cls.from_config(getattr(diffusers, name)(**config).config)
    slack = 2e-5 if name == UNIPC and "use_flow_sigmas" in config else 2e-8  # its flow begins at σ = 1 − 1e-6
    for steps in counts:
        for x, y in pairs_of_states(ours, name, config, steps):
            torch.testing.assert_close(x, y, rtol=slack, atol=slack)


@pytest.mark.parametrize("eta", [0.5, 1.0])
def test_eta_is_an_option_here_and_an_argument_there(eta: float) -> None:
    config = {"clip_sample": False, "timestep_spacing": "leading"}
    ours = DDIMScheduler.from_config(diffusers.DDIMScheduler(**config).config, pathline={"options": {"eta": eta}})
    for x, y in pairs_of_states(ours, "DDIMScheduler", config, 6, eta=eta):
        torch.testing.assert_close(x, y, rtol=1e-9, atol=1e-9)


# --- settings that cannot act, or act otherwise ---------------------------------------------------------------


@pytest.mark.parametrize(
    ("cls", "name", "config", "key"),
    [
        (UniPCScheduler, UNIPC, {"solver_p": diffusers.DDIMScheduler()}, "solver_p"),
        (DPMSolverPPScheduler, DPM, {"euler_at_final": True, "final_sigmas_type": "sigma_min"}, "euler_at_final"),
        (DPMSolverPPScheduler, DPM, {"algorithm_type": "sde-dpmsolver++", "solver_order": 3}, "solver_order"),
        (DPMSolverPPScheduler, DPM, {"variance_type": "learned_range"}, "variance_type"),
        (DDPMScheduler, "DDPMScheduler", {"variance_type": "fixed_large"}, "variance_type"),
        (DPMSolverPPSinglestepScheduler, SINGLE, {"solver_order": 3, "lower_order_final": True}, "solver_order"),
        (
            DPMSolverPPSinglestepScheduler,
            SINGLE,
            {"lower_order_final": True, "final_sigmas_type": "sigma_min"},
            "lower_order_final",
        ),
        (SASolverScheduler, SA, {"tau_func": lambda t: 0.5}, "tau_func"),
    ],
)
def test_what_cannot_be_carried_over_is_named(
    cls: type[PathlineScheduler], name: str, config: dict[str, Any], key: str
) -> None:
    with pytest.warns(UserWarning, match=f"{key}=.* of the stock config does not act"):
        cls.from_config(getattr(diffusers, name)(**config).config)


def test_a_solver_without_a_counterpart_is_refused_unless_a_method_is_named() -> None:
    source = diffusers.DPMSolverSinglestepScheduler(algorithm_type="sde-dpmsolver++", lower_order_final=True)
    with pytest.raises(ValueError, match="algorithm_type='sde-dpmsolver\\+\\+' with solver_order=2"):
        DPMSolverPPSinglestepScheduler.from_config(source.config)
    named = DPMSolverPPSinglestepScheduler.from_config(source.config, pathline={"method": "seeds"})
    named.set_timesteps(6)
    assert named.table.method == "seeds"


def test_stock_keys_given_to_from_config_act_as_in_the_stock_class() -> None:
    """The usual `from_config(pipe.scheduler.config, algorithm_type=..., use_karras_sigmas=True)`."""
    source = diffusers.PNDMScheduler(skip_prk_steps=True, steps_offset=1, **LATENT)
    keys = {"algorithm_type": "sde-dpmsolver++", "solver_type": "heun", "use_karras_sigmas": True}
    ours = DPMSolverPPScheduler.from_config(source.config, **keys)
    assert ours.config.pathline == {"method": "dpm++-sde", "options": {"variant": "heun"}}
    ours.set_timesteps(8)
    assert (ours.table.method, ours.table.options["variant"]) == ("dpm++-sde", "heun")
    own = DPMSolverPPScheduler.from_config(source.config, pathline={"options": {"order": 3}}, solver_order=1)
    assert own.config.pathline == {"options": {"order": 3}}
    with pytest.warns(UserWarning, match="solver_order=2 does not act on a config that has 'pathline'"):
        DPMSolverPPScheduler.from_config(own.config, solver_order=2)


@pytest.mark.parametrize("first", [False, True])
def test_switched_levels_of_deis_end_clean_and_the_others_at_the_last_training_level(first: bool) -> None:
    stock = diffusers.DEISMultistepScheduler(use_karras_sigmas=first)
    for config in (stock.config, DEISScheduler.from_config(stock.config).config):
        ours = DEISScheduler.from_config(config, use_karras_sigmas=not first)
        ours.set_timesteps(6)
        assert (float(ours.sigmas[-1]) == 0.0) is not first
        assert float(ours.sigmas[-2]) > 1.1 * float(ours.sigmas[-1])  # no idle call
        other = diffusers.DEISMultistepScheduler(use_karras_sigmas=not first)
        other.set_timesteps(6)
        torch.testing.assert_close(ours.sigmas[:-1], other.sigmas[:-1], rtol=2e-4, atol=1e-6)


def test_the_last_step_of_sa_solver_draws_no_noise_in_very_short_runs() -> None:
    """The stock class draws where the label lies in 200 to 800, even if it is the last one."""
    ours = SASolverScheduler.from_config(diffusers.SASolverScheduler().config)
    for steps, stochastic in ((4, [False, True, True, False]), (6, [False, False, True, True, True, False])):
        ours.set_timesteps(steps)
        assert [any(z >= 0 for z in row.noises) for row in ours.table.rows] == stochastic


@pytest.mark.parametrize(("cls", "name", "config", "counts"), RUNS[::3], ids=lambda v: getattr(v, "__name__", str(v)))
def test_runs_may_begin_at_any_call(
    cls: type[PathlineScheduler], name: str, config: dict[str, Any], counts: tuple[int, ...]
) -> None:
    ours = cls.from_config(getattr(diffusers, name)(**config).config, pathline={"seed": 1})
    ours.set_timesteps(max(counts))
    for begin in range(len(ours.timesteps)):
        ours.set_timesteps(max(counts))
        ours.set_begin_index(begin)
        x = torch.ones(1, 2)
        for t in ours.timesteps[begin:]:
            x = ours.step(0.1 * x, t, x, return_dict=False)[0]
        assert torch.isfinite(x).all()


def test_options_that_count_steps_count_from_the_first_step_of_the_full_run() -> None:
    cases: list[tuple[str, dict[str, Any]]] = [
        ("unipc", {"disable_corrector": [0, 4]}),
        ("sa", {"window": (0.2, 0.8)}),
        ("sa", {"tau": (0.0, 0.5, 1.0, 1.0, 0.5, 0.0)}),
        ("dpm++-single", {"orders": [1, 1, 2, 1, 1]}),
        ("res", {"orders": [1, 2, 1, 1, 1, 1]}),
    ]
    for method, options in cases:
        ours = PathlineScheduler(prediction_type="epsilon", pathline={"method": method, "options": options})
        ours.set_timesteps(6)
        full, late = ours.table, ours._ready().plan(2).table
        draws = [[bool([z for z in row.noises if z >= 0]) for row in table.rows] for table in (full, late)]
        assert draws[1] == draws[0][-len(draws[1]) :], method
        if method == "unipc":
            assert late.options["disable_corrector"] == [2]
        if "orders" in options:
            assert late.options["orders"] == ([2, 1, 1] if method == "dpm++-single" else [1, 1, 1, 1])


# --- configs --------------------------------------------------------------------------------------------------

ROUND_TRIPS: list[tuple[type[PathlineScheduler], str, dict[str, Any]]] = [
    (EulerScheduler, "FlowMatchEulerDiscreteScheduler", {"shift": 3.0, "shift_terminal": 0.1}),
    (UniPCScheduler, "FlowMatchEulerDiscreteScheduler", {"use_dynamic_shifting": True, "max_shift": 1.3}),
    (DPMSolverPPScheduler, DPM, {"algorithm_type": "dpmsolver", "final_sigmas_type": "sigma_min", "solver_order": 3}),
    (DPMSolverPPScheduler, DPM, {**FLOW, "use_karras_sigmas": True}),
    (UniPCScheduler, UNIPC, {"predict_x0": False, "disable_corrector": [0], "solver_type": "bh1", **LATENT}),
    (UniPCScheduler, UNIPC, {**FLOW, "flow_shift": 5.0}),
    (DDIMScheduler, "DDIMScheduler", {"set_alpha_to_one": False, "steps_offset": 1, "clip_sample": False}),
    (DDIMScheduler, "DDIMScheduler", {"rescale_betas_zero_snr": True, **V, "timestep_spacing": "trailing"}),
    (GHVBScheduler, "DDIMScheduler", {"thresholding": True, "sample_max_value": 2.0}),
    (EulerScheduler, "EulerDiscreteScheduler", {"use_karras_sigmas": True, "sigma_min": 0.1, "sigma_max": 10.0}),
    (EulerAncestralScheduler, "EulerAncestralDiscreteScheduler", {"steps_offset": 1}),
    (DEISScheduler, DEIS, {"solver_order": 3, "lower_order_final": False}),
    (SASolverScheduler, SA, {"predictor_order": 3, "corrector_order": 4, "algorithm_type": "noise_prediction"}),
    (PNDMScheduler, "PNDMScheduler", {"skip_prk_steps": True, "set_alpha_to_one": True}),
    (HeunScheduler, "HeunDiscreteScheduler", {"clip_sample": True}),
    (DPMSolverPPSinglestepScheduler, SINGLE, {"lower_order_final": True, "solver_type": "heun"}),
]


@pytest.mark.parametrize(("cls", "name", "config"), ROUND_TRIPS, ids=lambda v: getattr(v, "__name__", str(v)))
def test_the_way_back_restores_every_stock_key(
    cls: type[PathlineScheduler], name: str, config: dict[str, Any], tmp_path: Path
) -> None:
    kind = getattr(diffusers, name)
    stock = kind(**config)
    ours = cls.from_config(stock.config)
    back = kind.from_config(ours.config)
    public = [key for key in stock.config if not key.startswith("_")]
    assert {key: back.config[key] for key in public} == {key: stock.config[key] for key in public}
    again = cls.from_config(back.config)
    assert dict(again.config) == dict(ours.config)
    ours.save_pretrained(tmp_path)
    loaded = cls.from_pretrained(tmp_path)
    assert json.loads(loaded.to_json_string()) == json.loads(ours.to_json_string())
    mu = {"mu": 0.7} if config.get("use_dynamic_shifting") else {}
    for scheduler in (ours, again, loaded):
        scheduler.set_timesteps(20, **mu)
        assert scheduler.table.rows == ours.table.rows
        assert torch.equal(scheduler.sigmas, ours.sigmas)


def test_every_named_class_says_what_it_is_good_for() -> None:
    named = [cls for cls in PathlineScheduler.__subclasses__() if cls.__module__ == module.__name__]
    assert {cls.__name__ for cls in named} <= set(module.__all__)
    for cls in named:
        assert (cls.__doc__ or "").endswith(".")
        assert "\n" not in (cls.__doc__ or "")
        scheduler = cls()
        scheduler.set_timesteps(6)
        assert scheduler.table.method == cls.default_pathline["method"]
    required = {"UniPC", "DPMSolverPP", "DEIS", "GHVB", "SASolver", "Heun", "DDIM"}
    assert {f"{name}Scheduler" for name in required} <= {cls.__name__ for cls in named}


def test_a_class_with_a_method_runs_it_whichever_of_our_classes_the_config_comes_from() -> None:
    stock = diffusers.UniPCMultistepScheduler(solver_order=3, disable_corrector=[0])
    first = UniPCScheduler.from_config(stock.config, pathline={"seed": 5})
    assert (first._settings.method, first._settings.options) == ("unipc", {"order": 3, "disable_corrector": [0]})
    for cls, method, options in (
        (HeunScheduler, "heun", {}),
        (DDIMScheduler, "ddim", {}),
        (GHVBScheduler, "ghvb", {"order": 3}),
        (PathlineScheduler, "unipc", {"order": 3, "disable_corrector": [0]}),
    ):
        second = cls.from_config(first.config)
        assert (second._settings.method, second._settings.seed) == (method, 5)
        assert {key: second._settings.options.get(key) for key in options} == options
        again = cls.from_config(second.config)
        assert again._settings == second._settings
        second.set_timesteps(4)
    chosen = UniPCScheduler(pathline={"method": "dpm++", "options": {"order": 1}})
    assert UniPCScheduler.from_config(chosen.config)._settings == chosen._settings
    assert HeunScheduler.from_config(chosen.config, pathline={"method": "deis"})._settings.method == "deis"
