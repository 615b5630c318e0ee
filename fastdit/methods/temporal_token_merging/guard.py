"""The motion guard: which neighbouring frames differ too much to attend as one, by the model's own estimate so far."""

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from fastdit.core.ledger import PatchLedger
from fastdit.methods.runtime import Forward, Host
from fastdit.ops.temporal import frame_changes


@dataclass
class MotionGuard:
    """Looks at what each forward of a run makes of the video, and compares its frames before the next step.

    One state per pass of the guidance; `forget` drops them. Reading a decision waits for the device, once a forward.
    """

    threshold: float
    host: Host
    _under_way: Forward | None = None
    _changes: dict[int, tuple[int, Tensor]] = field(default_factory=dict)  # pass -> (step, (B, F - 1))

    def install(self, ledger: PatchLedger) -> None:
        """Watch the transformer's calls, through the ledger."""
        hook = torch.compiler.disable(self._look)  # outside the graph, should the whole be compiled
        handle = self.host.module.register_forward_hook(hook, with_kwargs=True)
        ledger.add_hook(handle, f"{self.host.label}'s hook of the motion guard")

    def forget(self) -> None:
        """A run begins or ends."""
        self._under_way = None
        self._changes.clear()

    def watch(self, forward: Forward) -> None:
        """This forward is about to begin."""
        self._under_way = forward

    def apart(self, forward: Forward) -> list[list[bool]] | None:
        """For each sample and frame whether it differs from the next one by more than the threshold.

        None where this pass has no estimate of the step before, as in a run's (or a transformer's) first step.
        """
        step, changes = self._changes.get(forward.pass_index, (-1, None))
        shape = forward.batch, forward.layout.frames - 1
        if changes is None or changes.shape != shape or step != forward.step_index - 1:
            return None
        found: list[list[bool]] = (changes > self.threshold).tolist()
        return found

    @torch.no_grad()
    def _look(self, module: nn.Module, args: tuple, kwargs: dict[str, Any], output: Any) -> None:
        forward, family = self._under_way, self.host.family
        if forward is None:
            return
        prediction = output if torch.is_tensor(output) else output[0]  # (B, C, F, H, W)
        # an image-to-video model reads its condition in further channels
        latents = family.arguments(args, kwargs)["hidden_states"][:, : prediction.shape[1]]
        clean = family.clean(latents, prediction, forward.noise)
        self._changes[forward.pass_index] = forward.step_index, frame_changes(clean, forward.layout.frames)
