"""Token geometry of one forward pass: how many frames, rows and columns, and where the text sits."""

from dataclasses import dataclass
from typing import Literal

TextPosition = Literal["none", "first", "last"]


@dataclass(frozen=True)
class TokenLayout:
    """Visual tokens in row-major (frame, row, column) order, with `text_length` text tokens before or behind them.

    `protected` leading visual tokens are modulated apart by the host (HunyuanVideo's replaced first frame) and are
    never merged with others while they pass through whole blocks.
    """

    frames: int
    height: int
    width: int
    text_length: int = 0
    text: TextPosition = "none"
    protected: int = 0

    @property
    def grid(self) -> tuple[int, int, int]:
        return self.frames, self.height, self.width

    @property
    def tokens(self) -> int:
        """Number of visual tokens."""
        return self.frames * self.height * self.width
