"""The manifests: rendered by kustomize, valid by Kubernetes' own schemas, and of one mind with the server."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator, Mapping
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import yaml
from pydantic import ByteSize, TypeAdapter

from headgate_server.app import CLEANUP_SECONDS, LIVENESS, READINESS
from headgate_server.config import Config, load
from headgate_server.config.tree import Server
from headgate_server.telemetry import names
from tests.tools import ROOT, tool

KUBERNETES = ROOT / "deploy" / "kubernetes"
OVERLAYS = ("base", *(f"overlays/{folder.name}" for folder in sorted((KUBERNETES / "overlays").iterdir())))
SECRETS = {"PEPPER": "x" * 32, "DATABASE_URL": "postgresql://db/headgate", "REDIS_URL": "redis://redis:6379/0"}
Resource = Mapping[str, Any]


@cache
def rendered(overlay: str) -> str:
    """What kustomize makes of it."""
    command = [tool("kustomize"), "build", str(KUBERNETES / overlay)]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout


def resources(overlay: str, kind: str) -> Iterator[Resource]:
    """Those of one kind."""
    return (found for found in yaml.safe_load_all(rendered(overlay)) if found["kind"] == kind)


def one(overlay: str, kind: str) -> Resource:
    """The only one of its kind."""
    (found,) = resources(overlay, kind)
    return found


def pod(overlay: str) -> Resource:
    """The specification of its pods."""
    return dict(one(overlay, "Deployment")["spec"]["template"]["spec"])


def container(overlay: str) -> Resource:
    """The server's."""
    (only,) = pod(overlay)["containers"]
    return dict(only)


def configuration(overlay: str, folder: Path) -> Config:
    """What the server makes of the ConfigMap; without its TLS section, because the files of a Secret are not here."""
    lines = one(overlay, "ConfigMap")["data"]["headgate.yaml"].splitlines()
    file = folder / "headgate.yaml"
    file.write_text("\n".join(line for line in lines if not line.strip().startswith("tls:")))
    return load(file, SECRETS)


def port(address: str) -> int:
    """Of HOST:PORT."""
    return int(address.rpartition(":")[2])


def validated(text: str, folder: Path) -> subprocess.CompletedProcess[str]:
    """What kubectl-validate says of it, with the schemas of Kubernetes and of the Prometheus operator."""
    file = folder / "rendered.yaml"
    file.write_text(text)
    program = tool("kubectl-validate")
    command = [program, "--local-crds", str(Path(program).parent / "crds"), str(file)]
    return subprocess.run(command, check=False, capture_output=True, text=True)


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_what_kustomize_renders_is_valid(overlay: str, tmp_path: Path) -> None:
    """By the schemas of all that it names."""
    checked = validated(rendered(overlay), tmp_path)
    assert checked.returncode == 0, checked.stdout + checked.stderr


