"""In-painting: known parts put back at every level, and RePaint's jumps."""

from __future__ import annotations

from itertools import pairwise

from torch import Tensor

from pathline.interpolants import check_name

from ..keyed_noise import keyed_normal
from ..methods.churn import renoise
from ..methods.ddim import ddim_coefficients, ddim_step
from ..nodes import Level, Nodes
from ..noisy_moves import noisy_moves
from ..program import Program
from ..run_state import Hook, RunState
from ..table import Table
from .sde_inversion import Inversion

KNOWN_SLOT = 102
"""Slot under which a row's noise of the known part is drawn."""
REGION_NOISES = ("fresh", "same")


class KnownRegion(Hook):
    """Replaces the known part of the state before every call by signal·data + noise·ε at the call's level.

    Fresh noise at every level is the replacement method of Song et al. 2021 (its samples are biased: known and unknown
    part do not fit together, which `repaint_table` mends); one noise for all levels is SDEdit's.

    Parameters
    ----------
    data : Tensor, broadcast to (B, ...)
        The image; only its known part matters.
    mask : Tensor, broadcast to (B, ...)
        1 where known, 0 where not, between them a blend.
    noise : {"fresh", "same"}
    final : bool
        Put the known part into the result as well.
    """

    def __init__(self, data: Tensor, mask: Tensor, *, noise: str = "fresh", final: bool = True) -> None:
        check_name("noise of a known region", noise, REGION_NOISES)
        self.data, self.mask, self.noise, self.final = data, mask, noise, final

    def before_model(self, run: RunState, query: Tensor) -> Tensor | None:
        """Replace the state itself, not only what the network sees."""
        row = run.table.rows[run.row]
        assert row.query is not None
        run.values[row.query] = replaced = self._replaced(run, query, row.level)
        return replaced

    def after_row(self, run: RunState) -> None:
        """The result, after the last row."""
        if self.final and run.row == len(run.table.rows) - 1:
            result = run.table.result
            run.values[result] = self._replaced(run, run.values[result], run.table.end, last=True)

    def _replaced(self, run: RunState, x: Tensor, level: Level, last: bool = False) -> Tensor:
        check_batch("KnownRegion", self.data, x)
        known = level.signal * self.data.to(x)
        if level.noise:
            row = 0 if self.noise == "same" else run.row + last
            shape = x.shape[1:]
            z = keyed_normal(shape, run.seed, run.samples, row, KNOWN_SLOT, dtype=x.dtype, device=x.device)
            known = known + level.noise * z
        return _blend(self.mask, known, x)


class KnownChain(Hook):
    """Puts the stored chain of an inversion back where the mask is 1, after every random move.

    The known part then follows one path of the noising process, so that it is consistent over the levels.

    Parameters
    ----------
    inversion : Inversion
    mask : Tensor, broadcast to (B, ...)
    """

    def __init__(self, inversion: Inversion, mask: Tensor) -> None:
        self.mask = mask
        pairs = zip(noisy_moves(inversion.table), inversion.chain[1:], strict=True)
        self._states = {move.row: (move.target, state) for move, state in pairs}

    def after_row(self, run: RunState) -> None:
        """Restore the known part."""
        if run.row in self._states:
            target, state = self._states[run.row]
            check_batch("KnownChain", state, run.values[target])
            run.values[target] = _blend(self.mask, state, run.values[target])


def check_batch(name: str, images: Tensor, x: Tensor) -> None:
    """Raise ValueError unless `images` are one for each sample of `x`, or one for all."""
    if images.ndim == x.ndim and len(images) not in (1, len(x)):
        raise ValueError(f"{name} holds {len(images)} images for a batch of {len(x)}; leave out chunk_size")


def _blend(mask: Tensor, known: Tensor, x: Tensor) -> Tensor:
    share = mask.to(x)
    return share * known.to(x) + (1.0 - share) * x


def repaint_walk(steps: int, jump_length: int = 10, repeats: int = 10) -> list[int]:
    """Node after node of RePaint's schedule: 0 is pure noise, `steps` the data.

    After the node that is `jump_length`, 2·jump_length … steps above the last noisy one, the walk goes `jump_length`
    nodes back to more noise and comes down again, `repeats` − 1 times (Lugmayr et al. 2022, arXiv:2201.09865, Algorithm
    1 and its released schedule). The default on 250 steps has 2410 steps down and 2160 up.

    Raises
    ------
    ValueError
        A number below 1, or no step.
    """
    for name, value in (("steps", steps), ("jump_length", jump_length), ("repeats", repeats)):
        if value < 1:
            raise ValueError(f"{name}={value!r} of RePaint is not possible; it must be at least 1")
    left = {steps - 1 - place: repeats - 1 for place in range(0, steps - jump_length, jump_length)}
    node, walk = 0, [0]
    while node < steps:
        if left.get(node, 0) > 0:
            left[node] -= 1
            for _ in range(jump_length):
                node -= 1
                walk.append(node)
        node += 1
        walk.append(node)
    return walk


def repaint_table(nodes: Nodes, *, jump_length: int = 10, repeats: int = 10, eta: float = 1.0) -> Table:
    """RePaint as a table: DDIM(η) steps down and single noising steps up; run it with a `KnownRegion`.

    Parameters
    ----------
    nodes : Nodes
    jump_length, repeats : int ≥ 1
        As in `repaint_walk`; repeats=1 is plain replacement.
    eta : float in [0, 1]
        1 is DDPM, as published.
    """
    carry, fresh = ddim_coefficients(nodes, eta)
    program = Program(nodes)
    x, walk = program.state, repaint_walk(nodes.steps, jump_length, repeats)
    for here, there in pairwise(walk):
        if there > here:
            x = ddim_step(program, here, x, carry[here], fresh[here])
        else:
            program.pause(here)
            x = renoise(program, x, nodes.level(here), nodes.level(there))
    return program.finish(x)
