"""Point 4: a task runs exactly when the bytes it depends on, or it itself, have changed."""

import os
import shutil
import time
from pathlib import Path

import pytest

from tasks.core.digest import TICK_NS, DigestIndex, read_digests
from tasks.core.state import State
from tests.build_project import DIAMOND, WORK, BuildProject

EVERYTHING = ["left", "right", "top", "copy"]


@pytest.fixture
def project(tmp_path: Path, built_once: BuildProject) -> BuildProject:
    """The diamond, built."""
    return built_once.copy(tmp_path)


def test_nothing_changed_prints_nothing_and_runs_nothing(project):
    outcome = project.built()
    assert (outcome.text, outcome.ran) == ("", [])


def test_touch_rebuilds_nothing(project):
    for path in [*(project.root / "in").iterdir(), *(project.root / "out").iterdir()]:
        os.utime(path)
    outcome = project.built()
    assert (outcome.text, outcome.ran) == ("", [])


def test_a_byte_changed_with_size_and_mtime_kept_rebuilds_what_depends_on_it(project):
    project.edit_keeping_size_and_mtime("in/three", "three", "THREE")
    assert project.built().ran == ["right", "top", "copy"]
    assert project.read("out/copy") == "one\ntwo\nTHREE\n"


def test_a_byte_changed_with_size_and_mtime_kept_is_seen_long_after(project):
    time.sleep(2.2)  # entries are trusted by their stat signature from 2 s on
    assert project.built().ran == []
    project.edit_keeping_size_and_mtime("in/three", "three", "THREE")
    assert project.built().ran == ["right", "top", "copy"]


def test_a_file_replaced_by_an_older_one_is_seen(project):
    os.utime(project.write("other", "THREE\n"), ns=(0, 0))
    os.replace(project.root / "other", project.root / "in/three")
    assert project.built().ran == ["right", "top", "copy"]


def test_changed_parameters_rebuild_their_dependents_only(project):
    project.write("dodo.py", DIAMOND.replace('["in/three"])', '["in/three"], separator="-")'))
    # right comes to the same bytes, so what is below it stays.
    assert project.built().ran == ["right"]
    joined = 'joined("left", ["in/one", "in/two"], separator="-")'
    project.write("dodo.py", DIAMOND.replace('joined("left", ["in/one", "in/two"])', joined))
    outcome = project.built()
    assert outcome.ran == ["left", "top", "copy"]
    assert "make:right: restored from the store" in outcome.out
    assert project.read("out/copy") == "one\n-two\nthree\n"


def test_a_changed_recipe_version_rebuilds_its_dependents_only(project):
    project.write("dodo.py", DIAMOND.replace('["in/three"])', '["in/three"], version=2)'))
    outcome = project.built()
    assert outcome.ran == ["right"]
    assert "recipe version changed from 1 to 2" in outcome.out


def test_changed_source_of_a_recipe_reruns_the_recipes_of_that_module(project):
    project.write("work.py", WORK.replace("separator.join(", "'>' + separator.join("))
    outcome = project.built()
    assert outcome.ran == EVERYTHING
    assert project.read("out/copy") == ">>one\ntwo\n>three\n"
    assert "code work changed" in outcome.out


def test_code_changed_with_size_and_mtime_kept_is_what_runs(tmp_path, monkeypatch):
    monkeypatch.setenv("PYTHONDONTWRITEBYTECODE", "")  # with .pyc files, as users have them
    work = "import helping\n\n\ndef make(out):\n    open(out, 'w').write('one' + helping.WORD)\n"
    dodo = """
from tasks.core.recipe import Recipe

def task_make():
    yield Recipe(name="make", version=1, function="work:make", inputs={},
        outputs={"out": "out/x"}, tool_files=("helping.py",)).task("x", "Makes.")
"""
    project = BuildProject(tmp_path, dodo, work)
    project.write("helping.py", "WORD = 'red'\n")
    project.built()
    project.edit_keeping_size_and_mtime("work.py", "one", "two")
    project.built()
    assert project.read("out/x") == "twored"
    project.edit_keeping_size_and_mtime("helping.py", "red", "tan")
    project.built()
    assert project.read("out/x") == "twotan"


def test_a_module_that_counts_reruns_only_the_recipe_that_names_it(tmp_path):
    dodo = DIAMOND.replace(
        '"name": name, **parameters},',
        '"name": name, **parameters},\n'
        '        tool_files=("codec.py",) if name == "right" else (),',
    )
    project = BuildProject(tmp_path, dodo)
    project.write("codec.py", "A = 1\n")
    project.built()
    project.write("codec.py", "A = 2\n")
    assert project.built().ran == ["right"]


