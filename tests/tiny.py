"""Tiny real pipelines of every family: diffusers' own classes, 2 layers, 2 heads, random weights, no download.

Each row makes a pipeline without text encoders and, where it can, without VAE (their outputs are given as arguments,
latents are returned) and says how to call it. `batch` samples differ from each other in prompt and noise.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import diffusers
import torch
from diffusers import (
    DDIMScheduler,
    DPMSolverMultistepScheduler,
    FlowMatchEulerDiscreteScheduler,
    UniPCMultistepScheduler,
)
from transformers import CLIPImageProcessor, CLIPVisionConfig, CLIPVisionModel


@dataclass(frozen=True)
class Tiny:
    """`make()` builds the pipeline; `call(pipe, batch, size, steps)` runs it and returns latents (batch, ...)."""

    name: str
    family: str
    make: Callable[[], Any]
    arguments: Callable[[Any, int, int], dict[str, Any]]

    def call(self, pipe: Any, batch: int = 1, size: int = 16, steps: int = 3, sample: int | None = None, **more: Any):
        """Run `steps` steps on `size` x `size` latents; `sample` picks one sample of the batch to run alone."""
        arguments = self.arguments(pipe, batch, size)
        if sample is not None:
            arguments = {
                k: v[sample : sample + 1] if (torch.is_tensor(v) or isinstance(v, list)) and len(v) == batch else v
                for k, v in arguments.items()
            }
        pipe.set_progress_bar_config(disable=True)
        out = pipe(**arguments, num_inference_steps=steps, output_type="latent", return_dict=False, **more)
        return torch.as_tensor(out[0])


def noise(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def weights(cls: Any, **config: Any) -> Any:
    """A transformer with random weights that let every part speak (diffusers' own zeros would hide blocks)."""
    torch.manual_seed(0)
    model = cls(**config).eval().requires_grad_(False)
    generator = torch.Generator().manual_seed(1)
    for parameter in model.parameters():
        if parameter.ndim == 1 or not parameter.any():
            parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator))
    return model


def flow_euler() -> Any:
    return FlowMatchEulerDiscreteScheduler(shift=3.0)


# --- images ---------------------------------------------------------------------------------------------------------


def make_dit() -> Any:
    transformer = weights(
        diffusers.DiTTransformer2DModel, num_attention_heads=2, attention_head_dim=16, in_channels=4, out_channels=8,
        num_layers=2, sample_size=16, patch_size=2, num_embeds_ada_norm=1000,
    )  # fmt: skip
    vae = diffusers.AutoencoderKL(block_out_channels=(8,), norm_num_groups=2, layers_per_block=1)
    return diffusers.DiTPipeline(transformer, vae, DDIMScheduler(), id2label={i: f"class {i}" for i in range(10)})


def dit_arguments(pipe: Any, batch: int, size: int) -> dict[str, Any]:
    generators = [torch.Generator().manual_seed(seed) for seed in range(batch)]
    return {"class_labels": list(range(1, batch + 1)), "generator": generators, "guidance_scale": 4.0}


def make_pixart(sigma: bool = False, micro: bool = False) -> Any:
    """`micro`: the pipeline gives resolution and aspect ratio too, as it does where sample_size is 128."""
    heads = 3 if micro else 2  # a third of the width for each condition
    transformer = weights(
        diffusers.PixArtTransformer2DModel, num_attention_heads=heads, attention_head_dim=16, in_channels=4,
        out_channels=8, num_layers=2, cross_attention_dim=16 * heads, caption_channels=24,
        sample_size=128 if micro else 16, patch_size=2, use_additional_conditions=micro,
    )  # fmt: skip
    cls = diffusers.PixArtSigmaPipeline if sigma else diffusers.PixArtAlphaPipeline
    vae = diffusers.AutoencoderKL(block_out_channels=(8,), norm_num_groups=2, layers_per_block=1)
    return cls(
        tokenizer=None, text_encoder=None, vae=vae, transformer=transformer, scheduler=DPMSolverMultistepScheduler()
    )


def pixart_arguments(pipe: Any, batch: int, size: int) -> dict[str, Any]:
    mask = torch.ones(batch, 7, dtype=torch.long)
    mask[-1, 5:] = 0
    return {
        "prompt": None,
        "negative_prompt": None,
        "prompt_embeds": noise(batch, 7, 24, seed=1),
        "prompt_attention_mask": mask,
        "negative_prompt_embeds": torch.zeros(batch, 7, 24),
        "negative_prompt_attention_mask": torch.ones(batch, 7, dtype=torch.long),
        "latents": noise(batch, 4, size, size),
        "height": size,
        "width": size,
        "guidance_scale": 4.0,
        "use_resolution_binning": False,
    }


