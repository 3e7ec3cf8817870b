"""The mutants can be made at all: each finds the guard that it switches off, and the tests that are to notice."""

import subprocess
import sys
from pathlib import Path

from tests.support.mutants import MUTANTS

ROOT = Path(__file__).resolve().parents[2]

SWITCH_OFF = """
import os, sys, traceback
from tests.support.mutants import MUTANTS

for name, mutant in MUTANTS.items():
    child = os.fork()
    if not child:
        try:
            mutant.switch_off()
        except BaseException:
            print(f"without {name}: {traceback.format_exc(limit=-1)}", flush=True)
        os._exit(0)
    os.waitpid(child, 0)
"""
"""One child each, as a guard that is switched off stays so."""


def test_each_guard_is_where_its_mutant_looks_for_it() -> None:
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", SWITCH_OFF], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_each_mutant_names_tests_that_exist() -> None:
    assert len(MUTANTS) > 200
    missing = []
    for mutant in MUTANTS.values():
        for test in mutant.tests:
            file, _, function = test.partition("::")
            source = ROOT / file
            found = source.is_file() and f"def {function.partition('[')[0]}" in source.read_text("utf-8")
            if not found:
                missing.append(test)
    assert not missing
