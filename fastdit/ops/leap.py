"""Linear proportional leap: whether a velocity has settled, and the last latents that it leads to."""

import math
from dataclasses import dataclass

from torch import Tensor
from torch.nn import functional as F


def cosines(velocity: Tensor, previous: Tensor) -> Tensor:
    """Cosine of each sample's velocity (B, ...) and that of the step before, over all its values, in fp32: (B,)."""
    return F.cosine_similarity(velocity.flatten(1).float(), previous.flatten(1).float(), dim=1)


def leap(sample: Tensor, velocity: Tensor, sigma: float, last: float) -> Tensor:
    """Latents (B, ...) at the end of the schedule's sigmas, straight along the velocity from `sigma`, in fp32.

    With last = 0 it is the prediction of clean latents, sample - sigma * velocity; where sigmas rise to 1 it is
    sample + (1 - sigma) * velocity. Source: On-device Sora (Kim et al., 2025, arXiv 2503.23796), linear proportional
    leap.
    """
    return sample.float() + (last - sigma) * velocity.float()


@dataclass
class Settling:
    """The stop rule for one sample: its best cosine so far, and how many steps in a row have not bettered it."""

    best: float | None = None
    waited: int = 0

    def settled(self, cosine: float, tolerance: float, patience: int) -> bool:
        """Take the cosine of one more step; True once `patience` steps in a row have not bettered the best one by more
        than `tolerance`.

        The first step only sets the best. Source: On-device Sora's code (arXiv 2502.04363).
        """
        if not math.isfinite(cosine):  # a model that overflowed has not settled
            self.waited = 0
            return False
        if self.best is None or cosine > self.best + tolerance:
            self.best, self.waited = cosine, 0
        else:
            self.waited += 1
        return self.waited >= patience
