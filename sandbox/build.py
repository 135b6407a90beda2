"""`grpo sandbox build`: make the image in the first way that is open here, prove that it works, and give it its name."""

from __future__ import annotations

import io
import json
import re
import shutil
import tarfile
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Literal, NamedTuple

from rich.console import Console
from rich.table import Table

from sandbox.docker import daemon_errors
from sandbox.errors import SandboxUnavailable, UserError
from sandbox.image import (
    HASH,
    METHOD,
    PACKAGES,
    PYTHON,
    REPOSITORY,
    ImageInfo,
    describe,
    image_hash,
    image_name,
)
from sandbox.progress import Stage, Stages
from sandbox.roots import Debootstrap, Mmdebstrap, Registry, Wanted, Way, write_build_tar

if TYPE_CHECKING:
    import docker

Method = Literal["auto", "registry", "debian"]
PACKAGE_NAME = re.compile(r"[a-z0-9][a-z0-9+.-]+")
CHUNK = 1 << 20
# What any program may import, and what the agent needs.
STDLIB_MODULES = (
    *("asyncio", "bisect", "collections", "ctypes", "dataclasses", "decimal", "fractions", "functools", "hashlib", "heapq"),
    *("itertools", "json", "math", "multiprocessing", "random", "re", "resource", "sqlite3", "ssl", "statistics", "string"),
    *("threading", "typing", "unittest", "zlib", "lzma", "bz2", "zoneinfo"),
)
PROOF = """
import importlib, json, platform, sys
sys.path.append("/usr/lib/python3/dist-packages")
for name in sys.argv[1:]:
    importlib.import_module(name)
import zoneinfo
zoneinfo.ZoneInfo("Europe/Berlin")
print(json.dumps(platform.python_version()))
"""
PROOF_S = 120.0


class Built(NamedTuple):
    """The image, and the seconds it took; none when an identical one was there already."""

    image: ImageInfo
    seconds: float | None


def build(
    client: docker.DockerClient,
    console: Console,
    *,
    packages: Sequence[str] = (),
    method: Method = "auto",
    mirror: str | None = None,
    rebuild: bool = False,
) -> Built:
    """The image of this version with these Debian packages, made anew only when there is none or `rebuild` says so.

    Raises UserError for a package that does not exist, SandboxUnavailable when no way is open.
    """
    started = time.monotonic()
    packages = tuple(sorted(set(packages)))
    check_names(packages)
    name = image_name(packages)
    previous = existing(client, name)
    if previous is not None and not rebuild:
        return Built(previous, None)
    stages = Stages(console)
    with tempfile.TemporaryDirectory(prefix="grpo-image-") as folder:
        # Readable for the user that mmdebstrap becomes in its namespace.
        Path(folder).chmod(0o755)
        wanted = Wanted(packages, mirror, Path(folder))
        write_build_tar(wanted.build_tar)
        way = make_root(ways(client, method), wanted, stages, fall_back=method != "registry")
        manifest = read_manifest(wanted.root_tar)
        image_id = load(client, wanted, {PYTHON: manifest["python"], METHOD: way.name}, stages)
    try:
        prove(client, image_id, manifest["modules"], stages)
    except BaseException:
        with daemon_errors():
            client.api.remove_image(image_id, force=True)
        raise
    with daemon_errors():
        client.api.tag(image_id, REPOSITORY, name.partition(":")[2])
        forget(client, previous, image_id)
        return Built(describe(name, client.images.get(name)), time.monotonic() - started)


def check_names(packages: Sequence[str]) -> None:
    for name in packages:
        if not PACKAGE_NAME.fullmatch(name):
            raise UserError(f"--packages: {name!r} is not the name of a Debian package. Give names such as python3-numpy.")


def existing(client: docker.DockerClient, name: str) -> ImageInfo | None:
    from docker.errors import ImageNotFound

    with daemon_errors():
        try:
            return describe(name, client.images.get(name))
        except ImageNotFound:
            return None


def ways(client: docker.DockerClient, method: Method) -> list[Way]:
    """The ways of a method, best first."""
    debian: list[Way] = [Mmdebstrap(), Debootstrap()]
    return {"auto": [Registry(client), *debian], "registry": [Registry(client)], "debian": debian}[method]


