"""The parts of BlockStreaming: models built without weights, files read by offset, which units stay."""

from itertools import pairwise
from pathlib import Path

import diffusers
import pytest
import torch
import transformers
from helpers import BY_NAME
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file
from torch import nn

from fastdit import BlockStreaming
from fastdit.methods.block_streaming import reading
from fastdit.methods.block_streaming.checkpoint import Entry, read_entries, read_header
from fastdit.methods.block_streaming.construct import construct
from fastdit.methods.block_streaming.reading import CHUNK, PAGE, Files, page_aligned
from fastdit.methods.block_streaming.residency import plan_residency, spread
from fastdit.methods.block_streaming.rows import RowEmbedding
from fastdit.methods.block_streaming.units import called_modules, cut

SMALL = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2}
T5 = {"d_model": 16, "d_kv": 8, "d_ff": 16, "num_layers": 2, "num_heads": 2, "vocab_size": 50}
MODELS = {
    "wan": lambda: BY_NAME["wan"].make().transformer,
    "hunyuan": lambda: BY_NAME["hunyuan_video"].make().transformer,
    "dit": lambda: BY_NAME["dit"].make().transformer,
    "wan vae": lambda: BY_NAME["wan_i2v"].make().vae,
    "hunyuan vae": lambda: BY_NAME["hunyuan_i2v_concat"].make().vae,
    "image vae": lambda: diffusers.AutoencoderKL(block_out_channels=(8,), norm_num_groups=2, layers_per_block=1),
    "umt5": lambda: transformers.UMT5EncoderModel(transformers.UMT5Config(**T5)),
    "t5": lambda: transformers.T5EncoderModel(transformers.T5Config(**T5)),
    "clip": lambda: transformers.CLIPTextModel(transformers.CLIPTextConfig(**SMALL, vocab_size=50)),
    "llama": lambda: transformers.LlamaModel(transformers.LlamaConfig(**SMALL, vocab_size=50)),
    "clip vision": lambda: transformers.CLIPVisionModel(
        transformers.CLIPVisionConfig(**SMALL, image_size=8, patch_size=4)
    ),
}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("name", MODELS)
def test_construct_equals_from_pretrained(name, dtype, tmp_path):
    torch.manual_seed(0)
    model = MODELS[name]()
    model.save_pretrained(tmp_path)
    own = {"torch_dtype": dtype} if hasattr(model, "load_config") else {"dtype": dtype}
    loaded = type(model).from_pretrained(tmp_path, **own)
    empty, entries = construct(type(model), tmp_path, dtype)
    assert not empty.training and type(empty) is type(loaded)
    parameters = dict(empty.named_parameters(remove_duplicate=False))
    assert all(parameter.untyped_storage().nbytes() <= 8 for parameter in parameters.values())
    files = Files()
    wanted = dict(loaded.named_parameters(remove_duplicate=False))
    assert parameters.keys() == wanted.keys()
    shared = [name for name in parameters if name not in entries]  # tied: the other name has the entry
    for key, parameter in wanted.items():
        assert parameters[key].dtype == parameter.dtype and parameters[key].shape == parameter.shape, key
        if key in shared:
            assert any(parameters[key] is parameters[other] for other in entries if other in parameters)
            continue
        value = torch.empty(parameter.shape, dtype=parameter.dtype)
        files.read([(entries[key], value)])
        assert torch.equal(value, parameter), key
    for key, buffer in loaded.named_buffers():
        if key not in entries:
            mine = dict(empty.named_buffers())[key]
            assert mine.dtype == buffer.dtype and torch.equal(mine, buffer), key
    files.close()


def test_variant_and_fallback(tmp_path):
    model = MODELS["image vae"]()
    model.save_pretrained(tmp_path)
    with torch.no_grad():
        model.encoder.conv_in.bias += 1
    model.save_pretrained(tmp_path, variant="fp16")
    plain, varied = (read_entries(tmp_path, variant)["encoder.conv_in.bias"].file.name for variant in (None, "fp16"))
    assert (plain, varied) == ("diffusion_pytorch_model.safetensors", "diffusion_pytorch_model.fp16.safetensors")
    assert read_entries(tmp_path, "ema")["encoder.conv_in.bias"].file.name == plain


@given(data=st.data())
@settings(max_examples=40, deadline=None)
def test_reading_any_tensors_in_any_dtype(data, tmp_path_factory):
    dtypes = [torch.float32, torch.bfloat16, torch.float16]
    shapes = data.draw(st.lists(st.lists(st.integers(0, 5), max_size=3), min_size=1, max_size=6))
    tensors = {f"t{i}": torch.randn(shape).to(data.draw(st.sampled_from(dtypes))) for i, shape in enumerate(shapes)}
    file = tmp_path_factory.mktemp("files") / "x.safetensors"
    save_file(tensors, file)
    entries = read_header(file)
    chosen = data.draw(st.permutations(sorted(tensors)))[: data.draw(st.integers(1, len(tensors)))]
    targets = {name: torch.empty(tensors[name].shape, dtype=data.draw(st.sampled_from(dtypes))) for name in chosen}
    files = Files()
    files.read([(entries[name], targets[name]) for name in chosen])
    files.close()
    for name, target in targets.items():
        assert torch.equal(target, tensors[name].to(target.dtype))


