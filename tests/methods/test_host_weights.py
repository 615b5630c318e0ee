"""What an adapter fits, and a whole transformer's weights: brought in place, and taken back without a trace."""

import shutil
import warnings

import pytest
import torch
from helpers import BY_NAME
from peft import LoraConfig, inject_adapter_in_model
from stand_in import StandIn, host_of, make, refused, same, values, write
from torch import nn

from fastdit import accelerate, restore
from fastdit.core.ledger import PatchLedger
from fastdit.methods import adapter as a
from fastdit.methods.adapter import host_weights
from fastdit.methods.runtime import Host


def test_another_method_class_or_config(tmp_path):
    read = a.read_adapter(write(tmp_path / "x"))
    with refused("holds stand_in, not flexdit"):
        a.check_adapter(read, "flexdit", make())
    with refused("PixArtTransformer2DModel", "WanTransformer3DModel"):
        a.check_adapter(read, "stand_in", make("wan"))
    other = type(make()).from_config({**make().config, "num_layers": 3})
    with refused("num_layers 2", "has 3"):
        a.check_adapter(read, "stand_in", other)
    larger = type(make()).from_config({**make().config, "sample_size": 32})
    larger.load_state_dict(make().state_dict())
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        a.check_adapter(read, "stand_in", larger)  # another resolution is the same model


@pytest.mark.parametrize("kind", a.KINDS)
def test_another_base_is_a_warning_where_it_stays(kind, tmp_path):
    base = {**a.describe_base(make()), "source": "someone/pixart"}
    read = a.read_adapter(write(tmp_path / "x", kind, base=base))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for same_weights in (make(), make().bfloat16(), make().half()):  # half floats cannot be told
            a.check_adapter(read, "stand_in", same_weights)
        if kind == "full":
            a.check_adapter(read, "stand_in", make(change=0.01))
    if kind != "full":
        with pytest.warns(
            UserWarning, match=r"trained on weights of someone/pixart .* load the base it was trained on"
        ):
            a.check_adapter(read, "stand_in", make(change=0.01))


@pytest.mark.parametrize(
    "state, parts",
    [
        ({"nothing.down": torch.ones(2, 32), "nothing.up": torch.ones(1, 32, 2)}, ("nothing", "no linear layer")),
        ({"proj_out.down": torch.ones(2, 48), "proj_out.up": torch.ones(1, 32, 2)}, ("in_features 48", "has 32")),
        ({"proj_out.up": torch.ones(1, 33, 2)}, ("out_features 33", "has 32")),
    ],
)
def test_low_rank_changes_that_do_not_fit(state, parts, tmp_path):
    read = a.read_adapter(write(tmp_path / "x", "lora", lora_state=state))
    with refused(tmp_path / "x", *parts):
        a.check_adapter(read, "stand_in", make())


def test_a_whole_transformer_that_does_not_fit(tmp_path):
    transformer = make()
    del transformer.transformer_blocks[1].ff
    read = a.read_adapter(write(tmp_path / "x", "full", transformer))
    with refused("transformer_blocks.1.ff", "missing"):
        a.check_adapter(read, "stand_in", make())
    with refused("transformer_blocks.1.ff", "unknown"):
        a.check_adapter(a.read_adapter(write(tmp_path / "y", "full")), "stand_in", transformer)
    wide = make()
    wide.proj_out = nn.Linear(32, 33)
    with refused("proj_out.weight", "(33, 32)", "(32, 32)"):
        a.check_adapter(a.read_adapter(write(tmp_path / "z", "full", wide)), "stand_in", make())


# --- a whole transformer, brought and taken back ---------------------------------------------------------------------


@pytest.fixture
def full(tmp_path):
    """(folder of a full adapter, the weights that it holds)."""
    trained = make(change=0.05)
    folder = write(tmp_path / "adapter", "full", trained)
    return folder, {name: value.bfloat16() for name, value in trained.state_dict().items()}


def saved(tmp_path, dtype=torch.float32, **more):
    """A transformer that was loaded from a folder."""
    transformer = make()
    transformer.save_pretrained(tmp_path / "base", **more)
    return type(transformer).from_pretrained(tmp_path / "base", torch_dtype=dtype).eval()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("how", ["in memory", "one file", "in shards", "changed since"])
