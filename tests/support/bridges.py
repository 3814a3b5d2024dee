"""The closed-form bridge of the goldens: x | data, source ~ N(anchor·source + signal·data, noise²)."""

from __future__ import annotations

from functools import cache
from typing import Any

import numpy as np
import torch
from torch import Tensor

from pathline.interpolants import DiffusionBridge, EDMPath, VPPath
from pathline.samplers import BridgeNodes, Nodes, Table, build_table, run

from .goldens import FOLDER, index, mixture

NEGLIGIBLE = 1e-12  # variances below it carry no observation (goldens/README.md)


@cache
def bridge_goldens() -> list[str]:
    """Ids of the stored outputs of bridge samplers."""
    return [name for name, case in index().items() if case["family"] == "bridge"]


def data_prediction(x: Tensor, source: Tensor, anchor: float, signal: float, noise: float) -> Tensor:
    """E[data | x, source] of the bridge mixture, shapes (B, ...)."""
    w, m, tau, a, c, s = (mixture()[f"bridge_{k}"] for k in ("w", "m", "tau", "A", "c", "s"))
    flat, y = x.flatten(1), source.flatten(1)
    means = torch.einsum("kij,bj->bki", a, y) + c
    log_weight = w.log() - y.shape[1] * tau.log() - ((y[:, None] - m) ** 2).sum(-1) / (2 * tau**2)
    variance = signal**2 * s**2 + noise**2
    pull = torch.zeros_like(means)
    if float(variance.min()) >= NEGLIGIBLE:
        off = flat[:, None] - anchor * y[:, None] - signal * means
        log_weight = log_weight - 0.5 * y.shape[1] * variance.log() - (off**2).sum(-1) / (2 * variance)
        pull = (signal * s**2 / variance)[None, :, None] * off
    return (log_weight.softmax(-1)[..., None] * (means + pull)).sum(1).reshape(x.shape)


def bridge_method(name: str) -> tuple[str, dict[str, Any]]:
    """Method and options that reproduce a golden."""
    case = index()[name]
    if name.startswith("ddbm"):
        return "ddbm", {"churn": case["extra"]["churn_step_ratio"]}
    if "order" in name:
        return "dbim", {"order": case["order"]}
    released = "i2sb" in name and case["extra"]["eta"] > 0  # their I²SB tables are off by one β in one of two sums
    return "dbim", {"eta": case["extra"]["eta"]} | ({"variant": "released"} if released else {})


def golden_bridge(name: str, g: Any) -> Nodes:
    """The official grid; the hybrid sampler steps in time and needs the bridge itself."""
    if not name.startswith("ddbm"):
        return Nodes(g["grid_b"], g["grid_c"], g["grid_t"], anchor=g["grid_a"])
    span = index()[name]["extra"]["t_max"]
    reference = VPPath(0.1, 2.1) if "-vp-" in name else EDMPath(sigma_max=span, rho=1.0)
    return BridgeNodes(DiffusionBridge(reference), 1 - g["grid_t"] / span, g["grid_t"])


def reproduce_bridge(name: str) -> tuple[Tensor, Tensor, Table]:
    """(our sample, official sample, table) of one bridge golden."""
    g, m = np.load(FOLDER / index()[name]["file"]), mixture()
    method, options = bridge_method(name)
    table = build_table(method, golden_bridge(name, g), **options)
    levels = iter(zip(g["eval_a"], g["eval_b"], g["eval_c"], strict=True))
    draws = iter(g["noise_index"])
    source = m["bridge_y"]
    ours = run(
        table,
        lambda x, t: data_prediction(x, source, *(float(v) for v in next(levels))),
        source,
        anchors={"source": source},
        noise=lambda row, slot, like: m["noise_bank"][next(draws)],
    )
    assert isinstance(ours, Tensor)
    return ours, torch.tensor(g["sample"]), table
