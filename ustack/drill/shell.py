"""A small shell: the subset of sh that scripts use, with every command carried out on the stack.

Understood: words with quotes and backslashes, `$((arithmetic))`, `$NAME`, comments, line
continuation, `;`, newline, `&&`, `||`, pipes, `> >> < 2> 2>&1`, assignments.  Anything else (loops,
command substitution, background jobs) and any unknown command is UnsupportedError: the script is
skipped, because what it asks for cannot be known to have happened.
"""

from __future__ import annotations

import ast
import operator
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Protocol

from ustack.drill.options import UnsupportedError

_OPERATORS = ("&&", "||", ">>", "2>&1", "1>&2", ">&2", "2>>", "2>", "1>", ";;", ";", "|", "&", ">", "<",
              "\n", "(",
              ")", "{ ", "}")
_KEYWORDS = {"if", "then", "else", "elif", "fi", "for", "while", "until", "do", "done", "case", "esac",
             "function",
             "!", "[["}
_BINARY: dict[type[ast.operator], Callable[[int, int], int]] = {
    ast.Add: operator.add, ast.Sub: operator.sub, ast.Mult: operator.mul, ast.LShift: operator.lshift,
    ast.RShift: operator.rshift, ast.BitAnd: operator.and_, ast.BitOr: operator.or_, ast.BitXor: operator.xor,
}


@dataclass(slots=True)
class Result:
    """Exit status and both outputs of one command."""

    status: int = 0
    out: str = ""
    err: str = ""


@dataclass(slots=True)
class Simple:
    """One simple command: words before expansion, and its redirections as (operator, target)."""

    words: list[str] = field(default_factory=list)
    redirects: list[tuple[str, str]] = field(default_factory=list)


@dataclass(slots=True)
class Pipeline:
    """`glue` joins it to the one before: ";", "&&" or "||"."""

    glue: str
    commands: list[Simple]


class CommandTable(Protocol):
    """What carries commands out: see commands.py."""

    def find(self, name: str) -> Callable[[list[str], str], Result] | None: ...
    def read_file(self, path: str) -> str: ...
    def write_file(self, path: str, text: str) -> Result: ...


# --- reading -------------------------------------------------------------------------------------------


def _skip_nested(text: str, at: int, opening: str, closing: str) -> int:
    depth = 0
    while at < len(text):
        if text.startswith(opening, at):
            depth += 1
            at += len(opening)
        elif text.startswith(closing, at):
            depth -= 1
            at += len(closing)
            if depth == 0:
                return at
        else:
            at += 1
    raise UnsupportedError(f"unbalanced {opening} in the command {text.strip()!r}")


def _word_end(text: str, at: int) -> int:
    while at < len(text):
        char = text[at]
        if char == "\\":
            at += 2
        elif char == "'":
            at = text.find("'", at + 1) + 1
            if not at:
                raise UnsupportedError(f"unbalanced quote in the command {text.strip()!r}")
        elif char == '"':
            at += 1
            while at < len(text) and text[at] != '"':
                at += 2 if text[at] == "\\" else 1
            if at >= len(text):
                raise UnsupportedError(f"unbalanced quote in the command {text.strip()!r}")
            at += 1
        elif text.startswith("$((", at):
            at = _skip_nested(text, at + 1, "(", ")")
        elif text.startswith("$(", at):
            raise UnsupportedError(f"command substitution: {text.strip()!r}")
        elif char in " \t\n;|&<>()":
            break
        else:
            at += 1
    return at


def _tokens(text: str) -> Iterator[tuple[str, str]]:
    """("op", operator) and ("word", raw word)."""
    text = text.replace("\\\n", " ")
    if text.endswith("\\"):
        text = text[:-1]
    at = 0
    while at < len(text):
        if text[at] in " \t":
            at += 1
            continue
        if text[at] == "#":
            end = text.find("\n", at)
            at = len(text) if end < 0 else end
            continue
        found = next((o for o in _OPERATORS if text.startswith(o, at)), None)
        if found is not None:
            at += len(found)
            yield "op", found.strip(" ")
            continue
        end = _word_end(text, at)
        yield "word", text[at:end]
        at = end


def parse(text: str) -> list[Pipeline]:
    """The whole text; UnsupportedError for what is not understood."""
    pipelines: list[Pipeline] = []
    glue, current = ";", Pipeline(";", [Simple()])
    pending: str | None = None

    def close(next_glue: str) -> None:
        nonlocal glue, current
        if current.commands != [Simple()]:
            if any(not c.words for c in current.commands):
                raise UnsupportedError(f"an empty command in {text.strip()!r}")
            pipelines.append(Pipeline(glue, current.commands))
            glue = next_glue
        elif next_glue != ";":
            raise UnsupportedError(f"nothing before {next_glue} in {text.strip()!r}")
        current = Pipeline(";", [Simple()])

    for kind, token in _tokens(text):
        if pending is not None:
            if kind != "word":
                raise UnsupportedError(f"no file after {pending} in {text.strip()!r}")
            current.commands[-1].redirects.append((pending, token))
            pending = None
        elif kind == "word":
            if not current.commands[-1].words and token in _KEYWORDS:
                raise UnsupportedError(f"shell keyword {token!r}")
            current.commands[-1].words.append(token)
        elif token in (">", ">>", "<", "2>", "2>>", "1>"):
            pending = token
        elif token in ("2>&1", "1>&2", ">&2"):
            current.commands[-1].redirects.append((token, ""))
        elif token == "|":
            current.commands.append(Simple())
        elif token in (";", "\n", "&&", "||"):
            close(";" if token == "\n" else token)
        else:
            raise UnsupportedError(f"shell syntax {token!r} in {text.strip()!r}")
    if pending is not None:
        raise UnsupportedError(f"no file after {pending} in {text.strip()!r}")
    close(";")
    return pipelines


