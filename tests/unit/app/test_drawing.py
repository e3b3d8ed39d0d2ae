"""Room for drawings: who waits, who is refused, and who makes place by leaving."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Iterator

import pytest

from app import drawing
from app.drawing import Drawings
from app.errors import Busy, TooLarge


class Room:
    """Drawings that stay until they are told to go."""

    def __init__(self, drawings: Drawings) -> None:
        self.drawings = drawings
        self.inside: list[str] = []
        self.go = {name: asyncio.Event() for name in "abcdef"}

    async def enter(self, name: str, size: int, caller: str | None = None) -> asyncio.Task[None]:
        """caller: None: one of its own."""
        task = asyncio.create_task(self._stay(name, size, caller or name))
        await self.settle()
        return task

    async def _stay(self, name: str, size: int, caller: str) -> None:
        async with self.drawings.room(size, caller):
            self.inside.append(name)
            try:
                await self.go[name].wait()
            finally:
                self.inside.remove(name)

    async def settle(self) -> None:
        for _ in range(10):
            await asyncio.sleep(0)


@pytest.fixture
def room() -> Room:
    return Room(Drawings(memory=100, at_once=1, most=3))


async def test_drawings_together_have_no_more_memory_than_there_is(room: Room) -> None:
    a, b, c = await room.enter("a", 60), await room.enter("b", 30), await room.enter("c", 50)
    assert room.inside == ["a", "b"]
    room.go["a"].set()
    await a
    await room.settle()
    assert room.inside == ["b", "c"]
    for name in "bc":
        room.go[name].set()
    await asyncio.gather(b, c)
    assert room.inside == []


async def test_a_large_one_is_not_overtaken_for_ever(room: Room) -> None:
    tasks = [await room.enter("a", 60), await room.enter("b", 90), await room.enter("c", 10)]
    assert room.inside == ["a"]
    for name in "abc":
        room.go[name].set()
    await asyncio.gather(*tasks)


async def test_beyond_those_that_may_wait_it_is_told_as_overload(room: Room) -> None:
    tasks = [await room.enter(name, 100) for name in "abc"]
    with pytest.raises(Busy, match="3 drawings are waiting") as caught:
        await (await room.enter("d", 1))
    assert 1 <= (caught.value.retry_after or 0) <= 60
    for name in "abc":
        room.go[name].set()
    await asyncio.gather(*tasks)


async def test_one_caller_has_half_of_the_places() -> None:
    room = Room(Drawings(memory=100, at_once=1, most=4))
    tasks = [await room.enter(name, 1, "one") for name in "ab"]
    with pytest.raises(Busy, match="2 drawings of yours"):
        await (await room.enter("c", 1, "one"))
    tasks.append(await room.enter("d", 1, "another"))
    assert room.inside == ["a", "b", "d"]
    for name in "abd":
        room.go[name].set()
    await asyncio.gather(*tasks)
    for name in "ef":
        await room.enter(name, 1, "one")
    assert room.inside == ["e", "f"]


async def test_one_that_never_fits_is_told_to_be_smaller(room: Room) -> None:
    with pytest.raises(TooLarge, match="smaller size"):
        await (await room.enter("a", 101))


async def test_one_whose_client_leaves_gives_its_turn_away(room: Room) -> None:
    a, b, c = [await room.enter(name, 100) for name in "abc"]
    b.cancel()
    await asyncio.wait([b])
    a.cancel()
    await asyncio.wait([a])
    await room.settle()
    assert room.inside == ["c"]
    room.go["c"].set()
    await c
    last = await room.enter("d", 100)  # nothing of the room was lost
    assert room.inside == ["d"]
    last.cancel()
    await asyncio.wait([last])


async def test_leaving_just_when_its_turn_comes_loses_no_room(room: Room) -> None:
    a, b, c = [await room.enter(name, 100) for name in "abc"]
    room.go["a"].set()
    await a  # b's turn has come, and b has not run yet
    b.cancel()
    await asyncio.wait([b])
    await room.settle()
    assert room.inside == ["c"]
    c.cancel()
    await asyncio.wait([c])


async def test_a_drawing_ends_after_the_piece_at_hand() -> None:
    drawings = Drawings(memory=100, at_once=1, most=3)
    begun, go_on = threading.Semaphore(0), threading.Semaphore(0)
    pieces = 0

    def draw() -> Iterator[bytes]:
        nonlocal pieces
        while True:
            begun.release()
            assert go_on.acquire(timeout=10)
            pieces += 1
            yield b""

    async def take() -> None:
        async with drawings.room(1, "somebody") as place:
            async for _ in place.pieces(draw()):
                pass

    task = asyncio.create_task(take())
    for _ in range(3):
        assert await asyncio.to_thread(begun.acquire, timeout=10)
        go_on.release()
    assert await asyncio.to_thread(begun.acquire, timeout=10)
    task.cancel()
    go_on.release()
    await asyncio.wait([task], timeout=10)
    assert task.cancelled()
    assert pieces == 4


async def test_a_client_that_reads_too_slowly_is_left(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(drawing, "PATIENCE", 0.05)
    sent = 0

    async def send(message: object) -> None:
        nonlocal sent
        sent += 1
        await asyncio.sleep(0 if sent < 100 else 60)

    pace = drawing._Pace(send)
    with pytest.raises(TimeoutError):
        await pace.send(b" " * drawing.PART * 200)
    assert sent == 100


async def test_drawings_end_in_the_order_in_which_they_began() -> None:
    drawings = Drawings(memory=100, at_once=1, most=8)
    ended: list[int] = []

    async def draw(number: int, pieces: int) -> None:
        async with drawings.room(1, str(number)) as place:
            async for _ in place.pieces(iter([b"piece"] * pieces)):
                pass
            ended.append(number)

    await asyncio.gather(*(draw(number, 6 - number) for number in range(6)))
    # two at a time: while one's piece is sent, the thread draws for the next
    assert [number // 2 for number in ended] == [0, 0, 1, 1, 2, 2]


async def test_a_long_wait_is_refused_although_there_is_memory() -> None:
    drawings = Drawings(memory=100, at_once=1, most=100)
    async with drawings.room(1, "somebody") as place:
        place.seconds = 8.0  # what drawings take here
    room = Room(drawings)
    tasks = [await room.enter(name, 1) for name in "ab"]
    with pytest.raises(Busy) as caught:
        await (await room.enter("c", 1))
    assert caught.value.retry_after == 8
    for name in "ab":
        room.go[name].set()
    await asyncio.gather(*tasks)


async def test_nobody_waits_longer_than_is_told_though_nothing_was_drawn_before(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(drawing, "LONGEST", 0.1)
    drawings = Drawings(memory=100, at_once=1, most=8)
    hold = threading.Event()

    async def draw(size: int, work: Callable[[], object]) -> None:
        async with drawings.room(size, "a"):
            pass
        async with drawings.room(size, "b") as place:
            await place.run(work)

    first = asyncio.create_task(draw(60, hold.wait))
    await asyncio.sleep(0.02)
    for size in (30, 60):  # one waits for a thread, one for memory
        with pytest.raises(Busy, match="took longer"):
            await draw(size, lambda: None)
    hold.set()
    await first
    await draw(100, lambda: None)  # nobody has kept its memory or its thread
