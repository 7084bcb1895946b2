"""Two checkouts of one project, and the places they can share a store in."""

import os
import subprocess
import sys
import urllib.error
import urllib.request
from dataclasses import dataclass
from pathlib import Path
from time import monotonic, sleep

from tests.build_project import DIAMOND, WORK, BuildProject
from tests.ssh_world import free_port

EVERYTHING = ["left", "right", "top"]


def checkout(
    root: Path, remote: str, dodo: str = DIAMOND, work: str = WORK, more: str = ""
) -> BuildProject:
    """A fresh checkout of the project, with `store.remote`."""
    project = BuildProject(root, dodo, work)
    project.write("models.yaml", f"models: {{}}\nstore: {{remote: '{remote}'}}\n{more}")
    return project


def made(names: list[str]) -> list[str]:
    """What recipes made, of what ran; the diamond's shell task is not a recipe."""
    return [name for name in names if name != "copy"]


@dataclass
class S3:
    """moto's S3 server, in a process of its own."""

    folder: Path

    def __post_init__(self) -> None:
        self.port = free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        # --no-reload and a log in a file: nothing of it may block on our pipes.
        with open(self.folder / "moto.log", "wb") as log:
            command = [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(self.port)]
            self.process = subprocess.Popen(command, stdout=log, stderr=log)
        deadline = monotonic() + 60
        while True:
            try:
                urllib.request.urlopen(self.url, timeout=5).close()
                return
            except (urllib.error.URLError, OSError):
                assert monotonic() < deadline and self.process.poll() is None, self.said()
                sleep(0.05)

    def said(self) -> str:
        return (self.folder / "moto.log").read_text()

    def environment(self) -> dict[str, str]:
        """What a user sets for it."""
        return {
            "AWS_ENDPOINT_URL": self.url,
            "AWS_ACCESS_KEY_ID": "user",
            "AWS_SECRET_ACCESS_KEY": "the-secret-key",
            "AWS_DEFAULT_REGION": "us-east-1",
        }

    def bucket(self, name: str) -> object:
        """Make a bucket; returns boto3's handle on it."""
        import boto3

        given = self.environment()
        resource = boto3.resource(
            "s3",
            endpoint_url=self.url,
            region_name=given["AWS_DEFAULT_REGION"],
            aws_access_key_id=given["AWS_ACCESS_KEY_ID"],
            aws_secret_access_key=given["AWS_SECRET_ACCESS_KEY"],
        )
        bucket = resource.Bucket(name)
        bucket.create()
        return bucket

    def stop(self) -> None:
        self.process.kill()
        self.process.wait()


def objects_in(folder: Path) -> set[str]:
    """Names of all files below a folder, unfinished ones too."""
    return {os.path.relpath(p, folder) for p in folder.rglob("*") if p.is_file()}
