"""Everything goes wrong at once, and a ledger that asks no broker says what became of the work.

``python -m benchmarks.chaos --help`` tells how to run it.  A file an idea:

- :mod:`.app`: the tasks; :mod:`.producers`: who publishes them.
- :mod:`.ledger`: what was submitted, what ran and what went wrong, as plain files.
- :mod:`.world`, :mod:`.crew`: the server, the proxy, and the processes, which come and go.
- :mod:`.troubles`: what goes wrong; :mod:`.power`: a machine that loses its power.
- :mod:`.verdict`, :mod:`.explain`, :mod:`.limits`: what follows from the ledger, as functions
  that know nothing but it.
- :mod:`.remains`: what is left in the server.
- :mod:`.report`: the verdict in words.
"""
