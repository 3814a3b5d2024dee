"""Drop-in diffusers schedulers: every registered method, in pipelines of flow models and of models with betas.

Import this module before a pipeline saved with one of these classes is loaded::

    import pathline.samplers.schedulers
    pipe = DiffusionPipeline.from_pretrained(folder)
"""

from diffusers import SchedulerMixin  # pipelines look it up here when they load one of the classes below

from .base import PathlineScheduler, PathlineSchedulerOutput
from .named import (
    DDIMScheduler,
    DPMSolverPPScheduler,
    EulerScheduler,
    ExponentialAdamsScheduler,
    HeunScheduler,
    IPNDMScheduler,
    UniPCScheduler,
)

__all__ = [
    "DDIMScheduler",
    "DPMSolverPPScheduler",
    "EulerScheduler",
    "ExponentialAdamsScheduler",
    "HeunScheduler",
    "IPNDMScheduler",
    "PathlineScheduler",
    "PathlineSchedulerOutput",
    "SchedulerMixin",
    "UniPCScheduler",
]

for _name in __all__:
    if _name != "SchedulerMixin":  # saved pipelines name this module, whatever file a class is written in
        globals()[_name].__module__ = __name__
