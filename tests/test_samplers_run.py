"""The run loop: counted calls, types, shapes, determinism, hooks, gradients, clear failures."""

import itertools
from typing import Any

import pytest
import torch
from torch import Tensor

from pathline.interpolants import (
    PREDICTIONS,
    CosinePath,
    DiscretePath,
    EDMPath,
    GaussianMixture,
    GaussianPath,
    LinearPath,
    VPPath,
)
from pathline.samplers import (
    ClassifierFree,
    Hook,
    NonFiniteError,
    Result,
    RunState,
    StepInfo,
    build_table,
    grid_info,
    list_grids,
    make_nodes,
    method_info,
    plan,
    run,
    sample,
)
from support.problems import gaussian_methods

PATHS = [LinearPath(), CosinePath(), VPPath(), EDMPath(), DiscretePath.scaled_linear()]
TARGET = GaussianMixture([0.6, 0.4], [[1.0, -0.5, 0.3], [-1.0, 0.7, 0.0]], std=[0.3, 0.2], classes=[0, 1])
METHODS = [(name, case.options) for name in gaussian_methods() for case in method_info(name).cases]


def start(path: GaussianPath, batch: int = 4, dtype: torch.dtype = torch.float64) -> Tensor:
    return path.prior((batch, 3), torch.Generator().manual_seed(0), dtype=dtype)


class Counter:
    def __init__(self, model: Any) -> None:
        self.model, self.calls = model, 0

    def __call__(self, x: Tensor, t: Tensor, **kwargs: Any) -> Tensor:
        assert t.shape == (len(x),)
        assert t.dtype == (torch.float64 if x.dtype == torch.float64 else torch.float32)
        self.calls += 1
        return self.model(x, t, **kwargs)


@pytest.mark.parametrize(("method", "options"), METHODS, ids=str)
def test_steps_1_to_50_are_finite_and_counted(method: str, options: dict[str, Any]) -> None:
    for path, steps in itertools.product(PATHS[:1] + PATHS[2:3], [*range(1, 13), 20, 35, 50]):
        model = Counter(TARGET.as_model(path))
        last: list[StepInfo] = []
        result = sample(
            model, start(path, 2), path=path, method=method, steps=steps, full=True, callback=last.append, **options
        )
        assert isinstance(result, Result)
        assert model.calls == result.evaluations == result.table.evaluations
        assert result.sample.isfinite().all()
        assert last[-1].output is not None
        if method not in ("lms", "dc-solver"):  # order kept to noise 0; the last output is moved
            data = last[-1].output if last[-1].form == "data" else last[-1].state
            assert torch.allclose(result.sample, data, atol=1e-12)


@pytest.mark.parametrize("method", gaussian_methods())
def test_any_grid_on_any_path(method: str) -> None:
    grids = [grid for grid in list_grids() if not grid_info(grid).requires]
    for path, grid in itertools.product(PATHS, grids):
        x = sample(TARGET.as_model(path), start(path), path=path, method=method, steps=6, grid=grid)
        assert isinstance(x, Tensor)
        assert x.isfinite().all()


@pytest.mark.parametrize("prediction", PREDICTIONS)
@pytest.mark.parametrize("path", PATHS, ids=lambda p: p.name)
def test_any_prediction_gives_the_same_samples(path: GaussianPath, prediction: str) -> None:
    """One table, five parametrisations of one network; noise and score cannot start at signal 0."""
    pure = float(path.signal(0.0)) == 0.0
    for method in gaussian_methods():
        wanted = sample(TARGET.as_model(path), start(path), path=path, method=method, steps=5, prediction="data")
        arguments: dict[str, Any] = {"path": path, "method": method, "steps": 5, "prediction": prediction}
        if pure and prediction in ("noise", "score"):
            model = Counter(TARGET.as_model(path, prediction))
            with pytest.raises(ValueError, match=f"which a {prediction} prediction cannot"):
                sample(model, start(path), **arguments)
            assert model.calls == 0
        else:
            x = sample(TARGET.as_model(path, prediction), start(path), **arguments)
            assert isinstance(x, Tensor)
            assert torch.allclose(x, wanted, atol=1e-7 if path.name == "edm" else 1e-9)


