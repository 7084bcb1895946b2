"""Promote: put what the candidate's channel has on the others, if it is no worse."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from doit.cmd_base import DoitCmdBase

from tasks.core.commands.project_command import ProjectCommand
from tasks.core.configuration import (
    Classifier,
    configuration_file,
    is_compared,
    load_configuration,
    promotion_policy,
)
from tasks.core.digest import read_digests
from tasks.core.errors import QuernError
from tasks.core.project import Project
from tasks.core.provenance import provenance
from tasks.core.recipe import FunctionAction
from tasks.hosts.channels import Channel, built_for_host, channels_of, host_of, in_words
from tasks.hosts.history import Journal
from tasks.hosts.marks import Marks
from tasks.hosts.promotion import NotPromoted, Place, Promotion, figures
from tasks.hosts.prune import prune
from tasks.hosts.releases import Release
from tasks.models.layout import files_of_release, manifest_file

option_force = {
    "name": "force",
    "long": "force",
    "type": bool,
    "default": False,
    "help": "promote what is worse, was not compared, or is marked; needs --reason",
}
option_reason = {
    "name": "reason",
    "long": "reason",
    "type": str,
    "default": "",
    "help": "why, for the history",
}


def task_promotion() -> Iterator[dict[str, Any]]:
    """Where `promote: auto`, compare the candidate with what is stable, and promote it."""
    yield {"name": None, "doc": task_promotion.__doc__}
    for name, model in load_configuration().models.items():
        policy = promotion_policy(model)
        if policy is not None and policy.by == "auto":
            yield {
                "name": name,
                "doc": f"Promote the candidate of {name}, if it is no worse than what is stable.",
                "actions": [FunctionAction(promote_if_no_worse, model=name)],
                "task_dep": [f"deploy:{name}"],
                "uptodate": [Settled(name)],
            }


class Promote(ProjectCommand, DoitCmdBase):  # type: ignore[misc]
    """Puts the candidate's release into the model's other channels, with the same proof as a
    deploy: nothing is built, and what a host has is not sent again. A candidate that is worse than
    the margin allows, or can't be compared, is refused."""

    name = "promote"
    doc_purpose = "put the candidate's release on stable, if it is no worse"
    doc_usage = "MODEL"
    doc_description = None
    takes_lock = True
    cmd_options = (option_force, option_reason)

    def _execute(self, pos_args: list[str], force: bool, reason: str) -> int:
        if len(pos_args) != 1:
            raise QuernError("promote: name one model")
        if force and not reason:
            raise QuernError("promote: --force needs --reason TEXT: why, for the history")
        return self.one_by_one(
            promotions_of(self.project, pos_args[0]),
            lambda promotion: promote(self.project, promotion, force, reason),
        )


def promotions_of(project: Project, model: str) -> list[Promotion]:
    """A promotion for each channel of `model` that gets releases that way, from the candidate's
    channel on the same host, else from the first. Raises QuernError."""
    configuration = load_configuration()
    configuration.chosen([model])
    wanted = configuration.models[model]
    channels = channels_of(wanted, configuration)
    candidates = [channel for channel in channels if not channel["promoted"]]
    servers = [channel for channel in channels if channel["promoted"] and "port" in channel]
    found = []
    for stable in (channel for channel in channels if channel["promoted"]):
        candidate = on_the_same_host(candidates, stable)
        after = on_the_same_host(servers, stable) if servers and "port" not in stable else None
        found.append(
            Promotion(
                model,
                Place(host_of(project.root, candidate), candidate),
                Place(host_of(project.root, stable), stable),
                wanted.compare.margin,
                Path(manifest_file(model, built_for_host(wanted, stable))),
                Place(host_of(project.root, after), after) if after else None,
            )
        )
    if not found:
        raise QuernError(
            f"{configuration_file()}: models.{model}.deploy: has no channel `candidate` beside "
            "another one to promote it to (docs/channels.md)"
        )
    return found


def on_the_same_host(channels: list[Channel], other: Channel) -> Channel:
    """The one on the host of `other`, else the first."""
    return next((c for c in channels if c["host"] == other["host"]), channels[0])


