"""Temporal token merging: consecutive latent frames attend as one where there is much noise."""

from fastdit.methods.temporal_token_merging.config import TemporalTokenMerging

__all__ = ["TemporalTokenMerging"]
