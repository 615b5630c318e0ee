"""The optional kernels by stand-ins: what each refuses, what "auto" takes, and what they are handed."""

import math
import sys
import types
from dataclasses import replace
from functools import partial

import pytest
import torch
from test_sparse import dense, inputs, random_mask
from torch.nn import functional as F

from fastdit.attention.backends import flashinfer, flex, xformers
from fastdit.attention.backends.base import BACKENDS, SparseCall, absent, choose
from fastdit.attention.cover import pack
from fastdit.attention.sparse import sparse_attention


def fake_call(
    device="cuda", dtype=torch.bfloat16, tokens=8192, channels=128, block_size=128, mask=None, gradient=False
):
    """A call that is only looked at: its tensors need not exist on their device."""
    q = types.SimpleNamespace(
        device=torch.device(device), dtype=dtype, shape=(1, tokens, 4, channels), requires_grad=gradient
    )
    blocks = -(-tokens // block_size)
    return SparseCall(q, q, q, random_mask(blocks, 0.3) if mask is None else mask, block_size, (tokens,))


@pytest.fixture(autouse=True)
def look_again():
    """What is installed changes from test to test here."""
    absent.cache_clear()
    yield
    absent.cache_clear()


@pytest.fixture
def libraries(monkeypatch):
    """Stand-ins for flashinfer and xformers, a CUDA device to be seen, and no objection to tensors on the CPU."""
    made = types.ModuleType("flashinfer")
    made.BlockSparseAttentionWrapper = BlockSparse
    made.single_prefill_with_kv_cache, made.merge_state = single_prefill_with_kv_cache, merge_state
    ops = types.ModuleType("xformers.ops")
    ops.memory_efficient_attention = memory_efficient_attention
    ops.fmha = types.SimpleNamespace(attn_bias=types.SimpleNamespace(BlockDiagonalMask=BlockDiagonal))
    for name, module in (("flashinfer", made), ("xformers", types.ModuleType("xformers")), ("xformers.ops", ops)):
        monkeypatch.setitem(sys.modules, name, module)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    flashinfer._plan.cache_clear()
    flashinfer._workspace.cache_clear()
    BlockSparse.planned.clear()
    yield
    flashinfer._plan.cache_clear()
    flashinfer._workspace.cache_clear()


class BlockSparse:
    """What FlashInfer documents of its wrapper, computed densely."""

    planned: list = []

    def __init__(self, workspace):
        assert workspace.dtype == torch.uint8
        self.workspace = workspace

    def plan(self, indptr, indices, M, N, R, C, heads, kv_heads, channels, *, q_data_type, kv_data_type, o_data_type):
        assert indptr.dtype == indices.dtype == torch.int32 and heads == kv_heads and N % C == 0
        assert len(indptr) == math.ceil(M / R) + 1 and indptr[-1] == len(indices)
        assert not len(indices) or indices.max() * C < N
        self.mask = torch.zeros(M, N, dtype=torch.bool, device="cpu")
        for row in range(len(indptr) - 1):
            for column in indices[indptr[row] : indptr[row + 1]].tolist():
                self.mask[row * R : (row + 1) * R, column * C : (column + 1) * C] = True
        self.planned.append((R, C))

    def run(self, q, k, v, return_lse=False):
        return single_prefill_with_kv_cache(q, k, v, custom_mask=self.mask, return_lse=return_lse)


def single_prefill_with_kv_cache(q, k, v, custom_mask=None, return_lse=False):
    """FlashInfer's dense attention, q (M, H, D) and k, v (N, H, D); rows without any key are NaN here."""
    assert len(q) and len(k) and all(x.is_contiguous() for x in (q, k, v))
    scores = torch.einsum("qhd,khd->qhk", q.float(), k.float()) / math.sqrt(q.shape[2])
    if custom_mask is not None:
        scores = scores.masked_fill(~custom_mask[:, None], -math.inf)
    out = torch.einsum("qhk,khd->qhd", scores.softmax(-1), v.float()).half()
    return (out, scores.logsumexp(-1) / math.log(2)) if return_lse else out  # theirs is in powers of two


def merge_state(v_a, s_a, v_b, s_b):
    assert v_a.shape == v_b.shape and s_a.shape == s_b.shape == v_a.shape[:2] and s_a.dtype == torch.float32
    weight = (1 / (1 + torch.exp2(s_b - s_a)))[..., None]
    return (v_a * weight + v_b * (1 - weight)).half(), torch.logaddexp2(s_a, s_b)


class BlockDiagonal:
    @classmethod
    def from_seqlens(cls, lengths, device=None):
        bias = cls()
        bias.mask = torch.block_diag(*(torch.ones(n, n) for n in lengths)).bool()
        return bias


def memory_efficient_attention(q, k, v, attn_bias=None):
    mask = None if attn_bias is None else attn_bias.mask
    q, k, v = (x.transpose(1, 2) for x in (q, k, v))
    return F.scaled_dot_product_attention(q, k, v, attn_mask=mask).transpose(1, 2)


def test_every_backend_says_what_it_is_and_whether_it_is_there():
    assert list(BACKENDS) == ["flashinfer", "flex", "sdpa", "xformers"]
    for backend in BACKENDS.items():
        missing = backend[1].missing()
        assert backend[1].summary and (missing is None or "\n" not in missing)


def test_what_is_not_installed_says_how_to_install_it(monkeypatch):
    for name, backend in (("flashinfer", flashinfer), ("xformers", xformers)):
        monkeypatch.setitem(sys.modules, name, None)
        monkeypatch.setattr(backend, "needs_cuda", lambda call: None)
    mask = torch.block_diag(torch.ones(2, 2), torch.ones(5, 5)).bool()
    x = torch.zeros(1, 100, 2, 64).half()
    for name in ("flashinfer", "xformers"):
        with pytest.raises(ValueError, match=f"needs {name}, which does not load|needs {name}: pip install"):
            sparse_attention(x, x, x, mask, block_size=16, backend=name)


def test_a_library_that_breaks_on_import_is_one_line(monkeypatch, tmp_path):
    package = tmp_path / "xformers"
    package.mkdir()
    (package / "__init__.py").write_text("raise OSError('built for torch 2.1\\nundefined symbol')")
    monkeypatch.syspath_prepend(tmp_path)
    for name in ("xformers", "xformers.ops"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    reason = BACKENDS["xformers"].missing()
    assert reason == "needs xformers, which does not load here (OSError: built for torch 2.1)"


@pytest.mark.parametrize("name", ["flashinfer", "xformers"])
def test_tensors_on_the_cpu_are_refused_by_cuda_backends(name, libraries):
    x = torch.zeros(1, 100, 2, 64).half()
    with pytest.raises(ValueError, match=f"{name!r} runs on CUDA and the tensors are on cpu: move them"):
        sparse_attention(x, x, x, torch.ones(7, 7, dtype=torch.bool), block_size=16, backend=name)


@pytest.mark.parametrize(
    ("call", "expected"),
    [
        ({"device": "cpu"}, "sdpa"),
        ({"device": "mps"}, "sdpa"),
        ({}, "flashinfer"),
        ({"gradient": True}, "flex"),
        ({"dtype": torch.float32}, "flex"),
        ({"channels": 96}, "flex"),
        ({"dtype": torch.float64}, "sdpa"),
        ({"dtype": torch.float32, "tokens": 1024}, "sdpa"),  # not worth compiling
        ({"dtype": torch.float32, "block_size": 100}, "sdpa"),
        ({"dtype": torch.float32, "block_size": 96}, "sdpa"),  # no tile of a power of two from 64 on divides it
        ({"dtype": torch.float32, "block_size": 8}, "sdpa"),
        ({"dtype": torch.float32, "block_size": 16}, "flex"),
        ({"dtype": torch.float32, "block_size": 384}, "flex"),
        ({"mask": torch.ones(64, 64, dtype=torch.bool)}, "sdpa"),  # dense: PyTorch's own kernel
    ],
)
def test_auto_goes_by_device_dtype_length_and_gradient(call, expected, libraries):
    choice = choose("auto", fake_call(**call))
    assert choice.backend.name == expected and choice.reason


def test_auto_goes_by_what_loads_and_says_what_it_passed_over(monkeypatch):
    monkeypatch.setitem(sys.modules, "flashinfer", None)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    choice = choose("auto", fake_call())
    assert choice.backend.name == "flex" and "flashinfer needs flashinfer" in choice.reason
    absent.cache_clear()
    monkeypatch.setattr(flex.importlib.util, "find_spec", lambda name: None)
    choice = choose("auto", fake_call())
    assert choice.backend.name == "sdpa" and "flex needs triton" in choice.reason


def test_flashinfer_is_handed_whole_blocks_and_merges_the_ragged_one(libraries, monkeypatch):
    monkeypatch.setattr(flashinfer, "needs_cuda", lambda call: None)
    mask = random_mask(13, 0.4)
    mask[3] = torch.arange(13) == 8  # with length 131 it sees the ragged block alone
    q, k, v = (x.half() for x in inputs(3, 200, 2, 64))
    for _ in range(2):
        lengths = [200, 131, 192]
        out = sparse_attention(q, k, v, mask, block_size=16, kv_length=lengths, backend="flashinfer")
        expected = dense(q.float(), k.float(), v.float(), mask, 16, lengths)
        assert (out - expected).abs().max() < 2e-3 and (out[1, 131:] == 0).all()
    assert BlockSparse.planned == [(16, 16)] * 3  # once per mask and length
    whole = sparse_attention(q, k, v, torch.ones_like(mask), block_size=16, kv_length=9, backend="flashinfer")
    expected = dense(q.float(), k.float(), v.float(), torch.ones_like(mask), 16, [9] * 3)
    assert (whole - expected).abs().max() < 2e-3 and len(BlockSparse.planned) == 3  # no whole block at all
    assert flashinfer._workspace.cache_info().currsize == 1
    with pytest.raises(ValueError, match=r"'flashinfer' takes float16 and bfloat16, not torch\.float32"):
        sparse_attention(q.float(), k.float(), v.float(), mask, block_size=16, backend="flashinfer")
    with pytest.raises(ValueError, match="'flashinfer' has no gradient"):
        sparse_attention(q.requires_grad_(), k, v, mask, block_size=16, backend="flashinfer")


def test_flashinfer_plans_on_any_default_device_and_outside_of_inference(libraries, monkeypatch):
    monkeypatch.setattr(flashinfer, "needs_cuda", lambda call: None)
    mask = random_mask(13, 0.4)
    q, k, v = (x.half() for x in inputs(1, 200, 2, 64))
    with torch.device("meta"), torch.inference_mode():
        flashinfer._plan(pack(mask.numpy()), 13, 16, 131, 2, 64, q.dtype, q.device)
    assert not flashinfer._workspace(q.device).is_inference()
    out = sparse_attention(q, k, v, mask, block_size=16, kv_length=131, backend="flashinfer")
    assert (out - dense(q.float(), k.float(), v.float(), mask, 16, [131])).abs().max() < 2e-3


def test_row_pointers_are_exact_beyond_what_single_precision_counts():
    with torch.device("meta"):
        pointers = flashinfer.row_pointers(torch.tensor([2**24 + 1, 0, 2], device="cpu"))
    assert pointers.dtype == torch.int32 and pointers.tolist() == [0, 2**24 + 1, 2**24 + 1, 2**24 + 3]


def test_a_failed_import_is_not_tried_again(monkeypatch):
    tried = []
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setitem(
        BACKENDS._items, "flashinfer", replace(BACKENDS["flashinfer"], missing=lambda: tried.append(1) or "is absent")
    )
    for _ in range(3):
        assert "flashinfer is absent" in choose("auto", fake_call()).reason
    assert tried == [1]


def test_xformers_takes_dense_and_block_diagonal_masks(libraries, monkeypatch):
    monkeypatch.setattr(xformers, "needs_cuda", lambda call: None)
    q, k, v = inputs(2, 200, 2, 16)
    diagonal = torch.block_diag(torch.ones(3, 3), torch.ones(1, 1), torch.ones(9, 9)).bool()
    for mask in (diagonal, torch.ones(13, 13, dtype=torch.bool)):
        for lengths in ([200, 200], [200, 131], [200, 40]):
            out = sparse_attention(q, k, v, mask, block_size=16, kv_length=lengths, backend="xformers")
            assert (out - dense(q, k, v, mask, 16, lengths)).abs().max() < 1e-5
    with pytest.raises(ValueError, match="'xformers' takes dense and block-diagonal masks only"):
        sparse_attention(q, k, v, random_mask(13, 0.4), block_size=16, backend="xformers")


@pytest.mark.skipif(bool(BACKENDS["flex"].missing()), reason="no compiler")
def test_flex_equals_dense_masked_attention():
    """Compiled, for its own dense definition looks at the lengths alone and not at the blocks."""
    mask = random_mask(11, 0.4)
    q, k, v = inputs(2, 205, 2, 16)
    for lengths in ([205, 117], [199, 131], [181, 180]):  # compiled once
        out = sparse_attention(q, k, v, mask, block_size=20, kv_length=lengths, backend="flex")
        assert (out - dense(q, k, v, mask, 20, lengths)).abs().max() < 1e-5


def test_flex_compiles_any_number_of_variants(monkeypatch):
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend="eager"))
    mask = torch.ones(4, 4, dtype=torch.bool)
    flex._kernel.cache_clear()
    for heads in range(1, 11):
        q, k, v = inputs(2, 50, heads, 4)
        for length in ([50, 33], 41):
            out = sparse_attention(q, k, v, mask, block_size=16, kv_length=length, backend="flex")
            lengths = [41, 41] if length == 41 else length
            assert (out - dense(q, k, v, mask, 16, lengths)).abs().max() < 1e-5
    assert flex._kernel.cache_info().misses == 20 and flex._kernel.cache_info().maxsize == 32
    flex._kernel.cache_clear()


