"""FastDiTPipeline, accelerate() and restore(), and recipes."""

from fastdit.pipelines.fast_pipeline import FastDiTPipeline, Handle, accelerate, restore
from fastdit.pipelines.recipes import Recipe

__all__ = ["FastDiTPipeline", "Handle", "Recipe", "accelerate", "restore"]
