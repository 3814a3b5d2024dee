"""How to integrate: every sampler is compiled to a table of coefficients, and one loop runs any table."""

from . import analysis, editing, error_bound_grid, likelihood, methods, smc
from .adaptive import AdaptiveError, BrownianPath, adaptive_info, brownian_noise, list_adaptive
from .border import Border
from .bridge_grids import BridgeNodes, bbdm_nodes, bridge_nodes, i2sb_nodes, resshift_nodes
from .frames import InvariantError, check, propagate, residuals
from .functions import function_sampler, register_into, sampler_functions
from .grids import GridInfo, grid_info, list_grids, make_nodes, register_grid, shift_time
from .guidance import AutoGuidance, ClassifierFree, ClassifierGuidance, CostGuidance, Guidance, guided_pipeline
from .keyed_noise import START_NOISE, keyed_normal, seed_of
from .loop import run
from .methods.singlestep import singlestep_orders
from .momentum import heavy_ball
from .nodes import Level, Nodes
from .program import Linear, Program, dot
from .registry import Case, MethodInfo, Reference, build_table, list_methods, method_info, register
from .run_state import Hook, NonFiniteError, Result, RunState, StepInfo
from .sampling import plan, sample
from .table import Row, Table, Update
from .thresholding import DynamicThreshold, StaticThreshold
from .transforms import AnalyticStart, analytic_first_step, apply_corrector, denoise_end
from .wrappers import (
    WrappedModel,
    discrete_labels,
    edm_preconditioned,
    from_diffusers,
    reversed_flow,
    scaled_labels,
)

__all__ = [
    "START_NOISE",
    "AdaptiveError",
    "AnalyticStart",
    "AutoGuidance",
    "Border",
    "BridgeNodes",
    "BrownianPath",
    "Case",
    "ClassifierFree",
    "ClassifierGuidance",
    "CostGuidance",
    "DynamicThreshold",
    "GridInfo",
    "Guidance",
    "Hook",
    "InvariantError",
    "Level",
    "Linear",
    "MethodInfo",
    "Nodes",
    "NonFiniteError",
    "Program",
    "Reference",
    "Result",
    "Row",
    "RunState",
    "StaticThreshold",
    "StepInfo",
    "Table",
    "Update",
    "WrappedModel",
    "adaptive_info",
    "analysis",
    "analytic_first_step",
    "apply_corrector",
    "bbdm_nodes",
    "bridge_nodes",
    "brownian_noise",
    "build_table",
    "check",
    "denoise_end",
    "discrete_labels",
    "dot",
    "editing",
    "edm_preconditioned",
    "error_bound_grid",
    "from_diffusers",
    "function_sampler",
    "grid_info",
    "guided_pipeline",
    "heavy_ball",
    "i2sb_nodes",
    "keyed_normal",
    "likelihood",
    "list_adaptive",
    "list_grids",
    "list_methods",
    "make_nodes",
    "method_info",
    "methods",
    "plan",
    "propagate",
    "register",
    "register_grid",
    "register_into",
    "residuals",
    "resshift_nodes",
    "reversed_flow",
    "run",
    "sample",
    "sampler_functions",
    "scaled_labels",
    "seed_of",
    "shift_time",
    "singlestep_orders",
    "smc",
]
