"""The table of stored official outputs as markdown: `python tests/golden_table.py --out docs/goldens.md`."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from pathline.interpolants import GaussianPath, LinearPath, VPPath
from pathline.samplers import Result, Table, method_info, sample
from pathline.samplers.compensation import CascadeRegression
from pathline.samplers.files import replacing
from support.bridges import bridge_goldens, reproduce_bridge
from support.goldens import FOLDER, PREDICTED, denoiser, index, mixture, parities, reproduce

TOLERANCE = 1e-9
COMMAND = "python tests/golden_table.py --out docs/goldens.md"
ADAPTIVE: dict[str, tuple[str, GaussianPath, dict[str, Any]]] = {
    "dpm_adaptive2_noise-vp-uncond": ("dpm-adaptive", VPPath(), {"order": 2, "form": "noise"}),
    "dpm_adaptive3_x0-vp-uncond": ("dpm-adaptive", VPPath(), {"order": 3, "form": "data"}),
    "sit_ode_dopri5-Linear-velocity-n2-uncond": ("dopri5", LinearPath(), {"norm": "mean", "overshoot": True}),
}
"""Official runs with adaptive steps, and the method, path and options that repeat them."""
REPEATED = {
    "state": "the official float32 cast of the state is repeated",
    "product": "the official float32 cast of one product is repeated",
}

HEAD = f"""# Official outputs and how closely they are reproduced

Written by `make docs` (`{COMMAND}`).

Every file in `tests/goldens/` is the output of a published implementation on a closed-form model;
`tests/goldens/README.md` describes them, and tests hold the same numbers. The error is the largest |ours − official| /
max(1, |official|) of the sample, in float64; n is the number of network calls.

"""


@dataclass(frozen=True)
class Line:
    """One golden: how it is reproduced and how well; `error` is None where it is not."""

    golden: str
    method: str
    options: str
    calls: int
    error: float | None
    tolerance: float
    remark: str


def lines() -> Iterator[Line]:
    """Every stored golden, reproduced now."""
    done = set[str]()
    for parity in parities():
        done.add(parity.golden)
        remark = REPEATED.get(parity.single_precision_state, "")
        if parity.golden.startswith("diffusers_kdpm2"):
            remark = "on the official stage levels, which are rounded to float32"
        yield measured(parity.golden, reproduce(parity), dict(parity.options), remark)
    for name in ADAPTIVE:
        done.add(name)
        yield adaptive(name)
    for name in PREDICTED:
        done.add(name)
        yield predicted(name)
    for name in bridge_goldens():
        done.add(name)
        yield measured(name, reproduce_bridge(name), None)
    for name, case in index().items():
        if name not in done:
            yield Line(name, str(case["method"]), "", int(case["nfe"]), None, TOLERANCE, "no method reproduces it yet")


def adaptive(golden: str) -> Line:
    """The line of a run that chooses its own steps."""
    case, stored, (method, path, options) = index()[golden], np.load(FOLDER / f"{golden}.npz"), ADAPTIVE[golden]
    form = options.get("form", "velocity")
    official = {"grid": (0.0, 0.999), "recompute": True, **case["extra"]} if method == "dpm-adaptive" else {}
    settings = {"path": path, "method": method, "prediction": form, **official, **options}
    network = linear_velocity if form == "velocity" else denoiser().as_model(path, form)
    ours = sample(network, mixture()["z"], full=True, **settings)
    assert isinstance(ours, Result)
    error = relative_error(ours.sample, torch.tensor(stored["sample"]))
    remark = "official step sizes pass through float32" if official else ""
    return Line(golden, method, written(options), ours.evaluations, error, float(case["tol"]), remark)


def predicted(golden: str) -> Line:
    """The line of compensation ratios that the released regression predicts."""
    stored = np.load(FOLDER / f"{golden}.npz")
    coefficients = tuple(tuple(tuple(row) for row in block) for block in stored["coeffs"].tolist())
    regression = CascadeRegression(coefficients, nfe=(1, 50), guidance=(0.0, 20.0))
    error = 0.0
    for (guidance, nfe), ratios in zip(stored["queries"], stored["sample"], strict=True):
        ours = torch.tensor(regression.predict(int(nfe), float(guidance)))
        error = max(error, relative_error(ours, torch.tensor(ratios[: int(nfe)])))
    return Line(golden, "dc-solver", "", 0, error, TOLERANCE, "ratios predicted by cascade polynomial regression")


def linear_velocity(x: Tensor, t: Tensor) -> Tensor:
    """The velocity of the goldens' model on the linear path, also beyond t = 1, where torchdiffeq steps to."""
    signal, noise = float(t[0]), 1.0 - float(t[0])
    return denoiser().data_prediction(x, signal, noise) + noise * denoiser().score(x, signal, noise)


def relative_error(ours: Tensor, official: Tensor) -> float:
    """Largest difference relative to max(1, |official|)."""
    return float(((ours - official).abs() / official.abs().clamp_min(1)).max())


def measured(
    golden: str, result: tuple[Tensor, Tensor, Table], options: dict[str, Any] | None, remark: str = ""
) -> Line:
    """The line of one reproduction; options None are taken from the table, where they differ from the defaults."""
    ours, official, table = result
    if options is None:
        defaults = method_info(table.method).options
        options = {key: value for key, value in table.options.items() if defaults.get(key) != value}
    error = relative_error(ours, official)
    return Line(golden, table.method, written(options), table.evaluations, error, TOLERANCE, remark)


def written(options: dict[str, Any]) -> str:
    """Options as in a call."""
    return ", ".join(f"{key}={value!r}" for key, value in options.items())


def page(entries: list[Line]) -> str:
    """The page, methods in order."""
    headings = ("method", "options", "golden", "source", "n", "error", "tolerance", "remark")
    rows = [f"| {' | '.join(headings)} |", "|---" * len(headings) + "|"]
    for line in sorted(entries, key=lambda entry: (entry.error is None, entry.method, entry.golden)):
        error = "–" if line.error is None else f"{line.error:.0e}"
        tolerance = "–" if line.error is None else f"{line.tolerance:.0e}"
        method = f"`{line.method}`" if line.error is not None else f"({line.method})"
        options = f"`{line.options}`" if line.options else ""
        cells = (method, options, line.golden, index()[line.golden]["source"], str(line.calls), error, tolerance)
        rows.append(f"| {' | '.join(cells)} | {line.remark} |")
    reached = [line.error for line in entries if line.error is not None]
    within = sum(line.error is not None and line.error < line.tolerance for line in entries)
    summary = (
        f"{len(entries)} outputs are stored, {len(reached)} are reproduced, {within} of them within the tolerance; "
        f"{sum(e < TOLERANCE for e in reached)} to {TOLERANCE:.0e}.\n\n"
    )
    return HEAD + summary + "\n".join(rows) + "\n"


def main() -> None:
    """Print the page, or write it."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, help="file to write instead of standard output")
    arguments = parser.parse_args()
    text = page(list(lines()))
    if arguments.out is None:
        sys.stdout.write(text)
        return
    with replacing(arguments.out, "wb") as stream:
        stream.write(text.encode())
    print(f"{arguments.out} written")


if __name__ == "__main__":
    main()
