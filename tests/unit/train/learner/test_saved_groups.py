"""The queue in a checkpoint comes back exactly, without pickles."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from train.errors import BadModel
from train.learner.checkpoints import load_groups, save_groups
from train.rollouts.rows import Episode, Group, Row


@st.composite
def a_row(draw: st.DrawFn) -> Row:
    n = draw(st.integers(0, 9))
    floats = st.floats(-1e3, 0, width=32)
    return Row(
        ids=np.array(draw(st.lists(st.integers(0, 2**31 - 1), min_size=n, max_size=n)), np.int32),
        trained=np.array(draw(st.lists(st.integers(0, 1), min_size=n, max_size=n)), np.int8),
        logprobs=np.array(draw(st.lists(floats, min_size=n, max_size=n)), np.float32),
        versions=np.array(draw(st.lists(st.integers(-1, 99), min_size=n, max_size=n)), np.int32),
    )


ANY_FLOAT = st.floats(allow_nan=False)
EPISODES = st.builds(
    Episode,
    env_seed=st.integers(0, 2**80),
    repetition=st.integers(0, 99),
    rows=st.lists(a_row(), max_size=3).map(tuple),
    env_return=ANY_FLOAT,
    reward=ANY_FLOAT,
    success=st.booleans(),
    turns=st.integers(0, 99),
    advantage=ANY_FLOAT,
)
GROUPS = st.builds(
    Group,
    index=st.integers(0, 2**40),
    env_seed=st.integers(2**32, 2**80),
    episodes=st.lists(EPISODES, max_size=3).map(tuple),
    started_version=st.integers(0, 99),
    dropped=st.integers(0, 9),
    played_s=st.floats(0, 1e6),
)


def plain(groups: tuple[Group, ...]) -> list[object]:
    """Everything in groups, down to the bytes of the arrays and their types."""
    return [
        (
            *(group.index, group.env_seed, group.started_version, group.dropped, group.played_s),
            [
                (
                    *(episode.env_seed, episode.repetition, episode.success, episode.turns),
                    *(repr(episode.env_return), repr(episode.reward), repr(episode.advantage)),
                    [
                        [
                            (array.dtype.str, array.tobytes())
                            for array in (row.ids, row.trained, row.logprobs, row.versions)
                        ]
                        for row in episode.rows
                    ],
                )
                for episode in group.episodes
            ],
        )
        for group in groups
    ]


@settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(groups=st.lists(GROUPS, max_size=3).map(tuple))
def test_groups_come_back_exactly(tmp_path: Path, groups: tuple[Group, ...]) -> None:
    path = tmp_path / "groups.npz"
    save_groups(path, groups)
    assert plain(load_groups(path)) == plain(groups)


def test_numbers_of_numpy_are_numbers_too(tmp_path: Path) -> None:
    row = Row(
        ids=np.array([1, 2], np.int32),
        trained=np.array([0, 1], np.int8),
        logprobs=np.array([0, -0.5], np.float32),
        versions=np.array([-1, 3], np.int32),
    )
    episode = Episode(
        env_seed=int(np.int64(2**33)),
        repetition=0,
        rows=(row,),
        env_return=np.float64(0.1),
        reward=np.float32(0.5),  # type: ignore[arg-type]
        success=np.bool_(True),  # type: ignore[arg-type]
        turns=1,
    )
    group = Group(index=0, env_seed=2**33, episodes=(episode,), started_version=3)
    save_groups(tmp_path / "groups.npz", [group])
    (loaded,) = load_groups(tmp_path / "groups.npz")
    assert loaded.episodes[0].success is True
    assert loaded.episodes[0].reward == 0.5


def test_groups_of_a_damaged_file_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "groups.npz"
    save_groups(path, [])
    whole = path.read_bytes()
    for content in (b"", b"nonsense", whole[: len(whole) // 2], b"\x80\x04."):
        path.write_bytes(content)
        with pytest.raises(BadModel, match="does not hold groups"):
            load_groups(path)
    with pytest.raises(BadModel, match="does not hold groups"):
        load_groups(tmp_path / "absent.npz")


def test_pickles_are_not_opened(tmp_path: Path) -> None:
    path = tmp_path / "groups.npz"
    np.savez(path, about=np.array([{"format": "groups/1"}], dtype=object))
    with pytest.raises(BadModel, match="allow_pickle"):
        load_groups(path)
