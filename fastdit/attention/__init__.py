"""Attention calls: the processor wrapper and what it may do to a call."""
