"""Messages about runs: real requests of apprise's to a server of the test's own."""

import json
import signal
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from tasks.core.apprise_sender import redacted, send
from tasks.core.child import call_in_child
from tasks.core.errors import QuernError
from tasks.core.lifeline import end_all
from tasks.core.notifications import KEPT_MESSAGES, MEMORY, masked
from tests.build_project import BuildProject, Outcome
from tests.receiver import SECRETS, address_of, free_port

FAILING = """
from tasks.core.errors import Busy, QuernError, TryAgainLater
from tasks.core.recipe import FunctionAction

def check(project, task):
    text = open(f"in/{task}").read().strip()
    if text.startswith("announce "):
        project.announce(task, "deployed", text.removeprefix("announce "))
    elif text:
        kind, _, text = text.partition(" ")
        raise {"wrong": QuernError, "later": TryAgainLater, "busy": Busy}[kind](text)

def task_dogs():
    return {"actions": [FunctionAction(check)],
        "meta": {"stands": lambda: ["stable on local still serves Cycle 7"]}}

def task_cats():
    return {"actions": [FunctionAction(check)]}
"""


class Watched(BuildProject):
    """A project with two tasks that fail as the files in/dogs and in/cats say."""

    def __init__(self, root: Path, *addresses: str, dodo: str = FAILING) -> None:
        super().__init__(root / "kennel", dodo)
        self.notify(*addresses)
        self.says()

    def notify(self, *addresses: str) -> None:
        self.write("models.yaml", f"models: {{}}\nnotify: {json.dumps(list(addresses))}\n")

    def says(self, dogs: str = "", cats: str = "") -> None:
        self.write("in/dogs", dogs)
        self.write("in/cats", cats)

    def run(self, dogs: str = "", cats: str = "", status: int | None = None) -> Outcome:
        """One unattended run; no secret may be left anywhere."""
        self.says(dogs, cats)
        outcome = self.doit("--cron")
        wanted = int("wrong" in dogs + cats) if status is None else status
        assert outcome.status == wanted, outcome
        for secret in SECRETS:
            assert secret not in outcome.text
            for path in (self.root / ".quern").rglob("*"):
                assert not path.is_file() or secret.encode() not in path.read_bytes(), path
        return outcome

    def memory(self) -> dict:
        return json.loads(self.read(str(MEMORY)))

    def change_memory(self, change: Callable[[dict], object]) -> None:
        memory = self.memory()
        change(memory)
        self.write(str(MEMORY), json.dumps(memory))


# ---- what is told, and how often -----------------------------------------------------------------


def test_a_failure_is_told_once_then_its_recovery(tmp_path, receiver):
    project = Watched(tmp_path, receiver.address)
    project.run()
    assert receiver.texts() == []
    for pid, seconds in ((4711, "3.2"), (88, "10"), (9, "0.04")):
        project.run(f"wrong process {pid} died after {seconds} s")
    told = ["failed: dogs: process 4711 died after 3.2 s\nstable on local still serves Cycle 7"]
    assert receiver.texts() == told
    assert receiver.messages[0]["type"] == "failure"
    assert receiver.messages[0]["title"].startswith("Quern kennel on ")
    assert receiver.messages[0]["title"].endswith(": failed")
    project.run("wrong the disk is full")
    assert len(receiver.texts()) == 2 and "dogs: the disk is full" in receiver.texts()[1]
    project.run()
    assert len(receiver.texts()) == 3
    assert receiver.texts()[2].startswith("recovered: dogs, after ")
    assert receiver.messages[2]["type"] == "success"
    project.run()
    assert len(receiver.texts()) == 3
    project.run("wrong the disk is full")
    assert len(receiver.texts()) == 4


def test_one_message_for_all_that_a_run_has_to_tell(tmp_path, receiver):
    project = Watched(tmp_path, receiver.address)
    project.run("wrong one", "wrong two")
    project.run("announce Cycle 8 is live", "wrong three")
    assert [text.splitlines() for text in receiver.texts()] == [
        ["failed: dogs: one", "failed: cats: two", "stable on local still serves Cycle 7"],
        [
            "failed: cats: three",
            receiver.texts()[1].splitlines()[1],
            "deployed: dogs: Cycle 8 is live",
        ],
    ]
    assert receiver.texts()[1].splitlines()[1].startswith("recovered: dogs, after ")
    assert receiver.messages[1]["title"].endswith(": failed, recovered, deployed")


