"""Samples for an evaluation: the same files for any number of processes and any number of kills."""

import json
import os
import random
import signal
import subprocess
import sys
import time

import numpy as np
import pytest

from fastdit.evaluation import generate as g
from fastdit.evaluation.manifest import Item, Writer, read_manifest
from fastdit.evaluation.samples import Samples

ITEMS = [Item(i, f"prompt {i}", 100 + i) for i in range(11)]


def draw(items, size=(1, 8, 8)):
    """A picture an item, decided by its seed alone."""
    samples = [np.random.default_rng(item.seed).integers(0, 255, (*size, 3), np.uint8) for item in items]
    return g.Drawn(samples, seconds=0.2 * len(items), macs_dense=20 * len(items), macs_executed=10 * len(items))


def run_in(folder, name="a", how=draw, **settings):
    return g.Run(name, folder, {"model": "test", **settings}, how)


def contents(folder):
    """Every file below the folder but the manifests, which name ranks and sessions; and what the manifests say."""
    files = {p.relative_to(folder).as_posix(): p.read_bytes() for p in folder.rglob("*") if p.is_file()}
    lines = [(r.index, r.file, r.prompt, r.seed, r.batch, r.settings) for r in read_manifest(folder)]
    count = sum(len(data.splitlines()) for name, data in files.items() if name.startswith("manifest"))
    return {n: data for n, data in files.items() if not n.startswith("manifest")}, lines, count


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """What one process makes without interruption."""
    folder = tmp_path_factory.mktemp("whole")
    assert g.generate([run_in(folder)], ITEMS, batch=3) == 11
    return contents(folder)


