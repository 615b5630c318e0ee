"""Backends of block-sparse attention; every file of this folder with a backend registers it at its end."""

from fastdit.core.registry import discover

discover(__name__)
