"""Priorities 0-255 are an order, and arrival is the order inside each."""

from __future__ import annotations

import random
import threading
from collections.abc import Callable

import pytest
from celery import Celery

from tests.support.workers import Fleet, task


def publish_from_four_producers(apps: list[Celery], per_producer: int) -> None:
    def produce(number: int, app: Celery) -> None:
        rng = random.Random(number)
        for i in range(per_producer):
            priority = rng.randrange(256)
            task(app, 'run', value=[priority, number, i]).apply_async(
                priority=priority, ignore_result=True
            )

    threads = [
        threading.Thread(target=produce, args=(number, app)) for number, app in enumerate(apps)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


@pytest.mark.parametrize('order', ['highest-first', 'lowest-first'])
def test_a_thousand_tasks_come_out_sorted(make_fleet: Callable[..., Fleet], order: str) -> None:
    workers = make_fleet(options={'priority_order': order}, config={'task_acks_late': False})
    publish_from_four_producers([workers.app() for _ in range(4)], 250)
    workers.start(pool='solo', concurrency=1)
    ran = [tuple(entry['value']) for entry in workers.ledger.wait(1000, 'ran', timeout=60)]
    priorities = [priority for priority, _, _ in ran]
    assert priorities == sorted(priorities, reverse=order == 'highest-first')
    for priority in set(priorities):
        for producer in range(4):
            turns = [i for p, number, i in ran if (p, number) == (priority, producer)]
            assert turns == sorted(turns), 'first come, first served inside a priority'


def publish_in_turns(app: Celery, *queues: str) -> None:
    """Ten tasks for each queue."""
    for i in range(10):
        for queue in queues:
            task(app, 'run', value=[queue, i]).apply_async(queue=queue, ignore_result=True)


def test_queue_order_strategies(make_fleet: Callable[..., Fleet]) -> None:
    """``priority``: the first queue named is emptied first; ``round_robin``: they take turns."""
    workers = make_fleet(
        options={'queue_order_strategy': 'priority'},
        config={'worker_prefetch_multiplier': 1},
    )
    publish_in_turns(workers.app(), 'low', 'high')
    workers.start('-Q', 'high,low', pool='solo', concurrency=1)
    ran = [entry['value'] for entry in workers.ledger.wait(20, 'ran')]
    assert ran == [[queue, i] for queue in ('high', 'low') for i in range(10)]


def test_round_robin_serves_every_queue(make_fleet: Callable[..., Fleet]) -> None:
    workers = make_fleet(config={'worker_prefetch_multiplier': 1})
    publish_in_turns(workers.app(), 'a', 'b')
    workers.start('-Q', 'a,b', pool='solo', concurrency=1)
    ran = [entry['value'] for entry in workers.ledger.wait(20, 'ran')]
    assert {queue for queue, _ in ran[:2]} == {'a', 'b'}
    assert [i for queue, i in ran if queue == 'a'] == list(range(10))
    assert [i for queue, i in ran if queue == 'b'] == list(range(10))
