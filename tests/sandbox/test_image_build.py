"""How an image comes about: which way is chosen and why, what goes in, what a failed tool means, and the real thing in Docker."""

from __future__ import annotations

import io
import json
import tarfile
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from sandbox.build import build, make_root, read_manifest, summary
from sandbox.errors import SandboxUnavailable, UserError
from sandbox.image import find_image, image_name
from sandbox.progress import Stage, Stages
from sandbox.roots import Wanted, failure, write_build_tar


class FakeWay:
    """A way that is closed, breaks, or writes a root with a manifest."""

    def __init__(self, name: str, *, obstacle: str | None = None, breaks: Exception | None = None) -> None:
        self.name, self.from_what, self._obstacle, self._breaks = name, f"with {name}", obstacle, breaks

    def obstacle(self) -> str | None:
        return self._obstacle

    def make(self, wanted: Wanted, stage: Stage) -> None:
        if self._breaks is not None:
            raise self._breaks
        content = json.dumps({"python": "3.11.2", "modules": [self.name]}).encode()
        with tarfile.open(wanted.root_tar, "w") as tar:
            member = tarfile.TarInfo("./opt/grpo/image.json")
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))


@pytest.fixture
def console() -> Console:
    return Console(file=io.StringIO(), force_terminal=False, width=200)


@pytest.fixture
def wanted(tmp_path: Path) -> Wanted:
    return Wanted(packages=(), mirror=None, folder=tmp_path)


def said(console: Console) -> str:
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


def test_the_first_open_way_is_taken_and_the_closed_ones_are_the_reason(console: Console, wanted: Wanted):
    candidates = [FakeWay("registry", obstacle="no registry"), FakeWay("mmdebstrap"), FakeWay("debootstrap")]
    way = make_root(candidates, wanted, Stages(console), fall_back=True)
    assert way.name == "mmdebstrap"
    assert read_manifest(wanted.root_tar) == {"python": "3.11.2", "modules": ["mmdebstrap"]}
    assert "Building with mmdebstrap, since no registry." in said(console)


def test_a_way_that_breaks_is_one_more_reason_for_the_next(console: Console, wanted: Wanted):
    candidates = [FakeWay("registry", breaks=SandboxUnavailable("it broke")), FakeWay("mmdebstrap")]
    assert make_root(candidates, wanted, Stages(console), fall_back=True).name == "mmdebstrap"
    assert "Building with mmdebstrap, since it broke." in said(console)


def test_a_way_that_was_asked_for_by_name_is_not_replaced(console: Console, wanted: Wanted):
    with pytest.raises(SandboxUnavailable, match="it broke"):
        make_root([FakeWay("registry", breaks=SandboxUnavailable("it broke"))], wanted, Stages(console), fall_back=False)


def test_a_mistyped_package_is_not_tried_in_another_way(console: Console, wanted: Wanted):
    candidates = [FakeWay("mmdebstrap", breaks=UserError("no package")), FakeWay("debootstrap")]
    with pytest.raises(UserError, match="no package"):
        make_root(candidates, wanted, Stages(console), fall_back=True)


def test_no_open_way_is_told_with_every_reason(console: Console, wanted: Wanted):
    candidates = [FakeWay("registry", obstacle="no registry"), FakeWay("mmdebstrap", obstacle="apt-get install mmdebstrap")]
    with pytest.raises(SandboxUnavailable, match=r"no way to an image is open here: no registry; apt-get install mmdebstrap\."):
        make_root(candidates, wanted, Stages(console), fall_back=True)


@pytest.mark.parametrize(
    ("line", "error", "says"),
    [
        ("E: Unable to locate package python3-nump", UserError, "has no package python3-nump"),
        ("E: Couldn't find these debs: python3-nump", UserError, "has no package python3-nump"),
        ("shrink_root.py: cowsay brings no Python module; only", UserError, "cowsay brings no Python module"),
        ("\x1b[91mdisk full\x1b[0m", SandboxUnavailable, "the tool failed, saying: disk full"),
    ],
)
def test_what_a_tool_says_decides_whose_mistake_it_is(line: str, error: type[Exception], says: str):
    failed = failure("the tool", [line, ""])
    assert type(failed) is error
    assert says in str(failed)


