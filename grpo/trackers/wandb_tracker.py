"""Weights & Biases: curves, a table of rollouts, checkpoints and alerts, sent by a thread of its own.

The loop puts things into a queue and goes on, so no server delays a step. The thread connects when the server answers, however long
that takes, and sends what has waited. What a run did before it was resumed is in metrics.jsonl and in its rollout files: what the
server does not have of it is sent first.
"""

from __future__ import annotations

import logging
import math
import os
import queue
import shutil
import threading
import time
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import Future, wait
from pathlib import Path
from typing import Any, Literal

from grpo.trackers.wandb_rows import COLUMNS, Row, table_rows
from grpo.tracking import Tracker

logger = logging.getLogger(__name__)

WandbMode = Literal["online", "offline", "disabled"]

CONNECT_S = 30.0  # for one try to begin the run
RETRY_S = (5.0, 60.0)  # between tries: at first, and at most
FINISH_S = 60.0  # for what is left to send when the run ends; the rest stays on disk, and `wandb sync` sends it
TABLE_S = 60.0  # that a row waits for its part of the table; then it goes alone, and the part with a later row
TABLE, TABLE_STEP = "rollouts", "rollouts/last_step"  # the table, and the newest step in it


class WandbTracker(Tracker):
    """One W&B run, the same one after a resume. No method but `close` waits, none raises.

    A step is sent once it is whole: when the next one begins, or a checkpoint holds it. Steps that the server has are not sent
    again, so a resumed run has each step once. `history` are the steps before this start, oldest first.
    """

    def __init__(
        self,
        *,
        project: str,
        entity: str | None,
        name: str,
        folder: Path,
        config: dict[str, Any],
        run_id: str,
        history: Iterable[Row] = (),
        table_every: int = 0,
    ) -> None:
        self.run_id = run_id
        self._options = {"project": project, "entity": entity, "name": name, "dir": str(folder), "config": config, "id": run_id}
        self._table_every = table_every
        self._row: Row | None = None
        self._last_checkpoint = -1
        self._rows: queue.SimpleQueue[Row | None] = queue.SimpleQueue()
        self._extras = Extras()
        self._unshown: list[Row] = []  # whose rollouts are not in the table yet
        self._shown: Future[bool] | None = None  # the last attempt to show some
        self._closing = threading.Event()
        self._ends_at = math.inf
        for row in history:
            self._rows.put(row)
        # A daemon: whatever its client waits for, the process ends when the run does.
        self._sender = threading.Thread(target=self._send_all, name="wandb", daemon=True)
        self._sender.start()

    def log(self, step: int, metrics: dict[str, float]) -> None:
        row = self._row_of(step)
        self._row = Row(step, row.metrics | metrics, row.rollouts)

    def rollouts_written(self, step: int, path: Path) -> None:
        if self._table_every and step % self._table_every == 0:
            self._row = Row(step, self._row_of(step).metrics, path)

    def checkpoint_written(self, step: int, path: Path, metadata: dict[str, Any]) -> None:
        self._last_checkpoint = step
        name = f"checkpoint-{self.run_id}"
        self._extras.put("checkpoints", lambda run: log_checkpoint(run, name, step=step, path=path, metadata=metadata))

    def alert(self, title: str, text: str) -> None:
        self._extras.put("alerts", lambda run: run.alert(title=title, text=text, level="WARN"))

    def close(self) -> None:
        """Returns when all is sent, or after a bounded time; a step that no checkpoint holds is left to the resumed run."""
        if self._row is not None and self._row.step <= self._last_checkpoint:
            self._rows.put(self._row)
        self._ends_at = time.monotonic() + FINISH_S
        self._closing.set()
        self._rows.put(None)
        self._sender.join(CONNECT_S + 2 * FINISH_S)
        if self._sender.is_alive():
            logger.warning("W&B did not end in time and may lack steps; `wandb sync %s/wandb/*run-*`", self._options["dir"])

    def _row_of(self, step: int) -> Row:
        """What is known of this step; a step that came before is whole then."""
        row = self._row
        if row is not None and row.step != step:
            self._rows.put(row)
            row = None
        return row or Row(step, {})

    def _send_all(self) -> None:
        """In a thread of its own. The client takes a row without a server: it keeps them on disk until they are sent."""
        try:
            run = self._connect()
            if run is None:
                return
            if self._closing.is_set():  # it took its time to come
                self._ends_at = time.monotonic() + FINISH_S
            self._extras.start(run)
            self._send_rows(run)
            self._extras.stop(self._left_s())
            run.finish()
        except Exception as error:  # whatever its client raises, training goes on without it
            logger.warning(
                "W&B failed (%s: %s) and is left out from here on; metrics.jsonl has it all, and resuming the run sends it",
                type(error).__name__,
                error,
            )

    def _send_rows(self, run: Any) -> None:
        last: Row | None = None
        while (row := self._rows.get()) is not None:
            if row.rollouts is not None:
                self._unshown.append(row)
            if row.step >= run.starting_step:  # the server has those before
                self._send_row(run, row)
                last = row
        if self._unshown and last is not None:  # into the row that is still open
            self._extras.put_row(Row(last.step, {}), tuple(self._unshown))

    def _send_row(self, run: Any, row: Row) -> None:
        """One row of the history, and in it the part of the table that is due: two parts in a row would replace each other.

        What the server lacks of the table's past goes with the first row that is sent. A row waits for its part, but not for ever.
        """
        if self._unshown and (self._shown is None or self._shown.done()):
            self._shown = self._extras.put_row(row, tuple(self._unshown))
            wait([self._shown], min(TABLE_S, self._left_s()))
            if self._shown.done():
                self._unshown.clear()
                if self._shown.result():
                    return
        run.log(row.metrics, step=row.step)

    def _left_s(self) -> float:
        """Until the end stops waiting for tables, checkpoints and alerts."""
        return max(0.0, min(self._ends_at - time.monotonic(), threading.TIMEOUT_MAX))

    def _connect(self) -> Any:
        """A W&B run: online once the server answers, offline when there is no key or the run ends before it did, else None."""
        pause_s, told = RETRY_S[0], False
        for mode in wandb_modes():
            while True:
                is_last_try = mode != "online" or self._closing.is_set()
                try:
                    return start_wandb(mode, self._options)
                except Exception as error:  # its client raises many kinds, and none of them is worth a run
                    if not told:
                        logger.warning("W&B does not start (%s: %s); what there is to send waits", type(error).__name__, error)
                    told = True
                if is_last_try:
                    break
                self._closing.wait(pause_s)
                pause_s = min(2 * pause_s, RETRY_S[1])
        return None


