"""Guidance: how one guided prediction is made from several network branches, from gradients, or from both."""

from .gradients import (
    ClassifierGuidance,
    CostGuidance,
    InnerOptimisation,
    attractor,
    between_classes,
    repeller,
)
from .modifiers import Interval, PrecisionWeighted, Projected, Rescaled
from .pairs import AutoGuidance, ClassifierFree, MultiCondition, Pair, Scheduled
from .pipelines import guided_pipeline
from .plus_plus import PlusPlus
from .protocol import (
    Guidance,
    Network,
    Place,
    RowStep,
    StepMap,
    check_guidance,
    guidance_hooks,
    guided_output,
    row_step,
)

__all__ = [
    "AutoGuidance",
    "ClassifierFree",
    "ClassifierGuidance",
    "CostGuidance",
    "Guidance",
    "InnerOptimisation",
    "Interval",
    "MultiCondition",
    "Network",
    "Pair",
    "Place",
    "PlusPlus",
    "PrecisionWeighted",
    "Projected",
    "Rescaled",
    "RowStep",
    "Scheduled",
    "StepMap",
    "attractor",
    "between_classes",
    "check_guidance",
    "guidance_hooks",
    "guided_output",
    "guided_pipeline",
    "repeller",
    "row_step",
]
