"""`doit rollback`: an earlier release comes back, and the next doit leaves it there."""

from pathlib import Path

import pytest

from tests.deploy_project import DeployProject, Hammer

pytestmark = pytest.mark.slow


def test_rollback_brings_the_previous_release_back_and_it_stays(
    deploy_project: DeployProject, digit_png: bytes, tmp_path: Path
):
    project = deploy_project
    assert "nothing was deployed" in project.doit("health", status=2).stdout
    assert "has no earlier release" in project.doit("rollback", "digits", status=1).stderr
    project.use_checkpoint(0)
    project.doit()
    first = project.health()["release"]
    project.use_checkpoint(1)
    project.doit()
    second = project.health()["release"]

    with Hammer(project.address, digit_png) as hammer:
        told = project.doit("rollback", "digits").stdout
    assert "is live on" in told
    assert hammer.failures == [] and hammer.answers > 0
    assert project.health()["release"] == first
    # The next doit leaves it, quietly; so it does after the server was lost.
    done = project.doit()
    assert (done.stdout, done.stderr) == ("", "")
    project.stop()
    project.doit()
    assert project.health()["release"] == first
    # Going back and forth by name; a third checkpoint goes live as ever.
    project.doit("rollback", "digits", second)
    assert project.health()["release"] == second
    project.use_checkpoint(2)
    project.doit()
    assert project.health()["release"] not in (first, second)
    # Only a release that is still there, and only a model that is configured.
    done = project.doit("rollback", "digits", "0123456789abcdef", status=1)
    assert "has no release 0123456789abcdef" in done.stderr and first in done.stderr
    assert "no model cats" in project.doit("rollback", "cats", status=3).stderr
    assert len(done.stderr.splitlines()) == 1


def test_retry_lifts_the_mark_of_a_rollback(deploy_project: DeployProject):
    project = deploy_project
    for number in (0, 1):
        project.use_checkpoint(number)
        project.doit()
    second = project.health()["release"]
    project.doit("rollback", "digits")
    assert project.health()["release"] != second
    project.doit("deploy:digits", "--retry")
    assert project.health()["release"] == second
    assert project.doit().stdout == ""
