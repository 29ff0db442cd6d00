"""The laptop's cluster: the file against the Compose Specification, and what it promises about keys and ports."""

from __future__ import annotations

import re
import shlex

import pytest
import yaml
from compose_spec import PyCompose

from tests.infra.files import INFRA, REPOSITORY, load_yaml

TEXT = (INFRA / "compose" / "compose.yaml").read_text()
SERVICES = load_yaml("compose/compose.yaml")["services"]


def check(text: str) -> None:
    """Hold a file against the specification, its merge keys resolved as Compose does; unknown fields fail."""
    compose = PyCompose.from_yaml(yaml.safe_dump(yaml.safe_load(text)))
    compose.validate()


def test_the_file_follows_the_specification() -> None:
    check(TEXT)


@pytest.mark.parametrize(
    ("right", "wrong"),
    [
        ("healthcheck:", "healthchek:"),
        ("service_healthy", "service_health"),
        ("interval: 2s", "interval: 2q"),
        ("shm_size: 512mb", "shm_sizes: 512mb"),
    ],
)
def test_a_mistake_is_found(right: str, wrong: str) -> None:
    assert right in TEXT
    with pytest.raises(ValueError, match=wrong.split(":")[0]):
        check(TEXT.replace(right, wrong))


def test_keys_come_from_the_environment_and_have_no_defaults() -> None:
    secret = [
        value
        for service in SERVICES.values()
        for name, value in service.get("environment", {}).items()
        if re.search("KEY|SECRET|TOKEN", name)
    ]
    assert len(secret) == 8
    assert all(re.fullmatch(r"\$\{(TRIO_RAY_S3_KEY|TRIO_RAY_S3_SECRET|RAY_AUTH_TOKEN):\?.*\}", v) for v in secret)


def test_ports_are_open_to_this_machine_alone() -> None:
    ports = [port for service in SERVICES.values() for port in service.get("ports", ())]
    assert ports
    assert all(port.startswith("127.0.0.1:") for port in ports)


def test_both_nodes_run_one_image_that_is_built_here() -> None:
    assert SERVICES["head"]["image"] == SERVICES["worker"]["image"] == SERVICES["corpus"]["image"]
    build = SERVICES["head"]["build"]
    context = (INFRA / "compose" / build["context"]).resolve()
    assert context == REPOSITORY
    assert (context / build["dockerfile"]).is_file()
    assert f"ARG {next(iter(build['args']))}\n" in (context / build["dockerfile"]).read_text()


def test_the_worker_joins_the_head_and_the_bucket_of_the_example_is_made() -> None:
    head, worker = shlex.split(SERVICES["head"]["command"]), shlex.split(SERVICES["worker"]["command"])
    assert {"--head", "--block", "--port=6379"} <= set(head)
    assert {"--address=head:6379", "--block"} <= set(worker)
    bucket = SERVICES["s3"]["environment"]["S3_BUCKET"]
    assert f"--output s3://{bucket}/" in TEXT
    assert SERVICES["head"]["environment"]["AWS_ENDPOINT_URL"] == "http://s3:8333"