def test_a_changed_shell_command_reruns_its_task_only(project):
    project.write("dodo.py", DIAMOND.replace("cat out/top > out/copy", "rev out/top > out/copy"))
    assert project.built().ran == ["copy"]
    assert project.read("out/copy") == "eno\nowt\neerht\n"


PYTHON_TASK = """
import functools

LETTERS = {"a", "b", "c", "d", "e", "f"}


def write(path, text):
    with open("runs", "a") as file:
        file.write("python\\n")
    assert "a" in {"a", "b", "c", "d", "e", "f", "g", "h"}
    with open(path, "w") as file:
        file.write(text)


def task_python():
    value = "VALUE"
    return {
        "actions": [
            (write, ["out/one", "ARGUMENT"]),
            lambda: write("out/two", value),
            functools.partial(write, "out/three", "PARTIAL"),
            (write, [], {"path": "out/four", "text": str(sorted(LETTERS))}),
        ],
        "file_dep": ["in/one"],
        "targets": ["out/one", "out/two", "out/three", "out/four"],
    }
"""


def test_a_changed_python_action_reruns_its_task(tmp_path):
    project = BuildProject(tmp_path, PYTHON_TASK)
    assert project.built().ran == ["python"] * 4
    # Sets in the code have another order in every process: that must not count.
    assert project.built().ran == project.built().ran == []
    changes = (("ARGUMENT", "1"), ("VALUE", "1"), ("PARTIAL", "1"), ('"a" in', '"b" in'))
    for old, new in changes:
        project.write("dodo.py", PYTHON_TASK.replace(old, new))
        assert project.built().ran == ["python"] * 4, old


def test_an_upstream_that_reruns_to_equal_bytes_stops_there(tmp_path):
    project = BuildProject(
        tmp_path,
        """
from tasks.core.recipe import Recipe

def task_letter():
    yield Recipe(name="letter", version=1, function="work:first_letter",
        inputs={"source": "in/one"}, outputs={"out": "out/letter"},
        parameters={"name": "letter"}).task("x", "First letter.")

def task_below():
    yield Recipe(name="join", version=1, function="work:join",
        inputs={"sources": ["out/letter"]}, outputs={"out": "out/below"},
        parameters={"name": "below"}).task("x", "Below it.")
    yield {"name": "shell", "actions": ["cat out/letter > out/shell; echo shell >> runs"],
        "file_dep": ["out/letter"], "targets": ["out/shell"]}
""",
    )
    assert sorted(project.built().ran) == ["below", "letter", "shell"]
    project.write("in/one", "o, but otherwise different\n")
    assert project.built().ran == ["letter"]
    project.write("in/one", "x\n")
    assert sorted(project.built().ran) == ["below", "letter", "shell"]


@pytest.mark.parametrize("harm", ["deleted", "truncated", "edited", "edited keeping mtime"])
def test_a_harmed_target_is_noticed_and_restored(project, harm):
    for target in ("left", "top", "copy"):
        path = project.root / "out" / target
        if harm == "deleted":
            path.unlink()
        elif harm == "truncated":
            os.truncate(path, 3)
        elif harm == "edited":
            path.write_text("not what was built\n")
        else:
            project.edit_keeping_size_and_mtime(f"out/{target}", "one", "eno")
    outcome = project.built()
    assert outcome.ran == ["copy"]  # recipes' targets come back from the store
    assert project.read("out/copy") == project.read("out/top") == "one\ntwo\nthree\n"
    assert project.read("out/left") == "one\ntwo\n"
    assert project.built().text == ""


def test_a_b_a_takes_everything_from_the_store(tmp_path):
    project = BuildProject(tmp_path, DIAMOND.partition("def task_copy")[0])
    project.built()
    project.write("in/one", "ONE\n")
    assert project.built().ran == ["left", "top"]
    project.write("in/one", "one\n")
    outcome = project.built()
    assert outcome.ran == []
    assert outcome.out.count("restored from the store") == 2
    assert project.read("out/top") == "one\ntwo\nthree\n"


def test_clean_and_build_takes_everything_from_the_store(tmp_path):
    project = BuildProject(tmp_path, DIAMOND.partition("def task_copy")[0])
    project.built()
    project.built("clean")
    assert not list((project.root / "out").iterdir())
    outcome = project.built()
    assert outcome.ran == []
    assert project.read("out/top") == "one\ntwo\nthree\n"


def test_a_new_checkout_with_the_store_runs_nothing(project, tmp_path_factory):
    other = BuildProject(tmp_path_factory.mktemp("other"), DIAMOND.partition("def task_copy")[0])
    shutil.copytree(project.root / ".quern/store", other.root / ".quern/store")
    assert other.built().ran == []
    assert other.read("out/top") == "one\ntwo\nthree\n"


