"""The manifests: by Kubernetes's own schemas, built by kubectl, and right about each other."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import yaml

from pgvec_queue.worker.supervisor import LEAVE_PATIENCE
from tests.deploy.test_images import IMAGE, instructions

FOLDER = Path(__file__).parents[2] / "deploy" / "kubernetes"
FOLDERS = [FOLDER, FOLDER / "cuda"]
KUBECTL = shutil.which("kubectl")
VERSIONS = ["1.29", "1.37"]


@cache
def manifests() -> list[dict[str, Any]]:
    return [one for folder in FOLDERS for one in manifests_of(folder)]


def resources(folder: Path) -> list[str]:
    named: list[str] = yaml.safe_load((folder / "kustomization.yaml").read_text())["resources"]
    return named


def manifests_of(folder: Path) -> list[dict[str, Any]]:
    return [one for name in resources(folder) for one in yaml.safe_load_all((folder / name).read_text())]


def of_kind(*kinds: str) -> Iterator[dict[str, Any]]:
    return (one for one in manifests() if one["kind"] in kinds)


def pods() -> list[tuple[str, dict[str, Any]]]:
    return [(one["metadata"]["name"], one["spec"]["template"]) for one in of_kind("Deployment", "Job")]


def matches(selector: dict[str, Any], labels: dict[str, str]) -> bool:
    for one in selector.get("matchExpressions", []):
        assert one["operator"] == "In"
        if labels.get(one["key"]) not in one["values"]:
            return False
    wanted: dict[str, str] = selector.get("matchLabels", {})
    return wanted.items() <= labels.items()


@pytest.mark.parametrize("version", VERSIONS)
def test_each_manifest_is_valid(version: str) -> None:
    validate = pytest.importorskip("kubernetes_validate", reason="needs the package kubernetes-validate").validate
    for one in manifests():
        validate(one, version, strict=True)


def test_a_wrong_manifest_would_be_found() -> None:
    package = pytest.importorskip("kubernetes_validate", reason="needs the package kubernetes-validate")
    wrong = yaml.safe_load((FOLDER / "disruption.yaml").read_text())
    wrong["spec"]["maxUnavailible"] = wrong["spec"].pop("maxUnavailable")
    with pytest.raises(package.ValidationError):
        package.validate(wrong, VERSIONS[-1], strict=True)


@pytest.mark.skipif(KUBECTL is None, reason="needs kubectl (Debian: apt install kubernetes-client)")
@pytest.mark.parametrize("folder", FOLDERS, ids=lambda folder: folder.name)
def test_kubectl_builds_them_into_one_namespace(folder: Path) -> None:
    assert KUBECTL is not None
    ran = subprocess.run([KUBECTL, "kustomize", folder], capture_output=True, text=True, check=False)
    assert ran.returncode == 0, ran.stderr
    built = list(yaml.safe_load_all(ran.stdout))
    assert len(built) == len(manifests_of(folder))
    assert {one["metadata"].get("namespace") for one in built if one["kind"] != "Namespace"} == {"pgvec"}


def test_every_file_is_named_in_its_kustomization() -> None:
    for folder in FOLDERS:
        there = {path.name for path in folder.iterdir() if path.is_file()}
        assert there == {*resources(folder), "kustomization.yaml"}


def test_a_cluster_without_cards_is_asked_for_none() -> None:
    assert "nvidia.com/gpu" not in str([one for one in manifests_of(FOLDER) if one["kind"] == "Deployment"]).replace(
        "nvidia.com/gpu.present", ""
    )


@pytest.mark.parametrize(("name", "pod"), pods(), ids=[name for name, _ in pods()])
def test_a_pod_has_no_rights_that_it_does_not_need(name: str, pod: dict[str, Any]) -> None:
    spec = pod["spec"]
    assert spec["automountServiceAccountToken"] is False
    # A Service pgvec-gateway would set PGVEC_GATEWAY_PORT to a URL in every pod, and none would start.
    assert spec["enableServiceLinks"] is False
    assert spec["securityContext"]["runAsNonRoot"] is True
    assert spec["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
    user = next(rest for instruction, rest in instructions(IMAGE) if instruction == "USER")
    assert user == f"{spec['securityContext']['runAsUser']}:{spec['securityContext']['runAsGroup']}"
    for container in spec["containers"]:
        assert container["securityContext"] == {
            "allowPrivilegeEscalation": False,
            "readOnlyRootFilesystem": True,
            "capabilities": {"drop": ["ALL"]},
        }
        assert container["resources"]["limits"]["memory"]
        assert ":" in container["image"]
        # The first word of the arguments is the program, since the image's entry point is tini.
        assert container["args"][0] == "pgvec"
        mounted = {mount["name"] for mount in container["volumeMounts"]}
        assert mounted == {volume["name"] for volume in spec["volumes"]}


def test_the_address_of_the_database_is_a_secret_alone() -> None:
    (settings,) = of_kind("ConfigMap")
    path = settings["data"]["PGVEC_DSN_FILE"]
    assert not list(of_kind("Secret"))
    for name, pod in pods():
        (container,) = pod["spec"]["containers"]
        assert container["envFrom"] == [{"configMapRef": {"name": settings["metadata"]["name"]}}], name
        mounts = {mount["name"]: mount["mountPath"] for mount in container["volumeMounts"]}
        (secret,) = [volume for volume in pod["spec"]["volumes"] if "secret" in volume]
        assert path == f"{mounts[secret['name']]}/dsn"


def test_a_deployment_finds_its_pods_and_a_service_its_port() -> None:
    for one in of_kind("Deployment"):
        assert matches(one["spec"]["selector"], one["spec"]["template"]["metadata"]["labels"])
    for one in of_kind("Service"):
        found = [pod for _, pod in pods() if one["spec"]["selector"].items() <= pod["metadata"]["labels"].items()]
        (container,) = [container for pod in found for container in pod["spec"]["containers"]]
        assert {port["targetPort"] for port in one["spec"]["ports"]} <= {port["name"] for port in container["ports"]}
    for _, pod in pods():
        (container,) = pod["spec"]["containers"]
        ports = {port["name"] for port in container.get("ports", [])}
        for probe in ("startupProbe", "readinessProbe", "livenessProbe"):
            if probe in container:
                assert container[probe]["httpGet"]["port"] in ports


@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_a_worker_of_each_device_leaves_in_order(device: str) -> None:
    (worker,) = [one for one in of_kind("Deployment") if one["metadata"]["name"] == f"pgvec-worker-{device}"]
    spec = worker["spec"]["template"]["spec"]
    (container,) = spec["containers"]
    assert spec["terminationGracePeriodSeconds"] > LEAVE_PATIENCE
    # The kubelet's SIGTERM is the clean leave; a hook that sent one would make that the second, which ends at once.
    assert "lifecycle" not in container
    assert "livenessProbe" not in container
    # One budget for each Deployment: pods that cannot be placed must not use up that of the others.
    labels = worker["spec"]["template"]["metadata"]["labels"]
    (budget,) = [one for one in of_kind("PodDisruptionBudget") if matches(one["spec"]["selector"], labels)]
    assert budget["spec"]["selector"]["matchLabels"] == worker["spec"]["selector"]["matchLabels"]
    cards = container["resources"]["limits"].get("nvidia.com/gpu")
    assert cards == (1 if device == "cuda" else None)


def test_a_pod_that_is_not_ready_holds_no_node_up() -> None:
    for one in of_kind("PodDisruptionBudget"):
        assert one["spec"]["unhealthyPodEvictionPolicy"] == "AlwaysAllow", one["metadata"]["name"]


def test_only_what_is_named_may_come_and_go() -> None:
    policies = {one["metadata"]["name"]: one["spec"] for one in of_kind("NetworkPolicy")}
    assert policies["pgvec-nothing"] == {"podSelector": {}, "policyTypes": ["Ingress", "Egress"]}
    for _, pod in pods():
        labels = pod["metadata"]["labels"]
        ports = {
            port["port"]
            for spec in policies.values()
            if matches(spec["podSelector"], labels)
            for rule in spec.get("egress", [])
            for port in rule["ports"]
        }
        loads_models = labels["app.kubernetes.io/component"] in ("worker", "gateway")
        assert ports == {53, 5432, 6432, *([443] if loads_models else [])}
