"""Three ways to the root of the image: the Dockerfile where a registry is reachable, else mmdebstrap or debootstrap.

All three install the same Debian packages, add the agent, and end with images/shrink_root.py, so what comes out is the same.
"""

from __future__ import annotations

import io
import os
import re
import shutil
import subprocess
import tarfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from sandbox.docker import daemon_errors
from sandbox.errors import SandboxUnavailable, UserError
from sandbox.image import BASE_PACKAGES, RECIPE, SUITE, agent_files
from sandbox.progress import Stage

if TYPE_CHECKING:
    import docker

MIRROR = "http://deb.debian.org/debian"
SHRINK = ("/usr/bin/python3", "-I", "-S", "-B", "/build/shrink_root.py")
NO_SUCH_PACKAGE = re.compile(r"(?:Unable to locate package|Couldn't find these debs:|No candidate version found for) (\S+)")
ANSI = re.compile(r"\x1b\[[0-9;]*m")
NO_MODULE = re.compile(r"shrink_root\.py: (.+)")


@dataclass(frozen=True, slots=True)
class Wanted:
    """A root to be made: extra Debian packages, a mirror instead of Debian's own, and an empty folder to work in."""

    packages: tuple[str, ...]
    mirror: str | None
    folder: Path

    @property
    def build_tar(self) -> Path:
        return self.folder / "build.tar"

    @property
    def root_tar(self) -> Path:
        return self.folder / "root.tar"


class Way(Protocol):
    """One way to make a root."""

    name: str
    from_what: str

    def obstacle(self) -> str | None:
        """Why this way is closed here, with what to type where something can be typed; None when it is open."""
        ...

    def make(self, wanted: Wanted, stage: Stage) -> None:
        """Write `wanted.root_tar`. Raises UserError for a package that cannot be had, SandboxUnavailable when the way fails."""
        ...


class Registry:
    """images/python.Dockerfile, on top of Debian's own image."""

    name = "registry"
    from_what = "from the Dockerfile"

    def __init__(self, client: docker.DockerClient) -> None:
        self._client = client
        self._base = f"debian:{SUITE}-slim"

    def obstacle(self) -> str | None:
        """The daemon is asked, since it is the one that pulls."""
        from docker.errors import APIError, ImageNotFound

        with daemon_errors():
            try:
                self._client.images.get(self._base)
                return None
            except ImageNotFound:
                pass
            try:
                self._client.images.get_registry_data(self._base)
                return None
            except APIError as error:
                return f"the daemon does not get {self._base} from a registry ({error.explanation or error})"

    def make(self, wanted: Wanted, stage: Stage) -> None:
        with daemon_errors():
            image = self._build(wanted, stage)
            try:
                self._export(image, wanted.root_tar, stage)
            finally:
                self._client.api.remove_image(image, force=True)

    def _build(self, wanted: Wanted, stage: Stage) -> str:
        context = io.BytesIO()
        with tarfile.open(fileobj=context, mode="w") as tar:
            tar.add(RECIPE / "python.Dockerfile", "Dockerfile")
            tar.add(wanted.build_tar, "build.tar")
        context.seek(0)
        log: list[str] = []
        arguments = {
            "SUITE": SUITE,
            "PACKAGES": " ".join(BASE_PACKAGES),
            "EXTRA": " ".join(wanted.packages),
            "MIRROR": wanted.mirror or "",
        }
        # The host's network: a daemon without a bridge has no other, and nothing untrusted runs here.
        for event in self._client.api.build(
            fileobj=context, custom_context=True, buildargs=arguments, network_mode="host", rm=True, forcerm=True, decode=True
        ):
            text = event.get("stream") or event.get("status") or event.get("error") or ""
            log.extend(text.splitlines())
            if text.strip():
                stage.detail(text.strip().splitlines()[0])
            if "error" in event:
                raise failure("docker build", log)
            if built := event.get("aux", {}).get("ID"):
                return built
        raise failure("docker build", log)

    def _export(self, image: str, root_tar: Path, stage: Stage) -> None:
        container = self._client.api.create_container(image, command=["python3"])["Id"]
        try:
            stage.detail("reading the root")
            with root_tar.open("wb") as file:
                file.writelines(self._client.api.export(container))
        finally:
            self._client.api.remove_container(container, force=True)


