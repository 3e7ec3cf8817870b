"""What the guide's code blocks run on: the document, databases, a local web service, and a place to run them.

`redis_cache_integration_guide.md` is a copy of the document, byte for byte; never edit it.
"""

import pytest

# So that a failing check says what it found.
pytest.register_assert_rewrite("tests.guide.running")
