"""`doit health` on a classifier: file, API, system; its exit status follows."""

import json
import os

import pytest

from tasks.hosts.health import DEGRADED, HEALTHY, UNHEALTHY, Finding, verdict
from tests.deploy_project import DeployProject


def test_the_worst_finding_is_the_verdict():
    good, slow, bad = (Finding("api", level, "") for level in (HEALTHY, DEGRADED, UNHEALTHY))
    assert verdict([good, slow]) == DEGRADED
    assert verdict([bad, good]) == UNHEALTHY
    assert verdict([good]) == HEALTHY
    assert verdict([]) == UNHEALTHY


def looked_at(project: DeployProject, status: int) -> dict:
    [model] = json.loads(project.doit("health", "--json", status=status).stdout)
    return model


@pytest.mark.slow
def test_health_follows_what_happens_to_file_and_server(deploy_project: DeployProject):
    project = deploy_project
    project.use_checkpoint(0)
    project.doit()
    assert project.doit("health").stdout == "digits: healthy\n"
    model = looked_at(project, 0)
    checks = [f["check"] for f in model["channels"][0]["findings"]]
    assert checks == ["file", "api"]
    assert {"disk", "memory"} <= {f["check"] for f in model["system"]}

    # A bit flips in the file that is served.
    weights = project.host / "stable/current/model_weights.bin"
    data = bytearray(weights.read_bytes())
    data[-1] ^= 1
    os.chmod(weights.resolve(), 0o644)
    weights.resolve().write_bytes(data)
    told = project.doit("health", status=2).stdout
    assert "digits: unhealthy" in told and "does not have the release's digest" in told
    project.doit("--always-execute", "deploy:digits")
    assert looked_at(project, 0)["status"] == HEALTHY

    project.stop()
    told = project.doit("health", "digits", status=2).stdout
    assert "no answer to GET /health" in told
    assert "no model cats" in project.doit("health", "cats", status=3).stderr
