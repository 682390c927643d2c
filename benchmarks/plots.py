"""What was measured, as pictures: `python plots.py FIGURES.json DIRECTORY` draws again what `--json` has kept."""

from __future__ import annotations

import importlib
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

ENGINES = {"sqlite": "SQLite", "postgresql": "PostgreSQL"}
OURS = {"normal": "#1f5fa8", "full": "#9dc3e6"}
COLOURS = ("#d1495b", "#edae49", "#3c8d5a", "#7b5ea7", "#00798c", "#8a5a44", "#e377c2", "#6b7280")
MARKERS = "osD^vPX*<>h"
MOST = 1.75
"""The ratio at which a bar ends that would be longer."""
STYLE = {
    "font.family": "sans-serif",
    "font.size": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.color": "#e5e7eb",
    "axes.axisbelow": True,
    "figure.facecolor": "white",
    "svg.fonttype": "none",  # text stays text
    "svg.hashsalt": "ruv_swarm_store",  # the same names in every run
}


def pyplot() -> Any:
    """The library that draws, without a screen. Raises `ImportError`."""
    library = importlib.import_module("matplotlib")
    library.use("agg")
    library.rcParams.update(STYLE)
    return importlib.import_module("matplotlib.pyplot")


def save(figure: Any, directory: Path, name: str) -> None:
    """As PNG and SVG, in which nothing tells when and by what they were drawn."""
    directory.mkdir(parents=True, exist_ok=True)
    figure.savefig(directory / f"{name}.png", dpi=96, metadata={"Software": None}, bbox_inches="tight")
    figure.savefig(directory / f"{name}.svg", metadata={"Date": None, "Creator": None}, bbox_inches="tight")
    pyplot().close(figure)


def ratios(measured: Sequence[dict[str, Any]], directory: Path) -> None:
    """Draws `benchmarks`: for each job a bar at each durability, with its quartiles, and the peers at that job as marks."""
    jobs = list(dict.fromkeys(info["job"] for info in measured))
    engines = [engine for engine in ENGINES if any(info["engine"] == engine for info in measured)]
    peers = sorted({peer["name"] for info in measured for peer in info["peers"]}, key=str.lower)
    looks = {name: (COLOURS[index % len(COLOURS)], MARKERS[index % len(MARKERS)]) for index, name in enumerate(peers)}
    height = 1.4 + 0.31 * len(jobs)
    figure, all_axes = pyplot().subplots(1, len(engines), figsize=(4.9 * len(engines) + 1.6, height), sharey=True, squeeze=False)
    shown: dict[str, Any] = {}
    for engine, axes in zip(engines, all_axes[0], strict=True):
        of_engine = [info for info in measured if info["engine"] == engine]
        for info in of_engine:
            alone = sum(info["job"] == other["job"] for other in of_engine) == 1
            place = jobs.index(info["job"]) + (0 if alone else -0.2 if info["durability"] == "normal" else 0.2)
            _bar(axes, info, place, 0.6 if alone else 0.38, shown)
            for peer in info["peers"]:
                colour, marker = looks[peer["name"]]
                low, high = peer["quartiles"]
                axes.plot([min(low, MOST), min(high, MOST)], [place, place], color=colour, linewidth=0.8, zorder=3)
                [shown[peer["name"]]] = axes.plot(
                    min(peer["ratio"], MOST), place, marker, color=colour, markersize=5.5, markeredgecolor="white", markeredgewidth=0.5,
                    linestyle="none", zorder=4,
                )  # fmt: skip
        shown["floor: the plain driver"] = axes.axvline(1, color="#111827", linewidth=1, zorder=2)
        axes.set_title(ENGINES[engine])
        axes.set_xlim(0, MOST)
        axes.set_xlabel("speed as a share of the floor's")
        axes.grid(visible=False, axis="y")
    all_axes[0][0].set_yticks(range(len(jobs)), jobs)
    all_axes[0][0].set_ylim(len(jobs) - 0.4, -0.6)
    figure.tight_layout(rect=(0, 0, 1, 1 - 0.75 / height))
    ours = [name for name in shown if name.startswith("ours")]
    names = [*sorted(ours, reverse=True), "floor: the plain driver", *peers]
    figure.legend([shown[name] for name in names], names, loc="upper center", ncols=min(len(names), 6), frameon=False)
    save(figure, directory, "benchmarks")