def test_a_record_says_how_its_sample_was_made(tmp_path, whole):
    g.generate([run_in(tmp_path)], ITEMS, batch=3)
    records = read_manifest(tmp_path)
    assert [r.index for r in records] == list(range(11)) and [r.batch for r in records] == [i // 3 for i in range(11)]
    assert records[4].prompt == "prompt 4" and records[4].seed == 104
    assert (records[4].seconds, records[4].macs_dense, records[4].macs_executed) == (0.2, 20, 10)
    assert [r.cold for r in records] == [True] * 3 + [False] * 8
    read = Samples.open(tmp_path)
    assert (read.read(read.names[4]) == draw([ITEMS[4]]).samples[0]).all()
    assert contents(tmp_path)[0] == whole[0]


@pytest.mark.parametrize("world", [2, 3, 5])
def test_names_seeds_and_pixels_do_not_depend_on_the_number_of_processes(tmp_path, whole, world):
    for rank in reversed(range(world)):
        g.generate([run_in(tmp_path)], ITEMS, batch=3, shard=g.Shard(rank, world))
    assert contents(tmp_path) == whole
    assert {r.rank for r in read_manifest(tmp_path)} == set(range(min(world, 4)))


def test_an_unfinished_launch_is_finished_by_another_number_of_processes(tmp_path, whole):
    g.generate([run_in(tmp_path)], ITEMS, batch=3, shard=g.Shard(1, 3))
    g.generate([run_in(tmp_path)], ITEMS, batch=3, shard=g.Shard(0, 2))
    assert g.generate([run_in(tmp_path)], ITEMS, batch=3) == 2
    assert contents(tmp_path) == whole
    assert g.generate([run_in(tmp_path)], ITEMS, batch=3) == 0


class Stopped(BaseException):
    """A kill in the middle of the code: nothing may catch it."""


@pytest.mark.parametrize("place", ["draw", "write_picture", "append", "torn line"])
def test_a_stop_at_any_moment_leaves_no_hole_and_no_double(tmp_path, whole, place, monkeypatch):
    """The run is stopped again and again, at another call each time, until it gets through."""
    calls = [0]

    def at(function, after=lambda *args: None):
        def stop(*args):
            calls[0] += 1
            if calls[0] % 3 == 0:
                after(*args)
                raise Stopped
            return function(*args)

        return stop

    def torn(writer, record):
        os.write(writer._file, json.dumps(vars(record)).encode()[:40])

    how = at(draw) if place == "draw" else draw
    if place == "write_picture":
        monkeypatch.setattr(g.frames, "write_picture", at(g.frames.write_picture))
    if place in ("append", "torn line"):
        monkeypatch.setattr(Writer, "append", at(Writer.append, torn if place == "torn line" else lambda *args: None))
    stops = 0
    while True:
        try:
            g.generate([run_in(tmp_path, how=how)], ITEMS, batch=3)
            break
        except Stopped:
            stops += 1
            assert stops < 20
    assert stops >= 1 and contents(tmp_path) == whole


SCRIPT = """
import sys, time
sys.path.insert(0, {tests!r})
import test_generate as t
from pathlib import Path
def slow(items):
    time.sleep(0.02)
    return t.draw(items)
print("ready", flush=True)
t.g.generate([t.run_in(Path(sys.argv[1]), how=slow)], t.ITEMS, batch=3)
"""


@pytest.mark.skipif(os.name == "nt", reason="SIGKILL is of Unix")
def test_killed_processes_resume(tmp_path, whole):
    script = SCRIPT.format(tests=os.path.dirname(__file__))
    rng, kills = random.Random(0), 0
    for _ in range(12):
        process = subprocess.Popen([sys.executable, "-c", script, str(tmp_path)], stdout=subprocess.PIPE)
        process.stdout.readline()
        if kills < 4:
            time.sleep(rng.uniform(0, 0.08))
            process.send_signal(signal.SIGKILL)
        kills += process.wait() == -signal.SIGKILL
        process.stdout.close()
        if process.returncode == 0:
            break
    assert kills and process.returncode == 0
    left = contents(tmp_path)
    assert {n: d for n, d in left[0].items() if "/." not in n} == whole[0]  # a kill may leave a hidden temporary file
    assert left[1:] == whole[1:]


def test_runs_take_turns_and_each_begins_its_share(tmp_path):
    order = []

    def seen(name):
        def how(items):
            order.append((name, items[0].index // 3))
            return draw(items)

        return how

    runs = [run_in(tmp_path / name, name, seen(name)) for name in "ab"]
    progress = []
    assert g.generate(runs, ITEMS, batch=3, progress=lambda done, total: progress.append((done, total))) == 22
    assert order == [("a", 0), ("b", 0), ("b", 1), ("a", 1), ("a", 2), ("b", 2), ("b", 3), ("a", 3)]
    assert progress[0] == (0, 22) and progress[-1] == (22, 22)
    one, two = (read_manifest(tmp_path / name) for name in "ab")
    assert {r.session for r in one} == {r.session for r in two} and len({r.session for r in one}) == 1


def test_a_longer_list_adds_to_a_shorter_one(tmp_path, whole):
    g.generate([run_in(tmp_path)], ITEMS[:4], batch=3)
    assert g.generate([run_in(tmp_path)], ITEMS, batch=3) == 7
    assert contents(tmp_path) == whole
    assert g.generate([run_in(tmp_path)], ITEMS[:4], batch=3) == 0


def test_numbers_may_have_gaps_that_a_later_list_fills(tmp_path, whole):
    g.generate([run_in(tmp_path)], ITEMS[1::2], batch=3)
    assert [r.batch for r in read_manifest(tmp_path)] == [0, 1, 1, 2, 3]
    assert g.generate([run_in(tmp_path)], ITEMS, batch=3) == 6
    assert contents(tmp_path) == whole


def test_a_lost_file_is_made_again(tmp_path, whole):
    g.generate([run_in(tmp_path)], ITEMS, batch=3)
    (tmp_path / "samples/000005.png").unlink()
    assert g.generate([run_in(tmp_path)], ITEMS, batch=3) == 1
    assert contents(tmp_path)[:2] == whole[:2]


def test_videos_are_raw_beside_an_mp4_and_named_ones_have_a_folder(tmp_path):
    items = [Item(0, "a", 0, name="a cat-0"), Item(1, "b", 1)]
    g.generate([run_in(tmp_path, how=lambda items: draw(items, (5, 16, 16)))], items, batch=2)
    named, plain = read_manifest(tmp_path)
    assert (named.file, named.video) == ("samples/000000.npy", "videos/a cat-0.mp4")
    assert plain.video == "samples/000001.mp4" and (tmp_path / plain.video).stat().st_size > 0
    samples = Samples.open(tmp_path)
    assert (samples.read(named.file) == draw([items[0]], (5, 16, 16)).samples[0]).all()


@pytest.mark.parametrize(
    ("items", "batch", "message"),
    [
        ([], 3, "the list of prompts is empty"),
        (ITEMS, 0, "batch must be at least 1, got 0"),
        (ITEMS[::-1], 3, "numbered upwards"),
        ([Item(0, "a", 0), Item(0, "b", 1)], 3, "numbered upwards"),
        ([Item(0, "a", 0, name="x"), Item(1, "b", 1, name="x")], 3, "two items share the name 'x'"),
        ([Item(0, "a", 0, name="../x")], 3, r"'\.\./x' would leave the folder"),
        ([Item(0, "a", 0, name=".x")], 3, "or hide in it"),
    ],
)
def test_bad_lists_are_refused(tmp_path, items, batch, message):
    with pytest.raises(ValueError, match=message):
        g.generate([run_in(tmp_path)], items, batch=batch)
    assert not list(tmp_path.iterdir())


def test_another_list_or_other_settings_are_refused_before_any_work(tmp_path):
    g.generate([run_in(tmp_path)], ITEMS, batch=3)
    other = [Item(i.index, i.prompt, i.seed + (i.index == 4)) for i in ITEMS]
    with pytest.raises(ValueError, match="sample 4 as 'prompt 4' with seed 104; it is now 'prompt 4' with seed 105"):
        g.generate([run_in(tmp_path, how=None)], other, batch=3)
    with pytest.raises(ValueError, match="batch is 3 there and 4 now"):
        g.generate([run_in(tmp_path, how=None)], ITEMS, batch=4)
    with pytest.raises(ValueError, match="model is 'test' there and 'new' now"):
        g.generate([run_in(tmp_path, how=None, model="new")], ITEMS, batch=3)


def test_what_a_callable_may_not_return(tmp_path):
    with pytest.raises(ValueError, match="2 samples came back for 3 items"):
        g.generate([run_in(tmp_path, how=lambda items: draw(items[1:]))], ITEMS, batch=3)
    with pytest.raises(ValueError, match="not finite"):
        g.to_uint8(np.array([0.5, np.nan]))
    assert g.to_uint8([0.0, 0.5, 1.0, 2.0, -1.0]).tolist() == [0, 128, 255, 255, 0]


def test_a_failed_draw_names_its_samples(tmp_path):
    def fails(items):
        raise ValueError("not finite")

    with pytest.raises(ValueError, match=r"run a, samples 0 to 2 \(the first is 'prompt 0', seed 100\): not finite"):
        g.generate([run_in(tmp_path, how=fails)], ITEMS, batch=3)


def test_every_process_turns_the_runs(tmp_path):
    order = []

    def seen(name):
        return lambda items: order.append(name) or draw(items)

    runs = [run_in(tmp_path / name, name, seen(name)) for name in "ab"]
    g.generate(runs, ITEMS, batch=3, shard=g.Shard(0, 2))
    assert "".join(order) == "abba"


def test_shards(monkeypatch):
    monkeypatch.setenv("RANK", "2")
    monkeypatch.setenv("WORLD_SIZE", "4")
    assert g.Shard.of_launch() == g.Shard(2, 4)
    with pytest.raises(ValueError, match="counts from 0 to 3"):
        g.Shard(4, 4)
