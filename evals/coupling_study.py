"""What couplings do to a flow: straightness, few steps, conditions. `python -m pathline.evals.coupling_study`."""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from pathline.interpolants import LinearPath, coupling_by_name
from pathline.training import straightness

from .files import write_text
from .toy_flows import (
    ToyPairs,
    ToyVelocity,
    draw_pairs,
    eight_gaussians,
    flow_from,
    train_toy,
    transport_distance,
    two_moons,
)

EULER = (1, 2, 4)
_TRACKS = 20  # intervals of a drawn path
_SHOWN = 160


@dataclass(frozen=True)
class ToySettings:
    """Sizes of the study.

    Attributes
    ----------
    steps, pairs, block : optimiser steps of 256, pairs they draw from, pairs coupled at once
    samples : for the distances
    seed : of everything
    """

    steps: int = 3000
    pairs: int = 16_384
    block: int = 1024
    samples: int = 1500
    seed: int = 0


class CouplingStudy:
    """Trains the toy flows and measures each: distances at few steps, straightness, cost of the pairs."""

    def __init__(self, settings: ToySettings) -> None:
        self.settings = settings
        self.rows: list[dict[str, Any]] = []
        self.models: dict[str, ToyVelocity] = {}
        generator = self._generator(1)
        self.start = eight_gaussians(settings.samples, generator)
        self.data, self.classes = two_moons(settings.samples, generator)
        other, others = two_moons(settings.samples, generator)
        self.floor = {
            "unconditional": transport_distance(other, self.data, None, None),
            "conditional": transport_distance(other, self.data, others, self.classes),
        }

    def _generator(self, stream: int) -> torch.Generator:
        return torch.Generator().manual_seed(1000 * self.settings.seed + stream)

    def pairs(self, coupling: str, conditional: bool) -> ToyPairs:
        """Pairs to train on."""
        size = self.settings
        make = coupling_by_name(coupling)
        return draw_pairs(make, size.pairs, size.block, self._generator(2), conditional=conditional)

    def reflow_pairs(self, teacher: str) -> ToyPairs:
        """New starts with the ends to which the flow of a model takes them."""
        base = eight_gaussians(self.settings.pairs, self._generator(3))
        return ToyPairs(base, flow_from(self.models[teacher], base, None, None), None)

    def add(self, name: str, pairs: ToyPairs, first: str | None = None) -> None:
        """Train on pairs, from the weights of another run if one is named, and measure."""
        conditional = pairs.labels is not None
        model = ToyVelocity(conditional, seed=self.settings.seed)
        if first is not None:
            model.load_state_dict(self.models[first].state_dict())
        train_toy(model, pairs, steps=self.settings.steps, generator=self._generator(4))
        labels = self.classes if conditional else None
        kwargs = {} if labels is None else {"class_labels": labels}
        row: dict[str, Any] = {"run": name, "conditional": conditional, "pair_cost": pairs.cost}
        row["straightness"] = straightness(model, self.start, LinearPath(), model_kwargs=kwargs)
        for steps in (*EULER, None):
            made = flow_from(model, self.start, labels, steps)
            row["adaptive" if steps is None else f"euler-{steps}"] = transport_distance(made, self.data, labels, labels)
            if steps is None:
                row["flow_cost"] = float((made - self.start).square().sum(1).mean())
        self.models[name] = model
        self.rows.append(row)
        print(json.dumps(row), flush=True)

    def tracks(self, name: str, labels: Tensor | None = None) -> Tensor:
        """States (K + 1, n, 2) of some of the starts along the flow."""
        x, states = self.start[:_SHOWN], [self.start[:_SHOWN]]
        kwargs = {} if labels is None else {"class_labels": labels[:_SHOWN]}
        model = self.models[name]
        with torch.no_grad():
            for k in range(_TRACKS):
                time = torch.full((len(x),), (k + 0.5) / _TRACKS)
                middle = x + 0.5 / _TRACKS * model(x, time - 0.5 / _TRACKS, **kwargs)
                x = x + model(middle, time, **kwargs) / _TRACKS
                states.append(x)
        return torch.stack(states)


def run_study(settings: ToySettings) -> CouplingStudy:
    """Independent, optimal transport and reflow; with classes independent, optimal transport and C²OT."""
    study = CouplingStudy(settings)
    study.add("independent", study.pairs("independent", False))
    study.add("ot", study.pairs("ot", False))
    study.add("reflow", study.reflow_pairs("independent"), "independent")
    for coupling in ("independent", "ot", "c2ot"):
        study.add(f"{coupling}, classes", study.pairs(coupling, True))
    return study


def draw_study(study: CouplingStudy, out: Path) -> None:
    """Paths of the flows as one picture: without classes above, with them below."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(10.5, 7.2), layout="constrained")
    axes = figure.subplots(2, 3, sharex=True, sharey=True)
    for axis, row in zip(axes.reshape(-1), study.rows, strict=True):
        labels = study.classes if row["conditional"] else None
        tracks = study.tracks(row["run"], labels)
        colours = ["tab:blue"] * _SHOWN if labels is None else [f"C{int(k)}" for k in labels[:_SHOWN]]
        for index, colour in enumerate(colours[: tracks.shape[1]]):
            axis.plot(tracks[:, index, 0], tracks[:, index, 1], color=colour, linewidth=0.6, alpha=0.6)
        axis.scatter(*study.data.T, s=1.5, color="0.75", zorder=0)
        axis.scatter(*tracks[0].T, s=5, color="black", zorder=3)
        axis.set_title(f"{row['run']}: straightness {row['straightness']:.2f}", fontsize=10)
        text = f"W2² in 1 step {row['euler-1']:.2f}, adaptive {row['adaptive']:.2f}"
        axis.text(0.02, 0.02, text, transform=axis.transAxes, fontsize=8)
        axis.set_aspect("equal")
    figure.savefig(out, dpi=80)


def study_table(study: CouplingStudy) -> str:
    """The rows as a table in Markdown."""
    columns = ("pair_cost", "flow_cost", "straightness", "euler-1", "euler-2", "euler-4", "adaptive")
    heads = ("cost of pairs", "cost of flow", "straightness", "1 step", "2", "4", "adaptive")
    lines = [f"| run | {' | '.join(heads)} |", "|---" * (len(heads) + 1) + "|"]
    lines += [f"| {row['run']} | " + " | ".join(f"{row[name]:.3g}" for name in columns) + " |" for row in study.rows]
    return "\n".join(lines)


def main(arguments: Sequence[str] | None = None) -> None:
    """Train toy flows under several couplings; write their measures, a table and a picture."""
    parser = argparse.ArgumentParser(prog="python -m pathline.evals.coupling_study", description=main.__doc__)
    for name, value in asdict(ToySettings()).items():
        parser.add_argument(f"--{name}", type=int, default=value)
    parser.add_argument("--out", type=Path, required=True, help="folder")
    given = parser.parse_args(arguments)
    settings = ToySettings(**{name: getattr(given, name) for name in asdict(ToySettings())})
    given.out.mkdir(parents=True, exist_ok=True)
    study = run_study(settings)
    found = {"settings": asdict(settings), "floor": study.floor, "rows": study.rows}
    write_text(given.out / "couplings.json", json.dumps(found, indent=1) + "\n")
    table = study_table(study)
    floors = ", ".join(f"{name} {value:.3g}" for name, value in study.floor.items())
    write_text(given.out / "couplings.md", f"{table}\n\nTwo samples of the data itself: {floors}.\n")
    print(f"{table}\ntwo samples of the data itself: {floors}")
    draw_study(study, given.out / "couplings.png")


if __name__ == "__main__":
    main()
