"""docker/prometheus and docker/grafana with the real Prometheus, over a service that does something."""

from __future__ import annotations

import json
import math
import os
import re
import shutil
import signal
import subprocess
import urllib.error
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import anyio
import httpx
import pytest
import yaml

from benchmarks.dashboard import ask, expand, panels
from embedded import Sagan
from serve.private_redis import PrivateRedis, die_with_parent, free_port
from served import Api

ROOT = Path(__file__).parents[2]
FILES = ROOT / "docker" / "prometheus"
RULES = yaml.safe_load((FILES / "rules.yml").read_text())
ALERTS = [rule for group in RULES["groups"] for rule in group["rules"] if "alert" in rule]
RECORDINGS = [rule["record"] for group in RULES["groups"] for rule in group["rules"] if "record" in rule]
QUERIES = {
    f"{panel['title']} {target['refId']}": target["expr"]
    for panel in panels()
    for target in panel.get("targets", ())
}
OF_GPU = {name for name in QUERIES if name.startswith("GPU ")}

needs_prometheus = pytest.mark.skipif(
    not (shutil.which("promtool") and shutil.which("prometheus")),
    reason="needs prometheus and promtool (apt-get install prometheus)",
)


def promtool(*words: str | Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(["promtool", *map(str, words)], capture_output=True, text=True, check=False)


@needs_prometheus
def test_the_configuration_is_one(tmp_path: Path) -> None:
    for file in FILES.iterdir():
        shutil.copy(file, tmp_path)
    config = tmp_path / "prometheus.yml"
    (tmp_path / "key").touch()
    config.write_text(config.read_text().replace("/tmp/metrics-key", str(tmp_path / "key")))
    verdict = promtool("check", "config", config)
    assert verdict.returncode == 0, verdict.stderr
    assert "17 rules found" in verdict.stdout


@needs_prometheus
def test_the_rules_do_what_their_tests_say_and_the_tests_see_it(tmp_path: Path) -> None:
    verdict = promtool("test", "rules", FILES / "rules.test.yml")
    assert verdict.returncode == 0, verdict.stdout + verdict.stderr
    shutil.copy(FILES / "rules.test.yml", tmp_path)
    text = (FILES / "rules.yml").read_text()
    for right, wrong in (("> 60", "> 90"), ("for: 5m", "for: 15m")):
        assert right in text
        (tmp_path / "rules.yml").write_text(text.replace(right, wrong))
        assert promtool("test", "rules", tmp_path / "rules.test.yml").returncode != 0, wrong


@pytest.mark.parametrize("alert", ALERTS, ids=lambda alert: str(alert["alert"]))
def test_an_alert_says_what_is_and_what_to_do(alert: dict[str, Any]) -> None:
    assert set(alert["annotations"]) == {"summary", "description"}
    assert len(alert["annotations"]["description"]) > 100
    assert alert["labels"]["severity"] in ("page", "ticket")
    tested = (FILES / "rules.test.yml").read_text()
    assert tested.count(f'{alert["alert"]}"') + tested.count(f"alertname: {alert['alert']}\n") > 0
    assert f"`{alert['alert']}`" in (ROOT / "docs" / "monitoring.md").read_text()


class Prometheus:
    """Prometheus, scraping some port twice a second by the rules that ship."""

    def __init__(self, folder: Path, port: int) -> None:
        target = {"job_name": "sagan-api", "static_configs": [{"targets": [f"127.0.0.1:{port}"]}]}
        times = {"scrape_interval": "500ms", "scrape_timeout": "450ms", "evaluation_interval": "500ms"}
        config = {"global": times, "rule_files": [str(FILES / "rules.yml")], "scrape_configs": [target]}
        (folder / "prometheus.yml").write_text(json.dumps(config))  # JSON is YAML
        listens = free_port()
        self.url = f"http://127.0.0.1:{listens}"
        with (folder / "prometheus.log").open("wb") as log:
            self.process = subprocess.Popen(
                [
                    *("prometheus", f"--config.file={folder}/prometheus.yml"),
                    f"--storage.tsdb.path={folder}/prometheus",
                    f"--web.listen-address=127.0.0.1:{listens}",
                    "--enable-feature=exemplar-storage",
                ],
                stdout=log,
                stderr=log,
                preexec_fn=die_with_parent(signal.SIGKILL),
            )

    def query(self, expr: str) -> list[float]:
        """The values of an instant query that are numbers; none while it starts."""
        try:
            found = ask(self.url, "query", query=expand(expr, "20s"))["result"]
        except (urllib.error.URLError, ConnectionError):
            return []
        values = [float(series["value"][1]) for series in found]
        return [value for value in values if not math.isnan(value)]

    def stop(self) -> None:
        self.process.kill()
        self.process.wait()


@pytest.fixture
async def served(tmp_path: Path, checkpoints: Path) -> AsyncIterator[Sagan]:
    sagan = Sagan(tmp_path, checkpoints)
    try:
        await sagan.says("ready with")
        yield sagan
    finally:
        await sagan.stop(signal.SIGTERM)


@needs_prometheus
async def test_every_query_of_the_dashboard_finds_something_of_a_real_run(
    tmp_path: Path, served: Sagan
) -> None:
    prometheus = Prometheus(tmp_path, served.port)
    wanted = {name: expr for name, expr in QUERIES.items() if name not in OF_GPU}
    wanted |= {name: name for name in RECORDINGS}
    try:
        async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{served.port}", timeout=40) as client:
            with anyio.move_on_after(90):
                while any(not prometheus.query(expr) for expr in wanted.values()):
                    job = await client.post("/generate/1", json={"count": 3}, headers={"Prefer": "wait=30"})
                    await client.get(f"/attention/{job.json()['id']}/map")
                    await client.get("/nothing")
                    await anyio.sleep(0.3)
            empty = [name for name, expr in wanted.items() if not prometheus.query(expr)]
            assert not empty
            [p99] = prometheus.query("sagan:job_seconds:p99")
            assert 0 < p99 < 60
            assert prometheus.query("sum(sagan_workers_able)") == [1]
            assert prometheus.query('ALERTS{alertname=~"Sagan.*", alertstate="firing"}') == []
            rules = [rule for group in ask(prometheus.url, "rules")["groups"] for rule in group["rules"]]
            assert {rule["health"] for rule in rules} == {"ok"}
            exported = set(ask(prometheus.url, "label/__name__/values"))
    finally:
        prometheus.stop()
    # whatever rules and dashboard name is exported, but for what needs a GPU
    text = " ".join([*QUERIES.values(), *(str(alert["expr"]) for alert in ALERTS)])
    named = set(re.findall(r"\b(?:sagan|process)_\w+", text))
    assert {name for name in named - exported if "device_memory" not in name} == {
        "sagan_device_utilisation_ratio"
    }
    documented = (ROOT / "docs" / "monitoring.md").read_text()
    families = {re.sub(r"_(bucket|count|sum)$", "", name) for name in exported if name.startswith("sagan_")}
    assert not [name for name in families if f"`{name}`" not in documented]


def test_every_process_of_a_port_counts(tmp_path: Path) -> None:
    """`sagan api --workers 2`: any of them tells the sum, also of one that died."""
    redis = PrivateRedis(tmp_path / "redis")
    redis.start()
    api = Api(tmp_path, redis.url, "--workers", "2")
    name = 'sagan_http_requests_total{method="GET",route="/health/live",status="200"}'
    try:
        for _ in range(20):
            api.get("/health/live")
        assert {api.counted(name) for _ in range(6)} == {20}
        children = Path(f"/proc/{api.process.pid}/task/{api.process.pid}/children").read_text().split()
        serving = [pid for pid in children if b"spawn_main" in Path(f"/proc/{pid}/cmdline").read_bytes()]
        os.kill(int(serving[0]), signal.SIGKILL)
        assert {api.counted(name) for _ in range(6)} == {20}
        text = api.get("/metrics")[1]
        assert text.count("\nsagan_streams_open ") == text.count("\nsagan_queue_depth ") == 1
        assert text.count("\nprocess_resident_memory_bytes ") == 1
        assert "pid=" not in text
    finally:
        api.close()
        redis.stop()
