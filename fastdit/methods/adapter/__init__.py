"""Adapters: what was trained for a method, as a folder of safetensors and one JSON file.

Three kinds: "routers" holds the method's own parameters, "lora" low-rank factors for the host besides, and "full" the
whole transformer. The first two leave the base as it is.
"""

from fastdit.core.weights import weights_hash
from fastdit.methods.adapter.base import check_adapter, describe_base
from fastdit.methods.adapter.folder import FILE, KINDS, VERSION, Adapter, locate_adapter, read_adapter
from fastdit.methods.adapter.host_weights import bring_full, bring_time_frequency
from fastdit.methods.adapter.writing import check_replaceable, push_adapter, write_adapter

__all__ = ["FILE", "KINDS", "VERSION", "Adapter", "bring_full", "bring_time_frequency", "check_adapter"]
__all__ += ["check_replaceable", "describe_base", "locate_adapter", "push_adapter", "read_adapter", "weights_hash"]
__all__ += ["write_adapter"]
