"""docs/performance.md from the results and a template of hand-written explanations.

In the template, {{machine}}, {{built}}, {{must}}, {{peers}}, {{behind}}, {{growth}}, {{instructions}}, {{where}} stand for tables and lists of
figures, {{value ROW PEER KEY}} for one figure (KEY: median, best, cpu_ns, p99_us, ...), {{include FILE}} for a file beside the result.
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

from .tables import figure, met, spread

_PLACE = re.compile(r"\{\{([^}]+)\}\}")


def _grid(head: list[str], body: list[list[str]], right: int = 1) -> str:
    """A Markdown table; columns from `right` on are numbers."""
    rule = ["---"] * right + ["---:"] * (len(head) - right)
    return "\n".join("| " + " | ".join(cells) + " |" for cells in [head, rule, *body])


def machine(results: dict[str, Any]) -> str:
    m = results["machine"]
    taken = [row["taken"] for row in results["rows"].values()]

    def all_of(key: str) -> str:
        return " and ".join(sorted({str(t[key]) for t in taken}))
    quick = [name for name, row in results["rows"].items() if row["taken"]["quick"]]
    text = (f"Measured {all_of('date')} at commit {all_of('commit')}: {m['cores']} cores of {m['cpu']}, Linux {m['kernel']}, Python {m['python']}, "
            f"gcc {m['gcc']}; {all_of('rounds')} rounds of {all_of('seconds')} s samples.")
    if quick:
        text += f" Preliminary, from a quick run (200,000 half-open connections where a million is said): {', '.join(quick)}."
    return text


def built(results: dict[str, Any]) -> str:
    """How the ustack was built that was measured; rows can be from runs with different builds."""
    rows = results["rows"].items()
    plain = [name for name, row in rows if not row["taken"].get("profiled")]
    if not plain:
        return "The figures are of a profile-guided build."
    if len(plain) == len(rows):
        return "The figures kept here are of builds without a profile (plain -O2)."
    return f"The figures are of a profile-guided build, but for rows that were measured before, with plain -O2: {', '.join(plain)}."


def _ratio(row: dict[str, Any], to: str) -> list[str]:
    if to not in row["ratios"]:
        return ["", "", ""]
    must = row["must"].get(to)
    sign = "≥" if row["better"] == "more" else "≤"
    return [f"{row['ratios'][to]['median']:.2f}", f"{sign} {must}" if must else "", {True: "yes", False: "**no**", None: ""}[met(row, to)]]


def must(results: dict[str, Any]) -> str:
    """Limit, kernel, ustack, and the ratios with what must hold."""
    body = []
    for row in results["rows"].values():
        f = row["figures"]
        if "ustack" not in f or not ({"limit", "kernel"} & set(f) or row["most"] is not None):
            continue
        cells = [row["title"] + (f", {row['unit']}" if row["unit"] else "")]
        cells += [figure(f[name]["median"]) if name in f else "" for name in ("limit", "kernel", "ustack")]
        cells += [spread(f["ustack"]) + (" (noisy)" if f["ustack"]["noisy"] else "")]
        if row["most"] is not None:
            holds = f["ustack"]["median"] <= row["most"]
            body.append([*cells, "", "", "", *(_ratio(row, "kernel")[:1]), f"≤ {figure(row['most'])} itself", "yes" if holds else "**no**"])
            continue
        body.append([*cells, *_ratio(row, "limit"), *_ratio(row, "kernel")])
        if "kernel-gather" in f:
            body.append([f"{row['title']}: a kernel server with one send per batch, for information", "", figure(f["kernel-gather"]["median"]),
                         cells[3], "", "", "", "", *_ratio(row, "kernel-gather")[:1], "", ""])
    head = ["work", "limit", "kernel", "ustack", "spread", "to the limit", "must", "holds", "to the kernel", "must", "holds"]
    return _grid(head, body)


def peers(results: dict[str, Any]) -> str:
    """Every peer's median."""
    names = [n for n in results["peers"] if any(n in row["figures"] for row in results["rows"].values())]
    head = ["work", *(" ".join(x for x in (results["peers"][n]["title"], results["peers"][n]["version"]) if x) for n in names)]
    body = [[f"{row['title']}, {row['unit']}", *(figure(row["figures"][n]["median"]) if n in row["figures"] else "" for n in names)]
            for row in results["rows"].values()]
    return _grid(head, body)


def behind(results: dict[str, Any], names: tuple[str, ...] = ("lwip", "smoltcp", "gvisor", "pytcp")) -> str:
    """Rows where another userspace stack is ahead of ustack."""
    out = []
    for row in results["rows"].values():
        for name in names:
            if name in row["ratios"]:
                r = row["ratios"][name]["median"]
                if (r < 1) if row["better"] == "more" else (r > 1):
                    best = row["ratios"][name]["best"]
                    out.append(f"- {row['title']}: {results['peers'][name]['title']}; ustack/{results['peers'][name]['title']} {r:.2f} side by side "
                               f"(of the best samples {best:.2f}; {'more' if row['better'] == 'more' else 'less'} is better).")
    return "\n".join(out) or "None."


def instructions(kept: dict[str, Any], what: dict[str, str]) -> str:
    body = [[what.get(name, name), f"{n:,.0f}"] for name, n in kept["instructions"].items()]
    return _grid([f"operation (gcc {kept['compiler']})", "instructions"], body)


def where(kept: dict[str, Any], what: dict[str, str]) -> str:
    """The files of the core that take most of each operation's instructions."""
    lines = []
    for name, files in kept.get("where", {}).items():
        total = kept["instructions"][name]
        shares = ", ".join(f"{file} {n:,.0f}" + (f" ({n / total:.0%})" if n >= 0.05 * total else "") for file, n in files.items())
        lines.append(f"- {what.get(name, name)}: {shares}.")
    return "\n".join(lines)


def growth(results: dict[str, Any]) -> str:
    f = results["rows"].get("syn-many", {}).get("figures", {}).get("ustack", {})
    if "growth" not in f:
        return "Not measured."
    return (f"CPU time per SYN in a burst on the TUN device: {figure(f['few_ns'])} ns at a thousand half-open connections, "
            f"{figure(f['many_ns'])} ns at a million: x{f['growth']:.2f} (must hold: at most 1.3).")


def render(template: str, results: dict[str, Any], kept: dict[str, Any], what: dict[str, str], beside: Path) -> str:
    def place(match: re.Match[str]) -> str:
        words = match[1].split()
        if words[0] == "value":
            row, peer, key = words[1:]
            f = results["rows"].get(row, {}).get("figures", {}).get(peer, {})
            return figure(f[key]) if key in f else "(not measured)"
        if words[0] == "include":
            path = beside / words[1]
            return path.read_text().strip() if path.exists() else ""
        tables = {"machine": lambda: machine(results), "built": lambda: built(results), "must": lambda: must(results),
                  "peers": lambda: peers(results), "behind": lambda: behind(results), "growth": lambda: growth(results),
                  "instructions": lambda: instructions(kept, what), "where": lambda: where(kept, what)}
        return tables[words[0]]()
    return _PLACE.sub(place, template)


def load(path: Path) -> dict[str, Any]:
    loaded: dict[str, Any] = json.loads(path.read_text())
    return loaded
