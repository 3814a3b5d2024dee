"""What the process is: paths, conversions, dynamics, closed-form models.

Time runs from 0 (base, noise) to 1 (data); a velocity is d state/d time.
"""

from .catalog import list_paths, path_by_name, path_from_config
from .components import ComponentTarget
from .conversions import coefficients, convert
from .couplings import (
    COUPLINGS,
    ClassBase,
    ConditionalCoupling,
    Coupling,
    DependentBase,
    EntropicPlan,
    IndependentCoupling,
    InpaintingBase,
    Pairs,
    SuperResolutionBase,
    TransportCoupling,
    class_distance,
    cosine_distance,
    coupling_by_name,
    gaussian_plan,
    newton_sparse,
    power_distance,
    sinkhorn,
    squared_distance,
)
from .diffusion_bridge import DiffusionBridge
from .discrete_path import DiscretePath
from .dynamics import (
    EPSILONS,
    SDE,
    constant_epsilon,
    decreasing_epsilon,
    epsilon_by_name,
    increasing_decreasing_epsilon,
    linear_epsilon,
    noising_sde,
    probability_flow,
    sbdm_epsilon,
    sde,
    sigma_epsilon,
)
from .ends import EncoderDecoderEnds, EndPair, FourierEnds, LinearEnds, MirrorEnds, TrigonometricEnds
from .errors import check_name, unknown_name
from .exploding_paths import EDMPath, VEPath
from .finite_dataset import FiniteDataset
from .flow_paths import CosinePath, LinearPath, PolynomialPath
from .gaussian import Gaussian, GaussianCoupling
from .interpolant import (
    INTERPOLANTS,
    BrownianBridge,
    Channels,
    InterpolantPoint,
    StochasticInterpolant,
    interpolant_by_name,
)
from .kinetic_path import KineticOptimalPath, metric_angles
from .latent import (
    BrownianLatent,
    LatentCoefficient,
    QuadraticLatent,
    SigmoidLatent,
    SinSquaredLatent,
    ZeroLatent,
    latent_by_name,
    list_latents,
)
from .mixture import GaussianMixture
from .path import PREDICTIONS, GaussianPath, PathPoint
from .path_transfer import TransferredModel, transfer, transfer_model
from .preserving_paths import CosineVPPath, LinearVPPath, SigmoidVPPath, SubVPPath, VPPath
from .targets import Target, TargetModel

__all__ = [
    "COUPLINGS",
    "EPSILONS",
    "INTERPOLANTS",
    "PREDICTIONS",
    "SDE",
    "BrownianBridge",
    "BrownianLatent",
    "Channels",
    "ClassBase",
    "ComponentTarget",
    "ConditionalCoupling",
    "CosinePath",
    "CosineVPPath",
    "Coupling",
    "DependentBase",
    "DiffusionBridge",
    "DiscretePath",
    "EDMPath",
    "EncoderDecoderEnds",
    "EndPair",
    "EntropicPlan",
    "FiniteDataset",
    "FourierEnds",
    "Gaussian",
    "GaussianCoupling",
    "GaussianMixture",
    "GaussianPath",
    "IndependentCoupling",
    "InpaintingBase",
    "InterpolantPoint",
    "KineticOptimalPath",
    "LatentCoefficient",
    "LinearEnds",
    "LinearPath",
    "LinearVPPath",
    "MirrorEnds",
    "Pairs",
    "PathPoint",
    "PolynomialPath",
    "QuadraticLatent",
    "SigmoidLatent",
    "SigmoidVPPath",
    "SinSquaredLatent",
    "StochasticInterpolant",
    "SubVPPath",
    "SuperResolutionBase",
    "Target",
    "TargetModel",
    "TransferredModel",
    "TransportCoupling",
    "TrigonometricEnds",
    "VEPath",
    "VPPath",
    "ZeroLatent",
    "check_name",
    "class_distance",
    "coefficients",
    "constant_epsilon",
    "convert",
    "cosine_distance",
    "coupling_by_name",
    "decreasing_epsilon",
    "epsilon_by_name",
    "gaussian_plan",
    "increasing_decreasing_epsilon",
    "interpolant_by_name",
    "latent_by_name",
    "linear_epsilon",
    "list_latents",
    "list_paths",
    "metric_angles",
    "newton_sparse",
    "noising_sde",
    "path_by_name",
    "path_from_config",
    "power_distance",
    "probability_flow",
    "sbdm_epsilon",
    "sde",
    "sigma_epsilon",
    "sinkhorn",
    "squared_distance",
    "transfer",
    "transfer_model",
    "unknown_name",
]
