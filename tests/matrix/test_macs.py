"""MACs: equal to an independent count when dense, falling with the density, matching included."""

from types import SimpleNamespace

import diffusers
import pytest
import torch
from helpers import BY_NAME, ON_EACH, universal_settings
from methods_table import TABLE
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from fastdit import TokenMerging, accelerate
from fastdit.core.macs import forward_macs, skeleton_of
from fastdit.methods.base import load_methods
from fastdit.models.base import load_families


def meta_inputs(family, config, batch, frames, height, width):
    inputs = load_families()[family].inputs(SimpleNamespace(**config), batch, frames, height, width)
    return {k: v.to("meta") if torch.is_tensor(v) else v for k, v in inputs.items()}


def test_dit_xl_2_is_118_67_gmac():
    with torch.device("meta"):
        model = diffusers.DiTTransformer2DModel().eval()  # the class defaults are DiT-XL/2 at 256 x 256
    assert (model.config.num_layers, model.config.num_attention_heads * model.config.attention_head_dim) == (28, 1152)
    inputs = meta_inputs("dit", model.config, 1, 1, 32, 32)
    macs = forward_macs(model, (), inputs)
    assert macs / 1e9 == pytest.approx(118.67, rel=0.005)


@ON_EACH
def test_the_dense_count_equals_torchs_own(tiny):
    """torch.utils.flop_counter on the real run, with attention written out as two matrix products."""
    pipe = tiny.make()

    def two_products(query, key, value, **_):
        return (query @ key.transpose(2, 3)).softmax(3) @ value

    with pytest.MonkeyPatch.context() as patch, FlopCounterMode(display=False) as counter:
        patch.setattr(torch.nn.functional, "scaled_dot_product_attention", two_products)
        tiny.call(pipe, batch=2, steps=2)
    expected = sum(counter.get_flop_counts()[type(pipe.transformer).__name__].values()) // 2  # the VAE is not counted

    with accelerate(pipe, [universal_settings()[0].method]) as handle:
        tiny.call(pipe, batch=2, steps=2)
    if tiny.family == "mochi":  # text that is not valid is counted too, as its quirks say
        assert expected < handle.report.macs_dense < 1.1 * expected
    else:
        assert handle.report.macs_dense == pytest.approx(expected, rel=1e-3)


@ON_EACH
@pytest.mark.parametrize("name", [name for name in load_methods() if TABLE[name].falling])
def test_macs_fall_with_the_density(tiny, name):
    if TABLE[name].falling[-1].missing(load_families()[tiny.family]):
        pytest.skip("refused, as test_composition shows")
    pipe = tiny.make()
    executed, densities = [], []
    for method in TABLE[name].falling:
        with accelerate(pipe, [method]) as handle:
            tiny.call(pipe, steps=TABLE[name].steps)
        executed.append(handle.report.macs_executed)
        densities.append(next(iter(handle.report.methods.values())).density)
    assert executed[0] == handle.report.macs_dense
    assert executed == sorted(executed, reverse=True) and len(set(executed)) == len(executed)
    assert densities == sorted(densities, reverse=True)


def test_matching_is_counted_and_reuse_saves_it():
    tiny = BY_NAME["wan"]
    pipe, counts = tiny.make(), {}
    for reuse in (1, 2):
        with accelerate(pipe, [TokenMerging(reuse_steps=reuse, reuse_blocks=1)]) as handle:
            tiny.call(pipe, steps=2)
        counts[reuse] = handle.report
    with accelerate(
        pipe, [TokenMerging(reducer="pool", reuse_blocks=1)]
    ) as handle:  # half of 8 x 8: 4 x 8 cells a frame, no matching
        tiny.call(pipe, steps=2)
    channels, tokens = 32, 192
    destinations = 48  # a window of 1 x 2 x 2: the smallest with at most 3/4 of 96
    matching = (tokens - destinations) * destinations * channels
    assert counts[1].macs_executed - counts[2].macs_executed == 2 * 2 * matching  # 2 blocks, 2 passes of step 2
    assert counts[2].macs_executed - handle.report.macs_executed == 2 * 2 * matching  # step 1
    assert counts[2].rows[0].macs_executed > counts[2].rows[1].macs_executed


def test_a_model_without_config_is_copied_to_meta():
    model = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2))
    model.register_buffer("scale", torch.ones(2))
    skeleton = skeleton_of(model)
    assert all(t.is_meta for t in [*skeleton.parameters(), *skeleton.buffers()])
    assert forward_macs(skeleton, (torch.zeros(5, 4),), {}) == 5 * (4 * 8 + 8 * 2)
    assert not any(t.is_meta for t in model.parameters())
