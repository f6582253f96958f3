"""Keeps a run to one writer: its newest start. See `claim` for what stands in the storage.

A writer asks before whatever it does to the run whether a later start has claimed it, and whether its own claim is
still there. Between asking and doing lies a moment, and a process may be stopped in it for long. On a local disk a
`Permit` makes the two one: what an older start does then fails. Elsewhere readers do not rely on the asking: a later
start writes down what it found, and what an older one commits after that is void; and what a commit drops is written in
its manifest before the asking that comes before the deletions, so that a later start either sees it as dropped or is
seen.
"""

from __future__ import annotations

import dataclasses
import os
import queue
import threading
import time
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Any, Literal

from minetorch.checkpoint.claim import (
    CLAIMS,
    Claim,
    Launch,
    Process,
    after_file,
    claim_file,
    highest_claim,
    standing,
    started_at,
)
from minetorch.checkpoint.names import CheckpointName
from minetorch.checkpoint.permit import Permit
from minetorch.checkpoint.store import is_lasting
from minetorch.errors import RunInUseError, RunVanishedError, StorageError, SupersededError

if TYPE_CHECKING:
    import logging
    from collections.abc import Callable, Iterator, Sequence
    from pathlib import Path
    from typing import BinaryIO

    from minetorch.checkpoint.store import Store

IfRunning = Literal["refuse", "wait", "replace"]

BEAT_S = 10.0
"""Seconds from one sign of life to the next, which is also when a writer looks for a successor."""

LEASE_S = 30.0
"""Seconds without a sign of life after which a process on another machine counts as gone."""

_EARLIER = 100
"""How many claims of earlier starts are read at most: each costs a request."""
_POLL_S = 1.0
_SETTLE_S = 1.0


