"""What runs when nobody names a method: one untuned setting for each budget, chosen from evidence.

The errors behind it, and where another setting does better, are in docs/defaults.md.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from pathline.interpolants import GaussianPath, LinearPath, StochasticInterpolant

GUIDED = 2.0
"""Scale of classifier-free guidance above which a run counts as guided."""


@dataclass(frozen=True)
class Untuned:
    """A method on a grid.

    Attributes
    ----------
    method, grid : str
    options, grid_options : mapping
    """

    method: str
    grid: str
    options: Mapping[str, Any] = field(default_factory=dict)
    grid_options: Mapping[str, Any] = field(default_factory=dict)


def is_guided(guidance: Any) -> bool:
    """True for classifier-free guidance of a scale above `GUIDED`, and for guidance of any other kind."""
    scale = getattr(guidance, "scale", None)
    return guidance is not None and (not isinstance(scale, (int, float)) or scale > GUIDED)


Rules = tuple[tuple[int, Untuned], ...]
"""Most calls at which each setting is used."""
_FIRST = {"afs": "unit"}
_EVEN = Untuned("unipc", "logsnr", {"order": 3})
_STEADY = Untuned("unipc", "beta", {"order": 2})


def _log_snr(cleanest: float) -> dict[str, float]:
    return {"cleanest": cleanest}


def _beta(alpha: float, beta: float) -> dict[str, float]:
    return {"alpha": alpha, "beta": beta}


_UNGUIDED: dict[str, Rules] = {
    "data": (
        (3, Untuned("ghvb", "logsnr", {"order": 2.5, **_FIRST}, _log_snr(0.12))),
        (4, Untuned("unipc", "logsnr", {"order": 2, **_FIRST}, _log_snr(0.06))),
        (5, Untuned("ipndm", "logsnr", {"order": 3, **_FIRST}, _log_snr(0.02))),
        (6, Untuned("ipndm", "karras", {"order": 3, **_FIRST}, {"rho": 12.0})),
        (11, Untuned("ipndm", "logsnr", {"order": 3}, _log_snr(0.03))),
        (17, Untuned("ghvb", "karras", {"order": 2.5})),
    ),
    "data on lines": (
        (3, Untuned("ipndm", "logsnr", {"order": 3, **_FIRST}, _log_snr(0.12))),
        (5, Untuned("ipndm", "karras", {"order": 3, **_FIRST})),
        (17, Untuned("ipndm", "karras", {"order": 3})),
    ),
    "velocity": (
        (3, Untuned("ghvb", "beta", {"order": 2.5, **_FIRST}, _beta(0.6, 0.5))),
        (4, Untuned("ipndm", "beta", {"order": 2, **_FIRST})),
        (5, Untuned("ghvb", "beta", {"order": 2.5, **_FIRST}, _beta(0.45, 0.45))),
        (9, Untuned("ipndm", "beta", {"order": 3}, _beta(0.5, 0.7))),
        (17, Untuned("ipndm", "beta", {"order": 3}, _beta(0.6, 0.8))),
    ),
    "noise": (
        (3, Untuned("unipc", "beta", {"order": 2, **_FIRST}, _beta(0.6, 0.8))),
        (4, Untuned("dpm++", "logsnr", {"order": 2, **_FIRST}, _log_snr(0.12))),
        (9, Untuned("unipc", "beta", {"order": 2, **_FIRST}, _beta(0.6, 0.8))),
        (12, Untuned("ghvb", "beta", {"order": 2.5}, _beta(0.45, 0.45))),
    ),
}
"""By what the network predicts, see `_kind`; beyond, `_EVEN`."""
_GUIDED: dict[str, Rules] = {
    "data": (
        (4, Untuned("ipndm_v", "time", {"order": 2, **_FIRST})),
        (5, Untuned("deis", "beta", {"order": 2, **_FIRST})),
        (12, Untuned("dpm", "beta", {"order": 2, **_FIRST}, _beta(0.6, 0.8))),
    ),
    "data on lines": (
        (3, Untuned("ipndm_v", "beta", {"order": 2, **_FIRST}, _beta(0.8, 0.6))),
        (4, Untuned("ipndm_v", "logsnr", {"order": 2, **_FIRST}, _log_snr(0.06))),
        (6, Untuned("ghvb", "logsnr", {"order": 1.5, **_FIRST}, _log_snr(0.12))),
        (12, Untuned("ipndm", "logsnr", {"order": 2}, _log_snr(0.06))),
    ),
    "velocity": (
        (4, Untuned("ipndm_v", "beta", {"order": 2, **_FIRST}, _beta(0.8, 0.6))),
        (5, Untuned("ipndm_v", "beta", {"order": 2, **_FIRST})),
        (6, Untuned("ipndm", "beta", {"order": 2}, _beta(0.6, 0.7))),
        (9, Untuned("ipndm", "beta", {"order": 2}, _beta(0.6, 0.8))),
        (12, Untuned("dpm", "beta", {"order": 2, **_FIRST}, _beta(0.45, 0.45))),
    ),
    "noise": ((12, Untuned("ghvb", "beta", {"order": 1.5, **_FIRST}, _beta(0.6, 0.8))),),
}
"""The same for guided runs; beyond, `_STEADY`."""
_PLAIN: Rules = ((4, Untuned("dpm++", "time", {"order": 2})),)
_ON_BRIDGES = Untuned("dbim", "time")


def default_settings(
    calls: int,
    path: GaussianPath | StochasticInterpolant | None = None,
    *,
    prediction: str | None = None,
    guided: bool = False,
    analytic: bool = True,
) -> Untuned:
    """The setting for a budget.

    Parameters
    ----------
    calls : int
        Network calls of a run.
    path, prediction : the model's, where they are known
    guided : bool
        See `is_guided`.
    analytic : bool
        Whether an analytic first step may take the place of a call: it is one step more at the same budget. Without it
        the setting is one that serves guided and unguided runs.
    """
    if isinstance(path, StochasticInterpolant):
        return _ON_BRIDGES
    rules: Rules
    if not analytic:
        rules, beyond = _PLAIN, _STEADY
    elif guided:
        rules, beyond = _GUIDED[_kind(path, prediction)], _STEADY
    else:
        rules, beyond = _UNGUIDED[_kind(path, prediction)], _EVEN
    return next((setting for most, setting in rules if calls <= most), beyond)


def _kind(path: GaussianPath | None, prediction: str | None) -> str:
    """Which rules hold: those that predict noise or velocity know little of the data where noise is strong, and need
    more levels there; and the same levels lie elsewhere in the time of a flow.
    """
    if prediction == "data":
        return "data on lines" if isinstance(path, LinearPath) else "data"
    return "velocity" if prediction == "velocity" else "noise"
