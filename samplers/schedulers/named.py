"""Schedulers under the names users expect; each is a default configuration of the general one.

`from_config` of the stock class of the same kind takes its solver's settings over, see `stock_solver`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

from .base import PathlineScheduler


class EulerScheduler(PathlineScheduler):
    """Euler steps along the probability flow: the baseline, and for few-step distilled flow models."""

    default_pathline: ClassVar[Mapping[str, Any]] = {"method": "euler"}


class DDIMScheduler(PathlineScheduler):
    """First-order exponential steps, robust at any number; `pathline={"options": {"eta": 1.0}}` is ancestral."""

    default_pathline: ClassVar[Mapping[str, Any]] = {"method": "ddim"}


class DDPMScheduler(PathlineScheduler):
    """Ancestral sampling of the noising process: for hundreds of steps, where diversity counts more than speed."""

    default_pathline: ClassVar[Mapping[str, Any]] = {"method": "ddpm"}


class EulerAncestralScheduler(PathlineScheduler):
    """Euler ancestral: 20 to 40 steps of images that keep changing with the number of steps."""

    default_pathline: ClassVar[Mapping[str, Any]] = {"method": "euler-ancestral"}


class HeunScheduler(PathlineScheduler):
    """Heun's method, N steps of 2N − 1 calls: accurate and without history, for 20 calls and more."""

    default_pathline: ClassVar[Mapping[str, Any]] = {"method": "heun"}


class KDPM2Scheduler(PathlineScheduler):
    """DPM2: the midpoint rule with a stage at the geometric mean, two calls a step, for 20 calls and more."""

    default_pathline: ClassVar[Mapping[str, Any]] = {"method": "dpm2"}


class KDPM2AncestralScheduler(PathlineScheduler):
    """DPM2 with ancestral noise: varied images at 40 calls and more."""

    default_pathline: ClassVar[Mapping[str, Any]] = {"method": "dpm2", "options": {"eta": 1.0}}


class LMSScheduler(PathlineScheduler):
    """Linear multistep on the noise prediction: one call a step, for 20 steps and more of dense grids."""

    default_pathline: ClassVar[Mapping[str, Any]] = {"method": "lms"}


class PNDMScheduler(PathlineScheduler):
    """PLMS, once the default of Stable Diffusion: reproduces old results at 50 steps."""

    default_pathline: ClassVar[Mapping[str, Any]] = {"method": "plms"}


class IPNDMScheduler(PathlineScheduler):
    """iPNDM: fixed Adams–Bashforth weights on the noise prediction; good at 10 to 20 evenly spaced steps."""

    default_pathline: ClassVar[Mapping[str, Any]] = {"method": "ipndm"}


class DEISScheduler(PathlineScheduler):
    """DEIS: Adams–Bashforth with exact weights on the noise prediction; 8 to 20 steps without strong guidance."""

    default_pathline: ClassVar[Mapping[str, Any]] = {"method": "deis"}


class DPMSolverPPScheduler(PathlineScheduler):
    """DPM-Solver++ multistep, by default 2M: the safe choice for 10 to 25 steps, also under strong guidance."""

    default_pathline: ClassVar[Mapping[str, Any]] = {"method": "dpm++"}


class DPMSolverPPSDEScheduler(PathlineScheduler):
    """DPM-Solver++ 2M SDE: noise that forgives errors of the network, for 20 to 50 steps."""

    default_pathline: ClassVar[Mapping[str, Any]] = {"method": "dpm++-sde"}


class DPMSolverPPSinglestepScheduler(PathlineScheduler):
    """DPM-Solver++ 2S: no history, so it stands edits of the latents between steps; N steps are N calls."""

    default_pathline: ClassVar[Mapping[str, Any]] = {"method": "dpm++-single"}


class UniPCScheduler(PathlineScheduler):
    """UniPC: a multistep predictor with a corrector that costs no call; the first to try at 5 to 15 steps."""

    default_pathline: ClassVar[Mapping[str, Any]] = {"method": "unipc"}


class DCSolverScheduler(PathlineScheduler):
    """DC-Solver as released: UniPC-2 with ratios fitted to Stable Diffusion 2.1 at guidance 7.5, for 5 to 10 steps."""

    default_pathline: ClassVar[Mapping[str, Any]] = {
        "method": "dc-solver",
        "options": {"ratios": "sd2.1", "guidance_scale": 7.5, "base_options": {"order": 2, "disable_corrector": [0]}},
    }


class GHVBScheduler(PathlineScheduler):
    """Generalised heavy ball: multistep with momentum, against the divergence artefacts of strong guidance."""

    default_pathline: ClassVar[Mapping[str, Any]] = {"method": "ghvb"}


class SASolverScheduler(PathlineScheduler):
    """SA-Solver: a stochastic predictor-corrector of one call a step; detail at 20 steps and more."""

    default_pathline: ClassVar[Mapping[str, Any]] = {"method": "sa"}


class ERSDEScheduler(PathlineScheduler):
    """ER-SDE-Solver-3: stochastic with one call a step, good from 10 steps on."""

    default_pathline: ClassVar[Mapping[str, Any]] = {"method": "er-sde"}


class SEEDSScheduler(PathlineScheduler):
    """SEEDS-3: a stochastic singlestep solver whose steps spend three nodes, for budgets of 60 calls and more."""

    default_pathline: ClassVar[Mapping[str, Any]] = {"method": "seeds"}


class RESScheduler(PathlineScheduler):
    """Refined exponential solver, singlestep: accurate without history, for budgets of 20 calls and more."""

    default_pathline: ClassVar[Mapping[str, Any]] = {"method": "res"}


class RESMultistepScheduler(PathlineScheduler):
    """Refined exponential solver, multistep: exact second-order weights, an alternative to 2M at 10 to 25 steps."""

    default_pathline: ClassVar[Mapping[str, Any]] = {"method": "res-multistep"}


class ExponentialAdamsScheduler(PathlineScheduler):
    """Exponential Adams–Bashforth of any order with exact weights: fast convergence, for 15 steps and more."""

    default_pathline: ClassVar[Mapping[str, Any]] = {"method": "exp-adams"}