def test_same_nodes_same_numbers_on_vp_and_flow() -> None:
    """A sampler sees signal/noise only: VP and linear runs from the same λ agree after rescaling."""
    vp, flow = VPPath(), LinearPath()
    nodes = make_nodes(vp, "karras", 6)
    times = flow.time_at(torch.tensor(nodes.lam))
    for method in ("ddim", "dpm++", "unipc", "ipndm", "exp-adams"):
        a = run(build_table(method, nodes), TARGET.as_model(vp), start(vp))
        scale = float(flow.noise(times[0])) / nodes.noise[0]
        mirrored = make_nodes(flow, times.tolist())
        b = run(build_table(method, mirrored), TARGET.as_model(flow), start(vp) * scale)
        assert torch.allclose(a, b, atol=1e-10)


@pytest.mark.parametrize("shape", [(1, 3), (2, 5, 3), (2, 3, 4, 6), (1, 2, 3, 4, 5)])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
def test_shapes_and_types(shape: tuple[int, ...], dtype: torch.dtype) -> None:
    seen = set()

    def model(x: Tensor, t: Tensor) -> Tensor:
        seen.add((x.dtype, t.dtype, x.shape))
        return 0.5 * torch.tanh(x)

    x = torch.randn(shape, generator=torch.Generator().manual_seed(1), dtype=torch.float32).to(dtype)
    kept = x.clone()
    for method in gaussian_methods():
        out = sample(model, x, path=LinearPath(), method=method, steps=4)
        assert isinstance(out, Tensor)
        assert out.dtype == dtype
        assert out.shape == shape
        assert out.isfinite().all()
    assert torch.equal(x, kept)
    assert seen == {(dtype, torch.float64 if dtype == torch.float64 else torch.float32, torch.Size(shape))}


def test_any_batch_split_gives_the_same_samples() -> None:
    path = VPPath()
    model, x = TARGET.as_model(path), start(path, 7)
    whole = sample(model, x, path=path, method="ddim", eta=1.0, steps=6, seed=5)
    chunks = sample(model, x, path=path, method="ddim", eta=1.0, steps=6, seed=5, chunk_size=2)
    tail = sample(model, x[3:], path=path, method="ddim", eta=1.0, steps=6, seed=5, sample_offset=3)
    other = sample(model, x, path=path, method="ddim", eta=1.0, steps=6, seed=6)
    assert torch.allclose(whole, chunks, atol=1e-13)
    assert torch.allclose(whole[3:], tail, atol=1e-13)
    assert not torch.allclose(whole, other, atol=1e-3)


def test_generator_gives_the_seed_and_global_state_is_untouched() -> None:
    path = VPPath()
    before = torch.get_rng_state()
    runs = [
        sample(
            TARGET.as_model(path),
            start(path),
            path=path,
            method="ddim",
            eta=0.7,
            steps=4,
            seed=torch.Generator().manual_seed(s),
        )
        for s in (1, 1, 2)
    ]
    assert torch.equal(runs[0], runs[1])
    assert not torch.equal(runs[0], runs[2])
    assert torch.equal(before, torch.get_rng_state())


@pytest.mark.parametrize("method", gaussian_methods())
@pytest.mark.parametrize("nfe", [2, 3, 4, 7, 10])
def test_nfe_is_an_upper_bound(method: str, nfe: int) -> None:
    for afs in (False, True):
        table = plan(VPPath(), method, nfe=nfe, afs=afs)
        assert table.evaluations <= nfe
        at_once = {"restart": nfe, "runge-kutta": 3}.get(method, 1)  # calls that only come together
        assert table.evaluations >= nfe - at_once


