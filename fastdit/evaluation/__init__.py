"""Measuring quality: knows no pipelines, works on arrays and callables."""
