"""The files for deployment are what systemd, Kubernetes, Prometheus and Grafana take, and what they name is there."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import kubernetes_validate
import promql_parser
import pytest
import yaml
from prometheus_client import generate_latest
from prometheus_client.parser import text_string_to_metric_families

from converge.env import SYSTEM
from converge.errors import ChannelError
from converge.net.throttle import snake
from converge.operations.run import BEYOND_SEC
from converge.runtime.agents.ailments import Code
from converge.runtime.config.config import Config, load
from converge.runtime.health import Vitals
from converge.runtime.probes.metrics import Gauges, NodeCollector, registry_of
from converge.runtime.probes.tally import PoolTally, Tally

DOCS = Path(__file__).parents[2] / "docs"
FILES = DOCS / "how-to/deploy"
MANIFESTS = list(yaml.safe_load_all((FILES / "kubernetes.yaml").read_text()))
GROUPS = yaml.safe_load((FILES / "alerts.yaml").read_text())["groups"]
DASHBOARD = json.loads((FILES / "dashboard.json").read_text())


def of_kind(kind: str) -> Any:
    """The one manifest of that kind."""
    (one,) = (manifest for manifest in MANIFESTS if manifest["kind"] == kind)
    return one


def expressions() -> Iterator[tuple[str, str]]:
    """Every PromQL expression of the rules and the dashboard, with where it stands."""
    for group in GROUPS:
        for rule in group["rules"]:
            yield rule["alert"], rule["expr"]
    for panel in DASHBOARD["panels"]:
        for target in panel["targets"]:
            yield panel["title"], target["expr"].replace("$__rate_interval", "5m")


def names_in(expression: Any) -> set[str]:
    """The metrics that an expression reads."""
    found = set[str]()

    def visit(node: Any) -> bool:
        selector = node.vector_selector if isinstance(node, promql_parser.MatrixSelector) else node
        if isinstance(selector, promql_parser.VectorSelector) and selector.name:
            found.add(selector.name)
        return True

    promql_parser.walk(expression, visit)
    return found


def served() -> dict[str, set[str]]:
    """The samples that `/metrics` has, each with the names of its labels."""
    tally, gauges = Tally(SYSTEM.monotonic), Gauges()
    tally.pools["docs"] = PoolTally()
    gauges.oldest_ready_sec = {"docs": 1.0}
    gauges.refusals = lambda: {"crowded": 1}
    gauges.agents = lambda: {"live": 1, "resting": 0}
    registry = registry_of(NodeCollector(tally, gauges, Vitals(SYSTEM).read))
    families = text_string_to_metric_families(generate_latest(registry).decode())
    return {sample.name: set(sample.labels) for family in families for sample in family.samples}


@pytest.mark.parametrize("manifest", MANIFESTS, ids=lambda one: str(one["kind"]))
@pytest.mark.parametrize("version", ["1.31", "1.33"])
def test_kubernetes_takes_each_manifest(manifest: dict[str, Any], version: str) -> None:
    kubernetes_validate.validate(manifest, version, strict=True)


def test_a_manifest_with_a_wrong_key_is_found() -> None:
    with pytest.raises(kubernetes_validate.ValidationError):
        kubernetes_validate.validate({**of_kind("Deployment"), "spec": {"replica": 3}}, "1.33", strict=True)


def test_the_configuration_in_the_manifests_is_one(tmp_path: Path) -> None:
    file = tmp_path / "converge.toml"
    file.write_text(of_kind("ConfigMap")["data"]["converge.toml"])
    config = load(file, environ={})
    container = of_kind("Deployment")["spec"]["template"]["spec"]["containers"][0]
    ports = {one["name"]: one["containerPort"] for one in container["ports"]}
    assert config.health.endswith(f":{ports['health']}") and config.transport.endswith(f":{ports['agents']}")
    assert {one["name"]: one["port"] for one in of_kind("Service")["spec"]["ports"]} == ports


def test_a_stop_is_left_its_time() -> None:
    pod = of_kind("Deployment")["spec"]["template"]["spec"]
    unit = (FILES / "converge@.service").read_text()
    (stop,) = re.findall(r"^TimeoutStopSec=(\d+)$", unit, re.MULTILINE)
    assert min(pod["terminationGracePeriodSeconds"], int(stop)) >= Config().grace_sec + BEYOND_SEC


def test_the_probes_ask_what_is_served() -> None:
    container = of_kind("Deployment")["spec"]["template"]["spec"]["containers"][0]
    paths = {name: container[f"{name}Probe"]["httpGet"]["path"] for name in ("startup", "liveness", "readiness")}
    assert paths == {"startup": "/livez", "liveness": "/livez", "readiness": "/readyz"}


def test_a_supervisor_has_where_to_make_its_sockets() -> None:
    pod = of_kind("Deployment")["spec"]["template"]["spec"]
    (container,) = pod["containers"]
    mounts = {one["mountPath"]: one["name"] for one in container["volumeMounts"] if not one.get("readOnly")}
    writable = {one["name"] for one in pod["volumes"] if "emptyDir" in one}
    assert not container["securityContext"]["readOnlyRootFilesystem"] or mounts["/tmp"] in writable


def test_the_autoscaler_reads_a_metric_that_is_served() -> None:
    (metric,) = of_kind("HorizontalPodAutoscaler")["spec"]["metrics"]
    assert metric["pods"]["metric"]["name"] in served()
    assert set(metric["pods"]["metric"]["selector"]["matchLabels"]) <= served()[metric["pods"]["metric"]["name"]]


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="not applicable: systemd-analyze is not there")
def test_systemd_takes_the_unit(tmp_path: Path) -> None:
    unit = (FILES / "converge@.service").read_text()
    (tmp_path / "converge@.service").write_text(unit.replace("/usr/local/bin/converge", "/bin/true"))
    (tmp_path / "wrong@.service").write_text("[Service]\nTyp=exec\nExecStart=/bin/true\n")

    def verify(name: str) -> str:
        return subprocess.run(
            ["systemd-analyze", "verify", "--man=no", str(tmp_path / name)], capture_output=True, text=True, check=False
        ).stderr

    about = [line for line in verify("converge@x.service").splitlines() if "converge@" in line]
    assert about == []
    assert "Typ" in verify("wrong@x.service"), "a mistake would be found"


@pytest.mark.parametrize(("where", "text"), list(expressions()))
def test_prometheus_takes_each_expression_and_every_metric_in_it_is_served(where: str, text: str) -> None:
    found = names_in(promql_parser.parse(text))
    assert found and found <= served().keys(), where


def test_an_expression_that_is_none_is_found() -> None:
    with pytest.raises(ValueError, match="unclosed left parenthesis"):
        promql_parser.parse("sum by (pool converge_live")


def test_the_codes_that_rules_name_are_those_of_health() -> None:
    named = {code for _, text in expressions() for code in re.findall(r'code!?="(\w+)"', text)}
    assert named and named <= {code.value for code in Code}


def test_the_page_of_metrics_has_each_that_is_served() -> None:
    page = (DOCS / "reference/metrics.md").read_text()
    families = {re.sub(r"_(bucket|sum|count|created)$", "", name) for name in served() if name.startswith("converge_")}
    assert {name for name in families if f"`{name}`" not in page} - {"converge_unready_reason"} == set()
    assert set(re.findall(r"`(converge_\w+)`", page)) <= families | {"converge_unready_reason"}


def test_the_page_of_metrics_has_each_reason_of_refusals_and_no_other() -> None:
    page = (DOCS / "reference/metrics.md").read_text().partition("## Reasons of refusals")[2]
    rows = [row.split("|")[1] for row in page.splitlines() if row.startswith("| `")]
    named = {name for cell in rows for name in re.findall(r"`(\w+)`", cell)}
    source = "".join(file.read_text() for file in (DOCS.parent / "converge-core/src").rglob("*.py"))
    written = set(re.findall(r'\.refused\(\s*"(\w+)"', source)) | set(re.findall(r'refusals\["(\w+)"\]', source))
    of_handshakes = {snake(one.__name__) for one in subclasses(ChannelError)} - {"channel_error"}
    assert written | {"descriptor"} | of_handshakes == named


def subclasses(cls: type) -> set[type]:
    """A class and those below it."""
    return {cls}.union(*map(subclasses, cls.__subclasses__()))


def test_every_file_is_linked_from_the_page() -> None:
    page = (DOCS / "how-to/deploy.md").read_text()
    assert {file.name for file in FILES.iterdir()} == set(re.findall(r"\(deploy/([^)]+)\)", page))
