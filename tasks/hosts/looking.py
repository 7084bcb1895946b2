"""What lies on a machine, looked at without touching it: matches of a pattern with their stats and
the machine's own clock in one round trip; digests, and what tells a whole file from a half, in
another, for files whose stat is not known.

Of the remote nothing is asked but a POSIX shell, `stat`, `find`, `od`, and one of python3, openssl,
sha256sum and shasum. Names come back as bytes and go out as arguments: no shell reads them.
"""

import re
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from tasks.core.errors import QuernError

if TYPE_CHECKING:  # a project whose sources are all on this machine needs no paramiko
    from tasks.hosts.ssh import Connection

# A file that changed this recently, by its machine's clock, may still be being written.
YOUNG_SECONDS = 3.0
TAIL_BYTES = 1 << 16
RANKING_BYTES = 16 << 20
# A digest is silent until it is done: slow disks and slow programs read at this rate.
SLOWEST_BYTES_PER_SECOND = 20e6

# GNU and busybox have `stat -c`, BSD `stat -f`; sub-second times where they are to be had. Run by
# /bin/sh -c, since find starts it too.
STAT = r"""
IFS=; LC_ALL=C; export LC_ALL
case $(stat -c %.Z / 2>/dev/null) in
  *[0-9].[0-9]*) format='%d %i %s %.Y %.Z'; option=-c ;;
  *) if stat -c %s / >/dev/null 2>&1; then format='%d %i %s %Y %Z'; option=-c
     else format='%d %i %z %Fm %Fc'; option=-f; fi ;;
esac
stat_of() { stat -L $option "$format" -- "$1" 2>/dev/null; }
"""
EACH = (
    STAT
    + r"""
for file do
  [ -f "$file" ] && printf 'file\0%s\0%s\0' "$(stat_of "$file")" "$file"
done
exit 0
"""
)
# $1: file or directory; $2: a ranking to print, or nothing; $3: what is run for each file; then
# patterns, which the shell itself expands, and splits at nothing.
LOOK = r"""
IFS=; LC_ALL=C; export LC_ALL
cd "$HOME" || exit
kind=$1 ranking=$2 each=$3; shift 3
printf 'quern\0%s\0%s\0' "$(date +%s)" "$PWD"
for pattern do
  printf 'pattern\0'
  if [ "$kind" = file ]; then
    /bin/sh -c "$each" sh $pattern
    continue
  fi
  for match in $pattern; do
    [ -d "$match" ] || continue
    printf 'directory\0%s\0' "$match"
    (cd "$match" && find . -name '.?*' -prune -o -type d '(' -name 'checkpoint-*' -o \
      -name __pycache__ ')' -prune -o -type f -exec /bin/sh -c "$each" sh {} + 2>/dev/null)
  done
done
printf 'end\0'
[ -z "$ranking" ] || [ ! -f "$ranking" ] || { printf 'ranking\0'; head -c 16777216 <"$ranking"; }
"""
# Files, each with stat, SHA-256, what tells whether it is whole, and stat again.
READ = (
    STAT
    + r"""
cd "$HOME" && cd "$1" || exit
shift
sha256() {
  python3 -c 'import hashlib, sys
digest = hashlib.sha256()
for block in iter(lambda: sys.stdin.buffer.read(1 << 20), b""):
    digest.update(block)
print(digest.hexdigest())' <"$1" 2>/dev/null && return
  openssl dgst -sha256 -r <"$1" 2>/dev/null && return
  sha256sum <"$1" 2>/dev/null && return
  shasum -a 256 <"$1" 2>/dev/null
}
hex() { od -An -v -tx1; }
printf 'quern\0'
for file do
  printf '%s\0%s\0' "$file" "$(stat_of "$file")"
  printf '%s\0' "$(sha256 "$file")"
  case $file in
    *.safetensors)
      head -c 8 <"$file" | hex; printf '\0'
      length=$(head -c 8 <"$file" | od -An -tu8 | tr -d ' ')
      [ "${#length}" -gt 8 ] || head -c "$((8 + ${length:-0}))" <"$file" | hex ;;
    *)
      head -c 8 <"$file" | hex; printf '\0'
      tail -c 65536 <"$file" | hex ;;
  esac
  printf '\0%s\0%s\0' "$(stat_of "$file")" "$(date +%s)"
done
printf 'end\0'
"""
)


@dataclass(frozen=True)
class Seen:
    """A file as stat shows it: `name` is relative to its match ("" for a file that is the match),
    times are seconds by its machine's clock, `signature` changes with every change of it."""

    name: str
    size: int
    modified: float
    changed: float
    signature: str

    def is_young(self, now: float | None) -> bool:
        """Whether it changed within the last seconds of its machine's clock, `now`. A time far in
        the future says nothing: the file was copied with it, or the clock was set back."""
        return now is not None and any(
            abs(now - moment) < YOUNG_SECONDS for moment in (self.modified, self.changed)
        )


@dataclass(frozen=True)
class Match:
    """What a pattern matched, at the absolute `path`: a file, or a directory and its files."""

    path: str
    files: Sequence[Seen]

    @property
    def size(self) -> int:
        """Bytes in all."""
        return sum(file.size for file in self.files)

    @property
    def modified(self) -> float:
        """When the newest of its files was written."""
        return max((file.modified for file in self.files), default=0.0)


