"""What may be run at all: names of files, entry points, limits."""

import pickle

import pytest
from pydantic import ValidationError

from sandbox.config import SandboxConfig
from sandbox.errors import ProgramError, SandboxLost
from sandbox.pool import SandboxConfigError, open_sandbox
from sandbox.types import MAX_FILES_BYTES, Ending, Execution, Limits, Program, ProgramEnded


@pytest.mark.parametrize("name", ["/etc/passwd", "../x", "a/../../x", "", "a\0b", ".", ".."])
def test_a_file_outside_the_programs_folder_is_refused(name):
    with pytest.raises(ProgramError, match="must be relative and stay inside"):
        Program("pass", files={name: b""})


@pytest.mark.parametrize("name", ["a.txt", "data/a.txt", "a b/ü", "..a", "a..b/c"])
def test_a_file_inside_the_programs_folder_is_taken(name):
    assert Program("pass", files={name: b"x"}).files == {name: b"x"}


def test_files_have_a_total_size():
    with pytest.raises(ProgramError, match=r"8,388,609 bytes together; at most 8,388,608"):
        Program("pass", files={"a": bytes(MAX_FILES_BYTES), "b": b"1"})


@pytest.mark.parametrize("name", ["1f", "a b", "f()", "", ".", "f.", "import", "os.system('x')", "__import__('os')"])
def test_an_entry_point_is_a_name(name):
    with pytest.raises(ProgramError, match="is not the name of a function"):
        Program("pass", entry_point=name)


@pytest.mark.parametrize("name", ["f", "Solution.two_sum", "größe"])
def test_an_entry_point_may_be_a_method(name):
    assert Program("pass", entry_point=name).entry_point == name


@pytest.mark.parametrize(
    "limits",
    [
        {"cpu_s": 0},
        {"cpu_s": -1},
        {"cpu_s": float("inf")},
        {"cpu_s": float("nan")},
        {"cpu_s": 1e9},
        {"wall_s": 0},
        {"memory_mb": 0},
        {"memory_mb": 10**12},
        {"max_processes": 0},
        {"output_kb": 0},
        {"disk_mb": 0},
        {"disk_mb": 10**9},
        {"cpus": 1},
    ],
)
def test_limits_of_zero_or_absurd_size_are_refused(limits):
    with pytest.raises(ValidationError, match=next(iter(limits))):
        Limits(**limits)


def test_the_wall_clock_stands_behind_the_cpu_clock():
    assert Limits(cpu_s=2).wall_clock_s == 11
    assert Limits(cpu_s=2, wall_s=0.5).wall_clock_s == 0.5


def test_no_walls_only_for_programs_that_the_config_trusts():
    with pytest.raises(SandboxConfigError, match=r"Use warm .* or bubblewrap; .* also set sandbox.trusted = true"):
        open_sandbox(SandboxConfig(level="none"))
    open_sandbox(SandboxConfig(level="none", trusted=True))


def test_exceptions_travel_between_processes():
    ended = pickle.loads(pickle.dumps(ProgramEnded(Execution(Ending.CPU_TIME))))
    assert ended.execution.ending is Ending.CPU_TIME
    assert str(pickle.loads(pickle.dumps(SandboxLost("gone")))) == "gone"
