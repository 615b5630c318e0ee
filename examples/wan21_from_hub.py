"""Wan 2.1 14B from the Hub, 81 frames of 720p with radial attention (for a GPU of 80 GB; with less, see the comment).

python examples/wan21_from_hub.py
"""

import torch
from diffusers import UniPCMultistepScheduler
from diffusers.utils import export_to_video

from fastdit import FastDiTPipeline

pipe = FastDiTPipeline.from_pretrained(
    "Wan-AI/Wan2.1-T2V-14B-Diffusers",
    "radial-wan2.1-14b-720p",  # a published recipe; your own: [RadialAttention(decay=0.5)]
    dtype={"default": torch.bfloat16, "vae": torch.float32},  # the VAE loses detail in bf16
)
pipe.scheduler = UniPCMultistepScheduler.from_config(pipe.scheduler.config, flow_shift=5.0)  # 720p; 3.0 for 480p
pipe.to("cuda")  # or pipe.enable_model_cpu_offload(), which keeps only the part at work on the GPU

video = pipe(
    "a red fox trots through fresh snow at sunrise, its breath steaming, the camera beside it",
    negative_prompt="overexposed, static, blurred details, subtitles, worst quality, JPEG compression residue",
    height=720,
    width=1280,
    num_frames=81,
    num_inference_steps=50,
    guidance_scale=5.0,
    generator=torch.Generator().manual_seed(0),
).frames[0]
export_to_video(video, "fox.mp4", fps=16)
print(pipe.report)