def test_a_task_that_is_up_to_date_again_has_recovered(tmp_path, receiver):
    dodo = 'def task_t():\n    return {"actions": ["true"], "file_dep": ["in/one"]}\n'
    project = Watched(tmp_path, receiver.address, dodo=dodo)
    project.run()
    (project.root / "in/one").rename(project.root / "in/away")
    project.run(status=2)
    (project.root / "in/away").rename(project.root / "in/one")
    assert project.run().text == ""  # nothing ran
    assert [text.partition(":")[0] for text in receiver.texts()] == ["failed", "recovered"]


def test_what_only_waits_for_a_failed_task_is_no_failure_of_its_own(tmp_path, receiver):
    project = Watched(
        tmp_path,
        receiver.address,
        dodo=FAILING
        + """
def task_below():
    return {"actions": ["true"], "task_dep": ["dogs"],
        "meta": {"stands": lambda: ["candidate still serves Cycle 6"]}}
""",
    )
    project.run("wrong one")
    assert receiver.texts() == [
        "failed: dogs: one\nstable on local still serves Cycle 7\ncandidate still serves Cycle 6"
    ]


def test_a_fault_that_passes_is_told_when_it_lasted_two_runs(tmp_path, receiver):
    project = Watched(tmp_path, receiver.address)
    project.run("later gpu-box: no route", status=75)
    project.run()
    project.run("later gpu-box: no route", status=75)
    assert receiver.texts() == []
    project.run("later gpu-box: timed out", status=75)
    project.run("later gpu-box: no route", status=75)
    assert len(receiver.texts()) == 1 and "gpu-box: timed out" in receiver.texts()[0]
    project.run()
    assert receiver.texts()[1].startswith("recovered: dogs")


def test_another_one_at_work_is_never_told(tmp_path, receiver):
    project = Watched(tmp_path, receiver.address)
    for _ in range(3):
        project.run("busy another deploy is at work", status=75)
    project.run()
    assert receiver.texts() == []


def test_a_failure_that_lasts_is_told_again_after_a_day(tmp_path, receiver):
    project = Watched(tmp_path, receiver.address)
    project.run("wrong one")
    project.change_memory(lambda memory: memory["failing"]["dogs"].update(told=time.time() - 86000))
    project.run("wrong one")
    assert len(receiver.texts()) == 1
    project.change_memory(lambda memory: memory["failing"]["dogs"].update(told=time.time() - 86500))
    project.run("wrong one")
    project.run("wrong one")
    assert len(receiver.texts()) == 2
    assert receiver.texts()[1].startswith("failed: dogs, since ")


def test_a_task_that_is_no_more_is_forgotten(tmp_path, receiver):
    project = Watched(tmp_path, receiver.address)
    project.run("wrong one")
    project.write("dodo.py", FAILING.replace("task_dogs", "task_birds"))
    project.write("in/birds", "")
    project.run()
    assert project.memory() == {"failing": {}, "outbox": []}
    assert len(receiver.texts()) == 1


def test_what_a_recipe_s_process_announces_is_told_and_an_event(tmp_path, receiver):
    dodo = (
        "from tasks.core.recipe import Recipe\n"
        'def task_t():\n    yield Recipe(name="t", version=1, function="work:make",'
        ' inputs={"source": "in/one"}, outputs={"out": "out/t"}).task("x", "Makes.")\n'
    )
    project = Watched(tmp_path, receiver.address, dodo=dodo)
    project.write(
        "work.py",
        "from tasks.core.action import announce\n"
        "def make(source, out):\n"
        '    open(out, "w").write("x")\n    announce("new checkpoint", source)\n',
    )
    events = project.events()
    assert {
        "event": "announce",
        "task": "t:x",
        "kind": "new checkpoint",
        "text": "in/one",
    } in events
    assert receiver.texts() == ["new checkpoint: t:x: in/one"]


