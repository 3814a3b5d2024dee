"""Descent on what a student may change, judged on trajectories that are kept out of it.

A step costs three runs of its samples at most: forwards, backwards (counted as one more run, since only derivatives by
states are taken and none by the network's parameters), and, where starts are relaxed, once more to see whether the
moved starts are better. The graph of one chunk of samples is held at a time.
"""

from __future__ import annotations

import hashlib
import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import torch
from torch import Tensor

from ..nodes import Level, points_at, times_at
from ..numerics import Array
from .extractor import Extractor, digest_of
from .kept_state import DescentState
from .row_fits import Reference
from .student import Numbers, Student, walk

LOSSES = ("end", "trajectory", "log")
_TINY = 1e-24  # below which a mean square has no derivative worth having
_STEP = 1e-3  # in λ, of the difference that gives the slope of a reference
_MOVE = 0.25  # of the radius, by which a start moves in one step
_LAST = 3  # how often the rates fall before the descent ends
_CLIP = 1.0
_LOWEST = 0.05


@dataclass(frozen=True)
class Schedule:
    """How to descend.

    Attributes
    ----------
    phases : sequence of (rounds, names)
        Each round sees every training sample once; only parameters of these names move.
    rates : mapping of name to float
        Learning rate (Adam) of each at the start of a phase; it falls to a twentieth along a cosine.
    batch : int
        Samples of one step.
    patience : int
        Rounds without a better hold-out, after which the best point is taken up again at lower rates; after the third
        time the descent ends.
    decay : float
        By which the rates fall.
    radius : float
        Of the ball in which starts may move, in the norm of unit noise; 0 keeps them.
    seed : int
        Orders the batches.
    """

    phases: Sequence[tuple[int, tuple[str, ...]]]
    rates: Mapping[str, float]
    batch: int = 8
    patience: int = 2
    decay: float = 0.5
    radius: float = 0.0
    seed: int = 0


