"""The parallel map: results in order, and a limit on the tasks that start ahead."""

import time

from flax_resnet.data.packing.parallel_map import in_order


def test_results_come_in_order_and_tasks_start_only_a_few_ahead():
    drawn = []

    def tasks():
        for number in range(1000):
            drawn.append(number)
            yield number

    def slow(number):
        time.sleep(0.001 * (number % 3))
        return number

    with in_order(slow, tasks(), 2) as results:
        assert [next(results) for _ in range(50)] == list(range(50))
        assert len(drawn) < 70
