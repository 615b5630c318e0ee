"""DyDiT: what is sliced and gathered equals what is masked, on every family, and refuses what cannot be cut."""

import math

import diffusers
import peft
import pytest
import torch
from helpers import BY_NAME, assert_close, counted, dense_output
from routed import ROUTED, masking, routed, runtime_of, shuffle, watched
from tiny import dit_arguments, weights
from torch.nn import functional as F
from torch.utils.flop_counter import FlopCounterMode

from fastdit import DyDiT, accelerate
from fastdit.methods.dydit.slices import Slices
from fastdit.methods.dydit.width import Slot


def wide_dit(layers=3, **config):
    return weights(
        diffusers.DiTTransformer2DModel, num_attention_heads=4, attention_head_dim=16, in_channels=4, out_channels=8,
        num_layers=layers, sample_size=8, patch_size=2, num_embeds_ada_norm=10, **config,
    )  # fmt: skip


def inputs(batch=3, timesteps=(500, 500, 500), seed=0):
    return {
        "hidden_states": torch.randn(batch, 4, 8, 8, generator=torch.Generator().manual_seed(seed)),
        "timestep": torch.tensor(timesteps),
        "class_labels": torch.arange(batch),
    }


# --- the same numbers -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ROUTED)
@pytest.mark.parametrize("seed", [0, 1])
def test_sliced_and_gathered_equals_masked(name, seed):
    tiny = BY_NAME[name]
    pipe = tiny.make()
    with routed(pipe, seed) as handle:
        sliced = tiny.call(pipe, batch=2)
        report = handle.report
        shares = {row.density["dydit"] for row in report.rows}
        assert all(0 < share < 1 for share in shares) and report.macs_executed < report.macs_dense
        for item in handle._engine.attached:
            masking(item.runtimes[0])
        masked = tiny.call(pipe, batch=2)
        assert handle.report.macs_executed >= handle.report.macs_dense
    assert_close(sliced, masked)
    assert not torch.equal(sliced, dense_output(name, batch=2))
    assert torch.equal(tiny.call(pipe, batch=2), dense_output(name, batch=2))


@pytest.mark.parametrize("name", ["dit", "wan", "hunyuan_video", "flux"])
@pytest.mark.parametrize(("bias", "share"), [(-math.inf, 0.0), (math.inf, 1.0)])
def test_no_tokens_and_all_tokens(name, bias, share):
    tiny = BY_NAME[name]
    pipe = tiny.make()
    with routed(pipe, tokens=bias, route="tokens") as handle:
        with watched(handle) as seen:
            out = tiny.call(pipe, batch=2)
        assert out.isfinite().all()
        assert {1 - routing.passed / routing.tokens for routing in seen} == {share}
        masking(runtime_of(handle))
        assert_close(out, tiny.call(pipe, batch=2))
    assert torch.equal(out, dense_output(name, batch=2)) == (share == 1)


def reference_dit(model, hidden_states, timestep, class_labels, routers):
    """DyDiT's published forward (section 3, eq. 2 to 6) of a DiT, one sample and one head at a time."""
    x = model.pos_embed(hidden_states)
    heads, size = 4, 16
    for block, router in zip(model.transformer_blocks, routers.blocks, strict=True):
        embed = model.transformer_blocks[0].norm1.emb
        time = embed.timestep_embedder(embed.time_proj(timestep))  # (B, C)
        condition = block.norm1.emb(timestep, class_labels, hidden_dtype=x.dtype)
        shift1, scale1, gate1, shift2, scale2, gate2 = block.norm1.linear(F.silu(condition)).chunk(6, dim=1)
        rows = []
        for b in range(len(x)):
            on = [True, *(router.heads(time[b]) > 0).tolist()]
            wide = [True, *(router.channels(time[b]) > 0).tolist()]
            h = block.norm1.norm(x[b]) * (1 + scale1[b]) + shift1[b]
            q, k, v = (getattr(block.attn1, f"to_{n}")(h) for n in "qkv")
            parts = [
                torch.softmax(q[:, s] @ k[:, s].mT / size**0.5, -1) @ v[:, s] * on[i]
                for i, s in enumerate(slice(i * size, (i + 1) * size) for i in range(heads))
            ]
            stream = x[b] + gate1[b] * block.attn1.to_out[0](torch.cat(parts, -1))
            let_in = router.tokens.out(F.relu(router.tokens.hidden(stream))) > 0  # (N, 1)
            u = block.ff.net[0].proj(block.norm3(stream) * (1 + scale2[b]) + shift2[b])
            groups = u.chunk(heads, -1)
            u = torch.cat([group * wide[i] for i, group in enumerate(groups)], -1)
            rows.append(stream + let_in * gate2[b] * block.ff.net[2](F.gelu(u, approximate="tanh")))
        x = torch.stack(rows)
    condition = model.transformer_blocks[0].norm1.emb(timestep, class_labels, hidden_dtype=x.dtype)
    shift, scale = model.proj_out_1(F.silu(condition)).chunk(2, dim=1)
    x = model.proj_out_2(model.norm_out(x) * (1 + scale[:, None]) + shift[:, None])
    return torch.einsum("nhwpqc->nchpwq", x.reshape(len(x), 4, 4, 2, 2, 8)).reshape(len(x), 8, 8, 8)


