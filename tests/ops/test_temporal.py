"""Groups of frames against loops that spell the rules out, and the measure of motion against its definition."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fastdit.ops.temporal import frame_changes, frame_groups, kept_apart, merge_frames

counts = st.integers(1, 23)


def slow_groups(frames, group, first_alone, offset=0):
    """Frame by frame: a frame joins the last group until that is full; only the first to merge may be full earlier."""
    found, room = [], 0
    for frame in range(frames):
        if not room:
            found.append([])
            room = group
            if first_alone and frame == 0:
                room = 1
            elif frame == first_alone and offset % group:
                room = offset % group
        found[-1].append(frame)
        room -= 1
    return found


@settings(max_examples=100, deadline=None)
@given(counts, st.integers(1, 6), st.booleans(), st.integers(0, 9))
def test_groups_agree_with_a_loop(frames, group, first_alone, offset):
    expected = slow_groups(frames, group, first_alone, offset)
    assert frame_groups(frames, group, first_alone, offset) == tuple(map(len, expected))
    if group == 1 or frames == 1:
        assert frame_groups(frames, group, first_alone, offset) == (1,) * frames


@pytest.mark.parametrize(
    ("frames", "group", "first_alone", "offset", "expected"),
    [
        (21, 2, True, 0, (1, *[2] * 10)),  # Wan, 81 pictures
        (21, 2, True, 1, (1, 1, *[2] * 9, 1)),
        (20, 2, True, 0, (1, *[2] * 9, 1)),
        (33, 2, True, 2, (1, *[2] * 16)),  # HunyuanVideo, 129 pictures
        (15, 2, False, 0, (*[2] * 7, 1)),
        (9, 4, True, 0, (1, 4, 4)),
        (9, 4, True, 6, (1, 2, 4, 2)),
        (3, 4, True, 0, (1, 2)),
        (3, 4, True, 3, (1, 2)),
    ],
)
def test_groups_of_published_sizes(frames, group, first_alone, offset, expected):
    assert frame_groups(frames, group, first_alone, offset) == expected


@settings(max_examples=100, deadline=None)
@given(st.data(), counts, st.integers(1, 6), st.booleans())
def test_a_pair_that_moves_takes_its_group_apart(data, frames, group, first_alone):
    apart = data.draw(st.lists(st.booleans(), min_size=frames - 1, max_size=frames - 1))
    expected = []
    for members in slow_groups(frames, group, first_alone):
        moves = any(apart[frame] for frame in members[:-1])
        expected += [1] * len(members) if moves else [len(members)]
    assert kept_apart(frame_groups(frames, group, first_alone), apart) == tuple(expected)


@settings(max_examples=60, deadline=None)
@given(st.data(), st.lists(st.integers(1, 4), min_size=1, max_size=6), st.integers(1, 3), st.integers(1, 3))
def test_merging_frames_agrees_with_loops(data, groups, height, width):
    frames, batch = sum(groups), data.draw(st.integers(1, 2))
    x = torch.randn(batch, frames * height * width, 3, dtype=torch.float64)
    reduction = merge_frames(tuple(groups), (frames, height, width))
    video = x.view(batch, frames, height, width, 3)
    merged, restored, start = [], [], 0
    for size in groups:
        mean = sum(video[:, frame] for frame in range(start, start + size)) / size
        merged.append(mean)
        restored += [mean] * size
        start += size
    y = reduction.reduce(x)
    torch.testing.assert_close(y, torch.stack(merged, 1).flatten(1, 3))
    torch.testing.assert_close(reduction.restore(y), torch.stack(restored, 1).flatten(1, 3))
    assert reduction.is_identity == (len(groups) == frames) and len(reduction.assign) == 1


def test_changes_agree_with_their_definition():
    video = torch.randn(2, 3, 5, 4, 2, generator=torch.Generator().manual_seed(0)).cumsum(2)
    found = frame_changes(video, 5)
    for sample in range(2):
        x = video[sample].double()
        about = torch.stack([channel - channel.mean() for channel in x])
        spread = math.sqrt((about**2).mean())
        for frame in range(4):
            step = math.sqrt(((x[:, frame + 1] - x[:, frame]) ** 2).mean())
            assert float(found[sample, frame]) == pytest.approx(step / spread, rel=1e-5)


def test_changes_know_no_scale_and_no_offset_of_a_channel():
    video = torch.randn(1, 3, 4, 4, 4, generator=torch.Generator().manual_seed(0))
    offset = torch.tensor([5.0, -2.0, 0.5]).view(3, 1, 1, 1)
    torch.testing.assert_close(frame_changes(7 * video + offset, 4), frame_changes(video, 4), rtol=1e-4, atol=0)
    assert frame_changes(video[:, :, :1].expand(-1, -1, 4, -1, -1), 4).eq(0).all()
    assert frame_changes(torch.ones(1, 3, 4, 2, 2), 4).eq(0).all()


def test_changes_of_frames_that_hold_several_latent_ones():
    """A patch of two latent frames is one frame of tokens."""
    video = torch.randn(1, 2, 6, 3, 3, generator=torch.Generator().manual_seed(0))
    stacked = video.unflatten(2, (3, 2)).transpose(2, 3)  # (1, 2, 2, 3, 3, 3): both latent frames as channels
    step = stacked.diff(dim=3).square().mean((1, 2, 4, 5)).sqrt()
    found = frame_changes(video, 3)
    assert found.shape == (1, 2)
    torch.testing.assert_close(found[0, 0] / found[0, 1], step[0, 0] / step[0, 1])


def test_what_does_not_fit_is_refused():
    for frames, group in ((0, 2), (3, 0)):
        with pytest.raises(ValueError, match="at least 1"):
            frame_groups(frames, group)
    with pytest.raises(ValueError, match="5 frames have 4 pairs of neighbours, not 5"):
        kept_apart((1, 2, 2), [False] * 5)
    with pytest.raises(ValueError, match=r"\(1, 2\) do not cover 4 frames"):
        merge_frames((1, 2), (4, 2, 2))
