"""Containers whose owner is dead go; nobody else's are touched."""

from __future__ import annotations

import logging
import time
from typing import Any, NamedTuple

from sandbox.docker import connect, daemon_errors
from sandbox.errors import SandboxUnavailable
from sandbox.ownership import LABEL_CREATED, LABEL_OWNER, Owner

logger = logging.getLogger(__name__)

MAX_AGE_S = 24 * 3600.0


class Swept(NamedTuple):
    """A container that was removed, and why."""

    container_id: str
    reason: str


def sweep(client: Any = None, *, max_age_s: float = MAX_AGE_S) -> list[Swept]:
    """Remove what dead owners left behind, by label, and containers of owners we cannot see that are older than `max_age_s`.

    Raises SandboxUnavailable when no daemon answers.
    """
    import docker.errors

    client = client or connect()
    with daemon_errors():
        found = client.api.containers(all=True, filters={"label": LABEL_OWNER})
    swept = []
    for container in found:
        reason = _reason(container.get("Labels") or {}, max_age_s)
        if reason is None:
            continue
        try:
            client.api.remove_container(container["Id"], force=True)
        except docker.errors.NotFound:
            continue
        except docker.errors.APIError as error:
            if error.status_code == 409:  # it is going already
                continue
            raise SandboxUnavailable(f"the container {container['Id'][:12]} could not be removed: {error.explanation}.") from error
        swept.append(Swept(container["Id"], reason))
        logger.info("removed the container %s: %s", container["Id"][:12], reason)
    return swept


def _reason(labels: dict[str, str], max_age_s: float) -> str | None:
    owner = Owner.parse(labels.get(LABEL_OWNER, ""))
    if owner is None:
        return None
    is_dead = owner.is_dead()
    if is_dead:
        return f"its owner, process {owner.pid}, is dead"
    created = labels.get(LABEL_CREATED, "")
    age_s = time.time() - int(created) if created.isdigit() else 0.0
    if is_dead is None and age_s > max_age_s:
        return f"it is {age_s / 3600:.0f} hours old, and its owner is not of this machine's present run"
    return None
