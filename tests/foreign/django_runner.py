"""Django's test runner, which also writes the outcome of each test to the file ``MAGNUS_FOREIGN_REPORT``."""

import json
import os
import unittest
from pathlib import Path
from typing import Any

from django.test.runner import DiscoverRunner


class _Result(unittest.TextTestResult):
    """Remembers the outcome of each test; a test with a failed part has failed."""

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self.outcomes: dict[str, str] = {}

    def stopTest(self, test: Any) -> None:
        super().stopTest(test)
        self.outcomes.setdefault(test.id(), "passed")

    def addError(self, test: Any, err: Any) -> None:
        super().addError(test, err)
        self.outcomes[test.id()] = "failed"

    def addFailure(self, test: Any, err: Any) -> None:
        super().addFailure(test, err)
        self.outcomes[test.id()] = "failed"

    def addSubTest(self, test: Any, subtest: Any, err: Any) -> None:
        super().addSubTest(test, subtest, err)
        if err is not None:
            self.outcomes[test.id()] = "failed"

    def addSkip(self, test: Any, reason: str) -> None:
        super().addSkip(test, reason)
        self.outcomes[test.id()] = "skipped"


class Runner(DiscoverRunner):
    def build_suite(self, *args: Any, **options: Any) -> Any:
        suite = super().build_suite(*args, **options)
        from cache.tests import RedisCacheTests

        # Each of Django's backends says here what it raises for what is no number; TypeError is the default.
        RedisCacheTests.incr_decr_type_error = TypeError
        return suite

    def get_resultclass(self) -> type[_Result]:
        return _Result

    def suite_result(self, suite: Any, result: Any, **options: Any) -> int:
        Path(os.environ["MAGNUS_FOREIGN_REPORT"]).write_text(json.dumps(result.outcomes), "utf-8")
        failed: int = super().suite_result(suite, result, **options)
        return failed
