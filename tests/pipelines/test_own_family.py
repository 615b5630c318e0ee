"""A user's own transformer class, described and registered from outside the package; and bare transformers."""

from types import SimpleNamespace

import pytest
import torch
from diffusers.models.attention_processor import Attention
from helpers import BY_NAME, assert_close
from tiny import noise
from torch import nn

from fastdit import TokenMerging, accelerate, restore
from fastdit.core.clock import vp_noise
from fastdit.core.layout import TokenLayout
from fastdit.models import FAMILIES, BlockGroup, ModelFamily, family_of, register_family


class Block(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.attention = Attention(query_dim=width, heads=2, dim_head=width // 2)
        self.mlp = nn.Sequential(nn.Linear(width, 2 * width), nn.GELU(), nn.Linear(2 * width, width))

    def forward(self, x):
        x = x + self.attention(self.norm(x))
        return x + self.mlp(x)


class OwnTransformer(nn.Module):
    """Tokens straight from latents, time as one added vector."""

    def __init__(self, width=32, depth=3):
        super().__init__()
        self.config = SimpleNamespace(width=width)
        self.inward, self.time, self.outward = nn.Linear(4, width), nn.Linear(1, width), nn.Linear(width, 4)
        self.layers = nn.ModuleList(Block(width) for _ in range(depth))

    def forward(self, hidden_states, timestep):
        batch, _, height, width = hidden_states.shape
        x = self.inward(hidden_states.flatten(2).transpose(1, 2)) + self.time(timestep.view(-1, 1, 1) / 1000)
        for layer in self.layers:
            x = layer(x)
        return self.outward(x).transpose(1, 2).view(batch, 4, height, width)


@pytest.fixture
def own():
    register_family(
        ModelFamily(
            name="test_own",
            title="a transformer of our own",
            transformer_class=OwnTransformer,
            groups=(BlockGroup("layers", "attention", hidden_states="x"),),
            layout=lambda transformer, arguments: TokenLayout(1, *arguments["hidden_states"].shape[-2:]),
            inputs=lambda config, batch, frames, height, width: {
                "hidden_states": torch.empty(batch, 4, height, width),
                "timestep": torch.full((batch,), 500.0),
            },
            offers=frozenset({"tokens", "one_sdpa"}),
        )
    )
    torch.manual_seed(0)
    yield OwnTransformer().eval().requires_grad_(False)
    FAMILIES._items.pop("test_own")


@pytest.mark.parametrize("options", [{}, {"scope": "block"}, {"tokens": "kv"}, {"reducer": "prune"}], ids=str)
def test_a_family_from_outside(own, options):
    x, t = noise(2, 4, 8, 8), torch.tensor([500.0, 500.0])
    dense = own(x, t)
    with accelerate(own, [TokenMerging(density=1)]):
        assert torch.equal(own(x, t), dense)
    with accelerate(own, [TokenMerging(**options)]) as handle:
        out = own(x, t)
        assert_close(own(x[:1], t[:1]), out[:1], 2e-5)
    assert not torch.equal(out, dense) and out.isfinite().all()
    report = handle.report
    assert report.macs_executed < report.macs_dense and report.methods["token_merging"].calls == 6
    per_token = 32 * (4 * 32 + 4 * 32) * 3 + 2 * 4 * 32
    assert report.macs_dense == 3 * (64 * per_token + 2 * 64 * 64 * 32 * 3 + 32)  # of 3 samples in all
    assert torch.equal(own(x, t), dense)


def test_subclasses_are_found_along_their_mro_and_the_rest_is_refused(own):
    class Special(OwnTransformer):
        pass

    assert family_of(Special()).name == "test_own"
    with pytest.raises(ValueError, match=r"no model family describes Linear; known: .*Wan.*register_family"):
        accelerate(nn.Linear(2, 2), [TokenMerging()])


def test_a_name_is_taken_once(own):
    from dataclasses import replace

    with pytest.raises(ValueError, match="'test_own' is registered already"):
        register_family(replace(FAMILIES["test_own"], title="another"))


def test_a_path_that_finds_no_attention_is_an_error(own):
    own.layers = nn.ModuleList()
    with pytest.raises(ValueError, match="no self-attention found where family test_own lists them"):
        accelerate(own, [TokenMerging()])
    assert not own._forward_pre_hooks


@pytest.mark.parametrize("name", ["wan", "flux", "hunyuan_video"])
def test_a_bare_transformer_in_a_users_own_loop(name):
    """Outside a run noise comes from the forward's timestep, in the family's own convention."""
    tiny = BY_NAME[name]
    transformer = tiny.make().transformer
    inputs = {}
    hook = transformer.register_forward_pre_hook(lambda m, args, kwargs: inputs.update(kwargs), with_kwargs=True)
    pipe = tiny.make()
    pipe.transformer = transformer
    tiny.call(pipe, steps=1)
    hook.remove()
    inputs["return_dict"] = False
    scale = family_of(transformer).timestep_scale
    (dense,) = transformer(**inputs)
    with accelerate(transformer, [TokenMerging(density="linear:0.25:1")]) as handle:
        for level, density in ((1.0, 0.25), (0.5, 0.625), (0.0, 1.0)):
            (out,) = transformer(**{**inputs, "timestep": torch.full_like(inputs["timestep"], level * scale)})
            assert handle.report.rows[-1].density["token_merging"] == density and out.isfinite().all()
        assert handle.report.evaluations == 3
        with handle.dense():
            assert torch.equal(transformer(**inputs)[0], dense)
        with pytest.raises(ValueError, match="accelerated already"):
            accelerate(transformer, [TokenMerging()])
    assert torch.equal(transformer(**inputs)[0], dense)
    accelerate(transformer, [TokenMerging()])
    restore(transformer)
    assert torch.equal(transformer(**inputs)[0], dense)
    with pytest.raises(ValueError, match="not accelerated"):
        restore(transformer)


def test_noise_of_a_timestep_for_epsilon_models():
    family = family_of(BY_NAME["dit"].make().transformer)
    abar = torch.cumprod(1 - torch.linspace(1e-4, 0.02, 1000, dtype=torch.float64), 0)
    for timestep in (0, 500, 999):
        expected = vp_noise(abar, torch.tensor([timestep]))[0]
        assert family.noise({"timestep": torch.tensor([timestep])}) == pytest.approx(expected)


class Int8Linear(nn.Linear):
    """As quantisers make them: int8 weights with a scale per row, a subclass of nn.Linear."""

    @classmethod
    def of(cls, linear):
        self = cls(linear.in_features, linear.out_features, bias=linear.bias is not None)
        scale = linear.weight.abs().amax(1, keepdim=True) / 127
        self.weight = nn.Parameter((linear.weight / scale).round().to(torch.int8), requires_grad=False)
        self.register_buffer("scale", scale)
        self.bias = linear.bias
        return self

    def forward(self, x):
        return nn.functional.linear(x, self.weight.to(x.dtype) * self.scale, self.bias)


@pytest.mark.parametrize("name", ["pixart_alpha", "wan", "hunyuan_video"])
@pytest.mark.parametrize("method", [TokenMerging(), TokenMerging(scope="block")], ids=["attention", "block"])
def test_quantised_transformers(name, method):
    tiny = BY_NAME[name]

    def rounded(linear):
        int8 = Int8Linear.of(linear)
        linear.weight.data = int8.weight * int8.scale
        return linear

    outputs = []
    for convert in (Int8Linear.of, rounded):
        pipe = tiny.make()
        for _, block, _ in family_of(pipe.transformer).blocks(pipe.transformer):
            for path, module in list(block.named_modules()):
                if type(module) is nn.Linear:
                    parent, _, last = path.rpartition(".")
                    setattr(block.get_submodule(parent), last, convert(module))
        with accelerate(pipe, [method]) as handle:
            outputs.append(tiny.call(pipe, steps=2))
            assert handle.report.macs_executed < handle.report.macs_dense
    assert_close(outputs[0], outputs[1])
