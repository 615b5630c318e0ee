"""Token merging: training-free, timestep-dynamic token density."""

from fastdit.methods.token_merging.config import TokenMerging

__all__ = ["TokenMerging"]
