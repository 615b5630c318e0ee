"""An exponential moving average of weights, in float32: what is validated and written in the end."""

import contextlib
from collections.abc import Iterator, Mapping

import torch
from torch import Tensor


class Average:
    """Averaged weights by name. `decay` is reached slowly, as min(decay, (1 + n) / (10 + n)) after n updates."""

    def __init__(self, weights: Mapping[str, Tensor], decay: float) -> None:
        self.weights, self.decay, self.count = dict(weights), decay, 0
        self.values = {name: weight.detach().float().clone() for name, weight in weights.items()}

    @torch.no_grad()
    def update(self) -> None:
        """Take in the weights of a step."""
        self.count += 1
        decay = min(self.decay, (1 + self.count) / (10 + self.count))
        torch._foreach_lerp_(list(self.values.values()), list(self.weights.values()), 1 - decay)

    @contextlib.contextmanager
    def swapped(self) -> Iterator[None]:
        """Within, the averaged values stand in the weights' place."""
        live = {name: weight.detach().clone() for name, weight in self.weights.items()}
        self._put(self.values)
        try:
            yield
        finally:
            self._put(live)

    @torch.no_grad()
    def load(self, values: Mapping[str, Tensor], count: int) -> None:
        """Go on from saved values."""
        self.count = count
        for name, value in self.values.items():
            value.copy_(values[name])

    @torch.no_grad()
    def _put(self, values: Mapping[str, Tensor]) -> None:
        for name, weight in self.weights.items():
            weight.copy_(values[name])
