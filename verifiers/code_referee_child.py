"""Runs trusted tests in a process of its own; the function they test lives in the sandbox, and only plain data comes from there.

Started as `python -I code_referee_child.py MEMORY_MB CPU_S PARENT`, with one socket as stdin and stdout, and frames as in
deadline_child.py. This process reads requests; each is run by a fork of it, so nothing that one program's tests do is seen by the
next. While the tests run, the fork speaks:

    <- {"ask": LINE}       call the candidate          -> {"answer": LINE}, or {"stop": true} when there will be none
    <- {"result": RESULT}  one test is done: null when it passed, else [kind, reason]
    <- {"done": true}      the end: no test is left, or one has failed and that was to be the end
    <- {"refused": TEXT}   the end: the answer is no plain data, or a NaN that is not wanted, so the tests did not see it
    <- {"fault": TEXT}     the end: the tests themselves are broken
    <- {"died": CODE, "id": ID}  the end of the request with this id, said by the parent of a fork that could not

Kinds are "wrong" (the test failed), "raised" (it failed with what the candidate raised), "exhausted" (memory or depth).
"""

from __future__ import annotations

import builtins
import linecache
import os
import random
import resource
import sys
import traceback
from pathlib import Path
from typing import Any, NoReturn

# After everything else, so that nothing of ours hides a module of the interpreter.
sys.path.append(str(Path(__file__).resolve().parent.parent))

from sandbox.agent import calls
from verifiers.deadline_child import die_with, private_pipes, receive, send

BROKEN = (NameError, ImportError, SyntaxError)
MAX_REASON = 300


def main() -> None:
    memory_mb, cpu_s, parent = (int(word) for word in sys.argv[1:4])
    die_with(parent)
    resource.setrlimit(resource.RLIMIT_AS, (memory_mb * 2**20, memory_mb * 2**20))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    incoming, outgoing = private_pipes()
    send(outgoing, {"ready": True})
    while (request := receive(incoming)) is not None:
        pid = os.fork()
        if pid == 0:
            die_with(os.getppid())
            resource.setrlimit(resource.RLIMIT_CPU, (cpu_s, cpu_s + 1))
            Request(request, incoming, outgoing).run()
        _, status = os.waitpid(pid, 0)
        if status != 0:
            send(outgoing, {"died": os.waitstatus_to_exitcode(status), "id": request["id"]})


class Request:
    """One request: `setup` sources are executed in order, then each of `tests`, in one namespace.

    In it stand `candidate`, also by `name`, and `cases`, plain data. With `stop`, the first failure is the end.
    """

    def __init__(self, request: dict[str, Any], incoming: int, outgoing: int) -> None:
        self._request, self._incoming, self._outgoing = request, incoming, outgoing
        self._num_asked = 0
        self._raised: BaseException | None = None  # by the candidate, in its last call

    def run(self) -> NoReturn:
        try:
            self._run_all()
        except Exception as error:
            self._end({"fault": f"the tests cannot be run: {type(error).__name__}: {error}"[:MAX_REASON]})
        self._end({"done": True})

    def _run_all(self) -> None:
        random.seed(0)
        namespace: dict[str, Any] = {"__name__": "tests", "cases": calls.decode(self._request["cases"])}
        for number, source in enumerate(self._request["setup"]):
            _execute(source, f"setup {number}", namespace)
        namespace["candidate"] = namespace[self._request["name"]] = self._candidate
        for number, source in enumerate(self._request["tests"]):
            failure = self._failure(source, f"test {number}", namespace)
            send(self._outgoing, {"result": failure})
            if failure is not None and self._request["stop"]:
                return

    def _failure(self, source: str, name: str, namespace: dict[str, Any]) -> list[str] | None:
        """None when the test passed."""
        self._num_asked, self._raised = 0, None
        try:
            _execute(source, name, namespace)
        except (MemoryError, RecursionError) as error:
            if error is not self._raised:
                return ["exhausted", "memory" if isinstance(error, MemoryError) else "depth"]
            return ["raised", _reason(error)]
        except BROKEN as error:
            if error is not self._raised:
                raise
            return ["raised", _reason(error)]
        except Exception as error:
            return ["raised" if error is self._raised else "wrong", _reason(error)]
        except BaseException as error:
            raise RuntimeError(f"a test raised {type(error).__name__}") from None
        if not self._num_asked:
            raise RuntimeError(f"a test asked nothing of the program, so it says nothing: {source.strip()[:100]}")
        return None

    def _candidate(self, *args: Any, **kwargs: Any) -> Any:
        """What the program answers; what it raised is raised here, as the nearest exception that can be made here."""
        self._num_asked += 1
        try:
            question = calls.encode_call(args, kwargs)
        except ValueError as error:
            self._end({"fault": f"the tests call the program with what is no plain data: {error}"})
        send(self._outgoing, {"ask": question})
        reply = receive(self._incoming)
        if reply is None or "stop" in reply:
            os._exit(0)
        try:
            answer = calls.decode_answer(reply["answer"])
        except ValueError as error:
            self._end({"refused": f"what was written is no answer: {error}"})
        if isinstance(answer, calls.NotPlain):
            self._end({"refused": answer.what})
        if isinstance(answer, calls.Raised):
            self._raised = _exception(answer)
            raise self._raised
        if not self._request["nan"] and _holds_nan(answer.value):
            self._end({"refused": "the answer is NaN or holds one"})
        return answer.value

    def _end(self, frame: dict[str, Any]) -> NoReturn:
        send(self._outgoing, frame)
        os._exit(0)


class CandidateRaised(Exception):
    """The program raised what may not be raised among tests."""


def _exception(raised: calls.Raised) -> Exception:
    """An exception like the program's. Those that end loops or processes could pass for success, so they are not raised here."""
    kind = getattr(builtins, raised.builtin, None)
    if isinstance(kind, type) and issubclass(kind, Exception) and not issubclass(kind, StopIteration | StopAsyncIteration):
        for base in kind.__mro__:
            try:
                made = base(raised.text)
            except TypeError:  # such as UnicodeDecodeError, which is made of five things
                continue
            assert isinstance(made, Exception)
            return made
    return CandidateRaised(f"{raised.name} {raised.text}".strip())


def _holds_nan(value: Any) -> bool:
    if isinstance(value, dict):
        return any(map(_holds_nan, value)) or any(map(_holds_nan, value.values()))
    if isinstance(value, list | tuple | set | frozenset):
        return any(map(_holds_nan, value))
    return value != value


def _execute(source: str, name: str, namespace: dict[str, Any]) -> None:
    linecache.cache[name] = (len(source), None, source.splitlines(keepends=True), name)
    exec(compile(source, name, "exec", dont_inherit=True), namespace)


def _reason(error: BaseException) -> str:
    """The line of the tests that failed, and the error."""
    lines = [frame.line for frame in traceback.extract_tb(error.__traceback__) if frame.filename.startswith(("test ", "setup "))]
    try:
        text = str(error)
    except ValueError:  # an integer of too many digits
        text = ""
    told = type(error).__name__ + (f": {text[:100]}" if text else "")
    return (f"{told} at {lines[-1].strip()}" if lines and lines[-1] else told)[:MAX_REASON]


if __name__ == "__main__":
    main()
