"""Wan 2.2 A14B from the Hub, 81 frames of 720p with radial attention in both transformers (for a GPU of 80 GB).

python examples/wan22_from_hub.py
"""

import torch
from diffusers.utils import export_to_video

from fastdit import FastDiTPipeline

pipe = FastDiTPipeline.from_pretrained(
    "Wan-AI/Wan2.2-T2V-A14B-Diffusers",
    "radial-wan2.2-a14b",  # a published recipe; your own: [RadialAttention(decay=0.5)]
    dtype={"default": torch.bfloat16, "vae": torch.float32},  # the VAE loses detail in bf16
)
pipe.enable_model_cpu_offload()  # the two transformers take turns on the GPU: 28 GB of weights each

video = pipe(
    "two cats in boxing gear fight on a spotlit stage, the crowd blurred behind the ropes",
    negative_prompt="overexposed, static, blurred details, subtitles, worst quality, JPEG compression residue",
    height=720,
    width=1280,
    num_frames=81,
    num_inference_steps=40,
    guidance_scale=4.0,
    guidance_scale_2=3.0,  # of the second transformer, which draws the details
    generator=torch.Generator().manual_seed(0),
).frames[0]
export_to_video(video, "cats.mp4", fps=16)
print(pipe.report)  # one row a transformer
