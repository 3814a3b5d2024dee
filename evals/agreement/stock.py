"""Schedulers of diffusers on a closed-form network, as released or with every float32 of theirs widened to float64."""

from __future__ import annotations

import importlib
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cache
from typing import Any

import numpy as np
import torch
from torch import Tensor

from pathline.interpolants import GaussianMixture

SHAPE = (2, 3, 2)
NOISES = 64
"""Stored draws: one per step, the same for both sides."""

INDEXED = ("DDIMScheduler", "DDIMParallelScheduler", "DDPMScheduler", "DDPMParallelScheduler", "PNDMScheduler")
VP = (
    "DPMSolverMultistepScheduler",
    "DPMSolverSinglestepScheduler",
    "UniPCMultistepScheduler",
    "DEISMultistepScheduler",
    "SASolverScheduler",
)
VE = (
    "LMSDiscreteScheduler",
    "HeunDiscreteScheduler",
    "KDPM2DiscreteScheduler",
    "KDPM2AncestralDiscreteScheduler",
    "EulerDiscreteScheduler",
    "EulerAncestralDiscreteScheduler",
)
EDM = ("EDMEulerScheduler", "EDMDPMSolverMultistepScheduler")
FLOW = ("FlowMatchEulerDiscreteScheduler", "FlowMatchHeunDiscreteScheduler")
NAMES = (*INDEXED, *VP, *VE, *EDM, *FLOW)
"""Classes that can be run here."""


@dataclass(frozen=True)
class Setting:
    """One configuration of a stock class and the method of ours that must do the same.

    Attributes
    ----------
    name : class name in diffusers
    config : constructor arguments
    method : a name of `list_methods()`
    options : function (steps, StockRun) -> options of the method
    step : further arguments of the stock `step`
    first : smallest number of steps that can be compared
    fits : function (steps) -> whether that number can be
    """

    name: str
    config: dict[str, Any]
    method: str
    options: Callable[[int, StockRun], dict[str, Any]]
    step: dict[str, Any] = field(default_factory=dict)
    first: int = 1
    fits: Callable[[int], bool] = field(default=lambda steps: True)

    @property
    def label(self) -> str:
        """Short text of the configuration."""
        parts = [f"{k}={v}" for k, v in {**self.config, **self.step}.items()]
        return f"{self.name}({', '.join(parts)})"


@dataclass(frozen=True)
class StockRun:
    """What one run of a stock scheduler did.

    Attributes
    ----------
    sample : Tensor, in the coordinates signal·data + noise·eps
    levels : list of (signal, noise) at which the network was called
    end : (signal, noise) of the sample
    timesteps : labels of the calls
    orders : orders of the calls, where the scheduler plans them
    powers : signal² of the training levels, for schedules with betas
    """

    sample: Tensor
    levels: list[tuple[float, float]]
    end: tuple[float, float]
    timesteps: list[float]
    orders: list[int]
    powers: tuple[float, ...]


@cache
def bed() -> GaussianMixture:
    """Three broad components: the network is smooth but not linear."""
    rng = np.random.default_rng(7)
    means = torch.tensor(rng.standard_normal((3, *SHAPE[1:])))
    return GaussianMixture([0.5, 0.3, 0.2], means, std=[0.5, 0.7, 0.6])


@cache
def start_and_noises() -> tuple[Tensor, Tensor]:
    """Standard normal start (B, ...) and one draw for every step."""
    generator = torch.Generator().manual_seed(11)
    draw = torch.randn(NOISES + 1, *SHAPE, generator=generator, dtype=torch.float64)
    return draw[0], draw[1:]


def output(x: Tensor, signal: float, noise: float, prediction: str) -> Tensor:
    """The exact network at signal·data + noise·eps = x, in diffusers' name of its prediction; float64."""
    data = bed().data_prediction(x.double(), signal, noise)
    if prediction == "sample":
        return data
    eps = (x.double() - signal * data) / noise
    if prediction == "v_prediction":
        return signal * eps - noise * data
    return eps - data if prediction == "flow_prediction" else eps


class _Widened:
    """A module whose float32 is float64."""

    def __init__(self, module: Any) -> None:
        self._module = module
        self.float32 = module.float64

    def __getattr__(self, name: str) -> Any:
        return getattr(self._module, name)


@contextmanager
def _prepared(module: Any, widened: bool, draw: Callable[[], Tensor]) -> Iterator[None]:
    """Replace the module's source of noise and, if asked for, its single precision."""
    stored = {name: getattr(module, name) for name in ("torch", "np", "randn_tensor") if hasattr(module, name)}
    default = torch.get_default_dtype()
    try:
        if hasattr(module, "randn_tensor"):
            module.randn_tensor = lambda shape, **kwargs: draw().to(kwargs.get("dtype"))
        if widened:
            torch.set_default_dtype(torch.float64)
            for name in ("torch", "np"):
                if name in stored:
                    setattr(module, name, _Widened(stored[name]))
        with warnings.catch_warnings(), quiet():
            warnings.simplefilter("ignore")
            yield
    finally:
        torch.set_default_dtype(default)
        for name, value in stored.items():
            setattr(module, name, value)