EDITED_MEANWHILE = """
import os

def edit(name, source, out):
    open("runs", "a").write(name + "\\n")
    text = open(source).read()
    open(out, "w").write(text)
    if text == "one\\n":
        status = os.stat(source)
        open(source, "r+").write("ONE")
        os.utime(source, ns=(status.st_atime_ns, status.st_mtime_ns))
"""


@pytest.mark.parametrize("kind, threads", [("recipe", ["-n", "2"]), ("shell", [])])
def test_an_input_edited_while_its_task_runs_is_caught(tmp_path, kind, threads):
    recipe = """
from tasks.core.recipe import Recipe

def task_edit():
    yield Recipe(name="edit", version=1, function="work:edit", inputs={"source": "in/one"},
        outputs={"out": "out/x"}, parameters={"name": "edit"}).task("x", "Edits its input.")
"""
    shell = """
def task_edit():
    yield {"name": "x", "file_dep": ["in/one"], "targets": ["out/x"], "actions":
        ["cat in/one > out/x; echo edit >> runs; grep -q one in/one && echo ONE > in/one; true"]}
"""
    project = BuildProject(tmp_path, recipe if kind == "recipe" else shell, EDITED_MEANWHILE)
    outcome = project.doit(*threads)
    assert outcome.status == 1
    assert "input in/one was changed while it ran" in outcome.err
    assert len(outcome.err.splitlines()) == 1
    assert project.built(*threads).ran == ["edit"]
    assert project.read("out/x") == "ONE\n"
    assert project.built(*threads).ran == []


def test_a_declared_target_that_is_not_made_is_a_failure(tmp_path):
    project = BuildProject(
        tmp_path,
        """
from tasks.core.recipe import Recipe

def task_lazy():
    yield {"name": "shell", "actions": ["true"], "targets": ["out/never"]}
    yield Recipe(name="lazy", version=1, function="work:nothing", inputs={},
        outputs={"out": "out/neither"}).task("recipe", "Makes nothing.")
""",
        "def nothing(out):\n    pass\n",
    )
    outcome = project.doit()
    assert outcome.status == 1
    assert "lazy:shell: its declared target out/never was not made" in outcome.err
    assert "lazy:recipe: its declared target out/neither was not made" in outcome.err


def test_dot_slash_a_and_a_are_one_node(tmp_path):
    project = BuildProject(
        tmp_path,
        """
def task_z_first():
    return {"actions": ["cat in/one > mid; echo first >> runs"], "file_dep": ["./in//one"],
        "targets": ["./mid"]}

def task_a_second():
    return {"actions": ["cat mid > end; echo second >> runs"], "file_dep": ["mid"],
        "targets": ["in/../end"]}

def task_b_third():
    import os
    return {"actions": ["cat end > last; echo third >> runs"],
        "file_dep": [os.path.abspath("end")], "targets": ["last"]}
""",
    )
    assert project.built().ran == ["first", "second", "third"]
    project.write("in/one", "ONE\n")
    assert project.built().ran == ["first", "second", "third"]
    assert project.read("last") == "ONE\n"


def test_a_file_is_read_once_however_many_tasks_need_it(tmp_path):
    project = BuildProject(
        tmp_path,
        """
def task_use():
    for i in range(20):
        yield {"name": str(i), "actions": [f"cat in/one > out/{i}"], "file_dep": ["in/one"],
            "targets": [f"out/{i}"]}
""",
    )
    time.sleep(2.2)  # let the input settle, as a checkpoint has when doit sees it
    assert project.opens("in/one") == 1
    assert project.opens("in/one") == 0
    os.utime(project.root / "in/one")
    time.sleep(2 * TICK_NS / 1e9)
    assert project.opens("in/one", "-n", "2") == 1


def test_a_recipes_output_is_not_read_again_by_what_is_below_it(tmp_path):
    project = BuildProject(tmp_path)
    assert project.opens("out/left") == 0  # its digest is known from when it was made


def test_one_read_gives_xxh3_and_sha256_where_asked(tmp_path):
    path = tmp_path / "file"
    path.write_bytes(b"checkpoint" * 1000)
    time.sleep(2 * TICK_NS / 1e9)
    index = DigestIndex(State(tmp_path / "state.db"))
    xxh3, sha256 = index.digests(str(path))
    assert index.digest(str(path)) == xxh3
    assert index.files_read == 1
    import hashlib

    assert sha256 == hashlib.sha256(path.read_bytes()).hexdigest()
    assert read_digests(path)[1:] == (xxh3, None)
    # Asked for later, the file is read for it, once.
    other = tmp_path / "other"
    other.write_bytes(b"x")
    time.sleep(2 * TICK_NS / 1e9)
    index.digest(str(other))
    index.digests(str(other))
    index.digests(str(other))
    assert index.files_read == 3


