from math import gcd

import pytest
import torch
import torch.nn.functional as F
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from fastdit.ops.radial_mask import (
    DROPPED,
    band_width,
    density,
    keeps_block,
    keeps_neighbours,
    radial_block_mask,
    with_text,
)

options = st.fixed_dictionaries(
    {
        "decay": st.sampled_from([0.05, 0.2, 0.4, 0.8, 0.95, 1.0, 3.0]) | st.floats(0.0625, 4, width=32),
        "sink": st.booleans(),
        "unit": st.sampled_from([1, 4, 16, 100, 128]),
        "near_width": st.sampled_from([1.0, 0.5, 0.125]),
    }
)


def slow_band(distance, tokens, block_size, decay, unit, near_width):
    """(S, S) bool: what a query of a frame sees of a frame `distance` away, token by token."""
    k = torch.arange(tokens)
    length = 2 ** tokens.bit_length() / 2 ** distance.bit_length()
    width = tokens if distance == 0 else near_width * tokens if distance == 1 else max(length * decay, block_size)
    band = (k - k.unsqueeze(1)).abs() <= width
    return band if length >= unit or distance % int(unit / length) == 0 else torch.zeros_like(band)


def slow_shrink(tokens, block_size):
    """(R B, C B) bool tokens -> (R, C) bool blocks by the published densities."""
    blocks = tokens.unfold(0, block_size, block_size).unfold(1, block_size, block_size)  # (R, C, B, B)
    column = blocks.sum(2) / block_size  # (R, C, B)
    return (column > 1 / 3).sum(-1) / ((column > 0).sum(-1) + 1e-9) > 0.6


