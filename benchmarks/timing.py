"""Timing on a shared, noisy machine: things are compared in one process, in turns, by the ratio of medians."""

import random
import statistics
import time
from collections.abc import Callable

import torch


def in_turns(functions: dict[str, Callable[[], object]], rounds: int, warmup: int = 1) -> dict[str, list[float]]:
    """Seconds of every function in every round; the order within a round is shuffled."""
    seconds: dict[str, list[float]] = {name: [] for name in functions}
    order = random.Random(0)
    for turn in range(warmup + rounds):
        names = list(functions)
        order.shuffle(names)
        for name in names:
            began = time.perf_counter()
            functions[name]()
            if turn >= warmup:
                seconds[name].append(time.perf_counter() - began)
        print(f"  round {turn + 1} of {warmup + rounds} done", flush=True)
    return seconds


def ratio(slow: list[float], fast: list[float], draws: int = 2000) -> tuple[float, float, float]:
    """Ratio of medians with a 95 % interval (bootstrap over rounds)."""
    pairs, rng = list(zip(slow, fast, strict=True)), random.Random(0)
    samples = []
    for _ in range(draws):
        chosen = [rng.choice(pairs) for _ in pairs]
        samples.append(statistics.median(a for a, _ in chosen) / statistics.median(b for _, b in chosen))
    samples.sort()
    middle = statistics.median(slow) / statistics.median(fast)
    return middle, samples[int(0.025 * draws)], samples[int(0.975 * draws) - 1]


def machine() -> str:
    """One line about where the figures come from."""
    with open("/proc/cpuinfo", encoding="utf-8") as lines:
        model = next((line.split(":")[1].strip() for line in lines if line.startswith("model name")), "CPU")
    return f"{model}, {torch.get_num_threads()} threads, torch {torch.__version__}, fp32"