@dataclass
class Look:
    """What was seen, in the order of the patterns that were asked for; `now` is the machine's clock
    (None: this machine's files need no age), `left_alone` are names that are not acted on."""

    matches: list[list[Match]]
    now: float | None = None
    home: str = ""
    ranking: bytes | None = None
    left_alone: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class Read:
    """A file that was read: `head` and `tail` are its first and last bytes (of a safetensors file
    `tail` is its header), `steady` says that it did not change meanwhile."""

    seen: Seen
    sha256: str
    head: bytes
    tail: bytes
    steady: bool
    now: float | None


def look(
    connection: "Connection", patterns: Sequence[str], directories: bool = False, ranking: str = ""
) -> Look:
    """Look for `patterns` (absolute, `~/…` or relative to the home directory there; `*`, `?` and
    `[…]` are wildcards) in one round trip.

    Raises OutOfReach; QuernError when what comes back is not what the script prints.
    """
    printed = connection.run(
        LOOK,
        "directory" if directories else "file",
        _from_home(ranking),
        EACH,
        *[_from_home(pattern) for pattern in patterns],
        timeout=60.0,
    )
    reply = _Reply(connection.name, printed)
    seen = Look([], now=float(reply.number()), home=reply.text())
    folder: str | None = ""  # the directory whose files are listed; None: it is left alone
    files: list[Seen] = []
    while (word := reply.field()) != b"end":
        if word == b"pattern":
            seen.matches.append([])
            folder = ""
        elif word == b"directory":
            folder, files = _name(reply.field(), seen), []
            if folder is not None:
                seen.matches[-1].append(Match(_absolute(folder, seen.home), files))
        else:
            stat, name = reply.field(), _name(reply.field(), seen)
            if folder is None or name is None or not stat:  # no stat: it is gone by now
                continue
            if folder:
                files.append(_seen(reply, name.removeprefix("./"), stat))
            else:
                path = _absolute(name, seen.home)
                seen.matches[-1].append(Match(path, [_seen(reply, "", stat)]))
    if reply.rest.startswith(b"ranking\0"):
        seen.ranking = reply.rest[len(b"ranking\0") :]
    return seen


def read(connection: "Connection", match: Match, names: Sequence[str]) -> dict[str, Read]:
    """Read the files `names` of a match where they lie, in one round trip; those that are gone are
    left out.

    Raises OutOfReach; QuernError when nothing there can make a SHA-256.
    """
    is_file = names == [""]
    base, paths = ("/", [match.path]) if is_file else (match.path, [f"./{n}" for n in names])
    timeout = 60.0 + match.size / SLOWEST_BYTES_PER_SECOND
    reply = _Reply(connection.name, connection.run(READ, base, *paths, timeout=timeout))
    found: dict[str, Read] = {}
    while (word := reply.field()) != b"end":
        name = "" if is_file else word.decode().removeprefix("./")
        before, digest, head, tail, after, now = (reply.field() for _ in range(6))
        if not before or not after:
            continue
        sha256 = digest[:64].decode("ascii", "replace")
        if not re.fullmatch("[0-9a-f]{64}", sha256):
            raise QuernError(
                f"{connection.name}: {match.path}: no SHA-256 of it can be made there; "
                "one of python3, openssl, sha256sum and shasum is needed, and leave to read it"
            )
        found[name] = Read(
            seen=_seen(reply, name, after),
            sha256=sha256,
            head=bytes.fromhex(head.decode()),
            tail=bytes.fromhex(tail.decode()),
            steady=before == after,
            now=float(now),
        )
    return found


class _Reply:
    """What a script printed: fields that end with a zero byte, after whatever the login shell had
    to say, and a rest."""

    def __init__(self, name: str, printed: bytes) -> None:
        self.name = name
        _, self.mark, self.rest = printed.partition(b"quern\0")

    def field(self) -> bytes:
        """The next field."""
        field, end, self.rest = self.rest.partition(b"\0")
        if not end:
            raise self.fault()
        return field

    def text(self) -> str:
        """The next field as text."""
        return self.field().decode("utf-8", "surrogateescape")

    def number(self) -> int:
        """The next field as a number."""
        field = self.field()
        if not field.isdigit():
            raise self.fault()
        return int(field)

    def fault(self) -> QuernError:
        """What is wrong with the reply."""
        return QuernError(f"{self.name}: its shell answers otherwise than a POSIX shell with stat")


def _seen(reply: _Reply, name: str, stat: bytes) -> Seen:
    words = stat.decode("ascii", "replace").split()
    try:
        _, _, size, modified, changed = words
        return Seen(name, int(size), float(modified), float(changed), " ".join(words))
    except ValueError:
        raise reply.fault() from None


def _name(raw: bytes, seen: Look) -> str | None:
    """A name from the other side; one that can't be shown or could lead elsewhere is left alone."""
    try:
        name = raw.decode()
    except UnicodeDecodeError:
        name = ""
    hidden = any(unicodedata.category(c) in ("Cc", "Zl", "Zp") for c in name)
    if not name or hidden or ".." in name.split("/"):
        seen.left_alone.append(ascii(raw)[1:].strip("'\""))
        return None
    return name


def _absolute(name: str, home: str) -> str:
    return name if name.startswith("/") else f"{home.rstrip('/')}/{name.removeprefix('./')}"


def _from_home(path: str) -> str:
    """`path` for a shell that is in the home directory."""
    return path.removeprefix("~/")
