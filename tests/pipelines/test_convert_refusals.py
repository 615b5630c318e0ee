"""What is no published checkpoint is refused by one line that says why, and nothing is written."""

import re
import sys
from pathlib import Path

import pytest
import torch
from diffusers import AutoencoderKL, DiTPipeline
from published import Groups, Shape, dydit_state, flexdit_state
from safetensors.torch import save_file

from fastdit import cli
from fastdit.pipelines.convert import convert

SMALL = Shape(16, 2)


def changed(state, **more):
    """A state dict with entries changed or, by None, removed; `__` stands for a dot."""
    state = {**state, **{key.replace("__", "."): value for key, value in more.items()}}
    return {key: value for key, value in state.items() if value is not None}


def dydit(**more):
    return changed(dydit_state(SMALL, 2), **more)


def flexdit(groups=Groups(), shape=SMALL, **more):  # noqa: B008
    return changed(flexdit_state(shape, groups), **more)


def without(state, mark):
    return {name: value for name, value in state.items() if mark not in name}


def renamed(state, old, new):
    return {name.replace(old, new): value for name, value in state.items()}


def refused(tmp_path, name, state, match, **options):
    """The conversion fails with this text in its one line, and leaves nothing behind."""
    torch.save(state, tmp_path / "state.pt")
    with pytest.raises(ValueError, match=match) as error:
        convert(name, tmp_path / "state.pt", tmp_path / "out", **options)
    assert "\n" not in str(error.value)
    assert [path.name for path in tmp_path.iterdir()] == ["state.pt"]


