"""The manifests against the CRDs' fields, Kubernetes' schema, and the job that they run."""

from __future__ import annotations

import copy
import json
import shlex
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jsonschema
import kubernetes_validate
import pytest
from packaging.requirements import Requirement

from tests.infra.files import INFRA, REPOSITORY, load_yaml
from trio_ray.config import load_config

FIELDS = json.loads((Path(__file__).parent / "kuberay-fields.json").read_text())
KUBERNETES = "1.32"
RESOURCES = ["rayjob.yaml", "raycluster.yaml", "podmonitor.yaml"]
JOB, CLUSTER = load_yaml("kuberay/rayjob.yaml"), load_yaml("kuberay/raycluster.yaml")
HEAD = CLUSTER["spec"]["headGroupSpec"]
WORKERS = {group["groupName"]: group for group in CLUSTER["spec"]["workerGroupSpecs"]}
GROUPS = {"head": HEAD, **WORKERS}


def check(resource: dict[str, Any]) -> None:
    """Hold a resource against the CRD's fields."""
    schema = {**FIELDS, "$ref": f"#/$defs/{resource['kind']}"}
    jsonschema.Draft202012Validator(schema).validate(resource)


def check_kubernetes(resource: dict[str, Any]) -> None:
    """Hold a resource against Kubernetes' own schema; unknown fields fail."""
    kubernetes_validate.validate(resource, KUBERNETES, strict=True)


def pod_template(group: dict[str, Any]) -> dict[str, Any]:
    """A group's template as a resource of its own."""
    metadata = {"name": "template"}
    return {"apiVersion": "v1", "kind": "PodTemplate", "metadata": metadata, "template": group["template"]}


def container(group: dict[str, Any]) -> dict[str, Any]:
    (only,) = group["template"]["spec"]["containers"]
    return dict(only)