def slow_mask(frames, tokens, block_size, decay, sink, unit, near_width):
    """The published construction: a matrix of tokens for each pair of frames, padded, shrunk and joined.

    The sequence is padded to whole blocks, of which all that are not whole blocks of video are kept.
    """
    length = frames * tokens
    blocks, per_frame = -(-length // block_size), -(-tokens // block_size)
    mask = torch.zeros(blocks, blocks, dtype=torch.bool)
    for i in range(frames):
        for j in range(frames):
            band = slow_band(abs(i - j), tokens, block_size, decay, unit, near_width)
            if sink and j == 0:
                band = torch.ones_like(band)
            row, column = i * tokens % block_size, j * tokens % block_size
            side = per_frame * block_size  # a frame that begins in mid-block loses what lies beyond
            placed = F.pad(band, (column, side, row, side))[:side, :side]
            at = i * tokens // block_size, j * tokens // block_size
            mask[at[0] : at[0] + per_frame, at[1] : at[1] + per_frame] |= slow_shrink(placed, block_size)
    mask[length // block_size :] = True
    mask[:, length // block_size :] = True
    return mask


@st.composite
def geometries(draw, whole=False):
    """(frames, tokens per frame, block size), at least 3 frames; `whole`: a multiple of the block."""
    block_size = draw(st.sampled_from([1, 2, 3, 5, 8, 15, 16, 32]))
    frames = draw(st.integers(3, 9))
    step = block_size // gcd(frames, block_size) if whole else 1
    tokens = step * draw(st.integers(1, max(1, 70 // step)))
    assume(frames * tokens >= block_size)
    return frames, tokens, block_size


@settings(max_examples=150, deadline=None)
@given(geometries(whole=True), options)
def test_whole_blocks_are_the_published_mask_and_the_diagonal(geometry, options):
    frames, tokens, block_size = geometry
    want = slow_mask(*geometry, **options).fill_diagonal_(True)
    assert torch.equal(radial_block_mask(frames, tokens, block_size=block_size, **options), want)


@settings(max_examples=100, deadline=None)
@given(geometries(), options)
def test_a_ragged_tail_is_that_of_the_published_code_on_a_padded_sequence(geometry, options):
    frames, tokens, block_size = geometry
    mask = radial_block_mask(frames, tokens, block_size=block_size, **options)
    assert torch.equal(mask, slow_mask(*geometry, **options).fill_diagonal_(True))
    assert mask.dtype == torch.bool and mask.shape == (-(-frames * tokens // block_size),) * 2
    assert mask.diagonal().all() and mask.any(0).all() and mask.any(1).all()
    if frames * tokens % block_size:  # every token of the last block sees all tokens and is seen by all
        assert mask[-1].all() and mask[:, -1].all()


@settings(max_examples=60, deadline=None)
@given(geometries(), options, st.floats(1, 20, width=32))
def test_a_larger_decay_only_adds_blocks_as_does_the_sink(geometry, options, factor):
    frames, tokens, block_size = geometry
    mask = radial_block_mask(frames, tokens, block_size=block_size, **options)
    more = radial_block_mask(
        frames, tokens, block_size=block_size, **{**options, "decay": options["decay"] * factor, "sink": True}
    )
    assert not (mask & ~more).any() and density(mask) <= density(more) == more.double().mean().item()


@settings(max_examples=60, deadline=None)
@given(st.integers(3, 12), st.integers(1, 8), st.sampled_from([4, 8, 15]), options)
def test_frames_of_whole_blocks_are_symmetric_but_for_the_sink(frames, blocks, block_size, options):
    """The columns alone decide, so a block that begins in mid-frame is not."""
    tokens = blocks * block_size
    mask = radial_block_mask(frames, tokens, block_size=block_size, **options)
    rest = mask[blocks:, blocks:] if options["sink"] else mask
    assert torch.equal(rest, rest.T)
    if options["sink"]:
        assert mask[:, :blocks].all()


@settings(max_examples=60, deadline=None)
@given(st.data(), st.integers(1, 24))
def test_a_block_is_decided_as_by_counting(data, block_size):
    """Any rows and columns that fit into a block, at any offset of one against the other."""
    rows, columns = (
        (first, first + data.draw(st.integers(0, block_size - 1)))
        for first in data.draw(st.tuples(st.integers(0, 60), st.integers(0, 60)))
    )
    width = data.draw(st.integers(DROPPED, 60))
    tokens = torch.zeros(block_size, block_size, dtype=torch.bool)
    for k in range(rows[0], rows[1] + 1):
        for q in range(columns[0], columns[1] + 1):
            tokens[k - rows[0], q - columns[0]] = abs(k - q) <= width
    as_tensors = [(torch.tensor(first), torch.tensor(last)) for first, last in (rows, columns)]
    assert keeps_block(*as_tensors, torch.tensor(width), block_size) == slow_shrink(tokens, block_size)[0, 0]


def test_widths_by_hand():
    def widths(tokens, distances, **changed):
        law = {"block_size": 128, "decay": 1.0, "unit": 128, "near_width": 1.0, **changed}
        return [band_width(d, tokens, **law) for d in distances]

    assert widths(3840, (0, 1, 2, 4, 8, 16, 32)) == [3840, 3840, 1024, 512, 256, 128, 128]
    assert widths(3840, (2, 4, 8), decay=0.2) == [204, 128, 128]  # the floor is one block
    assert widths(3840, (8, 16), decay=0.2, block_size=64) == [64, 64]
    assert widths(1560, (0, 1, 2), near_width=0.5, decay=1e9) == [1560, 780, 1560]
    assert widths(3840, (32, 33, 34)) == [128, DROPPED, 128]  # every second frame
    assert widths(64, (0, 1, 2, 4, 8, 64)) == [64] + 5 * [DROPPED]
    assert widths(64, (0, 1, 2, 4), unit=16, block_size=16) == [64, 64, 32, 16]


# What the published code leaves out, by an independent re-implementation; at 3,600 and 1,560 tokens, of whole blocks.
published = [
    (18, 3840, {"decay": 1.0}, 0.569),
    (18, 3840, {"decay": 0.8}, 0.623),
    (18, 3840, {"decay": 0.5}, 0.661),
    (18, 3840, {"decay": 0.2}, 0.713),
    (18, 3840, {"decay": 0.2, "near_width": 0.5}, 0.7366),
    (20, 3840, {"decay": 0.8}, 0.6475),
    (20, 3840, {"decay": 0.8, "block_size": 64}, 0.651),
    (20, 3840, {"decay": 0.2}, 0.731),
    (30, 3840, {"decay": 1.0, "sink": False}, 0.707),
    (30, 3840, {"decay": 0.95, "sink": False}, 0.725),
    (30, 3840, {"decay": 0.2, "sink": False}, 0.814),
    (41, 3840, {"decay": 1.0}, 0.736),
    (128, 3600, {"decay": 1.0, "sink": False}, 0.891),
    (21, 3600, {"decay": 1.0}, 0.604),
    (21, 3600, {"decay": 0.2}, 0.738),
    (21, 1560, {"decay": 1.0}, 0.555),
    (21, 1560, {"decay": 0.5}, 0.637),
    (21, 1560, {"decay": 0.2}, 0.661),
]


@pytest.mark.parametrize(("frames", "tokens", "options", "sparsity"), published)
def test_published_sparsities(frames, tokens, options, sparsity):
    block_size = options.get("block_size", 128)
    whole = frames * tokens // block_size
    mask = radial_block_mask(frames, tokens, **options)
    digits = len(str(sparsity)) - 2
    assert 1 - density(mask[:whole, :whole]) == pytest.approx(sparsity, abs=0.55 * 10**-digits)
    assert keeps_neighbours(mask, frames, tokens, block_size)


@pytest.mark.parametrize("sink", [True, False])
def test_the_row_that_the_published_rounding_leaves_empty_sees_itself(sink):
    mask = radial_block_mask(32, 1500, decay=0.4, sink=sink)
    assert mask.diagonal().all() and (mask.sum(1) == 1).nonzero().flatten().tolist() == [304]


@pytest.mark.parametrize(("frames", "tokens", "block_size"), [(1, 1, 1), (1, 200, 128), (2, 192, 128), (2, 17, 8)])
def test_one_or_two_frames_are_dense(frames, tokens, block_size):
    mask = radial_block_mask(frames, tokens, block_size=block_size, decay=0.01, sink=False, near_width=0.1)
    assert mask.all() and keeps_neighbours(mask, frames, tokens, block_size)


def slow_keeps_neighbours(mask, frames, tokens, block_size):
    for i in range(frames):
        for j in {i - 1, i + 1} & set(range(frames)):
            places = [mask[(i * tokens + k) // block_size, (j * tokens + k) // block_size] for k in range(tokens)]
            if sum(places) < tokens / 2:
                return False
    return True


@settings(max_examples=40, deadline=None)
@given(geometries(), options)
def test_neighbours_by_hand(geometry, options):
    mask = radial_block_mask(geometry[0], geometry[1], block_size=geometry[2], **options)
    assert keeps_neighbours(mask, *geometry) == slow_keeps_neighbours(mask, *geometry)


@pytest.mark.parametrize("tokens", [32, 40, 63, 64, 96, 100, 127, 128, 255, 256])
def test_small_frames_keep_their_neighbours_at_a_unit_of_one_block_only(tokens):
    scaled = {"block_size": 16, "unit": 16}
    assert keeps_neighbours(radial_block_mask(16, tokens, **scaled), 16, tokens, 16)
    assert keeps_neighbours(radial_block_mask(16, tokens, block_size=16), 16, tokens, 16) == (tokens >= 128)
    if tokens % 16 == 0:  # 16 at 64 tokens is the geometry of 128 at 512
        large = radial_block_mask(16, 8 * tokens, block_size=128, sink=False)
        assert torch.equal(radial_block_mask(16, tokens, sink=False, **scaled), large)


@settings(max_examples=100, deadline=None)
@given(st.integers(1, 60), st.integers(0, 40), st.sampled_from([1, 4, 7, 16]))
def test_text_rows_and_columns_and_the_straddling_block_are_full(video, text, block_size):
    mask = torch.rand(-(-video // block_size), -(-video // block_size)) < 0.3
    before = mask.clone()
    joint = with_text(mask, video, text, block_size)
    blocks, whole = -(-(video + text) // block_size), video // block_size
    assert joint.shape == (blocks, blocks) and joint.dtype == torch.bool
    for row in range(blocks):
        for column in range(blocks):
            kept = bool(mask[row, column]) if max(row, column) < (whole if text else blocks) else True
            assert joint[row, column] == kept
    joint[:] = False
    assert torch.equal(mask, before)  # nothing is shared


def test_callers_share_nothing_and_settings_do_not_mix():
    first = radial_block_mask(4, 64, block_size=16, unit=16, decay=0.1)
    kept = first.clone()
    first[:] = False
    with torch.inference_mode():
        assert torch.equal(radial_block_mask(4, 64, block_size=16, unit=16, decay=0.1), kept)
        made = with_text(radial_block_mask(4, 72, block_size=16, unit=16), 288, 30, 16)
    assert not made.is_inference()
    assert not torch.equal(radial_block_mask(4, 64, block_size=16, unit=16, decay=1.0), kept)
    with torch.device("meta"):  # a default device of the caller's does not reach the cache
        assert radial_block_mask(3, 64, block_size=16).device.type == "cpu"


@pytest.mark.parametrize(
    ("frames", "tokens", "options", "message"),
    [
        (0, 16, {}, "frames=0: must be at least 1"),
        (3, 0, {}, "tokens_per_frame=0: must be at least 1"),
        (3, 16, {"block_size": 0}, "block_size=0: must be at least 1"),
        (3, 16, {"block_size": 49}, "block_size=49 is larger than the sequence of 48 tokens"),
        (3, 16, {"block_size": 8, "unit": 0}, "unit=0: must be at least 1"),
        (3, 16, {"block_size": 8, "decay": 0.0}, "decay=0.0: .* above 0"),
        (3, 16, {"block_size": 8, "decay": -1}, "decay=-1: .* above 0"),
        (3, 16, {"block_size": 8, "decay": float("nan")}, "decay=nan: .* above 0"),
        (3, 16, {"block_size": 8, "near_width": 0}, r"near_width=0: .* \(0, 1\]"),
        (3, 16, {"block_size": 8, "near_width": 1.5}, r"near_width=1.5: .* \(0, 1\]"),
        (1, 16, {"block_size": 128}, "block_size=128 is larger"),
    ],
)
def test_bad_values_name_the_field_and_the_mend(frames, tokens, options, message):
    with pytest.raises(ValueError, match=message):
        radial_block_mask(frames, tokens, **options)


def test_masks_of_other_geometries_are_refused():
    mask = radial_block_mask(3, 16, block_size=8, unit=8)  # (6, 6)
    with pytest.raises(ValueError, match=r"frames x tokens_per_frame=64 .* \(8, 8\), not \(6, 6\)"):
        keeps_neighbours(mask, 4, 16, 8)
    with pytest.raises(ValueError, match=r"video_length=49 .* \(7, 7\), not \(6, 6\)"):
        with_text(mask, 49, 10, 8)
    with pytest.raises(ValueError, match="text_length=-1 is negative"):
        with_text(mask, 48, -1, 8)
    with pytest.raises(ValueError, match="block_size=0"):
        with_text(mask, 48, 1, 0)
