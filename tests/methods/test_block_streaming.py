"""BlockStreaming on every family: bit-exact within its budget, composable, reversible."""

import threading

import pytest
import torch
from helpers import BY_NAME, ON_EACH, dense_output
from streaming_parts import SmallestBudgets, open_files, saved, smallest_budgets, streaming_threads

from fastdit import BlockStreaming, FastDiTPipeline, RadialAttention, TokenMerging, accelerate, restore
from fastdit.methods.block_streaming import reading


@pytest.fixture(scope="module")
def wan(tmp_path_factory):
    return saved("wan", tmp_path_factory.mktemp("wan"))


@pytest.fixture(scope="module")
def budgets(wan) -> SmallestBudgets:
    return smallest_budgets(wan)


def load(folder, budget, *methods, **kwargs):
    return FastDiTPipeline.from_pretrained(folder, methods=[BlockStreaming(memory_budget=budget), *methods], **kwargs)


def weights_of(pipe):
    return pipe._fastdit.weights


def memory_of_parameters(pipe) -> int:
    """Bytes of distinct storages that a pipeline's parameters live in: what is in memory, counted from outside."""
    storages = {}
    for model in weights_of(pipe).models.values():
        for parameter in model.parameters():
            storage = parameter.untyped_storage()
            storages[storage.data_ptr()] = storage.nbytes()
    return sum(storages.values())


@ON_EACH
def test_bit_exact_within_the_smallest_budgets(tiny, tmp_path, monkeypatch):
    folder = saved(tiny.name, tmp_path)
    for budget, large in zip(smallest_budgets(folder), (0, reading.LARGE), strict=True):
        monkeypatch.setattr(reading, "LARGE", large)  # past the system's cache, and through it
        pipe, held = load(folder, budget), []

        def look(pipe, step, timestep, arguments, held=held):
            held.append(memory_of_parameters(pipe))
            return arguments

        callback = {} if tiny.name in ("dit", "latte") or "pixart" in tiny.name else {"callback_on_step_end": look}
        out = tiny.call(pipe, **callback)
        assert torch.equal(out, dense_output(tiny.name))
        report = pipe.report.methods["block_streaming"]
        assert report.peak_weights <= budget and report.bytes_read > 0
        if callback:
            assert held and max(held) <= budget + 16 * len(list(pipe.transformer.parameters()))  # one element each


def test_a_budget_that_holds_the_model_reads_it_once(wan):
    pipe = load(wan, "100%")
    assert torch.equal(BY_NAME["wan"].call(pipe), dense_output("wan"))
    assert pipe.report.methods["block_streaming"].bytes_read == sum(
        e.nbytes for u in weights_of(pipe).components[0].units for _, e in u.tensors
    )
    assert torch.equal(BY_NAME["wan"].call(pipe), dense_output("wan"))
    assert pipe.report.methods["block_streaming"].bytes_read == 0


@pytest.mark.parametrize("slots", [1, 2])
def test_the_smallest_budgets_are_what_they_say(slots, wan, budgets):
    pipe = load(wan, budgets[slots - 1])
    BY_NAME["wan"].call(pipe, steps=1)
    assert len(weights_of(pipe).components[0].slots) == slots


def test_each_streamed_unit_is_read_once_a_pass(wan, budgets):
    pipe = load(wan, budgets.prefetching)
    component = weights_of(pipe).components[0]
    BY_NAME["wan"].call(pipe, steps=4)  # 8 passes: guidance
    passes, streamed = 8, len(component.units) - len(component.kept)
    assert streamed >= 2
    assert (
        passes * streamed <= component.reads - len(component.kept) <= passes * streamed + 2
    )  # and the next pass's first


def test_the_next_unit_is_read_while_one_computes(wan, budgets):
    pipe = load(wan, budgets.prefetching)
    component, ahead = weights_of(pipe).components[0], []
    block = pipe.transformer.blocks[0]
    handle = block.register_forward_pre_hook(lambda *_: ahead.append(component.coming()))
    BY_NAME["wan"].call(pipe, steps=2)
    handle.remove()
    assert ahead[1:] and all("blocks.1" in names for names in ahead[1:])


