"""What the command line does with errors that no command foresaw."""

from __future__ import annotations

import errno
import subprocess
import sys

import pytest

from trio_ray.cli import main
from trio_ray.commands import gc


@pytest.mark.parametrize(
    ("error", "sentence"),
    [
        (OSError(errno.ENOSPC, "No space left on device", "/runs/a.json"), "/runs/a.json: No space left on device"),
        (OSError(errno.ENOSPC, "No space left on device"), "No space left on device"),
        (OSError("cannot load\nthe library"), "OSError: cannot load the library"),
    ],
)
def test_the_machines_own_errors_are_one_sentence(
    error: OSError, sentence: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail(arguments: object) -> int:
        raise error

    monkeypatch.setattr(gc, "run", fail)
    assert main(["gc", "cache"]) == 1
    assert capsys.readouterr().err == f"trio-ray: {sentence}\n"


@pytest.mark.parametrize("lines", [1, 100_000], ids=["at the end", "on the way"])
def test_a_reader_that_goes_away_ends_it_quietly(lines: int) -> None:
    """As in `trio-ray inspect CACHE | head`."""
    program = (
        "import sys; from trio_ray.cli import main; from trio_ray.commands import gc\n"
        f"gc.run = lambda arguments: [print('x' * 80) for _ in range({lines})] and 0\n"
        "sys.stdin.read(); sys.exit(main(['gc', 'cache']))"
    )
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    with subprocess.Popen([sys.executable, "-c", program], **pipes) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        assert process.stderr is not None
        process.stdout.close()
        process.stdin.close()
        assert process.stderr.read() == b""
    assert process.returncode == 141
