"""BlockStreaming: peak memory at full size, and time against loading, computing and other disk offloads.

    python benchmarks/block_streaming.py full                       # Wan2.1-14B, 28 GB of random bf16 weights
    python benchmarks/block_streaming.py small --rounds 5           # 2 GB of fp32 weights, a quarter of it in memory
    python benchmarks/block_streaming.py small --rounds 5 --warm    # the files stay in the system's cache

`full` writes the weights to a scratch folder (the disk is checked first) and makes one forward in a fresh process,
whose peak resident memory (VmHWM) counts interpreter, libraries and activations too. `small` compares in one process,
in turns: `load` reads every streamed weight and computes nothing, `compute` has all weights in memory; diffusers' group
offloading works on a second copy that it writes, accelerate's disk offload on the files themselves. Cold: before each
forward the system is told to forget all files. Peak memory is that of a fresh process that loads the model and makes
two forwards.
"""

import argparse
import functools
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Callable
from pathlib import Path

os.environ["TQDM_DISABLE"] = "1"

import diffusers
import torch
from diffusers import UniPCMultistepScheduler, WanPipeline, WanTransformer3DModel
from safetensors.torch import save_file
from timing import in_turns, machine, ratio

from fastdit import BlockStreaming, FastDiTPipeline

WIDTH_14B = {"num_layers": 40}  # diffusers' default config is Wan2.1-14B
WIDTH_1B = {"num_attention_heads": 12, "ffn_dim": 8960}
OURS, GROUPS, ACCELERATE = "fastdit", "diffusers groups", "accelerate disk"


def write_model(folder: Path, dtype: torch.dtype, **config: int) -> int:
    """A WanPipeline of random weights without text encoder and VAE, one shard for every block; its bytes."""
    with torch.device("meta"):
        transformer = WanTransformer3DModel(**config)
    shapes = {name: parameter.shape for name, parameter in transformer.named_parameters()}
    size = sum(shape.numel() for shape in shapes.values()) * dtype.itemsize
    free = shutil.disk_usage(folder).free
    if free < size * 1.1 + 2**30:
        raise SystemExit(f"{size / 2**30:.0f} GiB of weights do not fit into {folder}: {free / 2**30:.0f} GiB are free")
    scheduler = UniPCMultistepScheduler(prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=3.0)
    WanPipeline(None, None, None, scheduler, None).save_pretrained(folder)
    index = folder / "model_index.json"
    part = folder / "transformer"
    part.mkdir()
    transformer.save_config(part)
    shards: dict[str, list[str]] = {}
    for name in shapes:
        shards.setdefault(".".join(name.split(".")[:2]) if name.startswith("blocks.") else "rest", []).append(name)
    weight_map = {}
    for number, names in enumerate(shards.values()):
        file = f"diffusion_pytorch_model-{number:05d}.safetensors"
        fp32 = transformer._keep_in_fp32_modules or []
        own = {name: torch.float32 if set(fp32) & set(name.split(".")) else dtype for name in names}
        save_file(
            {name: torch.empty(shapes[name], dtype=own[name]).normal_(0, 0.02) for name in names},
            part / file,
            {"format": "pt"},
        )
        weight_map |= dict.fromkeys(names, file)
        print(f"\r  wrote shard {number + 1} of {len(shards)}", end="", flush=True)
    print()
    (part / "diffusion_pytorch_model.safetensors.index.json").write_text(
        json.dumps({"metadata": {"total_size": size}, "weight_map": weight_map})
    )
    data = json.loads(index.read_text()) | {"transformer": ["diffusers", "WanTransformer3DModel"]}
    index.write_text(json.dumps(data))
    os.sync()
    return size


def inputs(tokens: int, dtype: torch.dtype) -> dict[str, torch.Tensor]:
    """One latent frame of so many tokens, with 512 text tokens."""
    side = 2 * round(tokens**0.5)
    generator = torch.Generator().manual_seed(0)
    return {
        "hidden_states": torch.randn(1, 16, 1, side, side, generator=generator).to(dtype),
        "timestep": torch.tensor([500.0]),
        "encoder_hidden_states": torch.randn(1, 512, 4096, generator=generator).to(dtype),
    }


