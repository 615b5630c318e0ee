"""Guidance of some latent channels only."""

import pytest
import torch

from fastdit.ops.guidance import unguided_beyond


@pytest.mark.parametrize("conditional", [0, 1])
def test_a_pipelines_own_formula_guides_the_first_channels_and_leaves_the_others_to_the_condition(conditional):
    prediction = torch.randn(6, 5, 2, 3, generator=torch.Generator().manual_seed(0))
    kept = prediction.clone()
    for channels in (1, 3, 5):
        halves = unguided_beyond(prediction, channels, conditional).chunk(2)
        guided = halves[1 - conditional] + 4.0 * (halves[conditional] - halves[1 - conditional])
        for sample in range(3):
            for channel in range(5):
                with_class = prediction[sample + 3 * conditional, channel]
                without = prediction[sample + 3 * (1 - conditional), channel]
                expected = without + 4.0 * (with_class - without) if channel < channels else with_class
                assert torch.equal(guided[sample, channel], expected)
    assert torch.equal(prediction, kept)
