"""What couplings and losses cost: `python -m pathline.evals.coupling_bench`.

Three tables: entropic solvers at equal accuracy, a coupling per training step, and all that a step does beside the
network. POT and torchcfm are timed as well where they are installed; neither is needed. All times are those of the
processor, which other work on the machine does not lengthen much; run it with OMP_NUM_THREADS=1.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import time
import warnings
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pathline.interpolants import LinearPath, coupling_by_name, newton_sparse, sinkhorn
from pathline.training import GaussianObjective, KeyedDraws, build_network, default_config, load_data

from .files import write_text

Array = NDArray[np.float64]
Row = dict[str, Any]

TOLERANCE = 1e-9
MOST_SWEEPS = 10_000
BLOCKS = (128, 512, 1280)
_SHAPE = (3, 32, 32)


def installed(library: str) -> bool:
    """Whether an optional library can be imported."""
    return importlib.util.find_spec(library) is not None


def seconds(work: Callable[[], Any], repeats: int = 3) -> float:
    """Least processor time of a call, after one that is not counted."""
    work()
    found = []
    for _ in range(repeats):
        start = time.process_time()
        work()
        found.append(time.process_time() - start)
    return min(found)


def solver_problems(size: int) -> dict[str, tuple[Array, float]]:
    """Costs with maximum 1 and regularisations: random entries, and squared distances between digits."""
    generator = np.random.default_rng(0)
    images = load_data("digits", split="all").tensor().flatten(1).double()
    order = torch.randperm(len(images), generator=torch.Generator().manual_seed(0))
    first, second = images[order[:size]], images[order[size : 2 * size]]
    problems = {"random": generator.random((size, size)), "digits": torch.cdist(first, second).square().numpy()}
    found = {}
    for name, cost in problems.items():
        for eta in (100.0, 1200.0):
            found[f"{name}, 1/{eta:.0f}"] = (cost / cost.max(), 1.0 / eta)
    return found


def time_solvers(size: int = 128) -> list[Row]:
    """Time, iterations and final marginal error of the entropic solvers, all asked for the same error."""
    solvers: dict[str, Callable[[Array, float], tuple[str, Array]]] = {
        "newton_sparse": _newton,
        "sinkhorn": _swept,
    }
    if installed("ot"):
        solvers["POT sinkhorn_log"] = partial(_pot, "sinkhorn_log")
        solvers["POT sinkhorn"] = partial(_pot, "sinkhorn")
    rows = []
    for solve in solvers.values():  # imports
        solve(np.eye(4), 1.0)
    for problem, (cost, regularisation) in solver_problems(size).items():
        for name, solve in solvers.items():
            start = time.process_time()
            iterations, plan = solve(cost, regularisation)
            spent = time.process_time() - start
            error = float(np.abs(plan.sum(0) - 1 / size).sum() + np.abs(plan.sum(1) - 1 / size).sum())
            rows.append({"problem": problem, "solver": name, "iterations": iterations, "s": spent, "error": error})
            print(rows[-1], flush=True)
    return rows


def _newton(cost: Array, regularisation: float) -> tuple[str, Array]:
    found = newton_sparse(cost, regularisation, tolerance=TOLERANCE)
    return f"{found.sweeps} + {found.newton_steps}", found.matrix


def _swept(cost: Array, regularisation: float) -> tuple[str, Array]:
    found = sinkhorn(cost, regularisation, tolerance=TOLERANCE, max_sweeps=MOST_SWEEPS)
    return str(found.sweeps), found.matrix


def _pot(method: str, cost: Array, regularisation: float) -> tuple[str, Array]:
    import ot

    size = len(cost)
    weights = np.full(size, 1 / size)
    # POT stops at an error in the Euclidean norm, which is less than the sum of the absolute values.
    settings: dict[str, Any] = {"method": method, "numItermax": MOST_SWEEPS, "stopThr": TOLERANCE, "log": True}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        plan, log = ot.sinkhorn(weights, weights, cost, regularisation, **settings)
    return str(log["niter"] + 1), np.asarray(plan)


def time_couplings(batch: int = 128) -> list[Row]:
    """Seconds of a plan for CIFAR-sized images, and its share of each step that it serves."""
    makers = {"ot": {}, "c2ot": {}, "sinkhorn": {"regularisation": 100.0}, "newton": {"regularisation": 100.0}}
    rows = []
    for block in BLOCKS:
        generator = torch.Generator().manual_seed(0)
        base, data, labels = _images(block, generator)
        works = {name: _coupled(name, options, base, data, labels) for name, options in makers.items()}
        if installed("torchcfm"):
            from torchcfm.optimal_transport import OTPlanSampler

            sampler = OTPlanSampler(method="exact")
            works["torchcfm exact"] = partial(sampler.sample_plan, base, data)
        for name, work in works.items():
            spent = seconds(work, 1)
            rows.append({"coupling": name, "block": block, "s": spent, "s per step": spent * batch / block})
            print(rows[-1], flush=True)
    return rows


def _coupled(name: str, options: Row, base: Tensor, data: Tensor, labels: Tensor) -> Callable[[], Any]:
    coupling = coupling_by_name(name, **options)
    return lambda: coupling(base, data, labels, torch.Generator().manual_seed(0))


def _images(count: int, generator: torch.Generator) -> tuple[Tensor, Tensor, Tensor]:
    """Noises, smooth images in [−1, 1] and labels."""
    coarse = torch.randn(count, 3, 4, 4, generator=generator)
    data = torch.nn.functional.interpolate(coarse, size=_SHAPE[1:], mode="bilinear").tanh()
    return torch.randn(count, *_SHAPE, generator=generator), data, torch.arange(count) % 10


def time_step(batch: int = 128, repeats: int = 2) -> list[Row]:
    """Seconds of a bare network step, and of all that stands beside it, with their ratio.

    The parts are timed by themselves, with a given output in place of the network: as a difference of two long times
    they would drown.
    """
    base, data, labels = _images(batch, torch.Generator().manual_seed(0))
    network = build_network(default_config("unet", _SHAPE))
    optimizer = torch.optim.AdamW(network.parameters(), lr=1e-4, fused=True)
    label = torch.linspace(0, 999, batch)

    def bare() -> None:
        optimizer.zero_grad(set_to_none=True)
        network(data, label).sample.square().mean().backward()
        optimizer.step()

    whole = seconds(bare, repeats)
    rows: list[Row] = [{"part": "network: forward, backward, AdamW", "s": whole, "share": 1.0}]
    for name, work in _parts(base, data, labels).items():
        spent = seconds(work, 5)
        rows.append({"part": name, "s": spent, "share": spent / whole})
    for row in rows:
        print(row, flush=True)
    return rows


def _parts(base: Tensor, data: Tensor, labels: Tensor) -> dict[str, Callable[[], Any]]:
    """What a step does beside the network: here with pathline, and with torchcfm where it is there."""
    output = torch.zeros_like(data, requires_grad=True)
    objective = GaussianObjective(LinearPath(), "velocity")
    draws, places = KeyedDraws(0, len(data)), torch.arange(len(data))

    def loss(noise: Tensor, image: Tensor) -> None:
        times = objective.times(torch.rand(len(image), dtype=torch.float64))
        objective(lambda x, t: output, image, noise, times).mean().backward()

    def coupled(name: str) -> Callable[[], None]:
        coupling = coupling_by_name(name)

        def work() -> None:
            noise = torch.randn_like(data)
            pairs = coupling(noise, data, labels)
            loss(noise[pairs.base], data[pairs.data])

        return work

    parts: dict[str, Callable[[], Any]] = {
        "path, target and loss": lambda: loss(base, data),
        "noise, path, target and loss": lambda: loss(torch.randn_like(data), data),
        "the same with noise keyed by seed, step and place": lambda: loss(draws.noise(3, places, data), data),
        "noise, ot of the batch, path and loss": coupled("ot"),
        "noise, c2ot of the batch, path and loss": coupled("c2ot"),
    }
    if installed("torchcfm"):
        import torchcfm

        for title, matcher in (
            ("torchcfm: noise, path, target and loss", torchcfm.ConditionalFlowMatcher(sigma=0.0)),
            (
                "torchcfm: noise, exact OT, path and loss",
                torchcfm.ExactOptimalTransportConditionalFlowMatcher(sigma=0.0),
            ),
        ):
            parts[title] = _torchcfm_step(matcher, data, output)
    return parts


def _torchcfm_step(matcher: Any, data: Tensor, output: Tensor) -> Callable[[], None]:
    def work() -> None:
        _, _, target = matcher.sample_location_and_conditional_flow(torch.randn_like(data), data)
        (output - target).square().mean().backward()

    return work


def markdown(rows: list[Row]) -> str:
    """Rows of one set of keys as a table."""
    heads = list(rows[0])
    lines = [f"| {' | '.join(heads)} |", "|---" * len(heads) + "|"]
    for row in rows:
        cells = [f"{value:.3g}" if isinstance(value, float) else str(value) for value in row.values()]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def main(arguments: Sequence[str] | None = None) -> None:
    """Time couplings and losses and write the tables."""
    tables: dict[str, Callable[[], list[Row]]] = {
        "solvers": time_solvers,
        "couplings": time_couplings,
        "step": time_step,
    }
    parser = argparse.ArgumentParser(prog="python -m pathline.evals.coupling_bench", description=main.__doc__)
    parser.add_argument("--tables", default=",".join(tables), help="which of them, with commas")
    parser.add_argument("--out", type=Path, required=True, help="JSON file; the tables stand beside it as .md")
    given = parser.parse_args(arguments)
    wanted = given.tables.split(",")
    if unknown := [name for name in wanted if name not in tables]:
        parser.error(f"unknown tables {unknown}; there are {', '.join(tables)}")
    for library in ("ot", "torchcfm"):
        if not installed(library):
            print(f"{library} is not installed, so it is not timed")
    found: Row = {"threads": torch.get_num_threads(), "torch": torch.__version__}
    for name in wanted:
        found[name] = tables[name]()
        write_text(given.out, json.dumps(found, indent=1) + "\n")
    text = "\n\n".join(markdown(found[name]) for name in wanted)
    write_text(given.out.with_suffix(".md"), text + "\n")
    print(text)


if __name__ == "__main__":
    main()
