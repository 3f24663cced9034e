"""A running Flower, and two ways to visit it: plain requests, and a browser."""

from __future__ import annotations

import base64
import contextlib
import http.cookiejar
import json
import re
import shutil
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import urlencode, urlsplit

import pytest

from tests.support.servers import free_port
from tests.support.wait import wait_for
from tests.support.workers import ROOT, Fleet


class Answer(NamedTuple):
    """What came back."""

    status: int
    text: str
    headers: Any


@dataclass
class Site:
    """A Flower that runs.

    Args:
        port: where it listens.
        prefix: its ``url_prefix``.
        user: ``name:password``, if it asks for them.
        log: what it writes.
    """

    port: int
    prefix: str
    user: str
    log: Path
    process: Any = None
    _cookies: http.cookiejar.CookieJar = field(default_factory=http.cookiejar.CookieJar)

    @property
    def root(self) -> str:
        return f'http://127.0.0.1:{self.port}' + (f'/{self.prefix}' if self.prefix else '')

    @property
    def open_root(self) -> str:
        """The same with the password in it, as people give it to a browser."""
        return self.root.replace('://', f'://{self.user}@') if self.user else self.root

    def request(
        self, path: str, form: dict[str, Any] | None = None, user: str | None = None,
        timeout: float = 10, **headers: str,
    ) -> Answer:  # fmt: skip
        """A request; a POST if there is a form.  Redirects are followed."""
        user = self.user if user is None else user
        if user:
            headers['Authorization'] = f'Basic {base64.b64encode(user.encode()).decode()}'
        body = urlencode(form).encode() if form is not None else None
        asked = urllib.request.Request(self.root + path, body, headers)
        opener = urllib.request.build_opener(
            urllib.request.ProxyHandler({}),  # nothing of this machine's proxies
            urllib.request.HTTPCookieProcessor(self._cookies),
        )
        try:
            with opener.open(asked, timeout=timeout) as answer:
                return Answer(answer.status, answer.read().decode(), answer.headers)
        except urllib.error.HTTPError as error:
            with error:
                return Answer(error.code, error.read().decode(), error.headers)

    def token(self) -> str:
        """What a page gives to those who may act."""
        found = re.search(r'name="_xsrf" value="([^"]+)"', self.request('/reliable/queues').text)
        assert found, 'no form on the page'
        return found[1]

    def act(self, action: str, **form: Any) -> tuple[int, str]:
        """Presses a button without a browser: the status, and what is said."""
        given = {'_xsrf': self.token(), **form}
        answer = self.request(f'/reliable/act/{action}', given, Accept='application/json')
        said = json.loads(answer.text)['message'] if answer.text.startswith('{') else answer.text
        return answer.status, said


@contextlib.contextmanager
def flower(
    fleet: Fleet, *arguments: str, prefix: str = '', user: str = '',
    program: Sequence[str] = (sys.executable, '-m', 'celery'), **environment: str,
) -> Iterator[Site]:  # fmt: skip
    """Runs ``celery flower`` for the app of a fleet."""
    port = free_port()
    options = [f'--port={port}', '--address=127.0.0.1', *arguments]
    if prefix:
        options.append(f'--url_prefix={prefix}')
    if user:
        options.append(f'--basic_auth={user}')
    log = fleet.directory / f'flower-{port}.log'
    with log.open('wb') as output:
        process = subprocess.Popen(
            [*program, '-A', fleet.module, 'flower', *options],
            cwd=ROOT, env={**fleet.environment(), **environment}, stdin=subprocess.DEVNULL,
            stdout=output, stderr=subprocess.STDOUT,
        )  # fmt: skip
    site = Site(port, prefix, user, log, process)

    def answers() -> bool:
        assert process.poll() is None, log.read_text()
        with contextlib.suppress(OSError):
            return site.request('/healthcheck').status == 200
        return False

    try:
        wait_for(answers, 40, f'Flower, see {log}')
        yield site
    finally:
        process.terminate()
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(15)
        process.kill()  # Flower's own threads may wait for a server that is away
        process.wait(10)


# -- the browser -----------------------------------------------------------------


