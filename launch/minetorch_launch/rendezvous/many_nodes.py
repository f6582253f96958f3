"""The rendezvous of a job on several nodes: finds the node that leads, or leads; and moves when the leader is lost.

One node hosts the store, and leads. At first that is the node that the endpoint names. When it is lost, the next
living participant in node order hosts a new store, at the standby port that every node keeps open from the start. A
host of such a store that stays without enough nodes goes back to the endpoint when a launcher answers there: a link
was cut for some time, or that node was started again.
"""

from __future__ import annotations

import asyncio
import os
import socket
import time
from collections.abc import Collection
from contextlib import suppress
from dataclasses import replace
from typing import Any
from uuid import uuid4

from minetorch_launch.errors import JoinError, UsageError
from minetorch_launch.rendezvous.endpoints import (
    address_towards,
    is_loopback,
    is_this_machine,
    listen,
    reach,
    what_to_check,
)
from minetorch_launch.rendezvous.follower import Follower
from minetorch_launch.rendezvous.host import Host
from minetorch_launch.rendezvous.membership import Roster, Settings
from minetorch_launch.rendezvous.messages import PROTOCOL, parse
from minetorch_launch.rendezvous.participant import Participant, sort_key
from minetorch_launch.rendezvous.round import LeaderLostError, Round
from minetorch_launch.rendezvous.store_client import StartStoreProcess, StoreClient, StoreLostError
from minetorch_launch.validators import Endpoint

_SAY_EVERY_SECONDS = 30.0
_RETURN_EVERY_SECONDS = 2.0


class _UnreachableError(Exception):
    """No launcher can be reached yet; a later attempt may succeed."""


