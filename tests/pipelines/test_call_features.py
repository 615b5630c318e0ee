"""Several images per prompt, negative prompts, no guidance, callbacks: as without fastdit, and the method ran."""

import pytest
import torch
from helpers import BY_NAME, ON_EACH, assert_close
from tiny import noise

from fastdit import TokenMerging, accelerate

METHODS = pytest.mark.parametrize("method", [TokenMerging(), TokenMerging(scope="block")], ids=["attention", "block"])


def call(tiny, pipe, batch=1, steps=2, **override):
    arguments = {**tiny.arguments(pipe, batch, 16), **override}
    pipe.set_progress_bar_config(disable=True)
    out = pipe(**arguments, num_inference_steps=steps, output_type="latent", return_dict=False)
    return torch.as_tensor(out[0])


def ran(report) -> bool:
    return report.macs_executed < report.macs_dense and all(m.calls and m.density < 1 for m in report.methods.values())


PICTURES = ("pixart", "flux", "latte")  # the families that count pictures; the others count videos
BY_HAND = {  # rows for which diffusers itself cannot make several from one prompt
    "dit": "takes a label per picture",
    "mochi": "does not repeat embeddings that are given",
    "hunyuan_i2v_replace": "does not repeat the image",
    "hunyuan_i2v_concat": "does not repeat the image",
}


@ON_EACH
@METHODS
def test_several_images_per_prompt(tiny, method):
    """Two from one prompt are a batch of two with that prompt twice."""
    name = "num_images_per_prompt" if tiny.family in PICTURES else "num_videos_per_prompt"
    pipe = tiny.make()
    single = tiny.arguments(pipe, 1, 16)
    if tiny.name in BY_HAND:
        pytest.skip(f"{type(pipe).__name__} of diffusers {BY_HAND[tiny.name]}")
    image = {"image": single.pop("image")} if "image" in single else {}  # one for all
    latents = tiny.arguments(pipe, 2, 16)["latents"]
    twice = {k: v.repeat(2, *[1] * (v.ndim - 1)) for k, v in single.items() if torch.is_tensor(v)}
    twice |= {"latents": latents, **image}
    with accelerate(pipe, [method]) as handle:
        together = call(tiny, pipe, latents=latents, **{name: 2})
        assert ran(handle.report)
        expected = call(tiny, pipe, **twice)
    # not bit-equal: some hosts leave the text a batch of 1, so its projections round otherwise
    assert_close(together, expected, 2e-5)
    assert not torch.equal(together[0], together[1])


NEGATIVE = [name for name, tiny in BY_NAME.items() if tiny.family not in ("dit", "flux", "hunyuan_video")]


@pytest.mark.parametrize("name", NEGATIVE)
@METHODS
def test_negative_prompts_are_heard_and_belong_to_their_sample(name, method):
    tiny = BY_NAME[name]
    pipe = tiny.make()
    shape = tiny.arguments(pipe, 2, 16)["negative_prompt_embeds"].shape
    negative = noise(*shape, seed=7)
    with accelerate(pipe, [method]) as handle:
        plain = call(tiny, pipe, batch=2)
        both = call(tiny, pipe, batch=2, negative_prompt_embeds=negative)
        assert ran(handle.report)
        mixed = negative.clone()
        mixed[1] = tiny.arguments(pipe, 2, 16)["negative_prompt_embeds"][1]
        half = call(tiny, pipe, batch=2, negative_prompt_embeds=mixed)
    assert not torch.equal(both, plain)
    assert_close(half[:1], both[:1], 2e-5)
    assert_close(half[1:], plain[1:], 2e-5)


@pytest.mark.parametrize("name", ["flux", "hunyuan_video"])
@METHODS
def test_true_guidance_in_two_passes(name, method):
    """Models with embedded guidance can be guided in two passes too."""
    tiny = BY_NAME[name]
    pipe = tiny.make()
    arguments = tiny.arguments(pipe, 1, 16)
    negative = {
        f"negative_{key}": noise(*value.shape, seed=9) if value.is_floating_point() else value
        for key, value in arguments.items()
        if key in ("prompt_embeds", "pooled_prompt_embeds", "prompt_attention_mask")
    }
    with accelerate(pipe, [method]) as handle:
        plain = call(tiny, pipe)
        assert handle.report.evaluations == 2
        guided = call(tiny, pipe, true_cfg_scale=3.0, **negative)
        assert handle.report.evaluations == 4 and [row.passes for row in handle.report.rows] == [2, 2]
        assert ran(handle.report)
    assert not torch.equal(plain, guided) and guided.isfinite().all()


