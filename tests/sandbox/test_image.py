"""Which image is ours: its name says what is in it, and an image that is not ours is refused with what to type."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

import sandbox.image
from sandbox.errors import SandboxUnavailable
from sandbox.image import HASH, PACKAGES, PYTHON, RECIPE, find_image, image_hash, image_name

docker_errors = pytest.importorskip("docker.errors")


class FakeDaemon:
    """The part of a Docker client that find_image uses: images by name, and whether they hold a file."""

    def __init__(self, images: dict[str, dict[str, str]], *, holds_python: bool = False) -> None:
        self.labels, self.holds_python, self.removed = images, holds_python, []
        self.images = SimpleNamespace(get=self._get, list=self._list)
        self.api = SimpleNamespace(
            create_container=lambda image, command: {"Id": f"container of {image}"},
            get_archive=self._get_archive,
            remove_container=lambda container, force: self.removed.append(container),
        )

    def _get(self, name: str) -> Any:
        if name not in self.labels:
            raise docker_errors.ImageNotFound(name)
        return SimpleNamespace(id=f"sha256:{name}", labels=self.labels[name], tags=[name], attrs={"Size": 42})

    def _list(self, repository: str) -> list[Any]:
        return [self._get(name) for name in self.labels if name.startswith(repository)]

    def _get_archive(self, container: str, path: str) -> Any:
        if not self.holds_python:
            raise docker_errors.NotFound(path)
        return (byte for byte in ()), {}


def made_by_us(*packages: str) -> dict[str, str]:
    return {HASH: image_hash(packages), PACKAGES: " ".join(packages), PYTHON: "3.11.2"}


def test_the_image_of_this_version_is_found_by_default():
    found = find_image(FakeDaemon({image_name(): made_by_us()}))  # type: ignore[arg-type]
    assert (found.name, found.id, found.python, found.packages) == (image_name(), f"sha256:{image_name()}", "3.11.2", ())


def test_an_image_with_more_packages_is_found_by_its_name():
    name = image_name(["python3-numpy"])
    found = find_image(FakeDaemon({name: made_by_us("python3-numpy")}), name)  # type: ignore[arg-type]
    assert found.packages == ("python3-numpy",)


OLD = "grpo-sandbox:000000000000"


@pytest.mark.parametrize(
    ("images", "asked", "says"),
    [
        ({}, None, [f"no image {image_name()} here", "Type: grpo sandbox build."]),
        ({OLD: made_by_us()}, None, [f"1 of other versions: {OLD}", "Type: grpo sandbox build."]),
        ({}, "grpo-sandbox:mine", ["no image grpo-sandbox:mine here, which sandbox.image names", "grpo sandbox build"]),
        (
            {OLD: made_by_us("python3-numpy") | {HASH: "0" * 64}},
            OLD,
            [
                "another version of the agent",
                "grpo sandbox build --packages python3-numpy",
                f"sandbox.image to {image_name(['python3-numpy'])}",
            ],
        ),
        ({"debian:12": {}}, "debian:12", ["debian:12 holds neither python3 nor the agent", "grpo sandbox build"]),
    ],
)
def test_an_image_that_will_not_do_is_refused_with_what_to_type(images: dict[str, Any], asked: str | None, says: list[str]):
    with pytest.raises(SandboxUnavailable) as refused:
        find_image(FakeDaemon(images), asked)  # type: ignore[arg-type]
    assert [words for words in says if words not in str(refused.value)] == []


def test_an_image_with_python_but_without_the_agent_is_told_apart_and_nothing_is_left_of_the_look():
    daemon = FakeDaemon({"python:3": {}}, holds_python=True)
    with pytest.raises(SandboxUnavailable, match="python:3 does not hold the agent"):
        find_image(daemon, "python:3")  # type: ignore[arg-type]
    assert daemon.removed == ["container of sha256:python:3"]


def test_the_name_changes_with_every_part_of_what_is_inside(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    shutil.copytree(sandbox.image.AGENT, tmp_path / "agent", ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copytree(RECIPE, tmp_path / "images", ignore=shutil.ignore_patterns("__pycache__"))
    monkeypatch.setattr(sandbox.image, "AGENT", tmp_path / "agent")
    monkeypatch.setattr(sandbox.image, "RECIPE", tmp_path / "images")
    names = [image_name(), image_name(["python3-numpy"])]
    for changed in (*sorted(tmp_path.rglob("*.py")), tmp_path / "images/python.Dockerfile"):
        changed.write_bytes(changed.read_bytes() + b"#")
        names.append(image_name())
    assert len(set(names)) == len(names)


def test_the_order_of_packages_and_a_repetition_do_not_change_the_name():
    assert image_name(["a", "b"]) == image_name(["b", "a", "b"])


def test_a_root_that_was_not_made_for_it_is_never_shrunk():
    # Without its mark the script must end before it deletes anything; were it not so, this test would be the last of this machine.
    script = RECIPE / "shrink_root.py"
    source = script.read_text()
    assert source.index("MARK.is_file()") < source.index("trim_stdlib()")
    run = subprocess.run([sys.executable, "-I", str(script)], capture_output=True, text=True, check=False, timeout=60)
    assert run.returncode == 1
    assert "nothing was touched" in run.stderr
