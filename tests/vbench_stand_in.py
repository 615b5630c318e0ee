"""Stand-ins for VBench: a suite of eight prompts of our own in its schema, and a package that also misbehaves."""

import json
import os
import sys
import textwrap
from pathlib import Path

CASE = ["a paper boat", "A paper boat"]  # VBench's own suite has such a pair
SUITE = [
    {"prompt_en": "a lamp on a desk, frozen in time", "dimension": ["temporal_flickering"]},
    {"prompt_en": "a clock that stands still.", "dimension": ["temporal_flickering"]},
    {"prompt_en": "a fox runs", "dimension": ["subject_consistency", "dynamic_degree", "motion_smoothness"]},
    {"prompt_en": "a kite climbs", "dimension": ["subject_consistency", "dynamic_degree", "motion_smoothness"]},
    {
        "prompt_en": "harbour",
        "dimension": ["scene", "background_consistency"],
        "auxiliary_info": {"scene": {"scene": {"scene": "harbour"}}},
    },
    {"prompt_en": "a blue chair", "dimension": ["color"], "auxiliary_info": {"color": {"color": "blue"}}},
    {"prompt_en": CASE[0], "dimension": ["overall_consistency", "aesthetic_quality", "imaging_quality"]},
    {"prompt_en": CASE[1], "dimension": ["overall_consistency", "aesthetic_quality", "imaging_quality"]},
    # one that stands there twice, as two of VBench's do
    {
        "prompt_en": "a paper boat",
        "dimension": ["appearance_style"],
        "auxiliary_info": {"appearance_style": {"appearance_style": "paper"}},
    },
]


def write_suite(folder: Path, entries=SUITE) -> Path:
    path = folder / "VBench_full_info.json"
    path.write_text(json.dumps(entries), encoding="utf-8")
    return path


def lookup(folder: Path, prompt: str) -> list[str]:
    """Which of a prompt's videos VBench finds: the rule of `build_full_info_json`, mode vbench_standard."""
    video_names = os.listdir(folder)
    postfix = Path(video_names[0]).suffix
    return [name for i in range(5) if (name := f"{prompt}-{i}{postfix}") in video_names]


PACKAGE = """
import json, os, signal, subprocess, sys, time
from pathlib import Path

class VBench:
    def __init__(self, device, full_info_dir, output_path):
        self.device, self.info, self.out = device, full_info_dir, output_path

    def evaluate(self, videos_path, name, prompt_list=[], dimension_list=None, mode="vbench_standard", **kwargs):
        (dimension,) = dimension_list
        print("a progress bar\\r 50%", self.device, os.environ.get("PYTHONPATH_SEEN"))
        names = os.listdir(videos_path)
        postfix = Path(names[0]).suffix
        found = [
            os.path.join(videos_path, intended)
            for entry in json.load(open(self.info)) if dimension in entry["dimension"]
            for i in range(5) if (intended := f"{entry['prompt_en']}-{i}{postfix}") in names
        ]
        each = [{"video_path": path, "video_results": (10 + k) / 20} for k, path in enumerate(found)]
        mean = sum(video["video_results"] for video in each) / max(1, len(each))
        result = Path(self.out, name + "_eval_results.json")
        Path(self.out, name + "_full_info.json").write_text("[]")
        if dimension == "scene":
            raise RuntimeError("no weights\\nfor the captioner")
        if dimension == "motion_smoothness":
            child = subprocess.Popen([sys.executable, "-S", "-c", "import time; time.sleep(60)"])
            Path(self.out, "pids").write_text(f"{os.getpid()} {child.pid}")
            time.sleep(60)
        if dimension == "dynamic_degree":
            os.kill(os.getpid(), signal.SIGKILL)
        if dimension == "aesthetic_quality":
            return
        if dimension == "overall_consistency":
            mean = float("nan")
        if dimension == "imaging_quality":
            each = [{**video, "video_results": 100 * video["video_results"]} for video in each]
        if dimension == "background_consistency":  # a mean over frames
            mean += 0.01
        if dimension == "appearance_style":
            each = each[:1]
        text = json.dumps({dimension: [mean, each]})
        result.write_text(text[:-9] if dimension == "color" else text)
"""


def interpreter(folder: Path, package: str = PACKAGE, version: str | None = "0.1.5") -> Path:
    """An interpreter with a stand-in vbench (and torch, which is slow to load) that this one does not have."""
    site = folder / "site"
    (site / "vbench").mkdir(parents=True)
    (site / "vbench" / "__init__.py").write_text(package)
    write_suite(site / "vbench")
    torch = """
    class cuda:
        is_available = staticmethod(lambda: False)
    device = str
    """
    (site / "torch.py").write_text(textwrap.dedent(torch))
    if version:
        (site / f"vbench-{version}.dist-info").mkdir()
        (site / f"vbench-{version}.dist-info" / "METADATA").write_text(f"Name: vbench\nVersion: {version}\n")
    return wrapper(folder / "python", site)


def wrapper(path: Path, site: Path) -> Path:
    """A script that is this interpreter with another site."""
    path.write_text(f'#!/bin/sh\nexport PYTHONPATH_SEEN="$PYTHONPATH"\nPYTHONPATH={site} exec {sys.executable} "$@"\n')
    path.chmod(0o755)
    return path