@pytest.mark.parametrize("wrong", ["interval: soon", "intervall: 15s"])
def test_the_validation_finds_what_is_wrong(wrong: str, tmp_path: Path) -> None:
    """A value and a key that the schema does not know, in one of several resources."""
    text = rendered("overlays/monitoring").replace("interval: 15s", wrong)
    assert validated(text, tmp_path).returncode != 0


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_ports_are_those_that_the_server_listens_on(overlay: str, tmp_path: Path) -> None:
    """Of the container, the probes, the services and the network policy."""
    config = configuration(overlay, tmp_path)
    ports = {found["name"]: found["containerPort"] for found in container(overlay)["ports"]}
    listening = {"grpc": config.server.listen, "admin": config.admin.listen, "probes": config.server.probe_listen}
    assert ports == {name: port(address) for name, address in listening.items() if address}
    probed = ports.get("probes", ports["grpc"])
    for probe in ("startupProbe", "readinessProbe", "livenessProbe"):
        assert container(overlay)[probe]["grpc"]["port"] == probed
    for service in resources(overlay, "Service"):
        for found in service["spec"]["ports"]:
            assert ports[found["targetPort"]] == found["port"]
    let_in = [found["port"] for rule in one(overlay, "NetworkPolicy")["spec"]["ingress"] for found in rule["ports"]]
    assert let_in == ["grpc", "admin"]


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_probes_ask_for_names_that_health_knows(overlay: str) -> None:
    """Readiness turns on a drain; a name that did would have a draining pod killed by its liveness probe."""
    probes = {name: container(overlay)[name]["grpc"]["service"] for name in ("readinessProbe", "livenessProbe")}
    assert probes["readinessProbe"] in READINESS
    assert container(overlay)["startupProbe"]["grpc"]["service"] == probes["livenessProbe"] == LIVENESS


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_the_grace_period_is_longer_than_the_drain(overlay: str, tmp_path: Path) -> None:
    """With preStop, delay, grace, and the time that cleaning up takes at most; delay and grace are the defaults."""
    server = configuration(overlay, tmp_path).server
    assert (server.drain_delay, server.drain_grace) == (Server().drain_delay, Server().drain_grace)
    pre_stop = container(overlay)["lifecycle"]["preStop"]["sleep"]["seconds"]
    drain = pre_stop + server.drain_delay + server.drain_grace + 8 * CLEANUP_SECONDS
    assert pod(overlay)["terminationGracePeriodSeconds"] >= drain
    readiness = container(overlay)["readinessProbe"]
    noticed = readiness["periodSeconds"] * readiness["failureThreshold"]
    assert pre_stop + server.drain_delay >= noticed, "a probe would not see the drain before the listener closes"


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_the_server_sheds_load_before_its_container_is_killed(overlay: str, tmp_path: Path) -> None:
    """Its own limit of memory, the default, is below the container's by a quarter; streams outlive connections."""
    config = configuration(overlay, tmp_path)
    limit = TypeAdapter(ByteSize).validate_python(container(overlay)["resources"]["limits"]["memory"] + "B")
    assert config.server.max_memory_bytes == Server().max_memory_bytes
    assert limit >= 1.25 * config.server.max_memory_bytes
    assert "cpu" not in container(overlay)["resources"]["limits"], "a throttled event loop delays every call"
    assert config.server.max_connection_age
    assert config.server.max_connection_age_grace >= config.routing.default_deadline


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_everything_selects_the_same_pods(overlay: str) -> None:
    """And the network policy lets in callers by their own label, not by the server's."""
    labels = one(overlay, "Deployment")["spec"]["template"]["metadata"]["labels"]
    selectors = [
        one(overlay, kind)["spec"]["selector"]["matchLabels"] for kind in ("Deployment", "PodDisruptionBudget")
    ]
    selectors += [service["spec"]["selector"] for service in resources(overlay, "Service")]
    policy = one(overlay, "NetworkPolicy")["spec"]
    selectors.append(policy["podSelector"]["matchLabels"])
    selectors += [spread["labelSelector"]["matchLabels"] for spread in pod(overlay)["topologySpreadConstraints"]]
    assert selectors == [labels] * len(selectors)
    assert policy["ingress"][0]["from"][0]["podSelector"] == {"matchLabels": {"headgate.dev/client": "true"}}


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_pods_run_without_privileges(overlay: str) -> None:
    """As the user of the image, on a root that cannot be written to."""
    assert pod(overlay)["securityContext"]["runAsNonRoot"] is True
    assert f"USER {pod(overlay)['securityContext']['runAsUser']}:" in (ROOT / "Dockerfile").read_text()
    own = container(overlay)["securityContext"]
    assert (own["readOnlyRootFilesystem"], own["allowPrivilegeEscalation"]) == (True, False)
    assert own["capabilities"] == {"drop": ["ALL"]}
    assert pod(overlay)["automountServiceAccountToken"] is False


def test_overlays_bring_what_they_are_for(tmp_path: Path) -> None:
    """Autoscaling owns the number of replicas; stores and TLS come by reference to Secrets."""
    assert "replicas" not in one("overlays/autoscale", "Deployment")["spec"]
    by_calls = one("overlays/monitoring", "HorizontalPodAutoscaler")["spec"]["metrics"][-1]
    assert by_calls["pods"]["metric"]["name"] == names.CALLS_IN_FLIGHT.name
    (endpoint,) = one("overlays/monitoring", "ServiceMonitor")["spec"]["endpoints"]
    served = [
        found["name"] for service in resources("overlays/monitoring", "Service") for found in service["spec"]["ports"]
    ]
    assert endpoint["port"] in served
    stores = configuration("overlays/redis-postgres", tmp_path)
    assert (stores.limits.store.type, stores.auth.store is not None) == ("redis", True)
    assert stores.ledger
    (spool,) = [found for found in container("overlays/redis-postgres")["volumeMounts"] if found["name"] == "spool"]
    assert (str(stores.ledger.spool.parent), "readOnly" in spool) == (spool["mountPath"], False)
    assert {"secretRef": {"name": "headgate-stores"}} in container("overlays/redis-postgres")["envFrom"]
    (mount,) = [found for found in container("overlays/tls")["volumeMounts"] if found["name"] == "tls"]
    text = one("overlays/tls", "ConfigMap")["data"]["headgate.yaml"]
    assert f"certificate_file: {mount['mountPath']}/tls.crt" in text
