"""The launcher's file against Ray's own schema, and the policies against what the code calls."""

from __future__ import annotations

import ast
import copy
import json
import shlex
from typing import Any

import botocore.session
import pytest
from botocore.validate import ParamValidator
from jsonschema import ValidationError
from ray.autoscaler._private.util import prepare_config, validate_config

from tests.infra.files import INFRA, REPOSITORY, load_yaml
from trio_ray.config import load_config

CLUSTER = load_yaml("aws/cluster.yaml")
NODES = CLUSTER["available_node_types"]

ACTIONS = {
    "get_object": "s3:GetObject",
    "head_object": "s3:GetObject",
    "put_object": "s3:PutObject",
    "create_multipart_upload": "s3:PutObject",
    "upload_part": "s3:PutObject",
    "complete_multipart_upload": "s3:PutObject",
    "abort_multipart_upload": "s3:AbortMultipartUpload",
    "delete_object": "s3:DeleteObject",
    "delete_objects": "s3:DeleteObject",
    "list_objects_v2": "s3:ListBucket",
    "list_multipart_uploads": "s3:ListBucketMultipartUploads",
}
"""boto3 operation -> the IAM action it needs (AWS Service Authorization Reference, Amazon S3)."""


def policy(name: str) -> dict[str, dict[str, Any]]:
    """A policy's statements by their Sid, actions as a list."""
    document = json.loads((INFRA / "aws" / name).read_text())
    assert document["Version"] == "2012-10-17"
    found = {}
    for statement in document["Statement"]:
        assert statement["Effect"] == "Allow"
        actions = statement["Action"]
        found[statement["Sid"]] = {**statement, "Action": [actions] if isinstance(actions, str) else actions}
    assert len(found) == len(document["Statement"])
    return found


def called_operations() -> set[str]:
    """S3 operations of jobs: methods called on a client, and names given to `_pages`. Those of `lab` do not count."""
    operations = set()
    package = REPOSITORY / "trio_ray"
    for path in set(package.rglob("*.py")) - set((package / "lab").rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if not isinstance(node, ast.Call) or not isinstance(node.func, ast.Attribute):
                continue
            if ast.unparse(node.func.value).endswith("client") and node.func.attr != "get_paginator":
                operations.add(node.func.attr)
            if node.func.attr == "_pages" and isinstance(node.args[0], ast.Constant):
                operations.add(str(node.args[0].value))
    return operations


def test_the_file_is_what_the_launcher_takes() -> None:
    complete = prepare_config(copy.deepcopy(CLUSTER))
    validate_config(complete)
    assert complete["setup_commands"] == complete["head_setup_commands"] == []  # nothing but the image
    assert complete["head_start_ray_commands"] == CLUSTER["head_start_ray_commands"]


@pytest.mark.parametrize("section", [(), ("docker",), ("auth",)])
def test_a_misspelt_field_is_found(section: tuple[str, ...]) -> None:
    broken = copy.deepcopy(CLUSTER)
    target = broken
    for step in section:
        target = target[step]
    target["max_worker"] = 3
    with pytest.raises(ValidationError, match="max_worker"):
        validate_config(prepare_config(broken))


def test_workers_are_spot_machines_with_the_role_of_the_policy_and_the_head_is_not() -> None:
    gpu, head = NODES["gpu"], NODES[CLUSTER["head_node_type"]]
    assert gpu["node_config"]["InstanceMarketOptions"] == {"MarketType": "spot"}
    assert "InstanceMarketOptions" not in head["node_config"]
    assert head["resources"] == {"CPU": 0}
    replicas = load_config(REPOSITORY / "jobs" / "precompute.yaml").replicas
    assert gpu["min_workers"] == 0
    assert gpu["max_workers"] == CLUSTER["max_workers"] >= replicas.max
    for node in NODES.values():
        assert node["node_config"]["IamInstanceProfile"]["Arn"].startswith("arn:aws:iam::111122223333:instance-profile")
        assert node["node_config"]["MetadataOptions"]["HttpTokens"] == "required"


def test_every_node_holds_the_token_and_serves_metrics() -> None:
    assert "--env RAY_AUTH_MODE=token" in CLUSTER["docker"]["run_options"]
    assert CLUSTER["file_mounts"] == {"/home/ray/.ray/auth_token": "~/.ray/auth_token"}
    for commands in (CLUSTER["head_start_ray_commands"], CLUSTER["worker_start_ray_commands"]):
        assert "--metrics-export-port=8080" in shlex.split(commands[-1])


def test_the_policy_allows_what_the_code_calls_and_nothing_else() -> None:
    called = called_operations()
    assert {"get_object", "put_object", "complete_multipart_upload", "list_multipart_uploads"} <= called
    assert called <= set(ACTIONS), "name the IAM action of the new operation here, and allow it in the policy"
    allowed = {action for statement in policy("iam-policy.json").values() for action in statement["Action"]}
    assert allowed == {ACTIONS[operation] for operation in called}


def test_unfinished_uploads_are_aborted_and_nothing_else_expires() -> None:
    """S3 itself says whether it knows such a rule: botocore has the shape of the request."""
    rules = json.loads((INFRA / "aws" / "lifecycle.json").read_text())
    model = botocore.session.get_session().get_service_model("s3")
    shape = model.operation_model("PutBucketLifecycleConfiguration").input_shape.members["LifecycleConfiguration"]
    assert not ParamValidator().validate(rules, shape).has_errors()
    (rule,) = rules["Rules"]
    assert set(rule) == {"ID", "Status", "Filter", "AbortIncompleteMultipartUpload"}
    assert rule["AbortIncompleteMultipartUpload"]["DaysAfterInitiation"] > 1, "a running attempt keeps its uploads"


def test_the_input_can_only_be_read_and_only_below_its_prefix() -> None:
    statements = policy("iam-policy.json")
    on_input = [s for s in statements.values() if "INPUT-BUCKET" in s["Resource"]]
    assert {action for s in on_input for action in s["Action"]} == {"s3:GetObject", "s3:ListBucket"}
    for statement in statements.values():
        on_objects = any("Object" in action or "Abort" in action for action in statement["Action"])
        assert statement["Resource"].endswith("-PREFIX/*") == on_objects


def test_a_missing_object_is_not_taken_for_a_forbidden_one() -> None:
    # S3 answers HEAD and GET of a missing key with 404 only to those who may list the bucket, and neither carries an
    # s3:prefix. An image that is missing costs its sample; one that is forbidden stops the work.
    statements = policy("iam-policy.json")
    for side in ("Input", "Output"):
        condition = statements[f"List{side}AndTellMissingFromForbidden"]["Condition"]
        assert condition == {"StringLikeIfExists": {"s3:prefix": f"{side.upper()}-PREFIX/*"}}


def test_the_head_may_end_only_machines_of_its_own_cluster() -> None:
    statements = policy("iam-head-policy.json")
    wide = [s["Sid"] for s in statements.values() if s["Resource"] == "*" and "Condition" not in s]
    assert wide == ["SeeMachines"]
    assert all(action.startswith("ec2:Describe") for action in statements["SeeMachines"]["Action"])
    tag = statements["EndOwnMachines"]["Condition"]["StringEquals"]["aws:ResourceTag/ray-cluster-name"]
    assert tag == CLUSTER["cluster_name"]
