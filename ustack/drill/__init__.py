"""packetdrill scripts, run in process against the stack on virtual time.

`run_file(path)` gives an `Outcome`; `ustack drill` is the same from the command line.  Where things are:

  nodes      the syntax tree            parse, source, grammar.lark   text to tree
  options    --name=value settings      symbols                       names to numbers
  codec      IPv4, TCP, ICMP bytes      packets                       script packets and live packets
  port       the stack as seen here     state                         flows and descriptors
  syscalls   (values, messages, sockopts, epoll)                      the system calls
  shell, commands                       `commands` on the stack       pyblock     %{ python }%
  interp     the event loop             run, report                   from a file to an outcome
"""

from ustack.drill.options import Options, UnsupportedError
from ustack.drill.parse import ScriptSyntaxError, parse_file, parse_text
from ustack.drill.report import Outcome, Result
from ustack.drill.run import run_file, run_script

__all__ = ["Options", "Outcome", "Result", "ScriptSyntaxError", "UnsupportedError", "parse_file",
           "parse_text",
           "run_file", "run_script"]
