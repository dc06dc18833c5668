"""The receiver's front desk: keeps a code open, lets in who has it, and tells when somebody guesses."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable
from typing import Generic, Protocol, TypeVar

from plugin import pairing
from plugin.pairing import Code, Host, PairingError, SessionKey, WrongCodeError
from plugin.signaling import Announcement, Door, Visitor

log = logging.getLogger(__name__)

TRIES = 3
"""Wrong guesses that use a code up."""
MAX_CODES = 10
"""Codes that may be guessed to death before the desk closes: 30 guesses at 22 bits, 1 in 140 000."""
_REOPEN_S = (1.0, 2.0, 5.0, 10.0, 30.0)
_ADDRESSES_S = 5.0
_MAX_AT_ONCE = 4


class Guest(Protocol):
    """What an answered offer becomes: a connection in the making."""

    async def close(self) -> None: ...


G = TypeVar("G", bound=Guest)


class Desk(Protocol[G]):
    """What the receiver does with it. All are called in the event loop."""

    async def answer(self, offer: str) -> tuple[str, G]:
        """A proven sender's offer -> our answer, and the connection that comes of it."""
        ...

    async def welcome(self, guest: G, session: SessionKey, code: Code | None) -> None:
        """The conversation ended well. `code` is the one used up, None for somebody met before."""
        ...

    def show(self, code: Code) -> None:
        """This is the code now."""
        ...

    def say(self, sentence: str) -> None:
        """Something the user should know."""
        ...


