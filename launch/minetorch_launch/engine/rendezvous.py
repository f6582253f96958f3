"""Brings the nodes of a job together: torch's c10d rendezvous, with what it leaves out.

- Ranks follow the order of the nodes; torch's follow their addresses' text.
- Every round gives the workers a new, empty store. Torch hands the same one to each, in which restarted
  workers find the addresses of their dead forerunners: gloo then fails with 3 workers and more.
- A node that is gone is taken off the list; torch waits for it for ever once a round is complete.
- When the node that keeps the agents' store is gone, the next one in order keeps a new one; if nobody comes there,
  but the first place answers again, it goes back to that: a link was cut for a while, or the node was started anew.
- On one node there is no port but that of the workers' store, and that one is bound to loopback.
"""

from __future__ import annotations

import json
import os
import queue
import re
import socket
import threading
import time
from contextlib import suppress
from datetime import timedelta
from typing import TYPE_CHECKING, Any
from uuid import uuid4

import torch.distributed.elastic.rendezvous.dynamic_rendezvous as dynamic
from torch._C._distributed_c10d import HashStore, PrefixStore, TCPStore
from torch.distributed.elastic.rendezvous import RendezvousHandler, RendezvousInfo, RendezvousStoreInfo
from torch.distributed.elastic.rendezvous.api import (
    RendezvousClosedError,
    RendezvousConnectionError,
    RendezvousGracefulExitError,
    RendezvousTimeoutError,
)
from torch.distributed.elastic.rendezvous.c10d_rendezvous_backend import C10dRendezvousBackend

from minetorch_launch import joining
from minetorch_launch.engine.council import LOST_SECONDS, Council, Member, StoreLostError, guarded
from minetorch_launch.errors import JoinError

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch._C._distributed_c10d import Store

    from minetorch_launch.plan import LaunchPlan

__all__ = ["Rendezvous"]

_LOOPBACK = "127.0.0.1"
_FIRST_LAST_CALL_SECONDS = 10.0
_LATER_LAST_CALL_SECONDS = 2.0
_SAY_EVERY_SECONDS = 30.0
_LOOK_SECONDS = 0.5
_HOME_SECONDS = 2.0

# The agent's events go nowhere, but naming their caller walks the stack through inspect.getmodule, which
# touches every loaded module and so makes torch import its lazy ones: 1.2 s between a failure and a restart.
dynamic.get_method_name = lambda depth=2: "rendezvous"
# Torch looks for the other nodes once a second, and sleeps up to 0.3 s before the first look of all.
dynamic._delay = lambda seconds: time.sleep(0.05)  # type: ignore[attr-defined]


