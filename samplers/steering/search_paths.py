"""Search over paths as one table: down along the ODE, back up with noise, down again."""

from __future__ import annotations

from dataclasses import replace

from ..methods.churn import renoise
from ..methods.ddim import ddim_coefficients, ddim_step
from ..nodes import Nodes
from ..program import Program
from ..table import Table


def search_table(nodes: Nodes, *, begin: int, back: int, forward: int) -> tuple[Table, list[int]]:
    """The walk of a search over paths (Ma et al. 2025, arXiv:2501.09732), and the rows at which paths are chosen.

    DDIM without noise to node `begin`; there the data are predicted and rewarded, the state is noised `back` nodes up
    and denoised `forward` nodes down, and so on to the end: ⌈(steps − begin)/(forward − back)⌉ rounds. Run it with a
    `Selection(reward, candidates, keep=paths, checkpoints=rows)`, which keeps the best paths of a group and copies
    them, so that each is noised candidates/paths times.

    Parameters
    ----------
    nodes : Nodes
    begin : int
        The published 120 of 1000 is node 88 of 100.
    back, forward : int
        Steps up and down of a round; published 780 and 810, which is 78 and 81.

    Raises
    ------
    ValueError
        Nodes that do not exist, or rounds that do not come forward.
    """
    if not 0 < begin < nodes.steps:
        raise ValueError(f"begin={begin!r} is not possible; the search begins at a node from 1 to {nodes.steps - 1}")
    if not 0 < back <= begin:
        raise ValueError(f"back={back!r} is not possible; from node {begin} it is 1 to {begin} steps up")
    if not forward > back:
        raise ValueError(f"forward={forward!r} is not possible; a round must come farther than back={back} steps")
    carry, fresh = ddim_coefficients(nodes, 0.0)
    program, rows, queries = Program(nodes), list[int](), 0
    x = program.state
    for i in range(begin):
        x = ddim_step(program, i, x, carry[i], fresh[i])
        queries += 1
    here = begin
    while here < nodes.steps:
        program.query(x, here)  # for the reward alone
        rows.append(queries)
        queries += 1
        start, here = here - back, min(here - back + forward, nodes.steps)
        x = renoise(program, x, nodes.level(start + back), nodes.level(start))
        for i in range(start, here):
            x = ddim_step(program, i, x, carry[i], fresh[i])
            queries += 1
    options = {"begin": begin, "back": back, "forward": forward}
    return replace(program.finish(x), method="path-search", options=options), rows