def _bar(axes: Any, info: dict[str, Any], place: float, height: float, shown: dict[str, Any]) -> None:
    ratio, (low, high) = info["ratio"], info["quartiles"]
    [bar] = axes.barh(place, min(ratio, MOST), height=height, color=OURS[info["durability"]], zorder=1)
    shown[f"ours, durability {info['durability']}"] = bar
    if ratio > MOST:
        axes.text(MOST - 0.02, place, f"{ratio:.1f} ", ha="right", va="center", color="white", fontsize=8, zorder=5)
    else:
        axes.plot([min(low, MOST), min(high, MOST)], [place, place], color="#111827", linewidth=1, zorder=2)


def growth(found: dict[str, Any], directory: Path) -> None:
    """Draws `growth`: a small picture for each path, ours and the floor, and one for the memory of a read of all events."""
    charts = [(path["path"], path["sizes"]) for path in found["paths"]]
    columns = 5
    lines = -(-(len(charts) + bool(found["memory"])) // columns)
    figure, grid = pyplot().subplots(lines, columns, figsize=(13, 2.15 * lines + 0.6), squeeze=False)
    places = [axes for line in grid for axes in line]
    for axes in places[len(charts) + bool(found["memory"]) :]:
        axes.set_visible(False)
    shown: list[Any] = []
    for axes, (name, sizes) in zip(places, charts, strict=False):
        rows = [size["rows"] for size in sizes]
        shown = [
            *axes.plot(rows, [size["ours"] for size in sizes], "o-", color=OURS["normal"], markersize=4),
            *axes.plot(rows, [size["floor"] for size in sizes], "s--", color="#6b7280", markersize=3),
        ]
        costs = [cost for size in sizes for cost in (size["ours"], size["floor"])]
        _label(axes, f"{name}, factor {sizes[-1]['factor']:.2f}", rows, min(costs) / 3, max(costs) * 3)
        axes.set_ylabel("µs", labelpad=1)
    if found["memory"]:
        axes = places[len(charts)]
        rows = [one["rows"] for one in found["memory"]]
        axes.plot(rows, [one["mb"] for one in found["memory"]], "o-", color=OURS["normal"], markersize=4)
        _label(axes, "memory of a read of all events", rows, 10, 1_000)
        axes.set_ylabel("MB", labelpad=1)
    figure.tight_layout(rect=(0, 0, 1, 1 - 0.35 / (2.15 * lines + 0.6)))
    if shown:
        figure.legend(shown, ["ours", "floor: the plain driver"], loc="upper center", ncols=2, frameon=False)
    save(figure, directory, "growth")


def _label(axes: Any, title: str, rows: Sequence[int], low: float, high: float) -> None:
    axes.set_title(title, fontsize=8.5)
    axes.set_xscale("log")
    axes.set_yscale("log")
    axes.set_ylim(low, high)
    axes.set_xlim(rows[0] / 1.5, rows[-1] * 1.5)
    axes.set_xticks(rows, [short(count) for count in rows])
    ticker = importlib.import_module("matplotlib.ticker")
    axes.xaxis.set_minor_locator(ticker.NullLocator())
    axes.yaxis.set_minor_locator(ticker.NullLocator())
    axes.yaxis.set_major_locator(ticker.LogLocator(subs=(1, 2, 5)))
    axes.yaxis.set_major_formatter(ticker.FuncFormatter(lambda value, _: f"{value:g}"))


def short(rows: int) -> str:
    """`10k`, `1M`."""
    return f"{rows // 1_000_000}M" if rows % 1_000_000 == 0 else f"{rows // 1_000}k" if rows % 1_000 == 0 else str(rows)


def main(figures: str, directory: str) -> None:
    found = json.loads(Path(figures).read_text(encoding="utf-8"))
    if "jobs" in found:
        ratios(found["jobs"], Path(directory))
    else:
        growth(found, Path(directory))


if __name__ == "__main__":
    main(*sys.argv[1:])
