"""Promotion: the candidate's release put into another channel, if it is no worse than what is
there; nothing is built for it, and nothing is sent to a host that has it.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tasks.core.errors import QuernError
from tasks.hosts.channels import (
    Channel,
    deployment_of,
    how_it_gets_a_release,
    in_words,
    live_release,
)
from tasks.hosts.comparison import read_comparison, stands
from tasks.hosts.history import Journal, live_since
from tasks.hosts.host import Host
from tasks.hosts.marks import Marks
from tasks.hosts.releases import Release

if TYPE_CHECKING:
    from tasks.hosts.attestor import Attestor

# What makes two releases the same model, whatever machine their programs are for.
THE_MODEL = ("weights", "classes", "golden")

Comparison = dict[str, Any]  # tasks.hosts.comparison


class NotPromoted(QuernError):
    """The candidate stays where it is."""


@dataclass(frozen=True)
class Place:
    """A channel of a model, and its host."""

    host: Host
    channel: Channel

    def live(self, model: str) -> Release | None:
        """The release that it has."""
        return live_release(self.host, model, self.channel)


@dataclass(frozen=True)
class Promotion:
    """The way of `model` from the channel of its candidate to another; `built_there` is the
    manifest here of what was built for that other's host. A folder has no server to be compared
    with: `after` is the channel that the release must have been promoted to before."""

    model: str
    candidate: Place
    stable: Place
    margin: float
    built_there: Path
    after: Place | None = None

    def release(self) -> Release | None:
        """What would be promoted: the candidate's release, on another kind of machine the one of
        the same model built for it; None if that is there already. Raises QuernError."""
        candidate = self.candidate.live(self.model)
        if candidate is None:
            raise NotPromoted(
                f"{self.model}: nothing is live in {in_words(self.candidate.channel)} yet: "
                + how_it_gets_a_release(self.model, self.candidate.channel)
            )
        release = candidate
        if self.stable.host.name != self.candidate.host.name and self.built_there.exists():
            built = Release.read(self.built_there)
            if all(built.digest(role) == candidate.digest(role) for role in THE_MODEL):
                release = built
        live = self.stable.live(self.model)
        return None if live is not None and live.id == release.id else release

    def comparison(self) -> Comparison | None:
        """The comparison of the two live releases that is kept, None if it is older than the
        candidate's release is live."""
        candidate, stable = self.candidate.live(self.model), self.stable.live(self.model)
        if candidate is None or stable is None:
            return None
        found = read_comparison(self.candidate.host, self.model, candidate.id, stable.id)
        since = live_since(self.candidate.host, candidate, self.candidate.channel["channel"])
        return found if found and since is not None and found["at"] > since else None

    def refuse_early(self, release: Release) -> None:
        """Raises NotPromoted for a release that must go to another channel first."""
        live = self.after.live(self.model) if self.after else None
        if self.after and (live is None or live.id != release.id):
            raise NotPromoted(
                f"{self.model}: {in_words(self.stable.channel)} gets what "
                f"{in_words(self.after.channel)} has, and that isn't {release.id} yet"
            )

    def refuse_marked(self, release: Release) -> None:
        """Raises NotPromoted for a release that failed or was rolled back on either host."""
        for place in (self.stable, self.candidate):
            mark = Marks(place.host, self.model).read(release.id)
            if mark is not None:
                raise NotPromoted(
                    f"{self.model}: {release.name} ({release.id}) is marked as {mark['mark']} on "
                    f"{place.host.name} by {mark['who']}: {mark['why']}; lift the mark: "
                    f"doit rollback {self.model} --allow {release.id}"
                )

    def refuse_worse(self, comparison: Comparison) -> None:
        """Raises NotPromoted, with the figures, for a candidate that is worse beyond the margin."""
        if not stands(comparison["difference"], self.margin):
            raise NotPromoted(
                f"{self.model}: the candidate is worse: {figures(comparison)}; {self.margin:.2%} "
                f"is allowed (models.{self.model}.compare.margin); to promote it all the same: "
                f"doit promote {self.model} --force --reason TEXT"
            )

    def make_live(
        self,
        release: Release,
        files: dict[str, str],
        journal: Journal,
        attestor: "Attestor | None" = None,
    ) -> str:
        """Put `release` there, proved as in a deploy; `files` (role → path here) are sent if the
        host lacks them. Returns what was done. Raises QuernError; nothing has changed then."""
        deployment = deployment_of(self.stable.host, self.stable.channel, release, journal)
        deployment.attestor = attestor
        deployment.make_live(files, retry=True)
        return deployment.told


def figures(comparison: Comparison) -> str:
    """`accuracy 96.10 % against 97.20 % (-1.10 %, 95 % interval -2.01 to -0.19 %, p 0.02, …)`."""
    accuracy, (low, high) = comparison["accuracy"], comparison["interval"]
    return (
        f"accuracy {accuracy['candidate']:.2%} against {accuracy['stable']:.2%} "
        f"({comparison['difference']:+.2%}, 95 % interval {low:+.2%} to {high:+.2%}, McNemar's p "
        f"{comparison['p']:.2g}, {comparison['set']['count']} of {comparison['set']['path']})"
    )
