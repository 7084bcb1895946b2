"""`doit schedule`: the real crontab program, and the lines it holds run as cron runs them.

No test starts a timer of systemd's or an agent of launchd's: programs named systemctl, loginctl
and launchctl stand before them on PATH, which write down what they are asked and answer. The
units are put to the real systemd-analyze.
"""

import fcntl
import json
import os
import plistlib
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tasks.core.errors import QuernError
from tasks.core.schedules.crontab import times
from tasks.core.schedules.job import name_of
from tests.build_project import DOIT, BuildProject

ODD_NAME = 'it\'s 100% "A" & b $HOME #1'
CRONTAB = shutil.which("crontab") or "crontab"  # a test may take it off PATH
SOMEBODYS = (
    b"MAILTO=\"\"\n# mine\n\n5 4 * * *  date '+\\%H'   \n@daily cd /x && .venv/bin/doit --cron\n"
)

PROGRAM = """#!/bin/sh
printf '%s %s\\n' "$(basename "$0")" "$*" >> "$RECORD"
case "$2" in
  "$FAILING") echo "Failed to $2: no medium" >&2; exit 1 ;;
  enable|bootstrap) touch "$RECORD.on" ;;
  disable) rm -f "$RECORD.on" ;;
  is-enabled|is-active) test -e "$RECORD.on" || exit 1 ;;
  list-timers) echo '[{"next": 4102444800000000, "last": 0, "unit": "x.timer"}]' ;;
esac
case "$1" in
  bootstrap) touch "$RECORD.on" ;;
  bootout) rm -f "$RECORD.on" ;;
  print) test -e "$RECORD.on" || exit 1 ;;
  show-user) echo "$LINGER" ;;
esac
"""


def read_crontab() -> bytes | None:
    done = subprocess.run([CRONTAB, "-l"], capture_output=True)
    return done.stdout if done.returncode == 0 else None


def write_crontab(text: bytes | None) -> None:
    command = [CRONTAB, "-r"] if text is None else [CRONTAB, "-"]
    subprocess.run(command, input=text, capture_output=True)


