"""FlexDiT: blocks on a sparse token grid that follows the noise; trained."""

from fastdit.methods.flexdit.config import FlexDiT

__all__ = ["FlexDiT"]
