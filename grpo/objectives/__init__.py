"""Objectives, one file and one paper each. `AnyObjective` is the type of the config's [objective] table, told apart by `name`."""

from typing import Annotated

from pydantic import Field

from grpo.objectives.base import Objective
from grpo.objectives.cispo import Cispo
from grpo.objectives.dapo import Dapo
from grpo.objectives.dpo import Dpo
from grpo.objectives.dr_grpo import DrGrpo
from grpo.objectives.grpo import Grpo
from grpo.objectives.gspo import Gspo
from grpo.objectives.ipo import Ipo
from grpo.objectives.kto import Kto
from grpo.objectives.orpo import Orpo
from grpo.objectives.reinforce_plus_plus import ReinforcePlusPlus
from grpo.objectives.rloo import Rloo
from grpo.objectives.sft import Sft
from grpo.objectives.simpo import Simpo
from grpo.objectives.spin import Spin

AnyObjective = Annotated[
    Grpo | Dapo | DrGrpo | Gspo | Cispo | Rloo | ReinforcePlusPlus | Dpo | Ipo | Kto | Orpo | Simpo | Spin | Sft,
    Field(discriminator="name"),
]

__all__ = [
    "AnyObjective",
    "Cispo",
    "Dapo",
    "Dpo",
    "DrGrpo",
    "Grpo",
    "Gspo",
    "Ipo",
    "Kto",
    "Objective",
    "Orpo",
    "ReinforcePlusPlus",
    "Rloo",
    "Sft",
    "Simpo",
    "Spin",
]
