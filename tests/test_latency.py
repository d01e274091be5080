"""efficiency.latency: its arithmetic, on made-up clocks and samples."""

from __future__ import annotations

import pytest
import torch

from scripts.efficiency.latency.clock import CLEAR, OTHER, PeakMemory, Stopwatch
from scripts.efficiency.latency.plot import COLOURS, stacked, summing
from scripts.efficiency.latency.report import number
from scripts.efficiency.latency.rounds import (
    Case,
    Comparison,
    Rounds,
    Row,
    paired_ratios,
    run_rounds,
    summarise,
)

CPU = torch.device("cpu")


class FakeClock:
    """Every mark is the next of the times given."""

    def __init__(self, *times: float) -> None:
        self.times = iter(times)
        self.synchronised = 0

    def mark(self) -> float:
        return next(self.times)

    def seconds(self, start: float, end: float) -> float:
        return end - start

    def synchronise(self) -> None:
        self.synchronised += 1


def test_stopwatch_gives_nested_spans_their_own_time_alone():
    clock = FakeClock(0, 1, 3, 7, 15, 31, 63, 127, 255)
    watch = Stopwatch(clock)
    with watch.running():  # other from 0
        watch.enter("tower")  # 1
        watch.enter("scoring")  # 3
        watch.leave("scoring")  # 7
        watch.leave("tower")  # 15
        watch.enter("scoring")  # 31
        watch.enter("scoring")  # 63: one that calls another
        watch.leave("scoring")  # 127
        watch.leave("scoring")  # 255
        clock.times = iter([500])
    assert watch.seconds() == {OTHER: 1 + 16 + 245, "tower": 2 + 8, "scoring": 4 + 224}
    assert sum(watch.seconds().values()) == 500
    assert clock.synchronised == 2  # at both ends, never within


def test_stopwatch_refuses_spans_that_do_not_nest():
    watch = Stopwatch(FakeClock(*range(9)))
    with pytest.raises(RuntimeError, match="'a' was left; open are \\['a', 'b'\\]"):
        with watch.running():
            watch.enter("a")
            watch.enter("b")
            watch.leave("a")
    with pytest.raises(RuntimeError, match="'c' was not left"):
        with watch.running():
            watch.enter("c")


def test_summaries_and_paired_ratios():
    found = summarise([4.0, 1.0, 3.0, 2.0, 5.0])
    assert (found.median, found.q1, found.q3, found.n) == (3, 2, 4, 5)
    assert summarise([7.0]).q1 == summarise([7.0]).q3 == 7
    assert summarise([]) is None
    base = [{"repetition": i, "time": 2.0 * (i + 1)} for i in range(3)]
    mine = [{"repetition": i, "time": 1.0 * (i + 1)} for i in (0, 2)] + [{"repetition": 9}]
    assert paired_ratios(mine, base, "time") == [0.5, 0.5]
    assert [number(x) for x in (0, 193.0, 0.0123, 1.234, 123.45, 1234.5)] == [
        "0", "193", "0.012", "1.23", "123.5", "1234",
    ]  # fmt: skip


def test_a_target_is_met_by_the_median():
    def row(label, *times):
        return Row(label, {}, [{"repetition": i, "time": t} for i, t in enumerate(times)])

    rounds = Rounds([row("base", 1.0, 1.0, 1.0), row("case", 0.9, 1.1, 0.95), row("none")])
    assert Comparison("case", "base", "time", 0.95).verdict(rounds) == "met"
    assert Comparison("case", "base", "time", 0.94).verdict(rounds) == "missed"
    assert Comparison("case", "base", "time").verdict(rounds) is None
    assert Comparison("none", "base", "time", 0.9).as_dict(rounds)["verdict"] is None


