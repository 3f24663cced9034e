"""When schedules fire: against Celery's own arithmetic, and what makes no sense."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from typing import Any
from zoneinfo import ZoneInfo

import pytest
from celery import Celery
from celery.schedules import crontab, schedule

import celery_ext
from celery_ext.declaring import declared_schedules
from celery_ext.definition import define
from celery_ext.errors import InvalidSchedule
from celery_ext.firing import plan
from celery_ext.timetable import Timetable, encode_when, timetable

#: How often a beat looks, in the comparison below.
LOOK = timedelta(minutes=1)


@pytest.fixture
def app() -> Iterator[Celery]:
    made = Celery('calendar', broker='memory://', set_as_current=False)
    yield made
    made.close()


def of(app: Any, when: Any, **options: Any) -> Timetable:
    return timetable(encode_when(when, app, **options))


def ms(when: datetime) -> int:
    return round(when.timestamp() * 1000)


def as_beat_does(app: Celery, cron: dict[str, Any], start: datetime, end: datetime) -> list[int]:
    """When Celery's own crontab says that it is due, to whoever asks often enough."""
    calendar = crontab(**cron)
    calendar.app = app
    zone = ZoneInfo(str(app.conf.timezone))
    now = start
    calendar.nowfun = lambda: now.astimezone(zone)
    last, runs = calendar.now(), []
    while now < end:
        if calendar.is_due(last).is_due:
            runs.append(ms(now))
            last = calendar.now()
        now += LOOK
    return runs


CRONTABS: list[dict[str, Any]] = [
    {'minute': '*/30'},
    {'minute': 0, 'hour': '*'},
    {'minute': 30, 'hour': 1},
    {'minute': 30, 'hour': 2},
    {'minute': 15, 'hour': '2,3'},
    {'minute': 59, 'hour': '0-3'},
    {'minute': 0, 'hour': 0},
    {'minute': 0, 'hour': 3, 'day_of_week': 'sun'},
    {'minute': 0, 'hour': 2, 'day_of_month': '2,9,26,30'},
]

#: The days on which clocks change.
CHANGES = [
    ('Europe/Berlin', (2025, 3, 30)),
    ('Europe/Berlin', (2025, 10, 26)),
    ('America/New_York', (2025, 3, 9)),
    ('America/New_York', (2025, 11, 2)),
]


@pytest.mark.parametrize(('zone', 'day'), CHANGES)
@pytest.mark.parametrize('cron', CRONTABS, ids=str)
def test_summer_time_comes_and_goes_as_in_celery(
    app: Celery, zone: str, day: tuple[int, int, int], cron: dict[str, Any]
) -> None:
    app.conf.timezone = zone
    start = datetime(*day, tzinfo=UTC) - timedelta(hours=6, seconds=-1)
    end = start + timedelta(hours=20, minutes=10, seconds=30)
    expected = as_beat_does(app, cron, start, end)
    table, at, found = of(app, crontab(**cron)), ms(start), []
    while (at := table.after(at)) < ms(end):
        found.append(at)
    assert len(found) == len(expected)
    for ours, theirs in zip(found, expected, strict=True):
        assert 0 <= theirs - ours < LOOK.total_seconds() * 1000
    # And those who look back find the same.
    assert table.between(found[0], ms(end), 7) == found[-7:]


def test_time_never_stands_still_in_the_hour_that_comes_twice(app: Celery) -> None:
    table = of(app, '* * * * *', zone='Europe/Berlin')
    at = ms(datetime(2025, 10, 26, 0, 30, tzinfo=UTC))
    for _ in range(200):
        following = table.after(at)
        assert following > at
        at += 60_000


def test_intervals(app: Celery) -> None:
    assert of(app, 60).after(1_000) == 61_000
    assert of(app, timedelta(minutes=1)).after(0) == 60_000
    assert of(app, schedule(60)).after(5) == 60_005
    aligned = of(app, 60, offset=15)
    assert [aligned.after(at) for at in (0, 14_999, 15_000, 75_000)] == [
        15_000, 15_000, 75_000, 135_000,
    ]  # fmt: skip
    assert of(app, 0.25).after(0) == 250
    rounded = of(app, schedule(3600, relative=True))
    assert rounded.after(ms(datetime(2025, 1, 1, 10, 20, tzinfo=UTC))) == ms(
        datetime(2025, 1, 1, 11, 0, tzinfo=UTC)
    )


def test_a_table_says_what_it_is(app: Celery) -> None:
    assert str(of(app, 300)) == 'every 5 min'
    assert str(of(app, 90, offset=5)) == 'every 90 s +5 s'
    assert (
        str(of(app, crontab(minute=0, hour=[4, 5]), zone='Asia/Tokyo')) == '0 4,5 * * * Asia/Tokyo'
    )


def test_looking_back_over_years_costs_little(app: Celery) -> None:
    table = of(app, '*/5 * * * *')
    first, now = ms(datetime(2015, 1, 1, tzinfo=UTC)), ms(datetime(2025, 1, 1, 0, 2, tzinfo=UTC))
    last = ms(datetime(2025, 1, 1, tzinfo=UTC))
    assert table.between(first, now, 3) == [last - 600_000, last - 300_000, last]
    rare = of(app, '0 0 29 2 *')
    assert len(rare.between(ms(datetime(2016, 2, 29, tzinfo=UTC)), now, 10)) == 3


