"""Forecasts of streaming: the same plan as the real thing, activations that were really there, rates above zero."""

import pytest
import torch
from streaming_parts import saved, smallest_budgets
from torch import nn
from torch.nn import functional as F

from fastdit import BlockStreaming, FastDiTPipeline
from fastdit.core.activations import peak_activations
from fastdit.pipelines.forecast import Machine, forecast, measure, parts_of
from fastdit.pipelines.profiling import profile, read_model


@pytest.mark.parametrize("name", ["wan", "dit", "hunyuan_i2v_concat"])
def test_the_plan_is_that_of_the_run(name, tmp_path):
    folder = saved(name, tmp_path)
    method = BlockStreaming(smallest_budgets(folder).least)
    parts = method.forecast(parts_of(str(folder), read_model(str(folder)), torch.float32), torch.float32)
    weights = FastDiTPipeline.from_pretrained(folder, methods=[method])._fastdit.weights
    assert {part.label for part in parts} == {component.label for component in weights.components}
    for part, component in ((p, c) for p in parts for c in weights.components if p.label == c.label):
        weights.make_room(component)
        assert part.units == len(component.units) and part.kept == len(component.kept)
        assert part.read == sum(unit.nbytes for unit in component.units if unit not in component.kept)
        assert part.held == weights.fixed + component.reserved
        component.evict()


def test_seconds_go_with_the_slower_of_reading_and_computing():
    loaded = read_model("Wan2.1-T2V-1.3B")
    geometry = loaded.geometry(128, 128, 5, 2)
    method = BlockStreaming("1GiB")
    report = profile(loaded, [method], geometry)

    def run(**rates):
        return forecast("Wan2.1-T2V-1.3B", loaded, method, geometry, report, torch.bfloat16, Machine(**rates))

    slow_disk, slow_core = run(reading=1e8, computing=1e15), run(reading=1e15, computing=1e9)
    read = slow_disk.parts[0].read
    assert read > 1e9 and slow_disk.seconds == pytest.approx(4 * read / 1e8)
    assert slow_core.seconds == pytest.approx(report.macs_executed / 1e9)
    with pytest.raises(
        ValueError, match=r"memory_budget 10MiB is 10.0 MiB, and the largest block \(transformer.blocks"
    ):
        forecast("Wan2.1-T2V-1.3B", loaded, BlockStreaming("10MiB"), geometry, report, torch.bfloat16, Machine(1, 1))


class Perceptron(nn.Module):
    def __init__(self):
        super().__init__()
        self.up, self.down = nn.Linear(8, 64), nn.Linear(64, 8)

    def forward(self, x):
        x = self.up(x)  # 64
        x = F.gelu(x)  # 64 more until the first is let go
        return self.down(x[:, None].squeeze(1))


def test_peak_activations():
    with torch.device("meta"):
        model = Perceptron()
    given = {"x": torch.empty(10, 8)}
    assert peak_activations(model, given, torch.float32) == 10 * 128 * 4
    assert peak_activations(model, given, torch.bfloat16) == 10 * 128 * 2


def test_rates_are_measured(tmp_path):
    machine = measure(torch.float32, [])
    assert machine.reading > 1e6 and machine.computing > 1e6