def test_rounds_interleave_the_cases_and_drop_the_warm_up():
    order = []

    def case(label, repetitions):
        def note(kind):
            return lambda: order.append(f"{kind}{label}") or {"value": len(order)}

        return Case(label, note("t"), repetitions, {}, note("m"))

    rounds = run_rounds([case("a", 2), case("b", 1)], 1, CPU, lambda _: None)
    assert order == ["ta", "tb", "ma", "mb", "ma", "ta", "tb", "ta"]
    assert [len(row.samples) for row in rounds.rows] == [2, 1]
    assert [len(row.memory) for row in rounds.rows] == [2, 1]
    assert rounds.row("a").samples[1] == {"repetition": 1, "value": 8}


@pytest.mark.parametrize(
    "error",
    [
        torch.cuda.OutOfMemoryError("CUDA out of memory"),
        MemoryError(),
        RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried ..."),
    ],
)
def test_out_of_memory_leaves_the_other_cases(error):
    def fail():
        raise error

    cases = [Case("big", fail, 2), Case("small", lambda: {"time": 1.0}, 2)]
    rounds = run_rounds(cases, 1, CPU, lambda _: None)
    assert [row.error for row in rounds.rows] == ["out of memory", None]
    assert [len(row.samples) for row in rounds.rows] == [0, 2]


def test_other_errors_are_not_swallowed():
    with pytest.raises(ZeroDivisionError):
        run_rounds([Case("a", lambda: 1 / 0, 1)], 0, CPU, lambda _: None)


@pytest.mark.skipif(not CLEAR.exists(), reason="Linux's /proc")
def test_peak_memory_of_the_process():
    peak = PeakMemory(CPU)
    peak.reset()
    if not peak.read():
        pytest.skip("this container forbids resetting the peak")
    torch.ones(50_000_000, dtype=torch.uint8)  # freed at once
    first = peak.read()
    assert first["extra_memory"] > 45_000_000
    peak.reset()
    assert peak.read()["extra_memory"] < 10_000_000


@pytest.mark.parametrize(
    ("values", "digits", "expected"),
    [
        ((0.924, 0.0, 0.035, 14.019, 0.006), 2, ["14.98", "0.92", "0.00", "0.03", "14.02", "0.01"]),
        ((0.4, 0.4, 0.4), 0, ["1", "1", "0", "0"]),
        ((0.3, 0.3), 1, ["0.6", "0.3", "0.3"]),
        ((1234.5, 0.5), 0, ["1235", "1235", "0"]),
        ((0.0, 0.0), 2, ["0.00", "0.00", "0.00"]),
    ],
)
def test_what_is_written_of_parts_adds_up_to_what_is_written_of_the_sum(values, digits, expected):
    found = summing(values, digits)
    assert found == expected
    total, *parts = (round(float(text) * 10**digits) for text in found)
    assert total == sum(parts)


def test_the_label_of_a_bar_is_the_bar():
    """And the parts' labels, one a colour, add up to it."""
    pytest.importorskip("matplotlib")
    from matplotlib.figure import Figure

    axes, table = Figure().subplots(1, 2)
    rows = {"unpruned": (0.9, 0.0, 0.03, 14.02, 0.1), "64": (0.86, 0.02, 0.005, 2.9, 0.1)}
    measured = {name: dict(zip(COLOURS, times, strict=True)) for name, times in rows.items()}
    stacked(axes, table, {name: {**parts, "kv_bytes": 3e8} for name, parts in measured.items()})
    texts = {}
    for text in table.texts:
        texts.setdefault(round(text.get_position()[1], 2), []).append(text.get_text())
    for place, times in enumerate(rows.values()):
        total, *parts = map(float, texts[place])
        assert total == pytest.approx(sum(parts))
        assert total == pytest.approx(sum(times), abs=0.0051)  # rounded
        ends = [
            bar.get_x() + bar.get_width()
            for bar in axes.patches
            if bar.get_y() < place < bar.get_y() + 0.7
        ]
        assert max(ends) == pytest.approx(sum(times))
    assert texts[-0.62] == [
        "sum", "vision\ntower", "scoring,\nselection", "projector", "LLM\nprefill", "other"
    ]  # fmt: skip
