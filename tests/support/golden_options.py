"""Options of the methods that reproduce stored outputs, from what the outputs say about themselves."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

FOLDER = Path(__file__).parents[1] / "goldens"


def churn_options(extra: dict[str, Any]) -> dict[str, Any]:
    return {"churn": extra["S_churn"], "s_min": extra["S_min"], "s_max": extra["S_max"], "s_noise": extra["S_noise"]}


def first_velocity(case: dict[str, Any]) -> dict[str, Any]:
    return {"first_velocity": "v"} if "-ddim_v-" in case["id"] else {}


def compensation_options(case: dict[str, Any]) -> dict[str, Any]:
    """DC-Solver over UniPC, with the stored ratios."""
    extra, ratios = case["extra"], np.load(FOLDER / case["file"])["ratios"]
    base = {"order": case["order"], "variant": extra["variant"]}
    base |= {"disable_corrector": tuple(extra["disable_corrector"])} if "disable_corrector" in extra else {}
    return {"ratios": tuple(ratios.tolist()), "dc_order": extra["dc_order"], "base_options": base}


def v3_options(case: dict[str, Any]) -> dict[str, Any]:
    extra = case["extra"]
    return {
        "statistics": extra["statistics"],
        "order": case["order"],
        "pseudo": extra["p_pseudo"],
        "corrector": ("noisy" if extra["half"] else "all") if extra["use_corrector"] else "none",
        "corrector_pseudo": extra["c_pseudo"],
        "lower_order_final": extra["lower_order_final"],
    }


def sit_options(case: dict[str, Any]) -> dict[str, Any]:
    extra = case["extra"]
    return {
        "solver": case["id"].split("-")[0].removeprefix("sit_sde_"),
        "epsilon": {"SBDM": "sbdm", "inccreasing-decreasing": "increasing_decreasing"}.get(
            extra["diffusion_form"], extra["diffusion_form"]
        ),
        "scale": extra["diffusion_norm"],
        "last_step": extra["last_step"].lower(),
    }
