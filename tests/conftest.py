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
    "RAY_worker_niceness": "0",  # as a run sets it that starts its own cluster
    "VLLM_NO_USAGE_STATS": "1",
}
os.environ.update(QUIET)

NO_DOCKER = "no Docker daemon answers"
# Slow tests that stay together; others stay with their file.
FOLDERS = ("tests/sandbox/", "tests/verifiers/")
# What takes longest comes first, so that the streams end at about the same time; a quickstart learns beside no hostile program.
FIRST = (
    "tests/sandbox/",
    *(f"tests/integration/test_{name}.py" for name in ("run", "kills", "transports", "quickstart")),
    "tests/verifiers/",
)


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
    """Slow tests go in two streams: whichever is free takes the next file, or folder."""
    if is_quick(config):
        return None
    from xdist.scheduler import LoadScopeScheduling

    class Streams(LoadScopeScheduling):
        def _split_scope(self, nodeid: str) -> str:
            return next((folder for folder in FOLDERS if nodeid.startswith(folder)), nodeid.partition("::")[0])

    config.option.loadscopereorder = False  # by number of tests, which says nothing about their time
    return Streams(config, log)


def place(item: pytest.Item) -> int:
    return next((place for place, path in enumerate(FIRST) if item.nodeid.startswith(path)), len(FIRST))


@pytest.hookimpl(trylast=True)  # after -m has left out what was not asked for
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The order of FIRST. Tests marked docker are skipped where no daemon answers."""
    items.sort(key=place)
    in_docker = [item for item in items if item.get_closest_marker("docker")]
    if in_docker and why_no_docker():
        for item in in_docker:
            item.add_marker(pytest.mark.skip(reason=NO_DOCKER))


class Failures:
    """Says what failed as soon as it has: a suite of an hour may be stopped before its summary."""

    def __init__(self, config: pytest.Config) -> None:
        self._config = config

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        terminal = self._config.pluginmanager.get_plugin("terminalreporter")
        if report.failed and terminal is not None:
            crash = getattr(report.longrepr, "reprcrash", None)
            reason = (crash.message if crash else report.longreprtext).partition("\n")[0]
            terminal.ensure_newline()
            terminal.write_line(f"{report.when}: {report.nodeid}: {reason[:300]}")


def pytest_configure(config: pytest.Config) -> None:
    config.pluginmanager.register(Failures(config))


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