@pytest.fixture(autouse=True)
def crontab(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The user's own crontab with some lines in it; put back afterwards. A home of the test's."""
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "home" / ".config"))
    monkeypatch.delenv("QUERN_MODELS", raising=False)
    with open(Path(tempfile.gettempdir()) / f"quern-tests-crontab-{os.getuid()}.lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # there is one crontab for all test runs of a user
        before = read_crontab()
        write_crontab(SOMEBODYS)
        assert read_crontab() == SOMEBODYS
        yield
        write_crontab(before)
        assert read_crontab() == before


@pytest.fixture
def project(tmp_path: Path) -> BuildProject:
    return BuildProject(tmp_path / "digits")


@pytest.fixture
def programs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """systemctl, loginctl and launchctl on PATH; what they were asked is in the file returned."""
    folder = tmp_path / "programs"
    folder.mkdir()
    for name in ("systemctl", "loginctl", "launchctl"):
        (folder / name).write_text(PROGRAM)
        (folder / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder}:{os.environ['PATH']}")
    monkeypatch.setenv("RECORD", str(tmp_path / "asked"))
    monkeypatch.setenv("FAILING", "nothing")
    monkeypatch.setenv("LINGER", "yes")
    return tmp_path / "asked"


def install(project: BuildProject, *options: str) -> str:
    return project.built("schedule", "install", "--by", "crontab", *options).out


def own_lines(project: BuildProject) -> list[str]:
    """What the crontab holds beside somebody's lines, which must be as they were."""
    text = read_crontab()
    assert text is not None and text.startswith(SOMEBODYS)
    return text[len(SOMEBODYS) :].decode().splitlines()


def run_as_cron_does(line: str) -> "subprocess.CompletedProcess[str]":
    """Five fields, then a command, whose `\\%` is `%`; given to /bin/sh with nothing set."""
    command = line.split(" ", 5)[5].replace("\\%", "%")
    bare = ["env", "-i", "HOME=/nowhere", "SHELL=/bin/sh", "PATH=/usr/bin:/bin", "LOGNAME=nobody"]
    return subprocess.run(
        [*bare, "/bin/sh", "-c", command], cwd="/", capture_output=True, text=True, timeout=60
    )


# ---- crontab -------------------------------------------------------------------------------------


def test_install_replace_show_and_remove_leave_other_lines_as_they_are(project):
    assert project.doit("schedule", "show").status == 1
    assert install(project).startswith(f"installed: {name_of(project.root)} every 30m by crontab")
    marker, line = own_lines(project)
    assert marker.startswith("#") and marker.endswith(f" in {project.root}")
    assert line.startswith("*/30 * * * * cd ")
    assert install(project).startswith("nothing changed: ")
    assert own_lines(project) == [marker, line]
    assert install(project, "--every", "1h", "--jitter", "5m").startswith("replaced: ")
    _, line = own_lines(project)
    assert line.startswith("0 * * * * ") and " --cron --jitter 300 #" in line
    shown = project.built("schedule", "show").out
    assert "every 1h, jitter 5m, by crontab" in shown and "last run: none yet" in shown
    assert project.built("schedule", "remove").out.startswith("removed: ")
    assert own_lines(project) == []
    assert project.built("schedule", "remove").out.startswith("nothing to remove: ")
    assert project.doit("schedule", "show").status == 1


def test_a_crontab_that_held_nothing_else_is_gone_again(project):
    write_crontab(None)
    install(project)
    project.built("schedule", "remove")
    assert read_crontab() is None


@pytest.mark.parametrize("folder", ["digits", ODD_NAME])
def test_the_line_builds_in_cron_s_bare_environment(tmp_path, folder):
    project = BuildProject(tmp_path / folder)
    install(project, "--jitter", "1s")
    _, line = own_lines(project)
    done = run_as_cron_does(line)
    assert (done.returncode, done.stderr) == (0, ""), done
    assert sorted(project.runs()) == ["copy", "left", "right", "top"]
    done = run_as_cron_does(line)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    shown = project.built("schedule", "show").out
    assert "exit status 0" in shown and "make:left: done in " in shown
    assert project.built("schedule", "remove").out.startswith("removed: ")
    assert own_lines(project) == []


def test_which_models_file_is_kept(project, monkeypatch):
    project.write(
        "dodo.py",
        "from tasks.core.configuration import configuration_file\n"
        'def task_t():\n    return {"actions": [["touch", configuration_file()]]}\n',
    )
    monkeypatch.setenv("QUERN_MODELS", "other 50% models.yaml")
    install(project)
    assert run_as_cron_does(own_lines(project)[1]).returncode == 0
    assert (project.root / "other 50% models.yaml").exists()


def test_a_failing_run_s_status_reaches_cron_and_show(project):
    install(project)
    project.write("dodo.py", 'def task_t():\n    return {"actions": ["exit 3"]}\n')
    done = run_as_cron_does(own_lines(project)[1])
    assert done.returncode == 1 and len(done.stderr.splitlines()) == 1
    told = json.loads(project.built("schedule", "show", "--json").out)
    assert told["last_run"]["status"] == 1
    assert told["last_run"]["ended"] >= told["last_run"]["started"]
    assert (told["by"], told["every_seconds"], told["jitter_seconds"]) == ("crontab", 1800, 0)
    assert told["next_run"] % 1800 == 0 and 0 < told["next_run"] - time.time() <= 1800
    assert any("command 'exit 3' ended with status 3" in line for line in told["log"])


def test_two_projects_of_the_same_name_have_each_its_own(tmp_path):
    one, two = (BuildProject(tmp_path / folder / "digits") for folder in "ab")
    install(one)
    install(two, "--every", "2h")
    assert len(own_lines(one)) == 4
    one.built("schedule", "remove")
    _, line = own_lines(two)
    assert str(two.root) in line and line.startswith("0 */2 ")
    assert one.doit("schedule", "show").status == 1
    assert "every 2h" in two.built("schedule", "show").out


def test_a_line_that_somebody_commented_out_is_no_schedule(project):
    install(project)
    text = read_crontab()
    assert text is not None
    write_crontab(text.replace(b"\n*/30", b"\n#*/30"))
    assert project.doit("schedule", "show").status == 1
    assert install(project).startswith("installed: ")
    assert len(own_lines(project)) == 2


@pytest.mark.parametrize(
    ("every", "fields"),
    [
        (60, "* * * * *"),
        (300, "*/5 * * * *"),
        (1800, "*/30 * * * *"),
        (3600, "0 * * * *"),
        (6 * 3600, "0 */6 * * *"),
        (86400, "0 0 * * *"),
        (7 * 86400, "0 0 * * 0"),
    ],
)
def test_intervals_that_cron_can_express(every, fields):
    assert times(every) == fields


@pytest.mark.parametrize("every", [90, 45 * 60, 90 * 60, 5 * 3600, 2 * 86400])
def test_intervals_that_cron_cannot_express_are_refused(every):
    with pytest.raises(QuernError, match="cron can't express it"):
        times(every)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ([], "say install, show or remove"),
        (["start"], "say install, show or remove"),
        (["install", "--by", "crontab", "--every", "45m"], "--every 45m: cron can't express it"),
        (["install", "--every", "often"], "--every often: is not a time; write 90s, 30m"),
        (["install", "--every", "30s"], "--every 30s: must be a minute or more"),
        (["install", "--jitter", "30m"], "--jitter 30m: must be less than --every 30m"),
        (["install", "--by", "at"], "--by at: is not known; take systemd, launchd, crontab"),
        (["install", "--often"], "option --often not recognized"),
    ],
)
def test_a_wrong_command_line_is_one_line_and_changes_nothing(project, options, said):
    outcome = project.doit("schedule", *options)
    assert outcome.status == 3
    assert said in outcome.err and len(outcome.text.splitlines()) == 1
    assert own_lines(project) == []


