"""The one door through which verifiers come in, built-in or not: `@rule` on a function, `@verifier` on a class.

Plugins are a dotted module, a `file.py` (or `file.py:name`), or an entry point in the group `grpo.verifiers`. What they register is
found by name; options are checked against the signature. How scores become a reward is `reward.py`'s business.
"""

from __future__ import annotations

import hashlib
import importlib
import importlib.metadata
import importlib.util
import inspect
import sys
import typing
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

from pydantic import BaseModel, ConfigDict, ValidationError, create_model
from pydantic_core import PydanticSerializationError, to_json

from sandbox.protocol import Sandbox
from verifiers.errors import VerifierError
from verifiers.options import did_you_mean, explain
from verifiers.plugin_verifier import PluginRule, PluginVerifier
from verifiers.protocol import Rule, ScoresNow, StatesReference, Verifier

__all__ = [
    "Entry", "Rule", "ScoresNow", "StatesReference", "Verifier", "entries", "find", "load_plugins", "rule", "verifier",
]  # fmt: skip

ENTRY_POINT_GROUP = "grpo.verifiers"
BUILT_IN = (
    "verifiers.math_answer",
    "verifiers.format_rules",
    "verifiers.length_rules",
    "verifiers.instruction_rules",
    "verifiers.unit_tests",
    "verifiers.reasoning_gym",
    "verifiers.countdown",
    "verifiers.judge",
)

RULE_DEADLINE_S, VERIFIER_DEADLINE_S = 5.0, 300.0

Made = TypeVar("Made", bound=Callable[..., Any])
MadeClass = TypeVar("MadeClass", bound=type)


class Provided(NamedTuple):
    """Keyword-only parameters that the service fills in and a config cannot."""

    rule: tuple[str, ...] = ("num_tokens",)
    verifier: tuple[str, ...] = ("workers", "sandbox")


PROVIDED = Provided()


@dataclass(frozen=True, slots=True)
class Entry:
    """One registered verifier: where it comes from, which options it takes, and how it is kept.

    What a plugin registers runs `apart`, in worker processes, unless it says that it need not; `plugin` is how a process loads it,
    None for what was registered in this process by other means. One score may take `deadline_s` there.
    """

    name: str
    origin: str
    summary: str
    target: Callable[..., Any]
    options: type[BaseModel]
    provided: tuple[str, ...]
    plugin: str | None = None
    apart: bool = True
    deadline_s: float = RULE_DEADLINE_S

    def validated(self, options: Mapping[str, Any], where: str = "") -> BaseModel:
        """The options, checked and completed by defaults. `where` is the dotted path at which they stand in the config."""
        try:
            # Strict JSON: "3" is no number and 1 is no boolean, but a list may fill a tuple, as in a TOML file.
            return self.options.model_validate_json(to_json(dict(options), inf_nan_mode="constants"), strict=True)
        except ValidationError as error:
            raise VerifierError(explain(error, self.options, where, noun="option")) from None
        except PydanticSerializationError as error:
            raise VerifierError(f"{where or self.name}: options must be plain data: {error}.") from None

    @property
    def runs_apart(self) -> bool:
        """Whether it runs in worker processes. One that needs the service's sandbox cannot."""
        return self.plugin is not None and self.apart and "sandbox" not in self.provided

    def build(self, options: Mapping[str, Any], *, workers: int = 2, sandbox: Sandbox | None = None, where: str = "") -> Verifier:
        """The verifier with these options. Programs run in `sandbox`; a verifier that runs none does without."""
        checked = self.validated(options, where)
        if not self.runs_apart:
            return self.build_here(checked, workers=workers, sandbox=sandbox)
        assert self.plugin is not None
        kind = PluginVerifier if isinstance(self.target, type) else PluginRule
        plain = checked.model_dump(mode="json")
        return kind(self.plugin, self.name, plain, workers=workers, deadline_s=self.deadline_s)

    def build_here(self, checked: BaseModel, *, workers: int = 2, sandbox: Sandbox | None = None) -> Verifier:
        """The verifier itself, in this process. Its options are those that `validated` gave."""
        given = {name: getattr(checked, name) for name in self.options.model_fields}
        if isinstance(self.target, type):
            made: Any = self.target
            filled_in = {"workers": workers, "sandbox": sandbox}
            return made(**given, **{name: filled_in[name] for name in self.provided})
        return Rule(self.target, given, wants_num_tokens=bool(self.provided))


_entries: dict[str, Entry] = {}
_discovered = False


def rule(name: str, *, deadline_s: float = RULE_DEADLINE_S) -> Callable[[Made], Made]:
    """Register a function `(task, text, *, option=default, ...) -> Score` under a name.

    The keyword-only parameter `num_tokens: int | None` is not an option: the service passes the completion's length. A plugin's
    rule runs in a worker process, and is stopped after `deadline_s`.
    """

    def register(function: Made) -> Made:
        positional = [p for p in inspect.signature(function).parameters.values() if p.kind is p.POSITIONAL_OR_KEYWORD]
        if len(positional) != 2:
            signature = inspect.signature(function)
            raise VerifierError(f"{_origin(function)}: a rule takes (task, text) and keyword-only options, not {signature}.")
        _register(name, function, PROVIDED.rule, deadline_s=deadline_s)
        return function

    return register


