"""The example shop shows what it says."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).parents[2]


def test_the_demo_runs() -> None:
    # Not below the directory of the test: the path of a socket is short.
    with tempfile.TemporaryDirectory(prefix='shop-', dir='/tmp') as data:
        done = subprocess.run(
            [sys.executable, 'examples/shop/demo.py'],
            cwd=ROOT, capture_output=True, text=True, timeout=120,
            env={**os.environ, 'SHOP_DATA': data, 'PYTHONPATH': str(ROOT),
                 'KOMBU_RELIABLE_EMBEDDED_GRACE': '0.2'},
        )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    for line in (
        'task_acks_late = True, task_reject_on_worker_lost = True',
        'shop.ship    is waiting until after shop.charge, shop.invoice',
        "the books: ['charged', 'invoiced', 'shipped', 'reminded']",
        'because of BankClosed: cannot charge Grace 70 for order 2',
        'parcel-2 is on its way',
        'with cascade: gone',
        'shop.remind  failed: dependency',
        "next is order (6, 'Joan')",
        'purged: 2',
        'stopped: True; 3 payments wait',
        'invoice-10 was written at once',
        'payment-7, payment-8, payment-9',
    ):
        assert line in done.stdout, done.stdout
