"""What the routed parts of a block cost, and which share of it is done."""

from dataclasses import dataclass
from typing import TypeVar

from torch import Tensor

Share = TypeVar("Share", float, Tensor)


@dataclass(frozen=True)
class BlockWork:
    """MACs of one sample in one block: N visual tokens, `text` tokens beside them in attention, widths C and D.

    DyDiT's formulas (4 N C^2 + 2 N^2 C for attention, 2 N C D for the feed-forward layer), for any resolution, with
    text tokens in the sequence, and for parallel blocks, where a token that passes by spares its queries, its row of
    attention and its output too, but stays a key. `whole_qk`: queries and keys are projected for all heads.
    """

    tokens: int
    text: int
    width: int
    channels: int
    parallel: bool
    whole_qk: bool

    def macs(self, heads: Share, channels: Share, tokens: Share) -> Share:
        """MACs with these shares of heads, channels and visual tokens."""
        sequence, width = self.tokens + self.text, self.width
        if not self.parallel:
            always = 2 * sequence * width**2 if self.whole_qk else 0
            attention = 4 * sequence * width**2 - always + 2 * sequence**2 * width
            feed_forward = 2 * self.tokens * width * self.channels
            return attention * heads + feed_forward * (channels * tokens) + always
        rows = tokens * self.tokens + self.text
        per_row = 2 * width**2 + 2 * sequence * width  # queries, attention and output
        keys = 2 * sequence * width**2
        return (rows * per_row + keys) * heads + rows * channels * (2 * width * self.channels)