def test_a_path_that_no_schedule_can_hold_is_refused(tmp_path):
    outcome = BuildProject(tmp_path / "a\nb").doit("schedule", "install", "--by", "crontab")
    assert outcome.status == 3 and len(outcome.text.splitlines()) == 1
    assert "can't be scheduled" in outcome.err
    assert read_crontab() == SOMEBODYS


def test_a_line_too_long_for_cron_is_refused_by_crontab_itself(project, monkeypatch):
    monkeypatch.setenv("QUERN_MODELS", "x" * 1200)
    outcome = project.doit("schedule", "install", "--by", "crontab")
    assert outcome.status == 3 and len(outcome.text.splitlines()) == 1
    assert outcome.err.startswith("crontab -: ")
    assert own_lines(project) == []


def test_what_would_not_start_without_the_shell_s_variables_is_not_installed(project, monkeypatch):
    project.write("dodo.py", 'import os\nos.environ["TOKEN"]\n' + project.read("dodo.py"))
    monkeypatch.setenv("TOKEN", "secret-of-the-shell")
    outcome = project.doit("schedule", "install", "--by", "crontab")
    assert outcome.status == 3 and len(outcome.text.splitlines()) == 1
    assert "not installed, doit would not start there: " in outcome.err and "TOKEN" in outcome.err
    assert "secret-of-the-shell" not in outcome.text
    assert own_lines(project) == []
    project.write(".quern/environment", "TOKEN=kept\n").chmod(0o600)
    install(project)
    _, line = own_lines(project)
    assert "kept" not in line
    assert run_as_cron_does(line).returncode == 0


def test_where_there_is_nothing_to_schedule_with_one_line_says_so(project, tmp_path, monkeypatch):
    (tmp_path / "empty").mkdir()
    monkeypatch.setenv("PATH", str(tmp_path / "empty"))
    outcome = project.doit("schedule", "install")
    assert outcome.status == 3 and len(outcome.text.splitlines()) == 1
    assert "neither a systemd of your own, nor launchd, nor crontab" in outcome.err
    assert project.doit("schedule", "install", "--by", "launchd").status == 3
    assert project.doit("schedule", "show").status == 1
    assert project.built("schedule", "remove").out.startswith("nothing to remove")


# ---- systemd -------------------------------------------------------------------------------------


def units(project: BuildProject) -> list[Path]:
    folder = Path(os.environ["XDG_CONFIG_HOME"]) / "systemd" / "user"
    return [folder / f"{name_of(project.root)}.{kind}" for kind in ("service", "timer")]


@pytest.mark.skipif(sys.platform != "linux", reason="systemd-analyze is Linux's")
@pytest.mark.parametrize("folder", ["digits", ODD_NAME])
def test_systemd_s_own_check_finds_nothing_wrong_with_the_units(tmp_path, programs, folder):
    project = BuildProject(tmp_path / folder)
    project.built("schedule", "install", "--every", "45m", "--jitter", "5m")
    runtime = tmp_path / "runtime"
    runtime.mkdir()
    done = subprocess.run(
        ["systemd-analyze", "verify", "--user", *map(str, units(project))],
        env={**os.environ, "XDG_RUNTIME_DIR": str(runtime)},
        capture_output=True,
        text=True,
    )
    assert (done.returncode, done.stderr) == (0, "")


