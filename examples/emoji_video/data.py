"""Moving emoji clips: one object in one of 8 directions, some that grow, shrink or spin, some with two objects.

    python data.py --data emoji64.npz --vae emoji_video_vae --clips emoji_clips --parts 4    # latents for train.py
    python data.py --data emoji64.npz --long clips63.npz --frames 63 --count 240    # longer clips for `fastdit train`

Each clip has `FRAMES` frames of 64x64 on white and a caption such as "a red apple moving up left"; longer clips go the
same ways, slower. `HELD_OUT` names the 50 (object, direction) pairs that no clip of any kind shows. The pictures are
those of examples/emoji_image/data.py.
"""

import argparse
import math
import os
import random
import sys
import time
from pathlib import Path

import numpy as np
import torch
from torch.nn import functional as F

sys.path.append(str(Path(__file__).resolve().parents[1]))
from emoji_image.data import load

SIZE = 64
FRAMES = 31  # 16 latent frames: the first frame alone, then two frames each
DIRECTIONS = {
    "left": (-1, 0), "right": (1, 0), "up": (0, -1), "down": (0, 1),
    "up left": (-1, -1), "up right": (1, -1), "down left": (-1, 1), "down right": (1, 1),
}  # fmt: skip
# fmt: off
OBJECTS = (
    "red apple", "pear", "strawberry", "banana", "pineapple", "lemon", "watermelon", "tomato", "aubergine", "avocado",
    "cucumber", "carrot", "potato", "broccoli", "mushroom", "bell pepper", "coconut", "mango", "hamburger", "hot dog",
    "taco", "slice of pizza", "doughnut", "cookie", "chocolate bar", "lollipop", "honey pot", "birthday cake",
    "cupcake", "ice cream", "croissant", "pretzel", "waffle", "rice ball", "poultry leg", "beer mug", "cocktail glass",
    "teapot", "cactus", "palm tree", "deciduous tree", "christmas tree", "tulip", "rose", "sunflower", "cherry blossom",
    "four leaf clover", "maple leaf", "cat face", "dog face", "mouse face", "cow face", "tiger face", "rabbit face",
    "dragon face", "monkey face", "pig face", "frog face", "bear face", "panda face", "fox face", "lion face",
    "unicorn face", "koala", "penguin", "baby chick", "owl", "eagle", "duck", "flamingo", "peacock", "parrot", "bat",
    "snail", "butterfly", "honeybee", "lady beetle", "spider", "turtle", "octopus", "crab", "lobster", "tropical fish",
    "blowfish", "dolphin", "whale", "elephant", "hedgehog", "sheep", "rocket", "helicopter", "sailboat", "bus", "taxi",
    "police car", "fire engine", "tractor", "flying saucer", "volcano", "snowman", "earth globe americas",
    "ringed planet", "umbrella", "balloon", "wrapped present", "jack-o-lantern", "trophy", "soccer ball", "teddy bear",
    "guitar", "camera", "alarm clock", "bell", "crown", "top hat", "gem stone", "green heart", "skull", "robot face",
    "alien monster",
)
# fmt: on


def held_out() -> list[tuple[str, str]]:
    """50 (object, direction) pairs: 50 objects, each without one direction, every direction 6 or 7 times."""
    return [(name, list(DIRECTIONS)[i % 8]) for i, name in enumerate(random.Random(0).sample(OBJECTS, 50))]


HELD_OUT = frozenset(held_out())


def a(name: str) -> str:
    return f"{'an' if name[0] in 'aeiou' else 'a'} {name}"


def captions() -> list[str]:
    """Every trained caption of one object."""
    moving = [f"{a(o)} moving {d}" for o in OBJECTS for d in DIRECTIONS if (o, d) not in HELD_OUT]
    return moving + [f"{a(o)} {verb}" for o in OBJECTS for verb in ("growing", "shrinking", "spinning")]


def load_pictures(path: Path) -> tuple[torch.Tensor, list[str]]:
    """All pictures (N, 3, 64, 64) in [0, 1] and their captions, by the image example's loader."""
    pictures, names = load(path)
    return torch.from_numpy(pictures).permute(0, 3, 1, 2).float() / 255, names


