"""Numbers of a report in words and units, and the templates that use them."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import jinja2
import yaml

from optimum_slim.report.report import Row


def template(name: str) -> jinja2.Template:
    """A template of this folder, with the words below as filters. What goes into HTML is escaped."""
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent),
        autoescape=jinja2.select_autoescape(["html.jinja"]),
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    words = (size, count, milliseconds, number, percent, times, faster, point_name, settings, yaml_text, code)
    environment.filters |= {word.__name__: word for word in words}
    return environment.get_template(name)


def size(value: float) -> str:
    """Bytes in decimal units: `15.9 MB`."""
    for unit, limit in (("kB", 1e6), ("MB", 1e9)):
        if value < limit:
            return f"{value / limit * 1000:.1f} {unit}"
    return f"{value / 1e9:.2f} GB"


def count(value: float) -> str:
    """Parameters: `15.6 million`."""
    return f"{value / 1e6:.1f} million" if value >= 1e6 else f"{value:,.0f}"


def milliseconds(value: float) -> str:
    return f"{value:.{2 if value < 10 else 1 if value < 100 else 0}f} ms"


def number(value: float) -> str:
    """A quality: `0.8825`, `24.13`."""
    if not math.isfinite(value):
        return "infinite" if value == math.inf else "not a number"
    return f"{value:.4g}" if abs(value) < 10_000 else f"{value:,.0f}"


def percent(share: float) -> str:
    """A share: `0.42 %`."""
    return f"{100 * share:.2g} %"


def times(value: float) -> str:
    """A ratio: `4.22x`."""
    return f"{value:.2f}x" if value < 10 else f"{value:.1f}x"


def faster(speedup: Row | None) -> str:
    """A speedup with the 95 % interval of its median: `4.22x (3.57 to 6.79)`."""
    return f"{times(speedup['median'])} ({speedup['low']:.2f} to {speedup['high']:.2f})" if speedup else ""


def smaller(before: float, after: float) -> str:
    return f"{times(before / after)} smaller" if after <= before else f"{times(after / before)} larger"


def point_name(row: Row) -> str:
    """What is timed at a point of the grid: `1 text of 128 tokens, 1 thread`."""
    texts = "1 text" if row["batch"] == 1 else f"{row['batch']} texts"
    threads = "1 thread" if row["threads"] == 1 else f"{row['threads']} threads"
    done = {"prefill": "prefill of ", "decode": "one more token after "}.get(row["phase"], "")
    return f"{done}{texts} of {row['tokens']} tokens, {threads}"


def settings(step: Row) -> str:
    """What a step was told, on one line as in a recipe, without what was left open."""
    told = {key: value for key, value in step["settings"].items() if value not in (None, [], {})}
    return yaml.safe_dump(told, default_flow_style=True, sort_keys=False, allow_unicode=True, width=math.inf).strip()


def yaml_text(value: Any) -> str:
    return yaml.safe_dump(value, sort_keys=False, allow_unicode=True)


def code(text: Any) -> str:
    """Any text as Markdown code that stays on its line and in its table cell."""
    plain = " ".join(str(text).replace("`", "'").replace("|", "/").split())
    return f"`{plain}`"