@torch.no_grad()
def forward(transformer: torch.nn.Module, given: dict[str, torch.Tensor]) -> torch.Tensor:
    return transformer(**given, return_dict=False)[0]


def drop_files(folder: Path) -> None:
    """Have the system forget all files of a folder."""
    for file in folder.rglob("*"):
        if file.is_file():
            descriptor = os.open(file, os.O_RDONLY)
            os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
            os.close(descriptor)


def peak() -> float:
    """Peak resident GiB of this process (VmHWM; getrusage would start at the parent's)."""
    status = Path("/proc/self/status").read_text()
    return int(status.split("VmHWM:")[1].split()[0]) / 2**20


def streamed(folder: Path, budget: str, dtype: torch.dtype, drop_cache: bool = True) -> FastDiTPipeline:
    return FastDiTPipeline.from_pretrained(folder, [BlockStreaming(budget, drop_cache=drop_cache)], dtype=dtype)


def contender(name: str, folder: Path, budget: str, scratch: Path, drop_cache: bool) -> torch.nn.Module:
    """A transformer of the folder under one of the ways to keep it on disk."""
    if name == OURS:
        return streamed(folder, budget, torch.float32, drop_cache).transformer
    if name == ACCELERATE:
        from accelerate import init_empty_weights, load_checkpoint_and_dispatch

        with init_empty_weights():
            transformer = WanTransformer3DModel.from_config(WanTransformer3DModel.load_config(folder / "transformer"))
        blocks = {f"blocks.{i}": "disk" for i in range(len(transformer.blocks))}
        rest = {name: "cpu" for name, _ in transformer.named_children() if name != "blocks"} | {
            "scale_shift_table": "cpu"
        }
        index = folder / "transformer" / "diffusion_pytorch_model.safetensors.index.json"
        return load_checkpoint_and_dispatch(
            transformer, str(index), device_map=blocks | rest, offload_folder=str(scratch / "accelerate"),
            no_split_module_classes=["WanTransformerBlock"],
        ).eval()  # fmt: skip
    transformer = WanTransformer3DModel.from_pretrained(folder / "transformer", torch_dtype=torch.float32)
    if name == GROUPS:
        (scratch / "groups").mkdir(exist_ok=True)
        transformer.enable_group_offload(
            onload_device=torch.device("cpu"), offload_device=torch.device("cpu"), offload_type="block_level",
            num_blocks_per_group=1, offload_to_disk_path=str(scratch / "groups"),
        )  # fmt: skip
    return transformer


def load_only(transformer: torch.nn.Module) -> None:
    """Read all weights that one forward of a streamed transformer reads."""
    weights = transformer._fastdit_engine.weights
    for component in weights.components:
        weights.make_room(component) if component.residency is None else None
        for unit in component.units:
            if unit not in component.kept:
                component.loader.load(unit, component.slots[0], component.loader.files)


def full(args: argparse.Namespace) -> None:
    with tempfile.TemporaryDirectory(dir=args.scratch) as scratch:
        folder = Path(scratch)
        size = write_model(folder, torch.bfloat16, **WIDTH_14B)
        print(
            f"{machine()}\nWan2.1-14B transformer, {size / 1e9:.1f} GB bf16, budget {args.budget}, {args.tokens} tokens"
        )
        drop_files(folder)
        command = [
            sys.executable,
            __file__,
            "forward",
            str(folder),
            "--budget",
            args.budget,
            "--tokens",
            str(args.tokens),
        ]
        subprocess.run(command, check=True)


def one_forward(args: argparse.Namespace) -> None:
    """In a process of its own: load, one forward, and what it took."""
    dtype = torch.bfloat16
    began = time.perf_counter()
    pipe = streamed(Path(args.folder), args.budget, dtype)
    loaded, before = time.perf_counter(), peak()
    weights = pipe._fastdit.weights
    weights.start()
    out = forward(pipe.transformer, inputs(args.tokens, dtype))
    weights.stop()
    assert torch.isfinite(out).all()
    print(f"loaded in {loaded - began:.1f} s at a peak of {before:.2f} GiB")
    print(f"one forward in {time.perf_counter() - loaded:.1f} s, VmHWM {peak():.2f} GiB")
    print(weights.report.note)