@ON_EACH
@METHODS
def test_no_guidance(tiny, method):
    """guidance_scale=1: one pass on the batch itself, in which no negative prompt takes part."""
    pipe = tiny.make()
    if tiny.family in ("dit", "pixart", "wan", "latte", "mochi"):
        scale = {"guidance_scale": 1.0}
    else:
        scale = {"true_cfg_scale": 1.0}
    with accelerate(pipe, [method]) as handle:
        one = call(tiny, pipe, batch=2, **scale)
        assert handle.report.evaluations == handle.report.steps == 2 and ran(handle.report)
        macs = handle.report.macs_dense
        if "negative_prompt_embeds" in tiny.arguments(pipe, 2, 16):
            shape = tiny.arguments(pipe, 2, 16)["negative_prompt_embeds"].shape
            assert torch.equal(call(tiny, pipe, batch=2, negative_prompt_embeds=noise(*shape, seed=5), **scale), one)
        if "guidance_scale" in scale:
            guided = call(tiny, pipe, batch=2, guidance_scale=5.0)
            assert handle.report.macs_dense > 1.5 * macs and not torch.equal(guided, one)


@pytest.mark.parametrize("name", ["wan", "hunyuan_video"])
@METHODS
def test_callback_and_interrupt(name, method):
    tiny = BY_NAME[name]
    pipe = tiny.make()
    seen = []

    def record(pipe, index, timestep, kwargs):
        seen.append((index, kwargs["latents"].clone()))
        return {}

    def stop(pipe, index, timestep, kwargs):
        pipe._interrupt = index == 1
        return {}

    def double(pipe, index, timestep, kwargs):
        return {"latents": 2 * kwargs["latents"]}

    with accelerate(pipe, [method]) as handle:
        plain = call(tiny, pipe, steps=4)
        assert torch.equal(call(tiny, pipe, steps=4, callback_on_step_end=record), plain) and ran(handle.report)
        assert [index for index, _ in seen] == [0, 1, 2, 3]
        stopped = call(tiny, pipe, steps=4, callback_on_step_end=stop)
        assert handle.report.steps == 2 and ran(handle.report)
        assert torch.equal(stopped, seen[1][1].to(stopped.dtype))
        assert not torch.equal(call(tiny, pipe, steps=4, callback_on_step_end=double), plain)
        assert torch.equal(call(tiny, pipe, steps=4), plain), "an interrupted run left something behind"


@pytest.mark.parametrize("name", ["wan", "hunyuan_video"])
def test_an_exception_in_a_callback(name):
    tiny = BY_NAME[name]
    pipe = tiny.make()
    dense = call(tiny, pipe)

    def fail(pipe, index, timestep, kwargs):
        raise KeyboardInterrupt

    with accelerate(pipe, [TokenMerging()]):
        fast = call(tiny, pipe)
        with pytest.raises(KeyboardInterrupt):
            call(tiny, pipe, callback_on_step_end=fail)
        assert pipe.report.steps == 1
        assert torch.equal(call(tiny, pipe), fast)
    assert torch.equal(call(tiny, pipe), dense)


def test_changes_in_mid_run_are_refused():
    tiny = BY_NAME["wan"]
    pipe = tiny.make()
    errors = []

    def meddle(pipe, index, timestep, kwargs):
        for action in (lambda: pipe.set_methods([]), lambda: pipe.dense().__enter__(), lambda: call(tiny, pipe)):
            with pytest.raises(RuntimeError) as error:
                action()
            errors.append(str(error.value))
        return {}

    with accelerate(pipe, [TokenMerging()]):
        fast = call(tiny, pipe, steps=2)
        assert torch.equal(call(tiny, pipe, steps=2, callback_on_step_end=meddle), fast)
    assert len(errors) == 6 and all("run" in error for error in errors)
