"""How to integrate: every sampler is compiled to a table of coefficients, and one loop runs any table."""

from . import methods
from .border import Border
from .frames import InvariantError, check, propagate, residuals
from .grids import list_grids, make_nodes, shift_time
from .guidance import ClassifierFree, Guidance
from .keyed_noise import START_NOISE, keyed_normal, seed_of
from .loop import run
from .nodes import Level, Nodes
from .program import Linear, Program, dot
from .registry import Case, MethodInfo, Reference, build_table, list_methods, method_info, register
from .run_state import Hook, NonFiniteError, Result, RunState, StepInfo
from .sampling import plan, sample
from .table import Row, Table, Update
from .transforms import analytic_first_step, apply_corrector, denoise_end
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
    "Border",
    "Case",
    "ClassifierFree",
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
    "StepInfo",
    "Table",
    "Update",
    "WrappedModel",
    "analytic_first_step",
    "apply_corrector",
    "build_table",
    "check",
    "denoise_end",
    "discrete_labels",
    "dot",
    "edm_preconditioned",
    "from_diffusers",
    "keyed_normal",
    "list_grids",
    "list_methods",
    "make_nodes",
    "method_info",
    "methods",
    "plan",
    "propagate",
    "register",
    "residuals",
    "reversed_flow",
    "run",
    "sample",
    "scaled_labels",
    "seed_of",
    "shift_time",
]