def memory(args: argparse.Namespace) -> None:
    """In a process of its own: the peak of one contender."""
    transformer = contender(args.name, Path(args.folder), args.budget, Path(args.scratch), True)
    for _ in range(2):
        forward(transformer, inputs(args.tokens, torch.float32))
    print(f"{peak():.2f}")


def small(args: argparse.Namespace) -> None:
    with tempfile.TemporaryDirectory(dir=args.scratch) as scratch:
        folder = Path(scratch) / "model"
        folder.mkdir()
        size = write_model(folder, torch.float32, num_layers=args.blocks, **WIDTH_1B)
        budget = f"{size // 4}B"
        given = inputs(args.tokens, torch.float32)
        models = {n: contender(n, folder, budget, Path(scratch), not args.warm) for n in (OURS, GROUPS, ACCELERATE)}
        compute = WanTransformer3DModel.from_pretrained(folder / "transformer", torch_dtype=torch.float32)
        for parameter in compute.parameters():  # diffusers leaves them mapped, and mapped files never get cold
            parameter.data = parameter.data.clone()
        reference = forward(compute, given)
        for name, model in models.items():
            assert torch.equal(forward(model, given), reference), f"{name} is not bit-exact"

        def cold(work: Callable[[], object]) -> Callable[[], float]:
            def run() -> float:
                if not args.warm:
                    drop_files(Path(scratch))
                began = time.perf_counter()
                work()
                return time.perf_counter() - began

            return run

        works = {"compute": cold(functools.partial(forward, compute, given))}
        works |= {"load": cold(functools.partial(load_only, models[OURS]))}
        works |= {name: cold(functools.partial(forward, model, given)) for name, model in models.items()}
        print(f"{machine()}\n{size / 1e9:.2f} GB fp32, budget {size / 4e9:.2f} GB, {args.tokens} tokens, "
              f"{'warm' if args.warm else 'cold'} files")  # fmt: skip
        kept: dict[str, list[float]] = {name: [] for name in works}
        in_turns({name: (lambda name=name: kept[name].append(works[name]())) for name in works}, args.rounds)
        seconds = {name: values[1:] for name, values in kept.items()}  # without the warm-up
        medians = {name: statistics.median(values) for name, values in seconds.items()}
        bound = max(("load", "compute"), key=medians.__getitem__)
        print(f"\n| | seconds | / {bound} | peak GiB of a fresh process |\n|---|---|---|---|")
        for name, values in seconds.items():
            middle, low, high = ratio(values, seconds[bound])
            share = f"{middle:.2f} ({low:.2f} to {high:.2f})"
            top = _peak_of(name, folder, budget, scratch, args.tokens) if name != "load" else "-"
            print(
                f"| {name} | {medians[name]:.2f} ({min(values):.2f} to {max(values):.2f}) | {share} | {top} |",
                flush=True,
            )


def _peak_of(name: str, folder: Path, budget: str, scratch: str, tokens: int) -> str:
    command = [sys.executable, "-W", "ignore", __file__, "memory", str(folder), "--name", name, "--budget", budget]
    command += ["--tokens", str(tokens), "--scratch", scratch]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout.split()[-1]


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("what", choices=("full", "small", "forward", "memory"))
    parser.add_argument("folder", nargs="?")
    parser.add_argument("--budget", default="2.5GiB")
    parser.add_argument("--tokens", type=int, default=256)
    parser.add_argument("--blocks", type=int, default=11)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--warm", action="store_true")
    parser.add_argument("--name", default=OURS)
    parser.add_argument("--scratch", default=None, help="a folder on the disk to be measured")
    args = parser.parse_args()
    {"full": full, "small": small, "forward": one_forward, "memory": memory}[args.what](args)


if __name__ == "__main__":
    warnings.filterwarnings("ignore")
    diffusers.utils.logging.set_verbosity_error()
    diffusers.utils.logging.disable_progress_bar()
    main()