class Fence:
    """One start of a run, among all of its starts."""

    generation = 0
    """Which start this is, from 1; 0 until it has claimed the run."""
    broken: SupersededError | RunVanishedError | None = None
    """Says who has taken the run over, or that its files are gone, once this is known."""

    def __init__(
        self,
        store: Store,
        *,
        logger: logging.Logger,
        process: Process | None = None,
        launch: Launch | None = None,
        clock: Callable[[], float] = time.time,
        sleep: Callable[[float], object] = time.sleep,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        """Nothing is read or written yet.

        Args:
            store: the folder of the run's checkpoints.
            logger: for what the user should know but which stops nothing.
            process: the one that starts the run; this one by default.
            launch: what that process belongs to; what the environment tells by default.
            clock: the Unix time in seconds.
            sleep: waits for so many seconds.
            monotonic: seconds from any point in time; other machines' clocks are never compared with ours.
        """
        self._models = store
        self._store = store.child(CLAIMS)
        self._logger = logger
        self._process = process or Process.this()
        self._launch = launch or Launch.from_environ(os.environ)
        self._clock = clock
        self._sleep = sleep
        self._monotonic = monotonic
        self._claim: Claim | None = None
        self._updating = threading.Lock()
        self._step: Callable[[], int | None] = lambda: None
        self._seen: tuple[str, int, float] | None = None
        self._told = False
        self._permit: Permit | None = None
        # A SimpleQueue, because a garbage collection may put something into it at any moment, on any thread.
        self._orders: queue.SimpleQueue[Literal["stop", "abandon"]] = queue.SimpleQueue()
        self._beating: threading.Thread | None = None

    def claim(self, if_running: IfRunning = "refuse", patience_s: float = float("inf")) -> bool:
        """Claim the next generation, once the process that has the newest one is gone.

        It is gone if it has let the run go, if its PID on this machine is not there any more, if an earlier attempt
        of this launch (a restart, a requeue) had it, or if it has given no sign of life for `LEASE_S`.

        Args:
            if_running: what to do where it is not gone: raise, wait until it is, or take the run from it.
            patience_s: how many seconds to wait at most.

        Returns:
            Whether the run is claimed; if not, call again.

        Raises:
            RunInUseError: another process is training this run, and `if_running` is "refuse".
            StorageError: the storage could not be listed, read or written.
        """
        end = self._monotonic() + patience_s
        while self.generation == 0:
            highest = highest_claim(self._store.list())
            newest = self._read(highest) if highest else None
            if newest is None or if_running == "replace" or self._is_gone(newest, if_running):
                self._create(max(highest, self._highest_used()) + 1)
            elif self._monotonic() >= end:
                return False
            else:
                self._sleep(_POLL_S)
        return True

    def follow(self, generation: int) -> None:
        """Be of the start that rank 0 has claimed: for the other ranks, which give no sign of life of their own."""
        self.generation = generation
        if self._claim is None and self._models.is_local:
            self._models.confine(self._models.local_path().parent)

    def renew(self) -> None:
        """Take the run again after `release`, as the same start, if no other start has claimed it since.

        Raises:
            SupersededError: one has.
            RunVanishedError: the run's files are gone.
            StorageError: the claim could not be read or written.
        """
        if self._claim is None or not self._claim.ended:
            return
        self.check()
        self._permit_writing()
        self._update(ended=False, how="", beat=self._claim.beat + 1)
        self.check()

    def opened(self, newest: CheckpointName | None) -> None:
        """Write down which checkpoint is the newest to this start. What an older writer commits from now on is void."""
        self._store.write(after_file(self.generation, newest), b"\n")

    def check(self) -> None:
        """Return if this start may still write to the run.

        Raises:
            SupersededError: another start has taken the run over.
            RunVanishedError: the run's files are gone.
            StorageError: that could not be found out.
        """
        if self.broken is None and self.generation:
            self._look()
        if self.broken is not None:
            raise self.broken

    @contextmanager
    def checked(self) -> Iterator[None]:
        """Write to the run within this context; raises as `check`, also where that is why the storage has failed."""
        self.check()
        try:
            yield
        except StorageError:
            self.check()
            raise

    def watch(self, finish: Sequence[Callable[[], object]] = ()) -> None:
        """Give signs of life, and look for a successor, every `BEAT_S`, on a thread of its own until `release`.

        Args:
            finish: called by that thread before it releases the run, where nobody else can: see `abandon`.
        """
        if self._beating is None:
            self._beating = threading.Thread(target=self._beat_on, args=(finish,), name="minetorch-fence", daemon=True)
            self._beating.start()

    def abandon(self) -> None:
        """Have the thread finish and release the run: for the garbage collector, which must not wait for a storage."""
        self._orders.put("abandon")

    def earlier(self, generation: int) -> list[Claim]:
        """The claims of the newest starts of the run before this one, from `generation` on, oldest first.

        Raises:
            StorageError: they could not be listed or read.
        """
        found = sorted(number for file in self._store.list() if generation <= (number := highest_claim([file])))
        wanted = [claim_file(number) for number in found if 0 < number < self.generation][-_EARLIER:]
        contents = self._store.read_many(wanted)
        return [claim for name in wanted if name in contents if (claim := Claim.from_json(contents[name])) is not None]

    def begin(self, start: dict[str, Any], step: Callable[[], int]) -> None:
        """Write down what this start went on from; from now on signs of life tell the steps done.

        Raises:
            StorageError: it could not be written.
        """
        self._step = step
        self._update(start=start)

    def release(self, how: str = "") -> None:
        """Let the run go: whoever starts it next need not wait.

        Args:
            how: it has ended: a `history.Ended`, or empty if it never trained.
        """
        beating, self._beating = self._beating, None
        if beating is not None and beating is not threading.current_thread():
            self._orders.put("stop")
            beating.join()
        try:
            if self._claim is not None and not self._claim.ended:
                with suppress(SupersededError, RunVanishedError):
                    self.check()
                    self._update(ended=True, how=how)
        finally:
            if self._permit is not None:
                self._permit.end()
                self._models.confine(self._permit.run)

    def _look(self) -> None:
        """See whether a later start has claimed the run, and whether this one's claim is there."""
        if self._store.is_local:  # where every line of the log asks
            newest = self.generation + self._store.exists(claim_file(self.generation + 1))
            is_there = self._claim is None or self._store.exists(self._claim.file)
        else:
            # One request, where a look for a file that is not there is two of s3fs's, and upsets Swift's server.
            files = self._store.list()
            newest = highest_claim(files)
            is_there = self._claim is None or self._claim.file in files or self._store.exists(self._claim.file)
        if newest > self.generation:
            self._break(newest)
        elif not is_there:
            assert self._claim is not None
            self.broken = RunVanishedError(
                f"the files of this run are gone: {self._store.url_of(self._claim.file)}, the claim of this process, "
                f"no longer exists. {self._models.url} was renamed, deleted or unmounted while the run was "
                "training. This process stops and writes nothing there, since that would begin a second history of the "
                "run. Bring the files back and start the run again: it continues from its last checkpoint. Without "
                "them, the next start begins from scratch"
            )

    def _is_gone(self, newest: Claim, if_running: IfRunning) -> bool:
        state = standing(newest, self._process, self._launch, started_at(newest.process.pid))
        if state == "unknown":
            state = self._observe(newest)
        if state == "running" and if_running == "refuse":
            raise RunInUseError(
                f"{self._models.url} is being trained by another process: {newest.describe()}. Stop that one first, or "
                "give another `code` for a separate run. if_running='wait' waits until it ends, and 'replace' takes "
                "the run over: the other then stops."
            )
        if state != "gone" and not self._told:
            self._told = True
            wait = "waiting until it ends" if if_running == "wait" else f"looking for up to {LEASE_S:.0f} s if it lives"
            self._logger.info("This run was started by another process (%s): %s.", newest.describe(), wait)
        return state == "gone"

    def _observe(self, claim: Claim) -> Literal["gone", "running", "unknown"]:
        """By the signs of life that come while this process looks on."""
        now = self._monotonic()
        if self._seen is None or self._seen[0] != claim.token:
            self._seen = claim.token, claim.beat, now
            return "unknown"
        _, beat, since = self._seen
        if claim.beat != beat:
            self._seen = claim.token, claim.beat, now
            return "running"
        return "gone" if now - since >= LEASE_S else "unknown"

    def _create(self, generation: int) -> None:
        """Claim this generation, unless another process is faster."""
        claim = Claim(generation, self._process, self._launch, self._clock())
        try:
            self._store.create(claim.file, claim.to_json())
            exclusive = self._is_refused(claim)
        except FileExistsError:
            exclusive = True  # another's, or our own whose answer was lost
        except NotImplementedError:
            exclusive = False
            self._store.write(claim.file, claim.to_json())
        if not exclusive:
            self._logger.warning(
                "%s cannot create a file only where there is none. If this run is started twice in the same second, "
                "both may go on.",
                self._models.url,
            )
            self._sleep(_SETTLE_S)
        found = self._read(generation)
        if found is None:
            raise StorageError(f"{self._store.url_of(claim.file)} is not stored as it was sent")
        if found.token == claim.token:
            self._claim, self.generation = claim, generation
            self._permit_writing()

    def _permit_writing(self) -> None:
        """On a local disk, let this start change the run's files, and no earlier one."""
        if not self._models.is_local:
            return
        claims = self._store.local_path()
        try:
            self._permit = Permit(claims.parent.parent, claims, self.generation)
            self._permit.grant()
            # A later start takes the permission away once it has claimed the run: before this look, or after it.
            self._look()
            if self.broken is not None:
                self._permit.end()
            else:
                self._permit.revoke_earlier()
        except OSError as err:
            if isinstance(err, StorageError):
                raise
            failure = StorageError(f"cannot write {self._store.url}: {err}")
            failure.is_lasting = is_lasting(err)
            raise failure from err
        self._models.confine(self._permit.run, self._permit)

    def _is_refused(self, claim: Claim) -> bool:
        """Whether a second creation fails, as it must. Some servers accept it and overwrite."""
        try:
            self._store.create(claim.file, claim.to_json())
        except FileExistsError:
            return True
        return False

    def _read(self, generation: int) -> Claim | None:
        try:
            return Claim.from_json(self._store.read(claim_file(generation)))
        except FileNotFoundError:
            return None

    def _highest_used(self) -> int:
        names = filter(None, map(CheckpointName.of_file, self._models.list()))
        return max((name.generation for name in names), default=0)

    def _break(self, generation: int) -> None:
        successor = self._read(generation)
        who = successor.describe() if successor is not None else "unknown"
        self.broken = SupersededError(
            f"this run was taken over by another start of it ({who}; its start number {generation}, this one's is "
            f"{self.generation}): this process stops, and has left its successor's files alone"
        )

    def _beat_on(self, finish: Sequence[Callable[[], object]]) -> None:
        while True:
            try:
                order = self._orders.get(timeout=BEAT_S)
            except queue.Empty:
                with suppress(StorageError):  # training continues without the storage; a save would say what is wrong
                    self._beat()
                continue
            if order == "abandon":
                self._finish(finish)
            return

    def _finish(self, finish: Sequence[Callable[[], object]]) -> None:
        for step in finish:
            with suppress(Exception):
                step()
        with suppress(Exception):
            self.release()

    def _beat(self) -> None:
        if self.broken is None:
            self._look()
        if self.broken is None and self._claim is not None:
            self._update(beat=self._claim.beat + 1)

    def _update(self, **changes: Any) -> None:
        with self._updating:
            assert self._claim is not None
            self._claim = dataclasses.replace(self._claim, seen=self._clock(), step=self._step(), **changes)
            self._store.write(self._claim.file, self._claim.to_json())


class FencedStore:
    """A run's files for its log and its drawers: written only as long as no other start has taken the run over."""

    def __init__(self, store: Store, fence: Fence) -> None:
        self._store = store
        self._fence = fence

    @property
    def url(self) -> str:
        """The place, for display: without passwords or signatures."""
        return self._store.url

    @property
    def generation(self) -> int:
        """Which start of the run this is, counted from 1; 0 until it has claimed the run."""
        return self._fence.generation

    @property
    def is_local(self) -> bool:
        """Whether `local_path` works."""
        return self._store.is_local

    def local_path(self, name: str = "") -> Path:
        """Where a file stands on this machine's disk (local stores only)."""
        return self._store.local_path(name)

    def read(self, name: str) -> bytes:
        """The content of a file; FileNotFoundError where there is none."""
        return self._store.read(name)

    def size(self, name: str) -> int:
        """Bytes of a file."""
        return self._store.size(name)

    def list(self, prefix: str = "") -> Sequence[str]:
        """The names of the files that begin with `prefix`."""
        return self._store.list(prefix)

    def check(self) -> None:
        """Raises SupersededError where another start has taken the run over."""
        self._fence.check()

    def write(self, name: str, data: bytes) -> None:
        """Replace a file at once: a reader sees the old content or the new, never a part."""
        with self._fence.checked():
            self._store.write(name, data)

    def create_open(self, name: str) -> BinaryIO:
        """Create a file that must not exist yet, open for writing; only when `is_local`."""
        with self._fence.checked():
            return self._store.create_open(name)

    def upload(self, local_path: Path, name: str) -> None:
        """Copy a file of this machine into the store."""
        with self._fence.checked():
            self._store.upload(local_path, name)

    def delete(self, name: str) -> None:
        """Remove a file."""
        with self._fence.checked():
            self._store.delete(name)
