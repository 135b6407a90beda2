"""Tests ask nothing of the network, and tell it nothing. Set before the first import that would read it."""

import gc
import os
import sys
from collections.abc import Iterator
from typing import Any

import pytest

QUIET = {
    "HF_HUB_OFFLINE": "1",
    "HF_DATASETS_OFFLINE": "1",
    "WANDB_MODE": "offline",
    "RAY_USAGE_STATS_ENABLED": "0",
    "VLLM_NO_USAGE_STATS": "1",
}
os.environ.update(QUIET)

NO_DOCKER = "no Docker daemon answers"
QUICKSTART = "tests/integration/test_quickstart.py"
FLEET_FAULTS = "tests/integration/test_fleet_faults.py"
BESIDE_THE_RUNS = ("tests/sandbox/", "tests/verifiers/")  # what mostly waits for a limit or a clock
# Whole runs that no clock is held to.
FOR_WHOEVER_IS_FREE = ("tests/integration/test_documented_commands.py", "tests/integration/test_jobs.py")


def is_quick(config: pytest.Config) -> bool:
    return config.option.markexpr.startswith("not ray and not docker")


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_auto_num_workers(config: pytest.Config) -> int:
    """The quick tests as a whole have every core, and all the slow ones two processes; a few of them are not worth it."""
    is_whole = config.args_source is config.ArgsSource.TESTPATHS and not config.option.keyword
    cores = len(os.sched_getaffinity(0))
    if not is_whole or not config.option.markexpr.endswith("and not gpu"):  # a GPU is for one
        return 0
    return cores if is_quick(config) else min(cores, 2)


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """Slow tests go in two streams, each in its order: whole runs in one, and in the other what leaves them the processor.

    Some whole runs, and the quickstarts after them, go one after the other to the stream that is the first to have done its own:
    xdist gives away what has more tests first.
    """
    if is_quick(config):
        return None
    from xdist.scheduler import LoadScopeScheduling

    class Streams(LoadScopeScheduling):
        def _split_scope(self, nodeid: str) -> str:
            if nodeid.startswith(QUICKSTART):
                return nodeid
            if nodeid.startswith(FOR_WHOEVER_IS_FREE):
                return nodeid.partition("::")[0]
            return "beside the runs" if nodeid.startswith(BESIDE_THE_RUNS) else "runs"

    return Streams(config, log)


@pytest.hookimpl(trylast=True)  # after -m has left out what was not asked for
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Tests marked docker are skipped where no daemon answers.

    What is held to a clock comes while the other stream has least to do: the faults of the fleet first, the quickstarts last.
    """
    items.sort(key=lambda item: item.nodeid.startswith(QUICKSTART) - item.nodeid.startswith(FLEET_FAULTS))
    in_docker = [item for item in items if item.get_closest_marker("docker")]
    if in_docker and why_no_docker():
        for item in in_docker:
            item.add_marker(pytest.mark.skip(reason=NO_DOCKER))


def pytest_collection_finish() -> None:
    """What was imported and collected stays: half a million objects that the garbage collector need not go through again."""
    gc.freeze()
    gc.set_threshold(100_000, 50, 100)


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    skipped = [report for report in terminalreporter.stats.get("skipped", ()) if NO_DOCKER in str(report.longrepr)]
    if skipped:
        terminalreporter.section("no Docker")
        terminalreporter.write_line(f"{len(skipped)} tests that need Docker were skipped. {why_no_docker()}")


def why_no_docker() -> str:
    from sandbox.docker import connect
    from sandbox.errors import SandboxUnavailable

    try:
        connect(timeout_s=10).close()
    except SandboxUnavailable as error:
        return str(error)
    return ""


@pytest.fixture(autouse=True)
def no_plugin_outlives_its_test() -> Iterator[None]:
    """What a test's own file registered goes with the test: another test may use the name."""
    yield
    entries = getattr(sys.modules.get("verifiers.registry"), "_entries", {})
    for name in [name for name, entry in entries.items() if "/pytest-of-" in entry.origin]:
        del entries[name]
