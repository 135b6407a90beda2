"""What `grpo doctor` asks of the network: W&B and the model hub, and whether their clocks agree with ours."""

from __future__ import annotations

import netrc
import os
import time
import urllib.error
import urllib.request
from collections.abc import Iterable, Iterator
from email.utils import parsedate_to_datetime
from pathlib import Path
from urllib.parse import urlsplit

from grpo.doctor.checks import Finding

NETWORK_S = 2.5
MAX_CLOCK_SKEW_S = 60


def wandb() -> Iterator[Finding]:
    """Key and reachability. Without either a run records offline."""
    address = os.environ.get("WANDB_BASE_URL", "https://api.wandb.ai")
    mode = os.environ.get("WANDB_MODE", "online")
    if mode != "online":
        yield Finding("W&B", f"WANDB_MODE is {mode}", "works", "")
        return
    if not _has_key(address):
        advice = "only for tracking.wandb_project: without a key it records offline. Type: wandb login"
        yield Finding("W&B", "no key", "limited", advice)
        return
    yield from _reached("W&B", address, "runs record offline, and wandb sync sends them later")


def _has_key(address: str) -> bool:
    if os.environ.get("WANDB_API_KEY"):
        return True
    try:
        return netrc.netrc().authenticators(urlsplit(address).hostname or "") is not None
    except (OSError, netrc.NetrcParseError):
        return False


def model_hub() -> Iterator[Finding]:
    """Which models and data sets are on this machine already, and whether others can be fetched."""
    home = Path(os.environ.get("HF_HOME", "~/.cache/huggingface")).expanduser()
    cache = Path(os.environ.get("HF_HUB_CACHE", home / "hub"))
    kept = len(list(cache.glob("models--*"))) if cache.is_dir() else 0
    found = f"{kept} models kept in {cache}"
    if os.environ.get("HF_HUB_OFFLINE", "") not in ("", "0"):
        yield Finding("model hub", f"{found}; HF_HUB_OFFLINE is set, so nothing is fetched")
        return
    endpoint = os.environ.get("HF_ENDPOINT", "https://huggingface.co")
    advice = "give model.path a folder, and tasks.source a file; with what is kept: export HF_HUB_OFFLINE=1"
    yield from (finding._replace(found=f"{found}; {finding.found}") for finding in _reached("model hub", endpoint, advice))


def _reached(name: str, address: str, advice: str) -> Iterable[Finding]:
    """Whether an address answers over HTTP, whatever it says; and whether its clock agrees with ours."""
    try:
        with urllib.request.urlopen(urllib.request.Request(address, method="HEAD"), timeout=NETWORK_S) as answer:
            date = answer.headers["Date"]
    except urllib.error.HTTPError as error:
        date = error.headers["Date"]
    except (OSError, ValueError) as error:
        reason = getattr(error, "reason", error)
        return [Finding(name, f"{address} is not reached ({reason})", "limited", advice)]
    skew = time.time() - parsedate_to_datetime(date).timestamp() if date else 0.0
    if abs(skew) > MAX_CLOCK_SKEW_S:
        return [
            Finding(
                name,
                f"{address} answers, {abs(skew):.0f} s {'behind' if skew > 0 else 'ahead of'} our clock",
                "limited",
                "Type: timedatectl set-ntp true",
            )
        ]
    return [Finding(name, f"{address} answers")]