def test_flex_masks_are_made_on_any_default_device_and_serve_training():
    packed = pack(random_mask(13, 0.4).numpy())
    flex._block_mask.cache_clear()
    with torch.device("meta"), torch.inference_mode():
        block_mask = flex._block_mask(packed, 13, 16, 200, (200, 131), torch.device("cpu"))
    for made in (block_mask.kv_indices, block_mask.full_kv_indices, block_mask.q_indices):
        assert made.device.type == "cpu" and not made.is_inference()
    limit = block_mask.mask_mod.__closure__[0].cell_contents
    assert limit.tolist() == [200, 131] and not limit.is_inference()


@pytest.mark.parametrize(("block_size", "side"), [(16, 16), (32, 32), (64, 32), (128, None), (384, None)])
def test_flex_tiles_on_cuda_divide_the_block(block_size, side):
    options = flex.tile_options(block_size, torch.bfloat16, torch.device("cuda"))
    assert flex.tile_options(block_size, torch.bfloat16, torch.device("cpu")) is None
    assert options is None if side is None else set(options.values()) == {side}


def test_flex_is_handed_whole_and_cut_blocks(monkeypatch):
    """Without compiling: the same BlockMask through FlexAttention's own dense definition."""
    monkeypatch.setattr(flex, "_kernel", lambda *variant: flex._flex)
    mask = random_mask(13, 0.4)
    q, k, v = inputs(2, 200, 2, 16)
    for lengths in ([200, 200], [192, 192], [200, 131]):
        out = sparse_attention(q, k, v, mask, block_size=16, kv_length=lengths, backend="flex")
        assert torch.isfinite(out).all() and (out[1, lengths[1] :] == 0).all()
        block_mask = flex._block_mask(SparseCall(q, k, v, mask, 16, ()).packed, 13, 16, 200, tuple(lengths), q.device)
        for b, length in enumerate(dict.fromkeys(lengths)):
            kept = torch.zeros(13, 13)
            for number, listed in (
                (block_mask.kv_num_blocks, block_mask.kv_indices),
                (block_mask.full_kv_num_blocks, block_mask.full_kv_indices),
            ):
                for row in range(13):
                    kept[row, listed[b, 0, row, : number[b, 0, row]].long()] += 1
            first = torch.arange(13) * 16
            assert torch.equal(kept.bool(), mask & (first < length)) and kept.max() == 1
            assert not (block_mask.kv_num_blocks[b] > 1).any()  # only the block that the length cuts


def test_flex_that_does_not_compile_is_one_line(monkeypatch):
    def fail(*args, **kwargs):
        raise OSError("CppCompileError: g++ not found\nand forty more lines")

    monkeypatch.setattr(flex, "_kernel", lambda *variant: fail)
    monkeypatch.setattr(flex.shutil, "which", lambda name: None)
    q, k, v = inputs(1, 100, 2, 16)
    with pytest.raises(ValueError, match="'flex' needs a C\\+\\+ compiler"):
        sparse_attention(q, k, v, random_mask(7, 0.4), block_size=16, backend="flex")
    absent.cache_clear()
    monkeypatch.setattr(flex.shutil, "which", lambda name: name)
    with pytest.raises(RuntimeError, match=r"could not be compiled for \(1, 100, 2, 16\).*use backend='sdpa'$"):
        sparse_attention(q, k, v, random_mask(7, 0.4), block_size=16, backend="flex")
    with pytest.raises(ValueError, match="'flex' has no gradient on the CPU"):
        sparse_attention(q.requires_grad_(), k, v, random_mask(7, 0.4), block_size=16, backend="flex")
