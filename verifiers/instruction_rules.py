"""The verifier `instructions`: does the answer follow instructions that can be checked, those of its task or of the config?"""

from __future__ import annotations

import json
from functools import lru_cache
from typing import Annotated, Any, NamedTuple

from pydantic import AfterValidator, BaseModel, Field, ValidationError

from verifiers.errors import InvalidReference
from verifiers.extract import final_region
from verifiers.instruction_checks import ARGUMENTS, CHECKS
from verifiers.options import did_you_mean, explain
from verifiers.registry import verifier
from verifiers.types import Score, Task, correct, partial, unparseable, wrong


class Instruction(NamedTuple):
    """A check by name, with its arguments."""

    name: str
    arguments: BaseModel

    def fault(self, text: str) -> str | None:
        """What is wrong, or None when the text follows it."""
        given = {name: getattr(self.arguments, name) for name in type(self.arguments).model_fields}
        return CHECKS[self.name](text, **given)


def instruction_of(name: Any, arguments: Any) -> Instruction:
    """Raises ValueError for an unknown name, and for arguments that do not fit. An argument that is None was not given."""
    if name not in CHECKS:
        hint = did_you_mean(str(name), CHECKS) or f"Known are {', '.join(CHECKS)}."
        raise ValueError(f"{name!r} is not an instruction. {hint}")
    if not isinstance(arguments, dict):
        raise ValueError(f"the arguments of {name} are {arguments!r:.60}, but they should be a table.")
    given = {key: value for key, value in arguments.items() if value is not None}
    try:
        return Instruction(name, ARGUMENTS[name].model_validate_json(json.dumps(given), strict=True))
    except ValidationError as error:
        raise ValueError(explain(error, ARGUMENTS[name], name, noun="argument")) from None


def _known(tables: tuple[dict[str, Any], ...]) -> tuple[dict[str, Any], ...]:
    for table in tables:
        instruction_of(table.get("name"), {key: value for key, value in table.items() if key != "name"})
    return tables


@verifier("instructions")
class Instructions:
    """Whether the text after the reasoning follows every instruction: those of the reference and those of the config.

    The reference is that of IFEval, `{"instruction_id_list": ["punctuation:no_comma"], "kwargs": [{}]}`, or nothing.
    """

    def __init__(
        self,
        *,
        follow: Annotated[
            tuple[dict[str, Any], ...],
            Field(description="Instructions for every task: tables with a name as in IFEval and its arguments."),
            AfterValidator(_known),
        ] = (),
        share: Annotated[bool, Field(description="Whether following some of them is worth their share, not nothing.")] = False,
    ) -> None:
        self._always = tuple(
            instruction_of(table["name"], {key: value for key, value in table.items() if key != "name"}) for table in follow
        )
        self._share = share

    def prepare(self, reference: Any) -> object:
        """Refuses names that are not known, arguments that do not fit, and a task without any instruction."""
        instructions = (*self._always, *instructions_of(reference))
        if not instructions:
            raise InvalidReference("no instructions. Give instruction_id_list and kwargs, or the option follow.")
        return instructions

    def score_now(self, task: Task, text: str, *, num_tokens: int | None = None) -> Score:
        region = final_region(text)
        if not region.strip():
            return unparseable("nothing after the reasoning")
        instructions = (*self._always, *instructions_of(task.reference))
        faults = [f"{one.name}: {fault}" for one in instructions if (fault := one.fault(region)) is not None]
        if not faults:
            return correct(f"follows all {len(instructions)}")
        if self._share and len(faults) < len(instructions):
            return partial(1 - len(faults) / len(instructions), "; ".join(faults))
        return wrong("; ".join(faults))

    async def score(self, task: Task, text: str, *, num_tokens: int | None = None) -> Score:
        return self.score_now(task, text)

    async def close(self) -> None:
        """Nothing is held."""


def instructions_of(reference: Any) -> tuple[Instruction, ...]:
    """The instructions of a reference. Raises InvalidReference."""
    if reference is None:
        return ()
    if not isinstance(reference, dict):
        raise InvalidReference(f"the reference is {reference!r:.60}, but instructions needs instruction_id_list and kwargs.")
    try:
        return _instructions_of(json.dumps([reference.get("instruction_id_list"), reference.get("kwargs")]))
    except (TypeError, ValueError) as error:
        raise InvalidReference(str(error)) from None


@lru_cache(maxsize=65536)
def _instructions_of(reference: str) -> tuple[Instruction, ...]:
    names, arguments = json.loads(reference)
    if not isinstance(names, list):
        raise ValueError("instruction_id_list is missing: it should be a list of names.")
    arguments = [{}] * len(names) if arguments is None else arguments
    if not isinstance(arguments, list) or len(arguments) != len(names):
        raise ValueError(f"kwargs should be a list of {len(names)} tables, one for each name in instruction_id_list.")
    return tuple(instruction_of(*pair) for pair in zip(names, arguments, strict=True))