@pytest.mark.parametrize("short", [False, True])
@pytest.mark.parametrize("drop_cache", [False, True])
@pytest.mark.parametrize("shift", [0, 64])
def test_reading_more_than_one_system_call_takes(short, drop_cache, shift, tmp_path, monkeypatch):
    import os

    whole, read = torch.arange(CHUNK // 2 + 5, dtype=torch.float32), os.preadv
    save_file({"a": whole, "b": whole.to(torch.bfloat16)}, tmp_path / "x.safetensors")
    monkeypatch.setattr(reading, "LARGE", 0)
    if short:
        monkeypatch.setattr(
            os, "preadv", lambda d, views, at: read(d, [views[0][: len(views[0]) // 3 + 1]], at)
        )  # short reads
    entries, files = read_header(tmp_path / "x.safetensors"), Files(drop_cache)
    first = (entries["a"].start + shift) % PAGE  # aligned as in the file, or not
    same, cast = page_aligned(whole.nbytes + PAGE)[first:][: whole.nbytes].view(torch.float32), torch.empty_like(whole)
    files.read([(entries["a"], same), (entries["b"], cast)])
    files.close()
    assert torch.equal(same, whole) and torch.equal(cast, whole.to(torch.bfloat16).float())
    assert files.bytes_read == whole.nbytes * 3 // 2


@given(
    sizes=st.lists(st.integers(1, 100), min_size=1, max_size=30),
    budget=st.integers(1, 1500),
)
def test_residency_stays_within_its_budget(sizes, budget):
    if budget < max(sizes):
        with pytest.raises(ValueError, match="do not hold the largest unit"):
            plan_residency(sizes, budget)
        return
    found = plan_residency(sizes, budget)
    streamed = [size for index, size in enumerate(sizes) if index not in found.kept]
    assert found.nbytes == sum(sizes) - sum(streamed) + found.slots * found.slot_bytes <= budget
    assert not streamed or (found.slots >= 1 and found.slot_bytes == max(streamed))
    assert (sum(sizes) <= budget) == (not streamed)
    if len(streamed) > 1 and 2 * max(sizes) <= budget:
        assert found.slots == 2  # reading while computing comes before keeping more


@given(count=st.integers(0, 20), total=st.integers(1, 20))
def test_kept_items_are_spread_evenly(count, total):
    count = min(count, total)
    kept = sorted(spread(list(range(total)), count))
    assert len(kept) == count
    gaps = {(b - a) for a, b in pairwise(kept)}
    assert not gaps or max(gaps) - min(gaps) <= 1


class Model(nn.Module):
    def __init__(self):
        super().__init__()
        self.table = nn.Parameter(torch.zeros(3))
        self.embed = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
        self.inner = nn.Module()
        self.inner.scale = nn.Parameter(torch.zeros(1))
        self.inner.blocks = nn.ModuleList(nn.ModuleList([nn.Linear(2, 2), nn.Linear(2, 2)]) for _ in range(2))
        self.inner.tied = self.embed[0]
        self.norm = nn.LayerNorm(2)


def test_units_and_what_belongs_to_none():
    model = Model()
    names = [name for name, _ in called_modules(model)]
    assert names == ["embed.0", "embed.1", "inner.blocks.0", "inner.blocks.1", "inner.tied", "norm"]
    entries = dict.fromkeys(model.parameters(), Entry(Path(), 0, 0, torch.float32, ()))
    units, core = cut(model, entries)
    assert {unit.name for unit in units} == {"embed.1", "inner.blocks.0", "inner.blocks.1", "norm"}
    assert {parameter for parameter, _ in core.tensors} == {
        model.table,
        model.inner.scale,
        *model.embed[0].parameters(),
    }
    alone = cut(model, entries, ["inner.blocks.0.1"])[1]
    assert set(model.inner.blocks[0][1].parameters()) <= {parameter for parameter, _ in alone.tensors}


def test_rows_of_an_embedding(tmp_path, monkeypatch):
    embedding = nn.Embedding(1000, 8)
    save_file({"weight": embedding.weight.detach().bfloat16()}, tmp_path / "x.safetensors")
    expected = embedding.bfloat16().float()
    files = Files()
    rows = RowEmbedding(expected, read_header(tmp_path / "x.safetensors")["weight"], lambda: files)
    ids = torch.tensor([[5, 5, 999, 0], [7, 5, 0, 0]])
    assert torch.equal(rows(ids), expected(ids))
    assert files.bytes_read == 4 * 8 * 2
    for wrong in (-1, 1000):
        with pytest.raises(IndexError, match="token ids must lie in 0 to 999"):
            rows(torch.tensor([[3, wrong]]))
    monkeypatch.setattr("fastdit.methods.block_streaming.rows.STAGE", 2 * 8 * 4)  # two rows at a time
    many = torch.randint(0, 1000, (3, 50))
    assert torch.equal(rows(many), expected(many))
    files.close()


@pytest.mark.parametrize(
    "budget, size", [("4GiB", 4 << 30), ("1.5 gb", 1_500_000_000), (77, 77), ("25%", 250), ("8kib", 8192)]
)
def test_forms_of_a_budget(budget, size):
    assert BlockStreaming(memory_budget=budget).budget(1000) == size
