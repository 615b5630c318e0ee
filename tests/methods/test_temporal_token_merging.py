"""TemporalTokenMerging in real pipelines: which frames attend as one, what they compute, what the guard keeps apart."""

from contextlib import contextmanager

import pytest
import torch
from diffusers.models.embeddings import get_1d_rotary_pos_embed
from diffusers.models.transformers.transformer_hunyuan_video import HunyuanVideoAttnProcessor2_0
from diffusers.models.transformers.transformer_wan import WanAttnProcessor
from helpers import BY_NAME, NothingAccelerated, assert_close, dense_output
from tiny import noise, wan_transformer

from fastdit import RadialAttention, TemporalTokenMerging, TokenMerging, accelerate
from fastdit.attention.backends import sdpa
from fastdit.attention.tokens import TokenStep
from fastdit.core.layout import TokenLayout
from fastdit.methods.runtime import Forward, Host
from fastdit.methods.temporal_token_merging.guard import MotionGuard
from fastdit.methods.temporal_token_merging.method import Frames, TemporalRuntime
from fastdit.models.base import family_of, load_families
from fastdit.ops.temporal import frame_groups

ALWAYS = TemporalTokenMerging(noise=(0, 1))
PLACES = 64  # tokens of a frame
NAME = "temporal_token_merging"


