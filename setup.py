"""Build of the compiled units; everything else stands in pyproject.toml.

Switches (environment variables, each "1" to turn on):
  USTACK_DEBUG     bounds and wraparound checks, asserts in the core
  USTACK_SANITIZE  AddressSanitizer + UndefinedBehaviorSanitizer (implies USTACK_DEBUG)
  USTACK_COVERAGE  gcov instrumentation, lines map to .pxd files
  USTACK_CTEST     also build tests/_ctest.pyx, the test-only door to the leaf functions, and tests/_hookops.pyx, a C op-table
  USTACK_BENCH     also build tests/_cbench.pyx, timing loops for scripts/bench
  USTACK_FAST      -O0: the quickest build, for the edit-compile loop
  USTACK_PGO       profile-guided, for releases and scripts/bench: built, trained, built again (scripts/pgo; gcc only, several minutes)
"""

import os
import sys
from pathlib import Path

from Cython.Build import cythonize
from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext


def switch(name: str) -> bool:
    return os.environ.get(name, "") not in ("", "0")


sanitize = switch("USTACK_SANITIZE")
coverage = switch("USTACK_COVERAGE")
debug = switch("USTACK_DEBUG") or sanitize
profiled = switch("USTACK_PGO")
command = build_ext
if profiled:
    sys.path.insert(0, str(Path(__file__).resolve().parent / "scripts"))    # a build backend does not put it there
    from pgo.build import build_ext_profiled, contradiction

    if why := contradiction(os.environ):
        sys.exit(f"setup.py: {why}")
    command = build_ext_profiled

cflags = ["-std=gnu11", "-g", "-fno-strict-aliasing", "-Wno-unused-function", "-Wno-unreachable-code"]
ldflags = ["-pthread"]
if sanitize:
    # Python's own CFLAGS hold -fwrapv and -DNDEBUG, which silence UBSAN and assert().
    cflags += ["-O1", "-fno-omit-frame-pointer", "-fsanitize=address,undefined", "-fno-wrapv", "-UNDEBUG",
               "-fno-sanitize-recover=undefined", "-DUSTACK_ASAN=1"]
    ldflags += ["-fsanitize=address,undefined"]
elif switch("USTACK_FAST"):
    cflags += ["-O0", "-UNDEBUG"]
else:
    # The core is many small functions: gcc's own limits leave calls between them that cost a twelfth of a packet's instructions.
    cflags += ["-O2", "--param=max-inline-insns-single=200", "--param=inline-unit-growth=200"]
if debug:
    cflags += ["-UNDEBUG", "-DUSTACK_DEBUG=1"]
if coverage:
    cflags += ["--coverage", "-O0"]
    ldflags += ["--coverage"]
if profiled:
    cflags += ["-DUSTACK_PGO=1"]

directives = {
    "language_level": 3,
    "boundscheck": debug,
    "wraparound": False,
    "initializedcheck": False,
    "cdivision": True,
    "embedsignature": False,
}


def extension(name: str, source: str) -> Extension:
    return Extension(name, [source], extra_compile_args=cflags, extra_link_args=ldflags)


extensions = [extension("ustack._fastpath", "ustack/_fastpath.pyx")]
if switch("USTACK_CTEST"):
    extensions.append(extension("tests._ctest", "tests/_ctest.pyx"))
    extensions.append(extension("tests._hookops", "tests/_hookops.pyx"))
if switch("USTACK_BENCH"):
    extensions.append(extension("tests._cbench", "tests/_cbench.pyx"))


class Copying(command):
    """Puts in place (--inplace) what it has built even over a newer file: that is of a build with other switches."""

    def copy_extensions_to_source(self) -> None:
        self.force = True
        super().copy_extensions_to_source()


# A folder of its own: an ordinary build after it must not take its results for up to date.
options = {"build": {"build_base": "build/pgo"}} if profiled else {}

setup(
    cmdclass={"build_ext": Copying},
    options=options,
    ext_modules=cythonize(
        extensions,
        compiler_directives=directives,
        emit_linenums=True,
        force=debug or coverage,
        show_all_warnings=False,
    )
)
