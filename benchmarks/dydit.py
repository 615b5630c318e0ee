"""DyDiT on DiT-XL/2 geometry: measured speed-up of a forward against the one that MACs predict, and what routers cost.

    python benchmarks/dydit.py                     # 8 blocks, batch 8: three minutes on two cores
    python benchmarks/dydit.py --heads 0.5 --channels 0.5 --tokens 0.5
    python benchmarks/dydit.py --blocks 28 --batch 2 --rounds 4

Real config (width 1152, 16 heads, 256 tokens) with few of its 28 blocks and random weights: the bare transformer at one
timestep. Width routers keep the shares asked for, other parts in each block; token routers are random, their last bias
is set on data, block after block, so that the share asked for is let in, by other counts of each sample. All are
computed in every forward, as in use, where the gates of a timestep are kept until it changes; sliced weights are kept
too, save in the row that makes table and slices anew, as when every step has gates of its own. The authors' form is
held to what its gates would leave out. Dense and all variants share their weights and take turns in one process. MACs
are those of the tokens that were let in. `realised` = measured ratio / predicted ratio.
"""

import argparse
import copy
import functools
import statistics
import warnings

import torch
from diffusers import DiTTransformer2DModel
from timing import in_turns, machine, ratio
from torch import Tensor, nn

from fastdit import DyDiT, accelerate
from fastdit.core.macs import CountMacs
from fastdit.methods.dydit.plan import DyDiTPlan

TIMESTEP = 500
WHOLE, ANEW, MASKED = "heads, channels and tokens", "  table and slices made anew", "  the authors' form: masks"


def transformer(blocks: int, side: int) -> DiTTransformer2DModel:
    """DiT-XL/2 for latents of this side, with random weights."""
    torch.manual_seed(0)
    return DiTTransformer2DModel(sample_size=side, out_channels=8, num_layers=blocks).eval()


def sharing(model: nn.Module) -> nn.Module:
    """A copy of a model that is not accelerated, with the same tensors."""
    return copy.deepcopy(model, {id(tensor): tensor for tensor in [*model.parameters(), *model.buffers()]})


def inputs(batch: int, side: int, timestep: int = TIMESTEP) -> dict[str, Tensor]:
    latents = torch.randn(batch, 4, side, side, generator=torch.Generator().manual_seed(1))
    return {
        "hidden_states": latents,
        "timestep": torch.full((batch,), timestep),
        "class_labels": torch.arange(batch) * 97 % 1000,
    }


@torch.no_grad()
def run(model: nn.Module, arguments: dict[str, Tensor]) -> Tensor:
    return model(**arguments, return_dict=False)[0]


def runtime_of(handle):
    """The method at work on the one transformer of a handle."""
    return handle._engine.attached[0].runtimes[0]


def calibrate(runtime, model: nn.Module, arguments: dict[str, Tensor], share: float) -> list[Tensor]:
    """Set the bias of each token router so that a share of the batch's tokens is let in; returns their streams."""
    streams = []

    def hook(router: nn.Module, args: tuple, logits: Tensor) -> Tensor:
        streams.append(args[0])
        shift = logits.quantile(1 - share)
        router.out.bias -= shift
        return logits - shift

    hooks = [block.tokens.register_forward_hook(hook) for block in runtime.module.blocks]
    run(model, arguments)
    for handle in hooks:
        handle.remove()
    return streams


def counts(runtime, batch: int) -> Tensor:
    """Tokens of each sample that were let in, in each block of the last forward: (blocks, batch)."""
    routings = [block.routing for block in runtime.blocks]
    return torch.stack([torch.bincount(r.rows // r.length, minlength=batch) for r in routings])


@torch.no_grad()
def route(runtime, streams: list[Tensor]) -> None:
    """What the routers do in a forward: the gates of its timestep, and the rows of each block."""
    runtime.tables.known.clear()
    runtime.tables.at(float(TIMESTEP))
    for block, stream in zip(runtime.blocks, streams, strict=True):
        block.routing.decide(stream)


def anew(runtime, model: nn.Module, arguments: dict[str, Tensor]) -> None:
    runtime.start()
    run(model, arguments)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--heads", type=float, default=0.75)
    parser.add_argument("--channels", type=float, default=0.75)
    parser.add_argument("--tokens", type=float, default=0.6)
    parser.add_argument("--blocks", type=int, default=8)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--rounds", type=int, default=6)
    args = parser.parse_args()
    width, arguments = {"heads": args.heads, "channels": args.channels}, inputs(args.batch, 32)
    dense = transformer(args.blocks, 32)
    variants = {
        WHOLE: DyDiT(**width),
        "heads and channels": DyDiT(route="width", **width),
        "tokens": DyDiT(route="tokens"),
        "capacity: equal counts": DyDiT(capacity=args.tokens, **width),
        MASKED: DyDiT(**width),
    }
    models = {name: sharing(dense) for name in variants}
    handles = {name: accelerate(models[name], [method]) for name, method in variants.items()}
    functions = {"dense": functools.partial(run, dense, arguments)}
    functions |= {name: functools.partial(run, model, arguments) for name, model in models.items()}

    whole, masked = runtime_of(handles[WHOLE]), runtime_of(handles[MASKED])
    streams = calibrate(whole, models[WHOLE], arguments, args.tokens)
    calibrate(runtime_of(handles["tokens"]), models["tokens"], arguments, args.tokens)
    masked.module.load_state_dict(whole.module.state_dict())
    masked.plan = lambda forward: DyDiTPlan("mask")
    for handle in handles.values():
        handle._engine.renew_report()
    sliced, kept = functions[WHOLE](), counts(whole, args.batch)
    difference = (functions[MASKED]() - sliced).abs().max() / sliced.abs().max()
    with CountMacs() as counter:
        route(whole, streams)
    functions |= {ANEW: functools.partial(anew, whole, models[WHOLE], arguments)}
    functions |= {"routers": functools.partial(route, whole, streams)}

    seconds = in_turns(functions, args.rounds)
    print(f"DiT-XL/2, {args.blocks} of 28 blocks, 256 tokens, batch {args.batch}, one forward; {machine()}")
    print(f"heads {args.heads:g}, channels {args.channels:g}, tokens {args.tokens:g}; {args.rounds} rounds")
    print(
        f"tokens of a sample that a block lets in: {kept.min()} to {kept.max()}, on average {kept.float().mean():.1f}; "
        f"sliced and masked form differ by {difference:.0e} of the largest value"
    )
    report = handles[WHOLE].report
    macs = report.macs_dense / report.evaluations
    print(f"dense: {statistics.median(seconds['dense']):.2f} s, {macs / 1e9:.0f} GMACs")
    print("| DyDiT | predicted | measured (95 %) | realised |\n|---|---|---|---|")
    for name in (WHOLE, ANEW, MASKED, *(name for name in variants if name not in (WHOLE, MASKED))):
        report = handles[WHOLE if name in (ANEW, MASKED) else name].report
        predicted = report.macs_dense / report.macs_executed
        middle, low, high = ratio(seconds["dense"], seconds[name])
        print(f"| {name} | {predicted:.2f}x | {middle:.2f}x ({low:.2f} to {high:.2f}) | {middle / predicted:.2f} |")
    middle, low, high = (100 * share for share in ratio(seconds["routers"], seconds["dense"]))
    print(
        f"routers: {1000 * statistics.median(seconds['routers']):.1f} ms a forward = {middle:.2f} % "
        f"({low:.2f} to {high:.2f}) of a dense one, {100 * counter.total / macs:.2f} % of its MACs"
    )


if __name__ == "__main__":
    warnings.simplefilter("ignore")
    main()
