"""A project that deploys to machines reached by SSH, each in a network namespace of its own."""

import json
import urllib.request
from dataclasses import dataclass, field
from pathlib import Path

from tests.deploy_project import MODELS, DeployProject
from tests.ssh_world import Machine

HOSTS = """
ssh_config: {config}
hosts:
{hosts}
"""


@dataclass
class RemoteProject(DeployProject):
    """`digits` goes to `stable` on every machine of `names`; `also` is more of models.yaml."""

    names: tuple[str, ...] = ("edge",)
    port: int = 8892
    environment: dict[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        super().__post_init__()
        self.machines = {
            name: Machine(
                self.root.parent / name, name, namespaced=True, environment=self.environment
            ).start()
            for name in self.names
        }
        self.write_models()

    def write_models(self, **of_hosts: str) -> None:
        """models.yaml, with more keys of single hosts (`edge="programs: there"`)."""
        config = self.root / "ssh_config"
        config.write_text("".join(m.config.read_text() for m in self.machines.values()))
        hosts = "".join(
            f"  {name}: {{ssh: {name}, listen: 0.0.0.0, {of_hosts.get(name, '')}}}\n"
            for name in self.names
        )
        text = HOSTS.format(config=config, hosts=hosts) + MODELS.format(port=self.port)
        places = ", ".join(f"{name}: {{stable: {self.port}}}" for name in self.names)
        (self.root / "models.yaml").write_text(
            text.replace(f"deploy: {{local: {{stable: {self.port}}}}}", f"deploy: {{{places}}}")
        )

    @property
    def edge(self) -> Machine:
        return self.machines["edge"]

    def folder_on(self, name: str = "edge") -> Path:
        """Where the machine keeps the model's releases."""
        return self.machines[name].home / "quern" / "digits"

    def address_on(self, name: str = "edge") -> str:
        return f"{self.machines[name].address}:{self.port}"

    def health_on(self, name: str = "edge") -> dict[str, str]:
        url = f"http://{self.address_on(name)}/health"
        with urllib.request.urlopen(url, timeout=10) as answer:
            return json.load(answer)  # type: ignore[no-any-return]

    def history_on(self, name: str = "edge") -> list[dict]:  # type: ignore[type-arg]
        lines = (self.folder_on(name) / "history.jsonl").read_text().splitlines()
        return [json.loads(line) for line in lines]

    def stop_servers(self) -> None:
        """End every process of the machines, and start their sshd again."""
        for machine in self.machines.values():
            machine.stop()
            machine.start()

    def stop(self) -> None:
        """End all machines, with all their processes."""
        super().stop()
        for machine in self.machines.values():
            machine.remove()
