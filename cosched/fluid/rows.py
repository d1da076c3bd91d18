"""State of the fluid execution model: two arrays, one row a task; columns are the constants below. In seconds."""

from __future__ import annotations

from typing import Final

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]

# float columns
W_UL: Final = 0  # weight on the uplink
CHUNK: Final = 1  # of its remaining node work that is done in the present step
CAP_UL: Final = 2  # greatest share of the uplink that the UE's power carries
DEVICE_S: Final = 3  # + phase: device time of a unit
BITS: Final = 5  # + phase: uplink bits of a unit
FIXED_S: Final = 7  # + phase: propagation and other time that no share changes
NODE_S: Final = 9  # + phase: node time of a unit at full share, but for what is decoded in steps
REMAINING: Final = 11  # of the stage in service: device seconds, bits or node seconds
TIMER: Final = 12  # instant at which a timed stage ends
ARRIVAL: Final = 13
FIRST: Final = 14  # instant of the first token
LAST: Final = 15  # instant of the latest token or frame
PERIOD: Final = 16  # of a video's frames; TPOT of a session
DEADLINE: Final = 17  # of a frame, after its release; TTFT of a session
RELEASE: Final = 18  # of the frame in work
LATENCY_SUM: Final = 19  # over frames
DEVICE_BUSY: Final = 20  # accumulated device seconds
AIR_BUSY: Final = 21  # accumulated seconds on the air
NODE_BUSY: Final = 22  # accumulated node work, seconds at full share
SHARED_S: Final = 23  # of a step, that all of its model in it share
OWN_S: Final = 24  # ... and that its sequence adds
N_FLOAT: Final = 25

# integer columns
KIND: Final = 0  # 0 llm, 1 video
STAGE: Final = 1
CELL: Final = 2
NODE: Final = 3
UE: Final = 4
PHASE: Final = 5
LEFT: Final = 6  # tokens or frames still to do
DONE: Final = 7  # tokens, or frames in time
LATE: Final = 8  # frames dropped at their deadline
MODEL: Final = 9  # that it runs layers of
RANK: Final = 10  # on nodes, 0 = it is promised
N_INT: Final = 11

LLM: Final = 0
VIDEO: Final = 1

# stages
OUT: Final = 0  # finished or never started
ON_DEVICE: Final = 1
ON_AIR: Final = 2
IN_FLIGHT: Final = 3
ON_NODE: Final = 4  # it waits for a step of its node
WAITING: Final = 5  # for the release of its next frame
IN_STEP: Final = 6

# event codes
EVENT_FIRST: Final = 1
EVENT_FINISHED: Final = 2

EPS: Final = 1e-12
