"""Model families: one file each, a description without mathematics."""

from fastdit.models.base import (
    FAMILIES,
    BlockGroup,
    ModelFamily,
    Rotary,
    family_of,
    load_families,
    register_family,
)

__all__ = ["FAMILIES", "BlockGroup", "ModelFamily", "Rotary", "family_of", "load_families", "register_family"]
