"""What a pipeline changes in mid-run, and half precision."""

from typing import Any

import numpy as np
import pytest
import torch

from pathline.samplers import from_diffusers, run
from pathline.samplers.schedulers import EulerScheduler, PathlineScheduler, UniPCScheduler
from pathline.samplers.schedulers.calls import correct_from_query
from support.schedulers import BETAS, METHODS, latents, make, network, point_mass, steps_over


@pytest.mark.parametrize("family", ["betas", "flow"])
@pytest.mark.parametrize("method", METHODS)
def test_corrected_states_start_from_the_query(family: str, method: str) -> None:
    """The rewritten table is the same table."""
    scheduler = make(family, method=method, seed=0)
    scheduler.set_timesteps(6)
    model = from_diffusers(network, scheduler)
    first, second = (
        run(table, model, latents(), prediction=model.prediction)
        for table in (scheduler.table, correct_from_query(scheduler.table))
    )
    torch.testing.assert_close(first, second, rtol=1e-10, atol=1e-10 * float(first.abs().max()))


@pytest.mark.parametrize("in_place", [False, True])
@pytest.mark.parametrize("method", ["ddim", "dpm++", "unipc", "exp-adams", "ipndm", "heun", "euler"])
def test_an_edit_moves_the_state_and_what_corrects_it(method: str, in_place: bool) -> None:
    """On constant outputs a state shifted by e at one level is shifted by e·noise'/noise at the next.

    UniPC's corrector would drop the edit if it were added to the query alone.
    """
    scheduler = make("flow", method=method, options={"order": 1} if method == "ipndm" else {})
    scheduler.set_timesteps(6)
    data, edit, at = torch.zeros(2, 3), torch.full((2, 3), 0.25), 3 if method != "heun" else 4
    ends = []
    for change in (0.0, 1.0):
        scheduler.set_timesteps(6)
        x = torch.ones(2, 3)
        for k, t in enumerate(scheduler.timesteps[: at + 1]):
            if k == at:
                level = float(scheduler.sigmas[k])
                x = x.add_(change * edit) if in_place else x + change * edit
            x = scheduler.step(point_mass(scheduler, data, x, t), t, x).prev_sample
        ends.append(x)
    if method == "heun":  # the edited query is the second one of its step
        expected = ends[1] - ends[0]
        assert float(expected.abs().max()) < float(edit.max())
        return
    shrink = float(scheduler.sigmas[at + 1]) / level
    torch.testing.assert_close(ends[1] - ends[0], edit * shrink, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("method", ["unipc", "dpm++", "heun"])
def test_inpainting_ends_in_the_known_region(method: str) -> None:
    scheduler = make("betas", method=method)
    known, mask = latents(7), torch.zeros(1, 1, 4, 4, dtype=torch.float64)
    mask[..., :2] = 1
    noise = latents(8)
    scheduler.set_timesteps(9)
    x = noise.clone()
    for k, t in enumerate(scheduler.timesteps):
        x = scheduler.step(network(x, t), t, x, return_dict=False)[0]
        last = k + 1 == len(scheduler.timesteps)
        proper = known if last else scheduler.add_noise(known, noise, scheduler.timesteps[k + 1 : k + 2])
        x = mask * proper + (1 - mask) * x
    assert torch.equal(x * mask, known * mask)
    assert torch.isfinite(x).all()


def test_cutting_frames_in_mid_run_is_followed_by_the_history() -> None:
    """A video pipeline keeps two frames of latents and of the scheduler's history."""
    scheduler = UniPCScheduler()
    full = torch.randn(1, 2, 5, 3, 3, generator=torch.Generator().manual_seed(0))
    for cut in (False, True):
        scheduler.set_timesteps(8)
        x = full[:, :, [0, -1]] if not cut else full
        for k, t in enumerate(scheduler.timesteps):
            if cut and k == 4:
                x = x[:, :, [0, -1]]
                for j in range(len(scheduler.model_outputs)):
                    if scheduler.model_outputs[j] is not None and scheduler.model_outputs[j].shape != x.shape:
                        scheduler.model_outputs[j] = scheduler.model_outputs[j][:, :, [0, -1]]
                if scheduler.last_sample is not None:
                    raise AssertionError
            x = scheduler.step(torch.tanh(x), t, x, return_dict=False)[0]
        if not cut:
            expected = x
    torch.testing.assert_close(x, expected)


def test_the_history_shows_data_predictions_and_takes_them_back() -> None:
    """A run keeps past outputs up to a factor; what it shows and is given are the outputs themselves."""
    ends = []
    for replaced in (False, True):
        scheduler = make("betas", method="dpm++")
        scheduler.set_timesteps(6)
        x = latents()
        for k, t in enumerate(scheduler.timesteps):
            out = scheduler.step(network(x, t), t, x)
            x = out.prev_sample
            if k == 2:
                (shown,) = scheduler.model_outputs
                torch.testing.assert_close(shown, out.pred_original_sample, rtol=1e-12, atol=1e-12)
                if replaced:
                    scheduler.model_outputs[0] = shown.clone()
        ends.append(x)
    torch.testing.assert_close(*ends, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("family", ["betas", "flow"])
@pytest.mark.parametrize("method", METHODS)
def test_particles_resampled_in_mid_run(method: str, family: str) -> None:
    """Particles that change places: with a step of one call and no history they go on as the others would have."""
    ends = []
    for places in ([0, 1, 2], [2, 0, 0]):
        scheduler = make(family, method=method, seed=3)
        scheduler.set_timesteps(6)
        x = latents(batch=3)
        for k, t in enumerate(scheduler.timesteps):
            x = x[places] if k == 3 else x
            x = scheduler.step(network(x, t), t, x, return_dict=False)[0]
        ends.append(x)
    assert torch.isfinite(ends[1]).all()
    if method in ("ddim", "euler"):
        torch.testing.assert_close(ends[1], ends[0][[2, 0, 0]], rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_a_terminal_sigma_assigned_in_place_is_obeyed(mode: Any) -> None:
    with mode():
        check_terminal_sigma()


def check_terminal_sigma() -> None:
    scheduler = EulerScheduler()
    scheduler.set_timesteps(sigmas=np.linspace(1, 0.25, 4))
    scheduler.sigmas[-1] = 0.125
    x = steps_over(scheduler, latents(), scheduler.timesteps)
    scheduler.set_timesteps(sigmas=np.linspace(1, 0.25, 4))
    y = steps_over(scheduler, latents(), scheduler.timesteps[:3])
    expected = y + (0.125 - 0.25) * network(y, scheduler.timesteps[3])
    torch.testing.assert_close(x, expected)
    scheduler.set_timesteps(sigmas=np.linspace(1, 0.25, 4))
    scheduler.sigmas[-1] = scheduler.sigmas[-2]  # a last step of length zero
    torch.testing.assert_close(steps_over(scheduler, latents(), scheduler.timesteps), y)
    scheduler.set_timesteps(sigmas=np.linspace(1, 0.25, 4))
    scheduler.sigmas[1] = 0.6
    with pytest.raises(ValueError, match="only the last sigma"):
        scheduler.step(latents(), scheduler.timesteps[0], latents())


@pytest.mark.parametrize("steps", [50, 200])
@pytest.mark.parametrize("method", ["euler", "unipc", "dpm++"])
def test_half_precision_keeps_the_rounding_remainder(steps: int, method: str) -> None:
    """Constant velocity in bfloat16: without the remainder the error is 0.045 at 50 steps and 0.21 at 200."""
    noise, data = torch.randn(2, 1, 4, 32, 32, generator=torch.Generator().manual_seed(0))
    scheduler = PathlineScheduler(pathline={"method": method})
    scheduler.set_timesteps(steps)
    velocity = (noise - data).to(torch.bfloat16)
    start = noise.to(torch.bfloat16)
    x = start
    for t in scheduler.timesteps:
        x = scheduler.step(velocity, t, x, return_dict=False)[0]
        assert x.dtype == torch.bfloat16
    error = x.float() - (start.float() - velocity.float())
    assert float(error.square().mean().sqrt()) < 0.0025


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
@pytest.mark.parametrize("how", ["copy", "wide", "in_place"])
def test_the_remainder_survives_harmless_edits(how: str, mode: Any) -> None:
    with mode():
        check_remainder(how)


def check_remainder(how: str) -> None:
    """Copies, casts and edits elsewhere in the image must not throw the remainder away."""
    noise, data = torch.randn(2, 1, 4, 32, 32, generator=torch.Generator().manual_seed(0))
    scheduler = EulerScheduler()
    scheduler.set_timesteps(200)
    velocity, x = (noise - data).to(torch.bfloat16), noise.to(torch.bfloat16)
    expected = (x.float() - velocity.float())[..., 1:]
    for t in scheduler.timesteps:
        x = scheduler.step(velocity, t, x, return_dict=False)[0]
        if how == "copy":
            x = x.clone()
        elif how == "wide":
            x = x.float()
        else:
            x[..., 0] = 0.5
    error = x.float()[..., 1:] - expected
    assert float(error.square().mean().sqrt()) < 0.0025


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_results_have_the_dtype_of_the_network(dtype: torch.dtype) -> None:
    scheduler = UniPCScheduler(**BETAS)
    scheduler.set_timesteps(4)
    x = latents().float()
    for t in scheduler.timesteps:
        out = scheduler.step(x.to(dtype), t, x)
        assert out.prev_sample.dtype == out.pred_original_sample.dtype == dtype
        assert scheduler.pred_original_sample is out.pred_original_sample
        x = out.prev_sample
