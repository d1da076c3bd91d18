"""Suite `solvers`, small: what its parts measure, that the referees agree, and how its claims are drawn from rows."""

from __future__ import annotations

import dataclasses

import msgspec
import numpy as np
import pytest

from cosched.bench import solver_referees, solver_ticks
from cosched.bench.instances import make
from cosched.bench.sheet import Sheet, case_name, cpu_ms
from cosched.bench.solver_referees import CP_SAT, CVXPY, DUAL, HIGHS, STAGE_SIZES
from cosched.bench.solver_ticks import COMPILED, INTERPRETED, NUMPY, SMALL, TICKS
from cosched.bench.solvers import claims
from cosched.bench.tables import tables
from solvers import check
from solvers.referees import exact, mip

ALL = tuple(TICKS)


def nothing(_fraction: float) -> None:
    """Nobody watches."""


def test_a_sheet_keeps_rows_in_order_and_finds_medians():
    sheet = Sheet()
    sheet.add("c", "s", "ms", [3.0, 1.0, 2.0])
    sheet.add("c", "t", "value", [5.0], bound=6.0)
    assert [(r.suite, r.subject, r.p50, r.n, r.value, r.bound) for r in sheet.rows] == [
        ("solvers", "s", 2.0, 3, 2.0, None),
        ("solvers", "t", 5.0, 1, 5.0, 6.0),
    ]
    assert sheet.median("c", "s", "ms") == 2.0
    assert 2.9 < sheet.p99("c", "s", "ms") <= 3.0


def test_rows_of_a_sheet_go_into_json():
    """With a bound of NumPy's, as certificates have."""
    sheet = Sheet()
    sheet.add("c", "s", "value", [np.float64(1.0)], bound=np.float64(2.0))
    assert msgspec.json.decode(msgspec.json.encode(sheet.rows))[0]["bound"] == 2.0


def test_times_are_of_this_process():
    answer, ms = cpu_ms(lambda: sum(range(200_000)))
    assert answer == 19_999_900_000
    assert 0.1 < ms < 5_000


