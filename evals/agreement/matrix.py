"""What is compared: classes of diffusers, their settings, and the method and options of ours that must agree."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from .stock import Setting, StockRun

SHORT_RUN = 15
"""Stock multistep solvers lower the order over the last steps in runs of fewer steps than this."""
TRAIN_STEPS = 1000
GRIDS: tuple[dict[str, Any], ...] = (
    {"timestep_spacing": "leading"},
    {"timestep_spacing": "leading", "steps_offset": 1},
    {"timestep_spacing": "linspace"},
    {"timestep_spacing": "trailing"},
    {"use_karras_sigmas": True},
    {"use_exponential_sigmas": True},
    {"use_beta_sigmas": True},
)
SPACINGS = GRIDS[:4]
FLOW: dict[str, Any] = {"prediction_type": "flow_prediction", "use_flow_sigmas": True, "flow_shift": 3.0}
LATENT: dict[str, Any] = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}

MISSING = {
    "SASolverScheduler on Karras, exponential, beta or flow levels": "its last call is made at the terminal level and "
    "only corrects the state",
    "DPMSolverSinglestepScheduler with solver_order=3": "stages on the grid's own nodes with weights that are neither "
    "those of the authors (stages at thirds) nor `variant='exact'`",
    "DPMSolverSinglestepScheduler with algorithm_type='sde-dpmsolver++' and order > 1": "the draw of a stage is "
    "independent of the draw of the step that contains it; `seeds` follows one Brownian path",
    "FlowMatchEulerDiscreteScheduler with stochastic_sampling=True": "renoises in full, for distilled models",
    "IPNDMScheduler": "its first step is wrong, see below; `ipndm` is the method of the paper",
    "LTXEulerAncestralRFScheduler": "an ancestral split linear in the flow's noise, for eta other than 0",
}
"""Solvers of diffusers without a counterpart here, and why."""

OUTSIDE = {
    "consistency and few-step models": [
        "CMStochasticIterativeScheduler",
        "LCMScheduler",
        "TCDScheduler",
        "SCMScheduler",
        "FlowMatchLCMScheduler",
        "FlowMapEulerDiscreteScheduler",
        "PiflowScheduler",
        "HeliosDMDScheduler",
    ],
    "discrete tokens": [
        "AmusedScheduler",
        "VQDiffusionScheduler",
        "BlockRefinementScheduler",
        "DiscreteDDIMScheduler",
        "EntropyBoundScheduler",
    ],
    "inversion and inpainting": ["DDIMInverseScheduler", "DPMSolverMultistepInverseScheduler", "RePaintScheduler"],
    "needs torchsde": ["CosineDPMSolverMultistepScheduler", "DPMSolverSDEScheduler"],
    "one pipeline's own": [
        "CogVideoXDDIMScheduler",
        "CogVideoXDPMScheduler",
        "DDPMWuerstchenScheduler",
        "UnCLIPScheduler",
        "HeliosScheduler",
        "LTXEulerAncestralRFScheduler",
        "MiniMaxH3Scheduler",
        "RFD4ProteinaScheduler",
    ],
    "score SDE with a corrector": ["ScoreSdeVeScheduler", "KarrasVeScheduler"],
}
"""Classes that are not compared, by reason."""


def _nothing(steps: int, run: StockRun) -> dict[str, Any]:
    return {}


def _fixed(**options: Any) -> Any:
    return lambda steps, run: options


def _lowered(**options: Any) -> Any:
    """Options with the stock rule for the last steps."""
    return lambda steps, run: {**options, "lower_order_final": steps < SHORT_RUN}


def _sa(order: int, corrector: int, form: str = "data") -> Any:
    """The stock default of tau: 1 for labels between 200 and 800, else 0."""

    def options(steps: int, run: StockRun) -> dict[str, Any]:
        tau = [float(200 <= t <= 800) for t in run.timesteps]
        return {"order": order, "corrector_order": corrector, "tau": tau, "form": form}

    return options


def _groups(variant: str) -> Any:
    """Orders of whole singlestep steps: of each 1, 2, …, p the last."""

    def options(steps: int, run: StockRun) -> dict[str, Any]:
        ends = [p for p, following in zip(run.orders, [*run.orders[1:], 1], strict=True) if following == 1]
        return {"orders": ends, "variant": variant}

    return options


def _ancestral() -> Iterator[Setting]:
    plain = {"clip_sample": False}
    for kind in ("epsilon", "sample", "v_prediction"):
        for eta in (0.0, 0.5, 1.0):
            config = {**plain, "prediction_type": kind, "timestep_spacing": "leading"}
            yield Setting("DDIMScheduler", config, "ddim", _fixed(eta=eta), {"eta": eta})
        for spacing in SPACINGS:
            yield Setting("DDPMScheduler", {**plain, "prediction_type": kind, **spacing}, "ddim", _fixed(eta=1.0))
    others: tuple[dict[str, Any], ...] = (
        {"steps_offset": 1}, {"set_alpha_to_one": False}, LATENT, {"beta_schedule": "squaredcos_cap_v2"},
    )  # fmt: skip
    for extra in others:
        config = {**plain, "timestep_spacing": "leading", **extra}
        # without set_alpha_to_one the last call does nothing, so that one step is none
        yield Setting("DDIMScheduler", config, "ddim", _nothing, first=1 + ("set_alpha_to_one" in extra))
        if "set_alpha_to_one" not in extra:
            yield Setting("DDIMParallelScheduler", config, "ddim", _nothing)
            yield Setting("DDPMParallelScheduler", config, "ddim", _fixed(eta=1.0))
    zero = {**plain, "rescale_betas_zero_snr": True, "prediction_type": "v_prediction", "timestep_spacing": "trailing"}
    yield Setting("DDPMScheduler", zero, "ddim", _fixed(eta=1.0))
    for spacing in SPACINGS[:2]:
        yield Setting("PNDMScheduler", {"skip_prk_steps": True, **spacing}, "plms", _nothing, first=2)
        clean = {"skip_prk_steps": True, "set_alpha_to_one": True, **spacing}
        yield Setting("PNDMScheduler", clean, "plms", _fixed(lower_order_final=False), first=2)
        # its half steps are whole training indices where 1000 // n is even
        yield Setting(
            "PNDMScheduler", {**spacing}, "plms", _fixed(warmup="runge-kutta"), first=4,
            fits=lambda steps: TRAIN_STEPS // steps % 2 == 0,
        )  # fmt: skip


def _dpm() -> Iterator[Setting]:
    name = "DPMSolverMultistepScheduler"
    algorithms = {"dpmsolver++": "dpm++", "dpmsolver": "dpm", "sde-dpmsolver++": "dpm++-sde"}
    for algorithm, method in algorithms.items():
        for order in (1, 2, 3):
            if (algorithm, order) == ("sde-dpmsolver++", 3):
                continue  # wrong in diffusers, see defects
            for rule in ("midpoint", "heun") if order == 2 else ("midpoint",):
                for final in ("zero", "sigma_min") if algorithm.endswith("++") else ("sigma_min",):
                    config = {"algorithm_type": algorithm, "solver_order": order, "solver_type": rule}
                    config["final_sigmas_type"] = final
                    yield Setting(name, config, method, _lowered(order=order, variant=rule))
    for order, rule in ((1, "midpoint"), (2, "midpoint"), (2, "heun")):
        config = {"algorithm_type": "sde-dpmsolver", "solver_order": order, "solver_type": rule}
        config["final_sigmas_type"] = "sigma_min"
        yield Setting(name, config, "dpm-sde", _lowered(order=order, variant=rule))
    for kind in ("sample", "v_prediction"):
        yield Setting(name, {"prediction_type": kind, "solver_order": 3}, "dpm++", _lowered(order=3))
    for extra in (*GRIDS, FLOW, {"use_lu_lambdas": True}, {"euler_at_final": True}, LATENT):
        yield Setting(name, dict(extra), "dpm++", _lowered(order=2))
    yield Setting(name, {**FLOW, "algorithm_type": "sde-dpmsolver++"}, "dpm++-sde", _lowered(order=2))
    single = "DPMSolverSinglestepScheduler"
    for algorithm, method in (("dpmsolver++", "dpm++-single"), ("dpmsolver", "dpm-single")):
        for order, rule, variant in ((1, "midpoint", "midpoint"), (2, "midpoint", "midpoint"), (2, "heun", "exact")):
            config = {
                "algorithm_type": algorithm,
                "solver_order": order,
                "solver_type": rule,
                "lower_order_final": True,
            }
            config["final_sigmas_type"] = "zero" if algorithm.endswith("++") else "sigma_min"
            yield Setting(single, config, method, _groups(variant))
    for extra in (*GRIDS[4:], FLOW, {"prediction_type": "v_prediction"}):
        yield Setting(single, {"lower_order_final": True, **extra}, "dpm++-single", _groups("midpoint"))
    yield Setting(single, {"algorithm_type": "sde-dpmsolver++", "solver_order": 1}, "dpm++-sde", _fixed(order=1))


def _multistep() -> Iterator[Setting]:
    name = "UniPCMultistepScheduler"
    for order in (1, 2, 3):
        for rule in ("bh1", "bh2"):
            for data in (True, False):
                config = {"solver_order": order, "solver_type": rule, "predict_x0": data}
                config["final_sigmas_type"] = "zero" if data and rule == "bh2" else "sigma_min"
                options = _fixed(order=order, variant=rule, form="data" if data else "noise")
                yield Setting(name, config, "unipc", options)
    for extra in (*GRIDS, FLOW, {**FLOW, "use_karras_sigmas": True}, {"prediction_type": "v_prediction"}, LATENT):
        yield Setting(name, dict(extra), "unipc", _fixed(order=2))
    yield Setting(
        name,
        {"disable_corrector": [0, 2]},
        "unipc",
        lambda steps, run: {"order": 2, "disable_corrector": [i for i in (0, 2) if i < steps]},
    )
    for order in (1, 2, 3):
        yield Setting(
            "DEISMultistepScheduler", {"solver_order": order}, "deis", _lowered(order=order, variant="logrho")
        )
    for extra in (*SPACINGS, {"prediction_type": "v_prediction"}, {"prediction_type": "sample"}):
        yield Setting("DEISMultistepScheduler", dict(extra), "deis", _lowered(order=2, variant="logrho"))
    for extra in (*GRIDS[4:], FLOW):  # their last step has length zero, which their lowering counts as a step
        config = {**extra, "solver_order": 3, "lower_order_final": False}
        yield Setting(
            "DEISMultistepScheduler",
            config,
            "deis",
            _fixed(order=3, variant="logrho", lower_order_final=False),
            first=2,
        )
    for order, corrector in ((1, 1), (1, 2), (2, 1), (2, 2), (2, 4), (3, 2), (3, 3), (3, 4)):
        config = {"predictor_order": order, "corrector_order": corrector}
        yield Setting("SASolverScheduler", config, "sa", _sa(order, corrector))
    for extra in (*SPACINGS, {"prediction_type": "v_prediction"}):
        yield Setting("SASolverScheduler", dict(extra), "sa", _sa(2, 2))
    for order, corrector in ((1, 1), (2, 2), (3, 4)):
        config = {"predictor_order": order, "corrector_order": corrector, "algorithm_type": "noise_prediction"}
        yield Setting("SASolverScheduler", config, "sa", _sa(order, corrector, "noise"))


def _karras() -> Iterator[Setting]:
    methods = {
        "LMSDiscreteScheduler": ("lms", _nothing),
        "HeunDiscreteScheduler": ("heun", _nothing),
        "KDPM2DiscreteScheduler": ("dpm2", _nothing),
        "KDPM2AncestralDiscreteScheduler": ("dpm2", _fixed(eta=1.0)),
        "EulerDiscreteScheduler": ("euler", _nothing),
    }
    for name, (method, options) in methods.items():
        for extra in (*GRIDS, {"prediction_type": "v_prediction"}, LATENT):
            yield Setting(name, dict(extra), method, options)
    for extra in (*SPACINGS, {"prediction_type": "v_prediction"}, LATENT):
        yield Setting("EulerAncestralDiscreteScheduler", dict(extra), "ddim", _fixed(eta=1.0))
    zero = {"rescale_betas_zero_snr": True, "prediction_type": "v_prediction", "timestep_spacing": "trailing"}
    yield Setting("EulerDiscreteScheduler", zero, "euler", _nothing)
    yield Setting("EulerDiscreteScheduler", {"final_sigmas_type": "sigma_min"}, "euler", _nothing, first=2)


def _others() -> Iterator[Setting]:
    for schedule in ("karras", "exponential"):
        for kind in ("epsilon", "v_prediction"):
            config = {"sigma_schedule": schedule, "prediction_type": kind}
            yield Setting("EDMEulerScheduler", config, "euler", _nothing)
            for order in (1, 2, 3):
                more = {**config, "solver_order": order}
                yield Setting("EDMDPMSolverMultistepScheduler", more, "dpm++", _lowered(order=order))
            sde = {**config, "algorithm_type": "sde-dpmsolver++"}
            yield Setting("EDMDPMSolverMultistepScheduler", sde, "dpm++-sde", _lowered(order=2))
    for extra in ({}, {"shift": 3.0}, {"shift_terminal": 0.1}, *GRIDS[4:], {"shift": 3.0, "use_karras_sigmas": True}):
        yield Setting(
            "FlowMatchEulerDiscreteScheduler", dict(extra), "euler", _nothing, first=1 + ("shift_terminal" in extra)
        )
    for extra in ({}, {"shift": 3.0}):
        yield Setting("FlowMatchHeunDiscreteScheduler", dict(extra), "heun", _nothing)


def settings() -> list[Setting]:
    """Every compared setting."""
    return [*_ancestral(), *_dpm(), *_multistep(), *_karras(), *_others()]
