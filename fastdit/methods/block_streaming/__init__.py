"""Block streaming: run a model that does not fit in memory, its weights read from disk block by block."""

from fastdit.methods.block_streaming.config import BlockStreaming

__all__ = ["BlockStreaming"]
