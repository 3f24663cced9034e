"""Pictures and texts of the pages, without a Flower."""

from __future__ import annotations

import asyncio
import random
import threading
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from typing import Any
from xml.etree import ElementTree

import pytest
from celery import Celery

import celery_ext
from celery_ext import Extension, InvalidArgument, Summary, WrongState
from celery_ext.flower import text
from celery_ext.flower.charts import COLUMNS, WIDTH, histogram
from celery_ext.flower.graph import DEPTH, MOST, ROWS, graph_of
from celery_ext.flower.overlay import with_tabs
from celery_ext.flower.pages import Pages
from celery_ext.flower.query import Query
from celery_ext.flower.watch import Progress, Watch


@pytest.fixture
def ext(url: str) -> Iterator[Extension]:
    app = Celery('shop', broker=url)
    yield celery_ext.install(app)
    app.close()


def send(ext: Extension, *before: Any) -> Any:
    return ext.app.send_task('shop.pay', queue='a', depends_on=before or None)


# -- charts ----------------------------------------------------------------------


@pytest.mark.parametrize(
    'seconds',
    [
        [0.0], [1e-9], [3600.0] * 5, [1e-5, 1e7], [0.9996] * 1_000,
        [random.Random(1).lognormvariate(0, 3) for _ in range(3_000)],
    ],
)  # fmt: skip
def test_a_chart_is_a_picture(seconds: list[float]) -> None:
    summary = Summary.of(seconds)
    picture = ElementTree.fromstring(histogram(summary))
    bars = [one for one in picture.iter('rect')]
    assert 0 < len(bars) <= COLUMNS
    for bar in bars:
        assert 0 <= float(bar.attrib['x']) <= WIDTH - float(bar.attrib['width'])
        assert float(bar.attrib['height']) > 0
    counted = sum(int(bar[0].text.rpartition(': ')[2].replace(',', '')) for bar in bars)
    assert counted == len(seconds)
    assert 'e+' not in ElementTree.tostring(picture, encoding='unicode')


def test_an_empty_chart() -> None:
    assert 'Nothing was counted' in histogram(Summary())


# -- graphs ----------------------------------------------------------------------


def test_many_that_wait_are_told_by_number(ext: Extension) -> None:
    first = send(ext)
    for _ in range(120):
        send(ext, first)
    graph = graph_of(ext, ext.jobs[first.id])
    assert graph is not None
    assert len(graph.nodes) == 1 + ROWS + 1
    assert [node.label for node in graph.nodes if not node.id] == [f'and {120 - ROWS} more']
    assert len(graph.edges) == ROWS + 1


def test_a_net_is_cut_at_its_edges(ext: Extension) -> None:
    """Each job once, no matter by how many ways it is reached."""
    rows: list[list[Any]] = [[send(ext) for _ in range(3)]]
    for _ in range(DEPTH + 2):
        rows.append([send(ext, *rows[-1]) for _ in range(3)])
    graph = graph_of(ext, ext.jobs[rows[1][0].id])
    assert graph is not None
    ids = [node.id for node in graph.nodes]
    assert len(ids) == len(set(ids)) <= MOST + 2
    assert {node.column for node in graph.nodes} == {-1, 0, *range(1, DEPTH + 1)}
    places = {(node.x, node.y) for node in graph.nodes}
    assert len(places) == len(ids)
    assert all(edge.source.column < edge.target.column for edge in graph.edges)
    assert graph_of(ext, ext.jobs[send(ext).id]) is None


def test_what_has_ended_stays_in_the_picture(ext: Extension) -> None:
    waiting = ext.app.send_task(
        'shop.pay', queue='a', depends_on=[celery_ext.expected('still-to-come', 60)]
    )
    graph = graph_of(ext, ext.jobs[waiting.id])
    assert graph is not None
    assert {node.id: node.state for node in graph.nodes}['still-to-come'] == 'unknown'


# -- pages, texts, questions -----------------------------------------------------


@pytest.mark.parametrize(
    ('pages', 'wanted'),
    [
        (Pages(0, 0, 0), (None, None, None)),
        (Pages(0, 50, 50), (None, None, None)),
        (Pages(0, 50, 51), (None, 50, 50)),
        (Pages(50, 1, 51), (0, None, None)),
        (Pages(50, 50, 1_000_000), (0, 100, 999_950)),
        (Pages(20, 50, 120), (0, 70, 100)),
        (Pages(0, 50, None), (None, 50, None)),
        (Pages(50, 10, None), (0, None, None)),
    ],
)
def test_ways_through_a_list(pages: Pages, wanted: tuple[Any, ...]) -> None:
    assert (pages.previous, pages.next, pages.end) == wanted


def test_names_and_times() -> None:
    assert text.name('<b>"\u202e\x00') == (
        '<span class="reliable-name">&lt;b&gt;&quot;\\u202e\\x00</span>'
    )
    assert 'title="' + 'x' * 500 in text.name('x' * 500)
    now = datetime.now(UTC)
    assert text.since(now - timedelta(seconds=5), now) == '5 s ago'
    assert text.since(now + timedelta(hours=3), now) == 'in 3 h'
    assert text.since(now, now) == 'now'
    assert text.since(now - timedelta(days=400), now) == '400 d ago'


def test_questions_are_read_as_they_are() -> None:
    query = Query(
        {'name': [b' a&amp;<b>\x01 '], 'n': [b'7'], 'bad': [b'\xff'], 'tags': [b'a, b a']}
    )
    assert query.text('name') == ' a&amp;<b>\x01 '
    assert query.number('n', least=1, most=7) == 7
    assert query.words('tags') == ['a', 'b']
    for ask in (
        lambda: query.text('bad'), lambda: query.needed('none'), lambda: query.number('name'),
        lambda: query.number('n', most=6), lambda: Query({'n': [b'1' * 9_999]}).number('n'),
        lambda: Query({'n': [b'x' * 30_000]}).text('n'),
    ):  # fmt: skip
        with pytest.raises(InvalidArgument):
            ask()


def test_a_navigation_that_is_not_known_stays_as_it_is(caplog: pytest.LogCaptureFixture) -> None:
    assert with_tabs('<nav>something new</nav>') == '<nav>something new</nav>'
    assert 'no place for tabs' in caplog.text


# -- what takes long -------------------------------------------------------------


def test_nobody_does_the_same_at_the_same_time(ext: Extension) -> None:
    watch = Watch(ext.app)
    began, go = threading.Event(), threading.Event()

    def act(_: Any, progress: Progress) -> int:
        progress(1_200)
        began.set()
        assert go.wait(10)
        return 5_000

    async def two() -> None:
        first = asyncio.create_task(watch.run_long('group a', 'replaying a', act))
        await asyncio.to_thread(began.wait, 10)
        with pytest.raises(WrongState, match='replaying a: 1,200 so far'):
            await watch.run_long('group a', 'replaying a', act)
        go.set()
        assert await first == 5_000
        assert await watch.run_long('group a', 'replaying a', lambda *_: 3) == 3

    asyncio.run(two())
    assert not watch.long