# --- expanding -----------------------------------------------------------------------------------------


def arithmetic(text: str) -> int:
    """`$((...))`: integers and the usual operators."""
    def value(node: ast.expr) -> int:
        match node:
            case ast.Constant(value=int() as number):
                return number
            case ast.UnaryOp(op=ast.USub(), operand=inner):
                return -value(inner)
            case ast.BinOp(left=left, op=ast.Div() | ast.FloorDiv(), right=right):
                return int(value(left) / value(right))
            case ast.BinOp(left=left, op=ast.Mod(), right=right):
                a, b = value(left), value(right)
                return a - b * int(a / b)
            case ast.BinOp(left=left, op=op, right=right) if type(op) in _BINARY:
                return _BINARY[type(op)](value(left), value(right))
        raise UnsupportedError(f"arithmetic $(({text}))")

    try:
        return value(ast.parse(text.strip(), mode="eval").body)
    except (SyntaxError, ZeroDivisionError):
        raise UnsupportedError(f"arithmetic $(({text}))") from None


_PIECE = re.compile(
    r"""'(?P<single>[^']*)'|"(?P<double>(?:[^"\\]|\\.)*)"|\\(?P<escaped>.)|(?P<plain>[^'"\\]+)""", re.S)
_DOLLAR = re.compile(
    r"\$\(\((?P<sum>.*?)\)\)|\$\{(?P<braced>[A-Za-z_]\w*)\}|\$(?P<name>[A-Za-z_]\w*|\$)|\$(?P<bad>.)", re.S)


def expand(word: str, variables: dict[str, str]) -> str:
    """Quotes off, variables and arithmetic in.  Unset variables are empty, as in sh."""
    def dollar(match: re.Match[str]) -> str:
        if match["sum"] is not None:
            return str(arithmetic(_DOLLAR.sub(dollar, match["sum"])))
        if match["bad"] is not None:
            raise UnsupportedError(f"the expansion ${match['bad']}")
        return variables.get(match["braced"] or match["name"], "")

    out = ""
    for piece in _PIECE.finditer(_protect_arithmetic(word)):
        if piece["single"] is not None:
            out += piece["single"]
        elif piece["double"] is not None:
            out += re.sub(r'\\([$`"\\])', r"\1", _DOLLAR.sub(dollar, piece["double"]))
        elif piece["escaped"] is not None:
            out += piece["escaped"]
        else:
            out += _DOLLAR.sub(dollar, piece["plain"])
    return out


def _protect_arithmetic(word: str) -> str:
    return re.sub(r"\$\(\((.*?)\)\)", lambda m: "$((" + m[1].replace('"', "").replace("'", "") + "))", word,
                  flags=re.S)


# --- running -------------------------------------------------------------------------------------------


class Shell:
    """Runs command texts against a table of commands."""

    def __init__(self, table: CommandTable) -> None:
        self.table = table
        self.variables = {"PPID": "4242", "$": "4243", "HOME": "/root"}

    def check(self, text: str) -> None:
        """Raise UnsupportedError now rather than in the middle of a script."""
        for pipeline in parse(text):
            for command in pipeline.commands:
                name = self._name(command)
                if name is not None and self.table.find(name) is None:
                    raise UnsupportedError(f"unknown command: {' '.join(command.words)}")

    def _name(self, command: Simple) -> str | None:
        for word in command.words:
            if not re.match(r"[A-Za-z_]\w*=", word):
                return expand(word, self.variables)
        return None

    def run(self, text: str) -> Result:
        """All of it; the status is the last command's, as with `sh -c`."""
        total = Result()
        for pipeline in parse(text):
            if (pipeline.glue == "&&" and total.status) or (pipeline.glue == "||" and not total.status):
                continue
            result = self._pipeline(pipeline)
            total = Result(result.status, total.out + result.out, total.err + result.err)
        return total

    def _pipeline(self, pipeline: Pipeline) -> Result:
        text, errors, status = "", "", 0
        for command in pipeline.commands:
            result = self._simple(command, text)
            text, status = result.out, result.status
            errors += result.err
        return Result(status, text, errors)

    def _simple(self, command: Simple, stdin: str) -> Result:
        words = list(command.words)
        while words and (match := re.match(r"([A-Za-z_]\w*)=(.*)", words[0], re.S)):
            self.variables[match[1]] = expand(match[2], self.variables)
            words.pop(0)
        if not words:
            return Result()
        args = [expand(word, self.variables) for word in words]
        run = self.table.find(args[0])
        if run is None:
            raise UnsupportedError(f"unknown command: {' '.join(args)}")
        for op, target in command.redirects:
            if op == "<":
                stdin = self.table.read_file(expand(target, self.variables))
        return self._redirect(run(args[1:], stdin), command)

    def _redirect(self, result: Result, command: Simple) -> Result:
        for op, target in command.redirects:
            path = expand(target, self.variables)
            if op == "2>&1":
                result = Result(result.status, result.out + result.err, "")
            elif op in ("1>&2", ">&2"):
                result = Result(result.status, "", result.err + result.out)
            elif op in ("2>", "2>>"):
                written = self.table.write_file(path, result.err)
                result = Result(result.status or written.status, result.out, written.err)
            elif op in (">", ">>", "1>"):
                written = self.table.write_file(path, result.out)
                result = Result(result.status or written.status, "", result.err + written.err)
        return result