@contextmanager
def quiet() -> Iterator[None]:
    """Silence diffusers' logger."""
    from diffusers.utils import logging

    level = logging.get_verbosity()
    logging.set_verbosity(logging.ERROR)
    try:
        yield
    finally:
        logging.set_verbosity(level)


def run_stock(setting: Setting, steps: int, *, widened: bool = True) -> StockRun:
    """Run a stock scheduler from the shared start.

    Parameters
    ----------
    setting : Setting
    steps : int
        Its `num_inference_steps`.
    widened : bool
        True repeats its arithmetic in float64, so that its formulas are compared and not its rounding; False leaves it
        as released, with float32 latents.
    """
    import diffusers

    cls = getattr(diffusers, setting.name)
    module = importlib.import_module(cls.__module__)
    start, noises = start_and_noises()
    position = 0
    with _prepared(module, widened, lambda: noises[position]):
        scheduler = cls(**setting.config)
        scheduler.set_timesteps(steps)
        dtype = torch.float64 if widened else torch.float32
        levels: list[tuple[float, float]] = []
        x = (start * _start_scale(setting.name, scheduler)).to(dtype)
        for k, t in enumerate(scheduler.timesteps):
            levels.append(_level(setting.name, scheduler, k, t))
            position = len(dict.fromkeys(levels)) - 1 if setting.name != "KDPM2AncestralDiscreteScheduler" else k // 2
            seen = x if setting.name in FLOW or setting.name in INDEXED else scheduler.scale_model_input(x, t)
            out = _answer(setting, scheduler, seen, levels[-1], x).to(dtype)
            x = scheduler.step(out, t, x, return_dict=False, **setting.step)[0]
        end = _end(setting.name, scheduler, int(scheduler.timesteps[-1]), steps)
        if setting.name in VE:
            x = x * end[0]  # the state of these classes is x / signal
    orders = [int(p) for p in getattr(scheduler, "order_list", [])]
    powers = tuple(float(p) for p in getattr(scheduler, "alphas_cumprod", []))
    return StockRun(x.double(), levels, end, [float(t) for t in scheduler.timesteps], orders, powers)


def _start_scale(name: str, scheduler: Any) -> float:
    """Factor of unit noise at which the latents of this class begin."""
    if name in VE:
        sigma = float(scheduler.sigmas[0])
        return (1.0 + sigma**2) ** 0.5
    return float(scheduler.sigmas[0]) if name in EDM else 1.0


def _level(name: str, scheduler: Any, k: int, t: Tensor) -> tuple[float, float]:
    """(signal, noise) of the latents that the network is given in call k."""
    if name in INDEXED:
        return _of_power(float(scheduler.alphas_cumprod[int(t)]))
    sigma = float(scheduler.sigmas[k])
    if name.startswith("KDPM2") and not scheduler.state_in_first_order:
        inner = k - 1 if "Ancestral" in name else k
        sigma = float(scheduler.sigmas_interpol[inner])
    return _of_sigma(name, scheduler, sigma)


def _of_power(power: float) -> tuple[float, float]:
    return power**0.5, (1.0 - power) ** 0.5


def _of_sigma(name: str, scheduler: Any, sigma: float) -> tuple[float, float]:
    if name in EDM:
        return 1.0, sigma
    if name in FLOW or scheduler.config.get("use_flow_sigmas"):
        return 1.0 - sigma, sigma
    signal = (1.0 + sigma**2) ** -0.5
    return signal, sigma * signal


def _end(name: str, scheduler: Any, last: int, steps: int) -> tuple[float, float]:
    if name.startswith("DDPM"):
        return 1.0, 0.0
    if name in INDEXED:
        before = last - scheduler.config.num_train_timesteps // steps
        return _of_power(float(scheduler.alphas_cumprod[before] if before >= 0 else scheduler.final_alpha_cumprod))
    return _of_sigma(name, scheduler, float(scheduler.sigmas[-1]))


def _answer(setting: Setting, scheduler: Any, seen: Tensor, level: tuple[float, float], x: Tensor) -> Tensor:
    """What the network of this class answers to its scaled input."""
    kind = str(scheduler.config.get("prediction_type", "flow_prediction"))
    if setting.name not in EDM:
        return output(seen, *level, kind)
    sigma, width = level[1], float(scheduler.config.sigma_data)
    data = output(x, 1.0, sigma, "sample")
    total = sigma**2 + width**2
    factor = sigma * width / total**0.5 * (-1.0 if kind == "v_prediction" else 1.0)
    return (data - width**2 / total * x.double()) / factor
