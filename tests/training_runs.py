"""For tests of training: short runs on tiny pipelines, from samples that need no encoding.

`accelerate launch training_runs.py OUT` is such a run too.
"""

import sys
from pathlib import Path
from typing import Any

import torch
from tiny import make_dit, make_pixart, make_wan, noise

from fastdit.methods.base import Method
from fastdit.models.base import family_of
from fastdit.training.conditions.base import conditions_of
from fastdit.training.data import Samples
from fastdit.training.options import TrainOptions
from fastdit.training.session import Session, new_accelerator
from fastdit.training.trainee import Trainee


class Random(Samples):
    """Latents (n, *shape) and whatever `tell(indices, dropped)` gives as conditions; counts what is asked for."""

    def __init__(self, count: int, shape: tuple[int, ...], tell: Any) -> None:
        self.latents, self.tell, self.asked = noise(count, *shape), tell, []

    def __len__(self) -> int:
        return len(self.latents)

    def conditions(self, indices, generator, *, device=None, dtype=None):
        dropped = torch.zeros(len(indices), dtype=torch.bool)
        if generator is not None:
            dropped = torch.rand(len(indices), generator=generator) < 0.3
        return self.tell(torch.tensor(indices), dropped)

    def batch(self, indices, generator, *, device=None, dtype=None):
        self.asked.append(list(indices))
        return {"latents": self.latents[indices], "conditions": self.conditions(indices, generator)}

    def ready(self, transformer, ledger):
        conditions_of(family_of(transformer)).ready(transformer, ledger)


def pixart() -> tuple[Any, Random]:
    text = noise(12, 7, 24, seed=1)

    def tell(indices, dropped):
        states = torch.where(dropped[:, None, None], 0.0, text[indices])
        return {
            "encoder_hidden_states": states,
            "encoder_attention_mask": torch.ones(len(indices), 7),
            "added_cond_kwargs": {"resolution": None, "aspect_ratio": None},
        }

    return make_pixart(), Random(12, (4, 8, 8), tell)


def dit() -> tuple[Any, Random]:
    return make_dit(), Random(
        12, (4, 8, 8), lambda indices, dropped: {"class_labels": torch.where(dropped, 1000, indices)}
    )


def wan() -> tuple[Any, Random]:
    text = noise(6, 6, 24, seed=1)
    return make_wan(), Random(6, (4, 3, 8, 8), lambda indices, dropped: {"encoder_hidden_states": text[indices]})


SHORT = {"batch": 4, "steps": 4, "lr": 1e-3, "lr_warmup": 0, "hold": 0, "warmup": 2, "log_every": 1, "ema": 0.5}


def session(
    out: Path, method: str = "dense", make: Any = pixart, samples: Any = None, show: Any = None, **options: Any
):
    """A session of a few steps that is yet to run."""
    wanted = TrainOptions(**{**SHORT, **options})
    accelerator = new_accelerator(wanted, "cpu")
    pipe, found = make()
    trainee = Trainee(pipe, None if method == "dense" else Method.parse(method), wanted)
    about = {"METHOD": method, "--model": "tiny", "--data": "random"}
    return Session(trainee, samples or found, out, accelerator, about, show or (lambda step, progress, values: None))


def train(out: Path, method: str = "dense", **options: Any):
    """Run a session of a few steps; (session, result)."""
    made = session(out, method, **options)
    return made, made.run()


@torch.no_grad()
def half_open(made: Session) -> None:
    """Routers of a DyDiT under training that are undecided, as if it had gone on for long."""
    for name, parameter in made.trainee.runtime.module.named_parameters():
        if name.endswith(("heads.bias", "channels.bias", "out.bias")):
            parameter.zero_()


if __name__ == "__main__":
    torch.set_num_threads(1)
    train(Path(sys.argv[1]), "dydit")
