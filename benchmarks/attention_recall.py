"""Which share of the true attention the raster and the tile mask keep, with as many block pairs each.

    python benchmarks/attention_recall.py                                        # 21 frames of 30 x 52, blocks of 128
    python benchmarks/attention_recall.py --frames 16 --height 8 --width 8 --block 16 --channels 32
    python benchmarks/attention_recall.py --heads 1 --time 5                     # and the time of both, in turns

q and k are made up and turned by diffusers' own rotary table of Wan; noise of deviation 0.5 is added to each.

    mean a        q and k share one random vector, a times of RMS 1: attention decays by the rotation alone
    own frame     as mean 0.9, on the channels of time only: a head that looks at the frames nearby, everywhere in them
    own place     as mean 0.9, on the channels of space only: a head that looks at one place in all frames
    frame, place; place, frame   own frame or own place with 0.3 of the other channels
    still, slow, fast   q and k share a smooth random picture that moves by 0, (0.3, 0.6), (0.8, 2) rows and columns
                  a frame; it is blurred by 2 tokens
    wide, large   the same, slow, blurred by 1.5 rows and 6 columns, and by 5 tokens

`random` keeps as many blocks at random and the diagonal: the floor. The ceilings take for every query block the key
blocks with the most attention, in raster or in tile order. All but the ceilings are means over the same evenly
spaced queries, the ceilings over random query blocks.
"""

import argparse
import functools
import math
from collections.abc import Callable

import torch
from diffusers.models.transformers.transformer_wan import WanRotaryPosEmbed
from timing import in_turns, machine, ratio
from torch import Tensor

from fastdit.attention.sparse import sparse_attention
from fastdit.ops.radial_mask import density, radial_block_mask
from fastdit.ops.recall import attention_recall, block_mass
from fastdit.ops.tile_order import tile_block_mask, tile_order

Grid = tuple[int, int, int]
Content = Callable[[Grid, int, torch.Generator], Tensor]  # what q and k share: (N, D)
DECAYS = (1.0, 0.5, 0.2)
NOISE = 0.5