class Reception(Generic[G]):
    """Runs until cancelled. `wanted` is set while a new sender is welcome: then, and only then, a code is open."""

    def __init__(
        self,
        door: Door,
        desk: Desk[G],
        sessions: list[SessionKey],
        code_s: float,
        announcement: Announcement | None = None,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
    ) -> None:
        self._door, self._desk, self._code_s = door, desk, code_s
        self._announcement, self._clock, self._sleep = announcement, clock, sleep
        self._sessions = {session.room: session for session in sessions}
        self._code: Code | None = None
        self._tries = TRIES
        self._expires_s = 0.0
        self._closed_until_s = 0.0
        self._guessed = 0
        self._busy = False
        self._visits: set[asyncio.Task[None]] = set()
        self._changed = asyncio.Event()
        self.wanted = True

    @property
    def code(self) -> Code | None:
        return self._code

    def rooms(self) -> list[str]:
        return [*([self._code.room] if self._code else []), *self._sessions]

    def want(self, wanted: bool) -> None:
        """Whether a new sender is welcome."""
        self.wanted = wanted
        self._changed.set()

    async def run(self) -> None:
        """Raises `PairingError` only when the rendezvous was never reached."""
        reached, trouble = False, 0
        try:
            while True:
                rooms = self.rooms()
                try:
                    opened = await self._door.open(rooms)
                except PairingError:
                    if not reached:
                        raise
                    trouble += 1
                    await self._sleep(_REOPEN_S[min(trouble, len(_REOPEN_S)) - 1])
                    continue
                reached, trouble = True, 0
                if self._code is not None and opened[0] is None:
                    self._code = None  # the server has given its room to somebody else
                if None in opened[-len(self._sessions) :] and self._sessions:
                    self._desk.say("somebody else holds a room of this receiver: senders it knew need a new code")
                working = [asyncio.ensure_future(one) for one in (self._keep(), self._receive())]
                try:
                    ended, _ = await asyncio.wait(working, return_when=asyncio.FIRST_COMPLETED)
                    for one in ended:
                        one.result()
                finally:
                    for one in working:
                        one.cancel()
                    await asyncio.gather(*working, return_exceptions=True)
                self._desk.say("the connection to the rendezvous was lost; trying again")
                await self._sleep(_REOPEN_S[0])
        finally:
            for visit in list(self._visits):
                visit.cancel()
            await asyncio.gather(*self._visits, return_exceptions=True)
            if self._announcement is not None:
                await self._announcement.close()
            await self._door.close()

    async def _receive(self) -> None:
        """Until the connection is lost."""
        async for visitor in self._door.visitors():
            self._admit(visitor)

    async def _keep(self) -> None:
        """Opens a code when one is wanted, lets it expire, and keeps the announcement true."""
        silent = False
        while True:
            self._changed.clear()
            now = self._clock()
            if self._code is not None and not self._busy and now >= self._expires_s:
                self._desk.say(f"the code {self._code} has expired")
                await self._retire()
            if self._code is not None and not self.wanted and not self._busy:
                await self._retire()
            if self._code is None and self.wanted and self._guessed < MAX_CODES:
                room = await self._door.another()
                if room is None:
                    self._desk.say("the rendezvous has no free room: try again later")
                else:
                    self._code, self._tries = pairing.new_code(room), TRIES
                    self._expires_s = self._clock() + self._code_s
                    self._desk.show(self._code)
            if self._announcement is not None and not await self._announcement.tell(self.rooms()) and not silent:
                silent = True
                self._desk.say("this network carries no multicast DNS: give the sender the link, not the code alone")
            left_s = self._expires_s - self._clock() if self._code is not None else _ADDRESSES_S
            try:
                async with asyncio.timeout(min(max(left_s, 0.05), _ADDRESSES_S)):
                    await self._changed.wait()
            except TimeoutError:
                pass

    async def _retire(self) -> None:
        if self._code is not None:
            room, self._code = self._code.room, None
            await self._door.shut(room)

    def _admit(self, visitor: Visitor) -> None:
        by_code = self._code is not None and visitor.room == self._code.room
        refused = (
            len(self._visits) >= _MAX_AT_ONCE
            or (by_code and (self._busy or self._clock() < self._closed_until_s))
            or (not by_code and visitor.room not in self._sessions)
        )
        if by_code and not refused:
            self._busy = True
        visit = asyncio.ensure_future(self._refuse(visitor) if refused else self._visit(visitor, by_code))
        self._visits.add(visit)
        visit.add_done_callback(self._visits.discard)

    async def _refuse(self, visitor: Visitor) -> None:
        await visitor.send(pairing.refusal())
        await visitor.close()

    async def _visit(self, visitor: Visitor, by_code: bool) -> None:
        code = self._code if by_code else None
        secret = code or self._sessions[visitor.room]
        host = Host(visitor.room, secret)
        guest: G | None = None
        answered = welcome = False
        try:
            hello = await visitor.receive()
            reply = host.hello(hello)
            answered = True
            await visitor.send(reply)
            offer = host.offer(await visitor.receive())
            answer, guest = await self._desk.answer(offer)
            await visitor.send(host.answer(answer))
            host.finish(await visitor.receive())
            welcome = True
        except PairingError as error:
            log.info("a visit from %s ended: %s", visitor.address, error)
            await self._refuse(visitor)
            if code is not None and answered:
                await self._burn(visitor.address, isinstance(error, WrongCodeError))
        finally:
            if by_code:
                self._busy = False
            if not welcome and guest is not None:
                await guest.close()
            self._changed.set()
        if welcome and guest is not None:
            await visitor.close()
            session = host.session
            self._sessions[session.room] = session
            if code is not None:
                self.wanted = False
                await self._retire()
                await self._door.another(session.room)
            await self._desk.welcome(guest, session, code)

    async def _burn(self, address: str, wrong: bool) -> None:
        """An attempt at the code is used up, whether it was a guess or only broke off: the two look alike."""
        self._tries -= 1
        what = "tried a wrong code" if wrong else "broke off in the middle of pairing"
        if self._tries > 0:
            self._closed_until_s = self._clock() + 2.0 ** (TRIES - self._tries - 1)
            left = f"{self._tries} {'tries are' if self._tries > 1 else 'try is'} left"
            self._desk.say(f"somebody at {address} {what}; {left} for this code")
            return
        self._guessed += 1
        await self._retire()
        if self._guessed < MAX_CODES:
            self._desk.say(f"somebody at {address} {what} and used up the code; here is a new one")
        else:
            self._desk.say(f"{MAX_CODES} codes were used up by wrong guesses: no more are given; start again later")
