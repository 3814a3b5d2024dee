"""Why edits are finished with noise: an edit's distance to the data under the flow and under SDEs.

`python -m pathline.evals.contraction NET --out docs/images/contraction.png` measures it on a Gaussian mixture, where
the Kullback–Leibler divergence to the model's own marginals is exact, and on a trained network, and draws both.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from pathline.interpolants import GaussianMixture, VPPath
from pathline.samplers import Level, StepInfo, build_table, make_nodes, run, sample
from pathline.samplers.editing import sdedit
from pathline.samplers.files import replacing

from .distances import frechet_from_moments
from .files import write_text
from .plots import COLOURS
from .sources import Source, open_source

NOISES = (0.0, 0.5, 1.0, 1.5)
STRENGTHS = (0.3, 0.4, 0.5, 0.6, 0.7, 0.8)
_EDGES = torch.linspace(-7.0, 7.0, 301, dtype=torch.float64)
_SHOWN = 8
_DRAWN = 0.4  # strength of the pictures


def mixture_contraction(count: int = 100_000, steps: int = 400, start: float = 0.5) -> dict[str, Any]:
    """KL of ½N(−2, ¼) + ½N(2, 1), shifted by 1.5 at diffusion time `start`, to the marginals on the way to the data.

    Returns
    -------
    {"times": …, "kl": {noise scale: …}}; the stated numbers of the derivation are 0.88 at the start and 0.878, 0.593,
    0.231 and 0.060 at the end
    """
    path, law = VPPath(), GaussianMixture([0.5, 0.5], [[-2.0], [2.0]], std=[0.5, 1.0])
    generator = torch.Generator().manual_seed(0)
    point = path.at(1.0 - start)
    clean = law.sample(count, generator)
    noise = torch.randn(clean.shape, generator=generator, dtype=torch.float64)
    x = float(point.signal) * clean + float(point.noise) * noise + 1.5
    times = np.linspace(1.0 - start, 1.0 - 1e-3, steps + 1)
    nodes = make_nodes(path, times)
    watched = range(0, steps, steps // 20)
    found: dict[str, list[float]] = {}
    for zeta in NOISES:
        curve = [_divergence(law, x, nodes.level(0))]

        def watch(info: StepInfo, curve: list[float] = curve) -> None:
            if info.row + 1 in watched:
                curve.append(_divergence(law, info.state, nodes.level(info.row + 1)))

        table = build_table("sde", nodes, epsilon="sbdm", scale=zeta**2)
        end = run(table, law.as_model(path, "noise"), x, prediction="noise", seed=5, callback=watch)
        assert isinstance(end, Tensor)
        curve.append(_divergence(law, end, nodes.level(steps)))
        found[f"{zeta:g}"] = curve
    shown = [*(1.0 - times[list(watched)]), 1.0 - times[-1]]
    return {"times": shown, "kl": found, "count": count}


def _divergence(law: GaussianMixture, x: Tensor, level: Level) -> float:
    counts = torch.histogram(x.flatten(), _EDGES).hist / len(x)
    middle = 0.5 * (_EDGES[1:] + _EDGES[:-1])
    exact = law.log_density(middle[:, None], level.signal, level.noise).exp() * (_EDGES[1] - _EDGES[0])
    return float(torch.where(counts > 0, counts * (counts / exact).log(), 0.0).sum())


def network_contraction(source: Source, count: int = 500, steps: int = 60) -> dict[str, Any]:
    """Fréchet distance of pixels to the data after pasting a bright square into images of the data and finishing.

    For each strength (share of the path that is run again) the edited images are noised to its level and finished with
    the flow (DDIM, noise 0) and with DDPM (noise 1).

    Returns
    -------
    distances and squared changes of the rest of the picture by strength; the distances of the edited images and of
    other data of the same number; pictures of the first ones
    """
    images = source.data().samples
    order = torch.randperm(len(images), generator=torch.Generator().manual_seed(0))
    count = min(count, len(images) // 2)
    chosen, others = images[order[:count]], images[order[count:]]
    edited = chosen.clone()
    side = max(2, images.shape[-1] // 4)
    edited[..., :side, :side] = 1.0
    rest = torch.ones_like(edited)
    rest[..., :side, :side] = 0.0
    found: dict[str, Any] = {"flow": [], "noise": [], "flow change": [], "noise change": []}
    pictures = [chosen[:_SHOWN], edited[:_SHOWN]]
    kwargs = {source.label_key: torch.full((count,), int(source.null_label))} if source.classes else {}
    for strength in STRENGTHS:
        for name, eta in (("flow", 0.0), ("noise", 1.0)):
            first = steps - round(strength * steps)
            table = build_table("ddim", make_nodes(source.path, "time", steps).part(first), eta=eta)
            given: dict[str, Any] = {"prediction": source.prediction, "model_kwargs": kwargs, "seed": 3}
            ends = sdedit(table, source.model, edited, **given)
            found[name].append(_distance(ends, others))
            found[f"{name} change"].append(float(((ends - edited) * rest).square().mean()))
            if strength == _DRAWN:
                pictures.append(ends[:_SHOWN])
    start = source.path.prior((count, *source.shape), torch.Generator().manual_seed(1))
    drawn = sample(
        source.model,
        start,
        path=source.path,
        prediction=source.prediction,
        nfe=steps,
        method="ddim",
        model_kwargs=kwargs,
    )
    assert isinstance(drawn, Tensor)
    found |= {"strengths": list(STRENGTHS), "edited": _distance(edited, others), "data": _distance(chosen, others)}
    return found | {"samples": _distance(drawn, others), "count": count, "pictures": torch.cat(pictures)}


def _distance(first: Tensor, second: Tensor) -> float:
    a, b = (x.double().flatten(1).numpy() for x in (first, second))
    return frechet_from_moments(a.mean(0), np.cov(a.T), b.mean(0), np.cov(b.T))


def draw_contraction(mixture: dict[str, Any], network: dict[str, Any], out: Path) -> None:
    """Two curves and a strip of pictures as one PNG."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9.6, 5.6), dpi=90, layout="constrained")
    axes = figure.subplot_mosaic([["law", "net"], ["strip", "strip"]], height_ratios=[1.6, 1.0])
    for colour, (zeta, curve) in zip(COLOURS, mixture["kl"].items(), strict=False):
        axes["law"].plot(
            mixture["times"], curve, color=colour, label=f"ζ = {zeta}" + (" (flow)" if zeta == "0" else "")
        )
    axes["law"].set(xlabel="diffusion time", ylabel="KL to the model's marginal", title="A shifted Gaussian mixture")
    axes["law"].invert_xaxis()
    axes["law"].set_ylim(bottom=0.0)
    axes["law"].legend()
    panel = axes["net"]
    for colour, name, label in ((COLOURS[0], "flow", "flow (ζ = 0)"), (COLOURS[2], "noise", "SDE (ζ = 1)")):
        panel.plot(network[f"{name} change"], network[name], color=colour, marker="o", label=label)
        for place in zip(network[f"{name} change"], network[name], network["strengths"], strict=True):
            panel.annotate(f"{place[2]:g}", place[:2], textcoords="offset points", xytext=(4, 4), fontsize=7)
    for style, name, label in (("--", "edited", "edited images"), (":", "samples", "the model's samples")):
        panel.axhline(network[name], color="#3B3B3B", linestyle=style, linewidth=1.0, label=label)
    panel.set(xlabel="squared change of the rest (numbers: strength)", yscale="log")
    panel.set(ylabel="Fréchet distance to data", title="A trained network, a pasted square")
    panel.legend()
    from pathline.training.previews import draw_sheet

    strip = axes["strip"]
    strip.imshow(np.asarray(draw_sheet(network["pictures"], columns=2 * _SHOWN)))
    strip.set_axis_off()
    strip.set_title(f"above: data | with a square pasted in; below, strength {_DRAWN:g}: flow | SDE", fontsize=9)
    with replacing(out, "wb") as stream:
        figure.savefig(stream, format="png")


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure, draw and write the numbers beside the picture."""
    parser = argparse.ArgumentParser(prog="python -m pathline.evals.contraction", description=__doc__)
    parser.add_argument("network", help="a trained folder or a pipeline name")
    parser.add_argument("--out", type=Path, default=Path("contraction.png"))
    parser.add_argument("--count", type=int, default=500, help="images of the network's part")
    parser.add_argument("--samples", type=int, default=100_000, help="samples of the mixture's part")
    given = parser.parse_args(arguments)
    mixture = mixture_contraction(given.samples)
    network = network_contraction(open_source(given.network), given.count)
    draw_contraction(mixture, network, given.out)
    numbers = {key: value for key, value in network.items() if key != "pictures"}
    write_text(given.out.with_suffix(".json"), json.dumps({"mixture": mixture, "network": numbers}, indent=1))
    print(f"{given.out} written; mixture ends at", {k: round(v[-1], 3) for k, v in mixture["kl"].items()})


if __name__ == "__main__":
    main()
