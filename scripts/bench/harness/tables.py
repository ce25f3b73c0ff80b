"""The results as text."""

from __future__ import annotations

from typing import Any


def figure(value: float) -> str:
    """Three or four digits that say something: 1,234,000, 12.3, 0.85."""
    if value >= 10_000_000:
        return f"{value:,.0f}"
    if value >= 10_000:
        return f"{round(value, -3):,.0f}" if value >= 100_000 else f"{round(value, -2):,.0f}"
    if value >= 100:
        return f"{value:,.0f}"
    return f"{value:.1f}" if value >= 10 else f"{value:.2f}"


def spread(f: dict[str, Any]) -> str:
    return f"{figure(f['lowest'])}..{figure(f['highest'])}"


def met(row: dict[str, Any], to: str) -> bool | None:
    """Whether what must hold to this peer holds; None: nothing must, or it was not measured."""
    if to not in row["must"] or to not in row["ratios"]:
        return None
    got: float = row["ratios"][to]["median"]
    must: float = row["must"][to]
    return got >= must if row["better"] == "more" else got <= must


def verdicts(rows: dict[str, Any]) -> list[tuple[str, bool]]:
    """All that must hold and was measured: what, and whether it does."""
    out = []
    for name, row in rows.items():
        for to in ("limit", "kernel"):
            if (holds := met(row, to)) is not None:
                sign = ">=" if row["better"] == "more" else "<="
                out.append((f"{name} to the {to} ({row['ratios'][to]['median']:.2f}, must {sign} {row['must'][to]})", holds))
        if row["most"] is not None and "ustack" in row["figures"]:
            value = row["figures"]["ustack"]["median"]
            out.append((f"{name} ({figure(value)} {row['unit']}, must <= {figure(row['most'])})", value <= row["most"]))
    return out


def text(rows: dict[str, Any]) -> str:
    """For a terminal: a block per row, a line per peer."""
    out: list[str] = []
    for name, row in rows.items():
        if not row["figures"]:
            continue
        out.append(f"{name}: {row['title']} ({row['unit']}, {'more' if row['better'] == 'more' else 'less'} is better)")
        for peer, f in row["figures"].items():
            more = "".join(f"  {label} {figure(f[key])}" for key, label in (("cpu_ns", "CPU ns"), ("p50_us", "p50"), ("p99_us", "p99")) if f.get(key))
            line = f"  {peer:<12} {figure(f['median']):>12}  [{spread(f)}] best {figure(f['best'])}{more}"
            if peer in row["ratios"]:
                r = row["ratios"][peer]
                line += f"   ustack/{peer} {r['median']:.2f} (best {r['best']:.2f})"
                if peer in row["must"]:
                    sign = ">=" if row["better"] == "more" else "<="
                    line += f", must {sign} {row['must'][peer]}: {'holds' if met(row, peer) else 'MISSED'}"
            if peer == "ustack" and row["most"] is not None:
                line += f"   must <= {figure(row['most'])}: {'holds' if f['median'] <= row['most'] else 'MISSED'}"
            out.append(line + ("   (noisy)" if f["noisy"] else ""))
    said = verdicts(rows)
    if said:
        missed = [f"  {what}" for what, holds in said if not holds]
        out.append(f"{len(said) - len(missed)} of {len(said)} that must hold do" + (", these do not:" if missed else "."))
        out += missed
    return "\n".join(out)
