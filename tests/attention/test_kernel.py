"""The sparse kernel in the place of a host's attention call equals dense attention under its mask, text and order."""

import pytest
import torch
from helpers import assert_close
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional as F

from fastdit.attention.backends import sdpa
from fastdit.attention.kernel import SparseKernel, valid_lengths
from fastdit.core.macs import CountMacs
from fastdit.ops.radial_mask import radial_block_mask, with_text


def tensors(batch, heads, tokens, channels=8, count=3):
    generator = torch.Generator().manual_seed(tokens)
    return [torch.randn(batch, heads, tokens, channels, generator=generator) for _ in range(count)]


@settings(max_examples=60, deadline=None)
@given(
    frames=st.integers(1, 7),
    per_frame=st.integers(4, 40),
    block=st.sampled_from([4, 8, 16]),
    text=st.integers(0, 9),
    heads=st.integers(1, 3),
    data=st.data(),
)
def test_equals_dense_attention_under_the_mask(frames, per_frame, block, text, heads, data):
    video = frames * per_frame
    block = min(block, video)
    tokens = video + text
    mask = with_text(radial_block_mask(frames, per_frame, block_size=block, unit=block), video, text, block)
    valid = data.draw(st.lists(st.integers(0, text), min_size=1, max_size=3))
    order = data.draw(st.sampled_from([None, torch.randperm(video, generator=torch.Generator().manual_seed(0))]))
    q, k, v = tensors(len(valid), heads, tokens)
    keys = torch.arange(tokens) < video + torch.tensor(valid)[:, None]  # (B, S)

    kernel = SparseKernel(mask, block, tokens, order=order)
    out = kernel(q, k, v, attn_mask=keys[:, None, None])

    place = torch.arange(tokens)  # where a token stands in the mask's order
    if order is not None:
        place[order] = torch.arange(video)
    seen = mask[place[:, None] // block, place // block] & keys[:, None, None]  # (B, 1, S, S)
    expected = F.scaled_dot_product_attention(q.double(), k.double(), v.double(), attn_mask=seen)
    assert_close(out[keys[:, None].expand(-1, heads, -1)], expected[keys[:, None].expand(-1, heads, -1)].float())
    assert not out[~keys[:, None].expand(-1, heads, -1)].any(), "padded text came back with something"


def test_padded_text_is_never_attended():
    mask = with_text(radial_block_mask(4, 16, block_size=8, unit=8), 64, 6, 8)
    q, k, v = tensors(1, 2, 70)
    keys = (torch.arange(70) < 67)[None, None, None]
    kernel = SparseKernel(mask, 8, 70)
    clean = kernel(q, k, v, attn_mask=keys)
    k[:, :, 67:], v[:, :, 67:] = float("nan"), float("inf")
    assert torch.equal(kernel(q, k, v, attn_mask=keys), clean) and clean.isfinite().all()


def test_text_of_another_length_is_seen_in_the_next_forward():
    mask = with_text(radial_block_mask(4, 16, block_size=8, unit=8), 64, 6, 8)
    q, k, v = tensors(1, 2, 70)
    keys, kernel = torch.ones(1, 1, 1, 70, dtype=torch.bool), SparseKernel(mask, 8, 70)
    before = kernel(q, k, v, attn_mask=keys)
    keys[..., 68:] = False  # the same memory
    kernel.forget()
    assert not torch.equal(kernel(q, k, v, attn_mask=keys), before)


def test_macs_are_those_of_the_kept_pairs(monkeypatch):
    mask = radial_block_mask(6, 24, block_size=8, unit=8, decay=0.2)
    kernel = SparseKernel(mask, 8, 144)
    q, k, v = (x.to("meta") for x in tensors(2, 3, 144))
    with CountMacs() as counter:
        assert kernel(q, k, v).shape == q.shape
    pairs = mask.repeat_interleave(8, 0).repeat_interleave(8, 1).sum().item()
    assert counter.total == 2 * 3 * 2 * 8 * 144**2  # a short sequence is computed whole, under the mask
    monkeypatch.setattr(sdpa, "SHORT_SEQUENCE", 0)
    kernel = SparseKernel(mask, 8, 144)
    with CountMacs() as counter:
        kernel(q, k, v)
    assert counter.total == 2 * 3 * 2 * 8 * pairs
    assert kernel.density == pytest.approx(pairs / 144**2)


@pytest.mark.parametrize(
    ("mask", "message"),
    [
        (torch.zeros(1, 1, 1, 20), "float32.*no mask of padded text"),
        (torch.ones(1, 1, 20, 20, dtype=torch.bool), "no mask of padded text"),
        (torch.tensor([True, False, True] + [False] * 17)[None, None, None], "has gaps"),
    ],
)
def test_other_masks_are_refused(mask, message):
    with pytest.raises(ValueError, match=message):
        valid_lengths(mask, 1)


def test_other_calls_are_refused():
    kernel = SparseKernel(torch.ones(5, 5, dtype=torch.bool), 4, 20)
    q, k, v = tensors(1, 2, 20)
    for options in ({"is_causal": True}, {"dropout_p": 0.1}, {"scale": 1.0}):
        with pytest.raises(RuntimeError, match=next(iter(options))):
            kernel(q, k, v, **options)
    assert kernel(q, k, v, scale=8**-0.5, dropout_p=0.0, is_causal=False, enable_gqa=False).shape == q.shape
    with pytest.raises(RuntimeError, match="19 keys where 20 tokens"):
        kernel(q, k[:, :, 1:], v[:, :, 1:])
