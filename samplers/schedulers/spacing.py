"""How the stock scheduler that a config comes from spaces its levels."""

from __future__ import annotations

import math
import warnings
from collections.abc import Collection, Mapping
from typing import Any, NamedTuple

from ..wrappers import is_flow

SOURCE = "_levels_of"
"""Config key that keeps the name of the stock class, since diffusers writes the name of ours over it."""
SOLVER_KEYS = (
    "solver_order",
    "solver_type",
    "algorithm_type",
    "predict_x0",
    "disable_corrector",
    "solver_p",
    "lower_order_final",
    "euler_at_final",
    "predictor_order",
    "corrector_order",
    "skip_prk_steps",
    "variance_type",
)
HIDDEN_KEYS = (
    "steps_offset",
    "use_lu_lambdas",
    "lambda_min_clipped",
    "sigma_min",
    "sigma_max",
    "set_alpha_to_one",
    *SOLVER_KEYS,
)
"""Stock keys that change levels or choose a solver and are no arguments of our classes."""
# What a key means to a class that has it; diffusers hands them on to classes that do not, and these ignore them.
_OFF = {
    "use_karras_sigmas": False,
    "use_exponential_sigmas": False,
    "use_beta_sigmas": False,
    "use_lu_lambdas": False,
    "final_sigmas_type": "zero",
    "set_alpha_to_one": True,
    "lambda_min_clipped": -math.inf,
    "interpolation_type": "linear",
    "timestep_type": "discrete",
}

# They space n + 1 indices and leave the last one, index 0, out; the end is a level of its own.
_DPM = ("DPMSolverMultistepScheduler", "DPMSolverSinglestepScheduler")
_UNIPC = "UniPCMultistepScheduler"
_REPEATING = ("DEISMultistepScheduler", "SASolverScheduler")
_FENCED = (*_DPM, _UNIPC, *_REPEATING)
# They do not round `linspace`, and convert between the outermost of the spaced levels.
_SIGMA = (
    "EulerDiscreteScheduler",
    "EulerAncestralDiscreteScheduler",
    "HeunDiscreteScheduler",
    "KDPM2DiscreteScheduler",
    "KDPM2AncestralDiscreteScheduler",
    "LMSDiscreteScheduler",
)


class Spacing(NamedTuple):
    """What a stock class does between `num_inference_steps` and its levels, beyond the keys all of them share.

    Attributes
    ----------
    kind : "linspace", "leading" or "trailing"
    offset : added to the indices of "leading"
    fenced : n + 1 indices are spaced, and the last one is left out
    whole : indices of "linspace" are rounded, else the levels between two training levels are interpolated
    lowest_lambda : training levels with a smaller log(signal/noise) are not used
    convert : Karras, exponential or beta levels, or None
    between_spaced : these lie between the outermost of the spaced levels, not of all training levels
    low, high : limits for them that the config sets, as noise/signal
    flow : "pure" begins a flow at σ = 1, "short" one training level later, "betas" spaces Karras levels of a schedule
        with betas and takes noise/(signal + noise)
    """

    kind: str = "leading"
    offset: int = 0
    fenced: bool = False
    whole: bool = True
    lowest_lambda: float = -math.inf
    convert: str | None = None
    between_spaced: bool = False
    low: float | None = None
    high: float | None = None
    flow: str = "pure"
    ends_on_betas: bool = False


def spacing_of(config: Mapping[str, Any]) -> Spacing:
    """The spacing of a scheduler's config, by the class it was taken from; without one by its keys."""
    source = str(config.get(SOURCE, ""))
    single = source == "DPMSolverSinglestepScheduler"
    convert = switched_on(config)
    if config.get("use_lu_lambdas") and convert != "karras":
        convert = "exponential"  # levels uniform in lambda, whatever the name says
    flow = "short" if source in (*_DPM, *_REPEATING) else "pure"
    if source == _UNIPC and convert == "karras" and config.get("use_flow_sigmas"):
        flow = "betas"
    return Spacing(
        kind="linspace" if single else str(config["timestep_spacing"]),
        offset=int(config.get("steps_offset") or 0),
        fenced=source in _FENCED if source else config.get("solver_order") is not None,
        whole=source not in _SIGMA,
        lowest_lambda=float(config.get("lambda_min_clipped") or -math.inf),
        convert=convert,
        between_spaced=source in _SIGMA,
        low=config.get("sigma_min"),
        high=config.get("sigma_max"),
        flow=flow,
        ends_on_betas=source in _DPM,
    )


def off_switches(config: Mapping[str, Any], own: Collection[str]) -> dict[str, Any]:
    """Off switches for level settings in a config that its class, with the keys `own`, does not have."""
    return {key: off for key, off in _OFF.items() if key in config and key not in own}


def levels_of_source(config: Mapping[str, Any], source: str) -> dict[str, Any]:
    """Keys of ours that say what a stock config leaves to its class: where it comes from, and where runs end.

    Warns about settings that change the levels or labels of the stock class and do not act here.
    """
    found: dict[str, Any] = {SOURCE: source} if source else {}
    # DEIS and SA-Solver repeat the last converted level, so that a call is wasted: these end at 0 here
    stops = source in _REPEATING and switched_on(config) is None
    if (stops or config.get("set_alpha_to_one") is False) and not is_flow(config):
        found["final_sigmas_type"] = "sigma_min"
    if config.get("interpolation_type", "linear") != "linear":
        warn_idle(config, "interpolation_type", "levels are interpolated linearly between the training levels")
    if config.get("timestep_type", "discrete") != "discrete" and config.get("prediction_type") == "v_prediction":
        warn_idle(config, "timestep_type", "the network is given training indices, not log(sigma)/4")
    if config.get("variance_type") in ("learned", "learned_range"):
        warn_idle(config, "variance_type", "noise has the variance of the posterior")
    if callable(config.get("tau_func")):
        warn_idle(config, "tau_func", "give the option 'tau' of method 'sa' in 'pathline'")
    return found


def ends_of_switches(config: Mapping[str, Any], given: Mapping[str, Any]) -> dict[str, Any]:
    """Where runs end after `given` switches of a class that repeats its last level; see `levels_of_source`."""
    switches = [key for key in given if key in _OFF and key.startswith("use_")]
    if not switches or config.get(SOURCE) not in _REPEATING or is_flow({**config, **given}):
        return {}
    return {"final_sigmas_type": "sigma_min" if switched_on({**config, **given}) is None else "zero"}


def switched_on(config: Mapping[str, Any]) -> str | None:
    """Which of the Karras, exponential and beta switches of a config is on.

    Raises
    ------
    ValueError
        More than one.
    """
    kinds = [kind for kind in ("karras", "exponential", "beta") if config.get(f"use_{kind}_sigmas")]
    if len(kinds) > 1:
        raise ValueError(
            f"only one of use_karras_sigmas, use_exponential_sigmas and use_beta_sigmas can be on, got {kinds}"
        )
    return kinds[0] if kinds else None


def warn_idle(config: Mapping[str, Any], key: str, instead: str) -> None:
    """Warn that `key` of a stock config does not act here, and what happens instead."""
    value = config[key]
    shown = repr(value) if isinstance(value, (str, int, float)) else type(value).__name__
    warnings.warn(f"{key}={shown} of the stock config does not act in this scheduler: {instead}", stacklevel=6)
