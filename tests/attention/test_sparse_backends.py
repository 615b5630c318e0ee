"""The optional kernels by stand-ins: what each refuses, what "auto" takes, and what they are handed."""

import math
import sys
import types

import pytest
import torch
from test_sparse import dense, inputs, random_mask
from torch.nn import functional as F

from fastdit.attention.backends import flashinfer, flex, xformers
from fastdit.attention.backends.base import BACKENDS, SparseCall, choose
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


@pytest.fixture
def libraries(monkeypatch):
    """Stand-ins for flashinfer and xformers, a CUDA device to be seen, and no objection to tensors on the CPU."""
    made = types.ModuleType("flashinfer")
    made.BlockSparseAttentionWrapper = BlockSparse
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
        assert len(indptr) == math.ceil(M / R) + 1 and indptr[-1] == len(indices) and indices.max() * C < N
        self.mask = torch.zeros(M, N, dtype=torch.bool)
        for row in range(len(indptr) - 1):
            for column in indices[indptr[row] : indptr[row + 1]].tolist():
                self.mask[row * R : (row + 1) * R, column * C : (column + 1) * C] = True
        self.planned.append((R, C))

    def run(self, q, k, v):
        q, k, v = (x.transpose(0, 1).float() for x in (q, k, v))
        return F.scaled_dot_product_attention(q, k, v, attn_mask=self.mask).transpose(0, 1).half()


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
    monkeypatch.setattr(flex.importlib.util, "find_spec", lambda name: None)
    choice = choose("auto", fake_call())
    assert choice.backend.name == "sdpa" and "flex needs triton" in choice.reason


def test_flashinfer_is_handed_blocks_that_fit_every_length(libraries, monkeypatch):
    monkeypatch.setattr(flashinfer, "needs_cuda", lambda call: None)
    mask = random_mask(13, 0.4)
    q, k, v = (x.half() for x in inputs(3, 200, 2, 64))
    for _ in range(2):
        lengths = [200, 131, 192]
        out = sparse_attention(q, k, v, mask, block_size=16, kv_length=lengths, backend="flashinfer")
        expected = dense(q.float(), k.float(), v.float(), mask, 16, lengths)
        assert (out - expected).abs().max() < 2e-3 and (out[1, 131:] == 0).all()
    assert BlockSparse.planned == [(16, 8), (16, 1), (16, 16)]  # once per mask and length
    assert flashinfer._workspace.cache_info().currsize == 1
    with pytest.raises(ValueError, match=r"'flashinfer' takes float16 and bfloat16, not torch\.float32"):
        sparse_attention(q.float(), k.float(), v.float(), mask, block_size=16, backend="flashinfer")
    with pytest.raises(ValueError, match="'flashinfer' has no gradient"):
        sparse_attention(q.requires_grad_(), k, v, mask, block_size=16, backend="flashinfer")


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


def test_flex_is_handed_whole_and_cut_blocks(monkeypatch):
    """Without compiling: the same BlockMask through FlexAttention's own dense definition."""
    from torch.nn.attention.flex_attention import flex_attention

    monkeypatch.setattr(flex, "_kernel", lambda: flex_attention)
    mask = random_mask(13, 0.4)
    q, k, v = inputs(2, 200, 2, 16)
    for lengths in ([200, 200], [192, 192], [200, 131]):
        out = sparse_attention(q, k, v, mask, block_size=16, kv_length=lengths, backend="flex")
        assert torch.isfinite(out).all() and (out[1, lengths[1] :] == 0).all()
        block_mask = flex._block_mask(
            SparseCall(q, k, v, mask, 16, ()).packed, 13, 16, 200, tuple(dict.fromkeys(lengths)), q.device
        )
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

    monkeypatch.setattr(flex, "_kernel", lambda: fail)
    monkeypatch.setattr(flex.shutil, "which", lambda name: None)
    q, k, v = inputs(1, 100, 2, 16)
    with pytest.raises(ValueError, match="'flex' needs a C\\+\\+ compiler"):
        sparse_attention(q, k, v, random_mask(7, 0.4), block_size=16, backend="flex")
    monkeypatch.setattr(flex.shutil, "which", lambda name: name)
    with pytest.raises(RuntimeError, match=r"could not be compiled for \(1, 100, 2, 16\).*use backend='sdpa'$"):
        sparse_attention(q, k, v, random_mask(7, 0.4), block_size=16, backend="flex")
    with pytest.raises(ValueError, match="'flex' has no gradient on the CPU"):
        sparse_attention(q.requires_grad_(), k, v, random_mask(7, 0.4), block_size=16, backend="flex")
