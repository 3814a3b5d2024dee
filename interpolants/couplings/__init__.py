"""Couplings between base and data: pairs as indices, and bases made from the data."""

from .conditional import ConditionalCoupling
from .costs import class_distance, cosine_distance, power_distance, squared_distance
from .data_dependent import ClassBase, DependentBase, InpaintingBase, SuperResolutionBase
from .entropic import EntropicPlan, sinkhorn
from .newton_sparse import newton_sparse
from .pairing import Coupling, IndependentCoupling, Pairs, TransportCoupling

__all__ = [
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
    "newton_sparse",
    "power_distance",
    "sinkhorn",
    "squared_distance",
]
