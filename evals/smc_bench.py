"""What particles cost beside the network: `python -m pathline.evals.smc_bench --out out/smc`.

A UNet of diffusers with random weights draws 64 images of 32 × 32 by DDPM steps, with and without weights. All ways are
timed in turn, several times over, in processor time of one thread, so that other work on the machine matters little.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
import warnings
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from torch import Tensor

from pathline.interpolants import VPPath
from pathline.samplers import ClassifierFree, Guidance, build_table, from_diffusers, make_nodes, run
from pathline.samplers.smc import Composition, FeynmanKac, HeavyTailWarning, Policy, annealed, guided, law

from .files import write_text

_ALWAYS = Policy(ess=1.0)


@dataclass(frozen=True)
class Cost:
    """Cost of one way of sampling, for the whole batch.

    Attributes
    ----------
    way, against : names of the way and of the plain run that it is compared with
    calls, rewards : network calls of a batch, samples rewarded
    seconds : median processor time
    overhead : median over repeats of the ratio of the two times, less one
    """

    way: str
    against: str
    calls: int
    rewards: int
    seconds: float
    overhead: float


class Bench:
    """One network, one table, one start; runs by name.

    Parameters
    ----------
    particles, steps, width : int
        Batch, steps of the table, channels of the first block.
    """

    def __init__(self, particles: int, steps: int, width: int) -> None:
        from diffusers import DDPMScheduler, UNet2DModel

        torch.manual_seed(0)
        blocks = {"down_block_types": ("DownBlock2D", "DownBlock2D"), "up_block_types": ("UpBlock2D", "UpBlock2D")}
        unet = UNet2DModel(sample_size=32, block_out_channels=(width, 2 * width), layers_per_block=1,
                           norm_num_groups=8, num_class_embeds=11, **blocks).eval()  # fmt: skip
        self.model = from_diffusers(unet, DDPMScheduler())
        self.table = build_table("ddpm", make_nodes(VPPath(), "logsnr", steps))
        self.start = torch.randn(particles, 3, 32, 32)
        self.labels = torch.full((particles,), 3)
        self.free = {"class_labels": torch.full((particles,), 10)}
        tilted = law().tilted(lambda x: -x.flatten(1).square().mean(1))
        self.ways: dict[str, tuple[str, Callable[[], Guidance | None]]] = {
            "one branch": ("one branch", lambda: None),
            "annealed, weights": ("one branch", self._weighed(annealed(1.5), Policy(ess=0.5))),
            "annealed, resampled at every step": ("one branch", self._weighed(annealed(1.5), _ALWAYS)),
            "reward, resampled at every step": ("one branch", self._weighed(tilted, _ALWAYS)),
            "two branches": ("two branches", lambda: ClassifierFree(2.0, self.free, batched=False)),
            "guidance, weights": ("two branches", self._weighed(guided(2.0, self.free), Policy(ess=0.5))),
            "guidance, resampled at every step": ("two branches", self._weighed(guided(2.0, self.free), _ALWAYS)),
        }

    def _weighed(self, target: Composition, policy: Policy) -> Callable[[], FeynmanKac]:
        return lambda: FeynmanKac(target, policy)

    def seconds(self, guidance: Guidance | None) -> float:
        """Processor time of one run."""
        start = time.process_time()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", HeavyTailWarning)
            run(self.table, self._network, self.start, prediction="noise", guidance=guidance,
                model_kwargs={"class_labels": self.labels})  # fmt: skip
        return time.process_time() - start

    def _network(self, x: Tensor, t: Tensor, class_labels: Tensor) -> Tensor:
        return self.model(x, t, class_labels=class_labels)

    def costs(self, repeats: int) -> list[Cost]:
        """All ways in turn, `repeats` times over."""
        times: dict[str, list[float]] = {way: [] for way in self.ways}
        last: dict[str, Guidance | None] = {}
        for _ in range(repeats):
            for way, (_, make) in self.ways.items():
                last[way] = make()
                times[way].append(self.seconds(last[way]))
        found = []
        for way, (against, _) in self.ways.items():
            ratios = [own / plain for own, plain in zip(times[way], times[against], strict=True)]
            hook = last[way]
            reward = hook.target.reward if isinstance(hook, FeynmanKac) else None
            branches = 2 if against == "two branches" else 1
            calls = branches * self.table.evaluations
            asked = 0 if reward is None else reward.calls // repeats
            middle = statistics.median(times[way])
            found.append(Cost(way, against, calls, asked, middle, statistics.median(ratios) - 1.0))
        return found


def cost_table(costs: Sequence[Cost]) -> str:
    """The costs as a table in Markdown."""
    lines = ["| way | network calls | samples rewarded | seconds | over the plain run |", "|---|---|---|---|---|"]
    for cost in costs:
        over = "" if cost.way == cost.against else f"{100 * cost.overhead:+.1f} %"
        lines.append(f"| {cost.way} | {cost.calls} | {cost.rewards} | {cost.seconds:.2f} | {over} |")
    return "\n".join(lines)


def main(arguments: Sequence[str] | None = None) -> None:
    """Time the particle methods on a UNet; writes costs.json and costs.md."""
    parser = argparse.ArgumentParser(prog="python -m pathline.evals.smc_bench", description=main.__doc__)
    parser.add_argument("--out", type=Path, default=Path("out/smc"), help="folder to write to")
    parser.add_argument("--particles", type=int, default=64)
    parser.add_argument("--steps", type=int, default=10)
    parser.add_argument("--width", type=int, default=32, help="channels of the first block")
    parser.add_argument("--repeats", type=int, default=5)
    given = parser.parse_args(arguments)
    torch.set_num_threads(1)
    with torch.no_grad():
        costs = Bench(given.particles, given.steps, given.width).costs(given.repeats)
    print(cost_table(costs))
    given.out.mkdir(parents=True, exist_ok=True)
    write_text(given.out / "costs.json", json.dumps([asdict(cost) for cost in costs], indent=1))
    write_text(given.out / "costs.md", cost_table(costs) + "\n")


if __name__ == "__main__":
    main()
