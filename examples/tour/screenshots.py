"""Makes the pictures of docs/flower.md.

    pip install 'kombu-reliable[embedded,flower]' selenium      # and a chromium
    python examples/tour/screenshots.py

It starts an embedded server, a worker and Flower, fills a bookshop with work, and takes pictures
in a headless browser.  With ``--serve`` it takes none, and leaves Flower for you to look at.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import random
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import quote

HERE = Path(__file__).parent
PICTURES = HERE.parents[1] / 'docs' / 'images'
os.environ.setdefault('TOUR_DATA', tempfile.mkdtemp(prefix='tour-'))
sys.path.insert(0, str(HERE))

import bookshop  # noqa: E402  (it reads TOUR_DATA)
from bookshop import ext  # noqa: E402

CELERY = (sys.executable, '-m', 'celery', '-A', 'bookshop')


@contextlib.contextmanager
def running(name: str, *arguments: str) -> Iterator[Path]:
    """A program of the bookshop's, with its log."""
    log = bookshop.DATA / f'{name}.log'
    environment = {**os.environ, 'FLOWER_UNAUTHENTICATED_API': 'true'}
    with log.open('wb') as output:
        process = subprocess.Popen(
            [*CELERY, *arguments], cwd=HERE, env=environment, stdout=output,
            stderr=subprocess.STDOUT,
        )  # fmt: skip
    try:
        yield log
    finally:
        process.kill()  # reports that run for ten minutes are in no hurry
        process.wait(30)


def until(condition: object, what: str, seconds: float = 60) -> None:
    deadline = time.monotonic() + seconds
    while not condition():  # type: ignore[operator]
        if time.monotonic() > deadline:
            sys.exit(f'waited in vain for: {what}; see {bookshop.DATA}')
        time.sleep(0.1)


# -- the bookshop ----------------------------------------------------------------


def keep_busy() -> None:
    """Work that is done before the pictures are taken: it makes the histograms."""
    random.seed(7)
    results = []
    for number in range(250):
        results.append(bookshop.index.delay(number))
        if number % 3 == 0:
            results.append(bookshop.send.delay(f'reader{number}@books.example', 'New arrivals'))
        if number % 5 == 0:
            results.append(bookshop.charge.delay(number, number % 40, 30 + number % 60))
        if number % 6 == 0:
            results.append(bookshop.invoice.delay(number))
    until(lambda: all(result.ready() for result in results), 'the work of the morning', 120)


def go_wrong() -> None:
    """Dead letters."""
    for number in range(14):
        bookshop.charge.delay(700 + number, 300 + number, 950)
    for number in range(5):
        bookshop.send.delay(f'reader{number}@nowhere.example', 'Your order')
    until(lambda: sum(group.count for group in ext.dead.groups()) == 19, 'the dead letters')


def pile_up() -> str:
    """What waits when the pictures are taken.  Returns the id of a job with dependencies."""
    for name in ('documents', 'search', 'mail'):
        ext.queues[name].pause()
    ext.throttles['card-network'].set(concurrency=3, rate='20/m', expires=3 * 3600)
    for month in ('2026-09', '2026-10'):
        bookshop.build.apply_async((month,), priority=3)
    until(lambda: len(ext.jobs.in_state('leased', 'reports')) == 2, 'two reports')
    for number in range(2_340):
        bookshop.index.delay(number)
    for number in range(180):
        bookshop.send.apply_async(
            (f'reader{number}@books.example', 'Rate your book'), countdown=3600 + 60 * number
        )
    for number in range(60):
        bookshop.charge.apply_async((900 + number, number % 25, 40))
    first = bookshop.charge.apply_async((1207, 17, 64), priority=9, queue='documents')
    paper = bookshop.invoice.apply_async((1207,), depends_on=[first])
    stickers = [
        bookshop.label.apply_async((1207,), depends_on=[first], tags=['urgent']) for _ in range(2)
    ]
    hub = bookshop.invoice.apply_async((1208,), depends_on=[paper, *stickers], tags=['urgent'])
    for subject in ('Your parcel is on its way', 'How was it?'):
        bookshop.send.apply_async(('ada@books.example', subject), depends_on=[hub], countdown=600)
    ext.schedules['weekly digest'].pause()
    for _ in range(2):
        ext.schedules['stock'].run_now()
        time.sleep(2)
    time.sleep(4)  # what workers have counted reaches the server
    return str(hub.id)