@dataclass(eq=False)
class Learner:
    """What is changed, and how it is measured.

    Attributes
    ----------
    student : Student
    train, held : Reference
    names : what moves: "levels", "labels", "rows"
    loss : {"end", "trajectory", "log"}
        Per sample: the RMSE per value of the end; its mean with those of the states of all calls; the logarithm of the
        mean square (PSNR).
    extractor : Extractor, optional
        Its features take the place of the values in which the end is compared.
    directions : N + 1 matrices (weights of a row, parameters of a row)
        What a unit of each parameter "rows" adds to a row; no columns for a row that is not learned.
    ridge : float
        Weight of the mean square of the parameters "rows", as a share of the loss at the base.
    """

    student: Student
    train: Reference
    held: Reference
    names: tuple[str, ...]
    loss: str = "end"
    extractor: Extractor | None = None
    directions: Sequence[Array] = ()
    ridge: float = 0.0
    parameters: dict[str, Tensor] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    course: list[tuple[float, float]] = field(default_factory=list)
    _wanted: dict[int, list[Tensor]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        student = self.student
        sizes = {"labels": student.calls, "rows": sum(d.shape[1] for d in self.directions)}
        self.parameters = {name: torch.zeros(sizes[name], dtype=torch.float64) for name in self.names if name in sizes}
        if "levels" in self.names:
            self.parameters["levels"] = student.logits()

    def placed(self) -> tuple[Tensor, Tensor]:
        """λ of the nodes and shifts of the labels, as the parameters have them."""
        student, given = self.student, self.parameters
        lam = student.spread(given["levels"]) if "levels" in given else torch.from_numpy(student.start)
        if "labels" not in given:
            return lam, torch.zeros(student.calls, dtype=torch.float64)
        free = torch.from_numpy(student.inner.astype(np.float64))
        return lam, student.most_shift(lam) * torch.tanh(given["labels"]) * free

    def numbers(self) -> Numbers:
        """The run that the parameters give."""
        found = self.student.traced(*self.placed())
        if "rows" not in self.parameters:
            return found
        parts = self.parameters["rows"].split([d.shape[1] for d in self.directions])
        added = (torch.from_numpy(d) @ part for d, part in zip(self.directions, parts, strict=True))
        return found._replace(weights=[w + more for w, more in zip(found.weights, added, strict=True)])

    def losses(self, numbers: Numbers, reference: Reference, rows: Tensor, start: Tensor | None = None) -> Tensor:
        """Loss (b,) of some samples of a reference; costs b·N calls."""
        problem = reference.problem.part(rows, len(reference.start))
        columns = [column[rows] for column in reference.columns()]
        columns[0] = columns[0] if start is None else start
        result, states, _ = walk(numbers, problem, columns)
        if self.extractor is not None:
            return self.extractor.errors(result, [layer[rows] for layer in self._features(reference)])
        squares = _mean_square(result - reference.end[rows])
        if self.loss == "log":
            return torch.log(squares + _TINY)
        errors = [(squares + _TINY).sqrt()]
        if self.loss == "trajectory":
            few = replace(reference, start=reference.start[rows], states=reference.states[:, rows])
            for i in np.flatnonzero(self.student.inner):
                wanted, scale = _followed(few, numbers.lams[i])
                errors.append((_mean_square((states[i] - wanted) / scale.to(wanted)) + _TINY).sqrt())
        return torch.stack(errors).mean(0)

    def judged(self) -> tuple[float, float]:
        """Hold-out: what is to fall (the error, or that of the features), and the mean RMSE per value."""
        with torch.no_grad():
            numbers, batch = self.numbers(), len(self.held.start)
            ends, found = [], []
            for rows, part in self.held.problem.chunks(batch, self.held.chunk):
                result, _, _ = walk(numbers, part, [column[rows] for column in self.held.columns()])
                ends.append(_mean_square(result - self.held.end[rows]).double().sqrt())
                if self.extractor is not None:
                    wanted = [layer[rows] for layer in self._features(self.held)]
                    found.append(self.extractor.errors(result, wanted).double())
        error = float(torch.cat(ends).mean())
        return (float(torch.cat(found).mean()) if found else error), error

    def gradients(
        self, rows: Tensor, names: Sequence[str], shift: Tensor | None
    ) -> tuple[Tensor, list[Tensor], Tensor]:
        """Losses (b,) of some training samples, derivatives of their mean by the named parameters and by their starts.

        Parameters
        ----------
        rows : int Tensor (b,)
        names : of `parameters`
        shift : Tensor like `train.start`, optional
            Added to the starts; without it there are no derivatives by them.
        """
        given = [self.parameters[name].requires_grad_() for name in names]
        numbers = self.numbers()
        totals = [torch.zeros_like(p) for p in given]
        values, moves = [], []
        for part in rows.split(self.train.chunk or len(rows)):
            start = self.train.start[part]
            if shift is not None:
                start = (start + shift[part]).requires_grad_()
            losses = self.losses(numbers, self.train, part, start)
            wanted = given if shift is None else [*given, start]
            found = torch.autograd.grad(losses.sum() / len(rows), wanted, retain_graph=True, allow_unused=True)
            self.train.problem.charge(len(part) * self.student.calls)
            totals = [t if g is None else t + g for t, g in zip(totals, found, strict=False)]
            moves += [] if shift is None else [found[-1]]
            values.append(losses.detach())
        for p in given:
            p.requires_grad_(False)
        return torch.cat(values), totals, torch.cat(moves) if moves else rows.new_zeros(0)

    def relax(self, rows: Tensor, shift: Tensor, before: Tensor, moves: Tensor, radius: float) -> None:
        """Move the shifts of some starts down their loss, within the ball, each only where its loss then falls.

        Parameters
        ----------
        rows : int Tensor (b,)
        shift : Tensor like `train.start`
            Changed in place.
        before, moves : losses (b,) and derivatives by the starts (b, ...), of `gradients`
        radius : float
            In the norm of unit noise.
        """
        radius = radius * self.student.table.start.noise
        shape = (-1, *[1] * (shift.ndim - 1))

        def norm(x: Tensor) -> Tensor:
            return x.flatten(1).norm(dim=1).clamp(min=_TINY).view(shape)

        tried = shift[rows] - _MOVE * radius * moves / norm(moves)
        tried = tried * (radius / norm(tried)).clamp(max=1.0)
        size = self.train.chunk or len(rows)
        with torch.no_grad():
            numbers = self.numbers()
            after = torch.cat(
                [
                    self.losses(numbers, self.train, part, self.train.start[part] + moved)
                    for part, moved in zip(rows.split(size), tried.split(size), strict=True)
                ]
            )
        shift[rows] = torch.where((after < before).view(shape), tried, shift[rows])

    def descend(self, schedule: Schedule, file: str | os.PathLike[str] | None = None) -> None:
        """Move the parameters to their best point on the hold-out; errors of all rounds are added to `course`.

        With a file the state is kept in it after every round; one that is there goes on, and its calls are counted.
        """
        order, problem = torch.Generator().manual_seed(schedule.seed), self.train.problem
        shift = torch.zeros_like(self.train.start) if schedule.radius > 0 else None
        at, began = DescentState.open(file, self._key(schedule)), problem.calls
        if at.course:
            problem.charge(at.calls)
            self._taken_up(at, order, shift)
        else:
            at.best, at.point = self.judged(), self._point()
            at.course = [at.best]
        pull = 2 * self.ridge * (1.0 if self.loss == "log" else at.course[0][0]) / at.course[0][1] ** 2
        while at.phase < len(schedule.phases):
            rounds, names = schedule.phases[at.phase]
            rule = self._rule(names, at.rates or schedule.rates)
            if at.rule:
                rule.load_state_dict(at.rule)
            while at.done < rounds and at.fallen < _LAST:
                for group in rule.param_groups:
                    group["lr"] = group["initial_lr"] * _fallen(at.done / rounds)
                if not self._round(schedule, names, rule, shift, order, pull=pull):
                    self.notes.append(f"stopped after {len(at.course) - 1} rounds: the budget pays for no more")
                    break
                at.course.append(self.judged())
                at.done, at.waited = at.done + 1, at.waited + 1
                if at.course[-1][0] < at.best[0]:
                    at.best, at.point, at.waited = at.course[-1], self._point(), 0
                if at.waited > schedule.patience:
                    self._return(at.point)
                    at.rates = {k: v * schedule.decay for k, v in (at.rates or schedule.rates).items()}
                    at.waited, at.fallen, rule = 0, at.fallen + 1, self._rule(names, at.rates)
                at.parameters, at.rule, at.calls = self._point(), rule.state_dict(), problem.calls - began
                at.order, at.shift = order.get_state(), shift
                at.save(file)
            self._return(at.point)
            at.next_phase()
        self.course += at.course

    def _taken_up(self, at: DescentState, order: torch.Generator, shift: Tensor | None) -> None:
        """Everything as it was when a state was kept."""
        self._return(at.parameters)
        if at.order is not None:
            order.set_state(at.order)
        if shift is not None and at.shift is not None:
            shift.copy_(at.shift)

    def _key(self, schedule: Schedule) -> str:
        """Tells descents apart by all but the network."""
        given = [schedule, self.names, self.loss, self.ridge, self.student.method, dict(self.student.options)]
        given.append(None if self.extractor is None else self.extractor.marker)
        tensors = {"start": self.train.start, "end": self.train.end, "held": self.held.end}
        tensors["levels"] = torch.from_numpy(self.student.start)
        return f"{digest_of(tensors)} {hashlib.sha256(repr(given).encode()).hexdigest()[:16]}"

    def _round(
        self,
        schedule: Schedule,
        names: tuple[str, ...],
        rule: torch.optim.Optimizer,
        shift: Tensor | None,
        order: torch.Generator,
        *,
        pull: float,
    ) -> bool:
        """One pass over the training samples; False where the budget does not pay for it and its judgement."""
        calls, batch = self.student.calls, len(self.train.start)
        if self.train.problem.calls_left < calls * (batch * (2 if shift is None else 3) + len(self.held.start)):
            return False
        for rows in torch.randperm(batch, generator=order).split(schedule.batch):
            before, found, moves = self.gradients(rows, names, shift)
            if shift is not None:
                self.relax(rows, shift, before, moves, schedule.radius)
            for name, gradient in zip(names, found, strict=True):
                pulled = pull * self.parameters[name] if name == "rows" else 0.0
                self.parameters[name].grad = gradient + pulled
            torch.nn.utils.clip_grad_norm_([self.parameters[name] for name in names], _CLIP)
            rule.step()
        return True

    def _rule(self, names: tuple[str, ...], rates: Mapping[str, float]) -> torch.optim.Optimizer:
        return torch.optim.Adam([{"params": [self.parameters[n]], "initial_lr": rates[n]} for n in names])

    def _point(self) -> dict[str, Tensor]:
        return {name: p.detach().clone() for name, p in self.parameters.items()}

    def _return(self, point: Mapping[str, Tensor]) -> None:
        for name, value in point.items():
            self.parameters[name].copy_(value)

    def _features(self, reference: Reference) -> list[Tensor]:
        if id(reference) not in self._wanted:
            assert self.extractor is not None
            with torch.no_grad():
                self._wanted[id(reference)] = self.extractor.of(reference.end)
        return self._wanted[id(reference)]


def _fallen(share: float) -> float:
    """Factor of the rates when this share of a phase is done."""
    return _LOWEST + (1.0 - _LOWEST) * 0.5 * (1.0 + math.cos(math.pi * share))


def _mean_square(difference: Tensor) -> Tensor:
    """Mean square (B,) of each sample's values."""
    return difference.flatten(1).square().mean(1)


def _followed(reference: Reference, lam: Tensor) -> tuple[Tensor, Tensor]:
    """Reference states at a λ and their path's overall scale there, with their slopes by it."""
    path, at = reference.problem.path, float(lam.detach())
    lams = np.array([at - _STEP, at, at + _STEP])
    signal, noise, _, _ = points_at(path, times_at(path, lams))
    scales = np.hypot(signal, noise)
    states = [reference.at(Level(0.0, float(s), float(n))) for s, n in zip(signal, noise, strict=True)]
    moved = (lam - lam.detach()) / (2 * _STEP)
    scale = scales[1] + (scales[2] - scales[0]) * moved
    return states[1] + (states[2] - states[0]) * moved.to(states[1]), scale
