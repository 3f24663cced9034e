"""``celery reliable tags`` and ``events``."""

from __future__ import annotations

import json
from typing import Any

import pytest
from celery import Celery
from celery.bin.celery import celery as command
from click.testing import CliRunner

import celery_ext
from celery_ext import Extension


@pytest.fixture
def ext(url: str) -> Extension:
    return celery_ext.install(Celery('shop', broker=url, set_as_current=False))


def run(ext: Extension, *arguments: str, code: int = 0) -> str:
    # Not by -b, which Celery leaves in the environment of this process.
    done = CliRunner().invoke(command, ['reliable', *arguments], default_map={'app': ext.app})
    assert done.exit_code == code, (done.output, done.exception)
    return done.output


def run_json(ext: Extension, *arguments: str) -> Any:
    return json.loads(run(ext, *arguments, '--json'))


def test_tags(ext: Extension) -> None:
    ids = [
        ext.app.send_task('shop.pay', tags=['billing', f'customer:{number}']).id
        for number in range(3)
    ]
    assert run_json(ext, 'tags', 'top', '--limit', '1') == {
        'tags': [{'tag': 'billing', 'count': 3}]
    }
    assert 'customer:2' in run(ext, 'tags', 'top')
    page = run_json(ext, 'tags', 'jobs', 'billing', '--limit', '2')
    assert [job['id'] for job in page['jobs']] == ids[:0:-1]
    rest = run_json(ext, 'tags', 'jobs', 'billing', '--after', page['next'])
    assert [job['id'] for job in rest['jobs']] == ids[:1]
    assert ids[1] in run(ext, 'tags', 'jobs', 'billing', 'customer:1')
    plan = run_json(ext, 'tags', 'cancel', 'billing', '--dry-run')
    assert plan == {'dry_run': True, 'seen': 3, 'done': 3, 'skipped': {}}
    assert run_json(ext, 'tags', 'move', 'billing', '--to', 'slow')['done'] == 3
    assert run_json(ext, 'tags', 'priority', 'customer:1', '--set', '9')['done'] == 1
    assert ext.jobs[ids[1]].priority == 9
    assert run_json(ext, 'tags', 'retry', 'billing')['skipped'] == {'ready': 3}
    assert '3 of 3 canceled' in run(ext, 'tags', 'cancel', 'billing', '--yes')
    assert 'no job has a tag' in run(ext, 'tags', 'top')
    assert 'a tag is a text' in run(ext, 'tags', 'jobs', '', code=1)


def test_a_question_comes_first(ext: Extension) -> None:
    ext.app.send_task('shop.pay', tags=['billing'])
    assert 'nothing was changed' in run(ext, 'tags', 'cancel', 'billing', code=1)
    assert ext.tags.top() == [('billing', 1)]


def test_events(ext: Extension) -> None:
    job = ext.jobs[ext.app.send_task('shop.pay', track=True).id]
    job.move('slow').cancel()
    lines = run(ext, 'events', '--since', '0', '--timeout', '0.01', '--json').splitlines()
    events = [json.loads(line) for line in lines]
    assert [event['event'] for event in events] == ['put', 'moved', 'canceled']
    assert {event['id'] for event in events} == {job.id}
    shown = run(ext, 'events', '--since', '0', '--timeout', '0.01', '--only', 'moved')
    assert 'celery > slow' in shown and len(shown.splitlines()) == 1
    assert 'since' in run(ext, 'events', '--since', 'nonsense', code=1)
