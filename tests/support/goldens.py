"""Stored outputs of official implementations, and how each is reproduced with a registered method.

The data describe themselves: goldens/README.md gives the analytic models, goldens/index.json the settings.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from fnmatch import fnmatch
from functools import cache
from typing import Any

import numpy as np
import torch
from torch import Tensor

from pathline.interpolants import (
    CosinePath,
    DiscretePath,
    FiniteDataset,
    GaussianMixture,
    GaussianPath,
    LinearPath,
    VPPath,
)
from pathline.samplers import DynamicThreshold, Hook, Level, Nodes, RunState, Table, build_table, run

from .golden_options import FOLDER, churn_options, compensation_options, first_velocity, sit_options, v3_options


@dataclass(frozen=True)
class Parity:
    """A golden and the method that must reproduce it.

    single_precision_state: the official code casts the state to float32 in every step, either as a whole ("state")
    or only in its product with the carry ("product"); that rounding is repeated here, so that everything else can be
    compared to 1e-9.
    """

    golden: str
    method: str
    options: tuple[tuple[str, Any], ...]
    single_precision_state: str = ""


RULES: list[tuple[str, str, Any]] = [
    ("ddim_eta*", "ddim", lambda c: {"eta": c["extra"]["eta"]}),
    ("diffusers_ddim*", "ddim", lambda c: {"eta": c["extra"].get("eta", 0.0)}),
    ("dpmpp_?m-*", "dpm++", lambda c: {"order": c["order"]}),
    ("dpmpp_3m_nolof-*", "dpm++", lambda c: {"order": 3, "lower_order_final": False}),
    ("dpmpp_2m_taylor-*", "dpm++", lambda c: {"order": 2, "variant": "heun"}),
    ("ds_dpmpp?m-*", "dpm++", lambda c: {"order": int(c["id"][8])}),
    ("diffusers_dpmpp?m-*", "dpm++", lambda c: {"order": int(c["id"][15])}),
    ("diffusers_dpmpp2m_karras-*", "dpm++", lambda c: {"order": 2}),
    ("diffusers_dpmpp2m_heun_*", "dpm++", lambda c: {"order": 2, "variant": "heun"}),
    ("k_dpmpp_2m-*", "dpm++", lambda c: {"order": 2, "lower_order_final": False}),
    ("unipc_bh*", "unipc", lambda c: {"order": c["order"], "variant": c["extra"]["variant"]}),
    ("unipc_vary_coeff*", "unipc", lambda c: {"order": c["order"], "variant": "vary_coeff"}),
    ("ds_unipc_bh2_3_thr-*", "unipc", lambda c: {"order": 3, "variant": c["extra"]["variant"]}),
    ("ds_unipc_bh?_?-*", "unipc", lambda c: {"order": int(c["id"][13]), "variant": c["extra"]["variant"]}),
    (
        "diffusers_unipc*",
        "unipc",
        lambda c: {"order": 2, "disable_corrector": tuple(c["extra"].get("disable_corrector", ()))},
    ),
    ("dpm_[23]m-*", "dpm", lambda c: {"order": c["order"]}),
    ("diffusers_dpm2m-*", "dpm", lambda c: {"order": 2}),
    ("ds_dpmpp2m_noise-*", "dpm", lambda c: {"order": 2}),
    ("ds_unipc_noise_bh2_3-*", "unipc", lambda c: {"order": 3, "form": "noise"}),
    ("k_dpmpp_2m_sde_eta*", "dpm++-sde", lambda c: {"order": 2, "eta": c["extra"]["eta"]}),
    ("k_dpmpp_2m_sde_heun*", "dpm++-sde", lambda c: {"order": 2, "eta": c["extra"]["eta"], "variant": "heun"}),
    ("k_dpmpp_3m_sde_eta*", "dpm++-sde", lambda c: {"order": 3, "eta": c["extra"]["eta"]}),
    ("dpm_[23]s-*", "dpm-single", lambda c: {"orders": c["extra"]["orders"]}),
    ("dpm_[23]sfix-*", "dpm-single", lambda c: {"orders": [c["order"]] * (c["steps"] // c["order"])}),
    ("dpmpp_[23]s-*", "dpm++-single", lambda c: {"orders": c["extra"]["orders"]}),
    ("dpmpp_[23]sfix-*", "dpm++-single", lambda c: {"orders": [c["order"]] * (c["steps"] // c["order"])}),
    ("ds_deis_rhoab?-*", "deis", lambda c: {"order": c["order"], "variant": "rhoab"}),
    ("ds_deis_tab?-*", "deis", lambda c: {"order": c["order"], "variant": "released"}),
    ("diffusers_deis3-*", "deis", lambda c: {"order": 3, "variant": "logrho"}),
    ("k_lms3-*", "lms", lambda c: {"order": 3}),
    ("diffusers_lms-*", "lms", lambda c: {"order": 4}),
    ("ds_ipndm_v?-*", "ipndm_v", lambda c: {"order": c["order"], "variant": "released"}),
    ("ghvb*", "ghvb", lambda c: {"order": c["order"]} | first_velocity(c)),
    (
        "hb*",
        "heavy-ball",
        lambda c: {"order": c["extra"]["plms_order"], "beta": c["extra"]["beta"]} | first_velocity(c),
    ),
    (
        "nt1.5*",
        "heavy-ball",
        lambda c: {"order": c["extra"]["plms_order"], "beta": c["extra"]["beta"], "variant": "nesterov"},
    ),
    ("dpmpp2m_hb_*", "dpm++-heavy-ball", lambda c: {"beta": c["extra"]["beta"]}),
    ("unipc_hb_*", "unipc-heavy-ball", lambda c: {"beta": c["extra"]["beta"], "variant": "released"}),
    ("k_euler_a_eta1*", "ddim", lambda c: {"eta": 1.0}),
    ("diffusers_euler_a-*", "ddim", lambda c: {"eta": 1.0}),
    ("k_dpm_2-*", "dpm2", lambda c: {}),
    ("k_dpm_2_a_*", "dpm2", lambda c: {"eta": 1.0}),
    ("diffusers_kdpm2-*", "dpm2", lambda c: {}),
    ("ds_dpm2_r0.5-*", "dpm2", lambda c: {"r": 0.5}),
    ("k_dpmpp_2s_a_*", "dpm++-2s-ancestral", lambda c: {"eta": c["extra"]["eta"]}),
    ("k_dpmpp_sde_*", "dpm++-sde-single", lambda c: {"eta": c["extra"]["eta"]}),
    ("edm_heun_churn-*", "edm", lambda c: churn_options(c["extra"])),
    ("diffusers_sasolver-*", "sa", lambda c: {"order": 2, "corrector_order": 2, "tau": (0.0, 1.0, 1.0, 1.0, 1.0)}),
    ("plms-*", "plms", lambda c: {}),
    ("diffusers_pndm-*", "plms", lambda c: {}),
    ("ds_ipndm?-*", "ipndm", lambda c: {"order": int(c["id"][8])}),
    ("ds_euler-*", "euler", lambda c: {}),
    ("ds_euler_afs-*", "euler", lambda c: {"afs": True}),
    ("k_euler-*", "euler", lambda c: {}),
    ("diffusers_euler-*", "euler", lambda c: {}),
    ("diffusers_flow_euler*", "euler", lambda c: {}),
    ("sit_ode_euler-*", "euler", lambda c: {"variant": "time"}),
    ("edm_heun-*", "heun", lambda c: {}),
    ("ds_heun-*", "heun", lambda c: {}),
    ("k_heun-*", "heun", lambda c: {}),
    ("heun_dpmv3repo*", "heun", lambda c: {}),
    ("diffusers_heun-*", "heun", lambda c: {}),
    ("diffusers_flow_heun-*", "heun", lambda c: {}),
    ("sit_ode_heun2-*", "heun", lambda c: {"variant": "time", "lower_order_final": False}),
    ("sit_ode_midpoint-*", "runge-kutta", lambda c: {"tableau": "midpoint", "variant": "time"}),
    ("sit_ode_heun3-*", "runge-kutta", lambda c: {"tableau": "heun3", "variant": "time"}),
    (
        "sit_ode_rk4-*",
        "runge-kutta",
        lambda c: {"tableau": "three-eighths", "variant": "time", "lower_order_final": False},
    ),
    ("sit_sde_*", "sde", sit_options),
    ("edm_ablation_euler-*", "euler", lambda c: {"variant": "time"}),
    ("edm_ablation_heun-*", "heun", lambda c: {"variant": "time"}),
    ("pfgmpp_heun-*", "heun", lambda c: {}),
    ("dcsolver_*-sd-*", "dc-solver", compensation_options),
    ("dpmv3_*", "dpm-solver-v3", v3_options),
    ("diffusers_dpmpp2s-*", "dpm++-single", lambda c: {"orders": (2, 2, 2, 2, 1, 1)}),
]
SINGLE_PRECISION = {
    "diffusers_dpmpp?m*": "product",
    "diffusers_dpm2m-*": "product",
    "diffusers_euler-*": "state",
    "diffusers_euler_a-*": "state",
    "diffusers_flow_euler*": "state",
    "diffusers_flow_heun*": "state",
}


ADAPTIVE = ("dpm_adaptive*", "sit_ode_dopri5-*")
"""Goldens of methods that choose their own steps: test_samplers_adaptive.py."""


PREDICTED = ("dcsolver_cpr_predict",)
"""Goldens of numbers that are not samples: test_calibrate_regression.py."""


@cache
def index() -> dict[str, dict[str, Any]]:
    """Entries of index.json by golden id."""
    return {c["id"]: c for c in json.loads((FOLDER / "index.json").read_text())["cases"]}


def parities() -> Iterator[Parity]:
    """Every stored golden with its method, by the rules above."""
    for name, case in index().items():
        for pattern, method, options in RULES:
            if fnmatch(name, pattern):
                rounding = next((v for p, v in SINGLE_PRECISION.items() if fnmatch(name, p)), "")
                yield Parity(name, method, tuple(options(case).items()), rounding)
                break


@cache
def mixture() -> dict[str, Tensor]:
    """The shared inputs of all goldens."""
    return {k: torch.tensor(v) for k, v in np.load(FOLDER / "mixture.npz").items()}


def denoiser() -> GaussianMixture:
    """The analytic model of the diffusion goldens."""
    m = mixture()
    return GaussianMixture(m["w"], m["mu"], std=m["s"], classes=m["cls"])


def golden_nodes(case: dict[str, Any], g: Any) -> Nodes:
    """The official grid as nodes; discrete diffusers grids are rebuilt from their integer time steps."""
    if case["family"] == "sit":
        path, times = sit_path(case["id"]), g["grid_t"]
        if "last_step" in case["extra"]:
            times = np.append(times, times[-1] + case["extra"]["last_step_size"])
        point = path.at(torch.tensor(times))
        return Nodes(*(np.asarray(c) for c in point[:2]), times, path, *(np.asarray(c) for c in point[2:]))
    if fnmatch(case["id"], "edm_ablation_*-ve-*"):  # time = noise²
        seen = g["eval_sigma"]
        noise = np.append(seen[np.append(True, np.diff(seen) < -1e-9)], 0.0)
        with np.errstate(divide="ignore"):
            return Nodes(np.ones_like(noise), noise, noise**2, None, np.zeros_like(noise), 0.5 / noise)
    if fnmatch(case["id"], "dpm*_[23]s*"):  # every evaluation is a node, inner stages included
        signal, noise = (np.append(g[f"eval_{k}"], g[f"grid_{k}"][-1]) for k in ("alpha", "sigma"))
        return Nodes(signal, noise, np.linspace(1.0, 0.0, len(signal)))
    if "grid_alpha" not in g:
        path = DiscretePath.scaled_linear()
        end = 1.0 if case["extra"].get("timestep_spacing") == "trailing" else float(path.signal(1 - 1 / 1000))
        steps, first = np.unique(g["timesteps"], return_index=True)  # PNDM visits one level twice
        signal = np.append(g["eval_alpha"][first[::-1]], end)
        noise = np.append(g["eval_sigma"][first[::-1]], np.sqrt(1 - end**2))
        return Nodes(signal, noise, np.append(steps[::-1], -1.0))
    signal, noise = g["grid_alpha"], g["grid_sigma"]
    time = g["grid_t"] if "grid_t" in g else np.linspace(1.0, 0.0, len(signal))
    keep = np.append(True, np.diff(noise / np.maximum(signal, 1e-300)) != 0)  # two-stage diffusers grids repeat levels
    if "flow" in case["id"]:
        time = 1.0 - noise
    if case["family"] == "dc-solver" and "grid_t" not in g:  # it interpolates in the integer time steps
        time = np.append(g["timesteps"], 0.0)
    nodes = Nodes(signal[keep], noise[keep], time[keep])
    return StoredStages(nodes, g) if case["id"].startswith("diffusers_kdpm2") else nodes


class StoredStages(Nodes):
    """Stages on the very levels of the official run, which are rounded to float32."""

    def __init__(self, nodes: Nodes, g: Any) -> None:
        super().__init__(nodes.signal, nodes.noise, nodes.time)
        self.stored = g["eval_alpha"], g["eval_sigma"]

    def between_all(self, lams: np.ndarray) -> list[Level]:
        signal, noise = self.stored
        nearest = [int(np.argmin(np.abs(np.log(signal / noise) - lam))) for lam in lams]
        return [
            level._replace(signal=float(signal[k]), noise=float(noise[k]))
            for k, level in zip(nearest, super().between_all(lams), strict=True)
        ]


def sit_path(name: str) -> GaussianPath:
    """The SiT schedule a golden was made on."""
    return VPPath() if "-VP-" in name else CosinePath() if "-GVP-" in name else LinearPath()


class Rounding(Hook):
    """Rounds the state as official code with a float32 state does; `network_input` stays unrounded."""

    def __init__(self, kind: str) -> None:
        self.kind = kind
        self.network_input: Tensor | None = None

    def before_model(self, run: RunState, query: Tensor) -> Tensor | None:
        self.network_input = query
        if self.kind != "state":
            return None
        return self._round(run)

    def after_model(self, run: RunState, query: Tensor, output: Tensor) -> Tensor | None:
        row = run.table.rows[run.row]
        if self.kind == "product" and row.query is not None:
            carry = dict(row.updates[-1].terms).get(row.query) if row.updates else None
            if carry is not None:
                product = run.values[row.query].float() * torch.tensor(carry, dtype=torch.float64)
                run.values[row.query] = product.double() / carry
        return None

    def _round(self, run: RunState) -> Tensor:
        value = run.table.rows[run.row].query
        assert value is not None
        run.values[value] = run.values[value].float().double()
        return run.values[value]


def reproduce(parity: Parity) -> tuple[Tensor, Tensor, Table]:
    """(our sample, official sample, table) for one golden, in float64."""
    case = index()[parity.golden]
    g = np.load(FOLDER / case["file"])
    m = mixture()
    rounding = Rounding(parity.single_precision_state)
    nodes = golden_nodes(case, g)
    levels = evaluated_levels(case, g)
    prediction = _network_kind(case, parity, nodes)

    def network(x: Tensor, t: Tensor) -> Tensor:
        seen = rounding.network_input if rounding.network_input is not None else x
        signal, noise = (float(v) for v in next(levels))
        output = branch(seen, t, signal, noise, None)
        if case["guidance"] != "uncond":
            output = torch.lerp(output, branch(seen, t, signal, noise, m["labels"]), 7.5)
        return output

    def branch(x: Tensor, t: Tensor, signal: float, noise: float, labels: Tensor | None) -> Tensor:
        data = data_prediction(g, x, signal, noise, labels)
        if prediction == "data":
            return data
        eps = -noise * denoiser().score(x, signal, noise, labels=labels)
        if prediction == "noise":
            return eps
        where = int(np.argmin(np.abs(nodes.time - float(t[0]))))
        level = nodes.level(where)
        assert level.signal_rate is not None
        assert level.noise_rate is not None
        return level.signal_rate * data + level.noise_rate * eps

    options = {k: str(FOLDER / v) if k == "statistics" else v for k, v in parity.options}
    table = build_table(parity.method, nodes, **options)
    ours = run(
        table,
        network,
        start_state(g, nodes),
        prediction=prediction,
        noise=_noise_source(table, nodes, g),
        hooks=[rounding],
        thresholding=DynamicThreshold(0.995) if case["extra"].get("thresholding") else None,
    )
    assert next(levels, None) is None, "the official run made more calls"
    assert isinstance(ours, Tensor)
    return ours, torch.tensor(g["sample"]), table


def evaluated_levels(case: dict[str, Any], g: Any) -> Iterator[tuple[float, float]]:
    """(signal, noise) of every call; SiT's SDE code calls the network once for the drift and once for the score."""
    signal = g["eval_alpha"] if "eval_alpha" in g else np.ones_like(g["eval_sigma"])
    every = 2 if fnmatch(case["id"], "sit_sde_*") else 1
    return iter(zip(signal[::every], g["eval_sigma"][::every], strict=True))


