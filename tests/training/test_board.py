"""The board of the training workers, without Ray: who is handed a phase, and how often many workers look for one."""

from __future__ import annotations

import asyncio

from rayrec.training.board import Board


class Counted(list):
    """Phases that count how often their number is asked for."""

    asked = 0

    def __len__(self) -> int:
        self.asked += 1
        return super().__len__()


def test_workers_that_come_after_each_other_do_not_wake_those_that_wait() -> None:
    """Each looks when it comes and when a phase is posted, so a phase costs as many looks as there are workers."""
    workers, phases = 200, 3

    async def run() -> tuple[list[list[str]], int]:
        board = Board()
        board.phases = Counted()

        async def work(rank: int) -> list[str]:
            await asyncio.sleep(1e-3 * rank)
            return [await board.take(number, rank) for number in range(phases)]

        working = [asyncio.create_task(work(rank)) for rank in range(workers)]
        for number in range(phases):
            await asyncio.sleep(2e-3 * workers if number == 0 else 0.01)
            await board.post(f"phase {number}")
        return await asyncio.gather(*working), board.phases.asked

    found, asked = asyncio.run(run())
    assert found == [[f"phase {number}" for number in range(phases)]] * workers
    assert asked < 4 * workers * phases


def test_the_call_of_a_dead_worker_ends_when_another_has_its_rank() -> None:
    async def run() -> tuple[object, object]:
        board = Board()
        dead = asyncio.create_task(board.take(0, 1))
        await asyncio.sleep(0.01)
        new = asyncio.create_task(board.take(0, 1))
        gone = await asyncio.wait_for(dead, 1)
        await board.post("phase")
        return gone, await asyncio.wait_for(new, 1)

    assert asyncio.run(run()) == (None, "phase")
