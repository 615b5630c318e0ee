"""The hash tells other weights apart, and not other ways to hold the same ones."""

import torch
from helpers import BY_NAME
from peft import LoraConfig, inject_adapter_in_model
from torch import nn

from fastdit import TokenMerging, accelerate
from fastdit.core.weights import weights_hash


def test_equal_however_the_weights_are_held(tmp_path):
    transformer = BY_NAME["pixart_alpha"].make().transformer
    mark = weights_hash(transformer)
    transformer.save_pretrained(tmp_path)
    for dtype in (torch.float32, torch.bfloat16):
        assert weights_hash(type(transformer).from_pretrained(tmp_path, torch_dtype=dtype)) == mark
    assert weights_hash(torch.compile(transformer)) == mark
    with accelerate(transformer, [TokenMerging()]):
        assert weights_hash(transformer) == mark
    inject_adapter_in_model(LoraConfig(r=2, target_modules=["to_q", "proj"]), transformer)
    assert any("base_layer" in name for name, _ in transformer.named_parameters())
    assert weights_hash(transformer) == mark


def test_other_values_names_and_shapes_differ():
    def model(**parts):
        return nn.ParameterDict({name: torch.zeros(shape) for name, shape in parts.items()})

    marks = [weights_hash(m) for m in (model(a=(4, 6)), model(b=(4, 6)), model(a=(6, 4)), model(a=(4, 6), c=(1,)))]
    assert len(set(marks)) == 4
    for shape in ((3,), (1152, 64), (64, 128)):
        changed = model(a=shape)
        changed["a"].data[..., 1:] = 1.0  # a stride of whole rows would meet the first column alone
        assert weights_hash(changed) != weights_hash(model(a=shape))


def test_the_order_of_parameters_does_not_count():
    left = nn.ParameterDict({"a": torch.ones(2), "b": torch.zeros(3)})
    right = nn.ParameterDict({"b": torch.zeros(3), "a": torch.ones(2)})
    assert weights_hash(left) == weights_hash(right)
