"""Options of every command that opens a cache."""

from __future__ import annotations

import argparse

from trio_ray.config import S3Config


def add_s3_options(parser: argparse.ArgumentParser) -> None:
    """`--endpoint-url` and `--profile`; credentials come by the usual AWS ways."""
    parser.add_argument("--endpoint-url", metavar="URL", help="S3 endpoint that is not AWS (also AWS_ENDPOINT_URL)")
    parser.add_argument("--profile", metavar="NAME", help="profile of the AWS configuration files")


def s3_config(arguments: argparse.Namespace) -> S3Config:
    """The S3 settings of these options."""
    return S3Config(endpoint_url=arguments.endpoint_url, profile=arguments.profile)
