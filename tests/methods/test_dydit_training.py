"""DyDiT under training: open at first, gradients for every router, the published cost, and what is remembered."""

import pytest
import torch
from helpers import BY_NAME, assert_close
from routed import runtime_of, shuffle
from test_dydit import inputs, wide_dit

from fastdit import DyDiT, accelerate


def learn(model):
    """Training mode, without the class embedders' own dropout."""
    model.train()
    for block in model.transformer_blocks:
        block.norm1.emb.class_embedder.eval()
    return model


def test_at_first_every_gate_is_open_and_the_whole_work_is_done():
    model = wide_dit()
    arguments = inputs(timesteps=(3, 400, 999))
    dense = model(**arguments).sample
    with accelerate(model, [DyDiT()]) as handle:
        runtime = runtime_of(handle)
        learn(model)
        out = model(**arguments).sample
        assert_close(out, dense)
        share = runtime.executed()
        assert share.shape == (3,) and torch.allclose(share, torch.ones(3))
        with runtime.opened():
            assert torch.equal(model(**arguments).sample, dense)
        model.eval()


@pytest.mark.parametrize("name", ["dit", "pixart_alpha", "wan", "hunyuan_video", "flux"])
def test_gradients_reach_every_router(name):
    pipe = BY_NAME[name].make()
    model = pipe.transformer
    with accelerate(model, [DyDiT()]) as handle:
        runtime = runtime_of(handle)
        model.train()
        model(**forward_arguments(name, pipe), return_dict=False)
        (runtime.executed().mean() - 0.5).square().backward()
        for parameter_name, parameter in runtime.module.named_parameters():
            assert parameter.grad is not None and parameter.grad.isfinite().all(), parameter_name
        assert all(block.tokens.out.bias.grad.abs() > 0 for block in runtime.module.blocks)


def forward_arguments(name, pipe):
    """Arguments of one forward, as the pipeline makes them."""
    seen = {}
    handle = pipe.transformer.register_forward_pre_hook(lambda m, a, k: seen.update(k, a=a), with_kwargs=True)
    BY_NAME[name].call(pipe, batch=2, steps=2)
    handle.remove()
    positional = seen.pop("a")
    if positional:
        seen["hidden_states"] = positional[0]
    seen.pop("return_dict", None)
    return seen


def test_the_executed_share_is_the_published_formula():
    model, arguments = wide_dit(), inputs(timesteps=(3, 400, 999))
    with accelerate(model, [DyDiT()]) as handle:
        runtime = runtime_of(handle)
        shuffle(runtime)
        learn(model)
        model(**arguments)
        executed = runtime.executed().detach()
        tokens, width, channels = 16, 64, 256
        attention = 4 * tokens * width**2 + 2 * tokens**2 * width
        feed_forward = 2 * tokens * width * channels
        for sample in range(3):
            done = 0.0
            for block in runtime.blocks:
                heads, groups = (gate[sample].detach().sum() / 4 for gate in block.gates)
                let_in = block.routing.gate[sample].detach().sum() / tokens
                done += heads * attention + groups * let_in * feed_forward
            assert executed[sample].item() == pytest.approx(float(done) / 3 / (attention + feed_forward), rel=1e-5)
        assert len(set(executed.tolist())) > 1


def test_gradient_checkpointing_gives_the_same_gradients():
    model, arguments = wide_dit(), inputs(timesteps=(3, 400, 999))
    found = []
    with accelerate(model, [DyDiT()]) as handle:
        runtime = runtime_of(handle)
        shuffle(runtime)
        learn(model).requires_grad_(True)
        for checkpointing in (False, True):
            model.enable_gradient_checkpointing() if checkpointing else model.disable_gradient_checkpointing()
            torch.manual_seed(0)
            loss = model(**arguments).sample.square().mean() + (runtime.executed().mean() - 0.5).square()
            parameters = [*model.parameters(), *runtime.module.parameters()]
            found.append(torch.autograd.grad(loss, parameters, allow_unused=True))
    used = [(a, b) for a, b in zip(*found, strict=True) if a is not None]
    assert len(used) > 50
    for a, b in used:
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-6)


def test_what_training_saw_is_told_to_the_next_user():
    model, arguments = wide_dit(), inputs()
    with accelerate(model, [DyDiT()]) as handle:
        runtime = runtime_of(handle)
        assert runtime.structure()["shares"] is None
        shuffle(runtime)
        learn(model)
        model(**arguments)
        shares = runtime.structure()["shares"]
        assert len(shares) == 3 and all(len(row) == 3 and all(0 <= x <= 1 for x in row) for row in shares)
        assert runtime.structure()["heads"] == [4, 4, 4]
