"""Schedulers under the names users expect; each is a default configuration of the general one."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

from .base import PathlineScheduler


class DDIMScheduler(PathlineScheduler):
    """First-order exponential steps; `pathline={"options": {"eta": 1.0}}` is ancestral sampling."""

    default_pathline: ClassVar[Mapping[str, Any]] = {"method": "ddim"}


class EulerScheduler(PathlineScheduler):
    """Euler steps along the probability flow, in time for flow models."""

    default_pathline: ClassVar[Mapping[str, Any]] = {"method": "euler"}


class HeunScheduler(PathlineScheduler):
    """Heun's method, two calls a step: N steps are 2N − 1 calls."""

    default_pathline: ClassVar[Mapping[str, Any]] = {"method": "heun"}


class DPMSolverPPScheduler(PathlineScheduler):
    """DPM-Solver++ multistep, by default 2M."""

    default_pathline: ClassVar[Mapping[str, Any]] = {"method": "dpm++"}


class UniPCScheduler(PathlineScheduler):
    """UniPC: a multistep predictor with a corrector that costs no call."""

    default_pathline: ClassVar[Mapping[str, Any]] = {"method": "unipc"}


class IPNDMScheduler(PathlineScheduler):
    """iPNDM: fixed Adams–Bashforth weights on the noise prediction."""

    default_pathline: ClassVar[Mapping[str, Any]] = {"method": "ipndm"}


class ExponentialAdamsScheduler(PathlineScheduler):
    """Exponential Adams–Bashforth of any order with exact weights."""

    default_pathline: ClassVar[Mapping[str, Any]] = {"method": "exp-adams"}
