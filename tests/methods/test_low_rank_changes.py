"""Low-rank changes: nothing at first, the trained form equals the folded one, and peft's LoRA takes the same format."""

import pytest
import torch
from helpers import BY_NAME
from peft import LoraConfig, inject_adapter_in_model

from fastdit.core.ledger import PatchLedger
from fastdit.methods.lora import MIXER, LowRank, TimeLoRA, lora_state_of_peft
from fastdit.models.base import family_of

ENDS = ("attn1.to_q", "attn1.to_out.0", "ff.net.0.proj", "ff.net.2")
TIMES = torch.tensor([3, 250, 600, 999])


def setup(ups, rank=3):
    """(tiny DiT, TimeLoRA on some of its layers, the family)."""
    transformer = BY_NAME["dit"].make().transformer
    paths = [name for name, _ in transformer.named_modules() if name.endswith(ENDS)]
    assert len(paths) == 8
    return transformer, TimeLoRA(transformer, paths, rank, ups, width=32), family_of(transformer)


def train(changes):
    """Stands for training: no parameter is zero any more."""
    with torch.no_grad():
        for parameter in changes.parameters():
            parameter.add_(0.2 * torch.randn_like(parameter))


def run(transformer, times, latents=None):
    torch.manual_seed(5)
    latents = torch.randn(1, 4, 16, 16).expand(len(times), -1, -1, -1) if latents is None else latents
    labels = torch.full((len(times),), 7)
    return transformer(latents, timestep=times, class_labels=labels).sample


def fold(transformer, low_rank, embedding):
    """Write the changes of one timestep into the weights."""
    with torch.no_grad():
        for path in low_rank.paths:
            transformer.get_submodule(path).weight += low_rank.delta(path, embedding)


@pytest.mark.parametrize("ups", [1, 4])
def test_the_trained_form_equals_the_folded_one_at_each_timestep(ups):
    transformer, changes, family = setup(ups)
    plain = run(transformer, TIMES)
    train(changes)
    ledger = PatchLedger()
    changes.install(transformer, ledger)
    changes.set_embedding(family.time_embedding(transformer, TIMES))
    with torch.no_grad():
        trained = run(transformer, TIMES)  # one batch of different timesteps
    assert (trained - plain).abs().max() > 0.1
    low_rank = LowRank(changes.lora_state())
    assert low_rank.paths == set(changes.paths) and low_rank.by_time == (ups > 1)
    deltas = set()
    for sample, time in enumerate(TIMES):
        folded = BY_NAME["dit"].make().transformer
        fold(folded, low_rank, family.time_embedding(folded, time[None]))
        assert torch.allclose(run(folded, time[None])[0], trained[sample], atol=1e-5)
        deltas.add(low_rank.delta(changes.paths[0], family.time_embedding(folded, time[None])).sum().item())
    assert len(deltas) == (len(TIMES) if ups > 1 else 1)
    ledger.undo()
    assert torch.equal(run(transformer, TIMES), plain) and "forward" not in vars(transformer.transformer_blocks[0].ff)


@pytest.mark.parametrize("ups", [1, 4])
def test_at_first_nothing_changes(ups):
    transformer, changes, family = setup(ups)
    plain, names = run(transformer, TIMES), list(transformer.state_dict())
    changes.install(transformer, PatchLedger())
    changes.set_embedding(family.time_embedding(transformer, TIMES))
    assert torch.equal(run(transformer, TIMES), plain) and list(transformer.state_dict()) == names
    assert (changes.mixer is None) == (ups == 1)


@pytest.mark.parametrize("checkpointing", [False, True])
def test_all_factors_learn_and_up_matrices_part(checkpointing):
    """Gradients reach every factor, twice for one embedding too, and the up matrices do not stay alike."""
    transformer, changes, family = setup(4)
    transformer.train()
    if checkpointing:
        transformer.enable_gradient_checkpointing()
    changes.install(transformer, PatchLedger())
    changes.set_embedding(family.time_embedding(transformer, TIMES))
    optimizer = torch.optim.SGD(changes.parameters(), lr=0.1)
    target = torch.randn(4, 8, 16, 16)
    losses = []
    for _ in range(3):
        loss = (run(transformer, TIMES) - target).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0]
    assert all(parameter.grad.any() for parameter in changes.parameters())
    assert all(not torch.allclose(up[0], up[1]) for up in changes.up)
    assert not any(parameter.grad is not None for parameter in transformer.parameters())