class ManyNodes:
    """A rendezvous of several nodes. Make one with :meth:`open`.

    Attributes:
        address: this node's own, as the other nodes see it.
    """

    def __init__(self, settings: Settings, start_store_process: StartStoreProcess) -> None:
        self.address = ""
        self._settings, self._start_store_process = settings, start_store_process
        self._node_id, self._launch_id = uuid4().hex[:12], uuid4().hex[:12]
        self._attempts = 0
        self._standby: socket.socket | None = None
        self._membership: Host | Follower | None = None
        self._leader_at = ("", 0)  # address and port, when this node follows
        self._is_endpoint = False  # whether the endpoint names this node
        self._is_away = False  # whether this node hosts a store elsewhere
        self._roster: Roster | None = None  # of the last round that this node knows of
        self._gone: set[str] = set()  # nodes of that roster that do not lead any more

    @classmethod
    async def open(cls, settings: Settings, start_store_process: StartStoreProcess) -> ManyNodes:
        """Connect to the node that the endpoint names, or host the store if this is that node.

        Raises:
            JoinError: neither is possible.
            UsageError: the endpoint has no port.
        """
        if settings.endpoint.port == 0:
            raise UsageError(f"--rdzv-endpoint {settings.endpoint}: several nodes need a port that is not 0")
        if not settings.version:
            from importlib.metadata import version

            settings = replace(settings, version=version("minetorch"))
        rendezvous = cls(settings, start_store_process)
        await rendezvous._open_endpoint(time.monotonic() + settings.join_timeout)
        return rendezvous

    async def join(self, *, failures: int, workers_port: int) -> Round:
        """Take part in the next round; find another leader when the last one is lost.

        Args:
            failures: failures that this node has counted in this launch.
            workers_port: port on which this node hosts the workers' store, should it be the first.

        Raises:
            JoinError: the nodes did not come together.
        """
        end = time.monotonic() + self._settings.join_timeout
        while True:
            if self._membership is None or self._membership.lost is not None:
                await self._find_leader(end)
            assert self._membership is not None
            try:
                round_ = await self._take_part(self._membership, self._participant(failures, workers_port))
            except LeaderLostError as error:
                self._membership.lose(str(error))
                continue
            self._attempts, self._launch_id = round_.number, round_.launch_id
            self._gone.clear()
            return round_

    async def close(self) -> None:
        """Leave the job. The leader waits, not for long, until the others have received the last order."""
        if self._membership is not None:
            await self._membership.close()
        if self._standby is not None:
            self._standby.close()

    def _participant(self, failures: int, workers_port: int) -> Participant:
        host, rank = self._settings.host, self._settings.node_rank
        if self._standby is None:
            self._standby = listen(self.address, 0)
        return Participant(
            order=sort_key(rank, self._is_endpoint, host, self.address, os.getpid()),
            host=host,
            address=self.address,
            pid=os.getpid(),
            nproc=self._settings.nproc,
            standby_port=self._standby.getsockname()[1],
            workers_port=workers_port,
            failures=failures,
            attempts=self._attempts,
            launch_id=self._launch_id,
            node_id=self._node_id,
        )

    async def _take_part(self, membership: Host | Follower, me: Participant) -> Round:
        """Join the next round, unless a launcher answers at the endpoint while too few nodes are here."""
        joining = asyncio.create_task(membership.join(me, self._settings.join_timeout))
        tasks: set[asyncio.Task[Any]] = {joining}
        if self._is_away and isinstance(membership, Host):
            tasks.add(asyncio.create_task(self._look_for_launcher(membership)))
        try:
            done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
            if joining in done:
                return joining.result()
            done.pop().result()
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.wait(tasks)
        self._roster = None
        raise LeaderLostError("a launcher answers there again, and too few nodes have come here")

    async def _look_for_launcher(self, host: Host) -> None:
        """Wait until a launcher of this job answers at the endpoint while too few nodes are here."""
        while True:
            await asyncio.sleep(_RETURN_EVERY_SECONDS)
            if host.has_enough:
                continue
            store = await self._start_store()
            try:
                address = await self._reach_any(await self._resolve(store, self._settings.endpoint.host))
                await self._greet(store, address, self._settings.endpoint.port)
                return
            except (JoinError, _UnreachableError):
                pass
            finally:
                store.close()

    # After the leader is lost.

    async def _find_leader(self, end: float) -> None:
        """Go to the next living node in order; if there is none, to the endpoint."""
        lost, self._membership = self._membership, None
        if lost is not None:
            lost.abandon()
            self._roster = lost.roster or self._roster
            if isinstance(lost, Follower) and lost.process_ended:
                with suppress(JoinError, _UnreachableError):
                    return await self._follow(await self._start_store(), *self._leader_at)
            self._gone.add(lost.leader)
        participants = self._roster.participants if self._roster is not None else ()
        candidates = [each for each in participants if each.node_id not in self._gone]
        was_there = any(each.node_id == self._node_id for each in candidates)
        for position, candidate in enumerate(candidates):
            if candidate.node_id == self._node_id:
                return await self._host_elsewhere({each.node_id for each in candidates[position:]})
            with suppress(JoinError, _UnreachableError):
                place = candidate.address, candidate.standby_port
                return await self._follow(await self._start_store(), *place, was_there=was_there)
            # It is lost as well, or it still sees the leader that this node has lost.
            self._gone.add(candidate.node_id)
        if lost is not None:
            host, endpoint = self._settings.host, self._settings.endpoint
            self._settings.say(f"minetorch-launch: {host} goes to the rendezvous at {endpoint}: {lost.lost}")
        self._roster = None
        return await self._open_endpoint(end)

    async def _host_elsewhere(self, expected: Collection[str]) -> None:
        assert self._standby is not None
        endpoint = Endpoint(*self._standby.getsockname()[:2])
        self._settings.say(
            f"minetorch-launch: the leader is lost; {self._settings.host} hosts the rendezvous now. A node that comes "
            f"back joins with --rdzv-endpoint {endpoint}"
        )
        listener, self._standby = self._standby, None
        await self._host(await self._start_store(), listener, replace(self._settings, endpoint=endpoint), expected)
        self._is_away = True

    # At the endpoint.

    async def _open_endpoint(self, end: float) -> None:
        """Host the store if the endpoint names this node, else wait until a launcher answers there."""
        endpoint, host = self._settings.endpoint, self._settings.host
        began = said = time.monotonic()
        store = await self._start_store()
        while True:
            try:
                return await self._try_endpoint(store)
            except _UnreachableError as error:
                problem = str(error)
            except BaseException:
                store.close()
                raise
            now = time.monotonic()
            if now > end:
                store.close()
                raise JoinError(
                    f"{host} could not connect to the rendezvous at {endpoint} within {now - began:.3g} s (last: "
                    f"{problem}): {what_to_check(problem, endpoint)}",
                    job_can_be_requeued=True,
                )
            if now - said > _SAY_EVERY_SECONDS:
                said = now
                self._settings.say(f"minetorch-launch: {host} waits for the rendezvous at {endpoint}: {problem}")
            if store.lost is not None:
                store = await self._start_store()
            await asyncio.sleep(min(0.1 + (now - began) / 20, 1.0))

    async def _try_endpoint(self, store: StoreClient) -> None:
        addresses, port = await self._resolve(store, self._settings.endpoint.host), self._settings.endpoint.port
        own_address = await self._address_behind_localhost(store)
        listener = await self._listen_at_endpoint(addresses, everywhere=own_address is not None)
        if listener is not None:
            self.address = self._settings.local_addr or own_address or listener.getsockname()[0]
            self._is_endpoint = True
            await self._host(store, listener, self._settings)
        else:
            address = await self._reach_any(addresses)
            self.address = self._settings.local_addr or address_towards(address, port)
            await self._follow(store, address, port)
        self._is_away = False

    async def _resolve(self, store: StoreClient, host: str) -> list[str]:
        try:
            return await store.resolve(host, self._settings.endpoint.port)
        except (OSError, StoreLostError) as error:
            raise _UnreachableError(f"cannot find the address of {host!r}: {error}") from None

    async def _address_behind_localhost(self, store: StoreClient) -> str | None:
        """This node's address for the others, where its endpoint is ``localhost`` and theirs may be its name.

        Kubeflow's operators before 1.4 give node 0 this endpoint. None for any other endpoint, and on a machine whose
        host name has a loopback address only.
        """
        if self._settings.endpoint.host != "localhost" or self._settings.node_rank != 0:
            return None
        with suppress(_UnreachableError):
            addresses = await self._resolve(store, self._settings.host)
            return next((each for each in addresses if is_this_machine(each) and not is_loopback(each)), None)
        return None

    async def _listen_at_endpoint(self, addresses: list[str], *, everywhere: bool) -> socket.socket | None:
        """A listening socket at the endpoint, if this is its machine and no other launcher has it."""
        own = next((address for address in addresses if is_this_machine(address)), None)
        if own is None or self._settings.node_rank not in (None, 0):
            return None
        if everywhere:
            own = "::" if ":" in own else "0.0.0.0"
        try:
            return listen(own, self._settings.endpoint.port)
        except JoinError:
            if await reach(own, self._settings.endpoint.port) is not None:
                raise
            return None

    async def _reach_any(self, addresses: list[str]) -> str:
        problem = ""
        for address in addresses:
            problem = await reach(address, self._settings.endpoint.port) or ""
            if not problem:
                return address
        raise _UnreachableError(problem)

    # The store.

    async def _start_store(self) -> StoreClient:
        return await StoreClient.start(self._start_store_process, self._settings.timing.lost)

    async def _host(
        self, store: StoreClient, listener: socket.socket, settings: Settings, expected: Collection[str] = ()
    ) -> None:
        host = Host(store, settings, self._node_id, expected)
        try:
            await store.serve(listener)
            await host.start()
        except StoreLostError as error:
            host.abandon()
            raise JoinError(f"{self._settings.host} cannot host the rendezvous: {error}") from None
        self._membership = host

    async def _follow(self, store: StoreClient, address: str, port: int, *, was_there: bool = False) -> None:
        try:
            leader = await self._greet(store, address, port)
            follower = Follower(store, self._settings, self._node_id, leader, was_there=was_there)
            await follower.start()
        except BaseException as error:
            store.close()
            if isinstance(error, StoreLostError):
                raise _UnreachableError(f"the launcher at {address} has ended: {error}") from None
            raise
        self._membership, self._leader_at = follower, (address, port)

    async def _greet(self, store: StoreClient, address: str, port: int) -> str:
        """Connect, and check that a launcher of this job and of this version is there; the leader's id."""
        here, there, lost = self._settings, Endpoint(address, port), self._settings.timing.lost
        try:
            await store.connect(address, port, min(2 * lost, max(here.join_timeout, 1.0)))
            hello = parse(await asyncio.wait_for(store.wait("hello"), lost))
        except (StoreLostError, asyncio.TimeoutError) as error:
            if await reach(address, port) is not None:
                raise _UnreachableError(f"the launcher at {there} has ended") from None
            hello = error
        if not isinstance(hello, dict):
            raise JoinError(
                f"{here.host} reached {there}, but no launcher of this job answers there ({hello or 'no reply'}): "
                "check --rdzv-endpoint, and that all nodes run the same version of Minetorch"
            )
        if (hello.get("version"), hello.get("protocol")) != (here.version, PROTOCOL):
            raise JoinError(
                f"{here.host} runs Minetorch {here.version} (protocol {PROTOCOL}), and the leader at {there} runs "
                f"Minetorch {hello.get('version')} (protocol {hello.get('protocol')}): install the same version on "
                "all nodes"
            )
        if hello.get("rdzv_id") != here.rdzv_id:
            raise JoinError(
                f"{here.host} belongs to the job {here.rdzv_id}, but the launcher at {there} serves the job "
                f"{hello.get('rdzv_id')}: start the same command on all nodes, or give each job its own --rdzv-id "
                "and --rdzv-endpoint"
            )
        return str(hello.get("leader"))
