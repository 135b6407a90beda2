"""Leaves in a new root only Python, what its modules load, and the agent: no shell, no package manager, no other program.

Runs inside that root, by its own interpreter, as the last step of every way to make one:
`python3 -I -S -B /build/shrink_root.py PACKAGE...`. It deletes nearly everything it can see, so it refuses a root that was not
made for it. The packages are those that were asked for beyond Python's own; the modules they bring stay whole.
"""

from __future__ import annotations

import compileall
import errno
import json
import os
import py_compile
import re
import shutil
import subprocess
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path

MARK = Path("/build/this-root-is-new")
MANIFEST = Path("/opt/grpo/image.json")
STDLIB = Path(os.__file__).parent
MODULES = Path("/usr/lib/python3/dist-packages")
BINARY = Path(sys.executable).resolve()
KERNEL_OWNED = ("dev", "proc", "sys")

# Tests, tools for building, manuals, and modules for what a program in a box cannot have.
NOT_NEEDED = re.compile(
    r"test|idlelib|lib2to3|ensurepip|venv|pydoc_data|turtledemo|turtle\.py|tkinter|__phello__|config-[\d.]+-.*|sitecustomize\.py"
    r"|EXTERNALLY-MANAGED|__pycache__"
)
NOT_LOADED = re.compile(r"(_test|_ctypes_test|_xx|xx|nis|_dbm|_gdbm|ossaudiodev|spwd|_crypt).*\.so")
# Data of package managers, manuals and other languages.
NOT_SHARED = re.compile(
    r"base-.*|bash-completion|bug|common-licenses|debconf|debianutils|doc.*|dpkg|gcc|gdb|info|keyrings|libc-bin|lintian|locale|man|menu"
    r"|pam.*|perl.*|pixmaps|polkit-1|python3|readline|tabset|util-linux"
)
# Opened by name at run time, so that no module's list of libraries shows it: threads that end need libgcc_s.
OPENED_LATER = "libgcc_s.so.1"

PASSWD = "root:x:0:0::/:/nonexistent\nprogram:x:20000:20000::/tmp:/nonexistent\nnobody:x:65534:65534::/nonexistent:/nonexistent\n"
GROUP = "root:x:0:\nprogram:x:20000:\nnogroup:x:65534:\n"


def main(packages: list[str]) -> None:
    if not MARK.is_file():
        sys.exit(f"shrink_root.py: {MARK} is missing, so this root was not made to be shrunk; nothing was touched.")
    modules = modules_of(packages)
    trim_stdlib()
    kept = frozenset(needed_files())
    folders = (STDLIB, MODULES, MANIFEST.parent, Path("/usr/share/zoneinfo"), *(shared_data() if packages else ()))
    delete_others(kept, folders)
    write_basics()
    compile_modules()
    version = ".".join(map(str, sys.version_info[:3]))
    MANIFEST.write_text(json.dumps({"python": version, "modules": modules}))


def modules_of(packages: Iterable[str]) -> list[str]:
    """The importable top-level modules of Debian packages, by dpkg's lists. Exits when one has none: nothing would be left."""
    found = set()
    for package in packages:
        lists = [*Path("/var/lib/dpkg/info").glob(f"{package}.list"), *Path("/var/lib/dpkg/info").glob(f"{package}:*.list")]
        names = {name for path in lists for line in path.read_text().splitlines() if (name := top_level_module(Path(line)))}
        if not names:
            sys.exit(f"shrink_root.py: {package} brings no Python module; only modules stay in the image.")
        found |= names
    return sorted(found)


def top_level_module(path: Path) -> str | None:
    """`numpy` for .../dist-packages/numpy/__init__.py and for .../dist-packages/numpy.py, else None."""
    if not path.is_relative_to(MODULES):
        return None
    parts = path.relative_to(MODULES).parts
    if len(parts) == 2 and parts[1] == "__init__.py":
        return parts[0]
    if len(parts) == 1 and path.suffix in (".py", ".so"):
        return parts[0].partition(".")[0]
    return None


