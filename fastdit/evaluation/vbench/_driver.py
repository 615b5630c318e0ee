"""Sent to the user's interpreter: runs one dimension of the real vbench there. Imports nothing of fastdit.

Its text is passed to `python -c`, with a job (JSON) as the only argument; Python 3.8 must understand it.
"""

import json
import os
import signal
import sys
import threading
import traceback
from typing import Any


def leave_with_parent(alive: int) -> None:
    """End this process and what it started once the parent's end of a pipe closes, however the parent ended."""
    os.read(alive, 1)
    os.killpg(os.getpgrp(), signal.SIGKILL)


def run(job: Any) -> None:
    if job["alive"] is not None:
        threading.Thread(target=leave_with_parent, args=(job["alive"],), daemon=True).start()
    sys.path[:] = [folder for folder in sys.path if folder]  # nothing is imported from where the user happens to stand
    import torch
    from vbench import VBench

    device = job["device"]
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    VBench(torch.device(device), job["suite"], job["out"]).evaluate(
        videos_path=job["videos"], name=job["dimension"], dimension_list=[job["dimension"]], mode="vbench_standard"
    )


def main() -> None:
    code = 0
    try:
        run(json.loads(sys.argv[1]))
    except BaseException as error:
        sys.stdout.flush()
        traceback.print_exc()
        # the last line is what the parent shows, and messages may be long
        sys.stderr.write("\n%s: %s\n" % (type(error).__name__, " ".join(str(error).split())))  # noqa: UP031
        code = 1
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)  # threads and exit handlers of what was imported have no further say


main()
