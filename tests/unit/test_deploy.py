"""What is in ``deploy/`` and in the documentation of metrics: it names what there is, and Prometheus can read it."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from pgvec_queue import metrics
from pgvec_queue.exposition import PROCESS_METRICS, Metric
from pgvec_queue.gateway import metrics as gateway_metrics
from pgvec_queue.worker import metrics as worker_metrics
from tests.prometheus import needs_promtool, promtool

ROOT = Path(__file__).parents[2]
PROMETHEUS = ROOT / "deploy" / "prometheus"
GRAFANA = ROOT / "deploy" / "grafana"
DASHBOARD = GRAFANA / "pgvec.json"

ALL = (*worker_metrics.METRICS, *metrics.METRICS, *gateway_metrics.METRICS)
DECLARED = {metric.name: metric for metric in ALL}
_WORDS = {
    *("by", "without", "on", "ignoring", "group_left", "group_right", "and", "or", "unless", "offset", "bool"),
    *("sum", "min", "max", "avg", "count", "topk", "time", "rate", "increase", "delta", "label_values"),
    *("avg_over_time", "max_over_time", "histogram_quantile", "clamp_min", "vector"),
}
_OF_PROMETHEUS = {"up"}


def exposed(declared: dict[str, Metric]) -> set[str]:
    """The names of all samples, a histogram's parts included."""
    names = set(declared) | set(PROCESS_METRICS) | _OF_PROMETHEUS
    for metric in declared.values():
        if metric.kind == "histogram":
            names |= {f"{metric.name}_{part}" for part in ("bucket", "sum", "count")}
    return names


def used(expression: str) -> tuple[set[str], set[str]]:
    """The names of metrics in an expression of PromQL, and those of labels."""
    labels = set(re.findall(r"(\w+) *(?:=~|!~|!=|=(?!=))", " ".join(re.findall(r"\{([^}]*)\}", expression))))
    for listed in re.findall(r"\b(?:by|without|on|ignoring|group_left|group_right) *\(([^)]*)\)", expression):
        labels |= set(re.findall(r"\w+", listed))
    bare = re.sub(r'"[^"]*"', "", expression)
    bare = re.sub(r"\{[^}]*\}|\[[^\]]*\]|\$\w+|\boffset +\w+", "", bare)
    bare = re.sub(r"\b(?:by|without|on|ignoring|group_left|group_right) *\([^)]*\)", "", bare)
    return set(re.findall(r"\b[a-z_][a-z0-9_]*\b", bare)) - _WORDS, labels


def dashboard() -> dict[str, Any]:
    loaded: dict[str, Any] = json.loads(DASHBOARD.read_text())
    return loaded


def of_dashboard() -> Iterator[tuple[str, str]]:
    for panel in dashboard()["panels"]:
        for target in panel.get("targets", []):
            yield f"{panel['title']}: {target['refId']}", target["expr"]
    for variable in dashboard()["templating"]["list"]:
        if variable["type"] == "query":
            found = re.fullmatch(r"label_values\((.*), (\w+)\)", variable["query"]["query"])
            assert found is not None
            yield f"${variable['name']}", f"sum by ({found[2]}) ({found[1]})"


def of_alerts() -> Iterator[tuple[str, str]]:
    """The alerts' expressions; by a few lines of our own, since nothing else here needs a reader of YAML."""
    text = (PROMETHEUS / "alerts.yml").read_text()
    for rule in re.split(r"^ +- alert: ", text, flags=re.MULTILINE)[1:]:
        name = rule.split("\n", 1)[0]
        found = re.search(r"^ +expr: (?:\|\n((?: {10}.*\n)+)|(.*)\n)", rule, re.MULTILINE)
        assert found is not None, name
        yield name, found[1] or found[2]


EXPRESSIONS = [*of_dashboard(), *of_alerts()]


def test_no_metric_is_declared_twice() -> None:
    assert len(DECLARED) == len(ALL)


@pytest.mark.parametrize("metric", DECLARED.values(), ids=DECLARED)
def test_names_and_units_follow_prometheus_s_rules(metric: Metric) -> None:
    assert re.fullmatch(r"pgvec_[a-z_]+", metric.name)
    assert metric.name.endswith("_total") is (metric.kind == "counter")
    assert not re.search(r"_(ms|millis|minutes|hours|kb|mb|percent|count|sum|bucket)(_|$)", metric.name)
    assert metric.help.endswith(".")
    assert metric.help.isascii()
    assert "|" not in metric.help
    # A label whose values nobody bounds makes a time series of each.
    bounded = {"vectorizer", "state", "stage", "activity", "error_class", "route", "method", "status", "reason"}
    assert set(metric.labels) <= bounded or metric.name.endswith("_info")


@pytest.mark.parametrize(("where", "expression"), EXPRESSIONS, ids=[where for where, _ in EXPRESSIONS])
def test_every_metric_and_label_that_is_used_is_one_that_we_export(where: str, expression: str) -> None:
    names, labels = used(expression)
    assert names
    assert names <= exposed(DECLARED)
    known = {label for metric in DECLARED.values() for label in metric.labels}
    assert labels <= known | {"job", "instance", "le"}


