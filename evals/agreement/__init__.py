"""Our tables against the schedulers of diffusers: what agrees, what has no counterpart, what is wrong there."""

from .comparison import Comparison, compare, nodes_of, run_ours
from .defects import DEFECTS, MEASURED_WITH, Defect
from .matrix import MISSING, OUTSIDE, settings
from .page import ClassResult, agreement, agreement_page, print_agreement, step_counts
from .stock import NAMES, Setting, StockRun, run_stock

__all__ = [
    "DEFECTS",
    "MEASURED_WITH",
    "MISSING",
    "NAMES",
    "OUTSIDE",
    "ClassResult",
    "Comparison",
    "Defect",
    "Setting",
    "StockRun",
    "agreement",
    "agreement_page",
    "compare",
    "nodes_of",
    "print_agreement",
    "run_ours",
    "run_stock",
    "settings",
    "step_counts",
]