def test_a_timer_of_systemd_s(project, programs):
    name = name_of(project.root)
    told = project.built("schedule", "install", "--jitter", "5m").out
    assert told == f"installed: {name} every 30m, jitter 5m, by systemd ({units(project)[1]})\n"
    asked = programs.read_text()
    assert asked.index("daemon-reload") < asked.index(f"enable {name}.timer")
    service, timer = (path.read_text() for path in units(project))
    for text in (service, timer):
        assert text.splitlines()[0] == (f"# Quern runs every 30m (jitter 5m) in {project.root}")
    assert {"OnBootSec=5min", "OnUnitInactiveSec=1800s", "RandomizedDelaySec=300s"} <= set(
        timer.splitlines()
    )
    # KillMode: what a deploy has started must outlive the run.
    assert {"Type=oneshot", "KillMode=process", "TimeoutStartSec=12h"} <= set(service.splitlines())
    assert f'"{DOIT}" "--cron"\n' in service and "--jitter" not in service
    assert project.built("schedule", "install", "--jitter", "5m").out.startswith("nothing changed")
    assert project.built("schedule", "install", "--every", "1d").out.startswith("replaced")
    told = json.loads(project.built("schedule", "show", "--json").out)
    assert (told["by"], told["every_seconds"], told["next_run"]) == ("systemd", 86400, 4102444800)
    project.built("schedule", "remove")
    assert f"disable --now {name}.timer" in programs.read_text()
    assert not any(path.exists() for path in units(project))
    assert own_lines(project) == []


def test_lingering_is_told_of_where_it_is_off(project, programs, monkeypatch):
    monkeypatch.setenv("LINGER", "no")
    assert "run: loginctl enable-linger" in project.built("schedule", "install").out
    assert "run: loginctl enable-linger" in project.built("schedule", "show").out


@pytest.mark.parametrize("number", [0, 1])
def test_a_unit_that_somebody_else_wrote_is_left_alone(project, programs, number):
    path = units(project)[number]
    path.parent.mkdir(parents=True)
    path.write_text("[Unit]\nDescription=mine\n")
    outcome = project.doit("schedule", "install")
    assert outcome.status == 3
    assert outcome.err.startswith(f"{path}: was not written by doit schedule")
    project.built("schedule", "remove")
    assert path.read_text() == "[Unit]\nDescription=mine\n"
    assert not units(project)[1 - number].exists()


def test_a_timer_that_cannot_be_enabled_is_not_left_half_installed(project, programs, monkeypatch):
    monkeypatch.setenv("FAILING", "enable")
    outcome = project.doit("schedule", "install")
    assert outcome.status == 3 and len(outcome.text.splitlines()) == 1
    assert "Failed to enable: no medium" in outcome.err
    assert not any(path.exists() for path in units(project))


def test_without_a_systemd_that_answers_it_is_the_crontab(project, programs, monkeypatch):
    (programs.parent / "programs" / "launchctl").unlink()
    monkeypatch.setenv("FAILING", "show-environment")
    assert " by crontab " in project.built("schedule", "install").out
    assert project.doit("schedule", "install", "--by", "systemd").status == 3


def test_another_way_takes_the_place_of_the_one_before(project, programs):
    install(project)
    assert " by systemd " in project.built("schedule", "install").out
    assert own_lines(project) == []
    install(project)
    assert not any(path.exists() for path in units(project))
    assert len(own_lines(project)) == 2


# ---- launchd -------------------------------------------------------------------------------------


@pytest.mark.parametrize("folder", ["digits", ODD_NAME])
def test_an_agent_of_launchd_s(tmp_path, programs, folder):
    project = BuildProject(tmp_path / folder)
    name = name_of(project.root)
    every = ["--by", "launchd", "--every", "45m"]
    assert project.built("schedule", "install", *every, "--jitter", "5m").out.startswith(
        "installed"
    )
    path = Path(os.environ["HOME"]) / "Library" / "LaunchAgents" / f"{name}.plist"
    agent = plistlib.loads(path.read_bytes())
    assert agent["Label"] == name
    assert agent["ProgramArguments"] == [DOIT, "--cron", "--jitter", "300"]
    assert agent["WorkingDirectory"] == str(project.root)
    assert agent["StartInterval"] == 2700
    assert agent["AbandonProcessGroup"] is True
    assert "/opt/homebrew/bin" in agent["EnvironmentVariables"]["PATH"]
    assert Path(agent["StandardErrorPath"]).parent == project.root / ".quern" / "logs"
    if shutil.which("plutil"):
        subprocess.run(["plutil", "-lint", path], check=True)
    assert f"launchctl bootstrap gui/{os.getuid()} {path}" in programs.read_text()
    again = ("schedule", "install", *every, "--jitter", "5m")
    assert project.built(*again).out.startswith("nothing changed")
    assert project.built("schedule", "install", *every).out.startswith("replaced")
    assert "every 45m by launchd" in project.built("schedule", "show").out
    path.write_bytes(plistlib.dumps({"Label": name}))
    outcome = project.doit(*again)
    assert outcome.status == 3 and f"{path}: was not written by doit schedule" in outcome.err
    assert project.built("schedule", "remove").out.startswith("nothing to remove")
    path.unlink()
    project.built(*again)
    project.built("schedule", "remove")
    assert not path.exists()
    assert f"launchctl bootout gui/{os.getuid()}/{name}" in programs.read_text()