FAULTS = {
    "unknown": ("dydit", dydit(blocks__1__extra=torch.zeros(1)), r"unknown: blocks\.1\.extra"),
    "missing": ("dydit", dydit(blocks__1__mlp__fc1__bias=None), r"missing: blocks\.1\.mlp\.fc1\.bias"),
    "another shape": (
        "dydit",
        dydit(blocks__1__attn__proj__weight=torch.zeros(4, 16)),
        r"another shape: blocks\.1\.attn\.proj\.weight \(4, 16\) instead of \(16, 16\)",
    ),
    "all at once": (
        "dydit",
        dydit(blocks__0__mlp_rate__router__bias=None, pos_embed=torch.zeros(1, 16, 8), extra=torch.zeros(1)),
        r"missing: blocks\.0\.mlp_rate\.router\.bias; of another shape: pos_embed .*; unknown: extra$",
    ),
    "many": ("dydit", without(dydit(), "mlp_head"), r"missing: (\S+, ){2}\S+ and 5 more$"),
    "no routers": ("dydit", without(without(without(dydit(), "rate"), "token_sel"), "."), "no checkpoint of DyDiT"),
    "plain DiT": ("dydit", without(without(dydit(), "rate"), "token_selection"), "is a plain DiT and not a checkpoint"),
    "diffusers": ("flexdit", {"transformer_blocks.0.attn1.to_q.weight": torch.zeros(1)}, "is a diffusers transformer"),
    "the other method": ("dydit", flexdit(), "checkpoint of FlexDiT and not of DyDiT: use `fastdit convert flexdit`"),
    "and the other way": ("flexdit", dydit(), "checkpoint of DyDiT and not of FlexDiT: use `fastdit convert dydit`"),
    "a block left out": ("dydit", renamed(dydit(), "blocks.1.", "blocks.2."), r"lacks blocks\.1, while blocks\.2"),
    "trained positions": ("dydit", dydit(pos_embed=torch.zeros(1, 16, 16)), "pos_embed is not DiT's fixed table"),
    "no square": ("dydit", dydit(pos_embed=torch.zeros(1, 15, 16)), "15 positions, which are no square"),
    "channels": ("dydit", dydit(final_layer__linear__bias=torch.zeros(20)), "neither 4 nor 8 channels of 2 x 2"),
    "no state dict": ("dydit", {"opt": {}, "epoch": 3}, "holds no state dict, neither bare nor under 'ema' or 'model'"),
    "two generations": (
        "flexdit",
        {**flexdit(), **renamed(flexdit(), "merge_blocks.0", "merge_blocks.1")},
        r"dumbbell_blocks\.0 has 2 token_merge_blocks and 1 token_recover_blocks",
    ),
    "no recovery": ("flexdit", without(flexdit(), "token_recover"), "has 1 token_merge_blocks and 0 token_recover"),
    "unequal modules": (
        "flexdit",
        without(flexdit(Groups(modules=2, sparse=2)), "dumbbell_blocks.1.semantic_blocks.1."),
        r"dumbbell_blocks\.1 has 1 sparse and 1 dense blocks, dumbbell_blocks\.0 has 2 and 1",
    ),
    "other positions": (
        "flexdit",
        flexdit(relative_pos_embedder__0__relative_position_bias_table=torch.zeros(9, 2)),
        r"unknown: relative_pos_embedder\.0\.",
    ),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_what_is_wrong_with_a_checkpoint(tmp_path, fault):
    name, state, match = FAULTS[fault]
    options = {"num_heads": 2, "sparse_grid": 2} if name == "flexdit" else {}
    refused(tmp_path, name, state, match, **options)


OPTIONS = {
    "heads unknown": ("flexdit", {"sparse_grid": 2}, "--num-heads: .* width 16, and heads are known for 384"),
    "heads that do not divide": ("flexdit", {"num_heads": 3, "sparse_grid": 2}, "3 heads do not divide .* 16"),
    "heads that the routers deny": ("dydit", {"num_heads": 4}, "--num-heads 4: the routers of .* are for 2 heads"),
    "a grid too fine": ("flexdit", {"num_heads": 2}, "--sparse-grid 8: .* is for 4 x 4 tokens, give 1 to 4"),
    "no VAE there": ("dydit", {"vae": "./nowhere"}, r"--vae \./nowhere cannot be loaded"),
    "no scheduler there": ("dydit", {"scheduler": "./nowhere"}, r"--scheduler \./nowhere cannot be loaded"),
    "no labels there": ("dydit", {"labels": "./nowhere.txt"}, r"--labels \./nowhere\.txt cannot be read"),
}  # fmt: skip


@pytest.mark.parametrize("fault", OPTIONS)
def test_options_that_do_not_fit(tmp_path, fault):
    name, options, match = OPTIONS[fault]
    refused(tmp_path, name, {"dydit": dydit, "flexdit": flexdit}[name](), match, **options)


def test_labels_and_a_vae_of_another_size(tmp_path, tmp_path_factory):
    place = tmp_path_factory.mktemp("parts")
    (place / "labels.txt").write_text("cat\ndog\n")
    refused(tmp_path, "dydit", dydit(), "one class a line, 10 of them; it has 2 lines", labels=place / "labels.txt")
    AutoencoderKL(block_out_channels=(4,), norm_num_groups=2, latent_channels=3).save_pretrained(place / "vae")
    refused(tmp_path, "dydit", dydit(), "makes 3 latent channels, the model needs 4", vae=str(place / "vae"))


class Code:
    """A pickle that runs code when it is read."""

    def __init__(self, target):
        self.target = target

    def __reduce__(self):
        return (open, (str(self.target), "w"))


def test_code_in_a_file_is_refused_and_not_run(tmp_path, tmp_path_factory):
    target = tmp_path_factory.mktemp("target") / "ran"
    refused(tmp_path, "dydit", {**dydit(), "code": Code(target)}, "could run code")
    assert not target.exists()


@pytest.mark.parametrize("suffix", [".pt", ".safetensors"])
def test_a_torn_file(tmp_path, suffix):
    path = tmp_path / f"state{suffix}"
    (save_file if suffix == ".safetensors" else torch.save)(dydit(), path)
    path.write_bytes(path.read_bytes()[:1000])
    with pytest.raises(ValueError, match=f"{re.escape(str(path))} (cannot be read|is damaged)"):
        convert("dydit", path, tmp_path / "out")
    with pytest.raises(ValueError, match=r"nothing\.pt does not exist"):
        convert("dydit", tmp_path / "nothing.pt", tmp_path / "out")


def test_a_folder_that_holds_something_is_left_alone(tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine.txt").write_text("mine")
    with pytest.raises(ValueError, match="out exists and is not empty: give a new folder"):
        convert("dydit", tmp_path / "not looked at.pt", tmp_path / "out")
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["mine.txt"]


def test_an_empty_folder_is_filled(tmp_path):
    (tmp_path / "out").mkdir()
    torch.save(dydit(), tmp_path / "state.pt")
    convert("dydit", tmp_path / "state.pt", tmp_path / "out")
    assert (tmp_path / "out" / "model_index.json").is_file()


@pytest.mark.parametrize("error", [OSError("No space left on device"), KeyboardInterrupt("stopped")])
def test_a_disk_that_is_full_half_way_leaves_nothing(tmp_path, monkeypatch, error):
    torch.save(dydit(), tmp_path / "state.pt")

    def half(pipe, folder):
        (Path(folder) / "model_index.json").write_text("{}")
        raise error

    monkeypatch.setattr(DiTPipeline, "save_pretrained", half)
    with pytest.raises(type(error), match=re.escape(str(error))):
        convert("dydit", tmp_path / "state.pt", tmp_path / "out")
    assert [path.name for path in tmp_path.iterdir()] == ["state.pt"]


def test_the_command_says_it_in_one_line(tmp_path, monkeypatch, capsys):
    torch.save(flexdit(), tmp_path / "state.pt")
    command = ["fastdit", "convert", "dydit", str(tmp_path / "state.pt"), str(tmp_path / "out")]
    monkeypatch.setattr(sys, "argv", command)
    with pytest.raises(SystemExit) as end:
        cli.main()
    error = capsys.readouterr().err
    assert end.value.code == 2 and "use `fastdit convert flexdit`" in error and error.count("\n") == 1