def test_with_methods_on_tokens_and_kernels(wan, budgets):
    methods = [TokenMerging(noise=(0.8, 1)), RadialAttention(decay=0.2, dense_share=0, dense_layers=0)]
    with accelerate(BY_NAME["wan"].make(), methods) as handle:
        expected = BY_NAME["wan"].call(handle._target)
    pipe = load(wan, budgets.prefetching, *methods)
    assert torch.equal(BY_NAME["wan"].call(pipe), expected)
    assert not torch.equal(expected, dense_output("wan"))
    with pipe.dense():  # the weights stay on disk, as they may not fit
        assert torch.equal(BY_NAME["wan"].call(pipe), dense_output("wan"))
        assert pipe.report.methods["block_streaming"].bytes_read > 0


def test_lora(wan, budgets):
    from peft import LoraConfig
    from peft.utils import get_peft_model_state_dict

    plain = BY_NAME["wan"].make()
    plain.transformer.add_adapter(
        LoraConfig(r=2, lora_alpha=2, target_modules=["to_q", "proj_out"], init_lora_weights=False)
    )
    state = {
        f"transformer.{k}": v for k, v in get_peft_model_state_dict(plain.transformer, adapter_name="default").items()
    }
    expected = BY_NAME["wan"].call(plain)
    pipe = load(wan, budgets.prefetching)
    pipe.load_lora_weights(state)
    assert torch.equal(BY_NAME["wan"].call(pipe), expected) and not torch.equal(expected, dense_output("wan"))
    with pytest.raises(RuntimeError, match="cannot be fused into weights that are on disk"):
        pipe.fuse_lora()
    pipe.set_methods([BlockStreaming(budgets.least)])
    assert torch.equal(BY_NAME["wan"].call(pipe), expected)
    pipe.restore()
    assert torch.equal(BY_NAME["wan"].call(pipe), expected)
    pipe.unload_lora_weights()
    assert torch.equal(BY_NAME["wan"].call(pipe), dense_output("wan"))


def test_compiled_blocks(wan, budgets):
    pipe = load(wan, budgets.prefetching)
    for block in pipe.transformer.blocks:
        block.compile(backend="eager")
    assert torch.equal(BY_NAME["wan"].call(pipe), dense_output("wan"))


def test_a_loaded_pipeline_needs_its_source_and_comes_back_exactly(wan, budgets, tmp_path):
    pipe = BY_NAME["wan"].make()
    before = {name: (id(p), p.detach().clone()) for name, p in pipe.transformer.named_parameters()}
    with pytest.raises(ValueError, match=r"in memory already: give it to FastDiTPipeline.from_pretrained.*source="):
        accelerate(pipe, [BlockStreaming()])
    with pytest.raises(ValueError, match="no folder"):
        accelerate(pipe, [BlockStreaming(source=str(tmp_path / "none"))])
    other = BY_NAME["wan"].make()
    with torch.no_grad():
        other.transformer.blocks[1].ffn.net[2].bias += 1
    other.save_pretrained(tmp_path / "other")
    with pytest.raises(
        ValueError, match=r"other weights than this transformer has in memory \(blocks.1.ffn.net.2.bias"
    ):
        accelerate(pipe, [BlockStreaming(source=str(tmp_path / "other"))])
    accelerate(pipe, [BlockStreaming(memory_budget=budgets.least, source=str(wan))])
    assert torch.equal(BY_NAME["wan"].call(pipe), dense_output("wan"))
    assert memory_of_parameters(pipe) <= budgets.least + 1000
    restore(pipe)
    for name, parameter in pipe.transformer.named_parameters():
        assert id(parameter) == before[name][0] and torch.equal(parameter, before[name][1])
    assert not any(isinstance(v, torch.nn.Module) for v in vars(pipe.transformer).values())
    assert "_apply" not in vars(pipe.transformer) and "save_pretrained" not in vars(pipe.transformer)
    assert torch.equal(BY_NAME["wan"].call(pipe), dense_output("wan"))