def test_analytic_first_step_saves_one_call() -> None:
    path = VPPath()
    for method, kind in itertools.product(gaussian_methods(), ("unit", "zero", "gaussian")):
        model = Counter(TARGET.as_model(path))
        anchors = {"data_mean": torch.zeros(3)} if kind == "gaussian" else None
        sample(model, start(path), path=path, method=method, steps=5, afs=kind, anchors=anchors)
        plain = plan(path, method, steps=5).evaluations
        assert model.calls == plain - 1


def test_analytic_first_step_is_the_published_estimate() -> None:
    """Unit: ε = x/√(signal² + noise²); gaussian: exact for point-mass data."""
    path = VPPath()
    table = plan(path, "ipndm", steps=5, afs=True)
    level = table.rows[0].level
    assert table.rows[0].estimate == ((0, pytest.approx(1 / (level.signal**2 + level.noise**2) ** 0.5)),)
    point = GaussianMixture([1.0], [[0.3, 0.1, 0.0]], std=[1e-6]).as_model(path)
    anchors = {"data_mean": torch.tensor([0.3, 0.1, 0.0])}
    a = sample(point, start(path), path=path, steps=5)
    b = sample(point, start(path), path=path, steps=5, afs="gaussian", anchors=anchors)
    assert torch.allclose(a, b, atol=1e-8)


def test_classifier_free_guidance() -> None:
    path = LinearPath()
    model, labels = TARGET.as_model(path), torch.tensor([0, 1, 0, 1])
    free = {"labels": torch.full((4,), -1)}

    def guided(scale: float, batched: bool = True, chunk: int | None = None) -> Tensor:
        out = sample(
            Counter(model),
            start(path),
            path=path,
            steps=5,
            model_kwargs={"labels": labels},
            guidance=ClassifierFree(scale, {"labels": torch.full((chunk or 4,), -1)}, batched),
            chunk_size=chunk,
        )
        assert isinstance(out, Tensor)
        return out

    assert torch.allclose(guided(3.0), guided(3.0, batched=False), atol=1e-12)
    assert torch.allclose(guided(3.0), guided(3.0, chunk=2), atol=1e-12)
    assert torch.equal(guided(1.0), sample(model, start(path), path=path, steps=5, model_kwargs={"labels": labels}))
    assert torch.allclose(guided(0.0), sample(model, start(path), path=path, steps=5, model_kwargs=free), atol=1e-12)
    counter = Counter(model)
    result = sample(
        counter,
        start(path),
        path=path,
        steps=5,
        model_kwargs={"labels": labels},
        guidance=ClassifierFree(3.0, free),
        full=True,
    )
    assert isinstance(result, Result)
    assert result.evaluations == counter.calls == 5


class Reverse(Hook):
    """Turns the batch round after row 2."""

    def after_row(self, run: RunState) -> None:
        if run.row == 2:
            run.gather(torch.arange(len(run.samples) - 1, -1, -1))


def test_gather_reindexes_every_register_and_condition() -> None:
    path = VPPath()
    arguments: dict[str, Any] = {"path": path, "method": "unipc", "steps": 7}
    labels = torch.tensor([0, 1, 1, 0])
    plain = sample(TARGET.as_model(path), start(path), model_kwargs={"labels": labels}, **arguments)
    turned = sample(TARGET.as_model(path), start(path), model_kwargs={"labels": labels}, hooks=[Reverse()], **arguments)
    assert torch.allclose(turned, plain.flip(0), atol=1e-13)


def test_noise_keys_stay_with_the_slot_when_particles_are_cloned() -> None:
    class Clone(Hook):
        def after_row(self, run: RunState) -> None:
            if run.row == 1:
                run.gather(torch.zeros(len(run.samples), dtype=torch.int64))

    path = VPPath()
    x = sample(TARGET.as_model(path), start(path), path=path, method="ddim", eta=1.0, steps=6, hooks=[Clone()])
    assert isinstance(x, Tensor)
    assert len(torch.unique(x[:, 0])) == len(x)


