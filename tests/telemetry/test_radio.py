"""Radio tables against values of the standards, and against properties that every such table has."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from telemetry import radio
from telemetry.errors import BadTable

# Efficiency columns as TS 38.214 prints them, to four decimals: an independent check of Qm x R / 1024.
PRINTED_CQI = {
    1: "0.1523 0.2344 0.3770 0.6016 0.8770 1.1758 1.4766 1.9141 2.4063 2.7305 3.3223 3.9023 4.5234 5.1152 5.5547",
    2: "0.1523 0.3770 0.8770 1.4766 1.9141 2.4063 2.7305 3.3223 3.9023 4.5234 5.1152 5.5547 6.2266 6.9141 7.4063",
    3: "0.0586 0.0977 0.1523 0.2344 0.3770 0.6016 0.8770 1.1758 1.4766 1.9141 2.4063 2.7305 3.3223 3.9023 4.5234",
}
PRINTED_MCS = {
    1: "0.2344 0.3066 0.3770 0.4902 0.6016 0.7402 0.8770 1.0273 1.1758 1.3262 1.3281 1.4766 1.6953 1.9141 "
    "2.1602 2.4063 2.5703 2.5664 2.7305 3.0293 3.3223 3.6094 3.9023 4.2129 4.5234 4.8164 5.1152 5.3320 "
    "5.5547",
    2: "0.2344 0.3770 0.6016 0.8770 1.1758 1.4766 1.6953 1.9141 2.1602 2.4063 2.5703 2.7305 3.0293 3.3223 "
    "3.6094 3.9023 4.2129 4.5234 4.8164 5.1152 5.3320 5.5547 5.8906 6.2266 6.5703 6.9141 7.1602 7.4063",
    3: "0.0586 0.0781 0.0977 0.1250 0.1523 0.1934 0.2344 0.3066 0.3770 0.4902 0.6016 0.7402 0.8770 1.0273 "
    "1.1758 1.3281 1.4766 1.6953 1.9141 2.1602 2.4063 2.5664 2.7305 3.0293 3.3223 3.6094 3.9023 4.2129 "
    "4.5234",
}


def printed(text: str) -> list[float]:
    return [float(word) for word in text.split()]


@pytest.mark.parametrize("table", [1, 2, 3])
def test_cqi_efficiencies_are_those_the_standard_prints(table: int) -> None:
    ours = [radio.cqi_efficiency(cqi, table) for cqi in range(1, 16)]
    assert ours == pytest.approx(printed(PRINTED_CQI[table]), abs=6e-5)
    assert radio.cqi_efficiency(0, table) == 0


@pytest.mark.parametrize("table", [1, 2, 3])
def test_mcs_efficiencies_are_those_the_standard_prints(table: int) -> None:
    expected = printed(PRINTED_MCS[table])
    assert len(radio.MCS_TABLES[table]) == len(expected)
    # two entries are at half a unit of the last digit (2.40625, 6.570315...): allow for either rounding
    assert [radio.mcs_efficiency(i, table) for i in range(len(expected))] == pytest.approx(expected, abs=6e-5)


def test_transform_precoding_table_follows_table_1_but_has_one_64qam_entry_less() -> None:
    dft = radio.PUSCH_DFT_MCS_TABLE
    assert len(dft) == 28
    assert dft[:17] == radio.MCS_TABLES[1][:17]
    assert dft[17] == radio.Scheme(6, 466)
    assert dft[17:] == radio.MCS_TABLES[1][18:]
    # pi/2-BPSK (q = 1) at 240/1024 carries as much as QPSK at 120/1024
    assert dft[0].efficiency_bps_hz == pytest.approx(240 / 1024)
    assert radio.pusch_dft_mcs_efficiency(27) == pytest.approx(5.5547, abs=5e-5)


@pytest.mark.parametrize("table", [1, 2, 3])
def test_cqi_tables_rise_and_their_code_rates_stay_below_one(table: int) -> None:
    schemes = radio.CQI_TABLES[table]
    efficiencies = [s.efficiency_bps_hz for s in schemes]
    assert efficiencies == sorted(set(efficiencies))
    assert all(s.rate_1024 < 1024 and s.qm in {2, 4, 6, 8} for s in schemes)
    assert len(schemes) == 15


def test_each_cqi_of_table_1_is_an_mcs_of_table_1() -> None:
    """The CQI points are MCS points (5.2.2.1 was drawn up so), but for the two below QPSK 120/1024."""
    mcs = {(s.qm, s.rate_1024) for s in radio.MCS_TABLES[1]}
    missing = [s for s in radio.CQI_TABLES[1] if (s.qm, s.rate_1024) not in mcs]
    assert missing == [radio.Scheme(2, 78)]


@given(st.floats(0, 27.999), st.sampled_from([1, 2, 3]))
def test_a_fractional_mcs_lies_between_its_neighbours(i_mcs: float, table: int) -> None:
    i_mcs = min(i_mcs, len(radio.MCS_TABLES[table]) - 1.001)
    ends = sorted([radio.mcs_efficiency(int(i_mcs), table), radio.mcs_efficiency(int(i_mcs) + 1, table)])
    assert ends[0] - 1e-12 <= radio.mcs_efficiency(i_mcs, table) <= ends[1] + 1e-12


@given(st.floats(0, 28), st.floats(0, 28))
def test_lte_efficiency_never_falls_with_the_mcs(a: float, b: float) -> None:
    low, high = sorted((a, b))
    assert radio.lte_ul_efficiency(low) <= radio.lte_ul_efficiency(high) + 1e-12
    assert radio.lte_dl_efficiency(low) <= radio.lte_dl_efficiency(high) + 1e-12


def test_lte_transport_blocks_of_48_prbs() -> None:
    """TS 36.213 Table 7.1.7.2.1-1: I_TBS 0, 14, 26 at 48 PRBs are 1320, 13536 and 35160 bits."""
    assert radio.lte_ul_efficiency(0) * 48 * 180 == pytest.approx(1320)
    assert radio.lte_ul_efficiency(15) * 48 * 180 == pytest.approx(13536)  # PUSCH I_MCS 15 -> I_TBS 14
    assert radio.lte_dl_efficiency(15) * 48 * 180 == pytest.approx(13536)  # PDSCH I_MCS 15 -> I_TBS 14
    assert radio.lte_ul_efficiency(28) * 48 * 180 == pytest.approx(35160)
    # a modulation's first index repeats the last block size of the one before
    assert radio.lte_ul_efficiency(10) == radio.lte_ul_efficiency(11)
    assert radio.lte_ul_efficiency(20) == radio.lte_ul_efficiency(21)
    assert radio.lte_dl_efficiency(9) == radio.lte_dl_efficiency(10)
    assert radio.lte_dl_efficiency(16) == radio.lte_dl_efficiency(17)


@pytest.mark.parametrize(
    ("bandwidth_mhz", "scs_khz", "expected"),
    [
        (5, 15, 25),
        (10, 15, 52),
        (20, 15, 106),
        (50, 15, 270),
        (20, 30, 51),
        (40, 30, 106),
        (100, 30, 273),
        (100, 60, 135),
    ],
)
def test_prbs_of_known_channels(bandwidth_mhz: int, scs_khz: int, expected: int) -> None:
    assert radio.prbs(bandwidth_mhz, scs_khz) == expected


def test_prbs_leave_a_guard_band_and_use_most_of_the_channel() -> None:
    for scs_khz, row in radio.N_RB.items():
        for bandwidth_mhz, n_rb in row.items():
            used = n_rb * 12 * scs_khz / (bandwidth_mhz * 1e3)
            assert 0.78 < used < 0.99, (scs_khz, bandwidth_mhz)  # 60 kHz in 10 MHz uses least


@pytest.mark.parametrize(("five_qi", "budget_s"), [(1, 0.1), (2, 0.15), (3, 0.05), (9, 0.3), (80, 0.01), (85, 0.005)])
def test_packet_delay_budgets(five_qi: int, budget_s: float) -> None:
    assert radio.packet_delay_budget_s(five_qi) == pytest.approx(budget_s)


def test_delay_critical_5qis_have_the_tightest_budgets() -> None:
    assert max(radio.packet_delay_budget_s(q) for q in range(82, 91)) <= 0.03
    assert len(radio.PACKET_DELAY_BUDGET_MS) == 31


def test_truncated_shannon() -> None:
    assert radio.NR_UPLINK.efficiency_bps_hz(0.0) == pytest.approx(0.4)  # log2(1 + 1) = 1
    assert radio.NR_UPLINK.efficiency_bps_hz(-10.1) == 0
    assert radio.NR_UPLINK.efficiency_bps_hz(22) == radio.NR_UPLINK.efficiency_bps_hz(50)
    assert radio.NR_UPLINK.efficiency_bps_hz(math.nan) == 0
    assert radio.NR_DOWNLINK.efficiency_bps_hz(30) == pytest.approx(0.6 * math.log2(1001))


@pytest.mark.parametrize(
    "wrong",
    [
        lambda: radio.cqi_efficiency(1835),
        lambda: radio.cqi_efficiency(-33.9),
        lambda: radio.cqi_efficiency(math.nan),
        lambda: radio.cqi_efficiency(7, table=4),
        lambda: radio.mcs_efficiency(29),
        lambda: radio.mcs_efficiency(28, table=2),
        lambda: radio.lte_ul_efficiency(28.5),
        lambda: radio.prbs(7, 15),
        lambda: radio.prbs(20, 120),
        lambda: radio.packet_delay_budget_s(11),
    ],
)
def test_what_a_table_does_not_have_is_refused(wrong: object) -> None:
    assert callable(wrong)
    with pytest.raises(BadTable):
        wrong()