class Extras:
    """What the curves can do without: tables, checkpoints, alerts. The client asks the server before it takes them.

    So they have a thread of their own, and a server that takes none of them does not hold up the curves.
    """

    def __init__(self) -> None:
        self._actions: queue.SimpleQueue[tuple[str, Callable[[Any], object]] | None] = queue.SimpleQueue()
        self._failed: set[str] = set()
        self._thread: threading.Thread | None = None
        self._table: Any = None

    def put(self, what: str, action: Callable[[Any], object]) -> None:
        self._actions.put((what, action))

    def put_row(self, row: Row, unshown: Sequence[Row]) -> Future[bool]:
        """A row of the history with the rollouts of some steps, both or neither; the future says which. One that comes too late,
        when later rows are there, is dropped by the client."""
        is_there: Future[bool] = Future()

        def log_row(run: Any) -> None:
            is_logged = False
            try:
                run.log(row.metrics | self._grown_table(run, unshown), step=row.step)
                is_logged = True
            finally:
                is_there.set_result(is_logged)

        self.put("the table of rollouts", log_row)
        return is_there

    def start(self, run: Any) -> None:
        self._thread = threading.Thread(target=self._work, args=(run,), name="wandb-extras", daemon=True)
        self._thread.start()

    def stop(self, within_s: float) -> None:
        """Give what is left a bounded time."""
        assert self._thread is not None
        self._actions.put(None)
        self._thread.join(within_s)
        if self._thread.is_alive():
            logger.warning("W&B does not take the last tables, checkpoints or alerts; the run folder has them")

    def _work(self, run: Any) -> None:
        while (item := self._actions.get()) is not None:
            what, action = item
            try:
                action(run)
            except Exception as error:  # as above
                if what not in self._failed:
                    logger.warning("W&B does not take %s (%s: %s); the curves go on", what, type(error).__name__, error)
                self._failed.add(what)

    def _grown_table(self, run: Any, unshown: Sequence[Row]) -> dict[str, Any]:
        """The table, grown by the completions of these steps, and the last of them. Only what is new in it is sent."""
        last = run.summary.get(TABLE_STEP) or 0
        new = [
            (row.step, row.rollouts) for row in unshown if row.step > last and row.rollouts is not None and row.rollouts.exists()
        ]
        if not new:
            return {}
        if self._table is None:
            self._table = import_wandb().Table(columns=list(COLUMNS), log_mode="INCREMENTAL", allow_mixed_types=True)
        for _, path in new:
            for cells in table_rows(path):
                self._table.add_data(*cells)
        return {TABLE: self._table, TABLE_STEP: new[-1][0]}


