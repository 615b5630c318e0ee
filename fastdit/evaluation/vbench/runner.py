"""The real vbench in the interpreter that the user names: one dimension a process, and what went wrong in one line."""

import contextlib
import json
import os
import re
import shutil
import signal
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from fastdit.evaluation.vbench.suite import FILE

_PROBE = f"""
import sys
sys.path[:] = [folder for folder in sys.path if folder]  # a folder "vbench" where we stand is none
import importlib.util, json, os
from importlib import metadata
spec = importlib.util.find_spec("vbench")
found = spec is not None and spec.origin is not None
folders = list(spec.submodule_search_locations or ()) if found else []
files = [os.path.join(folder, {FILE!r}) for folder in folders]
try:
    version = metadata.version("vbench")
except metadata.PackageNotFoundError:
    version = "of unknown version"
files = [file for file in files if os.path.isfile(file)]
print(json.dumps({{"found": found, "version": version, "file": files[0] if files else None}}))
"""
_HINTS = (
    ("pkg_resources", 'install "setuptools<81" there, openai-clip needs it'),
    ("weights_only", "set TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD=1, vbench 0.1.5 is older than torch 2.6"),
    ("detectron2", "install detectron2 there"),
    ("wget", "a download failed: the weights' host must be reachable, or the file in VBENCH_CACHE_DIR"),
)


class Failed(Exception):
    """A dimension that vbench could not score; the message is one line."""


@dataclass(frozen=True)
class Engine:
    """An interpreter that has vbench."""

    python: Path
    version: str
    suite: Path | None  # its VBench_full_info.json

    @property
    def name(self) -> str:
        return f"vbench {self.version}"

    @staticmethod
    def of(python: str | Path) -> "Engine":
        """Ask an interpreter (or a venv's folder) for its vbench, without importing it; ValueError if it has none."""
        path = _interpreter(python)
        try:
            done = subprocess.run(
                [path, "-c", _PROBE], capture_output=True, text=True, timeout=120, env=_environment(),
                stdin=subprocess.DEVNULL,
            )  # fmt: skip
            told = json.loads(done.stdout.splitlines()[-1]) if done.returncode == 0 else {}
        except (OSError, subprocess.TimeoutExpired, ValueError, IndexError) as error:
            raise ValueError(f"--python {path} is no Python interpreter that answers: {error}") from error
        if done.returncode:
            raise ValueError(f"--python {path} fails: {last_line(done.stderr)}")
        if not told["found"]:
            raise ValueError(f'--python {path} has no vbench: {path} -m pip install "vbench==0.1.5" "setuptools<81"')
        return Engine(path, told["version"], Path(told["file"]) if told["file"] else None)

    def score(
        self, dimension: str, suite: Path, videos: Path, out: Path, device: str = "auto", timeout: float | None = None
    ) -> list[Any]:
        """Run one dimension over a folder of videos; returns VBench's [score, per video]; Failed says why not.

        `out` gets VBench's own files and `<dimension>.log`. Ctrl-C and a timeout (seconds) end the process and all it
        started.
        """
        results = out / f"{dimension}_eval_results.json"
        results.unlink(missing_ok=True)
        job = {"dimension": dimension, "suite": str(suite.resolve()), "videos": str(videos), "out": str(out)}
        log = out / f"{dimension}.log"
        try:
            with open(log, "w", encoding="utf-8") as output:
                code = self._run({**job, "device": device}, output, timeout)
        finally:  # it names files of a temporary folder
            (out / f"{dimension}_full_info.json").unlink(missing_ok=True)
        if code is None:
            raise Failed(f"stopped after {timeout:g} s (--timeout)")
        if code:
            said = last_line(log.read_text(encoding="utf-8", errors="replace"))
            died = _signal(code)
            raise Failed(died or _hinted(said or f"exit code {code}"))
        return read_results(results, dimension)

    def _run(self, job: dict[str, Any], output: IO[str], timeout: float | None) -> int | None:
        """The exit code of the driver in a process group of its own; None if the time ran out."""
        source = (Path(__file__).parent / "_driver.py").read_text(encoding="utf-8")
        posix = os.name == "posix"
        # the child watches this pipe: it closes when this process ends, were it by SIGKILL
        theirs, ours = os.pipe() if posix else (None, None)
        job["alive"] = theirs
        try:
            process = subprocess.Popen(
                [self.python, "-c", source, json.dumps(job)], stdin=subprocess.DEVNULL, stdout=output,
                stderr=subprocess.STDOUT, env=_environment(), start_new_session=posix,
                pass_fds=() if theirs is None else (theirs,),
            )  # fmt: skip
            try:
                return process.wait(timeout)
            except subprocess.TimeoutExpired:
                return None
            finally:  # also on Ctrl-C
                _end(process)
        finally:
            for end in (theirs, ours):
                if end is not None:
                    os.close(end)


def read_results(path: Path, dimension: str) -> list[Any]:
    """VBench's [score, [{"video_path", "video_results"}, ...]] of one dimension; Failed if the file is not that."""
    try:
        score, videos = json.loads(path.read_text(encoding="utf-8"))[dimension]
        if isinstance(score, bool) or not isinstance(score, int | float) or not isinstance(videos, list):
            raise TypeError("no score with a list of videos")
        for video in videos:
            if not isinstance(video["video_path"], str) or not isinstance(video["video_results"], bool | int | float):
                raise TypeError(f"no number for {video['video_path']}")
    except FileNotFoundError as error:
        raise Failed("vbench ended well and wrote no results") from error
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise Failed(f"vbench's results cannot be read ({type(error).__name__}: {error})") from error
    if not videos:
        raise Failed("vbench scored no video")
    if not abs(score) < float("inf"):
        raise Failed(f"vbench's score is {score}")
    return [float(score), videos]


def last_line(text: str) -> str:
    """The last line with something on it; a progress bar's earlier states are not lines."""
    lines = [line.strip() for line in re.split(r"[\r\n]", text) if line.strip()]
    return lines[-1][:400] if lines else ""


def _interpreter(python: str | Path) -> Path:
    """The path of an interpreter, not resolved: a venv's is a link, and the link is what makes it the venv's."""
    path = Path(python).expanduser()
    if path.is_dir():
        for inside in ("bin/python", "Scripts/python.exe"):
            if (path / inside).exists():
                return (path / inside).absolute()
        raise ValueError(f"--python {path} is a folder without bin/python: give an interpreter or a venv")
    found = str(path) if path.exists() else shutil.which(str(python))
    if not found:
        raise ValueError(f"--python {python} does not exist: give the interpreter that has vbench")
    return Path(found).absolute()


def _environment() -> dict[str, str]:
    """This environment without what would let our packages into that interpreter."""
    return {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "PYTHONHOME")}


def _end(process: "subprocess.Popen[bytes]") -> None:
    """Kill the process with all it started (wget, unzip, workers), if it still runs."""
    if os.name == "posix":
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
    else:
        process.kill()
    process.wait()


def _signal(code: int) -> str | None:
    """What killed a process; a script around the interpreter tells signal n as exit code 128 + n."""
    number = -code if code < 0 else code - 128
    if number not in (signal.SIGABRT, signal.SIGFPE, signal.SIGILL, signal.SIGSEGV, signal.SIGTERM, 9):
        return None
    return "killed by SIGKILL (out of memory?)" if number == 9 else f"killed by {signal.Signals(number).name}"


def _hinted(text: str) -> str:
    hint = next((hint for word, hint in _HINTS if word in text), None)
    return f"{text} ({hint})" if hint else text
