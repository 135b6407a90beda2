"""The seccomp profile of the containers: the calls a program may make, and those that the fork server needs to wall it in."""

from __future__ import annotations

import json
from typing import Any

from sandbox.agent.syscalls import ALLOWED, SERVER_ONLY

AF_UNIX = 1
ENOSYS = 38


def container_profile() -> str:
    """For `--security-opt seccomp=`. Everything else gets EPERM; clone3 does not exist, so that clone's flags can be filtered."""
    by_argument = ("socket", "socketpair")
    rules: list[dict[str, Any]] = [
        {"names": sorted({*ALLOWED, *SERVER_ONLY} - set(by_argument)), "action": "SCMP_ACT_ALLOW"},
        {
            "names": list(by_argument),
            "action": "SCMP_ACT_ALLOW",
            "args": [{"index": 0, "value": AF_UNIX, "op": "SCMP_CMP_EQ"}],
        },
        {"names": ["clone3"], "action": "SCMP_ACT_ERRNO", "errnoRet": ENOSYS},
    ]
    return json.dumps({"defaultAction": "SCMP_ACT_ERRNO", "architectures": ["SCMP_ARCH_X86_64"], "syscalls": rules})
