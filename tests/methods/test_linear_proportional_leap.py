"""LinearProportionalLeap: exact on straight paths, per sample, and gone without a trace when the run is over."""

import copy
from types import SimpleNamespace

import diffusers
import pytest
import torch
from helpers import BY_NAME, assert_close, counted, dense_output
from tiny import noise

from fastdit import LinearProportionalLeap, NothingAccelerated, RadialAttention, TokenMerging, accelerate
from fastdit.core.clock import StepClock
from fastdit.core.ledger import PatchLedger
from fastdit.methods.linear_proportional_leap.method import LeapingStep, LeapRuntime

NAME = "linear_proportional_leap"
FLOW = {"prediction_type": "flow_prediction", "use_flow_sigmas": True, "flow_shift": 3.0}


def flow_schedulers():
    return {
        "euler": diffusers.FlowMatchEulerDiscreteScheduler(shift=3.0),
        "unipc": diffusers.UniPCMultistepScheduler(**FLOW),
        "unipc_sigma_min": diffusers.UniPCMultistepScheduler(**FLOW, final_sigmas_type="sigma_min"),
        "dpm++": diffusers.DPMSolverMultistepScheduler(**FLOW),
    }


def velocities(pipe, of_step):
    """Every forward predicts `of_step(index)` (B, ...) in place of what the transformers say; index by the timestep."""

    def predict(module, args, kwargs, out):
        timestep = float(kwargs["timestep"].max()) * (1 if kwargs["timestep"].max() > 1 else 1000)
        known = [abs(t - timestep) for t in pipe.scheduler.timesteps.tolist()]
        given = of_step(known.index(min(known)))
        return (given.repeat(len(out[0]) // len(given), *[1] * (given.ndim - 1)).to(out[0].dtype),)

    for name in ("transformer", "transformer_2"):
        if getattr(pipe, name, None) is not None:
            getattr(pipe, name).register_forward_hook(predict, with_kwargs=True)


def straight(pipe, tiny, batch=1):
    constant = noise(*tiny.arguments(pipe, batch, 16)["latents"].shape, seed=5)
    velocities(pipe, lambda index: constant)


def turning(pipe, settle, shape=(4, 3, 16, 16)):
    """One sample for each number in `settle`: its velocity turns ever less and is constant from that step on."""
    one, other = noise(2, *shape, seed=5)

    def of_step(index):
        angles = [sum(max(0.0, 0.1 * (stop - i)) for i in range(index + 1)) for stop in settle]
        return torch.stack([torch.tensor(a).cos() * one + torch.tensor(a).sin() * other for a in angles])

    velocities(pipe, of_step)


# --- exact where the path is straight -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "method", [LinearProportionalLeap(leap_step=1), LinearProportionalLeap(noise=1)], ids=["fixed", "rule"]
)
@pytest.mark.parametrize(
    ("name", "scheduler"),
    [*(("wan", key) for key in flow_schedulers()), ("flux", None), ("hunyuan_video", None), ("mochi", None)],
)
def test_a_constant_velocity_gives_the_full_runs_result(name, scheduler, method):
    tiny = BY_NAME[name]
    pipe = tiny.make()
    if scheduler:
        pipe.scheduler = flow_schedulers()[scheduler]
    straight(pipe, tiny, batch=2)
    full = tiny.call(pipe, batch=2, steps=8)
    with accelerate(pipe, [method]) as handle:
        leapt = tiny.call(pipe, batch=2, steps=8)
        steps = method.leap_step or 5  # the first has none before it, the second sets the best, three do not better it
        assert handle.report.steps == steps and handle.report.methods[NAME].sample_steps == [steps] * 2
    assert_close(leapt, full, 2e-6)
    assert full.std() > 0.5


def test_half_precision_keeps_its_type_and_leaps_in_fp32():
    tiny = BY_NAME["flux"]
    pipe = tiny.make().to(torch.bfloat16)
    straight(pipe, tiny)
    arguments = {k: v.bfloat16() if torch.is_tensor(v) else v for k, v in tiny.arguments(pipe, 1, 16).items()}
    velocity = noise(*arguments["latents"].shape, seed=5).bfloat16().float()
    pipe.set_progress_bar_config(disable=True)
    with accelerate(pipe, [LinearProportionalLeap(leap_step=1)]):
        (out,) = pipe(**arguments, num_inference_steps=4, output_type="latent", return_dict=False)
    assert out.dtype == torch.bfloat16
    expected = arguments["latents"].float() - pipe.scheduler.sigmas[0] * velocity
    assert torch.equal(out, expected.bfloat16())


# --- every sample by itself -----------------------------------------------------------------------------------------


def record(into):
    """A callback that keeps the latents of every step."""
    return lambda pipe, index, timestep, kwargs: into.append(kwargs["latents"].clone()) or {}


def scripted(settle, **options):
    tiny = BY_NAME["wan"]
    pipe = tiny.make()
    turning(pipe, settle)
    return tiny, pipe, LinearProportionalLeap(noise=1, **options)


def test_samples_leap_by_themselves_and_keep_their_final_latents():
    tiny, pipe, method = scripted((6, 4, 2))
    trajectory, seen = [], []

    tiny.call(pipe, batch=3, steps=12, callback_on_step_end=record(trajectory))
    with accelerate(pipe, [method]) as handle:
        out = tiny.call(pipe, batch=3, steps=12, callback_on_step_end=record(seen))
        report = handle.report
        singles = []
        for settle in (6, 4, 2):
            alone = tiny.make()
            turning(alone, (settle,))
            with accelerate(alone, [method]):
                sample = (6, 4, 2).index(settle)
                singles.append(tiny.call(alone, batch=3, steps=12, sample=sample))
                assert alone.report.steps == settle + 4
    # the cosine of steps s - 1 and s is 1 for the first time at s + 1 (from 0): the three after it do not better it
    assert report.methods[NAME].sample_steps == [10, 8, 6] and report.steps == 10 and report.evaluations == 20
    assert report.methods[NAME].note == "leapt after 10, 8, 6 of 12 steps"
    assert str(report).startswith("10 of 12 steps, 20 evaluations, ")
    assert_close(out, torch.cat(singles), 1e-6)
    assert len(seen) == 10
    for row, steps in enumerate((10, 8, 6)):
        for index in range(steps - 1):
            assert torch.equal(seen[index][row], trajectory[index][row]), "a sample moved before its leap"
        assert all(torch.equal(later[row], out[row]) for later in seen[steps - 1 :]), "final latents changed"
        assert not torch.equal(seen[steps - 2][row], out[row])


def test_the_leap_is_from_the_steps_own_latents_along_its_guided_velocity():
    """Guidance in two passes: the velocity is what the scheduler is given, and the rest of the path is straight."""
    tiny = BY_NAME["wan"]
    pipe, given = tiny.make(), []
    pipe.scheduler = diffusers.FlowMatchEulerDiscreteScheduler(shift=3.0)
    step = pipe.scheduler.step

    def noted(model_output, timestep, sample, return_dict=True):
        given.append((sample, model_output))
        return step(model_output, timestep, sample, return_dict=return_dict)

    pipe.scheduler.step = noted
    tiny.call(pipe, steps=6)
    with accelerate(pipe, [LinearProportionalLeap(leap_step=4)]):
        out = tiny.call(pipe, steps=6)
    (sample, velocity), sigma = given[3], pipe.scheduler.sigmas[3]
    assert torch.equal(out, sample - sigma * velocity) and len(given) == 6 + 4


def test_the_rule_is_the_ops_one_on_real_velocities():
    """Any tolerance above 2 never sees growth: a leap comes `patience` steps after the first one that counts."""
    tiny = BY_NAME["hunyuan_video"]
    pipe = tiny.make()
    levels = []
    for bound, patience in ((0.99, 1), (0.9, 2), (0.8, 3)):
        with accelerate(pipe, [LinearProportionalLeap(noise=bound, tolerance=2.5, patience=patience)]) as handle:
            tiny.call(pipe, steps=10)
            levels = [row.noise for row in handle.report.rows]
            first = next(index for index, level in enumerate(levels) if level <= bound)
            assert handle.report.steps == first + patience + 1
    assert len(levels) == 10  # rows of skipped steps included


@pytest.mark.parametrize("settle", [30, 4], ids=["never", "in the last step"])
def test_a_rule_that_never_fires_returns_the_full_result_and_says_so(settle):
    tiny, pipe, method = scripted((settle,))
    full = tiny.call(pipe, steps=8)
    with accelerate(pipe, [method]) as handle:
        assert torch.equal(tiny.call(pipe, steps=8), full)
        report = handle.report
    assert report.warnings == [f"{NAME}: {report.methods[NAME].reason}"]
    assert "no sample leapt" in report.warnings[0] and "give leap_step" in report.warnings[0]
    assert report.steps == 8 and report.macs_executed == report.macs_dense and report.methods[NAME].density == 1
    assert str(report).startswith("8 steps, ") and report.methods[NAME].sample_steps == [8]


def test_one_that_leaps_while_the_other_goes_to_the_end():
    tiny, pipe, method = scripted((30, 2))
    full = tiny.call(pipe, batch=2, steps=8)
    with accelerate(pipe, [method]) as handle:
        out = tiny.call(pipe, batch=2, steps=8)
        done = handle.report.methods[NAME]
    assert done.sample_steps == [8, 6] and handle.report.steps == 8 and done.density == 1
    assert done.note == "leapt after 6 of 8 steps; 1 of 2 samples did not leap"
    assert torch.equal(out[0], full[0]) and not torch.equal(out[1], full[1])


# --- the end of the run ---------------------------------------------------------------------------------------------


def test_the_loop_ends_early_and_the_report_books_what_was_saved(monkeypatch):
    tiny = BY_NAME["wan"]
    pipe = tiny.make()
    with accelerate(pipe, [TokenMerging(density=1)]) as handle:
        tiny.call(pipe, steps=8)
        dense = handle.report.macs_dense
    with (
        counted(monkeypatch, pipe.transformer.blocks[0], "forward") as forwards,
        accelerate(pipe, [LinearProportionalLeap(leap_step=6)]) as handle,
    ):
        tiny.call(pipe, steps=8)
        report = handle.report
    assert len(forwards) == report.evaluations == 12
    assert (report.steps, report.steps_asked) == (6, 8)
    assert report.macs_dense == dense and report.macs_executed * 8 == dense * 6
    assert [row.step for row in report.rows] == list(range(8))
    assert [row.passes for row in report.rows] == [2] * 6 + [0] * 2
    assert [row.density[NAME] for row in report.rows] == [1] * 6 + [0] * 2
    data = report.to_dict()
    assert data["methods"][NAME]["sample_steps"] == [6] and (data["steps"], data["steps_asked"]) == (6, 8)
    assert data["methods"][NAME]["density"] == 0.75 and data["methods"][NAME]["calls"] == 6
    assert "MACs" in str(report) and "(1.33x fewer)" in str(report)


def test_the_progress_bar_closes_at_what_was_run(monkeypatch, capsys):
    from diffusers.pipelines import pipeline_utils

    bars = []
    make = pipeline_utils.tqdm
    monkeypatch.setattr(pipeline_utils, "tqdm", lambda *args, **kwargs: bars.append(make(*args, **kwargs)) or bars[-1])
    tiny = BY_NAME["hunyuan_video"]
    pipe = tiny.make()
    with accelerate(pipe, [LinearProportionalLeap(leap_step=5)]):
        pipe(**tiny.arguments(pipe, 1, 16), num_inference_steps=8, output_type="latent")
        with pipe.dense():
            pipe(**tiny.arguments(pipe, 1, 16), num_inference_steps=8, output_type="latent")
    assert [(bar.n, bar.total) for bar in bars] == [(5, 5), (8, 8)]
    assert "100%" in capsys.readouterr().err and "progress_bar" not in vars(pipe)


def state(pipe):
    return pipe._interrupt, {*vars(pipe)} - {"_fastdit", "_fastdit_call"}, {*vars(pipe.scheduler)}


@pytest.mark.parametrize("at", [1, 4], ids=["before", "in the leap"])
def test_an_exception_in_mid_run_leaves_everything_as_it_was(at):
    tiny = BY_NAME["wan"]
    pipe = tiny.make()
    full = tiny.call(pipe, steps=6)
    before = state(pipe)

    def fail(pipe, index, timestep, kwargs):
        if index == at:
            assert pipe._interrupt is (at == 4)
            raise KeyboardInterrupt
        return {}

    with accelerate(pipe, [LinearProportionalLeap(leap_step=5)]) as handle:
        leapt = tiny.call(pipe, steps=6)
        assert not torch.equal(leapt, full) and state(pipe) == before
        with pytest.raises(KeyboardInterrupt):
            tiny.call(pipe, steps=6, callback_on_step_end=fail)
        assert state(pipe) == before and handle.report.steps == at + 1
        assert torch.equal(tiny.call(pipe, steps=6), leapt)
        with pipe.dense():
            assert torch.equal(tiny.call(pipe, steps=6), full) and pipe.report.steps == 6
    assert torch.equal(tiny.call(pipe, steps=6), full) and state(pipe) == before


def test_a_callback_that_stops_or_goes_on_by_itself():
    tiny = BY_NAME["wan"]
    pipe = tiny.make()

    def stop(pipe, index, timestep, kwargs):
        pipe._interrupt = index == 1
        return {}

    with accelerate(pipe, [LinearProportionalLeap(leap_step=4)]) as handle:
        leapt = tiny.call(pipe, steps=6)
        tiny.call(pipe, steps=6, callback_on_step_end=stop)
        assert handle.report.steps == 2 and pipe._interrupt is True
        assert handle.report.methods[NAME].reason == "the run ended after step 2, before any leap"

        def go_on(pipe, index, timestep, kwargs):
            pipe._interrupt = False
            return {}

        assert torch.equal(tiny.call(pipe, steps=6, callback_on_step_end=go_on), leapt), "final latents moved"
        assert handle.report.steps == 6 and handle.report.methods[NAME].sample_steps == [4]


# --- what has no leap -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["dit", "pixart_alpha", "latte"])
def test_models_that_predict_noise_are_refused(name):
    pipe = BY_NAME[name].make()
    host = type(pipe)
    with pytest.raises(ValueError, match=rf"{NAME} .*lacks: a prediction of the velocity \(flow matching\)"):
        accelerate(pipe, [LinearProportionalLeap()])
    assert type(pipe) is host


def test_a_bare_transformer_is_refused():
    transformer = BY_NAME["wan"].make().transformer
    with pytest.raises(ValueError, match=r"a bare WanTransformer3DModel has none: accelerate the pipeline"):
        accelerate(transformer, [LinearProportionalLeap()])
    accelerate(transformer, [TokenMerging()]).restore()  # nothing stayed


def test_pipelines_that_cannot_be_left_early_are_refused(monkeypatch):
    pipe = BY_NAME["wan"].make()
    with monkeypatch.context() as patch:
        patch.setattr(diffusers.WanPipeline, "__call__", lambda self, num_inference_steps: None)
        with pytest.raises(ValueError, match=rf"{NAME} .*`interrupt`, which WanPipeline does not look at"):
            accelerate(pipe, [LinearProportionalLeap()])
    flux = BY_NAME["flux"].make()
    inpaint = diffusers.FluxInpaintPipeline(flow_schedulers()["euler"], None, None, None, None, None, flux.transformer)
    with pytest.raises(ValueError, match=r"cannot run in FluxInpaintPipeline: after every step it puts an image"):
        accelerate(inpaint, [LinearProportionalLeap()])


UNFIT = [
    (lambda: diffusers.FlowMatchHeunDiscreteScheduler(), "FlowMatchHeun.*set pipe.scheduler to a FlowMatchEuler"),
    (lambda: diffusers.FlowMatchLCMScheduler(), "FlowMatchLCM.*without new noise"),
    (
        lambda: diffusers.FlowMatchEulerDiscreteScheduler(stochastic_sampling=True),
        "stochastic_sampling=True draws new noise in every step; set stochastic_sampling=False",
    ),
    (
        lambda: diffusers.DPMSolverMultistepScheduler(**FLOW, algorithm_type="sde-dpmsolver++"),
        "algorithm_type='sde-dpmsolver\\+\\+' draws new noise.*set algorithm_type='dpmsolver\\+\\+'",
    ),
    (
        lambda: diffusers.UniPCMultistepScheduler(),
        "prediction_type='epsilon' with use_flow_sigmas=False.*set prediction_type='flow_prediction'",
    ),
    (
        lambda: diffusers.UniPCMultistepScheduler(**FLOW, thresholding=True),
        "thresholding=True clips.*set thresholding=False",
    ),
]


@pytest.mark.parametrize(("make", "text"), UNFIT, ids=[text.split(".")[0][:30] for _, text in UNFIT])
def test_schedulers_that_follow_no_path_are_refused_at_attach_and_when_swapped_in(make, text, monkeypatch):
    tiny = BY_NAME["wan"]
    pipe = tiny.make()
    fit, unfit = pipe.scheduler, make()
    pipe.scheduler = unfit
    with pytest.raises(ValueError, match=text) as error:
        accelerate(pipe, [LinearProportionalLeap(leap_step=2)])
    assert "\n" not in str(error.value)
    pipe.scheduler = fit
    with accelerate(pipe, [LinearProportionalLeap(leap_step=2)]):
        leapt = tiny.call(pipe)
        pipe.scheduler = unfit
        with counted(monkeypatch, pipe.transformer.blocks[0], "forward") as forwards:
            with pytest.raises(ValueError, match=text):
                tiny.call(pipe)
            assert not forwards
        pipe.scheduler = fit
        assert torch.equal(tiny.call(pipe), leapt)


def test_schedulers_exchanged_for_others_that_fit():
    tiny = BY_NAME["wan"]
    pipe, results = tiny.make(), {}
    with accelerate(pipe, [LinearProportionalLeap(leap_step=3)]) as handle:
        for name, scheduler in [*flow_schedulers().items()] * 2:
            pipe.scheduler = scheduler
            out = tiny.call(pipe, steps=5)
            assert handle.report.steps == 3 and torch.equal(results.setdefault(name, out), out)
            assert not {"step", "set_timesteps"} & set(vars(scheduler))
    assert len({out.sum().item() for out in results.values()}) == 4


def test_a_second_run_with_other_frames_steps_and_batch():
    tiny = BY_NAME["wan"]
    method = LinearProportionalLeap(noise=1, tolerance=2.5)
    pipe, expected = tiny.make(), []

    def run(pipe, frames, batch, steps):
        arguments = {**tiny.arguments(pipe, batch, 16), "latents": noise(batch, 4, frames, 16, 16, seed=frames)}
        arguments["num_frames"] = 4 * frames - 3
        pipe.set_progress_bar_config(disable=True)
        return pipe(**arguments, num_inference_steps=steps, output_type="latent", return_dict=False)[0]

    runs = [(3, 1, 6), (5, 2, 8), (1, 1, 10), (3, 1, 6)]
    for one in runs:
        fresh = tiny.make()
        with accelerate(fresh, [method]):
            expected.append(run(fresh, *one))
    with accelerate(pipe, [method]):
        for one, out in zip(runs, expected, strict=True):
            assert torch.equal(run(pipe, *one), out) and pipe.report.steps == 5


def test_runs_without_room_for_a_leap(monkeypatch):
    tiny = BY_NAME["wan"]
    pipe = tiny.make()
    late = LinearProportionalLeap(noise=0.35)
    with accelerate(pipe, [late]), counted(monkeypatch, pipe.transformer.blocks[0], "forward") as forwards:
        with pytest.raises(NothingAccelerated, match=r"only 1 of 8 steps count \(noise at most 0.35.*take more steps"):
            tiny.call(pipe, steps=8)
        assert not forwards
        pipe.set_methods([late, TokenMerging()])
        tiny.call(pipe, steps=8)
        assert len(pipe.report.warnings) == 1 and pipe.report.warnings[0].startswith(f"{NAME}: only 1 of 8")
        assert pipe.report.methods[NAME].reason.startswith("only 1 of 8") and pipe.report.steps == 8
    for step, error, text in (
        (8, NothingAccelerated, "leap_step=8 is the last step"),
        (9, ValueError, "leap_step=9 lies beyond this run of 8 steps: give 1 to 7"),
    ):
        with accelerate(pipe, [LinearProportionalLeap(leap_step=step)]), pytest.raises(error, match=text):
            tiny.call(pipe, steps=8)


# --- hosts with more than one model, or an image --------------------------------------------------------------------


def test_wan22_never_leaps_inside_the_high_noise_expert():
    tiny = BY_NAME["wan22_a14b"]
    pipe = tiny.make()
    straight(pipe, tiny)  # settled from the start
    with accelerate(pipe, [LinearProportionalLeap(noise=1, patience=1)]) as handle:
        tiny.call(pipe, steps=12)
        high = sum(t >= 900 for t in pipe.scheduler.timesteps.tolist())
        # the first step of the other expert has no velocity of its own before it; one sets the best, one waits
        assert high == 4 and handle.report.steps == high + 3
        pipe.set_methods([LinearProportionalLeap(leap_step=high)])
        with pytest.raises(ValueError, match=r"leap_step=4 lies in the 4 steps of the high-noise .*: give 5 to 11"):
            tiny.call(pipe, steps=12)
        pipe.set_methods([LinearProportionalLeap(leap_step=high + 1)])
        tiny.call(pipe, steps=12)
        assert pipe.report.steps == high + 1 and pipe.report.evaluations == 2 * high + 2


@pytest.mark.parametrize("name", ["wan22_ti2v_image", "hunyuan_i2v_replace"])
def test_the_conditioned_first_frame_is_intact(name):
    tiny = BY_NAME[name]
    pipe = tiny.make()
    torch.manual_seed(3)
    full = tiny.call(pipe, steps=5)
    with accelerate(pipe, [LinearProportionalLeap(leap_step=2)]) as handle:
        torch.manual_seed(3)
        leapt = tiny.call(pipe, steps=5)
        assert handle.report.steps == 2
    assert torch.equal(leapt[:, :, 0], full[:, :, 0]) and not torch.equal(leapt[:, :, 1:], full[:, :, 1:])
    assert leapt.isfinite().all()


def test_video_to_video_begins_later_and_leaps_from_there():
    """WanVideoToVideoPipeline tells its scheduler nothing of where it begins."""
    tiny = BY_NAME["wan"]
    whole = tiny.make()
    pipe = diffusers.WanVideoToVideoPipeline(None, None, whole.transformer, None, whole.scheduler)
    pipe.set_progress_bar_config(disable=True)
    arguments = {k: v for k, v in tiny.arguments(whole, 1, 16).items() if k != "num_frames"}
    straight(pipe, tiny)

    def run():
        return pipe(**arguments, strength=0.6, num_inference_steps=10, output_type="latent", return_dict=False)[0]

    full = run()
    with accelerate(pipe, [LinearProportionalLeap(leap_step=2)]) as handle:
        leapt, report = run(), handle.report
        assert (report.steps, report.steps_asked, len(report.rows)) == (2, 6, 6)
        assert [row.noise for row in report.rows] == pytest.approx(pipe.scheduler.sigmas[4:10].tolist())
        pipe.set_methods([LinearProportionalLeap(noise=0.75, patience=1)])
        run()
        first = next(i for i, sigma in enumerate(pipe.scheduler.sigmas[4:].tolist()) if sigma <= 0.75)
        assert pipe.report.steps == first + 2
    assert_close(leapt, full, 2e-6)


# --- together with others, and outside of pipelines -----------------------------------------------------------------


@pytest.mark.parametrize(
    "other", [TokenMerging(), RadialAttention(decay=0.2, dense_share=0, dense_layers=0)], ids=lambda other: other.name
)
def test_with_other_methods(other):
    """The leap ends the other method's own run: the same as leaping from its trajectory."""
    tiny = BY_NAME["wan"]
    pipe = tiny.make()
    trajectory = []
    with accelerate(pipe, [other]) as handle:
        tiny.call(pipe, steps=5, callback_on_step_end=record(trajectory))
        alone = handle.report
    seen = []
    for methods in ([other, LinearProportionalLeap(leap_step=4)], [LinearProportionalLeap(leap_step=4), other]):
        with accelerate(pipe, methods) as handle:
            out = tiny.call(pipe, steps=5, callback_on_step_end=record(seen))
            both = handle.report
        assert both.steps == 4 and not torch.equal(out, trajectory[3])
        assert all(torch.equal(a, b) for a, b in zip(seen[-4:-1], trajectory, strict=False))
        assert both.macs_dense == alone.macs_dense
        assert both.macs_executed == sum(row.macs_executed for row in alone.rows[:4])
        assert both.methods[other.name].calls * 5 == alone.methods[other.name].calls * 4
    assert torch.equal(seen[3], seen[7])


def loop(runtime, clock, ledger, scheduler, loops=1, steps=5):
    """A pipeline's loop by hand, on a constant velocity; how many steps each loop ran, and what came out."""
    pipe, found = runtime.pipe, []
    clock.install(scheduler, ledger, runtime.start)
    runtime.open(clock, ledger)
    for _ in range(loops):
        scheduler.set_timesteps(steps)
        sample, ran = torch.ones(2, 3), 0
        for t in scheduler.timesteps:
            if pipe._interrupt:
                continue
            sample = scheduler.step(torch.full((2, 3), 0.5), t, sample=sample).prev_sample
            ran += 1
        found.append((ran, sample))
    return found


def by_hand(method):
    scheduler = flow_schedulers()["euler"]
    pipe = SimpleNamespace(scheduler=scheduler, config={}, progress_bar=lambda total: None, _interrupt=False)
    return LeapRuntime(method, pipe), StepClock(), PatchLedger(), scheduler


def test_every_loop_of_a_run_leaps_by_itself():
    """A call that sets the time steps anew (video made in sections) begins with nobody leapt; output classes work."""
    runtime, clock, ledger, scheduler = by_hand(LinearProportionalLeap(leap_step=2))
    for ran, sample in loop(runtime, clock, ledger, scheduler, loops=2):
        assert ran == 2 and torch.allclose(sample, torch.full((2, 3), 0.5))
    assert isinstance(scheduler.step, LeapingStep)
    with pytest.raises(RuntimeError, match="deep-copies its scheduler"):
        copy.deepcopy(scheduler)
    ledger.undo()
    assert "step" not in vars(scheduler) and "progress_bar" in vars(runtime.pipe)


def test_a_noise_level_per_token_is_refused_in_the_first_step():
    runtime, clock, ledger, scheduler = by_hand(LinearProportionalLeap(leap_step=2))
    loop(runtime, clock, ledger, scheduler)
    scheduler.set_timesteps(4)
    with pytest.raises(ValueError, match="a noise level per token is not defined"):
        scheduler.step(torch.ones(1, 3, 4), 1.0, torch.ones(1, 3, 4), per_token_timesteps=torch.ones(1, 3))


def test_neutral_is_the_pipeline_itself(monkeypatch):
    tiny = BY_NAME["hunyuan_video"]
    pipe = tiny.make()
    with counted(monkeypatch, LeapingStep, "__call__") as calls, accelerate(pipe, [LinearProportionalLeap(noise=0)]):
        assert torch.equal(tiny.call(pipe), dense_output("hunyuan_video"))
        assert len(calls) == 3 == pipe.report.methods[NAME].calls and not pipe.report.warnings
        assert pipe.report.methods[NAME].reason == "neutral setting"


# --- the prediction of `fastdit profile` ----------------------------------------------------------------------------


def test_profile_knows_a_fixed_leap_and_says_what_a_rule_may_save():
    from fastdit.pipelines.profiling import Geometry, profile, read_model

    model = read_model("fastdit/emoji-video")
    size = Geometry(2, 4, 4, 20)
    dense = profile(model, [TokenMerging(density=1)], size)
    fixed = profile(model, [LinearProportionalLeap(leap_step=15)], size)
    assert (fixed.steps, fixed.steps_asked, fixed.evaluations) == (15, 20, 30)
    assert fixed.macs_dense == dense.macs_dense and fixed.macs_executed * 20 == dense.macs_dense * 15
    assert fixed.methods[NAME].note == "leaps after step 15 of 20, 1.33x fewer steps"
    rule = profile(model, [LinearProportionalLeap(), TokenMerging()], size)
    assert rule.steps == 20 and rule.methods["token_merging"].density < 1
    assert rule.methods[NAME].note == "leaps after step 16 of 20 at the earliest, then 1.25x fewer steps; counted whole"
    assert "only" in profile(model, [LinearProportionalLeap(noise=0.1)], size).methods[NAME].note