def test_an_interrupted_run_s_news_are_told_by_the_next(tmp_path, receiver):
    project = Watched(
        tmp_path,
        receiver.address,
        dodo=FAILING
        + """
def task_sleep():
    return {"actions": ["touch began; sleep 60"]}
""",
    )
    project.says("announce Cycle 8 is live")
    process = project.start()
    project.wait_for("began")
    process.send_signal(signal.SIGTERM)
    process.communicate(timeout=20)
    assert receiver.texts() == []
    project.write("dodo.py", FAILING)
    project.run()
    assert receiver.texts() == ["deployed: dogs: Cycle 8 is live"]


def test_a_run_that_can_record_nothing_is_told(tmp_path, receiver):
    project = Watched(tmp_path, receiver.address)
    lose = "import sqlite3; sqlite3.connect('.quern/state.db').execute('drop table task')"
    project.write(
        "dodo.py", f'def task_t():\n    return {{"actions": [["python3", "-c", {lose!r}]]}}\n'
    )
    project.run(status=2)
    (text,) = receiver.texts()
    assert text.startswith("failed: doit: ") and "state.db: can't be written" in text
    project.write("dodo.py", FAILING)
    project.run()
    assert receiver.texts()[1].startswith("recovered: doit, after ")


def test_a_long_story_is_cut(tmp_path, receiver):
    dodo = """
from tasks.core.errors import QuernError
from tasks.core.recipe import FunctionAction

def fail(project, task):
    raise QuernError("x" * 3000)

def task_t():
    for n in range(12):
        yield {"name": str(n), "actions": [FunctionAction(fail)]}
"""
    project = Watched(tmp_path, receiver.address, dodo=dodo)
    project.run(status=1)
    (text,) = receiver.texts()
    assert len(text) <= 1800 and text.endswith("\nand 9 more")


@pytest.mark.parametrize(
    ("one", "other", "same"),
    [
        ("took 3 s", "took 12.75 s", True),
        ("digest 0a1b2c3d4e5f wrong", "digest ffee00112233 wrong", True),
        ("process 12 was killed", "process 12 was ended", False),
        ("weights defaced", "weights decade", False),
    ],
)
def test_numbers_and_ids_make_no_other_failure(one, other, same):
    assert (masked(one) == masked(other)) == same


# ---- addresses that don't take it ----------------------------------------------------------------


def test_after_an_outage_everything_arrives_once_and_in_order(tmp_path, receivers):
    port = free_port()
    project = Watched(tmp_path, address_of(port))
    outcome = project.run("wrong one")
    (line,) = [line for line in outcome.err.splitlines() if line.startswith("notify")]
    assert line.startswith("notify[0] (JSON): not taken: ")
    assert line.endswith("; sent again at the next run")
    assert line in project.read(".quern/logs/run.log")
    assert project.run("wrong one").err.count("notify") == 0  # told once
    project.run("announce Cycle 8 is live")
    receiver = receivers(port)
    assert "notify" not in project.run().text
    assert [text.partition(":")[0] for text in receiver.texts()] == ["failed", "recovered"]
    assert "deployed: dogs: Cycle 8 is live" in receiver.texts()[1]
    project.run()
    assert len(receiver.texts()) == 2


def test_a_dead_address_keeps_nothing_from_another(tmp_path, receivers):
    port = free_port()
    alive = receivers()
    project = Watched(tmp_path, address_of(port), alive.address)
    project.run("wrong one")
    project.run("wrong two words")
    assert len(alive.texts()) == 2
    late = receivers(port)
    project.run("wrong two words")
    assert late.texts() == alive.texts() and len(alive.texts()) == 2


def test_a_refusal_is_told_and_changes_no_exit_status(tmp_path, receiver):
    project = Watched(tmp_path, receiver.address)
    receiver.status = 500
    outcome = project.run("announce Cycle 8 is live")
    assert outcome.status == 0
    assert "notify[0] (JSON): not taken: " in outcome.err and "500" in outcome.err
    receiver.status = 200
    project.run()
    assert receiver.texts() == ["deployed: dogs: Cycle 8 is live"]


