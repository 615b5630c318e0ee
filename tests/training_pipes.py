"""Tiny pipelines that are whole enough to be trained: with a VAE, and with a stand-in for their text encoders."""

import hashlib
from typing import Any

import diffusers
import numpy as np
import pytest
import torch
from PIL import Image
from tiny import flow_euler, make_dit, make_flux, make_hunyuan, make_pixart, make_wan, noise, weights
from torch import nn

CAPTIONS = ["red apple", "pear", "kiwi"]
WORDS = 7  # tokens of a stand-in's caption, unless the call asks for fewer


def states(captions: list[str], length: int, width: int) -> torch.Tensor:
    """Numbers (n, length, width) that only the caption decides."""
    seeds = [int(hashlib.sha256(caption.encode()).hexdigest()[:8], 16) for caption in captions]
    return torch.stack([noise(length, width, seed=seed) for seed in seeds])


class StandIn:
    """An `encode_prompt` that counts its calls and keeps their arguments; `make(captions, length)` gives the result."""

    def __init__(self, make: Any) -> None:
        self.make, self.calls = make, []

    def __call__(self, prompt: Any, *args: Any, prompt_embeds: Any = None, **more: Any) -> Any:
        captions = [prompt] if isinstance(prompt, str) else list(prompt)
        self.calls.append((captions, more))
        return self.make(captions, min(WORDS, more.get("max_sequence_length", WORDS)))


def mask(captions: list[str], length: int) -> torch.Tensor:
    """As many tokens as the caption has letters."""
    return (torch.arange(length) < torch.tensor([[max(1, len(caption))] for caption in captions])).long()


class NoEncoder(nn.Module):
    """Stands where a text encoder belongs."""

    device, dtype, config = torch.device("cpu"), torch.float32, {}


def with_text(pipe: Any, make: Any) -> Any:
    for name in ("text_encoder", "text_encoder_2"):
        if name in pipe.config:
            setattr(pipe, name, NoEncoder())
    pipe.encode_prompt = StandIn(make)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def pixart(**more: Any) -> Any:
    def made(captions: list[str], length: int) -> Any:
        empty = [""] * len(captions)
        return states(captions, length, 24), mask(captions, length), states(empty, length, 24), mask(empty, length)

    return with_text(make_pixart(**more), made)


def dit() -> Any:
    pipe = make_dit()
    pipe.set_progress_bar_config(disable=True)
    return pipe


def flux() -> Any:
    pipe = make_flux()
    parts = {f"{way}_block_types": (f"{name}Block2D",) * 4 for way, name in
             (("down", "DownEncoder"), ("up", "UpDecoder"))}  # fmt: skip
    vae = weights(
        diffusers.AutoencoderKL, block_out_channels=(4,) * 4, norm_num_groups=2, layers_per_block=1, latent_channels=4,
        shift_factor=0.1, scaling_factor=0.4, **parts,
    )  # fmt: skip
    pipe = type(pipe)(flow_euler(), vae, None, None, None, None, pipe.transformer)

    def made(captions: list[str], length: int) -> Any:
        return states(captions, length, 24), states(captions, 1, 24)[:, 0], torch.zeros(length, 3)

    return with_text(pipe, made)


def wan(temporal: int = 4) -> Any:
    """`temporal` 2: as in the bundled video model, a VAE that still encodes 4 frames at a time."""
    vae = weights(
        diffusers.AutoencoderKLWan, base_dim=4, z_dim=4, dim_mult=[1, 1, 1], num_res_blocks=1,
        temperal_downsample=[False, True] if temporal == 2 else [True, True], scale_factor_spatial=4,
        scale_factor_temporal=temporal, latents_mean=[0.1, 0.2, 0.3, 0.4], latents_std=[0.5, 1.0, 1.5, 2.0],
    )  # fmt: skip
    bare = make_wan()
    pipe = type(bare)(None, None, vae, bare.scheduler, bare.transformer)
    return with_text(pipe, lambda captions, length: (states(captions, length, 24), states([""], length, 24)))


def hunyuan_video() -> Any:
    bare = make_hunyuan()
    vae = weights(
        diffusers.AutoencoderKLHunyuanVideo, latent_channels=4, block_out_channels=(4, 4, 4, 4), layers_per_block=1,
        norm_num_groups=2, mid_block_add_attention=False, scaling_factor=0.5,
    )  # fmt: skip
    pipe = type(bare)(None, None, bare.transformer, vae, flow_euler(), None, None)

    def made(captions: list[str], length: int) -> Any:
        return states(captions, length, 24), states(captions, 1, 12)[:, 0], mask(captions, length)

    return with_text(pipe, made)


def pictures(count: int, *shape: int, seed: int = 0) -> np.ndarray:
    """Random uint8 pictures (count, *shape, 3)."""
    return np.random.default_rng(seed).integers(0, 256, (count, *shape, 3), dtype=np.uint8)


def npz(folder: Any, count: int = 3, shape: Any = (16, 16), name: str = "data.npz", **told: Any) -> Any:
    """An npz of random pictures, with CAPTIONS unless something else is told."""
    np.savez(folder / name, x=pictures(count, *shape), **(told or {"c": np.array(CAPTIONS[:count])}))
    return folder / name


def save(file: Any, pixels: np.ndarray) -> None:
    """Write a picture."""
    file.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(file)


def forbid(pipe: Any, monkeypatch: Any) -> None:
    """Any encoding is a failure from now on."""
    monkeypatch.setattr(pipe.vae, "encode", lambda *args: pytest.fail("the VAE was called"))
    pipe.encode_prompt = lambda *args, **kwargs: pytest.fail("the text encoder was called")
