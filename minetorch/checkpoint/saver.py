"""Saves beside training: stages a state, and has a thread of its own write it. For rank 0 only."""

from __future__ import annotations

from collections import deque
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from minetorch.checkpoint.plain import plain_state
from minetorch.checkpoint.staging import Staged, Stager

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from minetorch.checkpoint.checkpointer import Checkpointer, Draft
    from minetorch.checkpoint.manifest import Manifest


@dataclass(frozen=True)
class Saved:
    """A checkpoint that is durable."""

    manifest: Manifest
    names: tuple[str, ...]
    """The user's, as they were given."""
    path: str
    """Of its payload, or the URL."""


class Saver:
    """Copies a state at once, and writes the copy on a thread of its own, one checkpoint after another."""

    def __init__(self, checkpointer: Checkpointer, *, before_commit: Callable[[], object] = lambda: None) -> None:
        """No thread is started yet.

        Args:
            checkpointer: what commits; nothing else may use it while a save is under way.
            before_commit: called on the saving thread before each commit, so that the log is never behind a checkpoint.
        """
        self._checkpointer = checkpointer
        self._before_commit = before_commit
        self._stager = Stager()
        self._under_way: Future[Saved] | None = None
        self._tidying: Future[None] | None = None
        self._news: deque[Saved] = deque()
        self._writer: ThreadPoolExecutor | None = None
        self.wants_another = False
        """Whether a save was put off, so that another is due; who takes it sets this back."""

    @property
    def is_busy(self) -> bool:
        """Whether a checkpoint is on its way."""
        return self._under_way is not None and not self._under_way.done()

    @property
    def has_news(self) -> bool:
        """Whether `take_news` has something to give or to raise."""
        return bool(self._news) or (self._under_way is not None and self._under_way.done())

    def save(
        self, state: dict[str, Any], *, names: Sequence[str], curves: Iterable[bytes] | None = None, **facts: Any
    ) -> str:
        """Copy a state and start to save the copy, as soon as the save before it is durable.

        When this returns, the caller may change the state.

        Args:
            state: as for `Checkpointer.save`.
            names: the user's, for the checkpoint.
            curves: as for `Checkpointer.save`, to be iterated over on the saving thread.
            facts: the other arguments of `Checkpointer.draft`.

        Returns:
            The path or URL where the payload will be.

        Raises:
            ConfigurationError: as `Checkpointer.save`; nothing was started.
            StorageError, SupersededError: the save before it failed.
        """
        self._settle(wait=True)
        plain = plain_state(state)
        draft = self._checkpointer.draft(names=names, **facts)
        try:
            staged = self._stager.stage(plain)
        except BaseException:
            self._checkpointer.discard(draft)
            raise
        if self._writer is None:
            self._writer = ThreadPoolExecutor(1, thread_name_prefix="minetorch-save")
        self._under_way = self._writer.submit(self._commit, draft, staged, curves, tuple(names))
        # After it, on the same thread: what has expired may take long to delete.
        self._tidying = self._writer.submit(self._tidy, self._under_way)
        return self._checkpointer.path_of(draft.manifest)

    def take_news(self) -> list[Saved]:
        """The checkpoints that have become durable since the last call.

        Raises:
            StorageError: one could not be saved.
            SupersededError: another start of the run has taken it over.
        """
        self._settle(wait=False)
        news = list(self._news)
        self._news.clear()
        return news

    def flush(self) -> None:
        """Wait until nothing is on its way to being durable; raises as `take_news`."""
        self._settle(wait=True)

    def close(self) -> None:
        """As `flush`, and let go of the thread and of the memory."""
        try:
            self.flush()
            if self._tidying is not None:
                self._tidying.result()
        finally:
            if self._writer is not None:
                self._writer.shutdown()
            self._writer = None
            self._stager = Stager()

    def _settle(self, *, wait: bool) -> None:
        under_way = self._under_way
        if under_way is None or not (wait or under_way.done()):
            return
        try:
            saved = under_way.result()
        finally:
            if under_way.done():  # and not: interrupted while waiting
                self._under_way = None
        self._news.append(saved)

    def _commit(self, draft: Draft, staged: Staged, curves: Iterable[bytes] | None, names: tuple[str, ...]) -> Saved:
        """On the saving thread."""
        try:
            staged.wait()
        except BaseException:
            self._checkpointer.discard(draft)
            raise
        self._before_commit()
        manifest = self._checkpointer.commit(draft, staged.state, curves)
        return Saved(manifest, names, self._checkpointer.path_of(manifest))

    def _tidy(self, committed: Future[Saved]) -> None:
        """On the saving thread."""
        if committed.exception() is None:
            self._checkpointer.tidy()