def test_a_bare_transformer(wan, budgets):
    pipe = BY_NAME["wan"].make()
    method = BlockStreaming(budgets.prefetching, source=str(wan / "transformer"))
    with accelerate(pipe.transformer, [method]) as handle:
        assert torch.equal(BY_NAME["wan"].call(pipe), dense_output("wan"))
        assert handle.report.methods["block_streaming"].bytes_read > 0 and "weights at most" in str(handle.report)
    assert not streaming_threads()
    assert torch.equal(BY_NAME["wan"].call(pipe), dense_output("wan"))


def test_exchanging_methods(wan, budgets):
    pipe = load(wan, budgets.prefetching)
    with pytest.raises(ValueError, match=r"memory_budget 1000 is 0.0 MiB"):
        pipe.set_methods([BlockStreaming(1000)])
    assert pipe.methods == (BlockStreaming(budgets.prefetching),)
    assert torch.equal(BY_NAME["wan"].call(pipe), dense_output("wan"))
    pipe.set_methods([BlockStreaming(budgets.least), TokenMerging()])
    assert not torch.equal(BY_NAME["wan"].call(pipe), dense_output("wan"))
    assert pipe.report.methods["block_streaming"].peak_weights <= budgets.least
    pipe.restore()  # all in memory: it fits
    assert pipe.methods == () and weights_of(pipe) is None
    assert torch.equal(BY_NAME["wan"].call(pipe), dense_output("wan")) and not pipe.report.methods


def test_giving_back_more_than_fits_is_refused(wan, budgets, monkeypatch):
    import psutil

    pipe = load(wan, budgets.prefetching)
    monkeypatch.setattr(psutil, "virtual_memory", lambda: type("Memory", (), {"available": 1000}))
    with pytest.raises(MemoryError, match="keep BlockStreaming among the methods"):
        pipe.restore()
    with pytest.raises(MemoryError, match="keep BlockStreaming among the methods"):
        restore(pipe)
    assert pipe.methods == (BlockStreaming(budgets.prefetching),)
    assert torch.equal(BY_NAME["wan"].call(pipe), dense_output("wan"))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_a_whole_pipeline_with_text_encoder_and_vae(dtype, monkeypatch):
    monkeypatch.setattr("fastdit.methods.block_streaming.rows.LARGE", 50_000)  # the tied table of words goes by rows
    call = {"num_frames": 5, "num_inference_steps": 2, "output_type": "pt"}

    def draw(methods):
        pipe = FastDiTPipeline.from_pretrained("fastdit/emoji-video", methods=methods, dtype=dtype)
        made = [pipe("a rocket moving up", generator=torch.Generator().manual_seed(0), **call).frames for _ in "ab"]
        assert torch.equal(*made)
        return made[0], pipe

    dense, _ = draw([])
    least, prefetching = smallest_budgets("fastdit/emoji-video", dtype=dtype)
    for budget in (least, prefetching, "25%", "100%"):
        out, pipe = draw([BlockStreaming(budget)])
        assert torch.equal(out, dense)
        report = pipe.report.methods["block_streaming"]
        assert report.peak_weights <= weights_of(pipe).division.budget
        assert (report.bytes_read == 0) == (budget == "100%"), "the second run reads nothing where all fits"
        assert bool(weights_of(pipe).division.tables) == (budget != "100%")


def test_repeated_runs_grow_nothing(wan, budgets):
    pipe = load(wan, budgets.prefetching)
    BY_NAME["wan"].call(pipe)
    seen = set()
    for _ in range(4):
        BY_NAME["wan"].call(pipe)
        seen.add((threading.active_count(), open_files(), weights_of(pipe).held, memory_of_parameters(pipe)))
    assert len(seen) == 1 and not streaming_threads()


def test_another_number_of_frames(wan, budgets):
    pipe, plain = load(wan, budgets.prefetching), BY_NAME["wan"].make()
    for frames in (3, 1, 2):
        latents = torch.randn(1, 4, frames, 16, 16, generator=torch.Generator().manual_seed(frames))
        more = BY_NAME["wan"].arguments(plain, 1, 16) | {"latents": latents, "num_frames": 4 * frames - 3}
        more |= {"num_inference_steps": 2, "output_type": "latent"}
        assert torch.equal(pipe(**more).frames, plain(**more).frames)
