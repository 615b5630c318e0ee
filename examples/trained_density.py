"""A trained method on the bundled model: DyDiT with the weights that ship with the package, and dense beside it.

python examples/trained_density.py
"""

import torch

from fastdit import DyDiT, FastDiTPipeline

pipe = FastDiTPipeline.from_pretrained("fastdit/emoji-image", [DyDiT(checkpoint="fastdit/emoji-image-dydit-70")])
image = pipe("a red apple", generator=torch.Generator().manual_seed(0)).images[0]
image.save("dydit.png")
print(pipe.report)  # heads, channels and tokens that were left out, and the MACs that this saved

pipe.set_methods([])  # the base model again, its own weights included
image = pipe("a red apple", generator=torch.Generator().manual_seed(0)).images[0]
image.save("base.png")
print(pipe.report)
