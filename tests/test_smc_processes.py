"""N particles on several processes are those of one, bit by bit."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch

from pathline.interpolants import GaussianMixture, VPPath
from pathline.samplers.smc import Branch, Composition, Policy, ProcessRanks, smc_sample
from support.ranks import ThreadRanks, in_threads

VP = VPPath(beta_min=0.1, beta_max=20.0)
CONDITIONAL = GaussianMixture([0.5, 0.5], [[1.0, 0.0], [-1.0, 2.0]], std=0.6).as_model(VP)
FREE = GaussianMixture([0.5, 0.5], [[0.0, 0.0], [1.0, 1.0]], std=1.5).as_model(VP)
TARGET = Composition((Branch(3.0), Branch(-2.0, model=FREE)))


def particles(ranks: ThreadRanks | None, policy: Policy, **options):
    return smc_sample(CONDITIONAL, TARGET, (2,), 24, path=VP, steps=20, policy=policy, ranks=ranks, seed=5,
                      dtype=torch.float64, **options)  # fmt: skip


@pytest.mark.parametrize("scheme", ["systematic", "multinomial", "ssp"])
@pytest.mark.parametrize("count", [2, 4])
def test_simulated_ranks_give_the_same_indices_and_particles(scheme: str, count: int) -> None:
    policy = Policy(resampler=scheme, ess=1.0, last=True)
    alone = particles(None, policy)
    together = in_threads(count, lambda ranks: particles(ranks, policy))
    assert torch.equal(torch.cat([r.sample for r in together]), alone.sample)
    assert torch.equal(torch.cat([r.log_weights for r in together]), alone.log_weights)
    for rank in together:
        assert rank.log_z == alone.log_z
        assert all((a == b).all() for a, b in zip(rank.genealogy.parents, alone.genealogy.parents, strict=True))
    assert len(alone.genealogy.parents) > 12


def test_states_travel_only_where_an_ancestor_lives_elsewhere() -> None:
    counts = []

    def task(ranks: ThreadRanks):
        result = particles(ranks, Policy(ess=0.0))
        counts.append(ranks.moved)
        return result

    in_threads(2, task)
    assert counts == [(20 + 2) * 12] * 2  # the weights at each checkpoint and in the two results, no state


def test_particles_that_cannot_be_shared_out_are_refused() -> None:
    with pytest.raises(ValueError, match="multiple of 5"):
        in_threads(5, lambda ranks: particles(ranks, Policy()))
    with pytest.raises(ValueError, match="no process group"):
        ProcessRanks()


SCRIPT = """
import os, sys, torch
sys.path.insert(0, sys.argv[1])
torch.set_num_threads(1)
from accelerate import Accelerator
import importlib.util
spec = importlib.util.spec_from_file_location("case", sys.argv[2])
case = importlib.util.module_from_spec(spec); spec.loader.exec_module(case)
accelerator = Accelerator(cpu=True)
ranks = case.ProcessRanks()
found = case.particles(ranks, case.Policy(ess=1.0, last=True))
torch.save((found.sample, found.log_weights, found.log_z), sys.argv[3] + str(ranks.rank))
torch.distributed.destroy_process_group()
"""


@pytest.mark.slow
def test_two_real_processes_give_the_particles_of_one(tmp_path: Path) -> None:
    script = tmp_path / "ranks.py"
    script.write_text(SCRIPT)
    here = Path(__file__).resolve()
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node", "2", "--master_port", "29651"]
    done = subprocess.run(
        [*command, str(script), str(here.parent), str(here), str(tmp_path / "part")], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr[-3000:]
    alone = particles(None, Policy(ess=1.0, last=True))
    first, second = (torch.load(tmp_path / f"part{rank}") for rank in range(2))
    assert torch.equal(torch.cat([first[0], second[0]]), alone.sample)
    assert torch.equal(torch.cat([first[1], second[1]]), alone.log_weights)
    assert first[2] == second[2] == alone.log_z
