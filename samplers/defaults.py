"""What runs when nobody names a method: one untuned setting for each budget, chosen from evidence.

The errors behind it, and where another setting does better, are in docs/defaults.md.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from pathline.interpolants import GaussianPath, StochasticInterpolant

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
_ANALYTIC = {"afs": "unit"}
_DENSE_ENDS = {"alpha": 0.45, "beta": 0.45}
_EVEN = Untuned("unipc", "logsnr", {"order": 3})
_OF_DATA: Rules = (
    (3, Untuned("unipc", "logsnr", {"order": 2, **_ANALYTIC}, {"cleanest": 0.12})),
    (4, Untuned("unipc", "logsnr", {"order": 2, **_ANALYTIC}, {"cleanest": 0.06})),
    (6, Untuned("ipndm", "logsnr", {"order": 3, **_ANALYTIC}, {"cleanest": 0.03})),
    (11, Untuned("ipndm", "karras", {"order": 3})),
    (17, Untuned("ghvb", "karras", {"order": 2.5})),
)
"""Most calls at which each setting is used, for networks that predict the data; beyond, `_EVEN`."""
_OF_OTHERS: Rules = (
    (6, Untuned("ipndm", "beta", {"order": 2, **_ANALYTIC})),
    (9, Untuned("ghvb", "beta", {"order": 2.5, **_ANALYTIC}, _DENSE_ENDS)),
    (12, Untuned("ghvb", "beta", {"order": 2.5}, _DENSE_ENDS)),
)
"""The same for all other networks: those that predict noise or velocity know little of the data where noise is strong,
and need more levels there; beyond, `_EVEN`."""
_GUIDED: Rules = (
    (3, Untuned("dpm++", "time", {"order": 2, **_ANALYTIC})),
    (4, Untuned("ddim", "time", _ANALYTIC)),
    (5, Untuned("ipndm", "time", {"order": 2, **_ANALYTIC})),
    (12, Untuned("ipndm", "beta", {"order": 2, **_ANALYTIC})),
)
_PLAIN: Rules = ((4, Untuned("dpm++", "time", {"order": 2})),)
_STEADY = Untuned("unipc", "beta", {"order": 2})
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
    if not analytic:
        rules, beyond = _PLAIN, _STEADY
    elif guided:
        rules, beyond = _GUIDED, _STEADY
    else:
        rules, beyond = (_OF_DATA if prediction == "data" else _OF_OTHERS), _EVEN
    return next((setting for most, setting in rules if calls <= most), beyond)
