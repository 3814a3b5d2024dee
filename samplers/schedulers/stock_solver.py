"""What a stock config says about its solver, in the words of our methods."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

from ..registry import method_info
from .family import Schedule
from .settings import Settings
from .spacing import SOURCE, warn_idle

SHORT_RUN = 15
"""DPM-Solver and DEIS of diffusers lower the order over the last steps in runs of fewer steps only."""
_BY_LENGTH = ("DPMSolverMultistepScheduler", "DEISMultistepScheduler")
_LOWERING = (*_BY_LENGTH, "UniPCMultistepScheduler")
_MULTISTEP = {
    "dpmsolver++": "dpm++",
    "dpmsolver": "dpm",
    "sde-dpmsolver++": "dpm++-sde",
    "sde-dpmsolver": "dpm-sde",
}
_SINGLESTEP = "DPMSolverSinglestepScheduler"
# labels between which the stock SA-Solver adds noise, with half a label to spare on both sides
_SA_NOISY = (199.5, 800.5)

Solver = tuple[str, dict[str, Any]]


def solver_of(config: Mapping[str, Any], method: str, *, every_key: bool = True) -> Solver:
    """The method and those of its options that a config fixes, for a class whose own method is `method`.

    A key counts as it does for the stock class of that method, whichever class the config comes from; what no key says
    stays as it is by default here. Without `every_key` only `solver_order` counts.

    Raises
    ------
    ValueError
        The config asks for a solver that has no counterpart.
    """
    rule = _RULES.get(method) if every_key else None
    chosen, options = (method, {}) if rule is None else rule(config, method)
    known = method_info(chosen).options
    order = config.get("solver_order")
    if order is not None and "order" in known:
        options = {"order": order, **options}
    return chosen, {key: value for key, value in options.items() if key == "order" or value != known[key]}


def of_run(settings: Settings, config: Mapping[str, Any], steps: int, schedule: Schedule) -> Settings:
    """The settings of one run: options that stock classes choose by the number of steps.

    Where the last step has length zero (the schedule's `idle_end`) they lower the order of that one.
    """
    options, method, source = dict(settings.options), settings.method, config.get(SOURCE)
    if source in _BY_LENGTH and method in (*_MULTISTEP.values(), "deis"):
        options.setdefault("lower_order_final", bool(config.get("lower_order_final", True)) and steps < SHORT_RUN)
    if source == "UniPCMultistepScheduler" and options.get("disable_corrector"):
        options["disable_corrector"] = [i for i in options["disable_corrector"] if i < schedule.nodes.steps]
    if (
        schedule.idle_end
        and source in _LOWERING
        and options.get("order", method_info(method).options.get("order")) == 2
    ):
        options["lower_order_final"] = False
    if source == "SASolverScheduler" and method == "sa" and not {"tau", "window"} & set(options):
        options["window"] = _sa_window(config, steps)
    return settings if options == settings.options else replace(settings, options=options)


def _unipc(config: Mapping[str, Any], method: str) -> Solver:
    if config.get("solver_p") is not None:
        warn_idle(config, "solver_p", "UniPC predicts by itself")
    options: dict[str, Any] = {}
    if config.get("disable_corrector"):
        options["disable_corrector"] = list(config["disable_corrector"])
    if config.get("predict_x0") is False:
        options["form"] = "noise"
    if config.get("solver_type") == "bh1":
        options["variant"] = "bh1"
    return method, options | _lowering(config)


def _dpm(config: Mapping[str, Any], method: str) -> Solver:
    algorithm, order = config.get("algorithm_type"), config.get("solver_order")
    if method == "dpm++":
        method = _MULTISTEP.get(str(algorithm), method)
    if method == "dpm++-sde" and order == 3 and algorithm == "sde-dpmsolver++":
        warn_idle(config, "solver_order", "the stock rule has a wrong sign with this algorithm, ours has not")
    if config.get("euler_at_final") and config.get("final_sigmas_type") == "sigma_min":
        warn_idle(config, "euler_at_final", "the last step keeps its order unless it ends at sigma 0")
    options = {"variant": "heun"} if config.get("solver_type") == "heun" else {}
    return method, options | _lowering(config)


def _single(config: Mapping[str, Any], method: str) -> Solver:
    algorithm, order = config.get("algorithm_type"), config.get("solver_order")
    stochastic = algorithm == "sde-dpmsolver++"
    if order == 1:
        return "dpm++-sde" if stochastic else _MULTISTEP.get(str(algorithm), "dpm++"), {}
    if config.get(SOURCE) == _SINGLESTEP and stochastic:
        raise ValueError(
            f"algorithm_type={algorithm!r} with solver_order={order!r} of {_SINGLESTEP} has no counterpart; name a "
            "method, such as pathline={'method': 'seeds'} or {'method': 'dpm++-sde'}"
        )
    if config.get(SOURCE) == _SINGLESTEP and order == 3:
        warn_idle(config, "solver_order", "stages stand and weigh as the authors have them, not as the stock class")
    if config.get(SOURCE) == _SINGLESTEP and config["lower_order_final"] and config["final_sigmas_type"] == "sigma_min":
        warn_idle(config, "lower_order_final", "the last two calls are one step unless the run ends at sigma 0")
    method = "dpm-single" if algorithm == "dpmsolver" else method
    options = {"variant": "exact"} if config.get("solver_type") == "heun" else {}
    return method, options | _lowering(config)


def _deis(config: Mapping[str, Any], method: str) -> Solver:
    options = {"variant": "logrho"} if config.get("algorithm_type") == "deis" else {}
    return method, options | _lowering(config)


def _sa(config: Mapping[str, Any], method: str) -> Solver:
    words = {"predictor_order": "order", "corrector_order": "corrector_order"}
    options = {ours: config[key] for key, ours in words.items() if config.get(key) is not None}
    if config.get("algorithm_type") == "noise_prediction":
        options["form"] = "noise"
    return method, options | _lowering(config)


def _plms(config: Mapping[str, Any], method: str) -> Solver:
    if "skip_prk_steps" not in config:
        return method, {}
    options: dict[str, Any] = {"warmup": "repeat" if config["skip_prk_steps"] else "runge-kutta"}
    if config.get("set_alpha_to_one"):
        options["lower_order_final"] = False
    return method, options


def _ddpm(config: Mapping[str, Any], method: str) -> Solver:
    if str(config.get("variance_type")).startswith("fixed_large"):
        warn_idle(config, "variance_type", "noise has the variance of the posterior")
    return method, {}


_RULES: dict[str, Callable[[Mapping[str, Any], str], Solver]] = {
    "unipc": _unipc,
    "dpm++": _dpm,
    "dpm++-sde": _dpm,
    "dpm++-single": _single,
    "deis": _deis,
    "sa": _sa,
    "plms": _plms,
    "ddpm": _ddpm,
}


def _lowering(config: Mapping[str, Any]) -> dict[str, Any]:
    """The option, but where it follows the number of steps."""
    given = config.get("lower_order_final")
    return {} if given is None or config.get(SOURCE) in _BY_LENGTH else {"lower_order_final": bool(given)}


def _sa_window(config: Mapping[str, Any], steps: int) -> tuple[float, float]:
    """Labels of `_SA_NOISY` as fractions of the way from the last node to the first."""
    total = int(config["num_train_timesteps"])
    first = total - 1.0
    if config.get("timestep_spacing") == "leading":
        first = steps * float(total // (steps + 1)) + float(config.get("steps_offset") or 0)
    end = 0.0 if config.get("final_sigmas_type") == "sigma_min" else -1.0
    low, high = ((label - end) / max(first - end, 1.0) for label in _SA_NOISY)
    return low, high
