"""Radial attention: sparse video attention whose reach in space halves with every doubling of the distance in time."""

from fastdit.methods.radial_attention.config import RadialAttention

__all__ = ["RadialAttention"]
