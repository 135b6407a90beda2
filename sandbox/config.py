"""[sandbox] of a config: how strong the walls are, and how many programs run at one time."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

Level = Literal["warm", "fresh", "gvisor", "bubblewrap", "none"]


class SandboxConfig(BaseModel):
    """[sandbox]: where untrusted programs run. `grpo sandbox doctor` says which levels this machine has."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    level: Level = Field(
        default="warm",
        description="warm: a Docker container per slot, namespaces per program; fresh: a container per program; gvisor: another "
        "kernel; bubblewrap: no Docker; none: no walls, for trusted programs only.",
    )
    trusted: bool = Field(default=False, description="Must be true for level none: every program is one you would run yourself.")
    slots: int | None = Field(default=None, ge=1, le=1024, description="Programs at one time. None: as many as cores.")
    memory_mb: int = Field(default=512, ge=64, le=1 << 20, description="Memory of one slot, in MiB; no program may have more.")
    image: str | None = Field(default=None, description="Image that `grpo sandbox build` made. None: the one of this version.")
    preload: tuple[str, ...] = Field(
        default=(), description="Modules that the fork server imports once, e.g. numpy; the image must hold them."
    )
