"""Python imports this at its start where this folder is on PYTHONPATH: input files that kill or stop their reader.

Each trap works while a file of the same name with `.armed` behind it exists. Opening *.kills.tar ends the process, as a
crash in native code would. Opening *.hangs.tar stops the thread for good, once, as a dead network mount would. Opening
*.waits.tar leaves a file *.<process id>.waiting, and goes on when the trap is disarmed. Once a process has opened
*.sickens.tar, every opening of a tar fails in it, as all work fails on a device that is lost.
"""

import os
import sys
import time
from pathlib import Path

sick = False


def _spring(event: str, arguments: tuple[object, ...]) -> None:
    if event != "open" or not isinstance(arguments[0], str):
        return
    global sick
    path = arguments[0]
    armed = Path(path + ".armed")
    if path.endswith(".kills.tar") and armed.exists():
        os._exit(77)
    if path.endswith(".hangs.tar") and armed.exists():
        armed.unlink()
        time.sleep(3600)
    if path.endswith(".sickens.tar") and armed.exists():
        armed.unlink()
        sick = True
    if sick and path.endswith(".tar"):
        raise RuntimeError("CUDA error: an illegal memory access was encountered")
    if path.endswith(".waits.tar") and armed.exists():
        Path(f"{path}.{os.getpid()}.waiting").touch()
        while armed.exists():
            time.sleep(0.05)


sys.addaudithook(_spring)