def start_browser() -> Any:
    """A headless Chromium; skips the test where there is none."""
    webdriver = pytest.importorskip('selenium.webdriver', reason='selenium is not installed')
    chromium = shutil.which('chromium') or shutil.which('google-chrome')
    driver = shutil.which('chromedriver')
    if chromium is None or driver is None:
        pytest.skip('needs chromium and chromedriver: apt-get install chromium chromium-driver')
    options = webdriver.ChromeOptions()
    options.binary_location = chromium
    for argument in (
        '--headless=new', '--no-sandbox', '--disable-dev-shm-usage', '--no-proxy-server',
        '--window-size=1400,1000',
    ):  # fmt: skip
        options.add_argument(argument)
    options.set_capability('goog:loggingPrefs', {'browser': 'ALL', 'performance': 'ALL'})
    return webdriver.Chrome(options, webdriver.ChromeService(driver))


class Tab:
    """A browser's window on a site.

    Args:
        driver: of selenium.
        site: where its addresses begin.
    """

    def __init__(self, driver: Any, site: Site) -> None:
        self.driver = driver
        self.site = site
        #: Statuses from 400 that the test asks for.
        self.expected: set[int] = set()
        driver.get('about:blank')
        self._drain()

    def _drain(self) -> tuple[list[Any], list[Any]]:
        return self.driver.get_log('browser'), self.driver.get_log('performance')

    def open(self, path: str) -> None:
        self.driver.get(self.site.open_root + path)

    def script(self, text: str, *args: Any) -> Any:
        return self.driver.execute_script(text, *args)

    def texts(self, css: str) -> list[str]:
        """The texts of elements, as they are shown."""
        found: list[str] = self.script(
            'return Array.from(document.querySelectorAll(arguments[0])).map('
            'one => one.textContent.replace(/\\s+/g, " ").trim())', css,
        )  # fmt: skip
        return found

    def text(self, css: str) -> str:
        """Of the only element of a kind."""
        [text] = self.texts(css)
        return text

    def until(self, css: str, wanted: str, timeout: float = 15) -> None:
        """Waits until an element says something."""
        wait_for(
            lambda: any(wanted in text for text in self.texts(css)), timeout,
            f'{wanted!r} in {css}; there is {self.texts(css)}',
        )  # fmt: skip

    def hurry(self) -> None:
        """Has the page look again more often than people need."""
        self.script('document.querySelector("#reliable-live").dataset.every = 150')
        self.click('#reliable-pulse')
        self.click('#reliable-pulse')

    def fill(self, css: str, text: str) -> None:
        self.script(
            'const field = document.querySelector(arguments[0]); field.value = arguments[1];',
            css, text,
        )  # fmt: skip

    def click(self, css: str) -> None:
        """As a person does: what is covered or off cannot be clicked."""
        from selenium.common.exceptions import StaleElementReferenceException
        from selenium.webdriver.common.by import By

        def clicked() -> bool:
            with contextlib.suppress(StaleElementReferenceException):  # it was just looked again
                element = self.driver.find_element(By.CSS_SELECTOR, css)
                # Bootstrap scrolls smoothly, and what moves cannot be hit.
                self.script('arguments[0].scrollIntoView({block: "center", behavior: "instant"})',
                            element)  # fmt: skip
                element.click()
                return True
            return False

        wait_for(clicked, 5, f'a click on {css}')

    def press(self, css: str, sure: bool = False) -> str:
        """Presses a button, says yes if it asks, and waits for what is said then."""
        self.script('document.querySelectorAll(".reliable-said").forEach(one => one.remove())')
        self.click(css)
        if sure:
            wait_for(lambda: self.script('return document.querySelector("dialog").open'), 5)
            self.click('#reliable-dialog button[value=yes]')
        said = wait_for(lambda: self.texts('.reliable-said'), 15, f'a word about {css}')
        return said[-1]

    def check(self) -> None:
        """No script has failed, and no request was refused that the test had not asked for."""
        messages, network = self._drain()
        failed = [one['message'] for one in messages if one['source'] != 'network']
        assert not failed, failed
        answers = [
            message['params']['response']
            for message in (json.loads(one['message'])['message'] for one in network)
            if message['method'] == 'Network.responseReceived'
        ]
        wrong = [
            (answer['status'], urlsplit(answer['url']).path)
            for answer in answers
            if answer['status'] >= 400 and answer['status'] not in self.expected
        ]
        assert not wrong, wrong
        assert answers, 'nothing was asked for'