class Mmdebstrap:
    """Debian packages by mmdebstrap; it needs no root where user namespaces are allowed."""

    name = "mmdebstrap"
    from_what = "from Debian packages with mmdebstrap"

    def obstacle(self) -> str | None:
        if shutil.which("mmdebstrap") is None:
            return "mmdebstrap is not installed (apt-get install mmdebstrap)"
        return None

    def make(self, wanted: Wanted, stage: Stage) -> None:
        # Packages such as numpy are only whole after their maintainers' scripts ran, which need the essential packages.
        variant, hook = ("essential", "customize") if wanted.packages else ("extract", "extract")
        command = [
            "mmdebstrap",
            f"--variant={variant}",
            f"--include={','.join((*BASE_PACKAGES, *wanted.packages))}",
            "--skip=cleanup,output/dev",
            f"--{hook}-hook=tar-in {wanted.build_tar} /",
            f'--{hook}-hook=chroot "$1" {" ".join((*SHRINK, *wanted.packages))}',
            SUITE,
            str(wanted.root_tar),
            *([wanted.mirror] if wanted.mirror else []),
        ]
        run_tool(command, stage)


class Debootstrap:
    """Debian packages by debootstrap, the older tool, as root."""

    name = "debootstrap"
    from_what = "from Debian packages with debootstrap"

    def obstacle(self) -> str | None:
        if shutil.which("debootstrap") is None:
            return "debootstrap is not installed (apt-get install debootstrap)"
        if os.geteuid() != 0:
            return "debootstrap works only for root (sudo, or apt-get install mmdebstrap)"
        return None

    def make(self, wanted: Wanted, stage: Stage) -> None:
        root = wanted.folder / "root"
        include = f"--include={','.join((*BASE_PACKAGES, *wanted.packages))}"
        run_tool(["debootstrap", "--variant=minbase", include, SUITE, str(root), wanted.mirror or MIRROR], stage)
        with tarfile.open(wanted.build_tar) as tar:
            tar.extractall(root, filter="tar")
        run_tool(["chroot", str(root), *SHRINK, *wanted.packages], stage)
        stage.detail("packing the root")
        with tarfile.open(wanted.root_tar, "w") as tar:
            tar.add(root, ".", filter=lambda member: None if member.name.startswith("./dev/") else member)


def write_build_tar(path: Path) -> None:
    """What goes into every root: the agent, and the script that removes the rest, with the mark that allows it."""
    files = {"build/shrink_root.py": (RECIPE / "shrink_root.py").read_bytes(), "build/this-root-is-new": b""}
    files |= {"opt/grpo/sandbox/__init__.py": b""}
    files |= {f"opt/grpo/sandbox/agent/{file.name}": file.read_bytes() for file in agent_files()}
    folders = {str(folder): None for name in files for folder in reversed(Path(name).parents[:-1])}
    with tarfile.open(path, "w") as tar:
        for folder in folders:
            member = tarfile.TarInfo(folder)
            member.type, member.mode = tarfile.DIRTYPE, 0o755
            tar.addfile(member)
        for name, content in files.items():
            member = tarfile.TarInfo(name)
            member.size, member.mode = len(content), 0o644
            tar.addfile(member, io.BytesIO(content))


def run_tool(command: Sequence[str], stage: Stage) -> None:
    """Run a program and show its lines as they come."""
    environment = os.environ | {"LC_ALL": "C.UTF-8", "DEBIAN_FRONTEND": "noninteractive"}
    log: list[str] = []
    with subprocess.Popen(
        command,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
        env=environment,
    ) as process:
        try:
            for line in process.stdout or ():
                log.append(line.rstrip())
                stage.detail(line.strip().removeprefix("I: "))
        except BaseException:
            process.terminate()
            raise
    if process.returncode != 0:
        raise failure(command[0], log)


def failure(what: str, log: Sequence[str]) -> Exception:
    """The error to raise for a failed tool: whose mistake it was, and the end of what it said."""
    lines = [ANSI.sub("", line).strip() for line in log]
    text = "\n".join(lines)
    if found := NO_SUCH_PACKAGE.search(text):
        return UserError(
            f"Debian {SUITE} has no package {found[1]}. Look for its name: apt-cache search, or https://packages.debian.org."
        )
    if found := NO_MODULE.search(text):
        return UserError(f"--packages: {found[1]}")
    end = " | ".join([line for line in lines if line][-4:])[-400:]
    return SandboxUnavailable(f"{what} failed, saying: {end}")