def test_a_fixed_share_holds_in_a_batch_of_other_timesteps_too():
    model, arguments = wide_dit(), inputs(timesteps=(3, 400, 999))
    with torch.no_grad(), routed(model, capacity=0.5) as handle:
        out = model(**arguments).sample
        assert handle.report.rows[-1].density["dydit"] == 1  # multiplied, nothing is left out
        own = [model(**{k: v[i : i + 1] for k, v in arguments.items()}).sample for i in range(3)]
        assert_close(torch.cat(own), out)


@pytest.mark.parametrize("timesteps", [(500, 500, 500), (3, 400, 999)])
def test_the_published_forward(timesteps):
    model, arguments = wide_dit(), inputs(timesteps=timesteps)
    with torch.no_grad(), routed(model) as handle:
        out, routers = model(**arguments).sample, runtime_of(handle).module
        plan = runtime_of(handle).plan_done
        assert plan.form == ("slice" if len(set(timesteps)) == 1 else "mask")
        own = [model(**{k: v[i : i + 1] for k, v in arguments.items()}).sample for i in range(3)]
        assert_close(torch.cat(own), out)
    with torch.no_grad():
        assert_close(out, reference_dit(model, **arguments, routers=routers))


def test_macs_are_those_that_torch_counts():
    model, arguments = wide_dit(), inputs()

    def two_products(query, key, value, **_):
        return (query @ key.transpose(2, 3)).softmax(3) @ value

    with torch.no_grad(), routed(model) as handle:
        model(**arguments)  # tables and slices
        before = handle.report.macs_executed
        with pytest.MonkeyPatch.context() as patch, FlopCounterMode(display=False) as counter:
            patch.setattr(F, "scaled_dot_product_attention", two_products)
            model(**arguments)
        executed = handle.report.macs_executed - before
    assert executed == pytest.approx(counter.get_total_flops() / 2, rel=1e-3)
    assert executed < 0.9 * handle.report.macs_dense / 2


# --- tables, slices, capacity ---------------------------------------------------------------------------------------


def test_gates_are_made_once_for_each_timestep_and_leave_the_class_out(monkeypatch):
    tiny = BY_NAME["dit"]
    pipe = tiny.make()
    with routed(pipe) as handle:
        runtime = runtime_of(handle)
        with counted(monkeypatch, type(runtime.tables), "embedding") as calls:
            tiny.call(pipe, batch=2, steps=3)
        assert len(calls) == 3
        first = runtime.tables.at(500.0)
        assert len({runtime.tables.at(float(t)) for t in range(0, 1000, 50)}) > 1
        with torch.no_grad():
            embed = pipe.transformer.transformer_blocks[0].norm1.emb
            embed.class_embedder.embedding_table.weight.normal_()
        runtime.tables.known.clear()
        assert runtime.tables.at(500.0) == first


def test_slices_are_kept_within_their_memory():
    slices, made = Slices(memory=100), []

    def get(key, size, stamp=0):
        pair = slices.get(key, stamp, 4 * size, lambda: (made.append(key), (torch.zeros(size), None))[1])
        assert pair is None or len(pair[0]) == size
        return pair is not None

    assert get("a", 10) and get("b", 10) and get("a", 10)
    assert made == ["a", "b"] and slices.bytes == 80
    assert not get("c", 10)  # 120 bytes: not kept, and those who are stay
    assert get("a", 10) and get("b", 10) and get("d", 5)
    assert made == ["a", "b", "d"] and slices.bytes == 100
    assert get("a", 10, stamp=1) and made[-1] == "a" and slices.bytes == 100  # another weight takes its place


def test_changed_weights_are_cut_anew():
    model, arguments = wide_dit(), inputs()
    with torch.no_grad(), routed(model) as handle:
        first = model(**arguments).sample
        for parameter in model.parameters():
            parameter.mul_(1.1)
        second = model(**arguments).sample
        runtime_of(handle).start()
        assert torch.equal(model(**arguments).sample, second) and not torch.equal(first, second)
        shuffle(runtime_of(handle), seed=7)
        third = model(**arguments).sample
        model.to(torch.bfloat16)
        arguments["hidden_states"] = arguments["hidden_states"].to(torch.bfloat16)
        assert model(**arguments).sample.isfinite().all()
    assert not torch.equal(third, second)


def test_without_memory_it_is_the_same():
    tiny = BY_NAME["pixart_alpha"]
    pipe = tiny.make()
    with routed(pipe) as handle:
        kept = tiny.call(pipe, batch=2)
    with routed(pipe, slice_memory=0) as handle:
        assert torch.equal(tiny.call(pipe, batch=2), kept)
        assert runtime_of(handle).slices.bytes == 0


