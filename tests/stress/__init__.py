"""Every operation at once, from processes, threads and event loops, under disturbances: ``python -m tests.stress``.

`callers` calls the cache and writes down what it did, `records` is how, `judge` tells from that what went wrong. A
`phase` runs the callers of some processes (`worker`) under one or more `disturbances`, lets them rest, and looks at what
is left. `holes` lists guards of the cache, each of which this must miss within some seconds when it is switched off.
"""
