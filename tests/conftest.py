"""Tests ask nothing of the network, and tell it nothing. Set before the first import that would read it."""

import os
import sys
from collections.abc import Iterator

import pytest

QUIET = {
    "HF_HUB_OFFLINE": "1",
    "HF_DATASETS_OFFLINE": "1",
    "WANDB_MODE": "offline",
    "RAY_USAGE_STATS_ENABLED": "0",
    "VLLM_NO_USAGE_STATS": "1",
}
os.environ.update(QUIET)


NO_DOCKER = pytest.StashKey[str]()


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_auto_num_workers(config: pytest.Config) -> int:
    """The quick tests as a whole have every core; a few of them are not worth it, and the slow ones want a machine each."""
    is_whole = config.args_source is config.ArgsSource.TESTPATHS and not config.option.keyword
    is_quick = config.option.markexpr.startswith("not ray and not docker")
    return len(os.sched_getaffinity(0)) if is_whole and is_quick else 0


@pytest.hookimpl(trylast=True)  # after -m has left out what was not asked for
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Tests marked docker are skipped where no daemon answers."""
    in_docker = [item for item in items if item.get_closest_marker("docker")]
    if in_docker and (reason := why_no_docker()):
        config.stash[NO_DOCKER] = f"{len(in_docker)} tests that need Docker were skipped. {reason}"
        for item in in_docker:
            item.add_marker(pytest.mark.skip(reason="no Docker daemon answers"))


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    if NO_DOCKER in config.stash:
        terminalreporter.section("no Docker")
        terminalreporter.write_line(config.stash[NO_DOCKER])


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
