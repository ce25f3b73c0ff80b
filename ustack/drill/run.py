"""From a file to an outcome: parse, check, make a stack, run.

`run_file` never raises for anything a script can contain; what it returns says pass, fail, syntax or
skipped, and why.
"""

from __future__ import annotations

import traceback
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from ustack.drill import extensions, nodes
from ustack.drill.interp import Interpreter
from ustack.drill.nodes import Script, Syscall, Value
from ustack.drill.options import Options, UnsupportedError, merge
from ustack.drill.packets import icmp_numbers
from ustack.drill.parse import ScriptSyntaxError, parse_file
from ustack.drill.port import StackFactory, make_stack
from ustack.drill.report import Outcome, PcapFile, Result, failed
from ustack.drill.state import Failure
from ustack.drill.symbols import ERRNO, SYMBOLS
from ustack.drill.syscalls import NOT_BUILT, Syscalls
from ustack.lab.errors import MachineCannot


def _names(value: Value) -> Iterator[nodes.Name]:
    match value:
        case nodes.Name():
            yield value
        case nodes.Or():
            for part in value.parts:
                yield from _names(part)
        case nodes.Array():
            for item in value.items:
                yield from _names(item)
        case nodes.CallValue():
            for arg in value.args:
                yield from _names(arg)
        case nodes.Struct():
            for one in value.members:
                yield from _names(one.value)
                if one.arg is not None:
                    yield from _names(one.arg)


def _check_call(script: Script, call: Syscall) -> None:
    for value in (*call.args, call.result):
        for name in _names(value):
            if name.name not in SYMBOLS:
                raise ScriptSyntaxError(script.path, name.pos, f"unknown symbol {name.name}")
    if call.errno is not None and call.errno not in ERRNO:
        raise ScriptSyntaxError(script.path, call.pos, f"unknown errno {call.errno}")
    if call.name in NOT_BUILT:
        raise UnsupportedError(f"{call.pos}: the system call {call.name}() is not built")
    if not Syscalls.known(call.name) or (call.name in extensions.NAMES and not script.extended):
        raise ScriptSyntaxError(script.path, call.pos, f"unknown system call {call.name}()")


def check_script(script: Script) -> None:
    """Everything that can be known before the run: no name is left to be found out in the middle."""
    late: UnsupportedError | None = None
    for event in script.events:
        try:
            if isinstance(event.action, Syscall):
                _check_call(script, event.action)
            elif isinstance(event.action, nodes.IcmpPacket):
                icmp_numbers(event.action)
        except UnsupportedError as error:
            late = late or error  # a mistake further down is worth more than a skip
    if late is not None:
        raise late


def _origin(error: Exception) -> str:
    last = traceback.extract_tb(error.__traceback__)[-1]
    return f"{last.filename.rsplit('/', 1)[-1]}:{last.lineno} in {last.name}"


def run_script(script: Script, base: Options | None = None, command_line: Mapping[str, Any] | None = None,
               stack_factory: StackFactory = make_stack, pcap: PcapFile | None = None,
               watch: Callable[[Interpreter], None] | None = None) -> Outcome:
    """Run a parsed script on a stack of its own. MachineCannot in real time, where the machine lacks what that needs."""
    interpreter: Interpreter | None = None
    try:
        options = merge(script, base or Options(), command_line or {})
        check_script(script)
        interpreter = Interpreter(script, options, stack_factory(options))
        if pcap is not None:
            interpreter.port.log = lambda at, raw, inbound: pcap.write(at, raw)
        if watch is not None:
            watch(interpreter)
        interpreter.run()
        outcome = Outcome(script.path, Result.PASS)
    except ScriptSyntaxError as error:
        outcome = Outcome(script.path, Result.SYNTAX, error.message, error.pos)
    except UnsupportedError as error:
        outcome = Outcome(script.path, Result.SKIPPED, str(error))
    except Failure as failure:
        outcome = failed(script, failure)
    except MachineCannot:
        raise
    except Exception as error:  # a defect, of the stack or of this tool: it must not end the other runs
        told = f"internal error: {type(error).__name__}: {error} ({_origin(error)})"
        outcome = Outcome(script.path, Result.FAIL, told)
    if interpreter is not None:
        interpreter.port.stack.stop()
        outcome.ladder, outcome.warnings = interpreter.rows, interpreter.warnings
        outcome.printed = interpreter.printed
    return outcome


def run_file(path: str, base: Options | None = None, command_line: Mapping[str, Any] | None = None,
             defines: Mapping[str, str] | None = None, stack_factory: StackFactory = make_stack,
             pcap: PcapFile | None = None, watch: Callable[[Interpreter], None] | None = None) -> Outcome:
    """Parse and run one file."""
    try:
        script = parse_file(path, defines)
    except ScriptSyntaxError as error:
        return Outcome(path, Result.SYNTAX, error.message, error.pos)
    except OSError as error:
        return Outcome(path, Result.SYNTAX, f"cannot be read: {error.strerror}")
    return run_script(script, base, command_line, stack_factory, pcap, watch)
