"""PixArt-Sigma from the Hub at 1024 px with merged tokens (downloads about 21 GB; a GPU with 24 GB is advised).

python examples/pixart_from_hub.py
"""

import torch

from fastdit import FastDiTPipeline, TokenMerging

pipe = FastDiTPipeline.from_pretrained(
    "PixArt-alpha/PixArt-Sigma-XL-2-1024-MS",
    methods=[TokenMerging(density="linear:0.5:0.75", layers=(0.1, 1.0))],
    dtype=torch.float16 if torch.cuda.is_available() else torch.float32,
)
pipe.to("cuda" if torch.cuda.is_available() else "cpu")
image = pipe("a red apple on a wooden table", generator=torch.Generator().manual_seed(0)).images[0]
image.save("apple.png")
print(pipe.report)