def make_root(candidates: Sequence[Way], wanted: Wanted, stages: Stages, *, fall_back: bool) -> Way:
    """Make the root in the first way that is open, and say which and why. A way that fails is an obstacle too."""
    obstacles: list[str] = []
    for way in candidates:
        if obstacle := way.obstacle():
            obstacles.append(obstacle)
            continue
        because = f", since {'; '.join(obstacles)}" if obstacles else ""
        stages.say(f"Building {way.from_what}{because}.")
        try:
            with stages.stage("the root: Python's packages, shrunk and compiled") as stage:
                way.make(wanted, stage)
                stage.result = megabytes(wanted.root_tar.stat().st_size)
            return way
        except SandboxUnavailable as error:
            if not fall_back:
                raise
            obstacles.append(str(error))
            shutil.rmtree(wanted.folder / "root", ignore_errors=True)
    raise SandboxUnavailable(f"no way to an image is open here: {'; '.join(obstacles)}.")


def read_manifest(root_tar: Path) -> dict:
    """What shrink_root.py wrote down: the version of Python, and the modules that extra packages brought."""
    with tarfile.open(root_tar) as tar:
        for member in tar:
            if member.name.removeprefix("./") == "opt/grpo/image.json":
                return json.loads((tar.extractfile(member) or io.BytesIO()).read())
    raise SandboxUnavailable(f"the root that was made holds no opt/grpo/image.json ({root_tar})")


def load(client: docker.DockerClient, wanted: Wanted, labels: dict[str, str], stages: Stages) -> str:
    """Give the root to the daemon as one layer. Returns the image's id."""
    labels = labels | {HASH: image_hash(wanted.packages), PACKAGES: " ".join(wanted.packages)}
    changes = [f'LABEL "{key}"="{value}"' for key, value in labels.items()] + ['CMD ["python3", "-I"]']
    with daemon_errors(), stages.stage("to the daemon", total_bytes=wanted.root_tar.stat().st_size) as stage:
        answer = client.api.import_image_from_stream(in_chunks(wanted.root_tar, stage), changes=changes)
    events = [json.loads(line) for line in answer.splitlines() if line.strip()]
    if not events or "error" in events[-1]:
        raise SandboxUnavailable(f"the daemon did not take the image: {answer[-500:]}")
    return events[-1]["status"]


def in_chunks(path: Path, stage: Stage) -> Iterator[bytes]:
    with path.open("rb") as file:
        while chunk := file.read(CHUNK):
            yield chunk
            stage.advance(len(chunk))


def prove(client: docker.DockerClient, image_id: str, modules: Sequence[str], stages: Stages) -> None:
    """Import what programs will import, in a container as bare as theirs."""
    with daemon_errors(), stages.stage("proof: imports in a read-only container without a network") as stage:
        container = client.containers.create(
            image_id,
            ["python3", "-I", "-S", "-B", "-c", PROOF, *STDLIB_MODULES, *modules],
            network_mode="none",
            read_only=True,
            user="20000:20000",
            cap_drop=["ALL"],
            security_opt=["no-new-privileges"],
            mem_limit="1g",
            pids_limit=64,
        )
        try:
            container.start()
            status = container.wait(timeout=PROOF_S)["StatusCode"]
            said = container.logs().decode(errors="replace").strip()
        finally:
            container.remove(force=True)
        if status != 0:
            raise SandboxUnavailable(f"the image was made, but does not work: {said[-600:]}")
        stage.result = f"{len(STDLIB_MODULES) + len(modules)} modules, Python {json.loads(said)}"


def forget(client: docker.DockerClient, previous: ImageInfo | None, image_id: str) -> None:
    """Remove the image that had the name before, unless a container still uses it."""
    from docker.errors import APIError

    if previous is not None and previous.id != image_id:
        try:
            client.api.remove_image(previous.id)
        except APIError as error:
            if error.status_code != 409:
                raise


def megabytes(num_bytes: int) -> str:
    return f"{num_bytes / 1e6:.1f} MB"


def summary(built: Built) -> Table:
    image = built.image
    table = Table(show_header=False)
    table.add_column()
    table.add_column(overflow="fold")
    for label, value in {
        "image": image.name,
        "digest": image.id,
        "size": megabytes(image.size_bytes),
        "python": image.python,
        "packages": " ".join(image.packages) or "none beyond Python's own library",
        "built with": image.method,
        "seconds": "it was there already" if built.seconds is None else f"{built.seconds:.1f}",
    }.items():
        table.add_row(label, value)
    return table