def verifier(name: str, *, apart: bool = True, deadline_s: float = VERIFIER_DEADLINE_S) -> Callable[[MadeClass], MadeClass]:
    """Register a class with the methods of Verifier under a name. Its constructor's keyword-only parameters are its options.

    A plugin's verifier runs in worker processes, one score at a time in each, and is stopped after `deadline_s`. With `apart` false
    it runs where the service runs, which suits one that mostly waits for a network, and must then never block.
    """

    def register(cls: MadeClass) -> MadeClass:
        missing = [method for method in ("prepare", "score", "close") if not callable(getattr(cls, method, None))]
        if missing:
            raise VerifierError(
                f"{_origin(cls)}: a verifier is a class with prepare, score and close; it lacks {', '.join(missing)}."
            )
        _register(name, cls, PROVIDED.verifier, apart=apart, deadline_s=deadline_s)
        return cls

    return register


def find(name: str) -> Entry:
    """The verifier of this name. Built-ins and entry points are loaded at the first call."""
    _discover()
    if name not in _entries:
        hint = did_you_mean(name, _entries)
        known = ", ".join(sorted(_entries))
        raise VerifierError(f"{name!r} is not a verifier. {hint}{' ' if hint else ''}Known are {known}; a plugin can add others.")
    return _entries[name]


def entries() -> tuple[Entry, ...]:
    """Everything registered, by name."""
    _discover()
    return tuple(_entries[name] for name in sorted(_entries))


def load_plugins(plugins: Sequence[str]) -> None:
    """Import `my_lab.rules`, `rules.py` or `rules.py:name`; the last form also checks that `name` was registered there."""
    _discover()
    for plugin in plugins:
        _load(plugin)


def _load(plugin: str) -> None:
    path_text, _, wanted = plugin.partition(":") if ".py" in plugin else (plugin, "", "")
    known = dict(_entries)
    try:
        module = _import_file(Path(path_text)) if path_text.endswith(".py") else importlib.import_module(plugin)
    except VerifierError:
        raise
    except (Exception, SystemExit) as error:
        cause = f"{type(error).__name__}: {error}"
        raise VerifierError(f"plugin {plugin} could not be imported: {cause}. Mend it, or drop it.") from error
    again = str(Path(path_text).expanduser().resolve()) if path_text.endswith(".py") else plugin
    for name, entry in _entries.items():
        if known.get(name) is not entry or entry.target.__module__ == module.__name__:
            _entries[name] = replace(entry, plugin=again)
    offered = [entry.name for entry in _entries.values() if entry.target.__module__ == module.__name__]
    functions = [entry.name for entry in _entries.values() if entry.target is getattr(module, wanted, None)]
    if wanted and wanted not in offered and not functions:
        hint = did_you_mean(wanted, offered) or f"It registers {', '.join(offered) or 'nothing'}."
        raise VerifierError(f"plugin {plugin}: {path_text} registers no verifier {wanted}. {hint}")


def _import_file(path: Path) -> Any:
    """Import a file under a name made of its absolute path, so that two files of one name do not collide."""
    absolute = path.expanduser().resolve()
    if not absolute.is_file():
        raise VerifierError(f"plugin {path}: there is no file {absolute}. Give its path from {Path.cwd()}.")
    name = f"{absolute.stem}_{hashlib.sha256(str(absolute).encode()).hexdigest()[:8]}"
    if name in sys.modules:
        return sys.modules[name]
    spec = importlib.util.spec_from_file_location(name, absolute)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    try:
        spec.loader.exec_module(module)
    except BaseException:
        del sys.modules[name]
        raise
    return module


def _discover() -> None:
    global _discovered
    if _discovered:
        return
    _discovered = True
    try:
        for module in BUILT_IN:
            importlib.import_module(module)
        for point in importlib.metadata.entry_points(group=ENTRY_POINT_GROUP):
            _load(point.value.partition(":")[0])
    except BaseException:
        _discovered = False
        raise


def _register(name: str, target: Callable[..., Any], provided: tuple[str, ...], *, apart: bool = True, deadline_s: float) -> None:
    origin = _origin(target)
    known = _entries.get(name)
    if known is not None and known.origin != origin:
        raise VerifierError(f"two verifiers are called {name}: {known.origin} and {origin}. Rename one of them.")
    if known is None and BUILT_IN[0] not in sys.modules:
        # A plugin imported before the first look-up must not take a built-in's name unnoticed.
        _discover()
    parameters = inspect.signature(target).parameters
    _entries[name] = Entry(
        name=name,
        origin=origin,
        summary=(inspect.getdoc(target) or "").partition("\n")[0],
        target=target,
        options=options_model(name, target, provided),
        provided=tuple(p for p in provided if p in parameters),
        apart=apart,
        deadline_s=deadline_s,
    )


def options_model(name: str, target: Callable[..., Any], provided: tuple[str, ...]) -> type[BaseModel]:
    """A pydantic model of the keyword-only parameters, without those that the service provides."""
    function = target.__init__ if isinstance(target, type) else target
    hints = typing.get_type_hints(function, include_extras=True) if inspect.isfunction(function) else {}
    fields: dict[str, Any] = {}
    for parameter in inspect.signature(target).parameters.values():
        if parameter.kind is parameter.VAR_KEYWORD:
            raise VerifierError(f"{_origin(target)}: **{parameter.name} cannot be checked. Name the options one by one.")
        if parameter.kind is parameter.KEYWORD_ONLY and parameter.name not in provided:
            default = ... if parameter.default is parameter.empty else parameter.default
            fields[parameter.name] = (hints.get(parameter.name, Any), default)
    return create_model(name, __config__=ConfigDict(extra="forbid", frozen=True, title=name), **fields)


def _origin(target: Any) -> str:
    """Where a function or class was defined. What was typed at a prompt has a module and no file."""
    try:
        place = inspect.getsourcefile(target) or target.__module__
    except (TypeError, OSError):
        place = target.__module__
    return f"{place}:{target.__qualname__}"