def test_a_directory_counts_by_names_and_contents(tmp_path):
    project = BuildProject(
        tmp_path,
        """
def task_pack():
    return {"actions": ["cat in/* > out/pack; echo pack >> runs"], "file_dep": ["in"],
        "targets": ["out/pack"]}
""",
    )
    assert project.built().ran == ["pack"]
    assert project.built().ran == []
    project.edit_keeping_size_and_mtime("in/two", "two", "TWO")
    assert project.built().ran == ["pack"]
    os.rename(project.root / "in/two", project.root / "in/four")
    assert project.built().ran == ["pack"]


def test_a_damaged_object_in_the_store_is_made_again(project):
    digest = read_digests(project.root / "out/left")[1]
    stored = project.root / ".quern/store/objects" / digest[:2] / digest[2:]
    stored.chmod(0o644)
    stored.write_text("damaged\n")
    (project.root / "out/left").unlink()
    outcome = project.built()
    assert outcome.ran == ["left"]
    assert "damaged in the store" in outcome.err
    assert project.read("out/left") == "one\ntwo\n"


def test_a_damaged_result_in_the_store_is_made_again(project):
    for result in (project.root / ".quern/store/results").rglob("*.json"):
        result.write_text('{"outputs": {"out": ')
    (project.root / "out/left").unlink()
    assert project.built().ran == ["left"]
    assert project.read("out/copy") == "one\ntwo\nthree\n"


def test_an_edit_of_a_target_never_reaches_the_store(project):
    with open(project.root / "out/left", "r+") as file:
        file.write("EDITED")
    assert project.built().ran == []
    assert project.read("out/left") == "one\ntwo\n"


LINKING = """
import os

def link(source, out, how):
    os.link(source, out) if how == "hard" else os.symlink(os.path.abspath(source), out)
"""
LINKING_DODO = """
from tasks.core.recipe import Recipe

def task_link():
    yield Recipe(name="link", version=1, function="work:link", inputs={"source": "in/one"},
        outputs={"out": "out/x"}, parameters={"how": "HOW"}).task("x", "Links its input.")
"""


def test_an_output_hard_linked_to_an_input_is_stored_apart_from_it(tmp_path):
    project = BuildProject(tmp_path, LINKING_DODO.replace("HOW", "hard"), LINKING)
    project.built()
    assert os.access(project.root / "in/one", os.W_OK)
    assert (project.root / "in/one").stat().st_mode & 0o200
    with open(project.root / "in/one", "r+") as file:
        file.write("ONE")
    project.built()
    project.write("in/one", "one\n")
    project.built()
    assert project.read("out/x") == "one\n"


def test_an_output_that_is_a_symbolic_link_is_refused(tmp_path):
    project = BuildProject(tmp_path, LINKING_DODO.replace("HOW", "symbolic"), LINKING)
    outcome = project.doit()
    assert outcome.status == 1
    assert "its output x is not a regular file" in outcome.err


def test_a_program_stays_a_program_when_restored(tmp_path):
    project = BuildProject(
        tmp_path,
        LINKING_DODO,
        "import os\ndef link(source, out, how):\n    open(out, 'w').write('#!')\n"
        "    os.chmod(out, 0o755)\n",
    )
    project.built()
    (project.root / "out/x").unlink()
    project.built()
    assert os.access(project.root / "out/x", os.X_OK)


def test_inputs_found_when_the_tasks_turn_comes(tmp_path):
    project = BuildProject(
        tmp_path,
        """
import glob
from tasks.core.recipe import Recipe

def task_watch():
    yield Recipe(name="join", version=1, function="work:join",
        inputs=lambda: {"sources": sorted(glob.glob("in/t*"))}, outputs={"out": "out/x"},
        parameters={"name": "watch"}).task("x", "Joins what is there.")
""",
    )
    assert project.built().ran == ["watch"]
    assert project.built().ran == []
    project.write("in/too", "too\n")
    assert project.built().ran == ["watch"]
    assert project.read("out/x") == "three\ntoo\ntwo\n"


def test_always_execute_runs_recipes_too(project):
    assert project.built("-a", "make:left").ran == ["left"]


def test_a_recipe_that_is_to_make_more_than_before_runs_again(tmp_path):
    dodo = """
from tasks.core.recipe import Recipe


def task_make():
    yield Recipe(
        name="copies", version=1, function="work:copies", inputs={"source": "in/one"},
        outputs={name: f"out/{name}" for name in NAMES},
    ).task("copies", "Copies.")
"""
    work = (
        "import shutil\n\n\ndef copies(source, **outputs):\n"
        "    for path in outputs.values():\n        shutil.copy(source, path)\n"
    )
    build = BuildProject(tmp_path, dodo=dodo.replace("NAMES", "['a']"), work=work)
    build.built()
    build.write("dodo.py", dodo.replace("NAMES", "['a', 'b']"))
    build.built()
    assert build.read("out/b") == build.read("in/one")
    assert build.built().text == ""