def make_flux() -> Any:
    transformer = weights(
        diffusers.FluxTransformer2DModel, num_attention_heads=2, attention_head_dim=16, in_channels=16, num_layers=1,
        num_single_layers=1, joint_attention_dim=24, pooled_projection_dim=24, axes_dims_rope=(4, 6, 6),
        guidance_embeds=True,
    )  # fmt: skip
    return diffusers.FluxPipeline(flow_euler(), None, None, None, None, None, transformer)


def flux_arguments(pipe: Any, batch: int, size: int) -> dict[str, Any]:
    pixels = size * pipe.vae_scale_factor
    return {
        "prompt_embeds": noise(batch, 5, 24, seed=1),
        "pooled_prompt_embeds": noise(batch, 24, seed=2),
        "latents": noise(batch, (size // 2) ** 2, 16),
        "height": pixels,
        "width": pixels,
    }


# --- videos ---------------------------------------------------------------------------------------------------------


def wan_transformer(in_channels: int = 4, **more: Any) -> Any:
    return weights(
        diffusers.WanTransformer3DModel, patch_size=(1, 2, 2), num_attention_heads=2, attention_head_dim=16,
        in_channels=in_channels, out_channels=4, text_dim=24, freq_dim=16, ffn_dim=64, num_layers=2,
        cross_attn_norm=True, rope_max_seq_len=32, **more,
    )  # fmt: skip


def make_wan(two: bool = False, expand: bool = False) -> Any:
    return diffusers.WanPipeline(
        tokenizer=None, text_encoder=None, vae=None,
        scheduler=UniPCMultistepScheduler(prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=3.0),
        transformer=wan_transformer(), transformer_2=wan_transformer() if two else None,
        boundary_ratio=0.9 if two else None, expand_timesteps=expand,
    )  # fmt: skip


def wan_arguments(pipe: Any, batch: int, size: int) -> dict[str, Any]:
    return {
        "prompt_embeds": noise(batch, 6, 24, seed=1),
        "negative_prompt_embeds": noise(batch, 6, 24, seed=2),
        "latents": noise(batch, 4, 3, size, size),
        "height": size * 8,
        "width": size * 8,
        "num_frames": 9,
        "guidance_scale": 3.0,
    }


def make_wan_image(image_dim: int | None = None, expand: bool = False) -> Any:
    """Image to video: with image embeddings (2.1), by latents alone (2.2), or by a timestep per token (TI2V-5B)."""
    vae = weights(
        diffusers.AutoencoderKLWan, base_dim=4, z_dim=4, dim_mult=[1, 1, 1, 1], num_res_blocks=1,
        latents_mean=[0.0] * 4, latents_std=[1.0] * 4,
    )  # fmt: skip
    encoder = processor = None
    if image_dim:
        config = CLIPVisionConfig(
            hidden_size=image_dim, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2, image_size=8,
            patch_size=4,
        )  # fmt: skip
        encoder = weights(CLIPVisionModel, config=config)
        processor = CLIPImageProcessor(size=8, crop_size=8)
    embeddings = {"image_dim": image_dim, "added_kv_proj_dim": 32} if image_dim else {}
    return diffusers.WanImageToVideoPipeline(
        tokenizer=None, text_encoder=None, vae=vae, image_encoder=encoder, image_processor=processor,
        scheduler=UniPCMultistepScheduler(prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=3.0),
        transformer=wan_transformer(4 if expand else 12, **embeddings), expand_timesteps=expand,
    )  # fmt: skip


def wan_image_arguments(pipe: Any, batch: int, size: int) -> dict[str, Any]:
    arguments = wan_arguments(pipe, batch, size)
    if pipe.image_encoder is not None:  # with image embeddings, diffusers counts on 512 text tokens
        arguments["prompt_embeds"] = noise(batch, 512, 24, seed=1)
        arguments["negative_prompt_embeds"] = noise(batch, 512, 24, seed=2)
    return {**arguments, "image": noise(1, 3, size * 8, size * 8, seed=3).sigmoid()}


def make_hunyuan(condition: str | None = None) -> Any:
    in_channels = 9 if condition == "latent_concat" else 4
    transformer = weights(
        diffusers.HunyuanVideoTransformer3DModel, in_channels=in_channels, out_channels=4, num_attention_heads=2,
        attention_head_dim=16, num_layers=1, num_single_layers=1, num_refiner_layers=1, patch_size=2, patch_size_t=1,
        guidance_embeds=condition is None, text_embed_dim=24, pooled_projection_dim=12, rope_axes_dim=(4, 6, 6),
        image_condition_type=condition,
    )  # fmt: skip
    if condition is None:
        return diffusers.HunyuanVideoPipeline(None, None, transformer, None, flow_euler(), None, None)
    vae = weights(
        diffusers.AutoencoderKLHunyuanVideo, latent_channels=4, block_out_channels=(4, 4, 4, 4), layers_per_block=1,
        norm_num_groups=2, mid_block_add_attention=False,
    )  # fmt: skip
    return diffusers.HunyuanVideoImageToVideoPipeline(None, None, transformer, vae, flow_euler(), None, None, None)


def hunyuan_arguments(pipe: Any, batch: int, size: int) -> dict[str, Any]:
    mask = torch.ones(batch, 6, dtype=torch.bool)
    mask[-1, 4:] = False
    return {
        "prompt_embeds": noise(batch, 6, 24, seed=1),
        "pooled_prompt_embeds": noise(batch, 12, seed=2),
        "prompt_attention_mask": mask,
        "latents": noise(batch, 4, 3, size, size),
        "height": size * 8,
        "width": size * 8,
        "num_frames": 9,
    }


def hunyuan_image_arguments(pipe: Any, batch: int, size: int) -> dict[str, Any]:
    image = noise(batch, 3, size * 8, size * 8, seed=3).sigmoid()
    return {**hunyuan_arguments(pipe, batch, size), "image": image}


def make_latte() -> Any:
    transformer = weights(
        diffusers.LatteTransformer3DModel, num_attention_heads=2, attention_head_dim=16, in_channels=4, out_channels=8,
        num_layers=2, cross_attention_dim=32, caption_channels=24, sample_size=16, patch_size=2, video_length=3,
        norm_type="ada_norm_single", norm_elementwise_affine=False, activation_fn="gelu-approximate",
        attention_bias=True,
    )  # fmt: skip
    vae = diffusers.AutoencoderKL(block_out_channels=(8,), norm_num_groups=2, layers_per_block=1)
    return diffusers.LattePipeline(None, None, vae, transformer, DDIMScheduler())


def latte_arguments(pipe: Any, batch: int, size: int) -> dict[str, Any]:
    return {
        "prompt": None,
        "negative_prompt": None,
        "prompt_embeds": noise(batch, 7, 24, seed=1),
        "negative_prompt_embeds": noise(batch, 7, 24, seed=2),
        "latents": noise(batch, 4, 3, size, size),
        "height": size,
        "width": size,
        "video_length": 3,
        "guidance_scale": 4.0,
    }


def make_mochi() -> Any:
    transformer = weights(
        diffusers.MochiTransformer3DModel, patch_size=2, num_attention_heads=2, attention_head_dim=16, num_layers=2,
        pooled_projection_dim=16, in_channels=4, text_embed_dim=24, time_embed_dim=4, max_sequence_length=7,
    )  # fmt: skip
    return diffusers.MochiPipeline(FlowMatchEulerDiscreteScheduler(invert_sigmas=True), None, None, None, transformer)


def mochi_arguments(pipe: Any, batch: int, size: int) -> dict[str, Any]:
    mask = torch.ones(batch, 7, dtype=torch.bool)
    mask[-1, 5:] = False
    return {
        "prompt_embeds": noise(batch, 7, 24, seed=1),
        "prompt_attention_mask": mask,
        "negative_prompt_embeds": noise(batch, 7, 24, seed=2),
        "negative_prompt_attention_mask": torch.ones(batch, 7, dtype=torch.bool),
        "latents": noise(batch, 4, 3, size, size),
        "height": size * 8,
        "width": size * 8,
        "num_frames": 13,
        "guidance_scale": 4.0,
    }


TINY = [
    Tiny("dit", "dit", make_dit, dit_arguments),
    Tiny("pixart_alpha", "pixart", make_pixart, pixart_arguments),
    Tiny("pixart_sigma", "pixart", lambda: make_pixart(sigma=True), pixart_arguments),
    Tiny("pixart_micro", "pixart", lambda: make_pixart(micro=True), pixart_arguments),
    Tiny("flux", "flux", make_flux, flux_arguments),
    Tiny("wan", "wan", make_wan, wan_arguments),
    Tiny("wan22_a14b", "wan", lambda: make_wan(two=True), wan_arguments),
    Tiny("wan22_ti2v", "wan", lambda: make_wan(expand=True), wan_arguments),
    Tiny("wan_i2v", "wan", lambda: make_wan_image(image_dim=20), wan_image_arguments),
    Tiny("wan22_i2v", "wan", make_wan_image, wan_image_arguments),
    Tiny("wan22_ti2v_image", "wan", lambda: make_wan_image(expand=True), wan_image_arguments),
    Tiny("hunyuan_video", "hunyuan_video", make_hunyuan, hunyuan_arguments),
    Tiny("hunyuan_i2v_replace", "hunyuan_video", lambda: make_hunyuan("token_replace"), hunyuan_image_arguments),
    Tiny("hunyuan_i2v_concat", "hunyuan_video", lambda: make_hunyuan("latent_concat"), hunyuan_image_arguments),
    Tiny("latte", "latte", make_latte, latte_arguments),
    Tiny("mochi", "mochi", make_mochi, mochi_arguments),
]