def test_hooks_change_query_and_output() -> None:
    class Clip(Hook):
        def after_model(self, run: RunState, query: Tensor, output: Tensor) -> Tensor:
            return output.clamp(-0.1, 0.1)

    path = VPPath()
    x = sample(TARGET.as_model(path), start(path), path=path, steps=5, hooks=[Clip()])
    assert isinstance(x, Tensor)
    assert float(x.abs().max()) <= 0.1


def test_gradients_flow_through_a_run() -> None:
    path = LinearPath()
    x = start(path, 2).requires_grad_()

    def through(x: Tensor) -> Tensor:
        out = sample(TARGET.as_model(path), x, path=path, method="unipc", steps=4, differentiable=True)
        assert isinstance(out, Tensor)
        return out

    assert torch.autograd.gradcheck(through, (x,))
    assert not sample(TARGET.as_model(path), x, path=path, steps=3).requires_grad


def test_nan_names_row_time_and_norms() -> None:
    path = VPPath()
    table = plan(path, "dpm++", steps=5)

    def broken(x: Tensor, t: Tensor) -> Tensor:
        return torch.where(t[:, None] > table.rows[2].level.time - 1e-6, torch.nan, x)

    with pytest.raises(NonFiniteError, match=r"at row 2 of 5 \(time 0\.\d+.*‖D₂‖ = nan"):
        sample(broken, start(path), path=path, method="dpm++", steps=5)


def test_callback_and_progress(capsys: pytest.CaptureFixture[str]) -> None:
    path = LinearPath()
    steps: list[StepInfo] = []
    sample(TARGET.as_model(path), start(path), path=path, method="heun", steps=3, callback=steps.append, progress=True)
    assert [s.row for s in steps] == [0, 1, 2, 3, 4]
    assert all(s.rows == 5 for s in steps)
    assert "5/5" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("x", "arguments", "message"),
    [
        (torch.tensor(1.0), {}, r"shape \(B, ...\) with B ≥ 1"),
        (torch.zeros(0, 3), {}, r"got \(0, 3\)"),
        (torch.full((1, 3), torch.nan), {}, "NaN or infinite"),
        (torch.zeros(1, 3), {"guidance": 2.0}, "pass ClassifierFree"),
        (torch.zeros(1, 3), {"nfe": 3.5}, "nfe=3.5 is not possible; it must be a whole number"),
    ],
)
def test_bad_starts_are_refused_before_any_call(x: Tensor, arguments: dict[str, Any], message: str) -> None:
    model = Counter(TARGET.as_model(VPPath()))
    with pytest.raises(ValueError, match=message):
        sample(model, x, path=VPPath(), **arguments)
    assert model.calls == 0


def test_guidance_names_a_missing_condition() -> None:
    guidance = ClassifierFree(2.0, {"labels": torch.zeros(4)})
    with pytest.raises(ValueError, match=r"replaces \['labels'\], which model_kwargs does not hold"):
        sample(TARGET.as_model(VPPath()), start(VPPath()), path=VPPath(), guidance=guidance)


@pytest.mark.parametrize("bad", ["shape", "type", "init", "anchor"])
def test_wrong_shapes_and_types(bad: str) -> None:
    path = VPPath()
    table = plan(path, "ddim", steps=3)
    if bad == "shape":
        with pytest.raises(ValueError, match=r"returned shape \(4, 1\) for an input of shape \(4, 3\)"):
            run(table, lambda x, t: x[:, :1], start(path))
    elif bad == "type":
        with pytest.raises(TypeError, match="must return a tensor, got tuple"):
            run(table, lambda x, t: (x,), start(path))  # type: ignore[arg-type, return-value]
    elif bad == "init":
        with pytest.raises(ValueError, match="floating-point tensor"):
            run(table, lambda x, t: x, torch.ones(2, 3, dtype=torch.int64))
    else:
        with pytest.raises(ValueError, match=r"unknown \['source'\]"):
            run(table, lambda x, t: x, start(path), anchors={"source": torch.zeros(3)})
