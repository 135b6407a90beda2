"""Which image this version of the sandbox runs in: its name, what is known of it, and what to type when it is missing.

Making one is build.py's business. The name carries a hash of everything that goes into the image, so another version of the agent,
of the recipe or of the package list is another image, and never taken for this one.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sandbox.docker import daemon_errors
from sandbox.errors import SandboxUnavailable

if TYPE_CHECKING:
    import docker

REPOSITORY = "grpo-sandbox"
SUITE = "bookworm"
# The interpreter, its library, and the time zones that zoneinfo reads.
BASE_PACKAGES = ("python3-minimal", "libpython3-stdlib", "tzdata")
AGENT = Path(__file__).parent / "agent"
RECIPE = Path(__file__).parent / "images"
HASH, PACKAGES, PYTHON, METHOD = (f"grpo.image.{name}" for name in ("hash", "packages", "python", "method"))


@dataclass(frozen=True, slots=True)
class ImageInfo:
    """An image that `grpo sandbox build` made. `id` is the digest of its contents: a run records it.

    `packages` are the Debian packages beyond Python's own; `method` is the way it was made, registry, mmdebstrap or debootstrap.
    """

    name: str
    id: str
    python: str
    packages: tuple[str, ...]
    method: str
    size_bytes: int


def agent_files() -> list[Path]:
    """What runs inside the container, in a fixed order."""
    return sorted(AGENT.glob("*.py"))


def image_hash(packages: Sequence[str] = ()) -> str:
    """SHA-256 over the agent, the recipe and the packages, in hexadecimal."""
    digest = hashlib.sha256(repr((SUITE, BASE_PACKAGES, sorted(set(packages)))).encode())
    for path in (*agent_files(), *sorted(path for path in RECIPE.iterdir() if path.is_file())):
        digest.update(repr((path.parent.name, path.name)).encode() + hashlib.sha256(path.read_bytes()).digest())
    return digest.hexdigest()


def image_name(packages: Sequence[str] = ()) -> str:
    """Name and tag of the image that this version of the sandbox makes of these packages."""
    return f"{REPOSITORY}:{image_hash(packages)[:12]}"


def build_command(packages: Sequence[str] = ()) -> str:
    return " ".join(["grpo sandbox build", *(["--packages", *packages] if packages else [])])


def find_image(client: docker.DockerClient, name: str | None = None) -> ImageInfo:
    """The image of a config, by default the one of this version.

    Raises SandboxUnavailable, saying what to type, when it is missing, holds another version of the agent, or was not made by
    `grpo sandbox build`.
    """
    from docker.errors import ImageNotFound, NotFound

    wanted = name or image_name()
    with daemon_errors():
        try:
            found = client.images.get(wanted)
        except (ImageNotFound, NotFound):
            raise SandboxUnavailable(_missing(client, name)) from None
        labels: dict[str, str] = found.labels or {}
        if PYTHON not in labels or HASH not in labels:
            raise SandboxUnavailable(_foreign(client, wanted, str(found.id)))
    packages = tuple(labels.get(PACKAGES, "").split())
    if labels[HASH] != image_hash(packages):
        raise SandboxUnavailable(
            f"the image {wanted} holds another version of the agent than this code ({labels[HASH][:12]}, not "
            f"{image_hash(packages)[:12]}). Type: {build_command(packages)}{_and_name_it(name, packages)}."
        )
    return describe(wanted, found)


def describe(name: str, image: Any) -> ImageInfo:
    """What the labels and the daemon say of one of our images."""
    labels = image.labels
    return ImageInfo(
        name=name,
        id=image.id,
        python=labels[PYTHON],
        packages=tuple(labels.get(PACKAGES, "").split()),
        method=labels.get(METHOD, "unknown"),
        size_bytes=image.attrs["Size"],
    )


def remove_others(client: docker.DockerClient) -> list[str]:
    """Remove our images of other versions, but for those that a container uses. Their names."""
    from docker.errors import APIError

    removed = []
    with daemon_errors():
        for image in client.images.list(REPOSITORY):
            if image.labels.get(HASH) == image_hash(image.labels.get(PACKAGES, "").split()):
                continue
            for tag in image.tags:
                try:
                    client.api.remove_image(tag)
                    removed.append(tag)
                except APIError as error:
                    if error.status_code != 409:
                        raise
    return removed


def _missing(client: docker.DockerClient, name: str | None) -> str:
    if name is not None:
        return f"there is no image {name} here, which sandbox.image names. Type: grpo sandbox build; then leave sandbox.image out."
    others = [tag for image in client.images.list(REPOSITORY) for tag in image.tags]
    seen = f" ({len(others)} of other versions: {', '.join(others[:2])}{', ...' if others[2:] else ''})" if others else ""
    return f"there is no image {image_name()} here{seen}. Type: {build_command()}."


def _foreign(client: docker.DockerClient, name: str, image_id: str) -> str:
    what = "holds neither python3 nor the agent" if not _holds(client, image_id, "/usr/bin/python3") else "does not hold the agent"
    return (
        f"the image {name} {what}: it was not made by `grpo sandbox build`. Type: grpo sandbox build; then leave sandbox.image "
        "out, or for more modules: grpo sandbox build --packages python3-numpy."
    )


def _holds(client: docker.DockerClient, image_id: str, path: str) -> bool:
    """Whether a file is in an image, by a container that is never started."""
    from docker.errors import NotFound

    container = client.api.create_container(image_id, command=["python3"])["Id"]
    try:
        client.api.get_archive(container, path)[0].close()
        return True
    except NotFound:
        return False
    finally:
        client.api.remove_container(container, force=True)


def _and_name_it(name: str | None, packages: Sequence[str]) -> str:
    return "" if name is None else f", and set sandbox.image to {image_name(packages)}"