def test_a_metric_that_is_not_exported_would_be_found() -> None:
    names, labels = used('sum by (vectorizer) (rate(pgvec_nothing_total{colour="red", state!="x"}[5m] offset 1h)) > 2')
    assert names == {"pgvec_nothing_total"}
    assert labels == {"vectorizer", "colour", "state"}


def test_the_dashboard_is_one_that_grafana_takes() -> None:
    loaded = dashboard()
    assert loaded["uid"] == "pgvec"
    assert loaded["title"]
    assert "id" not in loaded or loaded["id"] is None
    ids = [panel["id"] for panel in loaded["panels"]]
    assert len(ids) == len(set(ids))
    variables = {variable["name"]: variable["type"] for variable in loaded["templating"]["list"]}
    assert variables["datasource"] == "datasource"
    taken: set[tuple[int, int]] = set()
    for panel in loaded["panels"]:
        place = panel["gridPos"]
        cells = {
            (x, y)
            for x in range(place["x"], place["x"] + place["w"])
            for y in range(place["y"], place["y"] + place["h"])
        }
        assert not cells & taken, f"{panel['title']} lies on another panel"
        assert place["x"] + place["w"] <= 24
        taken |= cells
        if panel["type"] == "row":
            continue
        assert panel["datasource"] == {"type": "prometheus", "uid": "${datasource}"}
        assert panel["description"]
        assert panel["targets"]
        for target in panel["targets"]:
            assert target["datasource"] == panel["datasource"]
        assert set(re.findall(r"\$(\w+)", json.dumps(panel["targets"]))) <= {*variables, "__rate_interval"}


def test_the_dashboard_shows_what_people_ask_for() -> None:
    shown = " ".join(expression for _, expression in of_dashboard())
    for name in (
        *("pgvec_rows_done", "pgvec_rows_per_second", "pgvec_eta_seconds", "pgvec_workers", "pgvec_devices_busy_ratio"),
        *("pgvec_worker_stage_seconds_total", "pgvec_quarantined_documents", "pgvec_change_lag_seconds", "pgvec_jobs"),
    ):
        assert name in shown


def test_the_documentation_lists_each_metric_as_it_is_declared() -> None:
    text = (ROOT / "docs" / "metrics.md").read_text()
    rows = re.findall(r"^\| `(pgvec_\w+)` \| (\w+) \| (.*?) \| (.*) \|$", text, re.MULTILINE)
    assert rows == [(metric.name, metric.kind, ", ".join(metric.labels), metric.help) for metric in ALL]
    for name in PROCESS_METRICS:
        assert f"`{name}`" in text


@needs_promtool
def test_prometheus_takes_the_configuration_and_the_rules(tmp_path: Path) -> None:
    copied = shutil.copytree(PROMETHEUS, tmp_path / "prometheus")
    # It wants the token to be there that a person makes.
    (copied / "gateway_token").write_text("pgvec_api_token")
    config = copied / "prometheus.yml"
    config.write_text(config.read_text().replace("/run/secrets/gateway_token", "gateway_token"))
    promtool("check", "config", str(copied / "prometheus.yml"))
    assert "SUCCESS: 11 rules found" in promtool("check", "rules", str(PROMETHEUS / "alerts.yml"))


@needs_promtool
def test_prometheus_understands_what_the_dashboard_asks(tmp_path: Path) -> None:
    rules = [
        {"record": f"dashboard:{at}", "expr": re.sub(r"\$__rate_interval", "5m", expression)}
        for at, (_, expression) in enumerate(of_dashboard())
    ]
    path = tmp_path / "rules.yml"
    # What is JSON is YAML.
    path.write_text(json.dumps({"groups": [{"name": "dashboard", "rules": rules}]}))
    promtool("check", "rules", str(path))


@needs_promtool
def test_the_alerts_come_when_they_should_and_only_then() -> None:
    promtool("test", "rules", str(PROMETHEUS / "alerts_test.yml"))


def test_each_alert_has_a_test() -> None:
    tested = (PROMETHEUS / "alerts_test.yml").read_text()
    for name, _ in of_alerts():
        blocks = re.findall(rf"alertname: {name}\n +exp_alerts:(.*)\n", tested)
        assert " []" in blocks, f"{name} is nowhere expected to stay away"
        assert "" in blocks, f"{name} is nowhere expected to come"


def test_the_data_source_and_the_dashboards_are_provisioned_where_they_are_mounted() -> None:
    compose = (ROOT / "deploy" / "compose.yaml").read_text()
    provider = (GRAFANA / "provisioning" / "dashboards" / "pgvec.yml").read_text()
    path = re.search(r"path: (\S+)", provider)
    assert path is not None
    assert f"./grafana/pgvec.json:{path[1]}/pgvec.json:ro" in compose
    assert "url: http://prometheus:9090" in (GRAFANA / "provisioning" / "datasources" / "prometheus.yml").read_text()
    scraped = (PROMETHEUS / "prometheus.yml").read_text()
    assert "exporter:9189" in scraped
    for service in ("worker", "worker-cuda", "gateway"):
        assert re.search(rf"names: \[.*\b{service}\b.*\]", scraped)
        assert f"\n  {service}:" in compose
