"""Radio tables of 3GPP by their number, and spectral efficiency from CQI, MCS or SINR.

Efficiencies are in bit/s/Hz. Those of the NR tables are per resource element that carries data (Qm x R, one layer):
reference signals and control are not taken off. The LTE transport block sizes are net of both.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final, NamedTuple, TypeVar

from telemetry.errors import BadTable

_T = TypeVar("_T")

PRB_SUBCARRIERS: Final = 12  # TS 38.211 4.4.4.1
PRB_SLOT_HZ_S: Final = 180.0  # one PRB for one slot: 12 x 15 kHz x 1 ms, the same at every numerology
LTE_PRB_HZ: Final = 180e3  # TS 36.211 5.2.3: 12 subcarriers of 15 kHz


class Scheme(NamedTuple):
    """Modulation order Qm (bits a symbol) and code rate times 1024, as the standard prints them."""

    qm: int
    rate_1024: float

    @property
    def efficiency_bps_hz(self) -> float:
        """Information bits per resource element, one layer."""
        return self.qm * self.rate_1024 / 1024


def _schemes(*groups: tuple[int, Sequence[float]]) -> tuple[Scheme, ...]:
    return tuple(Scheme(qm, rate) for qm, rates in groups for rate in rates)


# TS 38.214 5.2.2.1. Index 0 ("out of range") is left out: entry i is CQI i + 1.
CQI_TABLES: Final[dict[int, tuple[Scheme, ...]]] = {
    1: _schemes(  # Table 5.2.2.1-2: up to 64QAM
        (2, (78, 120, 193, 308, 449, 602)), (4, (378, 490, 616)), (6, (466, 567, 666, 772, 873, 948))
    ),
    2: _schemes(  # Table 5.2.2.1-3: up to 256QAM
        (2, (78, 193, 449)), (4, (378, 490, 616)), (6, (466, 567, 666, 772, 873)), (8, (711, 797, 885, 948))
    ),
    3: _schemes(  # Table 5.2.2.1-4: low spectral efficiency
        (2, (30, 50, 78, 120, 193, 308, 449, 602)), (4, (378, 490, 616)), (6, (466, 567, 666, 772))
    ),
}

_QPSK_A: Final = (120, 157, 193, 251, 308, 379, 449, 526, 602, 679)

# TS 38.214 5.1.3.1 (PDSCH, and PUSCH without transform precoding). Entry i is I_MCS i; reserved ones are left out.
MCS_TABLES: Final[dict[int, tuple[Scheme, ...]]] = {
    1: _schemes(  # Table 5.1.3.1-1
        (2, _QPSK_A),
        (4, (340, 378, 434, 490, 553, 616, 658)),
        (6, (438, 466, 517, 567, 616, 666, 719, 772, 822, 873, 910, 948)),
    ),
    2: _schemes(  # Table 5.1.3.1-2
        (2, (120, 193, 308, 449, 602)),
        (4, (378, 434, 490, 553, 616, 658)),
        (6, (466, 517, 567, 616, 666, 719, 772, 822, 873)),
        (8, (682.5, 711, 754, 797, 841, 885, 916.5, 948)),
    ),
    3: _schemes(  # Table 5.1.3.1-3
        (2, (30, 40, 50, 64, 78, 99, 120, 157, 193, 251, 308, 379, 449, 526, 602)),
        (4, (340, 378, 434, 490, 553, 616)),
        (6, (438, 466, 517, 567, 616, 666, 719, 772)),
    ),
}

NR_LOWEST_BPS_HZ: Final = MCS_TABLES[3][0].efficiency_bps_hz  # the slowest that NR can send: 0.0586

# TS 38.214 Table 6.1.4.1-1: PUSCH with transform precoding, 64QAM. Entries 0 and 1 are q = 2 (QPSK); with
# tp-pi2BPSK they are q = 1 and twice the rate, which is the same efficiency.
PUSCH_DFT_MCS_TABLE: Final = _schemes(
    (2, _QPSK_A),
    (4, (340, 378, 434, 490, 553, 616, 658)),
    (6, (466, 517, 567, 616, 666, 719, 772, 822, 873, 910, 948)),
)

# TS 38.101-1 Table 5.3.2-1: N_RB by subcarrier spacing (kHz) and channel bandwidth (MHz), FR1.
N_RB: Final[dict[int, dict[int, int]]] = {
    15: {5: 25, 10: 52, 15: 79, 20: 106, 25: 133, 30: 160, 35: 188, 40: 216, 45: 242, 50: 270},
    30: {5: 11, 10: 24, 15: 38, 20: 51, 25: 65, 30: 78, 35: 92, 40: 106, 45: 119, 50: 133}
    | {60: 162, 70: 189, 80: 217, 90: 245, 100: 273},
    60: {10: 11, 15: 18, 20: 24, 25: 31, 30: 38, 35: 44, 40: 51, 45: 58, 50: 65}
    | {60: 79, 70: 93, 80: 107, 90: 121, 100: 135},
}

# TS 23.501 Table 5.7.4-1: packet delay budget in ms of each standardised 5QI (UE to UPF, one way).
_GBR_PDB_MS: Final = {1: 100, 2: 150, 3: 50, 4: 300, 65: 75, 66: 100, 67: 100}
_GBR_LIVE_PDB_MS: Final = {71: 150, 72: 300, 73: 300, 74: 500, 76: 500}  # live uplink streaming
_NON_GBR_PDB_MS: Final = {5: 100, 6: 300, 7: 100, 8: 300, 9: 300, 10: 1100, 69: 60, 70: 200, 79: 50, 80: 10}
_DELAY_CRITICAL_PDB_MS: Final = {82: 10, 83: 10, 84: 30, 85: 5, 86: 5, 87: 5, 88: 10, 89: 15, 90: 20}
PACKET_DELAY_BUDGET_MS: Final[dict[int, int]] = (
    _GBR_PDB_MS | _GBR_LIVE_PDB_MS | _NON_GBR_PDB_MS | _DELAY_CRITICAL_PDB_MS
)

# TS 36.213 Table 7.1.7.2.1-1, column N_PRB = 48 (what a 10 MHz LTE cell has left of 50 beside PUCCH), by I_TBS, bits.
LTE_TBS_PRBS: Final = 48
_LTE_TBS_48: Final = (
    *(1320, 1736, 2152, 2792, 3496, 4264, 4968, 5992, 6712, 7480, 8504, 9528, 11064, 12216),
    *(13536, 14688, 15840, 17568, 19080, 20616, 22152, 24496, 25456, 27376, 29296, 30576, 35160),
)
# I_MCS -> I_TBS: TS 36.213 Table 8.6.1-1 (PUSCH) and Table 7.1.7.1-1 (PDSCH); a modulation's first entry repeats.
_LTE_UL_I_TBS: Final = (*range(11), *range(10, 20), *range(19, 27))
_LTE_DL_I_TBS: Final = (*range(10), *range(9, 16), *range(15, 27))


def cqi_efficiency(cqi: float, table: int = 1) -> float:
    """Spectral efficiency of a CQI, linear between whole ones (0 is 0), by TS 38.214 Table 5.2.2.1-(table + 1).

    Raises BadTable for a CQI outside 0..15 or a table other than 1, 2, 3.
    """
    schemes = _table(CQI_TABLES, table, "CQI")
    return _interpolate((0.0, *(s.efficiency_bps_hz for s in schemes)), cqi, f"CQI table {table}")


def mcs_efficiency(i_mcs: float, table: int = 1) -> float:
    """Spectral efficiency of a (mean) I_MCS by TS 38.214 Table 5.1.3.1-`table`, linear between whole ones.

    Raises BadTable for an index that the table reserves.
    """
    schemes = _table(MCS_TABLES, table, "MCS")
    return _interpolate(tuple(s.efficiency_bps_hz for s in schemes), i_mcs, f"MCS table {table}")


def pusch_dft_mcs_efficiency(i_mcs: float) -> float:
    """Spectral efficiency of PUSCH with transform precoding, TS 38.214 Table 6.1.4.1-1. Raises BadTable."""
    return _interpolate(tuple(s.efficiency_bps_hz for s in PUSCH_DFT_MCS_TABLE), i_mcs, "PUSCH MCS table 6.1.4.1-1")


def lte_ul_efficiency(i_mcs: float) -> float:
    """LTE PUSCH bit/s/Hz: a transport block of 48 PRBs over 48 x 180 kHz x 1 ms, linear in a mean I_MCS.

    Raises BadTable for an index outside 0..28.
    """
    return _interpolate(_LTE_UL_EFFICIENCY, i_mcs, "LTE PUSCH MCS")


def lte_dl_efficiency(i_mcs: float) -> float:
    """LTE PDSCH bit/s/Hz, as `lte_ul_efficiency`. Raises BadTable."""
    return _interpolate(_LTE_DL_EFFICIENCY, i_mcs, "LTE PDSCH MCS")


def prbs(bandwidth_mhz: int, scs_khz: int) -> int:
    """N_RB of an FR1 channel, TS 38.101-1 Table 5.3.2-1. Raises BadTable, naming the bandwidths there are."""
    row = _table(N_RB, scs_khz, "subcarrier spacing (kHz)")
    return _table(row, bandwidth_mhz, f"channel bandwidth (MHz) at {scs_khz} kHz")


def packet_delay_budget_s(five_qi: int) -> float:
    """Packet delay budget of a standardised 5QI in seconds, TS 23.501 Table 5.7.4-1. Raises BadTable."""
    return _table(PACKET_DELAY_BUDGET_MS, five_qi, "5QI") / 1e3


@dataclass(frozen=True, slots=True)
class TruncatedShannon:
    """Attenuated and truncated Shannon bound, TR 36.942 A.1: 0 below `sinr_min_db`, flat above `sinr_max_db`."""

    name: str
    attenuation: float
    sinr_min_db: float
    sinr_max_db: float

    def efficiency_bps_hz(self, sinr_db: float) -> float:
        """Return attenuation x log2(1 + SINR), truncated."""
        if math.isnan(sinr_db) or sinr_db < self.sinr_min_db:
            return 0.0
        return self.attenuation * math.log2(1 + 10 ** (min(sinr_db, self.sinr_max_db) / 10))


NR_UPLINK: Final = TruncatedShannon("TR 38.803, uplink", 0.4, -10.0, 22.0)
NR_DOWNLINK: Final = TruncatedShannon("TR 38.803, downlink", 0.6, -10.0, 30.0)


def _lte_efficiencies(i_tbs_by_mcs: Sequence[int]) -> tuple[float, ...]:
    return tuple(_LTE_TBS_48[i] / 1e-3 / (LTE_TBS_PRBS * LTE_PRB_HZ) for i in i_tbs_by_mcs)


_LTE_UL_EFFICIENCY: Final = _lte_efficiencies(_LTE_UL_I_TBS)
_LTE_DL_EFFICIENCY: Final = _lte_efficiencies(_LTE_DL_I_TBS)


def _table(tables: dict[int, _T], key: int, what: str) -> _T:
    try:
        return tables[key]
    except KeyError:
        raise BadTable(f"{what} {key}: not in the standard; there are {', '.join(map(str, tables))}") from None


def _interpolate(values: Sequence[float], index: float, where: str) -> float:
    if not 0 <= index <= len(values) - 1:  # also refuses NaN
        raise BadTable(f"{where}: index {index} outside 0..{len(values) - 1}")
    low = min(int(index), len(values) - 2)
    return values[low] + (index - low) * (values[low + 1] - values[low])
