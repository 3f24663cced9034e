"""A small shop: orders, payments, invoices and parcels.

Its broker is a server that it brings along.  To look around by hand, in this directory:

    celery -A shop worker -Q payments,invoices,parcels,mail
    python -c "import shop; shop.place_order(17, 'Ada', 40)"

``demo.py`` beside it starts everything and shows what can be done with jobs.
"""

from __future__ import annotations

import json
import os
import tempfile
from dataclasses import dataclass
from pathlib import Path

from celery import Celery
from celery.result import AsyncResult

import celery_ext
from celery_ext import throttled

DATA = Path(os.environ.get('SHOP_DATA') or Path(tempfile.gettempdir()) / f'shop-{os.getuid()}')
URL = f'reliable+embedded://{DATA}/server'

app = Celery('shop', broker=URL, backend=URL)
app.conf.update(
    task_routes={
        'shop.charge': {'queue': 'payments'},
        'shop.invoice': {'queue': 'invoices'},
        'shop.ship': {'queue': 'parcels'},
        'shop.remind': {'queue': 'mail'},
    },
    broker_transport_options={'lease': 5},  # seconds
    broker_connection_retry_on_startup=True,
)

# Late acknowledgement and the like are set by this, where the configuration leaves them open.
ext = celery_ext.install(app)


class BankClosed(Exception):
    """The bank does not answer today."""


# -- tasks -----------------------------------------------------------------------


@app.task(name='shop.charge')
@throttled('bank', concurrency=2, rate='50/s')
def charge(order: int, customer: str, amount: int) -> str:
    """Takes the money.  It fails while the bank is closed.

    The bank allows two connections and 50 calls a second, from all workers together.
    """
    if (DATA / 'bank-closed').exists():
        raise BankClosed(f'cannot charge {customer} {amount} for order {order}')
    note('charged', order, amount=amount)
    return f'payment-{order}'


@app.task(name='shop.invoice')
def invoice(order: int, customer: str, amount: int) -> str:
    """Writes the invoice, which says that it is paid."""
    note('invoiced', order, customer=customer, amount=amount)
    return f'invoice-{order}'


@app.task(name='shop.ship')
def ship(order: int) -> str:
    """Hands the parcel to the carrier."""
    note('shipped', order)
    return f'parcel-{order}'


@app.task(name='shop.remind')
def remind(order: int, customer: str) -> None:
    """Asks for an opinion, some days later."""
    note('reminded', order, customer=customer)


# -- what the web site calls -----------------------------------------------------


@dataclass(frozen=True)
class Order:
    """What an order has set in motion."""

    number: int
    payment: AsyncResult
    invoice: AsyncResult
    parcel: AsyncResult
    reminder: AsyncResult


def place_order(number: int, customer: str, amount: int, remind_in: float = 86_400.0) -> Order:
    """Publishes all that an order needs at once.

    Nobody waits for anybody in a worker: the invoice is no message for a worker before it is
    paid, and the parcel none before there is an invoice to go with it.  If a payment fails, all
    that waits: it may be replayed.  If there will be no parcel, nobody asks for an opinion.
    """
    payment = charge.apply_async((number, customer, amount))
    paper = invoice.apply_async((number, customer, amount), depends_on=[payment])
    parcel = ship.apply_async((number,), depends_on=[payment, paper], priority=5)
    reminder = remind.apply_async(
        (number, customer), countdown=remind_in, depends_on=[parcel], dependency_policy='fail'
    )
    return Order(number, payment, paper, parcel, reminder)


# -- the books -------------------------------------------------------------------


def note(event: str, order: int, **fields: object) -> None:
    """One line in the books, written in one piece whoever else writes."""
    line = json.dumps({'event': event, 'order': order, **fields}) + '\n'
    with (DATA / 'books').open('a', buffering=1) as books:
        books.write(line)


def books(order: int) -> list[str]:
    """What has happened to an order, in order."""
    path = DATA / 'books'
    lines = path.read_text().splitlines() if path.exists() else []
    entries = [json.loads(line) for line in lines]
    return [entry['event'] for entry in entries if entry['order'] == order]


def close_bank(closed: bool) -> None:
    """From now on charges fail, or succeed again."""
    if closed:
        (DATA / 'bank-closed').touch()
    else:
        (DATA / 'bank-closed').unlink(missing_ok=True)