def trim_stdlib() -> None:
    for path in STDLIB.iterdir():
        if NOT_NEEDED.fullmatch(path.name):
            shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink()
    for path in (STDLIB / "lib-dynload").iterdir():
        if NOT_LOADED.fullmatch(path.name):
            path.unlink()
    for path in STDLIB.rglob("*.py"):  # some may be executed; a program needs none of that
        path.chmod(0o644)


def needed_files() -> Iterator[str]:
    """The interpreter, the loader, and every library that the interpreter or an extension module is linked to."""
    loaders = [path for pattern in ("lib*/ld-linux*.so.*", "usr/lib*/ld-linux*.so.*") for path in Path("/").glob(pattern)]
    later = [path for folder in ("/lib", "/usr/lib") for path in Path(folder).glob(f"*-linux-gnu*/{OPENED_LATER}")]
    for path in (Path("/usr/bin/python3"), *loaders, *later):
        yield from chain(path)
    extensions = [path for folder in (STDLIB, MODULES) if folder.is_dir() for path in folder.rglob("*.so*") if path.is_file()]
    for object_file in (BINARY, *extensions):
        listed = subprocess.run([loaders[0], "--list", object_file], capture_output=True, text=True, check=False).stdout
        for library in re.findall(r"(/\S+) \(0x", listed):
            yield from chain(Path(library))


def chain(path: Path) -> Iterator[str]:
    """A file, and every symbolic link on the way to it, among its folders too."""
    place = Path("/")
    parts = list(path.parts[1:])
    while parts:
        place = place / parts.pop(0)
        if place.is_symlink():
            yield str(place)
            target = os.path.normpath(place.parent / os.readlink(place))
            place, parts = Path("/"), [*Path(target).parts[1:], *parts]
    yield str(place)


def shared_data() -> Iterator[Path]:
    """What modules may read at run time, such as fonts; not what people, package managers or other languages read."""
    for folder in Path("/usr/share").iterdir():
        if not NOT_SHARED.fullmatch(folder.name):
            yield folder


def delete_others(kept: frozenset[str], folders: tuple[Path, ...]) -> None:
    whole = {str(folder) for folder in folders}

    def clear(folder: str) -> bool:
        """Whether nothing is left in it."""
        empty = True
        for entry in list(os.scandir(folder)):
            if entry.path in whole or (folder == "/" and entry.name in KERNEL_OWNED):
                empty = False
            elif entry.is_dir(follow_symlinks=False):
                if clear(entry.path):
                    os.rmdir(entry.path)
                else:
                    empty = False
            elif entry.path in kept:
                empty = False
            else:
                unlink(entry.path)
        return empty

    clear("/")


def unlink(path: str) -> None:
    try:
        os.unlink(path)
    except OSError as error:
        if error.errno != errno.EBUSY:  # /etc/resolv.conf and its like, which the daemon mounts while it builds
            raise


def write_basics() -> None:
    """The folders that are mounted over, and names for the user ids."""
    for name, mode in (("proc", 0o555), ("sys", 0o555), ("dev", 0o755), ("tmp", 0o1777), ("etc", 0o755)):
        folder = Path("/", name)
        folder.mkdir(exist_ok=True)
        if name not in KERNEL_OWNED:
            folder.chmod(mode)
    Path("/etc/passwd").write_text(PASSWD)
    Path("/etc/group").write_text(GROUP)


def compile_modules() -> None:
    """Bytecode for every module: a read-only root cannot keep what an import compiles."""
    unchecked = py_compile.PycInvalidationMode.UNCHECKED_HASH
    for folder in (STDLIB, MODULES, MANIFEST.parent):
        if folder.is_dir():
            compileall.compile_dir(str(folder), quiet=2, workers=0, invalidation_mode=unchecked)


if __name__ == "__main__":
    main(sys.argv[1:])
