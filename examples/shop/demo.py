"""What one can do with jobs, shown on a small shop.

    python examples/shop/demo.py

It starts an embedded server and two workers, places orders, closes the bank, and looks at what
happens: what waits for what, what failed and why, and how it goes on.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

HERE = Path(__file__).parent
os.environ.setdefault('SHOP_DATA', tempfile.mkdtemp(prefix='shop-'))
sys.path.insert(0, str(HERE))

import shop  # noqa: E402  (it reads SHOP_DATA)
from shop import ext  # noqa: E402

from celery_ext import HasDependents  # noqa: E402


def start_worker(name: str, queues: str) -> subprocess.Popen[bytes]:
    """Starts ``celery worker`` and waits until it answers."""
    log = shop.DATA / f'{name}.log'
    worker = subprocess.Popen(
        [
            sys.executable, '-m', 'celery', '-A', 'shop', 'worker', '--queues', queues,
            '--concurrency', '1', '--hostname', f'{name}@shop', '--loglevel', 'INFO',
            '--without-mingle',
        ],
        cwd=HERE, stdout=log.open('wb'), stderr=subprocess.STDOUT, start_new_session=True,
    )  # fmt: skip
    until(lambda: b' ready.' in log.read_bytes() or worker.poll() is not None, f'worker {name}')
    if worker.poll() is not None:
        sys.exit(f'the worker did not start, see {log}:\n{log.read_text()}')
    [said] = [line for line in log.read_text().splitlines() if 'leaves open' in line]
    print(f'   worker {name!r} consumes {queues}; it says: ...{said.partition("celery_ext ")[2]}')
    return worker


def until(condition: Callable[[], object], what: str) -> None:
    """Waits, as a person at a screen would."""
    deadline = time.monotonic() + 30
    while not condition():
        if time.monotonic() > deadline:
            sys.exit(f'waited in vain for: {what}')
        time.sleep(0.05)


def orders_that_wait() -> None:
    print('2. An order is published at once, and done in order')
    ext.queues['payments'].pause()
    order = shop.place_order(1, 'Ada', 40)
    for result in (order.payment, order.invoice, order.parcel, order.reminder):
        job = ext.jobs[result]
        before = [ext.jobs[one].task for one in job.depends_on]
        after = f' until after {", ".join(before)}' if before else ''
        print(f'   {job.task:<12} is {job.state}{after}')
    print('   Payments are paused; now they go on.')
    ext.queues['payments'].resume()
    print('  ', order.parcel.get(timeout=30), 'is on its way; the books:', shop.books(1))
    until(lambda: ext.jobs[order.reminder].state == 'delayed', 'the reminder')
    job = ext.jobs[order.reminder]
    print(f'   the reminder is {job.state} until {job.due:%d %B, %H:%M}; asked at once instead:')
    job.reschedule(countdown=0)
    order.reminder.get(timeout=30)
    print('   the books:', shop.books(1))


def a_failed_payment() -> None:
    print('3. The bank is closed: the payment fails, the rest of the order waits')
    shop.close_bank(True)
    order = shop.place_order(2, 'Grace', 70)
    until(lambda: ext.jobs[order.payment].state == 'failed', 'the failed payment')
    for group in ext.dead.groups():
        print(f'   {group.count} dead letter of {group.name}')
    job = ext.jobs[order.payment]
    print('   because of', job.failure)
    print(
        f'   {len(job.dependents)} jobs wait for it, the invoice is', ext.jobs[order.invoice].state
    )
    print('   The bank opens, and the payment is replayed.')
    shop.close_bank(False)
    job.retry()
    print('  ', order.parcel.get(timeout=30), 'is on its way; the books:', shop.books(2))
    order.reminder.revoke()


def a_cancelled_order() -> None:
    print('4. A customer changes her mind')
    ext.queues['payments'].pause()
    order = shop.place_order(3, 'Mary', 20)
    try:
        ext.jobs.cancel(order.payment)
    except HasDependents as error:
        print('   refused:', error)
    print('   with cascade:', ext.jobs.cancel(order.payment, cascade=True))
    until(lambda: ext.jobs[order.reminder].state == 'failed', 'the end of the order')
    ext.queues['payments'].resume()
    for job in ext.dead.page():
        print(f'   {job.task:<12} failed: {job.failure.reason if job.failure else ""}')
    print('   the books:', shop.books(3))
    for group in ext.dead.groups():
        ext.dead.discard_group(group.name)


def urgent_orders() -> None:
    print('5. Queued work can be looked at, changed and moved')
    ext.queues['mail'].pause()
    slow = [shop.remind.apply_async((number, 'Joan')) for number in (4, 5, 6)]
    print('   mail:', ext.queues['mail'].counts())
    ext.jobs[slow[2]].set_priority(9)
    print('   next is order', ext.queues['mail'].peek(1)[0].args)
    ext.jobs[slow[0]].move('parcels')
    slow[0].get(timeout=30)
    print('   order 4 was reminded by the worker for parcels:', shop.books(4))
    print('   purged:', ext.queues['mail'].purge())
    ext.queues['mail'].resume()


def a_limit_at_the_bank() -> None:
    print('6. The bank asks the shop to pause its calls for a while')
    bank = ext.throttles['bank']
    bank.set(concurrency=0, expires=3600)
    payments = [shop.charge.apply_async((number, 'Edith', 10)) for number in (7, 8, 9)]
    until(lambda: len(bank.pending()) == 3, 'the payments')
    limits = bank.get()
    assert limits is not None
    print(f'   stopped: {limits.stopped}; {limits.pending} payments wait, and nobody else does:')
    print('  ', shop.invoice.delay(10, 'Edith', 10).get(timeout=30), 'was written at once')
    print('   One connection will do, says the bank.')
    bank.set(concurrency=1)
    print('  ', ', '.join(payment.get(timeout=30) for payment in payments))
    bank.delete()


def main() -> None:
    print(f'1. Server, workers and books are in {shop.DATA}')
    workers = [start_worker('till', 'payments,invoices'), start_worker('store', 'parcels,mail')]
    try:
        orders_that_wait()
        a_failed_payment()
        a_cancelled_order()
        urgent_orders()
        a_limit_at_the_bank()
    finally:
        for worker in workers:
            worker.terminate()
            worker.wait(20)
    print('Done. The server shuts down when the last of us has left.')


if __name__ == '__main__':
    main()