def test_bfloat16_hosts_with_float32_factors():
    transformer, changes, family = setup(2)
    transformer.bfloat16()
    train(changes)
    changes.install(transformer, PatchLedger())
    changes.set_embedding(family.time_embedding(transformer, TIMES))
    latents = torch.randn(4, 4, 16, 16, dtype=torch.bfloat16)
    assert run(transformer, TIMES, latents).dtype == torch.bfloat16
    with torch.autocast("cpu", torch.bfloat16):
        assert run(transformer, TIMES, latents).isfinite().all()


def test_whoever_drives_it_must_give_the_timesteps():
    transformer, changes, family = setup(4)
    changes.install(transformer, PatchLedger())
    with pytest.raises(RuntimeError, match=r"call set_embedding\(\.\.\.\) before the forward"):
        run(transformer, TIMES)
    changes.set_embedding(family.time_embedding(transformer, TIMES[:3]))
    with pytest.raises(RuntimeError, match=r"attn1\.to_q sees a batch of 4, and set_embedding\(\.\.\.\) was given 3"):
        run(transformer, TIMES)


@pytest.mark.parametrize("more", [{}, {"use_rslora": True}])
def test_a_lora_of_peft_takes_the_same_format(more):
    transformer = BY_NAME["dit"].make().transformer
    config = LoraConfig(r=4, lora_alpha=6, target_modules=list(ENDS), init_lora_weights=False, **more)
    inject_adapter_in_model(config, transformer)
    trained, state = run(transformer, TIMES), lora_state_of_peft(transformer)
    assert state["transformer_blocks.0.ff.net.2.down"].shape == (4, 128)
    assert state["transformer_blocks.0.ff.net.2.up"].shape == (1, 32, 4)
    low_rank = LowRank(state)
    assert len(low_rank.paths) == 8 and not low_rank.by_time
    folded = BY_NAME["dit"].make().transformer
    fold(folded, low_rank, None)
    assert torch.allclose(run(folded, TIMES), trained, atol=1e-5)


def test_what_of_peft_cannot_be_kept():
    for config, match in (
        (LoraConfig(r=2, target_modules=["to_q"], use_dora=True), r"attn1\.to_q: only a plain LoRA"),
        (LoraConfig(r=2, target_modules=["to_q"], lora_bias=True), r"attn1\.to_q: only a plain LoRA"),
        (LoraConfig(r=2, target_modules=["pos_embed.proj"]), r"pos_embed\.proj: only a plain LoRA"),
    ):
        transformer = inject_adapter_in_model(config, BY_NAME["dit"].make().transformer)
        with pytest.raises(ValueError, match=match):
            lora_state_of_peft(transformer)
    with pytest.raises(ValueError, match="no LoRA called 'default' is in this DiTTransformer2DModel"):
        lora_state_of_peft(BY_NAME["dit"].make().transformer)


def test_layers_that_cannot_be_changed():
    transformer = BY_NAME["dit"].make().transformer
    for path, match in (
        ("nothing.here", "no layer"),
        ("pos_embed.proj", "Conv2d"),
        ("transformer_blocks.0.ff", "FeedForward"),
    ):
        with pytest.raises(ValueError, match=match):
            TimeLoRA(transformer, [path], 2, 2, 32)


@pytest.mark.parametrize(
    "state, match",
    [
        ({}, "no changes"),
        ({"a.down": torch.ones(2, 4)}, "change of a must be"),
        ({"a.down": torch.ones(2, 4), "a.up": torch.ones(1, 4, 3)}, "change of a must be"),
        ({"a.down": torch.ones(2, 4), "a.up": torch.ones(2, 4, 2)}, "mixer.weight and mixer.bias"),
        (
            {"a.down": torch.ones(2, 4), "a.up": torch.ones(1, 4, 2), **dict.fromkeys(MIXER, torch.ones(1))},
            "mixer.weight",
        ),
    ],
)
def test_states_that_are_no_low_rank_change(state, match):
    with pytest.raises(ValueError, match=match):
        LowRank(state)


def test_two_numbers_of_up_matrices_are_refused():
    state = {f"{name}.down": torch.ones(2, 4) for name in "ab"} | {
        "a.up": torch.ones(1, 4, 2),
        "b.up": torch.ones(2, 4, 2),
    }
    with pytest.raises(ValueError, match=r"found \[1, 2\]"):
        LowRank(state)


def test_folding_needs_one_timestep():
    low_rank = LowRank(setup(4)[1].lora_state())
    for embedding in (None, torch.ones(2, 32)):
        with pytest.raises(ValueError, match=r"one embedded timestep \(1, C\)"):
            low_rank.delta("transformer_blocks.0.ff.net.2", embedding)
