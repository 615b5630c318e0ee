"""How each family's own pipeline makes latents and conditions: one file per family, which registers itself."""
