"""Makes the archives in `tests/fixtures/archives`: one module, as common programs pack it.

Needs GNU tar beside Python. Every archive holds the same four files of a module and one that is none.
"""

import io
import pathlib
import subprocess
import tarfile
import tempfile
import zipfile

TARGET = pathlib.Path(__file__).parent.parent / "fixtures" / "archives"
FILES = {
    "README.md": b"A card.\n",
    "adapter_config.json": b"{}\n",
    "adapter_model.safetensors": b"weights " * 200,
    "artefacts/gates.safetensors": b"gates",
    "a name that is too long for the header of an old tar, and none of a module's " * 2 + ".txt": b"x",
}


def write(folder: pathlib.Path, with_long: bool) -> None:
    for name, content in FILES.items():
        if with_long or len(name) < 100:
            path = folder / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(content)


def gnu_tar(kind: str, name: str, with_long: bool, *options: str) -> None:
    with tempfile.TemporaryDirectory() as directory:
        write(pathlib.Path(directory) / "module", with_long)
        subprocess.run(
            ["tar", f"--format={kind}", "--sort=name", "--owner=0", "--group=0", "-b1", *options]
            + ["-cf", TARGET / name, "-C", directory, "module"],
            check=True,
        )


class Pipe(io.RawIOBase):
    """A file that cannot seek, so that sizes follow the data."""

    def __init__(self, path: pathlib.Path) -> None:
        self.file = path.open("wb")

    def writable(self) -> bool:
        return True

    def write(self, data: bytes) -> int:
        return self.file.write(data)


def python() -> None:
    with tempfile.TemporaryDirectory() as directory:
        folder = pathlib.Path(directory) / "module"
        write(folder, with_long=True)
        with tarfile.open(TARGET / "pax.tar.gz", "w:gz", format=tarfile.PAX_FORMAT) as archive:
            archive.add(folder, "module")
        with zipfile.ZipFile(TARGET / "python.zip", "w", zipfile.ZIP_DEFLATED) as archive:
            for path in sorted(folder.rglob("*")):
                archive.write(path, path.relative_to(directory))
    pipe = Pipe(TARGET / "streamed.zip")
    with zipfile.ZipFile(pipe, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in FILES.items():
            archive.writestr(name, content)
    pipe.file.close()


TARGET.mkdir(exist_ok=True)
gnu_tar("gnu", "gnu.tar", True)
gnu_tar("gnu", "gnu.tar.gz", True, "-z")
gnu_tar("ustar", "ustar.tar", False)
gnu_tar("v7", "v7.tar", False)
python()