def mean(grid: Grid, channels: int, random: torch.Generator, scale: float, time: float = 1, space: float = 1) -> Tensor:
    """One vector of RMS `scale` for all tokens, with weights for the channels that turn with time and with space."""
    vector = torch.randn(channels, generator=random)
    split = channels - 4 * (channels // 6)  # as WanRotaryPosEmbed divides them
    vector[:split] *= time
    vector[split:] *= space
    return (scale * vector / vector.square().mean().sqrt()).expand(math.prod(grid), -1)


def picture(
    grid: Grid, channels: int, random: torch.Generator, blur: tuple[float, float], speed: tuple[float, float]
) -> Tensor:
    """Noise with a Gaussian blur (rows, columns) that moves by `speed` a frame, of RMS 0.8 at each token."""
    frames, height, width = grid
    size = 2 * height, 2 * width  # of the torus on which it moves
    y, x = torch.fft.fftfreq(size[0]).unsqueeze(1), torch.fft.rfftfreq(size[1])
    low_pass = torch.exp(-2 * math.pi**2 * ((blur[0] * y) ** 2 + (blur[1] * x) ** 2))
    spectrum = torch.fft.rfft2(torch.randn(channels, *size, generator=random)) * low_pass
    moved = []
    for frame in range(frames):
        shift = torch.exp(-2j * math.pi * frame * (speed[0] * y + speed[1] * x))
        moved.append(torch.fft.irfft2(spectrum * shift, s=size)[:, :height, :width])  # (D, H, W)
    tokens = torch.stack(moved).permute(0, 2, 3, 1).flatten(0, 2)  # (N, D)
    return 0.8 * tokens / tokens.square().mean(-1, keepdim=True).sqrt()


CONTENTS: dict[str, Content] = {
    "mean 0.5": functools.partial(mean, scale=0.5),
    "mean 0.8": functools.partial(mean, scale=0.8),
    "mean 1.1": functools.partial(mean, scale=1.1),
    "own frame": functools.partial(mean, scale=0.9, space=0),
    "own place": functools.partial(mean, scale=0.9, time=0),
    "frame, place": functools.partial(mean, scale=0.9, space=0.3),
    "place, frame": functools.partial(mean, scale=0.9, time=0.3),
    "still": functools.partial(picture, blur=(2, 2), speed=(0, 0)),
    "slow": functools.partial(picture, blur=(2, 2), speed=(0.3, 0.6)),
    "fast": functools.partial(picture, blur=(2, 2), speed=(0.8, 2)),
    "wide": functools.partial(picture, blur=(1.5, 6), speed=(0.2, 0.5)),
    "large": functools.partial(picture, blur=(5, 5), speed=(0.3, 0.6)),
}


def rotated(x: Tensor, table: tuple[Tensor, Tensor]) -> Tensor:
    """x (N, D) turned as WanAttnProcessor turns it: (N, D)."""
    cos, sin = (part[0, :, 0, ::2] for part in table)  # (N, D / 2)
    a, b = x[:, 0::2], x[:, 1::2]
    return torch.stack([a * cos - b * sin, a * sin + b * cos], -1).flatten(1)


def queries_and_keys(content: Content, grid: Grid, channels: int, seed: int) -> tuple[Tensor, Tensor]:
    """q, k (1, N, 1, D) of one head."""
    random = torch.Generator().manual_seed(seed)
    frames, height, width = grid
    table = WanRotaryPosEmbed(channels, (1, 2, 2), 1024)(torch.empty(1, 1, frames, 2 * height, 2 * width))
    shared = content(grid, channels, random)
    q, k = (shared + NOISE * torch.randn(shared.shape, generator=random) for _ in range(2))
    return rotated(q, table)[None, :, None], rotated(k, table)[None, :, None]


def random_mask(like: Tensor) -> Tensor:
    """As many blocks at random as `like` keeps, the diagonal among them."""
    order = torch.rand(like.shape, generator=torch.Generator().manual_seed(0)).fill_diagonal_(-1).flatten().argsort()
    return torch.zeros(like.numel(), dtype=torch.bool).index_fill_(0, order[: int(like.sum())], True).view_as(like)


def ceilings(q: Tensor, k: Tensor, order: Tensor | None, block: int, kept: list[float], sample: int) -> list[float]:
    """The recall if each query block takes the best key blocks, for each share of them to keep."""
    tokens = q.shape[1]
    whole = tokens // block
    chosen = torch.randperm(whole, generator=torch.Generator().manual_seed(0))[:sample]
    place = (chosen[:, None] * block + torch.arange(block)).flatten()
    rows = place if order is None else order[place]
    mass = block_mass(q, k, block_size=block, order=order, rows=rows)[0, 0]  # (rows, nb)
    best = mass.view(len(chosen), block, -1).mean(1).sort(descending=True).values.cumsum(-1)  # (sample, nb)
    return [float(best[:, round(share * best.shape[1]) - 1].mean()) for share in kept]


def compare_times(grid: Grid, channels: int, block: int, masks: dict[str, Tensor], rounds: int) -> None:
    """Seconds of one head by the portable backend; rough on a busy machine."""
    torch.manual_seed(0)
    q, k, v = (torch.randn(1, math.prod(grid), 1, channels) for _ in range(3))
    seconds = in_turns(
        {
            name: functools.partial(sparse_attention, q, k, v, mask, block_size=block, backend="sdpa")
            for name, mask in masks.items()
        },
        rounds,
    )
    print(f"Time of the tile mask over that of the raster mask, one head of {channels}, {rounds} rounds; {machine()}")
    for decay in DECAYS:
        middle, low, high = ratio(seconds[f"tile {decay}"], seconds[f"raster {decay}"])
        print(f"- decay {decay:g}: {middle:.2f} ({low:.2f} to {high:.2f})")


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--frames", type=int, default=21)
    parser.add_argument("--height", type=int, default=30)
    parser.add_argument("--width", type=int, default=52)
    parser.add_argument("--block", type=int, default=128)
    parser.add_argument("--channels", type=int, default=128)
    parser.add_argument("--patch-frames", type=float, default=1.0)
    parser.add_argument("--heads", type=int, default=2, help="random heads of each kind")
    parser.add_argument("--rows", type=int, default=1000, help="query tokens, evenly spaced")
    parser.add_argument("--sample", type=int, default=12, help="query blocks for the ceilings")
    parser.add_argument("--time", type=int, default=0, metavar="ROUNDS", help="time both masks as well")
    args = parser.parse_args()
    grid, block = (args.frames, args.height, args.width), args.block
    tokens = math.prod(grid)

    order = tile_order(*grid, block, args.patch_frames)
    names, masks, shares = [], [], []
    for decay in DECAYS:
        raster = radial_block_mask(args.frames, args.height * args.width, block_size=block, unit=block, decay=decay)
        shares.append(density(raster))
        tile = tile_block_mask(*grid, kept=int(raster.sum()), block_size=block, patch_frames=args.patch_frames)
        names += [f"raster {decay}", f"tile {decay}", f"random {decay}"]
        masks += [raster, tile, random_mask(raster)]
    orders = [order if name.startswith("tile") else None for name in names]

    rows: dict[str, Tensor] = {}
    for kind, content in CONTENTS.items():
        own = []
        for seed in range(args.heads):
            q, k = queries_and_keys(content, grid, args.channels, seed)
            recall = attention_recall(q, k, masks, orders, block_size=block, rows=min(args.rows, tokens))
            best = [ceilings(q, k, which, block, shares, args.sample) for which in (None, order)]
            own.append(torch.cat([recall[:, 0, 0].view(len(DECAYS), 3), torch.tensor(best).T], 1))
        rows[kind] = torch.stack(own)  # (heads, decays, 5)

    every = torch.stack(list(rows.values()))  # (kinds, heads, decays, 5)
    print(f"{args.frames} frames of {args.height} x {args.width}, blocks of {block}, heads of {args.channels} channels")
    for i, decay in enumerate(DECAYS):
        won = int((every[:, :, i, 1] > every[:, :, i, 0]).sum())
        heads = every[:, :, i, 0].numel()
        print(f"\nDecay {decay:g}, density {shares[i]:.3f}; tile keeps more in {won} of {heads} heads\n")
        print("| | raster | tile | tile - raster | random | best raster blocks | best tile blocks |")
        print("|---|---|---|---|---|---|---|")
        for kind, of_kind in [*rows.items(), ("mean of all", every.flatten(0, 1))]:
            raster, tile, *rest = of_kind[:, i].mean(0).tolist()
            cells = [f"{raster:.3f}", f"{tile:.3f}", f"{tile - raster:+.3f}", *(f"{x:.3f}" for x in rest)]
            print(f"| {kind} | " + " | ".join(cells) + " |")
    if args.time:
        chosen = {name: mask for name, mask in zip(names, masks) if not name.startswith("random")}
        compare_times(grid, args.channels, block, chosen, args.time)


if __name__ == "__main__":
    main()