def promote(project: Project, promotion: Promotion, force: bool = False, reason: str = "") -> str:
    """Promote what the candidate's channel has, unless it is worse; returns what was done.

    `force` promotes it in any case. Raises NotPromoted; QuernError, when it doesn't pass its probe.
    """
    from tasks.hosts.attestor import attestor_of  # `doit list` need not pay for it

    model, stable = promotion.model, promotion.stable
    release = promotion.release()
    if release is None:
        return f"{model}: {in_words(stable.channel)} has the candidate's release already"
    if not force:
        promotion.refuse_marked(release)
        promotion.refuse_early(release)
    comparison = None
    if stable.live(model) is not None and promotion.after is None:
        comparison = promotion.comparison()
        if not force:
            comparison = comparison or compared(project, promotion)
            promotion.refuse_worse(comparison)
    journal = Journal(
        project.private / "history.jsonl",
        {
            **provenance(project.root),
            "promoted_from": promotion.candidate.channel["channel"],
            "reason": reason or because(promotion, comparison),
        },
    )
    with stable.host.lock(stable.host.root / model / "lock"):
        files = files_here(project, promotion, release)
        told = promotion.make_live(release, files, journal, attestor_of(project, journal.run))
        prune(stable.host, model, stable.channel["keep"])
    return told


def because(promotion: Promotion, comparison: dict[str, Any] | None) -> str:
    """Why a release is promoted, for the history."""
    if promotion.after is not None:
        return f"{promotion.after.channel['channel']} has it"
    return figures(comparison) if comparison else "nothing was live there"


def compared(project: Project, promotion: Promotion) -> dict[str, Any]:
    """A comparison of the two, made now. Raises NotPromoted where there is nothing to compare
    them by, QuernError."""
    model = promotion.model
    wanted = load_configuration().models[model]
    if not is_compared(wanted):
        what = "images" if isinstance(wanted, Classifier) else "questions"
        raise NotPromoted(
            f"{model}: the candidate was not compared with what is stable: give "
            f"models.{model}.compare.{what}, or: doit promote {model} --force --reason TEXT"
        )
    from tasks.comparison.compare import compare  # `doit list` need not pay for it

    return compare(project, model, promotion.candidate.channel, promotion.stable.channel)


def files_here(project: Project, promotion: Promotion, release: Release) -> dict[str, str]:
    """Role → path here of the release's files, from the project or its store; {} if one isn't here
    any more: then the host must have the release."""
    wanted = load_configuration().models[promotion.model]
    host = built_for_host(wanted, promotion.stable.channel)
    made = files_of_release(promotion.model, wanted, host)
    found = {}
    for role, entry in release.manifest["roles"].items():
        places = [made.get(role, ""), str(project.store.object_path(entry["xxh3_128"]))]
        here = [p for p in places if Path(p).is_file() and read_digests(p)[1] == entry["xxh3_128"]]
        if not here:
            return {}
        found[role] = here[0]
    return found


def promote_if_no_worse(project: Project, task: str, model: str) -> None:
    """The task of `promote: auto`: as the command, but a candidate that is worse is no failure."""
    for promotion in promotions_of(project, model):
        if not unsettled(promotion):
            continue
        try:
            told = promote(project, promotion)
        except NotPromoted as refusal:
            project.event(task, {"note": str(refusal)})
        else:
            project.announce(task, "promoted", told.partition("\n")[0])
            project.event(task, {"note": told})


def unsettled(promotion: Promotion) -> str:
    """Why the candidate's release is still to be judged, "" if it isn't. Raises QuernError."""
    if promotion.candidate.live(promotion.model) is None:
        return ""
    release = promotion.release()
    if release is None or Marks(promotion.stable.host, promotion.model).read(release.id):
        return ""
    if promotion.after is not None:
        live = promotion.after.live(promotion.model)
        if live is None or live.id != release.id:
            return ""
    elif promotion.comparison():
        return ""  # it would be there if it were good enough
    return f"{release.name} ({release.id}) is in {in_words(promotion.candidate.channel)} only"


class Settled:
    """doit's question whether every candidate was promoted or found worse."""

    def __init__(self, model: str) -> None:
        self.model, self.reason = model, ""

    def __call__(self) -> bool:
        """Ask the hosts; `reason` says what is to be judged."""
        project = Project(Path.cwd())
        told = (unsettled(promotion) for promotion in promotions_of(project, self.model))
        self.reason = next(filter(None, told), "")
        return not self.reason
