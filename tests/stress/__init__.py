"""Every operation at once, from processes, threads and event loops, under disturbances: ``python -m tests.stress``.

`callers` call the cache and write down what they did, in `records`; `judge` tells from these what went wrong. A `phase`
runs the callers of some processes (`worker`) under one or more `disturbances`, lets them rest, and looks at what is
left. `holes` lists guards of the cache: when one is switched off, the stress finds it within some seconds.
"""