def test_every_root_gets_the_agent_as_a_package_and_the_mark_that_lets_it_be_shrunk(tmp_path: Path):
    write_build_tar(tmp_path / "build.tar")
    with tarfile.open(tmp_path / "build.tar") as tar:
        names = tar.getnames()
    assert {"opt/grpo/sandbox/__init__.py", "opt/grpo/sandbox/agent/fork_server.py", "build/this-root-is-new"} <= set(names)
    assert all(name.startswith(("opt", "build")) for name in names)
    for name in names:  # a folder stands before what is in it
        parent = str(Path(name).parent)
        assert parent == "." or names.index(parent) < names.index(name)


@pytest.mark.parametrize("name", ["a;b", "$(id)", "--hook", "", "Python3", "a b"])
def test_a_word_that_is_no_package_name_never_reaches_a_tool(name: str, console: Console):
    with pytest.raises(UserError, match="is not the name of a Debian package"):
        build(None, console, packages=[name])  # type: ignore[arg-type]


def test_a_stage_is_one_line_where_there_is_no_terminal(console: Console):
    with Stages(console).stage("the root") as stage:
        stage.detail("unpacking")
        stage.result = "43.7 MB"
    assert said(console).strip() == "0.0 s  the root (43.7 MB)"


@pytest.mark.docker
@pytest.mark.timeout(600)
def test_an_image_is_built_found_and_not_built_twice(client: Any, console: Console):
    first = build(client, console, rebuild=True)
    again = build(client, console)
    assert first.image == again.image == find_image(client)
    assert again.seconds is None
    assert first.image.size_bytes < 60e6
    console.print(summary(first))
    assert image_name() in said(console)
    assert "Building from" in said(console)


@pytest.mark.docker
def test_the_image_holds_one_program_and_it_is_python(client: Any, image: str):
    found = find_image(client, image)
    container = client.api.create_container(found.id, command=["python3"])["Id"]
    try:
        with tarfile.open(fileobj=io.BytesIO(b"".join(client.api.export(container)))) as tar:
            members = {member.name: member for member in tar}
    finally:
        client.api.remove_container(container)
    executable = [name for name, member in members.items() if member.isfile() and member.mode & 0o111 and ".so" not in name]
    # Docker itself puts .dockerenv, dev/console and three files into /etc.
    assert [name for name in executable if name.split("/")[0] not in (".dockerenv", "dev", "etc")] == [
        f"usr/bin/python{found.python[:4]}"
    ]
    assert not [name for name, member in members.items() if member.mode & 0o6000]  # set-user-id, set-group-id
    assert "usr/share/zoneinfo/Europe/Berlin" in members
    stdlib = f"usr/lib/python{found.python[:4]}"
    assert f"{stdlib}/unittest/__init__.py" in members
    assert not {f"{stdlib}/test", f"{stdlib}/idlelib", f"{stdlib}/lib2to3", f"{stdlib}/ensurepip"} & members.keys()
    compiled = f"{stdlib}/__pycache__/argparse.cpython-{found.python[:4].replace('.', '')}.pyc"
    assert compiled in members


@pytest.mark.docker
@pytest.mark.slow
@pytest.mark.timeout(900)
def test_numpy_from_debian_imports_in_the_image_that_was_built_with_it(client: Any, console: Console):
    built = build(client, console, packages=["python3-numpy"])
    assert find_image(client, built.image.name).packages == ("python3-numpy",)
    program = "import numpy, numpy.random, numpy.linalg; print(numpy.linalg.det(numpy.eye(3) * 2))"
    output = client.containers.run(
        built.image.id, ["python3", "-P", "-c", program], network_mode="none", read_only=True, remove=True
    )
    assert float(output) == pytest.approx(8.0)


@pytest.mark.docker
@pytest.mark.timeout(300)
def test_an_unknown_package_is_the_users_mistake(client: Any, console: Console):
    with pytest.raises(UserError, match="has no package python3-numpi"):
        build(client, console, packages=["python3-numpi"])
