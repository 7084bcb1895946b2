"""Checkouts of one project, and the places they can share a store in: a folder, S3, SFTP."""

import os
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from time import monotonic, sleep
from typing import Any

from tests.build_project import DIAMOND, WORK, BuildProject
from tests.ssh_world import Machine, free_port

# Beside the diamond: a program, and a directory.
DODO = (
    DIAMOND
    + """

def task_more():
    yield Recipe(
        name="program", version=1, function="work:program", outputs={"out": "out/program"},
    ).task("program", "Make a program.")
    yield Recipe(
        name="folder", version=1, function="work:folder", outputs={"out": "out/folder"},
    ).task("folder", "Make a directory.")
"""
)
MORE_WORK = (
    "import os\n"
    + WORK
    + """

def program(out):
    count("program")
    with open(out, "w") as file:
        file.write("#!/bin/sh\\necho it runs\\n")
    os.chmod(out, 0o755)


def folder(out):
    count("folder")
    os.makedirs(out + "/below")
    for name in ("a", "below/b"):
        with open(f"{out}/{name}", "w") as file:
            file.write(name)
"""
)
RECIPES = {"left", "right", "top", "program", "folder"}
TARGETS = ("out/top", "out/program", "out/folder/a", "out/folder/below/b")


def checkout(root: Path, remote: str, more: str = "", dodo: str = DODO) -> BuildProject:
    """A fresh checkout of the project, with `store.remote`."""
    project = BuildProject(root, dodo, MORE_WORK)
    project.write("models.yaml", f"models: {{}}\nstore: {{remote: '{remote}'}}\n{more}")
    return project


def made(names: list[str]) -> set[str]:
    """The recipes of what ran; the diamond's shell task is none."""
    return set(names) - {"copy"}


def files_in(folder: Path) -> set[str]:
    """Names of all files below a folder, unfinished ones too."""
    return {os.path.relpath(p, folder) for p in folder.rglob("*") if p.is_file()}


class FolderPlace:
    """A folder that several machines mount."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.url, self.more = f"file://{folder}", ""

    def names(self) -> set[str]:
        return files_in(self.folder)

    def read(self, name: str) -> bytes:
        return (self.folder / name).read_bytes()

    def write(self, name: str, data: bytes) -> None:
        (self.folder / name).write_bytes(data)

    def remove(self, name: str) -> None:
        (self.folder / name).unlink()


class SftpPlace(FolderPlace):
    """The same on another machine, by its sshd."""

    def __init__(self, machine: Machine) -> None:
        super().__init__(machine.home / "shared")
        self.url, self.more = f"sftp://edge{self.folder}", f"ssh_config: {machine.config}\n"


class S3Place:
    """A prefix of a bucket."""

    def __init__(self, server: "S3", bucket: str) -> None:
        self.bucket = server.resource().Bucket(bucket)
        self.bucket.create()
        self.url, self.more = f"s3://{bucket}/some/prefix", ""

    def names(self) -> set[str]:
        return {o.key.removeprefix("some/prefix/") for o in self.bucket.objects.all()}

    def read(self, name: str) -> bytes:
        return self._at(name).get()["Body"].read()  # type: ignore[no-any-return]

    def write(self, name: str, data: bytes) -> None:
        self._at(name).put(Body=data)

    def remove(self, name: str) -> None:
        self._at(name).delete()

    def _at(self, name: str) -> Any:
        return self.bucket.Object(f"some/prefix/{name}")


class S3:
    """moto's S3 server, in a process of its own."""

    def __init__(self, log: Path) -> None:
        self.log = log
        self.port = free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        command = [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(self.port)]
        with open(log, "wb") as output:
            self.process = subprocess.Popen(command, stdout=output, stderr=output)
        deadline = monotonic() + 60
        while True:
            try:
                urllib.request.urlopen(self.url, timeout=5).close()
                return
            except urllib.error.HTTPError:
                return
            except OSError:
                assert monotonic() < deadline and self.process.poll() is None, log.read_text()
                sleep(0.05)

    def environment(self) -> dict[str, str]:
        """What a user sets to reach it."""
        return {
            "AWS_ENDPOINT_URL": self.url,
            "AWS_ACCESS_KEY_ID": "user",
            "AWS_SECRET_ACCESS_KEY": "the-secret-key",
            "AWS_DEFAULT_REGION": "us-east-1",
        }

    def resource(self) -> Any:
        import boto3

        given = self.environment()
        return boto3.resource(
            "s3",
            endpoint_url=self.url,
            region_name=given["AWS_DEFAULT_REGION"],
            aws_access_key_id=given["AWS_ACCESS_KEY_ID"],
            aws_secret_access_key=given["AWS_SECRET_ACCESS_KEY"],
        )

    def stop(self) -> None:
        self.process.kill()
        self.process.wait()


@contextmanager
def s3_server(folder: Path) -> Iterator[S3]:
    server = S3(folder / "moto.log")
    try:
        yield server
    finally:
        server.stop()
