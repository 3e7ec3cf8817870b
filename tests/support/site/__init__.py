"""What turns the pages of `.docs` into the site; `nox -s docs` builds it."""
