"""One model of everything: what the scripts promise, as plain Python.

The *rules* speak of jobs, and of nothing else: no sorted set, no alarm, no wake marker, no ticket.
Each file says one thing, and they are read in this order:

=====================  ==============================================================
``world``              jobs, and what there is besides them; how one finds them
``time``               what time does: delays, leases, silence, retention
``leases``             claim, renew, settle
``ends``               what becomes of a job that ends, and of dead letters
``publishing``         publish, once however often it is sent; next runs; twins
``acting``             cancel, move, replay ...: somebody acts on jobs
``dependencies``       jobs that wait for others
``throttles``          jobs that are held back, and those that take turns
``unique``             keys that only one job may have
``marks``              tags, tracking, retention
=====================  ==============================================================

The *machine* (``machine`` and the ``steps_*`` files) makes random calls, of the scripts on a server
and of the rules, and compares the answers.  It loses replies, sends the same call again at any
later time, lets workers die, and lets time pass.  After every step it takes a *snapshot* of all
keys, and the *invariants* say what must be true of it:

- each job is in exactly one place, the one that the rules say, and in its order;
- owners and leases agree, and nobody but an owner can renew;
- a slot is held by a job that runs; a lane has a ticket, or is parked where something frees it;
- work that can be claimed has a wake marker, unless somebody has just popped it;
- whatever is due has an alarm that is not later, and somebody watches the clock for it;
- unique keys, tags, groups of dead letters and dependencies are those of the jobs that live;
- every key is accounted for, and once all jobs have ended only the named constants are left.

A rule is an exact prediction.  Two things are the server's choice, and the rules are told: in
which order a claim turns to the queues that have something due (``World.turn_to``), and how many
jobs that must not be delivered it meets behind the last that it delivers (``World.still_there``).

To add a rule: say it in the file of its feature, add a ``@rule`` to the steps that calls both, and
if there is a new key, what must be true of it to the invariants.  Then break the script on purpose,
and keep that as a line of ``tests/mutations.py``.
"""
