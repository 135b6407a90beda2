"""Objectives, one file and one paper each. `AnyObjective` is the type of the config's [objective] table, told apart by `name`."""

from typing import Annotated

from pydantic import Field

from grpo.objectives.base import Objective
from grpo.objectives.dapo import Dapo
from grpo.objectives.dr_grpo import DrGrpo
from grpo.objectives.grpo import Grpo
from grpo.objectives.sft import Sft

AnyObjective = Annotated[Grpo | Dapo | DrGrpo | Sft, Field(discriminator="name")]

__all__ = ["AnyObjective", "Dapo", "DrGrpo", "Grpo", "Objective", "Sft"]
