"""HunyuanVideo from the Hub, 117 frames of 720p with radial attention (for a GPU of 80 GB).

python examples/hunyuan_video_from_hub.py
"""

import torch
from diffusers.utils import export_to_video

from fastdit import FastDiTPipeline

pipe = FastDiTPipeline.from_pretrained(
    "hunyuanvideo-community/HunyuanVideo",
    "radial-hunyuan-video",  # a published recipe; your own: [RadialAttention(decay=0.95, sink=False)]
    dtype=torch.bfloat16,
)
pipe.vae.enable_tiling()  # decoding 117 frames at once would take more memory than drawing them
pipe.enable_model_cpu_offload()

video = pipe(
    "a cat walks on the grass, realistic",
    height=720,
    width=1280,
    num_frames=117,
    num_inference_steps=50,
    generator=torch.Generator().manual_seed(0),
).frames[0]
export_to_video(video, "cat.mp4", fps=24)
print(pipe.report)
