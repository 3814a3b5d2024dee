"""Inference-time control shown on trained networks: composing two classes, annealing one, steering by a classifier.

`python -m pathline.evals.control_examples NET … --out out/control` takes class-conditional folders written by
`pathline train`. Every example is a file of its own there, so that a run that was stopped goes on where it was.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from pathline.interpolants import LinearPath
from pathline.samplers import Nodes, build_table, make_nodes
from pathline.samplers.files import replacing
from pathline.samplers.smc import Composition, Policy, law, smc_sample
from pathline.samplers.steering import (
    DataReward,
    Selection,
    SteeredResult,
    Steering,
    Twisted,
    as_diffusion,
    noisy_flow_table,
    rollover_budget_forcing,
    steered_sample,
)

from .control_pages import control_table, draw_control
from .files import write_text
from .small_classifier import Classifier, fit_classifier
from .sources import Source, open_source

SCALE = 2.0
_SHOWN = 16
_SIGNAL = 0.05  # compositions begin here: weights that sum to more than 1 are not defined in pure noise
_CLEARER = 1.0  # noise over signal below which annealing is weighted
_TRAINING = 6000


@dataclass(frozen=True)
class Bench:
    """A trained network, two classifiers of its data, and the size of the examples."""

    source: Source
    folder: Path
    first: int
    second: int
    particles: int
    steps: int

    @cached_property
    def data(self) -> tuple[Tensor, Tensor]:
        """Training images and labels."""
        from pathline.training import load_data

        card = json.loads((self.folder / "pathline.json").read_text())
        options, data = card["training"]["options"], card["data"]
        images = load_data(
            options["dataset_name"],
            split=data["split"],
            data_dir=options["train_data_dir"],
            resolution=data["resolution"],
            center_crop=data["center_crop"],
        )
        batch = images.__getitems__(list(range(min(len(images), _TRAINING))))
        assert batch.labels is not None
        return batch.images, batch.labels

    @cached_property
    def guide(self) -> Classifier:
        """What rewards."""
        return fit_classifier(*self.data, kind="dense")

    @cached_property
    def judge(self) -> Classifier:
        """What judges: another kind of network with another seed."""
        return fit_classifier(*self.data, kind="convolutional", seed=1)

    @cached_property
    def nodes(self) -> Nodes:
        """Even steps in log-SNR from a signal of 0.05."""
        nodes = make_nodes(self.source.path, "logsnr", self.steps)
        return nodes.part(int(np.argmax(nodes.signal > _SIGNAL)))

    def law_of(self, label: int) -> Composition:
        """What the network samples for a class."""
        return law(class_labels=torch.full((self.particles,), label))

    @property
    def free(self) -> int:
        """The label that stands for no class."""
        return int(self.source.null_label)

    def reward(self) -> DataReward:
        """Log probability of the first class, of the classifier that steers."""
        return DataReward(lambda images: self.guide(images)[:, self.first])


Example = Callable[[Bench], tuple[Tensor, dict[str, Any]]]
"""Bench -> images (n, C, H, W) and numbers."""


def _particles(bench: Bench, target: Composition, **given: Any) -> tuple[Tensor, dict[str, Any]]:
    source = bench.source
    result = smc_sample(source.model, target, source.shape, bench.particles, grid=bench.nodes,
                        prediction=source.prediction, policy=Policy(ess=0.5, last=True), **given)  # fmt: skip
    weighted = given.get("weights") != "none"
    numbers = {
        "ess": result.trace[-1].ess / bench.particles if weighted else None,
        "lowest_ess": min(c.ess for c in result.trace) / bench.particles if weighted else None,
        "ancestors": result.genealogy.unique if weighted else None,
        "nfe": result.branch_calls,
        "reward_calls": result.reward_calls,
        "backward_passes": result.reward_gradients,
    }
    return result.sample, numbers


def _both(bench: Bench) -> Composition:
    """p(x|a)·p(x|b)/p(x): both at once, if the classes were independent; its weights sum to 1."""
    less = replace(bench.law_of(bench.free).branches[0], weight=-1.0)
    pair = bench.law_of(bench.first) * bench.law_of(bench.second)
    return Composition((*pair.branches, less))


def _annealed(bench: Bench, beta: float, **given: Any) -> tuple[Tensor, dict[str, Any]]:
    nodes = bench.nodes
    begin = int(np.argmax(nodes.noise < _CLEARER * nodes.signal))
    if given.get("weights") != "none":
        given["window"] = (float(nodes.clock[begin]), 1.0)
    return _particles(bench, bench.law_of(bench.first).annealed(beta), **given)


def _steered(bench: Bench, steering: Any, count: int, **given: Any) -> tuple[Tensor, dict[str, Any]]:
    source, batch = bench.source, count * getattr(steering, "candidates", 1)
    result: SteeredResult = steered_sample(
        source.model, steering, source.shape, count, path=source.path, prediction=source.prediction,
        model_kwargs={"class_labels": torch.full((batch,), bench.free)}, steps=bench.steps, grid="logsnr", **given,
    )  # fmt: skip
    weighted = bool(result.trace)
    numbers = {
        "ess": result.trace[-1].ess / count if weighted else None,
        "lowest_ess": min(c.ess for c in result.trace) / count if weighted else None,
        "ancestors": result.ancestors if weighted else None,
        "nfe": result.network_samples / len(result.sample),
        "reward_calls": result.reward_calls / len(result.sample),
        "backward_passes": result.backward_passes / len(result.sample),
    }
    return result.sample, numbers


def _forced(bench: Bench) -> tuple[Tensor, dict[str, Any]]:
    """A few samples of Rollover Budget Forcing, each with the budget of best of 4."""
    source, reward = bench.source, bench.reward()
    model, path = source.model, source.path
    if isinstance(path, LinearPath):
        model = as_diffusion(model, path, source.prediction)
        table = noisy_flow_table(model.path, 10)
    else:
        table = build_table("ddim", make_nodes(path, "logsnr", 10), eta=1.0)
    kind = getattr(model, "prediction", source.prediction)
    found = [
        rollover_budget_forcing(table, model, reward, source.shape, budget=4 * bench.steps, prediction=kind, seed=k,
                                candidates=20, model_kwargs={"class_labels": torch.tensor([bench.free])})
        for k in range(min(_SHOWN, bench.particles))
    ]  # fmt: skip
    numbers = {"nfe": found[0].evaluations, "reward_calls": found[0].reward_calls, "backward_passes": 0}
    return torch.stack([f.sample for f in found]), numbers


def _policy() -> Policy:
    return Policy(ess=0.5, last=True)


EXAMPLES: dict[str, Example] = {
    "class a": lambda b: _particles(b, b.law_of(b.first), weights="none"),
    "class b": lambda b: _particles(b, b.law_of(b.second), weights="none"),
    "a and b, score only": lambda b: _particles(b, _both(b), weights="none"),
    "a and b, weighted": lambda b: _particles(b, _both(b)),
    "a annealed 1.2, score only": lambda b: _annealed(b, 1.2, weights="none"),
    "a annealed 1.2, weighted": lambda b: _annealed(b, 1.2),
    "no class": lambda b: _steered(b, Steering(b.reward(), scale=0.0), b.particles),
    "best of 4": lambda b: _steered(b, Selection(b.reward(), 4, checkpoints=None), b.particles),
    "SVDD, 4 proposals": lambda b: _steered(b, Selection(b.reward(), 4), b.particles),
    "CoDe, blocks of 5": lambda b: _steered(b, Selection(b.reward(), 4, checkpoints=5), b.particles),
    "FK steering": lambda b: _steered(b, Steering(b.reward(), _policy(), scale=SCALE, checkpoints=3), b.particles),
    "FK steering, max": lambda b: _steered(
        b, Steering(b.reward(), _policy(), scale=SCALE, potential="max", checkpoints=3), b.particles
    ),
    "twisted (TDS)": lambda b: _steered(b, Twisted(b.reward(), _policy(), scale=SCALE), b.particles),
    "rollover (RBF)": _forced,
}


def measure(bench: Bench, name: str) -> tuple[Tensor, dict[str, Any]]:
    """One example: images, and what they cost and are worth."""
    with torch.random.fork_rng(devices=[]):
        _ = bench.guide, bench.judge  # not part of the time
        start = time.perf_counter()
        images, numbers = EXAMPLES[name](bench)
        seconds = time.perf_counter() - start
    verdict = bench.judge(images).exp()
    numbers |= {
        "reward": float(bench.guide(images)[:, bench.first].mean()),
        "judged_a": float(verdict[:, bench.first].mean()),
        "judged_b": float(verdict[:, bench.second].mean()),
        "agreement": float((verdict.argmax(1) == bench.first).float().mean()),
        "spread": float(images.std(0).mean()),
        "images": len(images),
        "seconds": seconds,
        "guide_accuracy": bench.guide.accuracy,
        "judge_accuracy": bench.judge.accuracy,
    }
    return images, numbers


def run_examples(bench: Bench, out: Path, *, progress: bool = True) -> dict[str, dict[str, Any]]:
    """Every example that `out` does not hold yet; returns the numbers of all."""
    from tqdm.auto import tqdm

    out.mkdir(parents=True, exist_ok=True)
    found = {}
    for number, name in enumerate(tqdm(EXAMPLES, desc=bench.folder.name, disable=not progress)):
        file = out / f"{number:02d}.npz"
        if not file.exists():
            images, numbers = measure(bench, name)
            with replacing(file, "wb") as stream:
                np.savez_compressed(stream, images=images[:_SHOWN].numpy(), numbers=np.array(json.dumps(numbers)))
        with np.load(file) as stored:
            found[name] = json.loads(str(stored["numbers"])) | {"shown": stored["images"]}
    return found


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the examples; writes a folder of results, a table and a picture for each network."""
    parser = argparse.ArgumentParser(prog="python -m pathline.evals.control_examples", description=__doc__)
    parser.add_argument("networks", nargs="+", type=Path, help="class-conditional folders written by pathline train")
    parser.add_argument("--out", type=Path, default=Path("out/control"), help="folder to write to")
    parser.add_argument("--classes", type=int, nargs=2, default=[3, 8], help="the classes a and b")
    parser.add_argument("--particles", type=int, default=64)
    parser.add_argument("--steps", type=int, default=40)
    parser.add_argument("--no_progress", action="store_true")
    given = parser.parse_args(arguments)
    if given.particles < 2 or given.steps < 15:
        parser.error("at least 2 particles and 15 steps are needed")
    torch.set_num_threads(1)
    for folder in given.networks:
        source = open_source(str(folder))
        if not source.classes or source.null_label is None:
            parser.error(f"{folder} has no classes, or no label for none of them; train with --class_conditional")
        if not all(0 <= label < source.classes for label in given.classes):
            parser.error(f"--classes {given.classes} are not classes of {folder}, which has {source.classes}")
        first, second = given.classes
        bench = Bench(source, folder, first, second, given.particles, given.steps)
        found = run_examples(bench, given.out / folder.name, progress=not given.no_progress)
        write_text(given.out / f"{folder.name}.md", control_table(found) + "\n")
        names = json.loads((folder / "pathline.json").read_text())["classes"]
        title = f"{folder.name}: a is {names[first]}, b is {names[second]}"
        draw_control(found, title, given.out / f"{folder.name}.png")


if __name__ == "__main__":
    main()
