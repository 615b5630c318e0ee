"""What the tests of DyDiT share: routers with random decisions, and the runtime behind a handle."""

import copy
from contextlib import contextmanager

import torch

from fastdit import DyDiT, accelerate
from fastdit.methods.dydit.plan import DyDiTPlan

ROUTED = ("dit", "pixart_alpha", "wan", "wan22_ti2v_image", "hunyuan_video", "hunyuan_i2v_replace", "flux")


def runtime_of(handle, index=0):
    """The method at work on a transformer."""
    return handle._engine.attached[index].runtimes[0]


def shuffle(runtime, seed=0, tokens=0.0):
    """Random routers, which differ between blocks, timesteps and tokens; `tokens` is the bias of the token routers."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in runtime.module.parameters():
            parameter.normal_(generator=generator)
        for block in runtime.module.blocks:
            if block.tokens is not None:
                block.tokens.out.bias.fill_(tokens)
    runtime.start()


@contextmanager
def routed(target, seed=0, tokens=0.0, **options):
    """A pipeline or transformer under DyDiT with random routers."""
    with accelerate(target, [DyDiT(**options)]) as handle:
        for item in handle._engine.attached:
            shuffle(item.runtimes[0], seed, tokens)
        yield handle


def masking(runtime):
    """Have a runtime multiply by hard gates, as the authors' code does, instead of leaving work out."""
    runtime.plan = lambda forward: DyDiTPlan("mask")


@contextmanager
def watched(handle):
    """A list that grows by what each block has decided, after every forward."""
    seen, runtime = [], runtime_of(handle)
    settle = runtime.settle

    def look():
        seen.extend(copy.copy(block.routing) for block in runtime.blocks)
        return settle()

    runtime.settle = look
    try:
        yield seen
    finally:
        del runtime.settle
