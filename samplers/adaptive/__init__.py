"""Methods that choose their own steps: they are not tables, but run behind the same border and the same `sample`."""

from . import dpm, ode, sde
from .brownian import BrownianPath, brownian_noise
from .integrate import AdaptiveRun, prepare
from .monitor import AdaptiveError
from .registry import AdaptiveInfo, adaptive_info, list_adaptive, register_adaptive

__all__ = [
    "AdaptiveError",
    "AdaptiveInfo",
    "AdaptiveRun",
    "BrownianPath",
    "adaptive_info",
    "brownian_noise",
    "dpm",
    "list_adaptive",
    "ode",
    "prepare",
    "register_adaptive",
    "sde",
]
