"""The results as pictures (SVG, the same bytes for the same results)."""

from __future__ import annotations

from pathlib import Path
from typing import Any

RATIOS, PEERS = "performance-ratios.svg", "performance-peers.svg"
COLOURS = {"limit": "#555555", "limit-plain": "#999999", "kernel": "#d08770", "kernel-gather": "#e8b9a5",
           "ustack": "#2b6cb0", "lwip": "#7fa650", "smoltcp": "#b48ead",
           "gvisor": "#c9a227", "pytcp": "#88c0d0"}


def draw(results: dict[str, Any], folder: Path) -> None:
    import matplotlib

    matplotlib.use("svg")
    matplotlib.rcParams["svg.hashsalt"] = "ustack"
    matplotlib.rcParams["svg.fonttype"] = "none"
    matplotlib.rcParams["font.size"] = 9
    folder.mkdir(parents=True, exist_ok=True)
    _ratios(results["rows"], folder / RATIOS)
    _peers(results, folder / PEERS)


def _save(figure: Any, path: Path) -> None:
    import matplotlib.pyplot as plt

    figure.savefig(path, bbox_inches="tight", metadata={"Date": None})
    plt.close(figure)


def _ratios(rows: dict[str, Any], path: Path) -> None:
    """ustack against the limit and the kernel, rows where less is better turned round: beyond the mark is what must hold."""
    import matplotlib.pyplot as plt

    shown = [(name, row) for name, row in rows.items() if row["must"] and row["ratios"]]
    figure, axes = plt.subplots(figsize=(8, 0.45 * len(shown) + 1))
    for i, (_, row) in enumerate(shown):
        for offset, peer in ((-0.2, "limit"), (0.2, "kernel")):
            if peer not in row["ratios"]:
                continue
            turned = row["better"] == "less"
            value, must = row["ratios"][peer]["median"], row["must"].get(peer)
            axes.barh(i + offset, 1 / value if turned else value, 0.36, color=COLOURS[peer], label=f"to the {peer}" if i == 0 else None)
            if must:
                mark = 1 / must if turned else must
                axes.plot([mark, mark], [i + offset - 0.18, i + offset + 0.18], color="black", linewidth=2)
    axes.set_yticks(range(len(shown)), [row["title"] for _, row in shown])
    axes.invert_yaxis()
    axes.axvline(1, color="#bbbbbb", linewidth=0.8, zorder=0)
    axes.set_xlabel("ustack / the other (round trips: the other / ustack); the mark: what must hold")
    axes.legend(loc="lower right", frameon=False)
    axes.spines[["top", "right"]].set_visible(False)
    _save(figure, path)


def _peers(results: dict[str, Any], path: Path) -> None:
    """Every row, every peer: median, with lowest and highest."""
    import matplotlib.pyplot as plt
    from matplotlib.ticker import EngFormatter

    rows = [row for row in results["rows"].values() if row["figures"]]
    across = 3
    figure, grid = plt.subplots((len(rows) + across - 1) // across, across, figsize=(12, 2.3 * ((len(rows) + across - 1) // across)), squeeze=False)
    for axes in grid.flat:
        axes.set_visible(False)
    for axes, row in zip(grid.flat, rows, strict=False):
        axes.set_visible(True)
        names = [n for n in COLOURS if n in row["figures"]]
        for i, name in enumerate(names):
            f = row["figures"][name]
            axes.barh(i, f["median"], color=COLOURS[name])
            axes.plot([f["lowest"], f["highest"]], [i, i], color="black", linewidth=1)
        axes.set_yticks(range(len(names)), [results["peers"].get(n, {}).get("title", n) for n in names], fontsize=7)
        axes.invert_yaxis()
        values = [row["figures"][n]["median"] for n in names]
        if min(values) > 0 and max(values) > 30 * min(values):
            axes.set_xscale("log")
        else:
            axes.xaxis.set_major_formatter(EngFormatter(sep=""))
            axes.locator_params(axis="x", nbins=6)
        axes.set_title(f"{row['title']}\n{row['unit']}, {row['better']} is better", fontsize=8)
        axes.tick_params(axis="x", labelsize=7)
        axes.spines[["top", "right"]].set_visible(False)
    figure.tight_layout()
    _save(figure, path)
