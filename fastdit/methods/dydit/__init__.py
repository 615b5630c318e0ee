"""DyDiT: heads and channels routed by the timestep, tokens by their content."""

from fastdit.methods.dydit.config import DyDiT

__all__ = ["DyDiT"]
