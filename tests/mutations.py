"""The scripts, broken on purpose: one line at a time, of which each must be found.

Each entry names a file of ``kombu_reliable/lua``, a line as it stands there, what it becomes, and
what that breaks.  ``test_mutations.py`` shows that the machine of :mod:`tests.model` notices.
Whoever changes such a line changes it here as well: a mutation that cannot be made is an error.
"""

from __future__ import annotations

from dataclasses import dataclass

from kombu_reliable.scripts import packaged

NOTHING = ''


@dataclass(frozen=True)
class Mutation:
    """One broken line.  A :data:`kombu_reliable.scripts.Sources` that has it.

    Args:
        file: ``<folder>/<name>`` without ``.lua``.
        line: how it is, with the spaces in front of it if that tells it from others; there is one
            such line in the file.
        becomes: how it is broken.
        breaks: what goes wrong then.
    """

    file: str
    line: str
    becomes: str
    breaks: str

    def __call__(self, folder: str, name: str) -> str:
        text = packaged(folder, name)
        return self.mutate(text) if f'{folder}/{name}' == self.file else text

    def mutate(self, text: str) -> str:
        lines = text.splitlines()
        found = [at for at, line in enumerate(lines) if self.line in (line, line.strip())]
        if len(found) != 1:
            raise LookupError(f'{self.file} has {len(found)} lines {self.line!r}; see mutations.py')
        lines[found[0]] = self.becomes
        return '\n'.join(lines) + '\n'

    def __str__(self) -> str:
        return self.breaks.replace(' ', '-')


