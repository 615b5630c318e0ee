"""LoRA beside a method: loaded before or after attaching it acts the same, and it stays when the method goes."""

import pytest
import torch
from helpers import BY_NAME
from peft import LoraConfig
from peft.utils import get_peft_model_state_dict

from fastdit import TokenMerging, accelerate

NAMES = pytest.mark.parametrize("name", ["wan", "hunyuan_video"])
METHODS = pytest.mark.parametrize("method", [TokenMerging(), TokenMerging(scope="block")], ids=["attention", "block"])


def lora_file(tiny):
    """A LoRA state dict as `load_lora_weights` takes it, with weights that change the output."""
    transformer = tiny.make().transformer
    transformer.add_adapter(LoraConfig(r=2, lora_alpha=2, target_modules=["to_q", "to_k", "to_v", "to_out.0"]))
    generator = torch.Generator().manual_seed(3)
    for name, parameter in transformer.named_parameters():
        if "lora_" in name:
            parameter.data = 0.3 * torch.randn(parameter.shape, generator=generator)
    return {f"transformer.{key}": value for key, value in get_peft_model_state_dict(transformer).items()}


@NAMES
@METHODS
def test_lora_before_and_after_attaching(name, method):
    tiny = BY_NAME[name]
    state, outputs = lora_file(tiny), []
    pipe = tiny.make()
    plain_dense = tiny.call(pipe, steps=2)
    with accelerate(pipe, [method]):
        without = tiny.call(pipe, steps=2)

    pipe = tiny.make()
    pipe.load_lora_weights(dict(state))
    dense = tiny.call(pipe, steps=2)
    with accelerate(pipe, [method]) as handle:
        outputs.append(tiny.call(pipe, steps=2))
        assert handle.report.methods["token_merging"].density < 1
    assert torch.equal(tiny.call(pipe, steps=2), dense) and not torch.equal(dense, plain_dense)

    pipe = tiny.make()
    with accelerate(pipe, [method]) as handle:
        tiny.call(pipe, steps=2)
        pipe.load_lora_weights(dict(state))
        outputs.append(tiny.call(pipe, steps=2))
        assert handle.report.methods["token_merging"].density < 1
        pipe.disable_lora()
        assert torch.equal(tiny.call(pipe, steps=2), without)
        pipe.enable_lora()
    assert any("lora_A" in key for key in pipe.transformer.state_dict())
    assert torch.equal(tiny.call(pipe, steps=2), dense), "restoring took the LoRA away"
    assert torch.equal(outputs[0], outputs[1])
    assert not torch.equal(outputs[0], without) and not torch.equal(outputs[0], dense)


@NAMES
def test_fusing_and_unloading_while_attached(name):
    tiny = BY_NAME[name]
    pipe = tiny.make()
    dense = tiny.call(pipe, steps=2)
    with accelerate(pipe, [TokenMerging()]):
        without = tiny.call(pipe, steps=2)
        pipe.load_lora_weights(lora_file(tiny))
        loaded = tiny.call(pipe, steps=2)
        pipe.fuse_lora()
        assert torch.allclose(tiny.call(pipe, steps=2), loaded, atol=1e-3)
        pipe.unfuse_lora()
        pipe.unload_lora_weights()
        assert torch.allclose(tiny.call(pipe, steps=2), without, atol=1e-3)
    assert torch.allclose(tiny.call(pipe, steps=2), dense, atol=1e-3)


def test_an_adapter_added_to_the_transformer_alone():
    tiny = BY_NAME["hunyuan_video"]
    pipe = tiny.make()
    with accelerate(pipe, [TokenMerging()]):
        plain = tiny.call(pipe, steps=2)
        pipe.transformer.add_adapter(LoraConfig(r=2, target_modules=["to_q"]))
        assert torch.equal(tiny.call(pipe, steps=2), plain)  # peft starts B at zero
        for key, parameter in pipe.transformer.named_parameters():
            if "lora_B" in key:
                parameter.data += 0.3
        assert not torch.equal(tiny.call(pipe, steps=2), plain)


def test_fused_projections_discard_what_was_installed_and_say_so():
    """`fuse_qkv_projections` puts new processors in place of ours: one error that names the module and the mend."""
    tiny = BY_NAME["hunyuan_video"]
    pipe = tiny.make()
    accelerate(pipe, [TokenMerging()])
    for _, module in pipe._fastdit.attached[0].host.family.attentions(pipe.transformer):
        module.set_processor(type(module.processor.original)())
    with pytest.raises(RuntimeError, match=r"transformer\.transformer_blocks\.0\.attn\.processor .*set_methods"):
        tiny.call(pipe)
    with pytest.warns(UserWarning, match="it stays"):
        pipe.set_methods([TokenMerging()])
    assert tiny.call(pipe).isfinite().all() and pipe.report.methods["token_merging"].density < 1
