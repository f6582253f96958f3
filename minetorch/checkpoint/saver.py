"""Saves beside training: stages a state, and has a thread of its own write it. For rank 0 only."""

from __future__ import annotations

import os
import sys
import threading
from collections import deque
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from minetorch.checkpoint.plain import plain_state
from minetorch.checkpoint.staging import Staged, Stager

if TYPE_CHECKING:
    import logging
    from collections.abc import Callable, Iterable, Sequence

    import torch

    from minetorch.checkpoint.checkpointer import Checkpointer, Draft
    from minetorch.checkpoint.manifest import Manifest


_NICENESS = 15
"""By which Linux gives a thread a thirtieth of a core that others want."""


@dataclass(frozen=True)
class Saved:
    """A checkpoint that is durable."""

    manifest: Manifest
    names: tuple[str, ...]
    """The user's, as they were given."""
    path: str
    """Of its payload, or the URL."""


class Saver:
    """Keeps one checkpoint on its way to the storage, and one copy of the state for it.

    A save is staged at once, or, where the caller says which tensors are steady until `before_step`, in part beside
    the computation up to there. Whether they really are is looked at first: the first save is staged at once, and
    only if nothing has touched them until the next step are later ones staged beside it. Where something does so in
    the end, that checkpoint is dropped, which is said, and `wants_another` asks for one in its place.
    """

    def __init__(
        self, checkpointer: Checkpointer, *, logger: logging.Logger, before_commit: Callable[[], object] = lambda: None
    ) -> None:
        """No thread is started yet.

        Args:
            checkpointer: what commits; nothing else may use it while a save is under way.
            logger: for what the user should know but which stops nothing.
            before_commit: called on the saving thread before each commit, so that the log is never behind a checkpoint.
        """
        self._checkpointer = checkpointer
        self._logger = logger
        self._before_commit = before_commit
        self._stager = Stager()
        self._staged: Staged | None = None
        self._under_way: Future[Saved | None] | None = None
        self._tidying: Future[None] | None = None
        self._news: deque[Saved] = deque()
        self._copier: ThreadPoolExecutor | None = None
        self._writer: ThreadPoolExecutor | None = None
        self._may_defer: bool | None = None  # None: not known yet
        self._watched: list[tuple[torch.Tensor, int]] = []
        self.wants_another = False
        """Whether a checkpoint was dropped, so that another is due; who takes it sets this back."""

    @property
    def is_busy(self) -> bool:
        """Whether a checkpoint is on its way."""
        return self._under_way is not None and not self._under_way.done()

    @property
    def has_news(self) -> bool:
        """Whether `take_news` has something to give or to raise."""
        return bool(self._news) or (self._under_way is not None and self._under_way.done())

    def save(self, state: dict[str, Any], *, steady: Iterable[torch.Tensor], names: Sequence[str], **facts: Any) -> str:
        """Stage a state and start saving it, as soon as the save before it is durable.

        Args:
            state: as for `Checkpointer.save`.
            steady: tensors that do not change before `before_step` is called.
            names: the user's, for the checkpoint.
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
        steady = list(steady)
        try:
            self._staged = self._stager.stage(plain, steady if self._may_defer else ())
        except BaseException:
            self._checkpointer.discard(draft)
            raise
        if self._may_defer is None:
            self._watched = [(tensor, tensor._version) for tensor in steady if not tensor.is_inference()]
        if self._copier is None or self._writer is None:
            self._copier = ThreadPoolExecutor(1, thread_name_prefix="minetorch-stage")
            self._writer = ThreadPoolExecutor(1, thread_name_prefix="minetorch-save", initializer=_stand_back)
        copied = self._copier.submit(self._staged.wait)
        self._under_way = self._writer.submit(self._commit, copied, draft, self._staged, tuple(names))
        # After it, on the same thread: what has expired may take long to delete.
        self._tidying = self._writer.submit(self._tidy, self._under_way)
        return self._checkpointer.path_of(draft.manifest)

    def fence(self) -> None:
        """Return when whatever is being staged may be changed."""
        if self._staged is not None and not self._staged.is_fenced:
            self._staged.fence()

    def before_step(self) -> None:
        """As `fence`; to be called right before the optimizer's step."""
        self.fence()
        if self._watched:
            watched, self._watched = self._watched, []
            self._may_defer = all(tensor._version == version for tensor, version in watched)

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
            for pool in filter(None, (self._copier, self._writer)):
                pool.shutdown()
            self._copier = self._writer = None
            self._stager, self._staged = Stager(), None

    def _settle(self, *, wait: bool) -> None:
        under_way = self._under_way
        if under_way is None or not (wait or under_way.done()):
            return
        self.fence()
        try:
            saved = under_way.result()
        finally:
            if under_way.done():  # and not: interrupted while waiting
                self._under_way = None
        if saved is not None:
            self._news.append(saved)

    def _commit(self, copied: Future[None], draft: Draft, staged: Staged, names: tuple[str, ...]) -> Saved | None:
        """On the saving thread."""
        try:
            copied.result()
        except BaseException:
            self._checkpointer.discard(draft)
            raise
        if staged.changed:
            self._may_defer = False
            self._checkpointer.discard(draft)
            self.wants_another = True
            self._logger.warning(
                "Parameters were changed between an optimizer step and the next, while a checkpoint was being taken: "
                "it was dropped, another is taken, and from now on training waits for the copies."
            )
            return None
        self._before_commit()
        manifest = self._checkpointer.commit(draft, staged.state)
        return Saved(manifest, names, self._checkpointer.path_of(manifest))

    def _tidy(self, committed: Future[Saved | None]) -> None:
        """On the saving thread."""
        if committed.exception() is None and committed.result() is not None:
            self._checkpointer.tidy()


def _stand_back() -> None:
    """Let the threads that train go first where cores are short.

    Not for the one that copies: the training waits for that.
    """
    if sys.platform == "linux":  # elsewhere this is of the whole process
        with suppress(OSError):
            os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), _NICENESS)
