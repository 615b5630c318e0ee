"""Accelerate a pipeline that you already have, look at what ran, and put everything back.

python examples/accelerate_existing.py
"""

import torch
from diffusers import DiffusionPipeline

from fastdit import TokenMerging, accelerate
from fastdit.zoo import folder_of

pipe = DiffusionPipeline.from_pretrained(folder_of("fastdit/emoji-image"), dtype=torch.float32)
call = {"prompt": "rainbow", "num_inference_steps": 20, "guidance_scale": 4.0}
call |= {"use_resolution_binning": False, "clean_caption": False}

before = pipe(**call, generator=torch.Generator().manual_seed(0), output_type="np").images
with accelerate(pipe, [TokenMerging(density="linear:0.5:0.75")]) as handle:
    image = pipe(**call, generator=torch.Generator().manual_seed(0)).images[0]
    image.save("rainbow.png")
    print(handle.report)

after = pipe(**call, generator=torch.Generator().manual_seed(0), output_type="np").images
print("bit-exact after restoring:", (before == after).all())