def test_a_server_that_never_answers_fails_nothing(tmp_path, receiver):
    project = Watched(tmp_path, receiver.address)
    receiver.hangs = True
    assert "notify[0] (JSON): not taken: " in project.run("announce Cycle 8 is live").err


@pytest.mark.slow
def test_a_notifier_that_hangs_is_ended_and_keeps_nothing_from_another(tmp_path, receivers):
    hanging, alive = receivers(), receivers()
    hanging.hangs = True
    project = Watched(tmp_path, f"{hanging.address}?rto=120&cto=120", alive.address)
    outcome = project.run("announce Cycle 8 is live")
    assert "notify[0]" in outcome.err and "no answer within 25 s" in outcome.err
    assert alive.texts() == ["deployed: dogs: Cycle 8 is live"]


def test_what_is_never_taken_is_dropped_with_a_line_in_the_log(tmp_path):
    project = Watched(tmp_path, address_of(free_port()))
    project.run("wrong one")
    four_days = 4 * 86400
    project.change_memory(lambda memory: memory["outbox"][0].update(at=time.time() - four_days))
    project.run("wrong one")
    assert project.memory()["outbox"] == []
    assert project.read(".quern/logs/run.log").count("notify: dropped, never taken: ") == 1

    def many(memory: dict) -> None:
        waiting = list(map(key, [project.read("models.yaml")]))
        memory["outbox"] = [
            {
                "at": time.time(),
                "title": f"title {n}",
                "body": "",
                "tone": "info",
                "waiting": waiting,
            }
            for n in range(KEPT_MESSAGES + 5)
        ]

    def key(models: str) -> str:
        from tasks.core.notifications import digest_of

        return digest_of(json.loads(models.partition("notify: ")[2])[0])

    project.change_memory(many)
    project.run("wrong one")
    assert len(project.memory()["outbox"]) == KEPT_MESSAGES
    assert project.memory()["outbox"][0]["title"] == "title 5"
    assert project.read(".quern/logs/run.log").count("notify: dropped, never taken: ") == 6


def test_an_address_taken_out_of_models_yaml_is_sent_nothing_more(tmp_path, receivers):
    port = free_port()
    project = Watched(tmp_path, address_of(port))
    project.run("wrong one")
    other = receivers()
    project.notify(other.address)
    project.run("wrong one")
    assert project.memory()["outbox"] == [] and other.texts() == []


def test_a_damaged_memory_is_begun_anew(tmp_path, receiver):
    project = Watched(tmp_path, receiver.address)
    project.write(str(MEMORY), '{"failing": 3}')
    project.run("wrong one")
    assert len(receiver.texts()) == 1
    assert "notifications.json: damaged" in project.read(".quern/logs/run.log")


def test_a_memory_that_cannot_be_written_sends_nothing_and_fails_nothing(tmp_path, receiver):
    project = Watched(tmp_path, receiver.address)
    (project.root / MEMORY).mkdir(parents=True)
    (line,) = project.run("announce Cycle 8 is live").err.splitlines()
    assert line.startswith("notify: ") and "notifications.json" in line
    assert receiver.texts() == []  # else it would be told again and again


def test_without_apprise_one_line_says_what_to_do(tmp_path, receiver, monkeypatch):
    blocked = tmp_path / "blocked"
    blocked.mkdir()
    (blocked / "sitecustomize.py").write_text(
        "import sys\n"
        "class Without:\n"
        "    def find_spec(self, name, path=None, target=None):\n"
        "        if name == 'apprise':\n"
        "            raise ModuleNotFoundError(name)\n"
        "sys.meta_path.insert(0, Without())\n"
    )
    import os

    with monkeypatch.context() as patch:
        patch.setenv("PYTHONPATH", f"{blocked}:{os.environ.get('PYTHONPATH', '')}".rstrip(":"))
        project = Watched(tmp_path, receiver.address)
        outcome = project.run("announce Cycle 8 is live")
        (line,) = outcome.err.splitlines()
        assert line == "notify: apprise is not installed, messages wait: pip install -e '.[notify]'"
        assert project.run().text.count("notify") == 0
        assert project.doit("notify", "--test").status == 3
    project.run()
    assert receiver.texts() == ["deployed: dogs: Cycle 8 is live"]