def test_full_weights_are_brought_and_the_bases_come_back(how, dtype, full, tmp_path):
    folder, trained = full
    transformer = make().to(dtype)
    if how != "in memory":
        transformer = saved(tmp_path, dtype, max_shard_size="50KB" if how == "in shards" else "10GB")
        assert (len(list((tmp_path / "base").glob("*.safetensors"))) > 1) == (how == "in shards")
    if how == "changed since":
        with torch.no_grad():
            transformer.proj_out.weight += 1
    before, identities = values(transformer), {k: id(p) for k, p in transformer.named_parameters()}
    host, ledger = host_of(transformer), PatchLedger()
    a.bring_full(a.read_adapter(folder), host, ledger)
    assert same(transformer.state_dict(), {k: v.to(dtype) for k, v in trained.items()})
    assert {k: id(p) for k, p in transformer.named_parameters()} == identities
    kept = ledger._entries[-1].undo.__self__.copies
    assert set(kept) == {"in memory": set(before), "changed since": {"proj_out.weight"}}.get(how, set())
    transformer.to(torch.float64).to(dtype)  # moved meanwhile
    ledger.undo()
    assert (
        same(transformer.state_dict(), before) and {k: id(p) for k, p in transformer.named_parameters()} == identities
    )


def test_nothing_is_brought_by_the_other_kinds(tmp_path):
    transformer = make()
    before, ledger = values(transformer), PatchLedger()
    for kind in ("routers", "lora"):
        a.bring_full(a.read_adapter(write(tmp_path / kind, kind, make(change=1.0))), host_of(transformer), ledger)
    assert same(transformer.state_dict(), before) and not len(ledger)


def test_a_method_with_a_full_checkpoint(full, tmp_path):
    """The weights stay under dense(), where the method's own part goes; all goes when it is restored."""
    tiny = BY_NAME["pixart_alpha"]
    folder, trained = full
    other = tiny.make()
    other.transformer.load_state_dict(trained)
    dense = tiny.call(other)
    pipe = tiny.make()
    plain, before = tiny.call(pipe), values(pipe.transformer)
    with accelerate(pipe, [StandIn(str(folder))]) as handle:
        gained = tiny.call(pipe)
        assert not torch.equal(gained, dense) and handle.report.macs_dense > 0
        with handle.dense():
            assert torch.equal(tiny.call(pipe), dense)
        assert torch.equal(tiny.call(pipe), gained)
        pipe.set_methods([])
        assert torch.equal(tiny.call(pipe), plain) and same(pipe.transformer.state_dict(), before)
        pipe.set_methods([StandIn(str(folder))])
        assert torch.equal(tiny.call(pipe), gained)
    assert torch.equal(tiny.call(pipe), plain) and same(pipe.transformer.state_dict(), before)


@pytest.mark.parametrize("source", [False, True])
def test_a_copy_that_fails_half_way(source, full, tmp_path, monkeypatch):
    transformer = saved(tmp_path) if source else make()
    before, real = values(transformer), host_weights._copy

    def half_way(state, slots):
        monkeypatch.setattr(host_weights, "_copy", real)
        real(list(state)[:9], slots)
        raise KeyboardInterrupt

    monkeypatch.setattr(host_weights, "_copy", half_way)
    with pytest.raises(KeyboardInterrupt):
        accelerate(transformer, [StandIn(str(full[0]))])
    assert same(transformer.state_dict(), before) and "_fastdit_engine" not in vars(transformer)


def test_a_damaged_checkpoint_changes_nothing(full):
    file = full[0] / "transformer.safetensors"
    file.write_bytes(file.read_bytes()[:-100])
    transformer = make()
    before = values(transformer)
    with refused("transformer.safetensors", "damaged"):
        accelerate(transformer, [StandIn(str(full[0]))])
    assert same(transformer.state_dict(), before)


def test_a_source_that_is_gone_or_changed_is_an_error_and_no_mixture(full, tmp_path):
    for spoil, word in (
        (shutil.rmtree, "cannot be read"),
        (lambda base: make(change=1.0).save_pretrained(base), "changed"),
    ):
        transformer, ledger = saved(tmp_path), PatchLedger()
        a.bring_full(a.read_adapter(full[0]), host_of(transformer), ledger)
        brought = values(transformer)
        spoil(tmp_path / "base")
        with refused("cannot be put back", tmp_path / "base", word, "load the pipeline again", error=RuntimeError):
            ledger.undo()
        assert same(transformer.state_dict(), brought)


@pytest.mark.parametrize("whole_pipeline", [True, False])
def test_a_restore_that_fails_leaves_the_method_at_work_and_fails_again(whole_pipeline, full, tmp_path):
    tiny = BY_NAME["pixart_alpha"]
    pipe = tiny.make()
    saved(tmp_path)
    pipe.transformer = type(pipe.transformer).from_pretrained(tmp_path / "base")
    before = values(pipe.transformer)
    plain = tiny.call(pipe)
    target = pipe if whole_pipeline else pipe.transformer
    accelerate(target, [StandIn(str(full[0]))])
    gained = tiny.call(pipe)
    (tmp_path / "base").rename(tmp_path / "away")
    for _ in range(2):
        with refused("cannot be put back", error=RuntimeError):
            restore(target)
        if whole_pipeline:
            with refused("cannot be put back", error=RuntimeError):
                pipe.set_methods([])
            assert pipe.methods == (StandIn(str(full[0])),)
        assert torch.equal(tiny.call(pipe), gained)
    (tmp_path / "away").rename(tmp_path / "base")
    restore(target)
    assert torch.equal(tiny.call(pipe), plain) and same(pipe.transformer.state_dict(), before)
    with refused("nothing to restore"):
        restore(target)


