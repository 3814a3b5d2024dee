"""What may be chosen for a run of few calls: the rule of every step, the levels and the first step (S³, USF).

A rule is any deterministic method with one call per step, with its options: its order, data or noise prediction,
predictor or predictor-corrector, Taylor, multistep or momentum form are thereby choices for each step.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from pathline.interpolants import GaussianPath, unknown_name

from ..grids import make_nodes
from ..nodes import Nodes, points_at, times_at
from ..numerics import Array
from ..registry import build_table, method_info
from ..table import Table
from ..transforms import AFS_KINDS, analytic_first_step
from .splice import splice, taylor
from .untuned import STARTS

GRIDS = (*STARTS, "shifted")
"""Grids whose levels a search starts from."""
APART = 0.05
"""Least distance of two levels in λ."""


@dataclass(frozen=True)
class Rule:
    """How one step is made.

    Attributes
    ----------
    method : str
        A name of `list_methods()`, or "taylor" for `splice.taylor`.
    options : mapping of JSON values
    """

    method: str
    options: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.method != "taylor":
            known = method_info(self.method).options
            for key in self.options:
                if key not in known:
                    raise unknown_name(f"option of method {self.method!r}", key, known)

    def build(self, nodes: Nodes) -> Table:
        """The whole table of this rule; errors as `build_table` and `taylor`."""
        if self.method == "taylor":
            return taylor(nodes, **self.options)
        return build_table(self.method, nodes, **self.options)

    def __str__(self) -> str:
        return ":".join([self.method, ",".join(f"{k}={v}" for k, v in self.options.items())]).rstrip(":")


RULES = (
    Rule("ddim"),
    Rule("ipndm", {"order": 2}),
    Rule("ipndm", {"order": 3}),
    Rule("ipndm", {"order": 4}),
    Rule("ghvb", {"order": 2.5}),
    Rule("deis", {"order": 3}),
    Rule("unipc", {"order": 2, "lower_order_final": False}),
    Rule("unipc", {"order": 3, "lower_order_final": False}),
    Rule("taylor", {"order": 2}),
    Rule("taylor", {"order": 2, "relaxation": "midpoint"}),
    Rule("taylor", {"order": 2, "points": 3}),
    Rule("taylor", {"order": 3}),
    Rule("taylor", {"order": 2, "form": "noise"}),
    Rule("taylor", {"order": 2, "form": "noise", "relaxation": "half"}),
    Rule("taylor", {"order": 3, "form": "noise"}),
    Rule("taylor", {"order": 2, "corrector": 2}),
)
"""Rules that a search chooses from by default."""


@dataclass(frozen=True)
class Decisions:
    """One point of a `DecisionSpace`.

    Attributes
    ----------
    lam : tuple of float
        λ of the nodes between the path's start and the clean end, increasing.
    rules : tuple of int
        For every step the place of its rule in the space.
    afs : int
        Place of the first step in the space.
    """

    lam: tuple[float, ...]
    rules: tuple[int, ...]
    afs: int = 0

    def content(self) -> dict[str, Any]:
        """As JSON values."""
        return {"lam": list(self.lam), "rules": list(self.rules), "afs": self.afs}

    @staticmethod
    def of(content: Mapping[str, Any]) -> Decisions:
        """From what `content` gave."""
        return Decisions(tuple(content["lam"]), tuple(content["rules"]), content["afs"])


@dataclass(frozen=True)
class DecisionSpace:
    """All runs of `nfe` calls that a search may choose from.

    Attributes
    ----------
    path : GaussianPath
    nfe : int ≥ 1
        Calls; an analytic first step makes a step more.
    rules : sequence of Rule
    afs : sequence of False, "unit" or "zero"
        First steps: a call, or an estimate of it.

    Raises
    ------
    ValueError
        nfe below 1, no rules, an unknown first step, a rule that cannot give single steps on this path.
    """

    path: GaussianPath
    nfe: int
    rules: Sequence[Rule] = RULES
    afs: Sequence[bool | str] = (False, "unit")

    def __post_init__(self) -> None:
        if self.nfe < 1:
            raise ValueError(f"nfe={self.nfe!r} is not possible; at least 1 call is needed")
        if not self.rules or not self.afs:
            raise ValueError("rules and afs of a decision space must hold at least one entry each")
        allowed = (False, *(kind for kind in AFS_KINDS if kind != "gaussian"))
        for kind in self.afs:
            if kind not in allowed:
                raise ValueError(f"afs={kind!r} is not possible in a decision space; allowed: {allowed}")
        for k in range(len(self.rules)):
            self.table(Decisions(self.start_levels("logsnr", 0), (k,) * self.steps(0)))

    def steps(self, afs: int) -> int:
        """Steps of a run with that first step."""
        return self.nfe + bool(self.afs[afs])

    def start_levels(self, grid: str, afs: int) -> tuple[float, ...]:
        """λ between the ends on a named grid."""
        lam = make_nodes(self.path, grid, self.steps(afs)).lam[1:-1]
        return self.spread(lam)

    def spread(self, lam: Array | Sequence[float]) -> tuple[float, ...]:
        """λ in order, `APART` from each other, and within the path's range."""
        low, high = self.path.lambda_min, self.path.lambda_max
        values = np.sort(np.asarray(lam, dtype=np.float64))
        for i in range(len(values)):
            values[i] = max(values[i], (values[i - 1] if i else low) + APART)
        for i in range(len(values) - 1, -1, -1):
            values[i] = min(values[i], high - APART * (len(values) - 1 - i))
        return tuple(float(v) for v in values)

    def nodes(self, decisions: Decisions) -> Nodes:
        """The nodes of a run, from the path's start to the clean end."""
        times = times_at(self.path, np.array([float(self.path.lam(0.0)), *decisions.lam]))
        times[0] = 0.0
        signal, noise, _, _ = points_at(self.path, times)
        return Nodes(np.append(signal, 1.0), np.append(noise, 0.0), np.append(times, 1.0), self.path)

    def table(self, decisions: Decisions) -> Table:
        """The run as a table, method "decisions".

        Raises
        ------
        ValueError
            Numbers of levels or rules that do not fit each other, or places outside of the space.
        """
        steps = self.steps(decisions.afs)
        if len(decisions.rules) != steps or len(decisions.lam) != steps - 1:
            raise ValueError(
                f"decisions have {len(decisions.rules)} rules and {len(decisions.lam)} levels; "
                f"{steps} steps need {steps} and {steps - 1}"
            )
        nodes = self.nodes(decisions)
        built = {k: self.rules[k].build(nodes) for k in sorted(set(decisions.rules))}
        table = splice(nodes, [built[k] for k in decisions.rules])
        kind = self.afs[decisions.afs]
        if kind:
            table = analytic_first_step(table, "unit" if kind is True else str(kind))
        return replace(table, method="decisions", options={"steps": self.words(decisions), "afs": kind})

    def words(self, decisions: Decisions) -> list[str]:
        """The rule of every step by its name."""
        return [str(self.rules[k]) for k in decisions.rules]

    def config(self) -> dict[str, Any]:
        """What a saved search compares, as JSON values."""
        rules = [[rule.method, dict(rule.options)] for rule in self.rules]
        return {"path": repr(self.path), "nfe": self.nfe, "rules": rules, "afs": list(self.afs)}

    # --- random choices -------------------------------------------------------------------------------------

    def uniform(self, grid: str, rule: int, afs: int) -> Decisions:
        """One rule for all steps on a named grid."""
        return Decisions(self.start_levels(grid, afs), (rule,) * self.steps(afs), afs)

    def random(self, rng: np.random.Generator) -> Decisions:
        """A rule for every step by lot, on a named grid moved a little."""
        afs = int(rng.integers(len(self.afs)))
        rules = tuple(int(k) for k in rng.integers(len(self.rules), size=self.steps(afs)))
        start = Decisions(self.start_levels(str(rng.choice(GRIDS)), afs), rules, afs)
        return self.mutated(start, rng, rate=0.0)

    def mutated(self, parent: Decisions, rng: np.random.Generator, *, rate: float = 0.25) -> Decisions:
        """Every rule by another with probability `rate`; levels moved by a normal of random size, often none or one."""
        rules = tuple(int(rng.integers(len(self.rules))) if rng.random() < rate else k for k in parent.rules)
        lam = np.array(parent.lam)
        low, high = self.path.lambda_min, self.path.lambda_max
        size = (high - low) * 10.0 ** rng.uniform(-2.5, -1.0)
        moved = rng.random(len(lam)) < rng.choice([0.0, 0.3, 1.0])
        return Decisions(self.spread(lam + moved * size * rng.standard_normal(len(lam))), rules, parent.afs)

    def crossed(self, first: Decisions, second: Decisions, rng: np.random.Generator) -> Decisions:
        """Rules and levels of each step from either parent; those of the first where their steps differ in number."""
        if len(first.rules) != len(second.rules):
            return first
        rules = tuple(b if rng.random() < 0.5 else a for a, b in zip(first.rules, second.rules, strict=True))
        share = float(rng.choice([0.0, 0.5, 1.0]))
        lam = (1.0 - share) * np.array(first.lam) + share * np.array(second.lam)
        return Decisions(self.spread(lam), rules, first.afs)