def objects(path: Path) -> torch.Tensor:
    """The pictures (120, 3, 64, 64) of `OBJECTS`, in their order."""
    pictures, names = load_pictures(path)
    return pictures[[names.index(name) for name in OBJECTS]]


def ink(picture: torch.Tensor, track: torch.Tensor) -> torch.Tensor:
    """One picture (3, 64, 64) along a track (T, 4) of centre x, y and width in pixels and angle: (T, 3, 64, 64).

    Ink is 1 - colour, so paper is 0 and a second object is laid over by a maximum. Drawn at twice the size and
    averaged, so that edges move smoothly by parts of a pixel.
    """
    x, y, width, angle = track.unbind(1)
    cos, sin, zoom = angle.cos(), angle.sin(), SIZE / width
    x, y = (2 * x / SIZE - 1), (2 * y / SIZE - 1)
    rows = [cos * zoom, sin * zoom, -(cos * x + sin * y) * zoom, -sin * zoom, cos * zoom, (sin * x - cos * y) * zoom]
    theta = torch.stack(rows, 1).view(-1, 2, 3)  # from places of the frame to places of the picture
    grid = F.affine_grid(theta, [len(track), 3, 2 * SIZE, 2 * SIZE], align_corners=False)
    drawn = F.grid_sample((1 - picture).expand(len(track), -1, -1, -1), grid, align_corners=False)
    return F.avg_pool2d(drawn, 2)


def straight(
    rng: random.Random, direction: str, width: float, low: float, high: float, box=(0, 0, SIZE, SIZE), frames=FRAMES
) -> torch.Tensor:
    """A track (frames, 4) inside `box`: `low` to `high` pixels of way in a direction, from anywhere that allows it."""
    dx, dy = DIRECTIONS[direction]
    way = rng.uniform(low, high) / math.hypot(dx, dy)
    along = torch.linspace(-0.5, 0.5, frames)
    places = []
    for step, start, end in ((dx, box[0], box[2]), (dy, box[1], box[3])):
        room = max(0.0, (end - start - width - way * abs(step)) / 2)
        places.append((start + end) / 2 + rng.uniform(-room, room) + way * step * along)
    return torch.stack([*places, torch.full((frames,), width), torch.zeros(frames)], 1)


def clip(
    rng: random.Random, pictures: torch.Tensor, kind: str | None = None, cut: slice = slice(None), frames: int = FRAMES
) -> tuple[torch.Tensor, str]:
    """A random trained clip (frames, 3, 64, 64) in [-1, 1], or a cut of it, and its caption."""
    kind = kind or rng.choices(["moving", "growing", "shrinking", "spinning", "two"], [80, 5, 5, 5, 5])[0]
    i, direction = trained_pair(rng)
    if kind == "two":  # side by side or one above the other, so that they seldom meet
        j, other = trained_pair(rng)
        near, far = rng.choice([((0, 0, 34, SIZE), (30, 0, SIZE, SIZE)), ((0, 0, SIZE, 34), (0, 30, SIZE, SIZE))])
        first = straight(rng, direction, rng.uniform(22, 26), 8, 14, near, frames)
        second = straight(rng, other, rng.uniform(22, 26), 8, 14, far, frames)
        drawn = torch.maximum(ink(pictures[i], first[cut]), ink(pictures[j], second[cut]))
        text = f"{a(OBJECTS[i])} moving {direction} and {a(OBJECTS[j])} moving {other}"
    else:
        track = straight(rng, direction, rng.uniform(34, 44), 16, 26, frames=frames)
        if kind != "moving":
            track = still(rng, kind, frames)
        drawn = ink(pictures[i], track[cut])
        text = f"{a(OBJECTS[i])} " + (f"moving {direction}" if kind == "moving" else kind)
    return 1 - 2 * drawn, text


