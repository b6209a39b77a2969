# SPDX-License-Identifier: GPL-2.0-or-later
"""Never two runs that both believe they hold a lease: a store, machines and clocks as a model, in
any order of requests.
"""

import contextlib
import os
import threading
from collections.abc import Callable
from functools import partial

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from backup_vm.archive import holder
from backup_vm.archive import lease as leases
from backup_vm.archive.holder import Holder
from backup_vm.archive.lease import Clocks, Lease
from backup_vm.archive.lease_files import STALE
from backup_vm.errors import ForbiddenError, SparsebakError


class Store:
    """A store in memory with a clock of its own, and boots and processes of machines that
    use it.
    """

    def __init__(self, conditional: bool, removes: bool) -> None:
        self.files: dict[str, tuple[bytes, float]] = {}
        self.now = 0.0
        self.conditional, self.removes = conditional, removes


class Forgetful(set[str]):
    """What one process has given back is not known to another."""

    def add(self, element: str) -> None:
        return


class Died(BaseException):
    """The process ends here, without another word."""


class Machine:
    """One machine with one process, which runs in a thread and waits before each request until it
    is told to make it.
    """

    def __init__(self, store: Store, number: int) -> None:
        self.store, self.number = store, number
        self.boot, self.skew = 0, 1000.0 * number
        self.cut, self.died = False, False
        self.lease: Lease | None = None
        self.refused = False
        self._turn, self._back = threading.Semaphore(0), threading.Semaphore(0)
        self._thread: threading.Thread | None = None

    # The process

    def begin(self, action: Callable[[], None]) -> None:
        """Let the process do something, up to its first request."""

        def run() -> None:
            with contextlib.suppress(Died, SparsebakError, OSError):
                action()
            self._thread = None
            self._back.release()

        self._thread = threading.Thread(target=run, daemon=True)
        self._thread.start()
        self._back.acquire()

    @property
    def busy(self) -> bool:
        return self._thread is not None

    def step(self) -> None:
        """Let it do one request."""
        if self.busy:
            self._turn.release()
            self._back.acquire()

    def die(self) -> None:
        """Its process ends: in the middle of what it does, or between."""
        self.died = True
        while self.busy:
            self.step()
        self.died, self.lease = False, None
        self.boot += 1

    def request(self) -> None:
        self._back.release()
        self._turn.acquire()
        if self.died:
            raise Died
        if self.cut:
            raise SparsebakError("cannot be reached")

    # The store, as this machine sees it

    def list(self) -> dict[str, float]:
        self.request()
        return {name: at for name, (_, at) in self.store.files.items()}

    def create(self, name: str, raw: bytes) -> bool | None:
        self.request()
        if not self.store.conditional:
            return None
        if name in self.store.files:
            return False
        self.store.files[name] = raw, self.store.now
        self.request()  # the answer may be a long time on its way, or be lost
        return True

    def put(self, name: str, raw: bytes) -> None:
        self.request()
        self.store.files[name] = raw, self.store.now
        self.request()

    renew = put

    def read(self, name: str) -> bytes:
        self.request()
        try:
            return self.store.files[name][0]
        except KeyError:
            raise FileNotFoundError(name) from None

    def remove(self, name: str) -> None:
        self.request()
        if not self.store.removes:
            raise ForbiddenError("no")
        self.store.files.pop(name, None)

    # What it does

    def acquire(self, sleeps: bool = False) -> None:
        clocks = Clocks(self.time, self.time, self.sleep if sleeps else lambda _: None)
        self.refused = True
        self.lease = Lease.acquire(self, "the archive", "test", clocks)
        self.refused = False

    def sleep(self, seconds: float) -> None:
        until = self.store.now + seconds
        while self.store.now < until:
            self.request()

    def time(self) -> float:
        return self.store.now * (1 + self.number / 10) + self.skew

    def believes(self) -> bool:
        """Whether it would write now."""
        if self.lease is None:
            return False
        lease = self.lease
        lost = lease._lost
        sure = lease.name and self.time() - lease._sure < STALE / 2
        return not lost and bool(sure)