def log_checkpoint(run: Any, name: str, *, step: int, path: Path, metadata: dict[str, Any]) -> None:
    """A version of the run's checkpoint artifact. It says where the files are and what they are; they stay where they are."""
    wandb = import_wandb()
    artifact = wandb.Artifact(name, type="checkpoint", metadata={"step": step, "folder": str(path.resolve()), **metadata})
    artifact.add_reference(path.resolve().as_uri(), name=path.name, checksum=False)
    run.log_artifact(artifact, aliases=["latest", f"step-{step}"])


def start_wandb(mode: WandbMode, options: dict[str, Any]) -> Any:
    """Begin, or continue, the run. Raises what the client raises when that does not work within CONNECT_S."""
    wandb = import_wandb()
    settings = wandb.Settings(
        init_timeout=CONNECT_S,
        finish_timeout=FINISH_S,
        console="off",
        # Its own bounds give a server up after two hours, and then drop what there was to send.
        x_file_stream_retry_max=100_000,
        x_file_transfer_retry_max=100_000,
        x_graphql_retry_max=100_000,
    )
    if mode == "offline":  # what an earlier start of the run left there is part of the history that this one begins with
        for earlier in Path(options["dir"]).glob(f"wandb/offline-run-*-{options['id']}"):
            shutil.rmtree(earlier, ignore_errors=True)
    try:
        return wandb.init(**options, mode=mode, resume="allow" if mode == "online" else None, settings=settings)
    except BaseException:
        wandb.teardown()  # its process would hold on to the run's name: "run ID is in use"
        raise


def import_wandb() -> Any:
    """The client, told to keep its messages in its own log: the terminal belongs to the progress display."""
    import wandb

    wandb.setup(wandb.Settings(silent=True))
    return wandb


def wandb_modes() -> tuple[WandbMode, ...]:
    """What to try, in order: what WANDB_MODE says; else online when a key is known; offline last."""
    asked = os.environ.get("WANDB_MODE", "online")
    if asked == "disabled":
        return ("disabled",)
    return ("online", "offline") if asked == "online" and _has_wandb_key() else ("offline",)


def _has_wandb_key() -> bool:
    try:
        return bool(os.environ.get("WANDB_API_KEY") or import_wandb().api.api_key)
    except Exception:  # a netrc it cannot read, a settings file it cannot parse: no key then
        logger.debug("W&B could not tell whether there is a key", exc_info=True)
        return False
