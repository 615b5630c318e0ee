"""Under Ulysses two processes give what one gives, through the wrapper; ring attention is refused with the reason."""

import os
from dataclasses import replace

import pytest
import torch
from helpers import BY_NAME, assert_close
from torch import distributed, multiprocessing

from fastdit import RadialAttention, accelerate

METHOD = RadialAttention(decay=0.2, dense_share=0.4, dense_layers=0)
FRAMES = 4  # x 64 tokens


def tiny_wan():
    tiny = BY_NAME["wan"]
    latents = torch.randn(1, 4, FRAMES, 16, 16, generator=torch.Generator().manual_seed(5))
    return replace(tiny, arguments=lambda *a: {**tiny.arguments(*a), "latents": latents})


def parallelise(transformer, rank, **degrees):
    """`enable_parallelism` on the CPU: diffusers' own resolver asks for an accelerator, so the mesh is made here."""
    from diffusers.models._modeling_parallel import ContextParallelConfig, ParallelConfig

    config = ParallelConfig(context_parallel_config=ContextParallelConfig(**degrees))
    context = config.context_parallel_config
    mesh = distributed.device_mesh.init_device_mesh("cpu", context.mesh_shape, mesh_dim_names=context.mesh_dim_names)
    config.setup(rank, 2, torch.device("cpu"), mesh=mesh)
    transformer._resolve_parallel_config = lambda _: config
    transformer.enable_parallelism(config=config)


def work(rank: int, port: int, folder: str) -> None:
    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port), RANK=str(rank), WORLD_SIZE="2")
    torch.set_num_threads(1)
    distributed.init_process_group("gloo", rank=rank, world_size=2)
    tiny, found = tiny_wan(), {}
    pipe = tiny.make()
    if rank:  # in either order
        parallelise(pipe.transformer, rank, ulysses_degree=2)
    handle = accelerate(pipe, [METHOD])
    if not rank:
        parallelise(pipe.transformer, rank, ulysses_degree=2)
    found["sparse"] = tiny.call(pipe, steps=3)
    found["density"] = handle.report.methods["radial_attention"].density
    handle.restore()
    found["dense"] = tiny.call(pipe, steps=3)
    pipe = tiny.make()
    parallelise(pipe.transformer, rank, ring_degree=2)
    with accelerate(pipe, [METHOD]):
        try:
            tiny.call(pipe, steps=3)
        except RuntimeError as error:
            found["ring"] = str(error)
    torch.save(found, f"{folder}/{rank}.pt")
    distributed.destroy_process_group()


@pytest.mark.skipif(not distributed.is_available(), reason="this torch is built without torch.distributed")
def test_two_processes_are_one(tmp_path):
    tiny = tiny_wan()
    pipe = tiny.make()
    dense = tiny.call(pipe, steps=3)
    with accelerate(pipe, [METHOD]) as handle:
        expected = tiny.call(pipe, steps=3)
    multiprocessing.spawn(work, args=(free_port(), str(tmp_path)), nprocs=2)
    for rank in range(2):
        found = torch.load(tmp_path / f"{rank}.pt", weights_only=True)
        assert_close(found["sparse"], expected)
        assert_close(found["dense"], dense)
        assert found["density"] == handle.report.methods["radial_attention"].density < 1
        assert "radial_attention cannot run under ring attention: keys pass by in parts" in found["ring"]
    assert (expected - dense).abs().max() > 1e-4


def free_port() -> int:
    import socket

    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]
