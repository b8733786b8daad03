"""The benchmark's episode as an inspect-ai task: ten user turns, the whole history each time."""

from inspect_ai import Task, task
from inspect_ai.dataset import MemoryDataset, Sample
from inspect_ai.model import ChatMessageUser
from inspect_ai.scorer import includes
from inspect_ai.solver import Generate, Solver, TaskState, solver

OBSERVATION = "You are at (1, 2) in a 6x6 grid. Your hands are empty. Nothing is here. What next?"


@solver  # type: ignore[untyped-decorator]
def episode(turns: int) -> Solver:
    """Ask `turns` times, adding an observation after every answer."""

    async def solve(state: TaskState, generate: Generate) -> TaskState:
        for turn in range(turns):
            if turn:
                state.messages.append(ChatMessageUser(content=OBSERVATION))
            state = await generate(state)
        return state

    return solve


@task  # type: ignore[untyped-decorator]
def play(episodes: int = 200, turns: int = 10) -> Task:
    """Return `episodes` samples of `turns` turns."""
    samples = [Sample(input=OBSERVATION, target="interact", id=n) for n in range(episodes)]
    return Task(dataset=MemoryDataset(samples), solver=episode(turns), scorer=includes())
