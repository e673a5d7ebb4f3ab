"""The table: each figure beside its budget, as a multiple of the floor, and against the saved result."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from statistics import median, quantiles

from bench.figures import EVENT_FLOOR, SECTIONS, UNARY_FLOOR, Figure, Figures
from bench.modes import Mode
from bench.programs import Seen

FLOOR = "floor"


def table(found: Mapping[str, Figures], saved: Mapping[str, Figures]) -> str:
    """All figures. Behind each value: how many times the floor it is, and its ratio to the saved one."""
    modes = [column for column in found if column != FLOOR]
    lines = []
    for title, figures in SECTIONS.items():
        heads = "".join(f"{mode:>10} {'/floor':>7} {'/saved':>7}" for mode in modes)
        lines += ["", f"{title:<52}{FLOOR:>9}{heads}{'budget':>12}"]
        lines += [_line(figure, modes, found, saved) for figure in figures]
    return "\n".join(lines[1:])


def added(found: Mapping[str, Sequence[float]], modes: Sequence[Mode], *, streams: bool) -> str:
    """What each mode adds to the one that it goes over: medians of the rounds' differences, and their quartiles.

    Budgets are of a machine that has its own floor; as multiples of the floor they hold for any.
    """
    floors = found[FLOOR]
    of_what, budgeted_floor = ("an event", EVENT_FLOOR) if streams else ("a call", UNARY_FLOOR)
    lines = [
        f"CPU-µs of {of_what}: floor {median(floors):.4g}, bare {median(found['bare']):.4g}; {len(floors)} rounds",
        f"{'mode':<10}{'over':<9}{'added':>8}{'quartiles':>16}{'/floor':>8}{'quartiles':>16}{'budget/floor':>14}",
    ]
    for mode in modes:
        if mode.over:
            more = [value - base for value, base in zip(found[mode.name], found[mode.over], strict=True)]
            of_floor = [value / floor for value, floor in zip(more, floors, strict=True)]
            allowed = mode.event_budget if streams else mode.budget
            budget = f"{allowed / budgeted_floor:.2f}" if allowed else "-"
            lines.append(
                f"{mode.name:<10}{mode.over:<9}{median(more):>+8.4g}{_quartiles(more, '.4g'):>16}"
                f"{median(of_floor):>8.2f}{_quartiles(of_floor, '.2f'):>16}{budget:>14}"
            )
    return "\n".join(lines)


def instructions(found: Mapping[str, float], modes: Sequence[Mode]) -> str:
    """What each mode adds to the one that it goes over, in thousands, and as a multiple of the floor."""
    lines = [f"{'mode':<10}{'over':<9}{'added':>8}{'/floor':>8}"]
    for mode in modes:
        if mode.over:
            more = found[mode.name] - found[mode.over]
            lines.append(f"{mode.name:<10}{mode.over:<9}{more:>+8.0f}{more / found[FLOOR]:>8.2f}")
    return "\n".join(lines)


def _quartiles(values: Sequence[float], form: str) -> str:
    first, _, last = quantiles(values, n=4)
    return f"{first:{form}} to {last:{form}}"


def watched(seen: Seen) -> str:
    """One run in one line."""
    return (
        f"{seen.per_second:.0f}/s, {seen.cpu_per_call:.0f} CPU-µs a call, {seen.messages_per_call:.1f} messages, "
        f"p50 {seen.p50:.0f} µs, p99 {seen.p99:.0f} µs; cores: server {seen.server_cores:.2f}, "
        f"client {seen.client_cores:.2f}, vendor {seen.vendor_cores:.2f}, others {seen.other_cores:.2f}"
    )


def _line(figure: Figure, modes: list[str], found: Mapping[str, Figures], saved: Mapping[str, Figures]) -> str:
    floor = found[FLOOR].get(figure.name)
    line = f"  {figure.label + ', ' + figure.unit:<50}{_number(floor):>9}"
    for mode in modes:
        value = found[mode].get(figure.name)
        before = saved.get(mode, {}).get(figure.name)
        line += f"{_number(value):>10} {_ratio(value, floor):>7} {_ratio(value, before):>7}"
    budgets = [budget for budget in (figure.bare_budget, figure.budget) if budget is not None]
    return line + f"{' / '.join(_number(budget) for budget in budgets):>12}"


def _number(value: float | None) -> str:
    if value is None:
        return "-"
    return f"{value:.0f}" if abs(value) >= 100 else f"{value:.3g}"


def _ratio(value: float | None, other: float | None) -> str:
    return f"{value / other:.2f}" if value is not None and other else "-"
