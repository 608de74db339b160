"""The page shows the report by itself: nothing is loaded, nothing runs, everything is escaped."""

import math
import re
from html.parser import HTMLParser

import pytest

from optimum_slim.report.html import part_segments, write_html
from optimum_slim.report.plots import EDGES, quality_plots, size_plot
from tests.report.conftest import BUDGET

ALONE = {"meta", "wbr", "rect", "line", "circle", "path"}  # tags that are not closed by another


class Reader(HTMLParser):
    """Collects tags with their attributes and the text, and checks that tags are closed in order."""

    def __init__(self, page):
        super().__init__()
        self.tags, self.text, self.open = [], [], []
        self.feed(page)
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag not in ALONE:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if "style" not in self.open:
            self.text.append(data)

    @property
    def words(self):
        return " ".join(" ".join(self.text).split())


@pytest.fixture
def page(tmp_path):
    def write(report):
        write_html(report, tmp_path)
        return (tmp_path / "slim_report.html").read_text(encoding="utf-8")

    return write


def test_the_page_loads_nothing_and_runs_nothing(report, page):
    text = page(report)
    tags = Reader(text).tags
    assert not re.search(r"https?:|url\(|@import", text)
    assert {tag for tag, _ in tags} & {"script", "link", "img", "iframe", "object", "embed", "a"} == set()
    assert all(not key.startswith(("on", "src", "href")) for _, attributes in tags for key in attributes)


def test_the_headlines_tell_size_speed_and_loss(report, page):
    words = Reader(page(report)).words
    ratio = report.original["file_bytes"] / report.final["file_bytes"]
    assert f"{ratio:.2f}x smaller" in words
    assert "3.27x as fast as fp32 3.01 to 3.52; 1.43x (1.29 to 1.57) over Optimum's int8" in words
    assert "2.5 points of accuracy lost 0.8875 before, 0.8625 after" in words


def test_every_layer_part_step_and_point_of_the_grid_is_shown(report, page):
    words = Reader(page(report)).words
    for part in report.final["parts"]:
        assert part["part"] in words
    for row in report.final["layers"]:
        assert f"{row['layer']} {row['heads']} {row['ffn']} " in words
    assert "1. prune.ffn {ratio: 0.27}" in words
    assert "8 texts of 64 tokens, 1 thread" in words


def test_a_budget_and_what_answers_depend_on_are_shown(report, page):
    assert "Budget" not in Reader(page(report)).words
    report.budget = BUDGET
    words = Reader(page(report)).words
    assert "speed over fp32, at least 3.25x: 3.27x (3.01 to 3.52)" in words
    assert "classifier.weight 12 %" in words
    assert "An answer depends on what else is in its batch, by up to 0.42 % of the largest output." in words


def test_text_of_the_report_is_escaped(report, page):
    evil = "<script>alert('x')</script>\"><b onload=x>&amp;"
    report.model["name"] = report.recipe["model"] = evil
    report.steps[0]["technique"] = report.steps[0]["settings"]["keep"] = evil
    report.environment["cpu"] = report.recipe["data"]["source"] = evil
    report.final["parts"][0]["part"] = report.final["layers"][0]["stored"] = evil
    for row in (report.original, report.baseline_int8, report.final):
        row["quality"] = {evil: 0.5}
    text = page(report)
    assert "<script" not in text
    assert "<b onload" not in text
    assert evil in Reader(text).words


def test_a_report_without_parts_layers_and_quality_has_no_such_sections(report, page):
    del report.final["parts"], report.final["layers"]
    for row in (report.original, report.baseline_int8, report.final):
        row["quality"] = {}
    report.steps = []
    words = Reader(page(report)).words
    assert "Layers" not in words
    assert "MB are" not in words
    assert "Quality was not measured" in words


def test_the_parts_of_the_bar_add_up_to_the_whole_file(report):
    segments = part_segments(report)
    assert sum(segment["share"] for segment in segments) == pytest.approx(100)
    assert segments == sorted(segments, key=lambda segment: -segment["bytes"])


def test_the_longest_bar_is_the_largest_file_and_steps_are_called_predicted(report):
    marks = size_plot(report).marks
    assert marks[0].at == 100
    assert [mark.told.endswith("predicted") for mark in marks] == [False, True, False, False]
    assert marks[2].at == pytest.approx(100 * report.final["file_bytes"] / report.original["file_bytes"], abs=0.01)


def test_better_and_worse_stand_at_the_ends_of_the_scale(report):
    (plot,) = quality_plots(report)
    assert plot.ends == ("0.8625", "0.8875")
    assert [mark.at for mark in plot.marks[:3:2]] == [EDGES[1], EDGES[0]]


def test_a_ruined_baseline_does_not_stretch_the_scale(report, page):
    report.task = "text-generation"
    report.steps[0]["quality_torch"] = {"perplexity": 40.0}
    for row, value in ((report.original, 20.0), (report.final, 21.0), (report.baseline_int8, math.inf)):
        row["quality"] = {"perplexity": value}
    (plot,) = quality_plots(report)
    assert plot.ends == ("20", "40")
    assert (plot.marks[-1].at, plot.marks[-1].told) == (EDGES[1], "infinite (off the scale)")
    assert "5 % higher perplexity" in Reader(page(report)).words