def call(name, pipe, pictures=9, batch=1, steps=2, sample=None):
    """A run of so many pictures; a VAE that turns 4 into one latent frame, the first apart."""
    arguments = BY_NAME[name].arguments(pipe, batch, 16)
    arguments |= {"num_frames": pictures, "latents": noise(batch, 4, 1 + (pictures - 1) // 4, 16, 16)}
    if sample is not None:
        arguments = {
            k: v[sample : sample + 1] if torch.is_tensor(v) and len(v) == batch else v for k, v in arguments.items()
        }
    pipe.set_progress_bar_config(disable=True)
    return torch.as_tensor(pipe(**arguments, num_inference_steps=steps, output_type="latent", return_dict=False)[0])


@contextmanager
def recorded(*modules):
    """(module, arguments by position, keyword arguments, output) of each call, as long as it is open."""
    calls = []
    handles = [module.register_forward_hook(lambda *call: calls.append(call), with_kwargs=True) for module in modules]
    yield calls
    for handle in handles:
        handle.remove()


def densities(report, name=NAME):
    return [row.density[name] for row in report.rows]


def rows_for(positions, dims, theta):
    """cos, sin (N, D) by diffusers' own formula at the given frame positions over 8 x 8 places."""
    places = torch.arange(8.0)
    grid = torch.stack(torch.meshgrid(torch.tensor(positions).float(), places, places, indexing="ij"))
    parts = [
        get_1d_rotary_pos_embed(dim, axis.flatten(), theta, use_real=True, repeat_interleave_real=True)
        for dim, axis in zip(dims, grid, strict=True)
    ]
    return tuple(torch.cat(tables, dim=1) for tables in zip(*parts, strict=True))


def averaged(x, groups):
    """Tokens (B, F * 64, C) with groups of frames averaged, spelled out."""
    frames = x.unflatten(1, (-1, PLACES)).split(groups, dim=1)
    return torch.cat([sum(part.unbind(1)) / part.shape[1] for part in frames], dim=1)


def repeated(y, groups):
    parts = y.split(PLACES, dim=1)
    return torch.cat([part for part, size in zip(parts, groups, strict=True) for _ in range(size)], dim=1)


# --- what a merged call computes --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("pictures", "group", "groups", "positions"),
    [
        (17, 2, (1, 2, 2), [0, 1.5, 3.5]),
        (21, 2, (1, 2, 2, 1), [0, 1.5, 3.5, 5]),
        (25, 3, (1, 3, 3), [0, 2, 5]),
        (21, 3, (1, 3, 2), [0, 2, 4.5]),
    ],
)
def test_wan_equals_its_processor_on_averaged_tokens(pictures, group, groups, positions):
    pipe = BY_NAME["wan"].make()
    attention = pipe.transformer.blocks[1].attn1
    with accelerate(pipe, [TemporalTokenMerging(group=group, noise=(0, 1))]), recorded(attention) as calls:
        call("wan", pipe, pictures, batch=2, steps=1)
    assert len(calls) == 2  # with and without the prompt
    cos, sin = (table[None, :, None] for table in rows_for(positions, (8, 4, 4), 10000.0))
    for _, (hidden, encoder, mask, rotary), _, out in calls:
        assert hidden.shape[1] == sum(groups) * PLACES == rotary[0].shape[1]
        expected = WanAttnProcessor()(attention, averaged(hidden, groups), encoder, mask, (cos, sin))
        assert_close(out, repeated(expected, groups), 1e-5)


@pytest.mark.parametrize("name", ["hunyuan_video", "hunyuan_i2v_replace"])
@pytest.mark.parametrize(("pictures", "groups", "positions"), [(9, (1, 2), [0, 1.5]), (13, (1, 2, 1), [0, 1.5, 3])])
def test_hunyuan_equals_its_processor_on_averaged_tokens(name, pictures, groups, positions):
    """Double and single blocks, with padded text."""
    pipe = BY_NAME[name].make()
    transformer = pipe.transformer
    attentions = transformer.transformer_blocks[0].attn, transformer.single_transformer_blocks[0].attn
    with accelerate(pipe, [ALWAYS]), recorded(*attentions) as calls:
        call(name, pipe, pictures, batch=2, steps=1)
    rows, padded = rows_for(positions, (4, 6, 6), 256.0), 0
    assert {id(module) for module, *_ in calls} == set(map(id, attentions))
    for module, _, given, (out, text) in calls:
        mask = given["attention_mask"]  # (B, 1, 1, S)
        merged = {
            "hidden_states": averaged(given["hidden_states"], groups),
            "encoder_hidden_states": given["encoder_hidden_states"],
            "attention_mask": mask[..., (sum(groups) - len(groups)) * PLACES :],
            "image_rotary_emb": rows,
        }
        expected, expected_text = HunyuanVideoAttnProcessor2_0()(module, **merged)
        assert_close(out, repeated(expected, groups), 1e-5)
        assert_close(text, expected_text, 1e-5)
        padded += int((~mask).sum())
    assert padded


@pytest.mark.parametrize(("name", "text"), [("wan", 6), ("wan_i2v", 512)])  # the latter reads an image beside it
def test_cross_attention_merges_the_queries_only(name, text):
    pipe = BY_NAME[name].make()
    block = pipe.transformer.blocks[1]
    processor, macs = block.attn2.processor, []
    for merged in (False, True):
        method = TemporalTokenMerging(noise=(0, 1), cross_attention=merged)
        lengths = recorded(block.attn2.to_q, block.attn2.to_k)
        with accelerate(pipe, [method]) as handle, recorded(block.attn2) as calls, lengths as projections:
            call(name, pipe, steps=1)
        assert block.attn2.processor is processor
        groups = (1, 2) if merged else (1, 1, 1)
        tokens = {module: out.shape[1] for module, *_, out in projections}
        assert tokens == {block.attn2.to_q: len(groups) * 64, block.attn2.to_k: text}
        for _, (hidden, *rest), _, out in calls:
            expected = WanAttnProcessor()(block.attn2, averaged(hidden, groups), *rest)
            assert_close(out, repeated(expected, groups), 1e-5)
        macs.append(handle.report.macs_executed)
    assert macs[1] < macs[0] < handle.report.macs_dense


def test_a_mask_of_the_text_stays_whole_in_cross_attention():
    pipe = BY_NAME["wan"].make()
    attention = pipe.transformer.blocks[0].attn2
    hidden, text = noise(2, 192, 32), noise(2, 6, 32, seed=1)
    mask = (torch.arange(6) < torch.tensor([[6], [4]]))[:, None, None]  # (B, 1, 1, S)
    expected = WanAttnProcessor()(attention, averaged(hidden, (1, 2)), text, mask)
    with accelerate(pipe, [TemporalTokenMerging(cross_attention=True)]):
        layout = TokenLayout(3, 8, 8)
        attention.processor.tokens = TokenStep(layout, Frames((1, 2), layout), cross=True)
        assert_close(attention(hidden, text, mask), repeated(expected, (1, 2)), 1e-5)


@pytest.mark.parametrize("name", ["wan", "wan22_ti2v", "wan22_ti2v_image", "hunyuan_video", "hunyuan_i2v_replace"])
def test_only_attention_sees_fewer_tokens(name):
    """Residual stream, modulation (of each token, in two of these rows) and MLP keep every frame."""
    pipe = BY_NAME[name].make()
    blocks = [*getattr(pipe.transformer, "blocks", []), *getattr(pipe.transformer, "transformer_blocks", [])]
    feed = [getattr(block, "ffn", None) or block.ff for block in blocks]
    queries = [getattr(block, "attn1", None) or block.attn for block in blocks]
    queries = [attention.to_q for attention in queries]
    with accelerate(pipe, [ALWAYS]), recorded(*blocks, *feed, *queries) as calls:
        BY_NAME[name].call(pipe, steps=1)
    for module, *_, out in calls:
        out = out if torch.is_tensor(out) else out[0]
        assert out.shape[1] == (2 if module in queries else 3) * PLACES
        if module in blocks:
            assert not torch.equal(out[:, 64:128], out[:, 128:]), "the frames of a pair became one"
    assert len(calls) >= 3 * len(blocks)


# --- which steps, and which runs --------------------------------------------------------------------------------------


def test_the_default_range_is_half_of_wans_steps():
    transformer = wan_transformer()
    runtime = bound(TemporalTokenMerging(), transformer)
    shares = [1 - i / 50 for i in range(50)]
    levels = [5 * share / (1 + 4 * share) for share in shares]
    layout = runtime.host.family.layout(transformer, {"hidden_states": torch.empty(1, 4, 21, 16, 16)})
    merged = [runtime.groups(layout, level) for level in levels]
    assert [groups is not None for groups in merged] == [i <= 25 for i in range(50)]
    assert merged[0] == frame_groups(21, 2, True) and len(merged[0]) == 11


def bound(method, transformer):
    return TemporalRuntime(method, Host("transformer", transformer, family_of(transformer)))


def test_steps_outside_the_range_are_dense():
    pipe = BY_NAME["wan"].make()
    with accelerate(pipe, [TemporalTokenMerging(noise=(0.5, 0.95))]) as handle:
        BY_NAME["wan"].call(pipe, steps=6)
    report = handle.report
    inside = [0.5 <= row.noise <= 0.95 for row in report.rows]
    assert any(inside) and not inside[0] and not inside[-1]
    assert densities(report) == [2 / 3 if i else 1 for i in inside]
    assert [row.macs_executed < row.macs_dense for row in report.rows] == inside
    assert report.methods[NAME].note == "3 latent frames attend as 2 on average" and report.methods[NAME].note in str(
        report
    )


@pytest.mark.parametrize(
    ("alternate", "groups"),
    [(True, [(1, 3, 2), (1, 1, 3, 1), (1, 2, 3), (1, 3, 2)]), (False, [(1, 3, 2)] * 4)],
)
def test_groups_begin_one_frame_later_in_each_step(alternate, groups, monkeypatch):
    """In both passes of the guidance, however many steps there are."""
    plans = []
    plan = TemporalRuntime.plan
    monkeypatch.setattr(TemporalRuntime, "plan", lambda *about: plans.append(plan(*about)) or plans[-1])
    pipe = BY_NAME["wan"].make()
    with accelerate(pipe, [TemporalTokenMerging(group=3, noise=(0, 1), alternate=alternate)]) as handle:
        call("wan", pipe, 21, steps=4)
    assert [each.groups for each in plans] == [(own,) for own in groups for _ in ("prompt", "no prompt")]
    assert densities(handle.report) == [len(own) / 6 for own in groups]
    mean = sum(map(len, groups)) / 4
    assert handle.report.methods[NAME].note == f"6 latent frames attend as {mean:g} on average"


@pytest.mark.parametrize(
    ("name", "group", "attended"), [("wan", 2, {3: [2, 2], 4: [3, 3]}), ("hunyuan_video", 3, {3: [2, 2], 4: [2, 3]})]
)
def test_runs_of_other_lengths_in_a_row(name, group, attended):
    """Odd and even counts of latent frames; each run is what a fresh pipeline gives."""
    pipe, method = BY_NAME[name].make(), TemporalTokenMerging(group=group, noise=(0, 1))
    outputs = []
    with accelerate(pipe, [method]) as handle:
        for latent in (3, 4, 3):
            outputs.append(call(name, pipe, 4 * latent - 3))
            assert densities(handle.report) == [frames / latent for frames in attended[latent]]
    assert torch.equal(outputs[0], outputs[2])
    fresh = BY_NAME[name].make()
    with accelerate(fresh, [method]):
        assert torch.equal(call(name, fresh, 13), outputs[1])


def test_what_cannot_merge_is_an_error_before_the_first_forward():
    pipe = BY_NAME["wan"].make()
    with accelerate(pipe, [ALWAYS]):
        for pictures, frames in ((1, 1), (5, 2)):
            with pytest.raises(NothingAccelerated, match=rf"{frames} latent frames leave no two.*raise num_frames"):
                call("wan", pipe, pictures)
        pipe.set_methods([TemporalTokenMerging(noise=(0.1, 0.2))])
        with pytest.raises(NothingAccelerated, match=r"noise within 0\.1:0\.2: widen the noise range"):
            call("wan", pipe)
        pipe.set_methods([TemporalTokenMerging(noise=(0.9, 1), motion_guard=1)])
        with pytest.raises(NothingAccelerated, match=r"guard knows nothing before the first step.*leave out motion_"):
            call("wan", pipe)


def test_reasons_of_what_does_not_go_together():
    hunyuan = BY_NAME["hunyuan_video"].make()
    with pytest.raises(ValueError, match=r"HunyuanVideo, which lacks: an attention to the text apart from self"):
        accelerate(hunyuan, [TemporalTokenMerging(cross_attention=True)])
    wan = BY_NAME["wan"].make()
    for other, reason in (
        (TokenMerging(scope="block"), "both reduce the tokens that attention sees"),
        (TemporalTokenMerging(group=4), "a larger group merges more"),
        (RadialAttention(), r"limit it to some noise or layers, such as noise=0\.9:1"),
    ):
        with pytest.raises(ValueError, match=reason):
            accelerate(wan, [ALWAYS, other])


def test_a_bare_transformer_merges_by_its_timestep():
    transformer = wan_transformer()
    inputs = {"hidden_states": noise(1, 4, 3, 16, 16), "encoder_hidden_states": noise(1, 6, 24, seed=1)}
    dense = {t: transformer(**inputs, timestep=torch.tensor([t])).sample for t in (900.0, 500.0)}
    with accelerate(transformer, [TemporalTokenMerging()]):
        for t, merges in ((900.0, True), (500.0, False)):
            assert torch.equal(transformer(**inputs, timestep=torch.tensor([t])).sample, dense[t]) != merges
    with (
        accelerate(transformer, [TemporalTokenMerging(motion_guard=0.2)]),
        pytest.raises(ValueError, match=r"motion_guard compares with the step before.*outside.*motion_guard=None"),
    ):
        transformer(**inputs, timestep=torch.tensor([900.0]))


# --- together with sparse attention -----------------------------------------------------------------------------------


def test_merges_first_and_is_sparse_later(monkeypatch):
    monkeypatch.setattr(sdpa, "SHORT_SEQUENCE", 0)
    pipe = BY_NAME["wan"].make()
    merging = TemporalTokenMerging(noise=(0.85, 1))
    radial = RadialAttention(decay=0.2, dense_share=0.4, dense_layers=0)
    for methods in ([merging, radial], [radial, merging]):
        with accelerate(pipe, methods) as handle:
            call("wan", pipe, steps=5)
            report = handle.report
        merged, sparse = densities(report), densities(report, "radial_attention")
        inside = [row.noise >= 0.85 for row in report.rows]
        assert inside == [True, True, False, False, False]
        assert merged == [2 / 3 if i else 1 for i in inside]
        # both merged steps are Radial's dense ones at the start: 2 of 5
        assert sparse[:2] == [1, 1] and max(sparse[2:]) < 1
        assert all(row.macs_executed < row.macs_dense for row in report.rows)
        assert not any(m.reason for m in report.methods.values())
    with accelerate(pipe, [TemporalTokenMerging(noise=(0.5, 1)), radial]) as handle:
        call("wan", pipe, steps=5)
    # merged steps behind Radial's start stay without a mask
    assert densities(handle.report) == [2 / 3] * 4 + [1]
    sparse = densities(handle.report, "radial_attention")
    assert sparse[:4] == [1] * 4 and sparse[4] < 1


def test_radial_says_when_merging_leaves_it_no_step():
    pipe = BY_NAME["wan"].make()
    methods = [TemporalTokenMerging(noise=(0.01, 1)), RadialAttention(decay=0.2, dense_layers=0)]
    with accelerate(pipe, methods) as handle:
        call("wan", pipe, steps=3)
    assert "tokens are merged in every call that would be sparse" in handle.report.methods["radial_attention"].reason


# --- the motion guard -------------------------------------------------------------------------------------------------


def changes_of(pipe, calls, passes):
    """How much neighbouring frames differ in latents - sigma * velocity, (B, F - 1) of each call of the transformer."""
    found = []
    for index, (_, _, given, (velocity, *_)) in enumerate(calls):
        latents = given["hidden_states"][:, : velocity.shape[1]]
        clean = latents - float(pipe.scheduler.sigmas[index // passes]) * velocity
        spread = (clean - clean.mean((2, 3, 4), keepdim=True)).square().mean((1, 2, 3, 4))
        step = (clean[:, :, 1:] - clean[:, :, :-1]).square().mean((1, 3, 4))
        found.append((step / spread[:, None]).sqrt())
    return found


@pytest.mark.parametrize(("name", "passes"), [("wan_i2v", 2), ("hunyuan_video", 1)])
def test_the_guard_decides_for_each_pair_and_sample(name, passes, monkeypatch):
    """By what the step before made of the video; an image-to-video model reads its condition in further channels."""
    pipe = BY_NAME[name].make()
    with recorded(pipe.transformer) as calls:
        call(name, pipe, 17, batch=2, steps=1)
    pairs = torch.cat([found[:, [1, 3]] for found in changes_of(pipe, calls, passes)]).flatten().sort().values
    threshold = float(pairs[len(pairs) // 2 - 1 : len(pairs) // 2 + 1].mean())

    plans = []
    plan = TemporalRuntime.plan
    monkeypatch.setattr(TemporalRuntime, "plan", lambda *about: plans.append(plan(*about)) or plans[-1])
    method = TemporalTokenMerging(noise=(0, 1), alternate=False, motion_guard=threshold)
    with accelerate(pipe, [method]) as handle:
        with recorded(pipe.transformer) as calls:
            both = call(name, pipe, 17, batch=2, steps=3)
        report, decided = handle.report, [each.groups for each in plans]
        expected, pair = [], {True: (2,), False: (1, 1)}
        for found in changes_of(pipe, calls, passes)[:-passes]:
            merges = (found <= threshold).tolist()
            expected.append(tuple((1, *pair[row[1]], *pair[row[3]]) for row in merges))
        alone = [call(name, pipe, 17, batch=2, steps=3, sample=sample) for sample in range(2)]
    assert decided[:passes] == [((1,) * 5,)] * passes, "nothing is known before the first step"
    assert [groups if len(groups) == 2 else groups * 2 for groups in decided[passes:]] == expected
    assert any(one != other for one, other in expected), "both samples merge alike: this shows little"
    for sample in range(2):
        assert_close(alone[sample], both[sample : sample + 1], 2e-5)

    merged = sum(size > 1 for each in expected for groups in each for size in groups) / 2
    assert 0 < merged < 2 * len(expected)
    assert report.methods[NAME].note == f"merged {merged / len(decided):.3g} of 2 groups of frames on average"
    assert report.rows[0].macs_executed == report.rows[0].macs_dense
    assert report.rows[1].macs_executed < report.rows[1].macs_dense


@pytest.mark.parametrize(("name", "cross"), [("wan", True), ("hunyuan_video", False)])
def test_samples_of_unequal_groups_equal_samples_alone(name, cross, monkeypatch):
    """Each sample by its own groups, one of them whole; MACs are the sum of both."""
    apart = [[False, False, False, True], [True] * 4]  # of the groups (1, 2, 2): one is left, none is left
    method = TemporalTokenMerging(noise=(0, 1), alternate=False, motion_guard=0, cross_attention=cross)
    pipe, outputs, macs = BY_NAME[name].make(), {}, {}
    dense = call(name, pipe, 17, batch=2)
    for samples in ((0, 1), (0,), (1,)):
        found = [apart[sample] for sample in samples]
        monkeypatch.setattr(MotionGuard, "apart", lambda *_, found=found: found)
        with accelerate(pipe, [method]) as handle:
            outputs[samples] = call(name, pipe, 17, batch=2, sample=samples[0] if len(samples) == 1 else None)
        macs[samples] = handle.report.macs_executed
        assert densities(handle.report) == [sum(4 if sample == 0 else 5 for sample in samples) / len(samples) / 5] * 2
    for sample in range(2):
        assert_close(outputs[sample,], outputs[0, 1][sample : sample + 1], 2e-5)
    assert_close(outputs[0, 1][1:], dense[1:], 1e-6)
    assert (outputs[0, 1][0] - dense[0]).abs().max() > 1e-4
    assert macs[0, 1] == macs[0,] + macs[1,] and macs[0,] < macs[1,]


def test_a_guard_that_keeps_all_apart_is_dense_and_says_so():
    pipe = BY_NAME["wan"].make()
    with accelerate(pipe, [TemporalTokenMerging(noise=(0, 1), motion_guard=0)]) as handle:
        out = BY_NAME["wan"].call(pipe)
        report = handle.report
        assert torch.equal(out, dense_output("wan"))
        assert report.methods[NAME].density == 1 and report.macs_executed == report.macs_dense
        assert report.methods[NAME].reason == "motion_guard=0 kept all groups of frames apart: a higher one merges more"
        pipe.set_methods([TemporalTokenMerging(noise=(0, 1), motion_guard=100)])
        BY_NAME["wan"].call(pipe)
        assert not handle.report.methods[NAME].reason
        assert densities(handle.report) == [1, 2 / 3, 2 / 3]


def test_the_guard_forgets_between_runs_and_steps():
    """The second run begins as the first; the second of Wan 2.2's transformers has a first step of its own."""
    method = TemporalTokenMerging(noise=(0, 1), motion_guard=100)
    pipe = BY_NAME["wan22_a14b"].make()
    with accelerate(pipe, [method]) as handle:
        outputs = []
        for _ in range(2):
            outputs.append(BY_NAME["wan22_a14b"].call(pipe, steps=5))
            shares = densities(handle.report)
            first = next(i for i, row in enumerate(handle.report.rows) if row.noise < 0.9)
            assert [i for i, share in enumerate(shares) if share == 1] == [0, first] and len(set(shares)) == 2
            guards = [item.runtimes[0].guard for item in pipe._fastdit.attached]
            assert len(guards) == 2 and not any(guard._changes for guard in guards)
    assert torch.equal(*outputs)


@pytest.mark.parametrize(("name", "sign"), [("wan", 1), ("hunyuan_video", 1), ("mochi", -1)])
def test_the_clean_video_by_each_familys_velocity(name, sign):
    """A model that knows the answer: velocity = noise - data, or in Mochi data - noise."""
    data, gauss = noise(1, 4, 3, 8, 8), noise(1, 4, 3, 8, 8, seed=1)
    velocity = sign * (gauss - data)
    assert_close(load_families()[name].clean(0.3 * data + 0.7 * gauss, velocity, 0.7), data, 1e-6)


def test_the_guard_uses_no_estimate_but_that_of_the_step_before():
    """A pass that was left out, or an earlier loop of steps in the same run, tells nothing."""
    runtime = bound(TemporalTokenMerging(motion_guard=0.5), wan_transformer())
    layout = runtime.host.family.layout(runtime.host.module, {"hidden_states": torch.empty(1, 4, 3, 16, 16)})
    runtime.guard._changes[0] = 4, torch.tensor([[0.4, 0.6]])
    for step, batch, passed, found in (
        (5, 1, 0, [[False, True]]), (6, 1, 0, None), (3, 1, 0, None), (0, 1, 0, None), (5, 1, 1, None), (5, 2, 0, None),
    ):  # fmt: skip
        forward = Forward(layout, batch, noise=0.9, step_index=step, num_steps=8, pass_index=passed)
        assert runtime.guard.apart(forward) == found


def test_a_prediction_takes_the_guard_to_agree():
    from fastdit.pipelines.profiling import Geometry, profile, read_model

    model = read_model("fastdit/emoji-video")
    seen = [
        profile(model, [TemporalTokenMerging(noise=(0, 1), motion_guard=guard)], Geometry(16, 16, 16, 2))
        for guard in (0.1, None)
    ]
    assert densities(seen[0]) == [1, 9 / 16] and densities(seen[1]) == [9 / 16] * 2
    assert seen[0].methods[NAME].note == "merged 3.5 of 7 groups of frames at most, as the guard decides in the run"
