"""The command line, ``magnus-cache`` or ``python -m magnus_cache``; needs the extra ``cli``.

`app` has all commands. What they have in common (where the cache is, how keys and values are written, how it fails) is
in `common`; `values`, `figures`, `doctor`, `drills` and `programs` have the commands themselves.
"""