ACTIONS = (
    *("acquire", "acquire", "acquire", "renew", "release", "steps", "die", "cut", "wait"),
    *("step",) * 9,
)


@pytest.mark.parametrize(("conditional", "removes"), [(True, True), (False, True), (True, False)])
@settings(max_examples=100)
@given(data=st.data())
def test_never_two(conditional: bool, removes: bool, data: st.DataObject) -> None:
    store = Store(conditional, removes)
    machines = [Machine(store, number) for number in range(3)]
    holders: dict[str, Machine] = {}

    with pytest.MonkeyPatch.context() as patch:
        # Each machine has another id; what died is known to be gone on the same machine only.
        def this(_: type[Holder], command: str) -> Holder:
            me = next((m for m in machines if m._thread is threading.current_thread()), machines[0])
            token = os.urandom(16).hex()
            holders[token] = me
            return Holder(
                f"machine{me.number}", "boot", "space", 1 + me.boot, 1, "host", token=token
            )

        def started(process: int) -> int | None:
            me = next((m for m in machines if m._thread is threading.current_thread()), machines[0])
            return 1 if process == 1 + me.boot else None

        patch.setattr(Holder, "this", classmethod(this))
        patch.setattr(holder, "started", started)
        patch.setattr(holder, "given_back", Forgetful())
        patch.setattr(leases, "given_back", Forgetful())
        try:
            for _ in range(data.draw(st.integers(30, 80))):
                me = machines[data.draw(st.integers(0, 2))]
                action = data.draw(st.sampled_from(ACTIONS))
                if action == "wait":
                    store.now += data.draw(st.sampled_from([0.5, 60.0, 800.0, 1000.0, 2000.0]))
                elif action == "die":
                    me.die()
                elif action == "cut":
                    me.cut = not me.cut
                elif action == "steps":
                    for _ in range(20):
                        me.step()
                elif action == "step" or me.busy:
                    me.step()
                elif action == "acquire" and me.lease is None:
                    me.begin(me.acquire)
                elif action == "renew" and me.lease is not None:
                    me.begin(me.lease.renew)
                elif action == "release" and me.lease is not None:
                    lease, me.lease = me.lease, None
                    me.begin(lease.release)
                assert sum(one.believes() for one in machines) <= 1
            for one in machines:  # in the end, whatever was, somebody can have it
                one.cut = False
                one.die()
            store.now += STALE + 1
            machines[0].begin(machines[0].acquire)
            while machines[0].busy:
                machines[0].step()
            assert machines[0].believes()
        finally:
            for one in machines:
                one.die()


@settings(max_examples=60)
@given(
    turns=st.lists(st.integers(0, 2), max_size=60),
    ticks=st.lists(st.sampled_from([0.0, 0.01]), min_size=1, max_size=9),
)
def test_of_those_that_begin_at_once_the_oldest_gets_it(
    turns: list[int], ticks: list[float]
) -> None:
    """Where the store cannot say who was first. Its times may be equal."""
    store = Store(conditional=False, removes=True)
    machines = [Machine(store, number) for number in range(3)]
    made: dict[str, float] = {}

    def step(one: Machine, seconds: float) -> None:
        one.step()
        store.now += seconds
        leases = {n: at for n, (_, at) in store.files.items() if n.startswith("writer-")}
        made.update({name: at for name, at in leases.items() if name not in made})

    for one in machines:
        one.begin(partial(one.acquire, sleeps=True))
    for number in turns:
        step(machines[number], ticks[number % len(ticks)])
    for _ in range(5000):
        for one in machines:
            step(one, 0.01)
        if not any(one.busy for one in machines):
            break
    (winner,) = (one for one in machines if one.believes())
    assert winner.lease is not None and made[winner.lease.name] == min(made.values())
    assert sorted(one.refused for one in machines) == [False, True, True]
