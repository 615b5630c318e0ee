"""Block-sparse attention against the dense formula: any shape, mask, length, size of scores; gradients; bad input."""

import math
import threading
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional as F

from fastdit.attention import cover as covers
from fastdit.attention.backends import sdpa
from fastdit.attention.sparse import choose_backend, executed_pairs, sparse_attention
from fastdit.ops.radial_mask import radial_block_mask, with_text

QUICK = settings(deadline=None, max_examples=40)


def dense(q, k, v, mask, block_size, lengths):
    """Masked attention by the formula in the inputs' dtype; padded queries give 0, padded keys are cut off."""
    block = torch.arange(q.shape[1]) // block_size
    tokens = mask[block[:, None], block]
    parts = []
    for b, length in enumerate(lengths):
        scores = torch.einsum("qhd,khd->hqk", q[b, :length], k[b, :length]) / math.sqrt(q.shape[3])
        weights = scores.masked_fill(~tokens[:length, :length], -math.inf).softmax(-1)
        out = torch.einsum("hqk,khd->qhd", weights, v[b, :length])
        parts.append(F.pad(out, (0, 0, 0, 0, 0, q.shape[1] - length)))
    return torch.stack(parts)


def random_mask(blocks, density, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return (torch.rand(blocks, blocks, generator=generator) < density) | torch.eye(blocks, dtype=torch.bool)


def inputs(batch, tokens, heads, channels, dtype=torch.float32):
    return [torch.randn(batch, tokens, heads, channels, dtype=dtype) for _ in range(3)]


def pairs(piece):
    """The (query block, key block) pairs that a piece of a cover stands for."""
    keys = piece.blocks or range(piece.start, piece.start + piece.width)
    return [(piece.row + r, key + r * piece.step) for r in range(piece.rows) for key in keys]


@pytest.fixture(params=["pieces", "masked"])
def path(request, monkeypatch):
    """Both ways of the sdpa backend: in pieces, and for short sequences with a mask of tokens."""
    monkeypatch.setattr(sdpa, "SHORT_SEQUENCE", 0 if request.param == "pieces" else 10**9)
    return request.param


@st.composite
def problems(draw):
    tokens, size = draw(st.integers(1, 400)), draw(st.integers(1, 40))
    size = min(size, tokens)
    batch = draw(st.integers(1, 2))
    blocks = -(-tokens // size)
    kind = draw(st.sampled_from(["random", "band", "radial"]))
    if kind == "random":
        mask = random_mask(blocks, draw(st.floats(0, 1)), draw(st.integers(0, 99)))
    elif kind == "band":
        i = torch.arange(blocks)
        period, width = draw(st.integers(2, 9)), draw(st.integers(0, 2))
        mask = ((i[:, None] - i) % period <= width) | (i < width)
    else:
        frames = draw(st.integers(1, 6))
        mask = radial_block_mask(frames, -(-tokens // frames), block_size=size, unit=size)[:blocks, :blocks]
    lengths = draw(st.lists(st.integers(1, tokens), min_size=batch, max_size=batch))
    return tokens, size, mask, lengths


@settings(QUICK, max_examples=150)
@given(
    problems(),
    st.integers(1, 2),
    st.sampled_from([3, 16]),
    st.sampled_from([1.0, 6.0, 40.0]),
    st.sampled_from([2**19, 600]),
    st.booleans(),
)
def test_equals_dense_masked_attention(problem, heads, channels, loudness, tile, short):
    tokens, size, mask, lengths = problem
    q, k, v = inputs(len(lengths), tokens, heads, channels)
    q = q * loudness  # scores up to about 150: each of the three ways to keep exp in range gets its turn
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sdpa, "TILE", tile)
        patch.setattr(sdpa, "SHORT_SEQUENCE", 10**9 if short else 0)
        out = sparse_attention(q, k, v, mask, block_size=size, kv_length=lengths)
    expected = dense(q.double(), k.double(), v.double(), mask, size, lengths)
    # A score of 150 is rounded by 1e-5 in fp32, in a dense computation too.
    assert (out - expected).abs().max() <= 1e-5 * max(1, loudness / 6)


@QUICK
@given(problems(), st.sampled_from([1, 64, 1024]))
def test_cover_holds_every_kept_pair_exactly_once(problem, group):
    _, size, mask, lengths = problem
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(covers, "GROUP", group)
        groups = covers.cover.__wrapped__(covers.pack(mask.numpy()), len(mask), size, lengths[0])
    blocks, whole = -(-lengths[0] // size), lengths[0] // size
    found = torch.zeros(blocks, blocks, dtype=torch.int)
    for piece in (piece for group in groups for piece in group.pieces):
        for pair in pairs(piece):
            found[pair] += 1
        if piece.step or piece.blocks:  # they need blocks of one size
            assert max(key for _, key in pairs(piece)) < whole
        if piece.step:
            assert piece.row + piece.rows <= whole
    assert torch.equal(found, mask[:blocks, :blocks].int())


def test_a_video_mask_is_covered_by_few_pieces():
    mask = radial_block_mask(21, 1560, decay=0.2)
    groups = covers.cover(covers.pack(mask.numpy()), len(mask), 128, 21 * 1560)
    assert sum(len(group.pieces) for group in groups) < mask.sum() / 15


def test_published_video_mask_with_text_and_padding(path):
    frames, per_frame, text, size = 8, 52, 40, 16
    mask = with_text(radial_block_mask(frames, per_frame, block_size=size, unit=16), frames * per_frame, text, size)
    lengths = [frames * per_frame + 7, frames * per_frame + text]
    q, k, v = inputs(2, frames * per_frame + text, 3, 32)
    out = sparse_attention(q, k, v, mask, block_size=size, kv_length=torch.tensor(lengths))
    assert (out - dense(q, k, v, mask, size, lengths)).abs().max() < 1e-5


def test_padding_is_never_read(path):
    mask = random_mask(13, 0.4)
    q, k, v = inputs(2, 200, 2, 8)
    lengths = [200, 131]
    clean = sparse_attention(q, k, v, mask, block_size=16, kv_length=lengths)
    for x in (q, k, v):
        x[1, 131:] = math.nan
    out = sparse_attention(q, k, v, mask, block_size=16, kv_length=lengths)
    assert torch.equal(out, clean) and (out[1, 131:] == 0).all()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_summed_in_single(dtype, path):
    mask = random_mask(10, 0.5)
    q, k, v = (x.to(dtype) for x in inputs(1, 320, 2, 16))
    out = sparse_attention(q, k, v, mask, block_size=32)
    expected = dense(q.float(), k.float(), v.float(), mask, 32, [320])
    assert out.dtype == dtype and (out - expected).abs().max() < 8 * torch.finfo(dtype).eps


def test_a_mask_without_gaps_is_plain_attention_bit_for_bit():
    q, k, v = inputs(2, 300, 2, 16)
    mask = torch.ones(10, 10, dtype=torch.bool)
    plain = F.scaled_dot_product_attention(*(x.transpose(1, 2) for x in (q, k, v))).transpose(1, 2)
    assert torch.equal(sparse_attention(q, k, v, mask, block_size=32), plain)
    padded = sparse_attention(q, k, v, mask, block_size=32, kv_length=[300, 77])
    assert (padded - dense(q, k, v, mask, 32, [300, 77])).abs().max() < 1e-5


def test_inputs_may_be_views_of_any_layout(path):
    q, k, v = (x.transpose(1, 2) for x in inputs(2, 9, 257, 8))  # (B, S, H, D) of (B, H, S, D) memory: 9 heads
    mask = random_mask(17, 0.5)
    out = sparse_attention(q, k, v, mask, block_size=16)
    assert (out - dense(q, k, v, mask, 16, [257, 257])).abs().max() < 1e-5


def test_gradient_of_doubles(path):
    mask = random_mask(7, 0.5)
    q, k, v = (x.requires_grad_() for x in inputs(2, 25, 2, 3, torch.float64))
    assert torch.autograd.gradcheck(
        lambda *x: sparse_attention(*x, mask, block_size=4, kv_length=[25, 14]), (q, k, v), fast_mode=True
    )


@pytest.mark.parametrize("loudness", [1.0, 6.0, 40.0])
def test_gradient_equals_that_of_dense(loudness, path):
    i = torch.arange(20)
    mask = ((i[:, None] - i) % 6 <= 1) | random_mask(20, 0.1)
    q, k, v = inputs(2, 313, 2, 16)
    q = q * loudness
    target, gradients = torch.randn_like(q), []
    for function in (sparse_attention, dense):
        own = [x.clone().requires_grad_() for x in (q, k, v)]
        if function is dense:
            out = dense(*own, mask, 16, [313, 200])
        else:
            out = sparse_attention(*own, mask, block_size=16, kv_length=[313, 200])
        gradients.append(torch.autograd.grad((out * target).sum(), own))
    for ours, theirs in zip(*gradients, strict=True):
        assert (ours - theirs).abs().max() < 1e-5 * theirs.abs().max().clamp(min=1) * max(1, loudness / 6)


@pytest.mark.parametrize(
    ("tokens", "alone", "with_gradient"), [(60, True, True), (200, False, True), (300, False, False)]
)
def test_a_sequence_is_short_up_to_a_greater_length_where_a_gradient_is_wanted(
    monkeypatch, tokens, alone, with_gradient
):
    monkeypatch.setattr(sdpa, "SHORT_SEQUENCE", 64)
    masked, calls = sdpa._masked, []
    monkeypatch.setattr(sdpa, "_masked", lambda call: calls.append(call) or masked(call))
    q, k, v = inputs(1, tokens, 1, 8)
    mask = random_mask(-(-tokens // 16), 0.3)
    without = sparse_attention(q, k, v, mask, block_size=16)
    assert bool(calls) == alone
    calls.clear()
    out = sparse_attention(q.requires_grad_(), k, v, mask, block_size=16)
    assert bool(calls) == with_gradient and (out - without).abs().max() < 1e-5
    calls.clear()
    with torch.no_grad():
        sparse_attention(q, k, v, mask, block_size=16)
    assert bool(calls) == alone


def test_several_threads_give_the_same(monkeypatch):
    monkeypatch.setattr(sdpa, "SHORT_SEQUENCE", 0)
    mask = random_mask(40, 0.3)
    q, k, v = inputs(1, 1251, 3, 8)
    alone = sparse_attention(q, k, v, mask, block_size=32)
    monkeypatch.setattr(sdpa, "_threads", lambda call: 3)
    before = torch.get_num_threads()
    with torch.inference_mode():
        assert torch.equal(sparse_attention(q, k, v, mask, block_size=32), alone)
    assert torch.equal(sparse_attention(q.requires_grad_(), k, v, mask, block_size=32), alone)
    assert torch.get_num_threads() == before
    fresh = []
    thread = threading.Thread(target=lambda: fresh.append(torch.get_num_threads()))
    thread.start()
    thread.join()
    assert fresh == [before]


@pytest.mark.parametrize("length", [200, 131, [200, 131]])
def test_another_default_device_makes_no_difference(path, length):
    mask, lengths = random_mask(13, 0.4), length if isinstance(length, list) else [length] * 2
    q, k, v = (x.half() for x in inputs(2, 200, 2, 8))
    expected, pairs = dense(q.float(), k.float(), v.float(), mask, 16, lengths), executed_pairs(mask, 16, 200, lengths)
    with torch.device("meta"):
        out = sparse_attention(q, k, v, mask, block_size=16, kv_length=length)
        assert executed_pairs(mask, 16, 200, lengths) == pairs
    assert (out - expected).abs().max() < 5e-3


@pytest.mark.parametrize(
    "length",
    [np.int64(20), np.array(20), np.array([20, 20]), [np.int64(20), 20], torch.tensor(20), torch.tensor([20, 20])],
)
def test_lengths_may_be_of_any_integer_type(length):
    mask = random_mask(4, 0.5)
    q, k, v = inputs(2, 30, 2, 8)
    expected = sparse_attention(q, k, v, mask, block_size=8, kv_length=20)
    assert torch.equal(sparse_attention(q, k, v, mask, block_size=8, kv_length=length), expected)
    assert executed_pairs(mask, 8, 30, length) == executed_pairs(mask, 8, 30, 20) * (1 if np.ndim(length) == 0 else 2)


def test_executed_pairs_counts_what_dense_would_keep():
    mask = random_mask(11, 0.4)
    for length in (None, 81, 80, 33):
        block = torch.arange(81 if length is None else length) // 8
        assert executed_pairs(mask, 8, 81, length) == mask[block[:, None], block].sum()
    assert executed_pairs(mask, 8, 81, [81, 33]) == executed_pairs(mask, 8, 81) + executed_pairs(mask, 8, 81, 33)
    assert executed_pairs(torch.ones(3, 3, dtype=torch.bool), 128, 300) == 300**2


def test_caches_are_bounded():
    for seed in range(40):
        covers.cover(covers.pack(random_mask(5, 0.5, seed).numpy()), 5, 16, 80)
    assert covers.cover.cache_info().currsize <= covers.cover.cache_info().maxsize == 32


def test_shapes_only_on_the_meta_device():
    x = torch.empty(2, 100, 2, 8, device="meta")
    assert sparse_attention(x, x, x, random_mask(7, 0.5), block_size=16).shape == x.shape


EMPTY_ROW = random_mask(7, 0.5)
EMPTY_ROW[3] = False
LATE_KEYS = torch.eye(7, dtype=torch.bool)
LATE_KEYS[2] = torch.arange(7) == 6


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"q": torch.zeros(2, 100, 16)}, r"q has shape \(2, 100, 16\); give \(batch, tokens, heads, head_dim\)"),
        ({"k": torch.zeros(2, 100, 1, 8)}, "k has 1 heads and q has 2"),
        ({"v": torch.zeros(2, 99, 2, 8)}, "v has 99 tokens and q has 100"),
        ({"v": torch.zeros(1, 100, 2, 8)}, "v has 1 samples and q has 2"),
        ({"k": torch.zeros(2, 100, 2, 4)}, "k has 4 channels per head and q has 8"),
        ({"k": torch.zeros(2, 100, 2, 8).half()}, "k is torch.float16 on cpu and q is torch.float32"),
        (
            {"block_mask": torch.ones(7, 6, dtype=torch.bool)},
            r"shape \(7, 6\); 100 tokens in blocks of 16 need .*\(7, 7\)",
        ),
        ({"block_mask": torch.ones(7, 7)}, "block_mask is torch.float32"),
        ({"block_mask": EMPTY_ROW}, "row 3 keeps no key; keep at least its diagonal"),
        ({"block_mask": LATE_KEYS, "kv_length": [100, 90]}, "row 2 keeps no key before kv_length=90"),
        ({"block_size": 0}, r"block_size=0 is outside \[1, 100\]"),
        ({"block_size": 101}, r"block_size=101 is outside \[1, 100\]"),
        ({"kv_length": 0}, r"kv_length=0 is outside \[1, 100\]"),
        ({"kv_length": 101}, "kv_length=101 is outside"),
        ({"kv_length": [100, -1]}, "kv_length=-1 is outside"),
        ({"kv_length": [100]}, "kv_length has 1 entries for 2 samples"),
        ({"kv_length": torch.tensor([1.5, 2.0])}, "kv_length=1.5 is no whole number"),
        ({"kv_length": 2.5}, r"kv_length=2.5 is no whole number; give one in \[1, 100\]"),
        ({"backend": "spda"}, "unknown attention backend 'spda'.*did you mean 'sdpa'"),
    ],
)
def test_bad_input_is_one_clear_line(change, message):
    q, k, v = inputs(2, 100, 2, 8)
    arguments = {"q": q, "k": k, "v": v, "block_mask": random_mask(7, 0.5), "block_size": 16, **change}
    with pytest.raises(ValueError, match=message) as caught:
        sparse_attention(**arguments)
    assert "\n" not in str(caught.value)


def test_choice_is_told_with_its_reason():
    choice = choose_backend(torch.zeros(1, 100, 2, 8), random_mask(7, 0.5), block_size=16)
    assert choice.backend.name == "sdpa" and "cpu" in choice.reason


def test_a_choice_made_before_is_taken_as_it_is():
    q, k, v = inputs(1, 100, 2, 8)
    mask = random_mask(7, 0.5)
    choice = choose_backend(q, mask, block_size=16)
    named = replace(choice, backend=replace(choice.backend, attend=lambda call: call.lengths))
    assert sparse_attention(q, k, v, mask, block_size=16, backend=named) == (100,)
    expected = sparse_attention(q, k, v, mask, block_size=16)
    assert torch.equal(sparse_attention(q, k, v, mask, block_size=16, backend=choice), expected)
