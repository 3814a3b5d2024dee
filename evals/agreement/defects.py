"""Where diffusers' schedulers are wrong: the reason, and a script that shows it with diffusers alone."""

from __future__ import annotations

import contextlib
import io
import warnings
from dataclasses import dataclass

MEASURED_WITH = "0.42.1"
"""The version of diffusers for which every entry below was run."""


@dataclass(frozen=True)
class Defect:
    """One finding.

    Attributes
    ----------
    key, title : str
    classes : schedulers concerned
    reason : what is wrong and what it does
    code : script of at most 15 lines that prints the evidence and asserts it
    """

    key: str
    title: str
    classes: str
    reason: str
    code: str

    def run(self) -> str:
        """Run the script and return what it prints.

        Raises
        ------
        AssertionError
            The installed diffusers does not have the defect.
        """
        from .stock import quiet

        printed = io.StringIO()
        with warnings.catch_warnings(), quiet(), contextlib.redirect_stdout(printed):
            warnings.simplefilter("ignore")
            exec(compile(self.code, f"<{self.key}>", "exec"), {"__name__": self.key})
        return printed.getvalue()


DEFECTS = (
    Defect(
        "sde-third-order",
        "`sde-dpmsolver++` of order 3: wrong sign",
        "DPMSolverMultistep",
        "The weight of the second difference has −½ where +½ belongs, so it tends to −1 instead of 0 with the step. "
        "Order 3 converges with order 1, and its error is larger than that of order 2 at every number of steps.",
        """
import torch
from diffusers import DPMSolverMultistepScheduler
def end(order, steps):  # a network whose data prediction is sin(λ); all draws 0; up to the last level before 0
    s = DPMSolverMultistepScheduler(algorithm_type="sde-dpmsolver++", solver_order=order, prediction_type="sample",
                                    use_exponential_sigmas=True)
    s.set_timesteps(steps)
    x = torch.zeros(1)
    for sigma, t in zip(s.sigmas[:-2], s.timesteps):
        x = s.step(torch.sin(-sigma.log())[None], t, x, variance_noise=0 * x).prev_sample
    return float(x)
exact = (4 * end(2, 400) - end(2, 200)) / 3
errors = {order: [abs(end(order, n) - exact) for n in (25, 50, 100, 200)] for order in (1, 2, 3)}
for order, values in errors.items():
    print("order", order, "errors at 25, 50, 100, 200 steps:", *(f"{v:.1e}" for v in values))
assert 1.8 < errors[3][2] / errors[3][3] < 2.2 and errors[2][2] / errors[2][3] > 3.5
""",
    ),
    Defect(
        "third-order-half",
        "DPM-Solver(++) multistep of order 3: half of a coefficient",
        "DPMSolverMultistep, EDMDPMSolverMultistep",
        "The weight of the second difference is half of what integrates a quadratic, so the order is 2. The authors' "
        "own code has the same weight, and published results come from it: `dpm++` and `dpm` with order=3 reproduce "
        "it, `variant='exact'` has order 3.",
        """
import torch
from diffusers import DPMSolverMultistepScheduler
s = DPMSolverMultistepScheduler(solver_order=3, use_exponential_sigmas=True)
s.set_timesteps(10)
s.sigmas, s._step_index = s.sigmas.double(), 4
lam, step = -s.sigmas[:-1].log(), s.multistep_dpm_solver_third_order_update
u = torch.linspace(float(lam[4]), float(lam[5]), 100001, dtype=torch.float64)
for name, f in (("1", lambda v: v**0), ("λ", lambda v: v), ("λ²", lambda v: v**2)):
    ours = step([f(lam[i]) for i in (2, 3, 4)], sample=0 * lam[0])
    exact = s.sigmas[5] / (1 + s.sigmas[5] ** 2) ** 0.5 * torch.trapezoid(u.exp() * f(u), u)
    print(f"data prediction {name}: step {float(ours):.6f}, exact integral {float(exact):.6f}")
assert abs(ours - exact) > 0.1
""",
    ),
    Defect(
        "pndm-v",
        "PNDM with v-prediction: first order",
        "PNDM",
        "The multistep rule is applied to the raw v outputs and the mixture is converted to noise with the newest "
        "state and level, although the outputs belong to different levels. The order falls from 2 or more to 1.",
        """
from diffusers import PNDMScheduler
def error(kind, steps):  # data N(1, 1/4) in one dimension, whose flow is known
    s = PNDMScheduler(skip_prk_steps=True, prediction_type=kind, timestep_spacing="trailing")
    s.set_timesteps(steps)
    x, power = s.alphas_cumprod.double()[-1] * 0 + 1, s.alphas_cumprod.double()
    for t in s.timesteps:
        a, b = power[t] ** 0.5, (1 - power[t]) ** 0.5
        eps = b * (x - a) / (a**2 / 4 + b**2)
        x = s.step(eps if kind == "epsilon" else a * eps - b * (x - b * eps) / a, int(t), x).prev_sample
    a, e = power[-1] ** 0.5, power[0] ** 0.5
    return abs(float(x - e - ((1 - 0.75 * e**2) / (1 - 0.75 * a**2)) ** 0.5 * (1 - a)))
for kind in ("epsilon", "v_prediction"):
    print(kind, "errors at 25, 50, 100 steps:", *(f"{error(kind, n):.1e}" for n in (25, 50, 100)))
assert error("v_prediction", 100) > 100 * error("epsilon", 100)
""",
    ),
    Defect(
        "flow-terminal",
        "DEIS and SA on flow levels return noisy samples",
        "DEISMultistep, SASolver with use_flow_sigmas",
        "The last level is repeated as terminal level instead of 0, so that a share of the noise stays in the "
        "sample: σ = 0.2 at 5 steps, more with a flow shift.",
        """
import diffusers, torch
noise = torch.randn(1, 100000, generator=torch.Generator().manual_seed(0))
for name in ("DPMSolverMultistep", "DEISMultistep", "SASolver"):
    s = getattr(diffusers, name + "Scheduler")(use_flow_sigmas=True, prediction_type="flow_prediction")
    s.set_timesteps(5)
    x = noise * s.sigmas[0]  # all data 0, so that the exact velocity is x / σ
    for sigma, t in zip(s.sigmas, s.timesteps):
        x = s.step(x / sigma, t, x).prev_sample
    print(name, "ends at sigma", round(float(s.sigmas[-1]), 4), "with noise", round(float(x.std()), 4))
assert x.std() > 0.15
""",
    ),
    Defect(
        "unipc-nan",
        "UniPC: NaN with `bh1`, without `predict_x0`, without `lower_order_final`",
        "UniPCMultistep",
        "With the default final_sigmas_type='zero' the last step is infinite in λ. Only bh2 on the data prediction "
        "with lowered order survives it (bh1 multiplies infinity by 0); nothing refuses the others. Use 'sigma_min'.",
        """
import torch
from diffusers import UniPCMultistepScheduler
for config in ({}, {"solver_type": "bh1"}, {"predict_x0": False}, {"lower_order_final": False}):
    s = UniPCMultistepScheduler(**config)
    s.set_timesteps(5)
    x = torch.ones(1, 1)
    for t in s.timesteps:
        x = s.step(0.1 * x, t, x).prev_sample
    print(config, float(x))
    assert bool(x.isfinite()) == (not config)
""",
    ),
    Defect(
        "repeated-level-nan",
        "NaN where the last level is repeated",
        "DPMSolverMultistep, EDMDPMSolverMultistep",
        "On Karras, exponential or beta levels with final_sigmas_type='sigma_min' the terminal level equals the last "
        "one. The rules that divide by the step (solver_type='heun', order 3) then give 0/0; from 15 steps on "
        "nothing lowers the order.",
        """
import diffusers, torch
same = {"final_sigmas_type": "sigma_min"}
third = {"solver_order": 3, "use_karras_sigmas": True}
for name, config in (("DPMSolver", third), ("EDMDPMSolver", {"solver_type": "heun"})):
    s = getattr(diffusers, name + "MultistepScheduler")(**config, **same)
    for steps in (14, 20):
        s.set_timesteps(steps)
        x = torch.ones(1)
        for t in s.timesteps:
            x = s.step(0.1 * x, t, x).prev_sample
        print(name, config, "steps", steps, "sample", float(x))
    assert bool(x.isnan())
""",
    ),
    Defect(
        "noise-form-sde",
        "`sde-dpmsolver` leaves the marginals",
        "DPMSolverMultistep with algorithm_type='sde-dpmsolver', SASolver with algorithm_type='noise_prediction'",
        "The noise form of the reverse SDE keeps the mean of point-mass data but not its variance: the first of 10 "
        "steps ends at 2.5 times the noise of its level. It is right only as the step goes to 0; the data form is "
        "exact.",
        """
import torch
from diffusers import DPMSolverMultistepScheduler
for kind in ("sde-dpmsolver++", "sde-dpmsolver"):
    s = DPMSolverMultistepScheduler(algorithm_type=kind, final_sigmas_type="sigma_min")
    s.set_timesteps(10)
    draw = torch.Generator().manual_seed(0)
    eps = torch.randn(100000, generator=draw)
    x = eps * s.sigmas[0] / (1 + s.sigmas[0] ** 2) ** 0.5  # all data 0, so that the exact network returns eps
    x = s.step(eps, s.timesteps[0], x, generator=draw).prev_sample
    level = float(s.sigmas[1] / (1 + s.sigmas[1] ** 2) ** 0.5)
    print(kind, "noise after one step", round(float(x.std()), 3), "at level", round(level, 3))
assert x.std() > 2 * level
""",
    ),
    Defect(
        "churn",
        "`s_churn` adds its noise after the network call",
        "EulerDiscrete, EDMEuler, FlowMatchHeunDiscrete",
        "EDM raises the noise first and evaluates the network there. Here the output belongs to the state before the "
        "churn, so that the step ends with far too much noise. (`edm` does it in the published order.)",
        """
import torch
from diffusers import EulerDiscreteScheduler
s = EulerDiscreteScheduler()
s.set_timesteps(10)
draw = torch.Generator().manual_seed(0)
eps = torch.randn(100000, generator=draw)
x = eps * s.sigmas[0]  # all data 0, so that the exact network returns eps
s.scale_model_input(x, s.timesteps[0])
x = s.step(eps, s.timesteps[0], x, s_churn=10.0, generator=draw).prev_sample
print("noise after one step", round(float(x.std()), 1), "at sigma", round(float(s.sigmas[1]), 1))
assert x.std() > 2 * s.sigmas[1]
""",
    ),
    Defect(
        "ipndm-first",
        "IPNDM ignores its first network call",
        "IPNDM",
        "Its grid starts at signal 0, where the noise estimate σ·x + α·v is x whatever v is, and the data estimate "
        "(x − σε)/max(α, 10⁻⁸) is 0: the first step drops α·data, an error of first order in the step. It also takes "
        "the output for v, without saying so and without a `prediction_type`. (`ipndm` starts with the data step.)",
        """
import torch
from diffusers import IPNDMScheduler
s, noise = IPNDMScheduler(), torch.ones(1)
for output in (-1.0, 0.0, 5.0):
    s.set_timesteps(10)
    x = s.step(torch.full((1,), output), s.timesteps[0], noise).prev_sample
    print("output", output, "next state", float(x), "signal there", round(float(s.alphas[1]), 4))
    assert float(x) == float(s.betas[1])
""",
    ),
    Defect(
        "linspace-one",
        "One step with `linspace` starts at timestep 0",
        "DDIM, DDPM, PNDM, EulerDiscrete, EulerAncestral, LMS, Heun, KDPM2, KDPM2Ancestral",
        "linspace(0, 999, 1) is [0], so a run of one step denoises the least noisy level and returns the initial "
        "noise almost unchanged. `linspace` is the default of all but DDIM, DDPM and PNDM.",
        """
import diffusers
for name in ("DDIM", "DDPM", "EulerDiscrete", "EulerAncestralDiscrete", "LMSDiscrete", "HeunDiscrete", "KDPM2Discrete"):
    s = getattr(diffusers, name + "Scheduler")(timestep_spacing="linspace")
    s.set_timesteps(1)
    print(name, "timesteps", s.timesteps.tolist())
    assert float(s.timesteps[0]) == 0
""",
    ),
    Defect(
        "stride",
        "DDIM and PNDM step to a level that is not the next one",
        "DDIM, PNDM (and their relatives)",
        "The target is `timestep − 1000 // n`, whatever the next timestep is. With `linspace`, and with `trailing` "
        "where n does not divide 1000, the network is told another level than the state has. `leading` is "
        "consistent; so are the other classes.",
        """
from diffusers import DDIMScheduler
for spacing, steps in (("leading", 30), ("trailing", 30), ("linspace", 10)):
    s = DDIMScheduler(timestep_spacing=spacing)
    s.set_timesteps(steps)
    targets = [int(t) - 1000 // steps for t in s.timesteps]
    print(spacing, "steps to", targets[:4], "the next calls are for", s.timesteps[1:5].tolist())
    assert (targets[:-1] == s.timesteps[1:].tolist()) == (spacing == "leading")
""",
    ),
    Defect(
        "labels",
        "Timesteps cut to integers on levels between them",
        "DPMSolverMultistep, DPMSolverSinglestep, UniPCMultistep, DEISMultistep, SASolver",
        "The levels are real numbers (flow, exponential, beta; rounded for Karras), the labels given to the network "
        "are truncated to int64: up to one timestep off.",
        """
import diffusers
flow = {"use_flow_sigmas": True, "prediction_type": "flow_prediction"}
for name in ("DPMSolverMultistep", "DPMSolverSinglestep", "UniPCMultistep", "DEISMultistep", "SASolver"):
    s = getattr(diffusers, name + "Scheduler")(**flow)
    s.set_timesteps(7)
    exact = [round(1000 * v, 2) for v in s.sigmas[:-1].tolist()]
    print(name, s.timesteps.tolist()[-3:], "for", exact[-3:])
    assert exact[-1] - int(s.timesteps[-1]) > 0.7
""",
    ),
    Defect(
        "double-shift",
        "The flow shift is applied twice at the clean end",
        "FlowMatchEulerDiscrete, FlowMatchHeunDiscrete",
        "sigma_min is taken from the already shifted training levels, and set_timesteps shifts what it spaces from "
        "there. Levels that a pipeline sends itself are shifted once.",
        """
import diffusers
once = 3 * 0.001 / (1 + 2 * 0.001)
twice = 3 * once / (1 + 2 * once)
for name in ("FlowMatchEulerDiscreteScheduler", "FlowMatchHeunDiscreteScheduler"):
    s = getattr(diffusers, name)(shift=3.0)
    s.set_timesteps(5)
    print(name, "last sigma", round(float(s.sigmas[-2]), 6), "shifted once", round(once, 6), "twice", round(twice, 6))
    assert abs(float(s.sigmas[-2]) - twice) < 1e-6
""",
    ),
    Defect(
        "idle-call",
        "The last network call changes nothing",
        "DEISMultistep (Karras, exponential, beta, flow), EulerDiscrete and EDMEuler with 'sigma_min', DDIM and PNDM "
        "with `leading` and set_alpha_to_one=False",
        "The terminal level repeats the last one, so that one of the n calls is spent on a step of length zero. "
        "(SASolver at least corrects the state there.)",
        """
import diffusers, torch
last = {"final_sigmas_type": "sigma_min"}
for name, config in (("DEISMultistep", {"use_karras_sigmas": True}), ("EulerDiscrete", last), ("EDMEuler", last)):
    s = getattr(diffusers, name + "Scheduler")(**config)
    s.set_timesteps(5)
    x = torch.ones(1)
    for t in s.timesteps:
        s.scale_model_input(x, t)
        before, x = x, s.step(0.1 * x, t, x).prev_sample
    print(name, config, "state before and after the last call:", float(before), float(x))
    assert abs(float(x - before)) < 1e-5 * abs(float(x))
""",
    ),
    Defect(
        "crashes",
        "Runs of one to three steps that crash",
        "PNDM without skip_prk_steps, FlowMatchEulerDiscrete with shift_terminal",
        "PNDM's Runge–Kutta start needs four levels and says so by a broadcasting error. Stretching one level to "
        "shift_terminal divides 0 by 0.",
        """
import diffusers, torch
for steps in (1, 2, 3, 4):
    try:
        diffusers.PNDMScheduler().set_timesteps(steps)
        print("PNDM", steps, "steps: fine")
    except ValueError as error:
        print("PNDM", steps, "steps:", error)
        assert steps < 4
s = diffusers.FlowMatchEulerDiscreteScheduler(shift_terminal=0.1)
s.set_timesteps(1)
print("FlowMatchEulerDiscrete with shift_terminal, 1 step: sigmas", s.sigmas.tolist())
assert bool(s.sigmas[0].isnan())
""",
    ),
    Defect(
        "deis-float32",
        "DEIS of order 3 loses its digits in float32",
        "DEISMultistep",
        "The closed-form integrals subtract large numbers that nearly cancel, and all of it is float32. On close "
        "levels, as the beta spacing has them at both ends, only one or two digits are left. (`deis` with "
        "variant='logrho' agrees with the formula in float64.)",
        """
import torch
from diffusers import DEISMultistepScheduler
def run(dtype, **config):
    s = DEISMultistepScheduler(solver_order=3, **config)
    s.set_timesteps(50)
    s.sigmas = s.sigmas.to(dtype)
    x = torch.ones(1, 1, dtype=dtype)
    for sigma, t in zip(s.sigmas, s.timesteps):
        x = s.step(x * sigma / (1 + sigma**2) ** 0.5, t, x).prev_sample  # data N(0, 1)
    return float(x)
for config in ({}, {"use_beta_sigmas": True}):
    single, double = run(torch.float32, **config), run(torch.float64, **config)
    print(config, "float32:", round(single, 5), "float64:", round(double, 5))
assert abs(single - double) > 0.02
""",
    ),
    Defect(
        "config-leak",
        "`set_timesteps` changes the configuration for good",
        "DPMSolverSinglestep",
        "One odd number of steps turns lower_order_final on for every later run of the object; the same steps then "
        "give another sample.",
        """
from diffusers import DPMSolverSinglestepScheduler
s = DPMSolverSinglestepScheduler(lower_order_final=False, final_sigmas_type="sigma_min")
for steps in (6, 5, 6):
    s.set_timesteps(steps)
    print("steps", steps, "orders", s.order_list, "lower_order_final", s.config.lower_order_final)
assert s.config.lower_order_final
""",
    ),
)
