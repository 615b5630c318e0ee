"""Linear proportional leap: end a flow model's run early, where its velocity has settled."""

from fastdit.methods.linear_proportional_leap.config import LinearProportionalLeap

__all__ = ["LinearProportionalLeap"]
