"""Options and checks that several commands have."""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TypeVar

from trio_ray.config import JobConfig, ModelConfig, S3Config, Section, load_section, parse_section
from trio_ray.errors import ConfigError

S = TypeVar("S", bound=Section)


def whole(least: int) -> Callable[[str], int]:
    """The type of an option that takes a whole number of at least `least`."""

    def parse(text: str) -> int:
        number = int(text)
        if number < least:
            raise argparse.ArgumentTypeError(f"{text} must be at least {least}")
        return number

    parse.__name__ = "whole number"  # argparse names it where the text is no number
    return parse


def number(
    *, above: float = -math.inf, least: float = -math.inf, below: float = math.inf, most: float = math.inf
) -> Callable[[str], float]:
    """The type of an option that takes a finite number within bounds."""

    def parse(text: str) -> float:
        value = float(text)
        if not (math.isfinite(value) and above < value < below and least <= value <= most):
            limits = {"above": above, "at least": least, "below": below, "at most": most}
            bounds = [f"{word} {limit:g}" for word, limit in limits.items() if math.isfinite(limit)]
            raise argparse.ArgumentTypeError(f"{text} must be {' and '.join(bounds)}")
        return value

    parse.__name__ = "number"
    return parse


SHARE = number(above=0, most=1)
"""The type of an option that takes a share of something."""


def add_settings_options(parser: argparse.ArgumentParser, example: str) -> None:
    """`--config` and `--set`, which give the settings of a job; `example` is one of them."""
    parser.add_argument("--config", metavar="FILE", help="YAML file of settings; the options override it")
    parser.add_argument(
        "--set", metavar="KEY=VALUE", action="append", default=[],
        help=f"any setting by its dotted name, e.g. {example} (repeatable; jobs/CONFIGURATION.md lists them all)",
    )  # fmt: skip


def settings(kind: type[S], arguments: argparse.Namespace, options: Mapping[str, str] | Sequence[str]) -> S:
    """The settings that the command line gives. Raises `ConfigError` that names the setting at fault.

    Args:
        kind: what is configured.
        arguments: the command line.
        options: those that are settings, or a mapping from such options to the dotted names of the settings.
    """
    names = options if isinstance(options, Mapping) else dict(zip(options, options, strict=True))
    given = {name: getattr(arguments, option, None) for option, name in names.items()}
    values = {name: value for name, value in given.items() if value is not None}
    return load_section(kind, arguments.config, arguments.set, values)


def add_job_options(parser: argparse.ArgumentParser, *, output: bool = True) -> None:
    """Options that give the settings of a precompute job, with those that are changed most often by a name of their
    own.
    """
    parser.add_argument(
        "--input", metavar="URI", nargs="+", help="shards: paths or s3:// URIs, with globs and {a..b} ranges"
    )
    if output:
        parser.add_argument("--output", metavar="URI", help="the cache: a folder or s3://bucket/prefix")
    parser.add_argument("--model", metavar="NAME", help="'bundled', a folder, or a Hugging Face hub name")
    parser.add_argument(
        "--retention", type=float, metavar="R", help="image tokens kept, mean over all layers, 0 < R <= 1"
    )
    add_settings_options(parser, "pipeline.token_budget=32768")


def job_config(arguments: argparse.Namespace) -> JobConfig:
    """The settings that these options give. Raises `ConfigError` that names the setting at fault."""
    options = {
        "input": "input",
        "output": "output",
        "model": "model.name",
        "retention": "method.retention",
        "redo_damaged": "pipeline.redo_damaged",
        "limit": "pipeline.limit",
    }
    return settings(JobConfig, arguments, options)


def add_log_file_option(parser: argparse.ArgumentParser) -> None:
    """`--log-file` of jobs."""
    parser.add_argument(
        "--log-file", metavar="FILE", help="append what is shown, warnings and the end to this file, with times"
    )


def check_log_file(arguments: argparse.Namespace) -> None:
    """Raise `ConfigError` if there cannot be such a file."""
    if arguments.log_file:
        check_file("--log-file", arguments.log_file)


def with_pinned_model(config: JobConfig) -> JobConfig:
    """The same job, whose hub model is named by its commit: a branch may move while the command runs.

    Raises:
        ConfigError: there is no such model.
    """
    from trio_ray.model.loading import pinned  # imports torch, which takes seconds

    return config.model_copy(update={"model": pinned(config.model)})


def add_model_options(parser: argparse.ArgumentParser) -> None:
    """`--model` and `--revision` of commands that read a cache, which knows the model that made it."""
    parser.add_argument(
        "--model", metavar="NAME", help="the model that made it (default: the one that the cache names)"
    )
    parser.add_argument("--revision", metavar="REV", help="its branch, tag or commit (default: the cache's commit)")


def model_config(arguments: argparse.Namespace) -> ModelConfig:
    """The model that these options name, if they do. Raises `ConfigError` that names the setting at fault."""
    given = {"name": arguments.model, "revision": arguments.revision}
    return parse_section(ModelConfig, {name: value for name, value in given.items() if value is not None})


def add_input_options(parser: argparse.ArgumentParser) -> None:
    """`--image-root` and `--allow-any-path` of commands that read a cache's input again."""
    parser.add_argument(
        "--image-root", metavar="DIR", help="folder of the images that the input's records name (source.image_root)"
    )
    parser.add_argument(
        "--allow-any-path", action="store_true", help="records may name images elsewhere (source.allow_any_path)"
    )


def add_s3_options(parser: argparse.ArgumentParser) -> None:
    """`--endpoint-url` and `--profile`; credentials come by the usual AWS ways."""
    parser.add_argument("--endpoint-url", metavar="URL", help="S3 endpoint that is not AWS (also AWS_ENDPOINT_URL)")
    parser.add_argument("--profile", metavar="NAME", help="profile of the AWS configuration files")


def s3_config(arguments: argparse.Namespace) -> S3Config:
    """The S3 settings of these options."""
    return S3Config(endpoint_url=arguments.endpoint_url, profile=arguments.profile)


def key_and_shard(argument: str, shards: set[str]) -> tuple[str, str | None]:
    """Split `shard:key`; a key may hold colons itself, a shard's name cannot."""
    shard, _, key = argument.partition(":")
    return (key, shard) if shard in shards else (argument, None)


def make_folder(option: str, path: str) -> Path:
    """The folder that an option names, made if it is not there.

    Raises:
        ConfigError: it cannot be; names the option.
    """
    folder = Path(path)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError(option, f"{path} cannot be made a folder: {error.strerror}; give another") from None
    return folder


def check_file(option: str, path: str) -> None:
    """Raise `ConfigError` that names the option if there cannot be such a file."""
    folder = Path(path).resolve().parent
    if not folder.is_dir():
        raise ConfigError(option, f"there is no folder {folder}; make it, or give another file")
    if Path(path).is_dir():
        raise ConfigError(option, f"{path} is a folder; give a file")


def write_file(option: str, path: str, content: bytes) -> None:
    """Write the file that an option names.

    Raises:
        ConfigError: it cannot be written; names the option.
    """
    try:
        Path(path).write_bytes(content)
    except OSError as error:
        raise ConfigError(option, f"{path} cannot be written: {error.strerror}") from None


def print_written(files: Sequence[Path]) -> None:
    """Say which files a study has left."""
    print(f"written: {files[0].parent}/{', '.join(file.name for file in files)}")
