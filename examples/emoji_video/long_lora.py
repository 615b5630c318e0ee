"""Does a LoRA teach the bundled video model twice its frames, under sparse attention as well as under dense?

    python data.py --data emoji64.npz --long clips63.npz --count 160
    python data.py --data emoji64.npz --long held63.npz --count 48 --seed 2000
    fastdit train dense --parameters lora --model fastdit/emoji-video --data clips63.npz --frames 63 ... -o lora-dense
    fastdit train radial_attention:... --parameters lora --model ... --data clips63.npz --frames 63 ... -o lora-radial
    python long_lora.py --data held63.npz --dense lora-dense/lora --radial lora-radial/lora

Flow-matching loss of four rows (without and with a LoRA, dense and under RadialAttention) on clips that were not
trained on, at noise and times that depend on the clip alone: each row sees the same. Intervals of 95 % over clips; the
differences are paired, clip by clip.
"""

import argparse
from pathlib import Path
from typing import Any

import numpy as np
import torch

from fastdit import FastDiTPipeline
from fastdit.core.files import write_json
from fastdit.evaluation.intervals import bootstrap
from fastdit.methods.base import Method
from fastdit.models.base import family_of
from fastdit.training.batches import generator_for
from fastdit.training.data import Samples, open_samples
from fastdit.training.learner import call
from fastdit.training.objectives import Objective, objective_of
from fastdit.training.times import draw_times, flow_shift_of

MODEL = "fastdit/emoji-video"
RADIAL = "radial_attention:decay=0.2,dense_share=0.04,dense_layers=1"


def problem(samples: Samples, clip: int, part: int, times: int, shift: float) -> dict[str, Any]:
    """A clip with the noise and the time of one of `times` equal parts of the times, which it alone decides."""
    generator = generator_for(clip)
    time = draw_times(times, generator, strata=times, flow_shift=shift)[part : part + 1]
    batch = samples.batch([clip], None)
    noise = torch.randn(times, *batch["latents"].shape[1:], generator=generator)[part : part + 1]
    return {**batch, "noise": noise, "time": time}


def losses(transformer: torch.nn.Module, objective: Objective, samples: Samples, times: int, shift: float) -> list:
    """The loss of each clip, a mean over its times.

    Gradients stay enabled: sequences of this length then run whole under the mask, as in training, which is faster.
    """
    found = []
    for clip in range(len(samples)):
        own = []
        for part in range(times):  # one by one: a forward is planned for its noisiest sample
            batch = problem(samples, clip, part, times, shift)
            velocity = call(transformer, batch, objective).detach()
            own.append(objective.loss(velocity, batch["latents"], batch["noise"], batch["time"]).item())
        found.append(float(np.mean(own)))
    return found


def table(rows: dict[str, list[float]]) -> str:
    """Markdown: each row's loss, and how far it is from the dense model without a LoRA and from its own start."""
    base = np.array(rows["dense, no LoRA"])
    lines = ["| attention, LoRA | loss | against dense, no LoRA |", "|---|---|---|"]
    for name, own in rows.items():
        change = "" if name == "dense, no LoRA" else bootstrap(np.array(own) - base).text(4)
        lines.append(f"| {name} | {bootstrap(own).text(4)} | {change} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--data", type=Path, default=Path("held63.npz"))
    parser.add_argument("--frames", type=int, default=63)
    parser.add_argument("--dense", type=Path, required=True, help="folder of the LoRA that was trained dense")
    parser.add_argument("--radial", type=Path, required=True, help="folder of the one trained under RadialAttention")
    parser.add_argument("--method", default=RADIAL, help="what it was trained under")
    parser.add_argument("--times", type=int, default=2, help="times at which each clip is judged")
    parser.add_argument("--cache", type=Path, default=Path("latents"))
    parser.add_argument("-o", "--output", type=Path, default=Path("long_lora.json"), help="the loss of every clip")
    args = parser.parse_args()

    pipe = FastDiTPipeline.from_pretrained(MODEL, methods=[])
    pipe.transformer.eval()
    samples = open_samples(pipe, args.data, args.cache, frames=args.frames)
    first = {"hidden_states": samples.batch([0], None)["latents"]}
    family = family_of(pipe.transformer)
    shift = flow_shift_of(pipe.scheduler, family.layout(pipe.transformer, first).tokens)
    objective = objective_of(pipe, pipe.transformer, family)
    radial = [Method.parse(args.method)]
    rows: dict[str, list[float]] = {}
    for name, methods, lora in (
        ("dense, no LoRA", [], None), ("radial, no LoRA", radial, None),
        ("dense, dense LoRA", [], args.dense), ("radial, radial LoRA", radial, args.radial),
    ):  # fmt: skip
        pipe.set_methods([])
        if lora is not None:
            pipe.load_lora_weights(str(lora))
        pipe.set_methods(methods)
        rows[name] = losses(pipe.transformer, objective, samples, args.times, shift)
        if lora is not None:
            pipe.set_methods([])
            pipe.unload_lora_weights()
        print(name, bootstrap(rows[name]).text(4), flush=True)
        write_json(args.output, {"times": args.times, "method": args.method, "rows": rows})
    print(f"n = {len(samples)} clips of {args.frames} frames, {args.times} times each\n\n{table(rows)}")
    gap = np.array(rows["radial, radial LoRA"]) - np.array(rows["dense, dense LoRA"])
    gained = np.array(rows["radial, radial LoRA"]) - np.array(rows["radial, no LoRA"])
    print(f"\nradial LoRA less dense LoRA: {bootstrap(gap).text(4)}; less radial, no LoRA: {bootstrap(gained).text(4)}")


if __name__ == "__main__":
    main()