#: Where things lie on the machine that takes the pictures says nothing.
PLAIN = """
document.querySelectorAll('pre.reliable-code').forEach(one => {
    one.textContent = one.textContent.replace(/"[^"]*\\/(site-packages\\/|tour\\/)/g, '"');
});
"""

# -- pictures --------------------------------------------------------------------


def browser(width: int, height: int) -> object:
    from selenium import webdriver

    options = webdriver.ChromeOptions()
    options.binary_location = shutil.which('chromium') or shutil.which('google-chrome') or ''
    for argument in (
        '--headless=new',
        '--no-sandbox',
        '--hide-scrollbars',
        f'--window-size={width},{height}',
    ):
        options.add_argument(argument)
    service = webdriver.ChromeService(shutil.which('chromedriver') or None)
    return webdriver.Chrome(options, service)


def take(url: str, hub: str, folder: Path) -> None:
    dead = ext.dead.page(group='bookshop.payments.charge')[0].id
    pages = {
        'queues': ('/reliable/queues', 760),
        'queue': ('/reliable/queue?name=search', 900),
        'jobs': ('/reliable/jobs?tag=checkout', 860),
        'job': (f'/reliable/job?id={hub}', 880),
        'failure': (f'/reliable/job?id={dead}', 1040),
        'failed': ('/reliable/failed', 860),
        'throttle': ('/reliable/throttle?name=card-network', 820),
        'throttles': ('/reliable/throttles', 420),
        'schedules': ('/reliable/schedules', 480),
        'broker': ('/broker', 640),
    }
    folder.mkdir(parents=True, exist_ok=True)
    driver = browser(1280, 900)
    try:
        for name, (path, height) in pages.items():
            driver.set_window_size(1280, height)
            driver.get(url + path)
            time.sleep(0.5)
            driver.execute_script(PLAIN)
            picture = folder / f'flower-{name}.png'
            driver.save_screenshot(str(picture))
            print(f'{picture} {picture.stat().st_size // 1024} kB')
    finally:
        driver.quit()


def main() -> None:
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('--serve', action='store_true', help='take no pictures')
    parser.add_argument('--port', type=int, default=0)
    parser.add_argument('--folder', type=Path, default=PICTURES)
    chosen = parser.parse_args()
    if not chosen.port:
        with socket.socket() as free:
            free.bind(('127.0.0.1', 0))
            chosen.port = free.getsockname()[1]
    url = f'http://127.0.0.1:{chosen.port}'
    queues = 'mail,payments,documents,search,reports,celery'
    worker = (
        'worker',
        '-P',
        'threads',
        '-c',
        '6',
        '-Q',
        queues,
        '-n',
        'till@bookshop',
        '-l',
        'INFO',
    )
    flower = ('flower', '--address=127.0.0.1', f'--port={chosen.port}')
    with running('worker', *worker) as log, running('flower', *flower):
        until(lambda: b' ready.' in log.read_bytes(), 'the worker')
        keep_busy()
        go_wrong()
        hub = pile_up()
        until(lambda: _answers(url), 'Flower')
        print(f'{url}/reliable/queues {quote(hub)}', flush=True)
        if chosen.serve:
            with contextlib.suppress(KeyboardInterrupt):
                time.sleep(86_400)
        else:
            take(url, hub, chosen.folder)


def _answers(url: str) -> bool:
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    with contextlib.suppress(OSError):
        return bool(opener.open(f'{url}/healthcheck', timeout=5).status == 200)
    return False


if __name__ == '__main__':
    main()
