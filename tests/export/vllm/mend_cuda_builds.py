"""Makes vLLM's dependencies that were built for CUDA harmless beside a CPU build of torch, in this environment.

PyPI has torchvision, torchaudio and torchcodec for CUDA alone. torchvision's Python part asks for operators that its
library would register; nothing here calls them, so declaring them is enough. Nobody needs the other two, and they are
removed: code that finds them installed imports them.
"""

from __future__ import annotations

import subprocess
import sys
import sysconfig
from pathlib import Path

DECLARATIONS = {
    "nms": "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
    "qnms": "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
}


def importable(name: str) -> bool:
    """Whether a new process can import a module."""
    return subprocess.run([sys.executable, "-c", f"import {name}"], capture_output=True).returncode == 0


def declare_operators() -> None:
    """Have every process of this environment declare torchvision's operators as it starts."""
    packages = Path(sysconfig.get_path("purelib"))
    declared = [f"torch.library.define('torchvision::{name}', '{schema}')" for name, schema in DECLARATIONS.items()]
    module = "\n".join(["import torch", *declared]) + "\n"
    (packages / "torchvision_operators.py").write_text(module, encoding="utf-8")
    (packages / "torchvision_operators.pth").write_text("import torchvision_operators\n", encoding="utf-8")


def main() -> None:
    """Look at each and mend it."""
    broken = [name for name in ("torchaudio", "torchcodec") if not importable(name)]
    if broken:
        subprocess.run([sys.executable, "-m", "pip", "uninstall", "--quiet", "--yes", *broken], check=True)
    if not importable("torchvision"):
        declare_operators()
        if not importable("torchvision"):
            sys.exit("torchvision cannot be imported in this environment")


if __name__ == "__main__":
    main()
