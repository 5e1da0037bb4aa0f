"""Passes are dealt so that processes end together; the plan's factor is what the dealing gives."""

from __future__ import annotations

from collections import Counter

from build import plan_of, tiny_lm, train_rows
from hypothesis import given
from hypothesis import strategies as st

from tunewright.train import dealing
from tunewright.train.ranks import Ranks

COSTS = st.lists(st.integers(1, 5000), min_size=1, max_size=30)


@given(COSTS, st.integers(1, 9))
def test_no_process_does_much_more_than_it_must(costs: list[int], world: int) -> None:
    """At most the mean and most of the largest part (Graham 1969)."""
    owners = dealing.owners(costs, world)
    load = Counter[int]()
    for cost, owner in zip(costs, owners, strict=True):
        load[owner] += cost
    assert max(load.values()) <= sum(costs) / world + (1 - 1 / world) * max(costs) + 1e-9
    assert set(owners) <= set(range(world))


@given(COSTS, st.integers(1, 9))
def test_each_part_has_one_owner_and_all_take_part_equally_often(costs: list[int], world: int) -> None:
    owners = dealing.owners(costs, world)
    plain = [list(Ranks(rank, world).parts(owners, equally_many=False)) for rank in range(world)]
    assert sorted(part for own in plain for part, _ in own) == list(range(len(costs)))
    assert all(owned for own in plain for _, owned in own)
    alike = [list(Ranks(rank, world).parts(owners, equally_many=True)) for rank in range(world)]
    assert len({len(own) for own in alike}) == 1
    assert [[part for part, owned in own if owned] for own in alike] == [[part for part, _ in own] for own in plain]
    assert {part for own in alike for part, owned in own if not owned} <= {len(costs) - 1}


def test_the_factor_of_more_processes_is_that_of_the_tokens_they_compute() -> None:
    model, rows = tiny_lm("llama"), train_rows(24)
    plan = plan_of(layout="padded", batch_size=6, steps=8, tokens_per_pass=1)
    one = plan.model_copy(update={"tokens_per_pass": 100_000})
    assert dealing.speedups(model, rows, one, (2, 4)) == {2: 1.0, 4: 1.0}, "one pass cannot be dealt"
    times = dealing.speedups(model, rows, plan, (1, 2, 6, 7))
    assert times[1] == 1.0
    assert 1.5 < times[2] <= 2.0
    assert 2.0 < times[6] == times[7] <= 6.0, "a row is not divided"
