"""Tensor mathematics that knows no model; every reducer in this folder registers itself."""

from fastdit.core.registry import discover

discover(__name__)
