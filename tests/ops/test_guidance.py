"""Guidance of some latent channels only."""

import torch

from fastdit.ops.guidance import unguided_beyond


def test_a_pipelines_own_formula_guides_the_first_channels_and_leaves_the_others_to_the_condition():
    prediction = torch.randn(6, 5, 2, 3, generator=torch.Generator().manual_seed(0))
    kept = prediction.clone()
    for channels in (1, 3, 5):
        conditional, unconditional = unguided_beyond(prediction, channels).chunk(2)
        guided = unconditional + 4.0 * (conditional - unconditional)
        for sample in range(3):
            for channel in range(5):
                with_class, without = prediction[sample, channel], prediction[sample + 3, channel]
                expected = without + 4.0 * (with_class - without) if channel < channels else with_class
                assert torch.equal(guided[sample, channel], expected)
    assert torch.equal(prediction, kept)
