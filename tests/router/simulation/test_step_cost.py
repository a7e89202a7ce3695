"""The benchmark of the scheduler measures steps in which all sequences run."""

from router.simulation.step_cost import step_costs


def test_a_step_of_each_size_is_measured() -> None:
    costs = step_costs([1, 8])
    assert [cost.sequences for cost in costs] == [1, 8]
    assert all(cost.schedule_us > 0 and cost.update_us > 0 for cost in costs)
    assert all(cost.us == cost.schedule_us + cost.update_us for cost in costs)
