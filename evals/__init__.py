"""How good it is: distances, feature spaces, test beds, sweeps, records and reports.

Names are loaded on first use, so that importing the package (and ``pathline --help``) costs nothing.
"""

from __future__ import annotations

from importlib import import_module
from typing import Any

_HOMES = {
    "moments": ("Moments",),
    "distances": (
        "Estimate",
        "frechet_bias",
        "frechet_distance",
        "frechet_from_moments",
        "frechet_infinity",
        "kernel_distance",
        "rbf_distance",
        "sliced_wasserstein",
        "wasserstein_1d",
    ),
    "neighbours": ("Manifold", "precision_recall"),
    "features": ("FeatureSpace", "make_features"),
    "images": ("load_images", "save_samples", "to_uint8"),
    "records": ("RecordFile", "make_record", "read_records"),
    "settings": ("SweepSettings", "load_settings"),
    "sources": ("Source", "open_source"),
    "testbeds": ("Bed", "list_beds", "make_bed"),
    "sweep": ("SweepResult", "run_sweep"),
    "report": ("Report", "write_report"),
    "catalogue": ("method_table",),
}
_HOME_OF = {name: module for module, names in _HOMES.items() for name in names}

__all__ = sorted(_HOME_OF)


def __getattr__(name: str) -> Any:
    if name in _HOME_OF:
        return getattr(import_module(f"{__name__}.{_HOME_OF[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return __all__
