"""Tables analysed without a network: orders, stability, and the law they sample for Gaussian data."""

from .exactness import Exactness, exactness, history_weight
from .gaussian_transfer import Transfer, transfer
from .measured_order import measured_order
from .optimal_grid import gaussian
from .report import Analysis, analyse
from .spectrum import Spectrum, SpectrumLike, as_spectrum
from .stability_map import Stability, case_of, stability

__all__ = [
    "Analysis",
    "Exactness",
    "Spectrum",
    "SpectrumLike",
    "Stability",
    "Transfer",
    "analyse",
    "as_spectrum",
    "case_of",
    "exactness",
    "gaussian",
    "history_weight",
    "measured_order",
    "stability",
    "transfer",
]