def test_a_child_that_takes_too_long_is_ended(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "work.py").write_text("import time\ndef sleep():\n    time.sleep(600)\n")
    with pytest.raises(QuernError, match="took too long"):
        call_in_child("work:sleep", {}, tmp_path / "log", print, limit_seconds=1)
    end_all()


# ---- addresses -----------------------------------------------------------------------------------


@pytest.mark.parametrize("address", ["t0ken-in-the-path", "json:/t0ken-in-the-path", "json://a b"])
def test_what_is_no_address_is_refused_and_not_shown(tmp_path, address):
    project = Watched(tmp_path, "json://127.0.0.1/", address)
    project.write(
        "dodo.py",
        "from tasks.core.configuration import load_configuration\n"
        'def task_t():\n    load_configuration()\n    return {"actions": ["true"]}\n',
    )
    outcome = project.doit("--cron")
    assert outcome.status == 3
    (line,) = outcome.err.splitlines()
    assert line.startswith("models.yaml:2: notify[1]: is no address; write service://")
    assert "t0ken" not in project.read(".quern/logs/run.log") + outcome.text


def test_plain_webhooks_are_known_by_their_service():
    addresses = [
        f"https://discord.com/api/webhooks/{'4' * 18}/{'x' * 68}",
        f"https://hooks.slack.com/services/T{'1' * 8}/B{'2' * 8}/{'c' * 24}",
        f"tgram://123456789:{'a' * 35}/-1001",
        "mailto://ada:pa55word@gmail.com",
        "nosuch://t0ken",
    ]
    letters = [{"position": n, "address": a, "messages": []} for n, a in enumerate(addresses)]
    results = send(letters, 20)
    assert [r["service"] for r in results] == ["Discord", "Slack", "Telegram", "E-Mail", ""]
    assert [bool(r["why"]) for r in results] == [False, False, False, False, True]
    assert results[4]["why"] == "is no address that apprise knows"


def test_nothing_of_an_address_is_left_in_what_apprise_says():
    address = "json://ada:pa%2055@host.example:8080/t0k/en?to=x"
    said = "Could not reach host.example:8080 as ada with pa 55 or pa%2055, t0k/en, error=404."
    told = redacted(said, address)
    assert told.endswith("error=404.") and told.startswith("Could not reach …:…")
    for part in ("ada", "pa", "55", "host", "8080", "t0k", "en,"):
        assert part not in told.split("error")[0].replace("reach", "")


def test_the_test_message_says_who_took_it(tmp_path, receivers):
    alive, refusing = receivers(), receivers()
    refusing.status = 403
    project = Watched(tmp_path, alive.address, refusing.address, "nosuch://t0ken-in-the-path")
    outcome = project.doit("notify", "--test")
    assert outcome.status == 1 and outcome.err == ""
    lines = outcome.out.splitlines()
    assert lines[0] == "notify[0] (JSON): taken"
    assert lines[1].startswith("notify[1] (JSON): not taken: ") and "403" in lines[1]
    assert lines[2] == "notify[2]: not taken: is no address that apprise knows"
    assert not any(secret in outcome.text for secret in SECRETS)
    assert alive.messages[0]["title"] == "Quern kennel: a test"
    project.notify(alive.address)
    assert project.doit("notify", "--test").status == 0
    project.notify()
    outcome = project.doit("notify", "--test")
    assert (outcome.status, len(outcome.text.splitlines())) == (3, 1)
    assert project.doit("notify").status == 3


def test_an_address_from_the_environment_file(tmp_path, receiver):
    project = Watched(tmp_path, "${WEBHOOK}")
    file = project.write(".quern/environment", f"WEBHOOK={receiver.address}\n")
    file.chmod(0o600)
    project.says("wrong one")
    assert project.doit("--cron").status == 1
    assert len(receiver.texts()) == 1
    assert receiver.paths == [f"/{SECRETS[2]}"]