def still(rng: random.Random, kind: str, frames: int = FRAMES) -> torch.Tensor:
    """A track (frames, 4) that stays in place and grows, shrinks or spins by a half to a whole turn."""
    small, large, turn = rng.uniform(16, 24), rng.uniform(40, 48), rng.uniform(math.pi, 2 * math.pi)
    width = {"growing": (small, large), "shrinking": (large, small), "spinning": (large - 8, large - 8)}[kind]
    room = (SIZE - large) / 2
    x, y = (SIZE / 2 + rng.uniform(-room, room) for _ in range(2))
    angle = torch.linspace(0, turn if kind == "spinning" else 0, frames)
    return torch.stack([torch.full((frames,), x), torch.full((frames,), y), torch.linspace(*width, frames), angle], 1)


def trained_pair(rng: random.Random) -> tuple[int, str]:
    while True:
        i, direction = rng.randrange(len(OBJECTS)), rng.choice(list(DIRECTIONS))
        if (OBJECTS[i], direction) not in HELD_OUT:
            return i, direction


def write_long(file: Path, pictures: torch.Tensor, count: int, frames: int, seed: int) -> None:
    """Write clips as x uint8 (count, frames, 64, 64, 3) with captions c: what `fastdit train --data` reads."""
    rng = random.Random(seed)
    x, c = np.empty((count, frames, SIZE, SIZE, 3), np.uint8), []
    for n in range(count):
        drawn, text = clip(rng, pictures, frames=frames)
        x[n] = ((drawn + 1) * 127.5).round().clamp(0, 255).movedim(1, -1).numpy()
        c.append(text)
    temporary = file.with_suffix(f".{os.getpid()}.npz")
    np.savez_compressed(temporary, x=x, c=np.array(c))
    temporary.replace(file)
    print(f"{file}: {count} clips of {frames} frames, {file.stat().st_size / 1e6:.1f} MB")


def main() -> None:
    """Write parts of 1,024 normalised latents (8, 16, 16, 16) in fp16 with their captions; train.py reads all parts.

    With --long: write longer clips as they are, in one npz.
    """
    parser = argparse.ArgumentParser()
    parser.add_argument("--data", type=Path, default=Path("emoji64.npz"))
    parser.add_argument("--vae", type=Path, default=Path("emoji_video_vae"))
    parser.add_argument("--clips", type=Path, default=Path("emoji_clips"))
    parser.add_argument("--parts", type=int, default=4)
    parser.add_argument("--long", type=Path, metavar="NPZ", help="write clips of --frames frames there, and no latents")
    parser.add_argument("--frames", type=int, default=63, help="of --long: an odd number, for the VAE")
    parser.add_argument("--count", type=int, default=240, help="of --long")
    parser.add_argument("--seed", type=int, default=1000, help="of --long: another one makes other clips")
    args = parser.parse_args()
    if args.long is not None:
        if args.frames < 3 or args.frames % 2 == 0 or args.count < 1:
            parser.error(f"--frames must be odd and at least 3 and --count at least 1, got {args.frames}, {args.count}")
        write_long(args.long, objects(args.data), args.count, args.frames, args.seed)
        return
    from diffusers import AutoencoderKLWan
    from vae import encode, normalise

    args.clips.mkdir(exist_ok=True, parents=True)
    vae = AutoencoderKLWan.from_pretrained(args.vae).eval()
    pictures, start = objects(args.data), time.monotonic()
    for part in range(args.parts):
        file = args.clips / f"{part:03}.pt"
        if file.exists():
            continue
        rng = random.Random(part)
        latents, texts = [], []
        for n in range(1024):
            frames, text = clip(rng, pictures)
            frames = torch.cat([frames, frames[-1:].expand(2, -1, -1, -1)])  # the VAE reads 1 + 4 n frames
            with torch.no_grad():
                z = encode(vae, frames.movedim(1, 0)[None]).mean[0, :, : (FRAMES + 1) // 2]  # (8, 16, 16, 16): causal
            latents.append(normalise(vae, z[None])[0].half())
            texts.append(text)
            if n % 128 == 127:
                print(f"part {part}: {n + 1} clips, {time.monotonic() - start:.0f} s", flush=True)
        temporary = file.with_suffix(f".{os.getpid()}.tmp")
        torch.save({"latents": torch.stack(latents), "captions": texts}, temporary)
        temporary.replace(file)


if __name__ == "__main__":
    main()
