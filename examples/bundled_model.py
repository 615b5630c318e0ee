"""The bundled model from Python: dense and accelerated pictures from the same noise.

python examples/bundled_model.py
"""

import torch

from fastdit import FastDiTPipeline
from fastdit.evaluation.fidelity import psnr

pipe = FastDiTPipeline.from_pretrained("fastdit/emoji-image")  # with the recipe that ships beside it


def draw(prompt: str):
    return pipe(prompt, generator=torch.Generator().manual_seed(0), output_type="np").images[0]


for prompt in ("red apple", "sunflower", "rocket"):
    fast, report = draw(prompt), pipe.report
    with pipe.dense():
        dense = draw(prompt)
    saved = report.macs_dense / report.macs_executed
    print(f"{prompt}: {report.seconds:.2f} s for {pipe.report.seconds:.2f} s dense, {saved:.2f}x fewer MACs, "
          f"PSNR {psnr(dense, fast):.1f} dB to the dense picture")  # fmt: skip