def paths(tree: Any, at: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """The path of every mapping in a tree."""
    if isinstance(tree, dict):
        yield at
        for key, value in tree.items():
            yield from paths(value, (*at, key))
    elif isinstance(tree, list):
        for index, value in enumerate(tree):
            yield from paths(value, (*at, index))


@pytest.mark.parametrize("name", RESOURCES)
def test_a_resource_has_the_fields_of_its_crd(name: str) -> None:
    check(load_yaml(f"kuberay/{name}"))


@pytest.mark.parametrize("path", [("spec",), ("spec", "headGroupSpec"), ("spec", "workerGroupSpecs", 0)])
def test_a_misspelt_field_of_a_crd_is_found(path: tuple[Any, ...]) -> None:
    broken = copy.deepcopy(CLUSTER)
    target = broken
    for step in path:
        target = target[step]
    target["enableAutoscaling"] = True
    with pytest.raises(jsonschema.ValidationError, match="enableAutoscaling"):
        check(broken)


@pytest.mark.parametrize("name", GROUPS, ids="{}_group".format)
def test_a_pod_template_is_valid_kubernetes(name: str) -> None:
    check_kubernetes(pod_template(GROUPS[name]))


def test_a_misspelt_field_of_a_pod_template_is_found() -> None:
    for path in paths(WORKERS["gpu"]["template"]["spec"]):
        if path and path[-1] in ("nodeSelector", "requests", "limits"):
            continue  # free names
        broken = copy.deepcopy(WORKERS["gpu"])
        target = broken["template"]["spec"]
        for step in path:
            target = target[step]
        target["terminationGracePeriod"] = 1
        with pytest.raises(kubernetes_validate.ValidationError):
            check_kubernetes(pod_template(broken))


def test_the_service_account_is_valid_and_is_the_one_of_every_pod() -> None:
    account = load_yaml("kuberay/serviceaccount.yaml")
    check_kubernetes(account)
    assert account["metadata"]["annotations"]["eks.amazonaws.com/role-arn"].endswith(":role/trio-ray")
    names = {group["template"]["spec"]["serviceAccountName"] for group in GROUPS.values()}
    assert names == {account["metadata"]["name"]}


def test_a_job_runs_on_the_cluster_that_is_described_apart() -> None:
    assert JOB["spec"]["rayClusterSpec"] == CLUSTER["spec"]


def test_the_job_runs_a_script_of_the_image_with_the_file_of_its_config_map() -> None:
    python, script, option, config = shlex.split(JOB["spec"]["entrypoint"])
    assert (python, option) == ("python", "--config")
    workdir = "/home/ray/trio-ray"
    assert f"WORKDIR {workdir}\n" in (INFRA / "docker" / "Dockerfile").read_text()
    assert (REPOSITORY / script.removeprefix(f"{workdir}/")).is_file()
    (volume,) = [v for v in HEAD["template"]["spec"]["volumes"] if "configMap" in v]
    (mount,) = [m for m in container(HEAD)["volumeMounts"] if m["name"] == volume["name"]]
    header = (INFRA / "kuberay" / "rayjob.yaml").read_text().split("\napiVersion", 1)[0]
    file = config.removeprefix(mount["mountPath"] + "/")
    command = f"kubectl create configmap {volume['configMap']['name']} --from-file={file}=jobs/precompute.yaml"
    assert command in header


def test_a_resumed_job_ends_by_itself_and_leaves_no_machines() -> None:
    spec = JOB["spec"]
    assert spec["shutdownAfterJobFinishes"]
    assert spec["ttlSecondsAfterFinished"] > 0
    assert spec["backoffLimit"] > 0
    assert all(group["minReplicas"] == 0 for group in WORKERS.values())


def test_the_replicas_of_the_configured_job_fit_the_gpu_group() -> None:
    replicas = load_config(REPOSITORY / "jobs" / "precompute.yaml").replicas
    resources = container(WORKERS["gpu"])["resources"]
    assert resources["requests"] == resources["limits"]  # Ray takes the limits for what the node has
    # A cluster that has scaled to nothing shows no GPU, so the job must ask for one by name.
    assert replicas.gpus == int(resources["limits"]["nvidia.com/gpu"]) == 1
    assert replicas.cpus <= int(resources["limits"]["cpu"])
    assert WORKERS["gpu"]["maxReplicas"] >= replicas.max
    assert any(
        toleration["key"] == "nvidia.com/gpu" for toleration in WORKERS["gpu"]["template"]["spec"]["tolerations"]
    )


@pytest.mark.parametrize("name", WORKERS, ids="{}_group".format)
def test_a_spot_worker_drains_before_it_is_killed(name: str) -> None:
    spec = WORKERS[name]["template"]["spec"]
    drain = {entry["name"]: entry["value"] for entry in container(WORKERS[name])["env"]}[
        "RAY_GRACEFUL_SHUTDOWN_DRAIN_TIMEOUT_S"
    ]
    assert spec["nodeSelector"]["karpenter.sh/capacity-type"] == "spot"
    assert float(drain) + 10 <= spec["terminationGracePeriodSeconds"] <= 120  # what AWS gives


@pytest.mark.parametrize("name", GROUPS, ids="{}_group".format)
def test_a_pod_is_not_root_and_offers_metrics_where_prometheus_looks(name: str) -> None:
    security = GROUPS[name]["template"]["spec"]["securityContext"]
    assert (security["runAsNonRoot"], security["runAsUser"]) == (True, 1000)
    assert container(GROUPS[name])["securityContext"]["allowPrivilegeEscalation"] is False
    (endpoint,) = load_yaml("kuberay/podmonitor.yaml")["spec"]["podMetricsEndpoints"]
    assert endpoint["port"] in {port["name"] for port in container(GROUPS[name])["ports"]}


def test_the_ray_version_is_the_images_and_one_that_the_package_allows() -> None:
    version = CLUSTER["spec"]["rayVersion"]
    assert f"\nARG RAY_VERSION={version}\n" in (INFRA / "docker" / "Dockerfile").read_text()
    project = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["project"]
    (wanted,) = [Requirement(text) for text in project["dependencies"] if text.startswith("ray[")]
    assert version in wanted.specifier
