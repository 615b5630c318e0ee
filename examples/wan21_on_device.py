"""Wan 2.1 (1.3B) from the Hub on a small device: weights streamed from disk, frames merged in pairs, a leap to the end.

    python examples/wan21_on_device.py

The recipe `on-device` keeps a quarter of the weights in memory: 3.7 of 14.7 GB, most of them the text encoder's. What
memory and time this machine will need, `fastdit profile --model Wan-AI/Wan2.1-T2V-1.3B-Diffusers --recipe on-device
--dtype bfloat16` tells beforehand.
"""

import torch
from diffusers.utils import export_to_video

from fastdit import FastDiTPipeline

pipe = FastDiTPipeline.from_pretrained(
    "Wan-AI/Wan2.1-T2V-1.3B-Diffusers",
    "on-device",
    dtype={"default": torch.bfloat16, "vae": torch.float32},  # the VAE loses detail in bf16
)
pipe.to("cuda" if torch.cuda.is_available() else "cpu")
video = pipe(
    "A cat walks on the grass, realistic", height=480, width=832, num_frames=33, guidance_scale=5.0,
    generator=torch.Generator().manual_seed(0),
).frames[0]  # fmt: skip
print(pipe.report)
export_to_video(video, "cat.mp4", fps=16)
