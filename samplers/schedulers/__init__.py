"""Drop-in diffusers schedulers: every registered method, in pipelines of flow models and of models with betas.

Import this module before a pipeline saved with one of these classes is loaded::

    import pathline.samplers.schedulers
    pipe = DiffusionPipeline.from_pretrained(folder)
"""

from diffusers import SchedulerMixin  # pipelines look it up here when they load one of the classes below

from .base import PathlineScheduler
from .hub import load_portable, save_portable, write_hub_shim
from .named import (
    DCSolverScheduler,
    DDIMScheduler,
    DDPMScheduler,
    DEISScheduler,
    DPMSolverPPScheduler,
    DPMSolverPPSDEScheduler,
    DPMSolverPPSinglestepScheduler,
    ERSDEScheduler,
    EulerAncestralScheduler,
    EulerScheduler,
    ExponentialAdamsScheduler,
    GHVBScheduler,
    HeunScheduler,
    IPNDMScheduler,
    KDPM2AncestralScheduler,
    KDPM2Scheduler,
    LMSScheduler,
    PNDMScheduler,
    RESMultistepScheduler,
    RESScheduler,
    SASolverScheduler,
    SEEDSScheduler,
    UniPCScheduler,
)
from .output import PathlineSchedulerOutput
from .particle_scheduler import ParticleScheduler

__all__ = [
    "DCSolverScheduler",
    "DDIMScheduler",
    "DDPMScheduler",
    "DEISScheduler",
    "DPMSolverPPSDEScheduler",
    "DPMSolverPPScheduler",
    "DPMSolverPPSinglestepScheduler",
    "ERSDEScheduler",
    "EulerAncestralScheduler",
    "EulerScheduler",
    "ExponentialAdamsScheduler",
    "GHVBScheduler",
    "HeunScheduler",
    "IPNDMScheduler",
    "KDPM2AncestralScheduler",
    "KDPM2Scheduler",
    "LMSScheduler",
    "PNDMScheduler",
    "ParticleScheduler",
    "PathlineScheduler",
    "PathlineSchedulerOutput",
    "RESMultistepScheduler",
    "RESScheduler",
    "SASolverScheduler",
    "SEEDSScheduler",
    "SchedulerMixin",
    "UniPCScheduler",
    "load_portable",
    "save_portable",
    "write_hub_shim",
]

for _name in __all__:
    if _name != "SchedulerMixin":  # saved pipelines name this module, whatever file a class is written in
        globals()[_name].__module__ = __name__