def test_a_ladder_of_one_rung(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(solver_ticks, "TICKS", {60: 2.0})
    monkeypatch.setattr(solver_ticks, "COLD", {60: 1.0})
    sheet = Sheet()
    solver_ticks.ladder(sheet, 2, nothing)
    assert {r.figure: r.n for r in sheet.rows} == {
        "warm_solve_ms": 4, "warm_evaluations": 4, "warm_gap_percent": 4, "warm_ms": 4, "warm_tables_ms": 4,
        "warm_solve_with_new_tables_ms": 4, "cold_solve_ms": 2, "cold_evaluations": 2, "cold_gap_percent": 2,
        "cold_ms": 2, "value": 1, "dual_over_bound": 1,
    }  # fmt: skip
    (value,) = [r for r in sheet.rows if r.figure == "value"]
    assert value.bound is not None
    assert 0 < value.value <= value.bound
    assert sheet.median(case_name(60), COMPILED, "dual_over_bound") <= 1e-6
    assert tables("solvers", sheet.rows)[0].title == "solvers 4x4x32: warm_solve_ms"


def test_without_the_compiler_the_plan_is_the_same(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(solver_ticks, "NUMPY", 40)
    sheet = Sheet()
    solver_ticks.interpreted(sheet, 1)
    assert sheet.median(case_name(40, "mixed"), INTERPRETED, "same_points") == 1
    assert sheet.median(case_name(40, "mixed"), INTERPRETED, "plan_ms") > 0


def test_the_two_referees_find_the_same_optimum():
    problem = make(8, 1, mixed=True).problem
    options = {"prbs": 24.0, "steps": 10.0, "gap": 0.0}
    a, b = exact.solve(problem, options=options), mip.solve(problem, options=options)
    assert check.verify(problem, a, dual=False) == check.verify(problem, b, dual=False) == []
    assert a.certificate.value == pytest.approx(b.certificate.value)
    assert b.certificate.bound == pytest.approx(b.certificate.value, rel=1e-3)
    assert (b.solver, str(b.status)) == ("mip", "ok")


def test_the_mip_of_nobody():
    problem = make(5, 1).problem
    full = dataclasses.replace(problem, background=np.ones(problem.n_resources))
    assert (mip.solve(full).chosen == -1).all()


def test_second_stages_meet_at_one_objective(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(solver_referees, "STAGE_SIZES", (30,))
    monkeypatch.setattr(solver_referees, "REPEATS", 1)
    sheet = Sheet()
    solver_referees.stages(sheet, 1)
    case = case_name(30, "second stage")
    quick, cone = (sheet.median(case, subject, "objective") for subject in (DUAL, CVXPY))
    assert quick == pytest.approx(cone, rel=1e-6)


def filled() -> Sheet:
    """All figures that the claims look at, each exactly as asked."""
    sheet = Sheet()
    for n, limit in zip(ALL, (1.0, 6.0, 80.0), strict=True):
        sheet.add(case_name(n), COMPILED, "warm_ms", [limit])
        sheet.add(case_name(n), COMPILED, "cold_ms", [6 * limit])
        sheet.add(case_name(n), COMPILED, "warm_gap_percent", [0.1])
    sheet.add(case_name(NUMPY), COMPILED, "dual_over_bound", [1e-6])
    sheet.add(case_name(NUMPY, "mixed"), INTERPRETED, "same_points", [1.0, 1.0])
    for n in SMALL:
        sheet.add(case_name(n, "mixed"), COMPILED, "gap_in_tasks_per_resource", [1.0])
    for n in solver_referees.SIZES:
        for subject, value, ms in ((COMPILED, 99.5, 1.0), (CP_SAT, 100.0, 500.0), (HIGHS, 100.0, 9.0)):
            sheet.add(case_name(n, "grid"), subject, "value", [value])
            sheet.add(case_name(n, "grid"), subject, "plan_ms", [ms])
    for n in STAGE_SIZES:
        for subject, objective, ms in ((DUAL, 1.0, 1.0), (CVXPY, 1.0, 100.0)):
            sheet.add(case_name(n, "second stage"), subject, "objective", [objective])
            sheet.add(case_name(n, "second stage"), subject, "plan_ms", [ms])
    return sheet


def test_claims_hold_where_all_is_just_as_asked():
    assert [claim.text for claim in claims(filled()) if not claim.holds] == []


@pytest.mark.parametrize(
    ("case", "subject", "figure", "value", "text"),
    [
        (case_name(10_000), COMPILED, "warm_ms", 6.1, "10000 tasks: 6 ms over the median"),
        (case_name(1_000), COMPILED, "cold_ms", 6.1, "1000 tasks: 6 x warm over cold"),
        (case_name(100_000), COMPILED, "warm_gap_percent", 0.11, "100000 tasks: value as a percentage"),
        (case_name(NUMPY), COMPILED, "dual_over_bound", 2e-6, "bound less the dual"),
        (case_name(NUMPY, "mixed"), INTERPRETED, "same_points", 0.0, "NumPy and compiled"),
        (case_name(SMALL[0], "mixed"), COMPILED, "gap_in_tasks_per_resource", 1.1, "fewer tasks"),
        (case_name(300, "grid"), COMPILED, "value", 99.4, "300 mixed tasks: value over the better referee's"),
        (case_name(300, "grid"), COMPILED, "plan_ms", 1.1, "300 mixed tasks: CP-SAT's time over ours"),
        (case_name(STAGE_SIZES[0], "second stage"), DUAL, "objective", 1.1, "objective better than cvxpy's"),
        (case_name(STAGE_SIZES[0], "second stage"), DUAL, "plan_ms", 1.1, "cvxpy's time over ours"),
    ],
)
def test_a_claim_falls_with_its_figure(case: str, subject: str, figure: str, value: float, text: str):
    sheet = filled()
    sheet.add(case, subject, figure, [value])
    (fallen,) = [claim for claim in claims(sheet) if not claim.holds]
    assert text in fallen.text