@pytest.mark.parametrize("name", ["pixart_alpha", "hunyuan_video"])
def test_capacity_keeps_the_best_tokens_of_each_sample(name):
    tiny = BY_NAME[name]
    pipe = tiny.make()
    with routed(pipe, capacity=0.5) as handle:
        with watched(handle) as seen:
            out = tiny.call(pipe, batch=2)
        for routing in seen:
            length, text = routing.length, routing.before + routing.behind
            samples = routing.tokens // (length - text)
            kept = torch.bincount(routing.rows // length, minlength=samples)
            assert kept.tolist() == [(length - text) // 2 + text] * samples
        assert {row.density["dydit"] < 1 for row in handle.report.rows} == {True}
    with routed(pipe, capacity=1.0):
        everything = tiny.call(pipe, batch=2)
    with routed(pipe, tokens=math.inf):
        assert_close(everything, tiny.call(pipe, batch=2))
    assert not torch.equal(out, everything)


def test_halves_of_the_guidance_may_let_in_the_same_tokens():
    tiny = BY_NAME["pixart_alpha"]
    pipe = tiny.make()
    masks = {}
    for tied in (False, True):
        with routed(pipe, tie_guidance=tied) as handle:
            with watched(handle) as seen:
                tiny.call(pipe, batch=2)
            routing = seen[-1]
            mask = torch.zeros(routing.tokens, dtype=torch.bool)
            mask[routing.rows] = True
            masks[tied] = mask.view(4, -1)
            arguments = tiny.arguments(pipe, 3, 16) | {"guidance_scale": 1.0}  # nothing to tie: three samples
            pipe(**arguments, num_inference_steps=2, output_type="latent", return_dict=False)
    assert not torch.equal(*masks[False].chunk(2)) and torch.equal(*masks[True].chunk(2))


def test_guidance_of_three_channels_leaves_the_fourth_to_the_condition():
    tiny = BY_NAME["dit"]
    pipe = tiny.make()
    arguments = {**dit_arguments(pipe, 2, 16), "num_inference_steps": 2, "output_type": "latent", "return_dict": False}
    seen = []
    with accelerate(pipe, [DyDiT(guidance_channels=3)]):
        hook = pipe.transformer.register_forward_hook(lambda m, a, out: seen.append(out[0].clone()))
        pipe.set_progress_bar_config(disable=True)
        guided = pipe(**arguments)[0]
        hook.remove()
    for prediction in seen:
        conditional, unconditional = prediction.chunk(2)
        assert torch.equal(conditional[:, 3:], unconditional[:, 3:])
        assert not torch.equal(conditional[:, :3], unconditional[:, :3])
    plain = pipe(**arguments)[0]
    assert not torch.equal(torch.as_tensor(guided), torch.as_tensor(plain))


# --- what is refused ------------------------------------------------------------------------------------------------


def test_what_cannot_be_cut_is_refused_with_the_mend():
    pipe = BY_NAME["wan"].make()
    pipe.transformer.fuse_qkv_projections()
    with pytest.raises(ValueError, match=r"blocks\.0 are fused: call unfuse_qkv_projections"):
        accelerate(pipe, [DyDiT()])
    with accelerate(pipe, [DyDiT(route="tokens")]):  # tokens need no slices
        pass

    model = wide_dit()
    model.transformer_blocks[1].set_chunk_feed_forward(2)
    with pytest.raises(ValueError, match=r"transformer_blocks\.1 runs its feed-forward layer in chunks"):
        accelerate(model, [DyDiT()])

    model = wide_dit()
    layer = model.transformer_blocks[2].ff.net[0].proj
    layer.weight = torch.nn.Parameter(layer.weight.to(torch.int8), requires_grad=False)
    with pytest.raises(ValueError, match=r"transformer_blocks\.2\.ff\.net\.0\.proj is quantised"):
        accelerate(model, [DyDiT()])

    model = peft.inject_adapter_in_model(peft.LoraConfig(target_modules=["to_q"]), wide_dit()).eval()
    with pytest.raises(ValueError, match=r"attn1\.to_q is wrapped by a LoRA: fuse it and unload it"):
        accelerate(model, [DyDiT()])


def test_a_lora_that_comes_after_attaching_is_named():
    model, arguments = wide_dit(), inputs()
    with torch.no_grad(), routed(model):
        model(**arguments)
        wrapped = model.transformer_blocks[0].attn1
        own = wrapped.to_v
        wrapped.to_v = torch.nn.Sequential(own)
        with pytest.raises(RuntimeError, match=r"transformer_blocks\.0\.attn1\.to_v, which was exchanged since"):
            model(**arguments)
        wrapped.to_v = own


def test_families_that_route_no_width_say_so():
    with pytest.raises(ValueError, match=r"dydit .*FLUX.*lacks: self-attention and feed-forward layers whose heads"):
        accelerate(BY_NAME["flux"].make(), [DyDiT(heads=0.5)])


def test_slots_are_only_where_something_is_cut():
    pipe = BY_NAME["pixart_alpha"].make()
    with accelerate(pipe, [DyDiT(route="tokens")]):
        block = pipe.transformer.transformer_blocks[0]
        assert not isinstance(block.attn1.to_q.forward, Slot)
    with accelerate(pipe, [DyDiT(route="width")]):
        assert isinstance(block.attn1.to_q.forward, Slot) and "forward" not in vars(block.ff)
