"""llama.cpp's source, out of the archive that pip brings."""

import io
import tarfile

from tasks.llama import TREE, unpack


def test_only_what_is_wanted_is_unpacked(tmp_path):
    unpack(archive(tmp_path), str(tmp_path / "tree"), ("src/",))
    assert [path.name for path in (tmp_path / "tree").rglob("*") if path.is_file()] == ["llama.cpp"]


def test_a_python_whose_tarfile_has_no_filters_unpacks_it(tmp_path, monkeypatch):
    """As Debian 12's, 3.11.2: they came with 3.11.4."""
    extract = tarfile.TarFile.extract
    monkeypatch.delattr(tarfile, "data_filter", raising=False)
    monkeypatch.setattr(
        tarfile.TarFile, "extract", lambda self, member, path: extract(self, member, path)
    )
    unpack(archive(tmp_path), str(tmp_path / "tree"), ("src/",))
    assert (tmp_path / "tree" / "src" / "llama.cpp").read_bytes() == b"int main() {}\n"


def archive(folder):
    path = folder / "source.tar.gz"
    with tarfile.open(path, "w:gz") as file:
        for name in (f"{TREE}src/llama.cpp", f"{TREE}models/large.bin", "pyproject.toml"):
            member = tarfile.TarInfo(name)
            member.size = len(content := b"int main() {}\n")
            file.addfile(member, io.BytesIO(content))
    return str(path)