MUTATIONS = (
    # -- leases ---------------------------------------------------------------------------------
    Mutation(
        'lib/upkeep', "redis.call('ZREM', LEASED .. queue, unpack(ids))",
        NOTHING, 'a job whose lease has ended is in two places',
    ),
    Mutation(
        'ops/renew', "redis.call('ZADD', LEASED .. queue, deadline, id)",
        NOTHING, 'a late renewal loses the job',
    ),
    Mutation(
        'ops/claim', "redis.call('ZADD', LEASED .. queue, unpack(leases))",
        NOTHING, 'a claimed job has no lease',
    ),
    Mutation(
        'lib/settlement', "redis.call('HDEL', OWNERS, unpack(names))",
        NOTHING, 'a settled job keeps its owner',
    ),
    Mutation(
        'lib/endings', 'local claimable = make_ready(queue, id, at or 0, feat)',
        'local claimable = make_ready(queue, id, 0, feat)', 'a job that comes back loses its place',
    ),
    # -- fencing --------------------------------------------------------------------------------
    Mutation(
        'lib/beginning', 'fence(owner_token(owner), now)',
        NOTHING, 'a late owner is told that nobody holds the job',
    ),
    Mutation(
        'lib/owner', "return owner and string.sub(owner, 1, #token + 1) == token .. ';'",
        'return owner', 'any token settles',
    ),
    Mutation(
        'lib/run', 'return (owner or is_fenced(token)) and -1 or 0',
        'return owner and -1 or 0', 'a fenced run is forgotten with its job',
    ),
    Mutation(
        'lib/disown', 'fence(owner_token(job.owner), now)',
        NOTHING, 'the owner of a moved job is not fenced',
    ),
    Mutation(
        'ops/cancel', 'fence(owner_token(job.owner), now)',
        NOTHING, 'the owner of a canceled job is not fenced',
    ),
    # -- publishing -----------------------------------------------------------------------------
    Mutation(
        'ops/publish', "if call('ZADD', PRODUCERS, 'GT', 'CH', number, lane) == 0 then",
        "if call('ZADD', PRODUCERS, 'GT', 'CH', number, lane) < 0 then",
        'a repeated publish of one message is stored twice',
    ),
    Mutation(
        'lib/nonce', 'return before and math.max(0, before - first + 1) or 0',
        'return 0', 'a batch that was stored in part is stored twice',
    ),
    Mutation(
        'ops/publish_featured', "redis.call('ZADD', PRODUCERS, ARGV[3] - 1, ARGV[2])",
        NOTHING, 'a refusal whose reply was lost becomes a success',
    ),
    Mutation(
        'ops/publish_featured', "elseif is_fenced(run[1]) or has_next_run(run[2], run[1]) then",
        'elseif is_fenced(run[1]) then', 'a run has two next runs',
    ),
    Mutation(
        'ops/publish_featured', "redis.call('HDEL', EXTRA .. key, 'n', 'once', 'heir', 'progress')",
        "redis.call('HDEL', EXTRA .. key, 'once', 'heir', 'progress')",
        'a next run inherits lost deliveries',
    ),
    Mutation(
        'lib/storing', "redis.call('SADD', TWINS .. id, twin)",
        NOTHING, 'a second job under an id is not found',
    ),
    Mutation(
        'lib/storing', 'forget_completed(queue, {id})',
        NOTHING, 'a completed job stays in two places when its id comes again',
    ),
    # -- priority and delay ---------------------------------------------------------------------
    Mutation(
        'lib/place', 'return sequence - rank * 35184372088832',
        'return sequence', 'priorities mean nothing',
    ),
    Mutation(
        'ops/publish',
        "local at = call('HINCRBY', META, 'seq', 1)"
        ' - rank * 35184372088832 -- as in lib/place.lua',
        "local at = call('HINCRBY', META, 'seq', 1)",
        'priorities of single messages mean nothing',
    ),
    Mutation(
        'ops/prioritize', "redis.call('SETRANGE', JOB .. id, 1, rank)",
        NOTHING, 'a new priority is forgotten',
    ),
    Mutation(
        'lib/upkeep', "redis.call('ZREM', DELAYED .. queue, unpack(ids))",
        NOTHING, 'a promoted job stays delayed',
    ),
    Mutation(
        'lib/delaying', 'if not watched or due < watched or watched < now then',
        'if not watched then', 'an earlier due time wakes nobody',
    ),
    # -- wake markers and alarms ----------------------------------------------------------------
    Mutation(
        'ops/publish', "call('ZADD', WAKE .. queue, 0, '1')",
        NOTHING, 'a publish wakes nobody',
    ),
    Mutation('ops/claim', 'arm(queue)', NOTHING, 'a claim that leaves work wakes nobody'),
    Mutation(
        'lib/upkeep', 'claimable = take_back(queue, now) or claimable',
        'take_back(queue, now)', 'a lost lease wakes nobody',
    ),
    Mutation(
        'ops/pause',
        "elseif redis.call('EXISTS', READY .. queue, DELAYED .. queue, THROTTLED .. queue) > 0"
        ' then',
        "elseif redis.call('EXISTS', THROTTLED .. queue) > 0 then",
        'a resumed queue wakes nobody',
    ),
    Mutation(
        'lib/pausing', "redis.call(paused and 'SADD' or 'SREM', CLOSED, queue)",
        "redis.call('SADD', CLOSED, queue)", 'a resumed queue stays closed',
    ),
    Mutation(
        'lib/alarm', "redis.call('ZADD', ALARMS, 'LT', at, queue)",
        "redis.call('ZADD', ALARMS, 'NX', at, queue)", 'an alarm does not become earlier',
    ),
    Mutation(
        'lib/upkeep',
        'local next = sooner(sooner(head(DELAYED .. queue), lease),'
        ' dead and dead + retention + 1)',
        'local next = sooner(lease, dead and dead + retention + 1)',
        'what is delayed loses its alarm',
    ),
    Mutation('lib/timekeeper', 'return due', 'return due + 100', 'the timekeeper wakes late'),
    # -- throttles ------------------------------------------------------------------------------
    Mutation(
        'lib/lanes', "ours(HELD .. one[1], 'ZREM', id)",
        NOTHING, 'a slot is leaked',
    ),
    Mutation(
        'lib/lanes', "ours(HELD .. one[1], 'ZADD', now, id)",
        NOTHING, 'a job takes no slot',
    ),
    Mutation(
        'lib/lanes',
        'opened(one[1]) -- also if who looked for room has taken the slot from it before',
        NOTHING, 'a freed slot shows no lane',
    ),
    Mutation(
        'lib/lanes', 'break -- its end may have shown somebody who comes before the next one',
        NOTHING, 'a lane goes on out of order behind a job that must not be delivered',
    ),
    Mutation(
        'lib/limits', "return redis.call('ZCARD', held) >= most",
        "return redis.call('ZCARD', held) > most", 'a throttle lets one too many start',
    ),
    Mutation(
        'lib/limits', 'keep_pace(name, next_start(name, limit) + count * limit.interval)',
        'keep_pace(name, next_start(name, limit))', 'a rate counts no starts',
    ),
    Mutation(
        'lib/limits', 'return at > now and at or nil',
        'return nil', 'a rate holds nobody back',
    ),
    Mutation('lib/lanes', "alarm_by('', at)", NOTHING, 'a rate has no alarm'),
    Mutation(
        'lib/lanes',
        'and (want.f or before and tonumber(place_of) > before'
        ' or hand_over(want, queue, place_of))',
        'and (want.f or before and tonumber(place_of) > before)', 'a lane does not hand over',
    ),
    Mutation(
        'lib/lanes', '          mind_clock(name, queue, reason)',
        NOTHING, 'a lane that has gone leaves the others of its rate without a clock',
    ),
    Mutation(
        'lib/releasing', '  all.alarm_is_set()',
        NOTHING, 'whom a claim has to tell after it has told others is forgotten',
    ),
    Mutation(
        'lib/lanes', '        hand_over(want, queue)',
        NOTHING, 'a lane that is parked strands the others',
    ),
    Mutation(
        'lib/lanes', '    unpark(parked, queue)',
        NOTHING, 'who comes to the front of a parked lane is not seen',
    ),
    Mutation(
        'lib/lanes', "ours(LANE .. lane, 'ZADD', at, id)",
        "ours(LANE .. lane, 'ZADD', 'NX', -at, id)", 'a lane turns its jobs round',
    ),
    Mutation(
        'lib/lanes',
        "tickets(queue, 'ZADD', place(rank, redis.call('HINCRBY', META, 'seq', 1)), lane)",
        NOTHING, 'who has had his turn keeps it',
    ),
    Mutation(
        'lib/queue_limits',
        "most = math.min(most, limit.concurrency - (type(leased) == 'number' and leased or 0))",
        'most = math.min(most, limit.concurrency)', 'a limited queue lets too many start',
    ),
    # -- unique keys ----------------------------------------------------------------------------
    Mutation(
        'lib/unique', "if event == 'failed' then",
        "if event == 'never' then", 'a dead letter keeps its unique key',
    ),
    Mutation(
        'lib/unique', 'if its_number ~= number or holder ~= id then',
        'if false then', 'a job frees the unique key of another one',
    ),
    Mutation(
        'lib/displacing', "if job.state == 'leased' then",
        "if job.state == 'never' then", 'a running job is displaced',
    ),
    Mutation(
        'lib/displacing', 'lock_key(key, id, number, tonumber(life), now)',
        NOTHING, 'a replayed job does not take its unique key again',
    ),
    # -- dependencies ---------------------------------------------------------------------------
    Mutation(
        'lib/dependency', "if redis.call('EXISTS', UNMET .. id) == 0 then",
        'if true then', 'a job starts with the first of its dependencies',
    ),
    Mutation(
        'lib/releasing', "elseif outcome == 'gone' or policy ~= WAIT then",
        'elseif policy ~= WAIT then', 'a job waits for ever for what is gone',
    ),
    Mutation(
        'lib/releasing', "if outcome == 'ok' or policy == IGNORE or id == '' then",
        "if outcome == 'ok' or id == '' then", 'policy ignore does not ignore',
    ),
    Mutation(
        'lib/dependency', "holds = state == 'live' or policy ~= IGNORE",
        "holds = state == 'live'", 'a dead dependency counts as done',
    ),
    Mutation(
        'lib/releasing', 'if all.state_of(dependency) then',
        'if false then', 'what came in time is too late',
    ),
    Mutation(
        'lib/dependency', 'drop_edge(dependency, id)',
        NOTHING, 'who waits no more is still told',
    ),
    # -- tags, tracking, retention, dead letters --------------------------------------------------
    Mutation(
        'lib/tags', "local left = redis.pcall('ZINCRBY', TAGS, -1, tag)",
        "local left = redis.pcall('ZINCRBY', TAGS, 0, tag)", 'tags are counted wrongly',
    ),
    Mutation(
        'lib/tags', "if outcome ~= 'ok' or not extra_get(id, 'done') then",
        "if outcome ~= 'ok' then", 'a job that has succeeded keeps its tags',
    ),
    Mutation(
        'lib/tracking', "if not extra_get(id, 'done') and not extra_get(id, 'reason') then",
        "if not extra_get(id, 'done') then", 'the end of a dead letter is told twice',
    ),
    Mutation(
        'lib/retention', 'alarm_by(queue, trim_at(now + life))',
        NOTHING, 'what is kept is kept for ever',
    ),
    Mutation(
        'lib/retention', "local excess = redis.call('ZCARD', COMPLETED .. queue) - limit",
        "local excess = redis.call('ZCARD', COMPLETED .. queue) - limit - 1",
        'one too many is kept',
    ),
    Mutation(
        'lib/dead', "local excess = redis.call('ZCARD', DEAD .. queue) - keep",
        "local excess = redis.call('ZCARD', DEAD .. queue) - keep - 1",
        'one dead letter too many is kept',
    ),
    Mutation(
        'lib/dead', "all_ended({id}, 'failed')",
        NOTHING, 'nobody hears of a failure',
    ),
    Mutation(
        'lib/group', "redis.pcall('ZREM', GROUP .. group, id)",
        NOTHING, 'a replayed job stays in its group',
    ),
    # -- silence ----------------------------------------------------------------------------------
    Mutation(
        'lib/silence', 'hold = now + lease',
        'hold = now', 'expiry is not suspended after silence',
    ),
    Mutation(
        'lib/silence', 'if seen and now - seen > lease / 2 then',
        'if seen and now - seen > 2 * lease then', 'silence is noticed late',
    ),
)  # fmt: skip

#: Found within a second or two, of different features: for the default run.
QUICK = (
    'a late owner is told that nobody holds the job',
    'a claim that leaves work wakes nobody',
    'a slot is leaked',
    'a refusal whose reply was lost becomes a success',
    'a job starts with the first of its dependencies',
)
