"""What the command line does with errors that no command foresaw."""

from __future__ import annotations

import errno
import signal
import subprocess
import sys

import pytest

import trio_ray
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


@pytest.mark.parametrize(
    ("number", "code", "word", "with_ray"),
    [
        (signal.SIGINT, 130, "interrupted", False),
        (signal.SIGTERM, 143, "ended by SIGTERM", False),
        pytest.param(signal.SIGTERM, 143, "ended by SIGTERM", True, marks=pytest.mark.slow, id="in Ray's session"),
    ],
)
def test_a_signal_ends_a_command_with_a_sentence_and_what_is_open_is_closed(
    number: signal.Signals, code: int, word: str, with_ray: bool
) -> None:
    """Ray has a handler of its own for SIGTERM, which would end the process on the spot."""
    program = (
        "import signal, sys, time, contextlib; from trio_ray.cli import main; from trio_ray.commands import gc\n"
        "from trio_ray.cluster.session import ray_session\n"
        "signal.signal(signal.SIGINT, signal.default_int_handler)\n"  # a test run in the background ignores it
        "def run(arguments):\n"
        f"    with ray_session(1) if {with_ray} else contextlib.nullcontext():\n"
        "        try: print('running', flush=True); time.sleep(60)\n"
        "        finally: print('closed', flush=True)\n"
        "gc.run = run\n"
        "sys.exit(main(['gc', 'cache']))"
    )
    command = [sys.executable, "-c", program]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "running\n"
        process.send_signal(number)
        shown, said = process.communicate(timeout=60)
    assert shown == "closed\n"
    assert said.splitlines()[-1] == f"trio-ray: {word}; what is committed stays, the same command goes on from there"
    assert process.returncode == code


COMMANDS = [
    "calibrate", "demo", "distill", "estimate", "evaluate", "export", "gc", "generate", "inspect", "precompute",
    "report", "verify",
]  # fmt: skip
LAB = [
    "accuracy", "agreement", "codecs", "conformance", "fidelity", "job", "prefill", "report", "restore", "scale",
    "soak",
]  # fmt: skip


def test_help_names_every_command_and_imports_none() -> None:
    """`trio-ray --help` takes 0.3 s: it loads no library but Python's own."""
    program = (
        "import sys; from trio_ray.cli import main\n"
        "try: main(['--help'])\n"
        "except SystemExit: pass\n"
        "assert not {'torch', 'ray', 'boto3', 'transformers', 'pyarrow', 'pydantic'} & set(sys.modules)"
    )
    ended = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    for command in [*COMMANDS, "lab"]:
        assert f"\n    {command}" in ended.stdout


@pytest.mark.parametrize(
    "command", [["lab"], *([name] for name in COMMANDS), *(["lab", name] for name in LAB)], ids=str
)
def test_every_command_explains_itself(command: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main([*command, "--help"])
    assert ended.value.code == 0
    shown = capsys.readouterr().out
    assert f"trio-ray {' '.join(command)}" in shown
    assert "exit codes:" in shown
    if command == ["lab"]:
        assert all(f"\n    {name}" in shown for name in LAB)


@pytest.mark.parametrize(
    ("given", "sentence"),
    [
        ([], "the following arguments are required: COMMAND (see trio-ray --help)"),
        (["lab"], "the following arguments are required: COMMAND (see trio-ray lab --help)"),
        (["lab", "bench"], "COMMAND: invalid choice: 'bench'"),
        (["gc"], "the following arguments are required: CACHE (see trio-ray gc --help)"),
        (
            ["gc", "cache", "--older-than", "long"],
            "--older-than: invalid number value: 'long' (see trio-ray gc --help)",
        ),
        (["gc", "cache", "--older-than", "-1"], "--older-than: -1 must be at least 0 (see trio-ray gc --help)"),
    ],
    ids=str,
)
def test_wrong_usage_is_one_sentence(given: list[str], sentence: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(given) == 2
    shown = capsys.readouterr().err
    assert shown.startswith(f"trio-ray: {sentence}")
    assert len(shown.splitlines()) == 1


def test_the_version_is_shown(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["--version"])
    assert ended.value.code == 0
    assert capsys.readouterr().out == f"trio-ray {trio_ray.__version__}\n"


@pytest.mark.parametrize("shell", ["bash", "zsh"])
def test_completion_knows_the_options_of_all_commands(shell: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        main(["--print-completion", shell])
    assert caught.value.code == 0
    script = capsys.readouterr().out
    assert all(word in script for word in ("--redo-damaged", "--older-than", "inspect"))
