"""The evidence for the untuned default: errors of many settings on one source, one JSON file for each guidance.

python -m pathline.evals.defaults bed:digits:conditional=True --guidance 7.5 --out digits-7.5.json
python -m pathline.evals.defaults mixture:file=mixture.npz,path=linear --out flow.json
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from tqdm.auto import tqdm

from pathline.interpolants import LinearPath
from pathline.samplers import plan
from pathline.samplers.defaults import GUIDED

from .files import write_text
from .mixture_bed import mixture_source
from .peers import Bench, Setting, settings_of
from .settings import parse_integers, parse_spec
from .sources import Source, open_source

METHODS = (
    "ddim",
    *(f"ipndm:order={k}" for k in (2, 3, 4)),
    *(f"{name}:order={k}" for name in ("deis", "dpm++", "dpm", "unipc", "exp-adams", "ipndm_v") for k in (2, 3)),
    *(f"ghvb:order={m}" for m in (1.5, 2.5, 3.5)),
    "unipc:form=noise,order=2",
    "unipc:order=2,variant=bh1",
    *(SINGLESTEP := ("heun", "dpm2", "dpm++-single:order=2", "res:order=2")),
)
GRIDS = ("logsnr", "karras", "karras:rho=4", "karras:rho=3", "time", "shifted", "beta", "ays", "dmn")
NFE = "3-6,8,10,15,20,30"
SHORT_RUNS_ONLY = ("karras:rho=3", "shifted", "ays", "dmn")
_LONG = 11  # from here on every sample costs more and settings differ less


def candidates(nfe: int, methods: Sequence[str] = METHODS, grids: Sequence[str] = GRIDS) -> list[Setting]:
    """Every untuned setting that is measured at a budget."""
    grids = [grid for grid in grids if nfe < _LONG or grid not in SHORT_RUNS_ONLY]
    several = [method for method in methods if method in SINGLESTEP]
    return [
        *settings_of([method for method in methods if method not in SINGLESTEP], grids),
        *settings_of(several, [grid for grid in grids if grid not in SHORT_RUNS_ONLY], analytic=False),
    ]


def open_bed(text: str) -> Source:
    """As `open_source`, and mixture:file=FILE[,path=linear] for the CIFAR-10 bed."""
    if not text.startswith("mixture:"):
        return open_source(text)
    spec = parse_spec(text)
    return mixture_source(Path(spec.options["file"]), spec.options.get("path", "discrete"))


def measure(
    bench: Bench, nfe: int, settings: Sequence[Setting], *, screen: int, keep: int
) -> Iterator[tuple[Setting, float, int]]:
    """Errors of settings on `screen` samples, then of the best `keep` of them on all of the bench's.

    Yields
    ------
    setting, error, samples it was measured on
    """
    total = len(bench.start)
    if nfe >= _LONG and screen < total:
        screen, keep = -(-screen // 2), -(-keep // 2)
    first = bench.best(nfe, settings, min(screen, total))
    again = keep if screen < total else 0
    for one in first[again:]:
        yield one.setting, one.error, min(screen, total)
    for one in first[:again]:
        yield one.setting, bench.error(one.setting, nfe), total


def default_error(bench: Bench, nfe: int, guidance: float) -> float:
    """Error of what `sample` runs when only the budget is named."""
    return bench.distance(
        bench.run(plan(bench.path, nfe=nfe, prediction=bench.problem.prediction, guided=guidance > GUIDED))
    )


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure untuned settings and the default on a source and write their errors."""
    parser = argparse.ArgumentParser(prog="python -m pathline.evals.defaults", description=main.__doc__)
    parser.add_argument("source", help="as for pathline sweep, or mixture:file=FILE[,path=linear]")
    parser.add_argument("--guidance", type=float, default=1.0)
    parser.add_argument("--samples", type=int, default=32)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--screen", type=int, default=8, help="samples on which every setting runs")
    parser.add_argument("--keep", type=int, default=60, help="settings that run on all samples")
    parser.add_argument("--methods", nargs="+", default=METHODS)
    parser.add_argument("--grids", nargs="+", default=GRIDS)
    parser.add_argument("--nfe", default=NFE)
    parser.add_argument("--again", type=Path, help="an earlier result: only its best --keep settings run")
    parser.add_argument("--out", type=Path, required=True)
    given = parser.parse_args(arguments)
    torch.set_num_threads(1)
    before = None if given.again is None else json.loads(given.again.read_text())["errors"]
    budgets = parse_integers(given.nfe)
    bench = Bench(open_bed(given.source), guidance=given.guidance, samples=given.samples, seed=given.seed)
    found: dict[str, Any] = {"source": given.source, "guidance": given.guidance}
    found |= {"prediction": bench.problem.prediction, "flow": isinstance(bench.path, LinearPath)}
    found |= {"default": {}, "errors": {}}
    for nfe in tqdm([n for n in budgets if before is None or str(n) in before], desc=given.out.stem):
        if before is None:
            rows = measure(
                bench, nfe, candidates(nfe, given.methods, given.grids), screen=given.screen, keep=given.keep
            )
        else:
            best = sorted(before[str(nfe)], key=lambda text: before[str(nfe)][text][0])[: given.keep]
            rows = measure(bench, nfe, [Setting(*text.split(" ")) for text in best], screen=given.samples, keep=0)
        found["errors"][str(nfe)] = {str(s): [float(f"{error:.4g}"), count] for s, error, count in rows}
        found["default"][str(nfe)] = float(f"{default_error(bench, nfe, given.guidance):.4g}")
        write_text(given.out, json.dumps(found, indent=1))


if __name__ == "__main__":
    main()
