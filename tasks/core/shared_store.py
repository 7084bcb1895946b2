"""The shared store: what recipes made, kept by machines for each other (docs/store.md).

`store.remote` of models.yaml names it; its layout is the local store's. An object comes into the
local store only if its bytes have its digest; a result is sent after its objects. Whatever is wrong
with the shared store fails no task: it is said in one line, and the run goes on without it.
"""

import json
import shutil
import threading
from collections.abc import Callable, Collection, Iterable
from contextlib import suppress
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING

from tasks.core.digest import digest_of_bytes, listing_of
from tasks.core.environment import configuration_file
from tasks.core.state import State
from tasks.core.store import Artifact, Store, outputs_in, recipe_key

if TYPE_CHECKING:
    from tasks.core.remote_files import RemoteFiles

Progress = Callable[[str, int, int], None]  # label, bytes done, bytes in all


class Damaged(Exception):
    """Something in the shared store is not what its name says."""


class SharedStore:
    """Looks results up in the shared store, and adds to it; safe for several threads. Before the
    first call nothing is imported, configured or asked."""

    def __init__(self, store: Store, state: State, warn: Callable[[str], None]) -> None:
        self._store, self._state, self._warn = store, state, warn
        self._opening, self._sending = threading.RLock(), threading.Lock()
        self._opened = self._reads = self._writes = self._has_warned = False
        self._remote: str | None = None  # not asked for yet
        self._ssh_config: str | None = None
        self._shown = ""
        self._there: RemoteFiles | None = None
        self._damaged: set[str] = set()

    # -- looking up ----------------------------------------------------------------------------

    def pull(
        self,
        key: str,
        roles: Collection[str],
        work_directory: Callable[[], Path],
        progress: Progress,
    ) -> dict[str, Artifact] | None:
        """The outputs of a recipe key, brought into the local store by way of a work directory;
        None if the shared store hasn't all that `roles` name, whole, or can't be asked."""
        there = self._open()
        if there is None or not self._reads:
            return None
        try:
            data = there.read(self._name(self._store.result_path(key)))
            outputs = {} if data is None else _checked(key, data)
            if data is None or not set(roles) <= outputs.keys():
                return None
            work = work_directory()
            try:
                for artifact in outputs.values():
                    self._bring(there, artifact, work, progress)
            finally:
                shutil.rmtree(work, ignore_errors=True)
            self._store.keep_result(key, data)
            self._note(key)
            return outputs
        except Damaged as damage:
            self._say(f"{damage}; what it belongs to is made here")
        except Exception as error:
            self._give_up(error)
        return None

    def _bring(
        self, there: "RemoteFiles", artifact: Artifact, work: Path, progress: Progress
    ) -> None:
        self._bring_object(there, artifact.digest, work, progress)
        for name, digest in self._listing(artifact).items():
            if name.startswith("/") or ".." in PurePosixPath(name).parts:
                raise Damaged(f"{artifact.digest} lists {name!r}, outside of its directory")
            self._bring_object(there, digest, work, progress)

    def _listing(self, artifact: Artifact) -> dict[str, str]:
        if not artifact.directory:
            return {}
        with suppress(UnicodeDecodeError):
            listing = self._store.listing(artifact.digest)
            if digest_of_bytes(listing_of(listing)) == artifact.digest:
                return listing
        raise Damaged(f"object {artifact.digest} is no directory")

    def _bring_object(
        self, there: "RemoteFiles", digest: str, work: Path, progress: Progress
    ) -> None:
        if self._store.holds(Artifact(digest)):
            return
        source, arriving = self._store.object_path(digest), work / digest
        try:
            there.get(
                self._name(source), arriving, lambda *done: progress("from the shared store", *done)
            )
        except FileNotFoundError:
            raise Damaged(f"object {digest} is missing") from None
        if not self._store.receive(arriving, digest):
            self._damaged.add(digest)
            raise Damaged(f"object {digest} is damaged")

    # -- adding --------------------------------------------------------------------------------

    def push(self, key: str, progress: Progress = lambda label, done, total: None) -> None:
        """Send the local store's result of a recipe key: first the objects that the shared store
        lacks, then the result. Nothing, if they are no longer here."""
        there = self._open()
        outputs = self._store.result(key) if there is not None and self._writes else None
        if there is None or outputs is None:
            return
        with self._sending:  # else two tasks with the same output would write the same file
            try:
                for artifact in outputs.values():
                    for digest in self._store.digests_of(artifact):
                        self._send_object(there, digest, progress)
                self._send(there, self._store.result_path(key), progress)
                self._note(key)
            except Exception as error:
                self._give_up(error, sending=True)

    def push_others(self, keys: Iterable[str]) -> None:
        """Send those results that aren't known to be in the shared store: made before it was
        configured, while it was away, or by a run that was killed."""
        self._configure()
        rows = self._state.rows("select key from shared where remote=?", self._shown)
        known = {key for (key,) in rows}
        for key in keys:
            if key not in known:
                self.push(key)

    def _send_object(self, there: "RemoteFiles", digest: str, progress: Progress) -> None:
        path = self._store.object_path(digest)
        if digest in self._damaged or there.size(self._name(path)) != path.stat().st_size:
            self._send(there, path, progress)
            self._damaged.discard(digest)

    def _send(self, there: "RemoteFiles", path: Path, progress: Progress) -> None:
        there.put(path, self._name(path), lambda *done: progress("to the shared store", *done))

    # -- the connection ------------------------------------------------------------------------

    def _configure(self) -> None:
        with self._opening:
            if self._remote is None:
                self._remote, self._ssh_config = _configured()
                if self._remote:
                    from tasks.core.remote_files import without_secrets

                    self._shown = without_secrets(self._remote)

    def _open(self) -> "RemoteFiles | None":
        """The shared store's files; None if there is none, or it can't be reached."""
        with self._opening:
            self._configure()
            if self._remote and not self._opened:
                from tasks.core.remote_files import connect

                self._opened = True
                try:
                    self._there = connect(self._remote, self._ssh_config, str(self._store.root))
                    self._reads = self._writes = True
                except Exception as error:
                    self._give_up(error)
            return self._there

    def _give_up(self, error: Exception, sending: bool = False) -> None:
        """Ask no more in this run, or only send no more; why is said once a run."""
        from tasks.core.remote_files import why

        with self._opening:
            has_warned, self._has_warned = self._has_warned, True
            self._writes = False
            self._reads = self._reads and sending
        if not has_warned:
            what = "can't be added to" if sending else "can't be used"
            then = "what is made here is not shared" if sending else "this run goes on without it"
            self._say(f"{what}: {why(error, self._remote or '')}; {then}")

    def _say(self, text: str) -> None:
        self._warn(f"store.remote {self._shown}: {text}")

    def _name(self, path: Path) -> str:
        return path.relative_to(self._store.root).as_posix()

    def _note(self, key: str) -> None:
        with self._state.transaction() as connection:
            connection.execute("replace into shared values (?,?)", (self._shown, key))


def _configured() -> tuple[str, str | None]:
    """models.yaml's `store.remote` and `ssh_config`; ("", None) where there is none."""
    if not Path(configuration_file()).exists():
        return "", None
    from tasks.core.configuration import load_configuration

    configuration = load_configuration()
    return configuration.store.remote or "", configuration.ssh_config


def _checked(key: str, data: bytes) -> dict[str, Artifact]:
    """The outputs of a result from elsewhere. Raises Damaged if it isn't the one of this key."""
    try:
        outputs = outputs_in(data)
        result = json.loads(data)
        belongs = recipe_key(result["recipe"], result["components"]) == key
    except (ValueError, KeyError, TypeError):
        belongs = False
    if not belongs:
        raise Damaged(f"result {key} is damaged")
    return outputs
