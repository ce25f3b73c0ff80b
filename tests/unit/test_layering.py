"""The core's layers stay acyclic and sans-I/O; tests below interop do not sleep. Reads source text only."""

import ast
import re
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
CORE = ROOT / "ustack" / "core"
FILES = {p.stem: p for p in sorted(CORE.glob("*.pxd")) if p.stem != "__init__"}

# Bottom up. A file may cimport from its own line and the lines above it; files not listed may cimport what
# they like in the core as long as it makes no cycle. Add a file when what lies below it must stay so.
LAYERS = [
    ["types", "config"],
    ["seqno", "cksum", "siphash"],
    ["pool", "ring", "wheel", "wire", "stats", "rtt"],
    ["ehash"],
]
LEVEL = {name: i for i, line in enumerate(LAYERS) for name in line}

# What a sans-I/O core may take from outside: types and memory, nothing that knows time, chance or files.
OUTSIDE = {
    "libc.stdint",
    "libc.stddef",
    "libc.stdlib",
    "libc.string",
    "libc.limits",
    "libc.math",
    "posix.mman",
}
FORBIDDEN = {
    "clock": r"clock_gettime|gettimeofday|timespec_get|time|clock|nanosleep|usleep|sleep|timerfd_\w+",
    "random source": r"rand|srand|random|srandom|rand_r|[dlm]rand48|getrandom|getentropy|arc4random\w*",
    "file descriptor": r"open|openat|close|read|write"
    r"|readv|writev|pread|pwrite|recv|send|sendto|sendmsg|recvmsg|socket"
    r"|ioctl|fcntl|poll|ppoll|select|epoll_\w+|eventfd\w*|pipe2?|dup[23]?|printf|fprintf|puts|fopen|perror",
    "thread": r"pthread_\w+|sem_\w+|fork|execve|signal|sigaction|kill",
}


def code(path):
    """The file without comments and docstrings; other strings stay, C blocks among them."""
    text = re.sub(r'(nogil:\s*)""".*?"""', r"\1", path.read_text(), flags=re.S)
    return re.sub(r"#(?!(?:define|include|if|ifdef|ifndef|else|endif)\b).*", "", text)


def cimports(path):
    text = re.sub(r"\\\n|\((?:[^()]*\n)+[^()]*\)", " ", code(path))
    found = []
    for line in text.splitlines():
        if m := re.match(r"\s*from\s+([\w.]+)\s+cimport\s+(.*)", line):
            found.append((m[1], m[2].strip()))
        elif m := re.match(r"\s*cimport\s+([\w.]+)(?:\s+as\s+\w+)?\s*$", line):
            found.append((m[1], None))
        elif "cimport" in line:
            found.append((line.strip(), "not understood"))
    return found


def uses(path):
    """Core files that a file cimports."""
    return {m.rpartition(".")[2] for m, _ in cimports(path) if m.startswith("ustack.core.")}


def test_the_list_of_layers_names_files_that_exist():
    assert set(LEVEL) <= set(FILES)


@pytest.mark.parametrize("path", FILES.values(), ids=FILES.keys())
def test_cimports_stay_inside_the_core_and_have_the_tracked_form(path):
    """cythonize does not track ``from ustack.core cimport wire``: builds would go stale."""
    for module, names in cimports(path):
        assert names != "not understood", module
        assert module in OUTSIDE or re.fullmatch(r"ustack\.core\.\w+", module), f"cimports {module}"
        assert not module.startswith("ustack.core.") or module.rpartition(".")[2] in FILES, (
            f"no file {module}"
        )


@pytest.mark.parametrize(
    "path", [*ROOT.glob("ustack/**/*.pyx"), *ROOT.glob("tests/**/*.pyx")], ids=lambda p: p.name
)
def test_cimports_of_compiled_units_have_the_tracked_form(path):
    for module, names in cimports(path):
        assert module not in ("ustack", "ustack.core"), f"from {module} cimport {names}"
        assert not module.startswith("."), f"from {module} cimport {names}"


def test_no_cycles():
    try:
        list(TopologicalSorter({name: uses(path) for name, path in FILES.items()}).static_order())
    except CycleError as e:
        pytest.fail(f"cimports in a circle: {' -> '.join(e.args[1])}")


@pytest.mark.parametrize("name", LEVEL)
def test_listed_files_cimport_only_what_is_not_above_them(name):
    above = {u for u in uses(FILES[name]) if LEVEL.get(u, len(LAYERS)) > LEVEL[name]}
    assert not above, f"{name} cimports {sorted(above)} from a higher layer"


@pytest.mark.parametrize("path", FILES.values(), ids=FILES.keys())
def test_the_core_knows_no_clock_chance_file_or_thread(path):
    for what, names in FORBIDDEN.items():
        hit = re.search(rf"(?<![\w.>])({names})\s*\(", code(path))
        assert not hit, f"{what}: {hit and hit[0]}"
    assert not re.search(
        r"<(time|unistd|sys/(socket|time|random|epoll|eventfd)|pthread|fcntl|stdio)\.h>", code(path)
    )


@pytest.mark.parametrize("path", FILES.values(), ids=FILES.keys())
def test_core_functions_never_take_the_gil_nor_raise(path):
    text = code(path)
    for m in re.finditer(r"^cdef (?:inline )?[^\n(]*?(\w+)\((?:[^()]|\([^()]*\))*\)([^:\n]*):$", text, re.M):
        assert "noexcept nogil" in m[2], f"{m[1]} is not noexcept nogil"
    assert not re.search(r"with gil|cdef class|^\s*(import|raise|def) |\bprint\(", text, re.M)


def sleeps(path):
    for node in ast.walk(ast.parse(path.read_text())):
        if (
            isinstance(node, ast.Attribute)
            and node.attr == "sleep"
            and getattr(node.value, "id", "") == "time"
        ):
            yield node.lineno
        if (
            isinstance(node, ast.ImportFrom)
            and node.module == "time"
            and any(a.name == "sleep" for a in node.names)
        ):
            yield node.lineno


def test_no_test_below_interop_names_a_sleep():
    allowed = {ROOT / "tests" / "conftest.py", ROOT / "tests" / "unit" / "test_kit.py", Path(__file__)}
    tests = [p for p in (ROOT / "tests").rglob("*.py") if "interop" not in p.parts and p not in allowed]
    found = [f"{p.relative_to(ROOT)}:{line}" for p in tests for line in sleeps(p)]
    assert not found, f"tests below interop use virtual time: {found}"


def test_the_checks_above_can_fail(tmp_path):
    """The regular expressions see what they are there for."""
    bad = tmp_path / "bad.pxd"
    bad.write_text(
        "from ustack.core cimport wire\nfrom libc.time cimport time\n"
        "cdef inline int f(int a) nogil:\n    return time(NULL)\n"
    )
    assert cimports(bad) == [("ustack.core", "wire"), ("libc.time", "time")]
    for check in (
        test_cimports_stay_inside_the_core_and_have_the_tracked_form,
        test_cimports_of_compiled_units_have_the_tracked_form,
        test_the_core_knows_no_clock_chance_file_or_thread,
        test_core_functions_never_take_the_gil_nor_raise,
    ):
        with pytest.raises(AssertionError):
            check(bad)
    sleepy = tmp_path / "sleepy.py"
    sleepy.write_text("import time\nfrom time import sleep\ntime.sleep(1)\n")
    assert list(sleeps(sleepy)) == [2, 3]


def test_a_sleep_in_a_test_fails_it():
    import time

    nap = getattr(time, "sleep")  # noqa: B009  (hidden from the textual check)
    with pytest.raises(pytest.fail.Exception):
        nap(0)