def test_a_plan_of_years(app: Celery) -> None:
    made = define(app, 'a', 'run', 1, backlog=2)
    todo = plan(made, 0, 0, 10**12)
    assert todo.runs == (10**12 - 2000, 10**12 - 1000, 10**12)
    assert (todo.following, todo.missed) == (10**12 + 1000, (0, 10**12 - 3000))


# -- what makes no sense ---------------------------------------------------------


@pytest.mark.parametrize(
    ('every', 'told'),
    [
        (0, 'interval of 0'),
        (-5, 'interval of -5'),
        (0.001, 'at least'),
        (math.inf, 'interval of inf'),
        (math.nan, 'interval of nan'),
        (timedelta(0), 'interval of 0'),
        (True, 'not True'),
        (None, 'not None'),
        ('* * *', 'no crontab'),
        ('61 * * * *', 'no crontab'),
        ('0 0 30 2 *', 'never occurs'),
    ],
)
def test_calendars_that_make_no_sense(app: Celery, every: Any, told: str) -> None:
    with pytest.raises(InvalidSchedule, match=told):
        define(app, 'a', 'run', every)
    if every is not None:
        with pytest.raises(InvalidSchedule):
            celery_ext.recurring(every=every)


@pytest.mark.parametrize(
    ('settings', 'told'),
    [
        ({'zone': 'Mars/Olympus'}, 'no time zone'),
        ({'zone': '../etc/passwd'}, 'no time zone'),
        ({'backlog': -1}, 'backlog'),
        ({'backlog': 1.5}, 'backlog'),
        ({'max_runs': 0}, 'max_runs'),
        ({'jitter': -1}, 'jitter'),
        ({'jitter': 'long'}, 'jitter'),
        ({'after': 'start'}, "after is 'end'"),
        ({'after': 'end', 'every': '* * * * *'}, 'for intervals'),
        ({'offset': 5, 'every': '* * * * *'}, 'for intervals'),
        ({'offset': 'x'}, 'offset'),
        ({'start': 5}, 'no datetime'),
        (
            {'start': datetime(2025, 1, 2, tzinfo=UTC), 'end': datetime(2025, 1, 1, tzinfo=UTC)},
            'ends before',
        ),
        ({'args': 'text'}, 'list or tuple'),
        ({'kwargs': [1]}, 'a dict'),
        ({'args': [object()]}, 'kept as data'),
        ({'task': 5}, 'neither a task'),
        ({'task': ''}, 'neither a task'),
        ({'name': ''}, 'text as its name'),
    ],
)
def test_settings_that_make_no_sense(app: Celery, settings: dict[str, Any], told: str) -> None:
    given = {'name': 'a', 'task': 'run', 'every': 60, **settings}
    with pytest.raises(InvalidSchedule, match=told):
        define(app, **given)


def test_one_bad_declaration_costs_the_others_nothing(
    app: Celery, caplog: pytest.LogCaptureFixture
) -> None:
    celery_ext.install(app)
    app.conf.beat_schedule = {
        'bad': {'task': 'run', 'schedule': 0},
        'never': {'task': 'run', 'schedule': None},
        'good': {'task': 'run', 'schedule': crontab(minute=5), 'args': (1,), 'backlog': 2},
    }
    app.add_periodic_task(30.0, app.signature('run', (2,)), name='added', expires=10)

    @app.task(name='twice')
    @celery_ext.recurring(every=10)
    @celery_ext.recurring(every=20)
    @celery_ext.recurring(every='0 4 * * *', name='nightly', queue='slow')
    def twice() -> None: ...

    found = declared_schedules(app, beat=True)
    assert set(found) == {'good', 'added', 'twice', 'nightly', 'celery.backend_cleanup'}
    assert 'bad' in caplog.text and 'never' in caplog.text and 'give them names' in caplog.text
    assert (found['good'].args, found['good'].backlog) == ((1,), 2)
    assert found['added'].options == {'expires': 10, 'queue': 'celery'}
    assert (found['nightly'].options['queue'], found['nightly'].task) == ('slow', 'twice')


def test_who_fires_need_not_know_where_to(app: Celery) -> None:
    """A worker of another version, or of another app, may fire it."""

    @app.task(name='slow', priority=7)
    def slow() -> None: ...

    app.conf.task_routes = {'routed.*': {'queue': 'there'}}
    app.finalize()
    assert define(app, 'a', 'routed.x', 5).options == {'queue': 'there'}
    assert define(app, 'a', 'routed.x', 5, queue='here').options == {'queue': 'here'}
    options = define(app, 'a', slow, 5).options
    assert (options['queue'], options['priority']) == ('celery', 7)


def test_who_declares_the_same_says_the_same(app: Celery) -> None:
    """However sets and dicts are ordered: two workers must not take turns."""
    one = define(app, 'a', 'run', crontab(minute={5, 1, 3}), kwargs={'x': 1, 'y': 2})
    other = define(app, 'a', 'run', crontab(minute=[3, 5, 1]), kwargs={'y': 2, 'x': 1})
    assert one.digest == other.digest
    assert json.loads(one.when)['minute'] == [1, 3, 5]
