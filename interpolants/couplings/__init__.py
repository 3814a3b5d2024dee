"""Couplings between base and data: pairs as indices, and bases made from the data."""

from .catalog import COUPLINGS, coupling_by_name
from .conditional import ConditionalCoupling
from .costs import class_distance, cosine_distance, power_distance, squared_distance
from .data_dependent import ClassBase, DependentBase, InpaintingBase, SuperResolutionBase
from .entropic import EntropicPlan, sinkhorn
from .gaussian_plans import gaussian_plan
from .newton import newton_sparse
from .pairing import Coupling, IndependentCoupling, Pairs, TransportCoupling

__all__ = [
    "COUPLINGS",
    "ClassBase",
    "ConditionalCoupling",
    "Coupling",
    "DependentBase",
    "EntropicPlan",
    "IndependentCoupling",
    "InpaintingBase",
    "Pairs",
    "SuperResolutionBase",
    "TransportCoupling",
    "class_distance",
    "cosine_distance",
    "coupling_by_name",
    "gaussian_plan",
    "newton_sparse",
    "power_distance",
    "sinkhorn",
    "squared_distance",
]