def test_a_checkpoint_is_for_one_transformer(tmp_path):
    tiny = BY_NAME["wan22_a14b"]
    pipe = tiny.make()
    folder = write(tmp_path / "x", transformer=pipe.transformer)
    with refused("two transformers", "accelerate(pipe.transformer, [...])"):
        accelerate(pipe, [StandIn(str(folder))])
    with accelerate(pipe.transformer, [StandIn(str(folder))]):
        tiny.call(pipe)
    with accelerate(pipe, [StandIn()]):  # without one, nothing is any transformer's own
        tiny.call(pipe)


def test_a_lora_that_is_loaded_meanwhile_stays(full):
    transformer = make()
    before, ledger = values(transformer), PatchLedger()
    a.bring_full(a.read_adapter(full[0]), host_of(transformer), ledger)
    inject_adapter_in_model(LoraConfig(r=2, target_modules=["to_q"]), transformer)
    ledger.undo()
    now = {
        name.replace("base_layer.", ""): value for name, value in transformer.state_dict().items() if "lora" not in name
    }
    assert same(now, before)


class Packed(nn.Parameter):
    """Stands for the tensor classes of quantisation libraries."""


def quantised(transformer):
    weight = transformer.transformer_blocks[0].attn1.to_q.weight
    transformer.transformer_blocks[0].attn1.to_q.weight = nn.Parameter(weight.to(torch.int8), requires_grad=False)


def packed(transformer):
    transformer.proj_out.weight = Packed(transformer.proj_out.weight, requires_grad=False)


def with_lora(transformer):
    inject_adapter_in_model(LoraConfig(r=2, target_modules=["to_q"]), transformer)


@pytest.mark.parametrize(
    "spoil, parts",
    [
        (quantised, ("to_q.weight", "quantised", "int8")),
        (packed, ("proj_out.weight", "quantised", "Packed")),
        (with_lora, ("LoRA", "unload_lora_weights")),
        (lambda transformer: transformer.to("meta"), ("not in memory", "offloading")),
    ],
    ids=["int8", "class", "lora", "meta"],
)
def test_hosts_whose_weights_cannot_be_exchanged(spoil, parts, full):
    transformer = make()
    spoil(transformer)
    ledger = PatchLedger()
    with refused("cannot be brought into transformer", *parts):
        a.bring_full(a.read_adapter(full[0]), host_of(transformer), ledger)
    assert not len(ledger)
    with refused("cannot be brought in", *parts):  # and not that shapes differ
        a.check_adapter(a.read_adapter(full[0]), "stand_in", transformer)


def test_the_frequencies_of_the_timestep_belong_to_the_weights(tmp_path):
    tiny = BY_NAME["dit"]
    transformer = make("dit")
    folder = write(tmp_path / "x", "routers", transformer, time_frequency_shift=0, own_state={"gain": torch.zeros(1)})
    pipe = tiny.make()
    parts = [part for part in pipe.transformer.modules() if hasattr(part, "downscale_freq_shift")]
    assert len(parts) == 2 and {part.downscale_freq_shift for part in parts} == {1}
    plain = tiny.call(pipe)
    with accelerate(pipe, [StandIn(str(folder))]) as handle:
        shifted = tiny.call(pipe)
        assert {part.downscale_freq_shift for part in parts} == {0} and not torch.equal(shifted, plain)
        with handle.dense():
            assert torch.equal(tiny.call(pipe), shifted)
    assert {part.downscale_freq_shift for part in parts} == {1} and torch.equal(tiny.call(pipe), plain)
    with pytest.raises(ValueError, match="no embedding of the timestep"):
        a.bring_time_frequency(
            a.read_adapter(folder), Host("x", nn.Linear(2, 2), host_of(transformer).family), PatchLedger()
        )


def test_group_offloading_in_memory_and_on_disk(full, tmp_path):
    cpu, read = torch.device("cpu"), a.read_adapter(full[0])
    transformer, ledger = make(), PatchLedger()
    before = values(transformer)
    transformer.enable_group_offload(cpu, cpu, offload_type="leaf_level")
    a.bring_full(read, host_of(transformer), ledger)
    assert same({name: value.bfloat16() for name, value in transformer.state_dict().items()}, full[1])
    ledger.undo()
    assert same(transformer.state_dict(), before)
    transformer = make()
    transformer.enable_group_offload(cpu, cpu, offload_type="leaf_level", offload_to_disk_path=str(tmp_path / "disk"))
    with refused("not in memory", "offloading"):
        a.bring_full(read, host_of(transformer), ledger)