class Rendezvous(RendezvousHandler):
    """Where the agents of a launch meet, round after round.

    Args:
        plan: of this node.
        say: shows a line to the user.
        check: called often while this waits; may raise to give up.

    Attributes:
        council: of the round last met.
        address: this machine's own, as the other nodes see it.
        regroup: whether the agent shall stop its workers and meet the others anew.
        keeps_store: whether this node has the agents' store.
        failures: how many there have been in this launch.
        attempt: which start of all workers this is, on every node the same.

    Raises:
        JoinError: from the constructor, if the place to meet cannot be found or reached.
    """

    def __init__(self, plan: LaunchPlan, *, say: Callable[[str], None], check: Callable[[], None]) -> None:
        self.plan, self._say, self._check = plan, say, check
        self.council = Council(HashStore(), 0, ())
        self.regroup = False
        self.failures = self.attempt = 0
        self._launch = uuid4().hex[:12]
        self._began = self._said = self._looked = time.monotonic()
        self._called_for: set[Any] = set()
        self._here: list[str] = []
        self._is_meeting = self._is_outside = False
        self._home: tuple[str, int] | None = None
        self._looked_home = 0.0
        self._workers_store: TCPStore | None = None
        self._spare: socket.socket | None = None
        self._store: Store
        if plan.rdzv is None:
            self.address, self.keeps_store, self._is_first = _LOOPBACK, True, True
            self._store = HashStore()
        else:
            self._join(plan.rdzv)
        self._inner, self._holder = self._make_inner()

    def next_rendezvous(self) -> RendezvousInfo:
        """Meet the other nodes.

        Raises:
            JoinError: there were too few of them for too long, or always enough without this one.
        """
        self.regroup = False
        if self.council.store_is_lost and not self.keeps_store:
            self._move_store()
        while True:
            try:
                return self._meet()
            except (RendezvousConnectionError, StoreLostError):
                self._move_store()
            except _HomeIsBackError:
                self._go_home()
            except _NodeWentError:
                self._say("minetorch-launch: a node left while the others were meeting; meeting again")

    def _meet(self) -> RendezvousInfo:
        self._strike_lost()
        self._began = self._said = time.monotonic()
        self._is_meeting = True
        try:
            info = self._inner.next_rendezvous()
        except RendezvousTimeoutError:
            if self._is_outside:
                raise self._left_outside(f"went on for {self.plan.join_timeout:g} s") from None
            raise JoinError(self._too_few()) from None
        except RendezvousClosedError:
            raise JoinError(
                f"the job {self.plan.run_id} at {self.plan.rdzv} has ended: another node has failed for good or was "
                "stopped; see its report"
            ) from None
        except RendezvousGracefulExitError:
            raise self._left_outside("has ended") from None
        finally:
            self._is_meeting = False
        self._inner._settings.timeout._last_call = timedelta(seconds=_LATER_LAST_CALL_SECONDS)
        store = PrefixStore("minetorch", info.store)
        rank, members = self._introduce(store, info.rank, info.world_size)
        self.failures = max(member.failures for member in members)
        self._launch = max(members, key=lambda member: member.attempts).launch
        self.attempt = max(member.attempts for member in members) + 1
        self.council = Council(store, rank, members)
        return RendezvousInfo(info.store, rank, len(members), self._open_workers_store(store, rank))

    def _introduce(self, store: Store, met_as: int, count: int) -> tuple[int, tuple[Member, ...]]:
        """Exchange who is here; this node's rank and all nodes in the order of ranks."""
        me = Member(
            order=self._order(),
            host=self.plan.node.host,
            address=self.address,
            pid=os.getpid(),
            spare_port=self._spare.getsockname()[1] if self._spare else 0,
            keeps_store=self.keeps_store,
            failures=self.failures,
            attempts=self.attempt,
            launch=self._launch,
        )
        if count == 1:
            return 0, (me,)
        keys = [f"member/{number}" for number in range(count)]
        with guarded():
            store.set(keys[met_as], me.to_json())
            end = time.monotonic() + 2 * LOST_SECONDS
            while not store.check(keys):
                self._check()
                if time.monotonic() > end:
                    raise _NodeWentError
                time.sleep(0.02)
            members = sorted(map(Member.from_json, store.multi_get(keys)), key=lambda member: member.order)
            rank = members.index(me)
            # Nobody is taken for silent who has not begun.
            store.set(f"pulse/{rank}", json.dumps([0, None]))
        return rank, tuple(members)

    def _order(self) -> tuple[Any, ...]:
        number = self.plan.node_rank
        natural = [[0, int(part), ""] if part.isdigit() else [1, 0, part] for part in _parts(self.plan.node.host)]
        # Without numbers the first keeper of the store comes first, for its host name stands in everybody's command.
        return (number is None, number or 0, not self._is_first, natural, self.address, os.getpid())

    def _open_workers_store(self, store: Store, rank: int) -> RendezvousStoreInfo:
        if rank == 0:
            # The port is never let go of between being found and being used, as torch's own way does.
            server = joining.listen(self.address, 0)
            port = int(server.getsockname()[1])
            self._workers_store = TCPStore(
                self.address,
                port,
                is_master=True,
                wait_for_workers=False,
                multi_tenant=True,
                master_listen_fd=server.detach(),
            )
        else:
            self._workers_store, port = None, 0
        with guarded():
            return RendezvousStoreInfo.build(rank, store, local_addr=self.address, server_port=port)

    # The agents' own store: at the beginning, and when its keeper is gone.

    def _join(self, place: joining.Endpoint) -> None:
        addresses = joining.resolve(place)
        own = next((address for address in addresses if joining.is_this_machine([address])), None)
        server = None
        if own is not None and self.plan.node_rank in (None, 0):
            try:
                server = joining.listen(own, place.port)
            except JoinError:
                # The job may have another launcher on this machine, or one that came here before.
                if joining.reach_now(own, place.port) is not None:
                    raise
        self._is_first = self.keeps_store = server is not None
        if own is not None and server is not None:
            self.address = own
            self._store = self._serve(server)
        else:
            host = joining.reach(place, addresses, self.plan.join_timeout, say=self._say, check=self._check)
            self.address = joining.address_towards(host, place.port)
            self._store = self._connect(host, place.port, place)
            self._home = host, place.port
        self._spare = joining.listen(self.address, 0)

    def _serve(self, server: socket.socket) -> Store:
        address, port = server.getsockname()[:2]
        return TCPStore(
            address, port, is_master=True, wait_for_workers=False, multi_tenant=True, master_listen_fd=server.detach()
        )

    def _connect(self, address: str, port: int, place: object) -> Store:
        # Also the longest that one question to it may take.
        timeout = timedelta(seconds=min(2 * LOST_SECONDS, self.plan.join_timeout))
        try:
            store = TCPStore(address, port, is_master=False, wait_for_workers=False, timeout=timeout)
        except (RuntimeError, ValueError, TimeoutError) as error:
            raise JoinError(
                f"{self.plan.node.host} reached {address}:{port} ({place}), but what listens there is no launcher of "
                f"this job ({str(error).splitlines()[0]}): check --rdzv, and that all nodes run the same torch"
            ) from None
        joining.keep_alive(address, port, int(LOST_SECONDS), answer_s=int(timeout.total_seconds()) + 1)
        return store

    def _move_store(self) -> None:
        """The store's keeper is gone: have the next living node in order keep a new one."""
        living = (member for rank, member in enumerate(self.council.members) if rank not in self.council.lost)
        members = [member for member in living if not member.keeps_store]
        if self.keeps_store or not members:
            if self._is_outside:
                raise self._left_outside("has ended, or its rendezvous has moved,")
            raise JoinError(
                f"{self.plan.node.host} lost the rendezvous at {self.plan.rdzv} before the nodes had met: is its "
                "launcher still running? Start all nodes again"
            )
        self._inner._stop_heartbeats()
        for member in members:
            if member.pid == os.getpid() and member.address == self.address:
                assert self._spare is not None
                self._say(
                    f"minetorch-launch: the node that kept the rendezvous is gone; {member.host} keeps it now. A node "
                    f"that comes back joins with --rdzv {joining.Endpoint(member.address, member.spare_port)}"
                )
                self.keeps_store = True
                self._store = self._serve(self._spare)
                self._spare = None
                break
            try:
                self._store = self._connect(member.address, member.spare_port, member.host)
                break
            except JoinError:
                continue  # gone as well, or it still sees the keeper that we have lost
        self._called_for.clear()
        self._inner, self._holder = self._make_inner()

    def _look_home(self, now: float) -> None:
        """Whether who keeps a store where nobody else has come can meet the others at the first place again."""
        is_enough = len(self._here) >= min(2, self.plan.nodes[0])
        if self._home is None or not self.keeps_store or is_enough or now - self._looked_home < _HOME_SECONDS:
            return
        self._looked_home = now
        if joining.reach_now(*self._home, seconds=_HOME_SECONDS / 2) is None:
            raise _HomeIsBackError

    def _go_home(self) -> None:
        """Meet where the job began, and forget who was thought lost: it may be who keeps that place."""
        store = self._connect_home()
        if store is None:  # gone again, or somebody else's, or stopped: a later look tells
            self._looked_home = time.monotonic() + LOST_SECONDS
            return
        self._say(f"minetorch-launch: the rendezvous at {self.plan.rdzv} is back; going there")
        self._inner._stop_heartbeats()
        self._store, self.keeps_store = store, False
        self._spare = joining.listen(self.address, 0)
        self.council = Council(HashStore(), 0, ())
        self._called_for.clear()
        self._inner, self._holder = self._make_inner()

    def _connect_home(self) -> Store | None:
        """In a thread, for a process that is stopped lets everybody connect and answers nobody."""
        assert self._home is not None
        found: queue.SimpleQueue[Store | None] = queue.SimpleQueue()
        host, port = self._home

        def connect() -> None:
            try:
                found.put(self._connect(host, port, self.plan.rdzv))
            except JoinError:
                found.put(None)

        threading.Thread(target=connect, name="minetorch-home", daemon=True).start()
        end = time.monotonic() + LOST_SECONDS
        while time.monotonic() < end:
            self._check()
            with suppress(queue.Empty):
                return found.get(timeout=_LOOK_SECONDS)
        return None

    # Torch's part.

    def _make_inner(self) -> tuple[Any, _StateHolder]:
        least, most = self.plan.nodes
        run_id = self.plan.run_id
        with guarded():
            backend = C10dRendezvousBackend(self._store, run_id)
        settings = dynamic.RendezvousSettings(
            run_id,
            least,
            most,
            dynamic.RendezvousTimeout(
                join=timedelta(seconds=self.plan.join_timeout),
                last_call=timedelta(seconds=_FIRST_LAST_CALL_SECONDS),
                close=timedelta(seconds=5),
            ),
            # By wall clocks of different machines, so with much room; the council looks closer.
            keep_alive_interval=timedelta(seconds=10),
            keep_alive_max_attempt=60,
        )
        node = dynamic.DynamicRendezvousHandler._node_desc_generator.generate(self.address)
        holder = _StateHolder(backend, settings, self._waiting_on)
        return dynamic.DynamicRendezvousHandler(node, settings, backend.name, self._store, holder), holder

    def _waiting_on(self) -> None:
        """Called at each look that this thread takes at torch's list of nodes."""
        if not self._is_meeting:
            return
        self._check()
        # Noted while it is among them: it leaves before it gives up.
        self._here = sorted({node.addr for node in self._holder.state.participants}) or self._here
        now = time.monotonic()
        self._look_home(now)
        was_outside = self._is_outside
        self._note_place()
        if self._is_outside and not was_outside:
            self._say(f"minetorch-launch: {self._taken()}; waiting to be taken in")
        elif self.plan.many_nodes and not self._is_outside and now - self._said > _SAY_EVERY_SECONDS:
            self._said = now
            self._say(f"minetorch-launch: {self._too_few()}")

    def _note_place(self) -> None:
        """Whether the job is under way without this node; while its nodes meet anew, who waits for it still does."""
        state = self._holder.state
        is_in = self._inner._this_node in state.participants
        self._is_outside = not is_in and (state.complete or self._is_outside)

    def _too_few(self) -> str:
        return (
            f"{len(self._here)} of {self.plan.nodes[0]} nodes have met at {self.plan.rdzv} after "
            f"{time.monotonic() - self._began:.0f} s (here: {', '.join(self._here) or 'none'}): start minetorch-launch "
            "with the same command, --nodes and --rdzv on the others, and see whether they can reach this address"
        )

    def _taken(self) -> str:
        taken, places = len(self._holder.state.participants), self.plan.nodes[1]
        return f"other launchers have {taken} of {places} places of the job (on {', '.join(self._here)})"

    def _left_outside(self, what: str) -> JoinError:
        return JoinError(
            f"the job {self.plan.run_id} at {self.plan.rdzv} {what} without this machine: {self._taken()}. If this was "
            "to be a job of its own, give it another --run-id"
        )

    def _strike_lost(self) -> None:
        """Take lost nodes off torch's list, or the next round would never begin."""
        members = self.council.members
        lost = {(members[rank].address, members[rank].pid) for rank in self.council.lost}
        while lost:
            self._holder.sync()
            state = self._holder.state
            gone = [node for node in state.participants if (node.addr, node.pid) in lost]
            if not gone:
                return
            for node in gone:
                del state.participants[node]
                state.last_heartbeats.pop(node, None)
            dynamic._remove_participant_epilogue(state, self._inner._settings)
            self._holder.mark_dirty()
            self._holder.sync()

    def nodes_waiting(self) -> bool:
        """Whether a node wants to be taken in that has not been called for yet."""
        now = time.monotonic()
        if not self.plan.many_nodes or now - self._looked < _LOOK_SECONDS:
            return False
        self._looked = now
        with self.council.asking(), self._inner._heartbeat_lock:
            self._holder.sync()
            waiting = set(self._holder.state.wait_list)
        new = waiting - self._called_for
        self._called_for |= waiting
        return bool(new)

    def num_nodes_waiting(self) -> int:
        """What torch's agent asks all the time, to stop its workers and meet again if it is not 0."""
        return int(self.regroup)

    @property
    def use_agent_store(self) -> bool:
        """Workers meet in a store that this agent keeps for them."""
        return True

    def get_backend(self) -> str:
        """Torch's name for this kind of rendezvous."""
        return "c10d"

    def is_closed(self) -> bool:
        """Whether nobody is let in any more."""
        return bool(self._inner.is_closed())

    def set_closed(self) -> None:
        """Let nobody in any more."""
        self._inner.set_closed()

    def get_run_id(self) -> str:
        """What the workers are told of the launch: a name that no other has, of the same command either."""
        return f"{self.plan.run_id}-{self._launch}"

    def shutdown(self) -> bool:
        """Let nobody join any more; but who is not in the job only leaves."""
        self._inner._stop_heartbeats()  # their thread looks at the same list
        try:
            with guarded():
                self._holder.sync()
                self._note_place()
                if self._is_outside:
                    self._leave()
                    return True
                return bool(self._inner.shutdown())
        except StoreLostError:
            return False

    def _leave(self) -> None:
        """Stop waiting for a place in a job that others are in."""
        node = self._inner._this_node
        while node in (state := self._holder.state).wait_list | state.redundancy_list:
            state.wait_list.discard(node)
            state.redundancy_list.discard(node)
            state.last_heartbeats.pop(node, None)
            self._holder.mark_dirty()
            self._holder.sync()


class _NodeWentError(Exception):
    """A node went between being counted and introducing itself."""


class _HomeIsBackError(Exception):
    """The place that the command names answers again."""


class _StateHolder(dynamic._BackendRendezvousStateHolder):
    """Torch's view of who is there, always fresh, and with a word before each look."""

    def __init__(self, backend: Any, settings: Any, on_look: Callable[[], None]) -> None:
        super().__init__(backend, settings, cache_duration=0)
        self._on_look = on_look
        self._thread = threading.get_ident()

    def sync(self) -> bool | None:
        if threading.get_ident() == self._thread:  # not in that of torch's keep-alives
            self._on_look()
        has_set: bool | None = super().sync()
        return has_set


def _parts(host: str) -> list[str]:
    """``node12a`` as node, 12, a: so that node2 comes before node10."""
    return [part for part in re.split(r"(\d+)", host) if part]