def start_state(g: Any, nodes: Nodes) -> Tensor:
    """The official initial state."""
    if "latents" in g:
        return nodes.noise[0] * torch.tensor(g["latents"])
    return torch.tensor(g["x_init"]) if "x_init" in g else mixture()["z"]


def data_prediction(g: Any, x: Tensor, signal: float, noise: float, labels: Tensor | None) -> Tensor:
    """E[data | x] of the mixture, or of PFGM++'s point masses under its heavy-tailed kernel."""
    if "aug_dim" not in g or np.isinf(g["aug_dim"]):
        target = denoiser() if "aug_dim" not in g else FiniteDataset(mixture()["mu"], weights=mixture()["w"])
        return target.data_prediction(x.flatten(1), signal, noise, labels=labels).reshape(x.shape)
    m, size = mixture(), float(g["aug_dim"])
    squared = torch.cdist(x.flatten(1), m["mu"]) ** 2 + noise**2 * size
    log_weight = m["w"].log() - 0.5 * (m["mu"].shape[1] + size) * squared.log()
    return (log_weight.softmax(1) @ m["mu"]).reshape(x.shape)


def _noise_source(table: Table, nodes: Nodes, g: Any) -> Callable[[int, int, Tensor], Tensor]:
    """The stored draws in order; one per step where the official code draws also when it uses none."""
    bank = mixture()["noise_bank"]
    stored = g.get("noise_index", [])
    if len(stored) == sum(z >= 0 for row in table.rows for z in row.noises):
        draws = iter(stored)
        return lambda row, slot, like: bank[next(draws)]

    def of_step(row: int, slot: int, like: Tensor) -> Tensor:
        step = int(np.argmin(np.abs(nodes.time - table.rows[row].level.time)))
        return bank[stored[step]]

    return of_step


def _network_kind(case: dict[str, Any], parity: Parity, nodes: Nodes) -> str:
    if case["family"] == "sit":
        return str(case["prediction"])
    if "flow" in parity.golden:
        return "velocity"
    return "noise" if parity.single_precision_state else "data"
