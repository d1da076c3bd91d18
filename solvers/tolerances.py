"""Every tolerance of the solvers that share prices: what counts as equal, as nothing, as done, and why so much.

How many steps and looks a method may take stands where the method is. All are relative to what is named; the referee's
own (solvers/check.py) are not here, since it shares nothing with those that it checks.
"""

from __future__ import annotations

from typing import Final

# Shares and limits
EDGE: Final = 1e-12  # rounding that a comparison with a limit forgives
OVER: Final = 1e-9  # of a resource: what a plan may take too much, to solvers/check.py ...
KEEP: Final = 0.9  # ... of which a plan uses this part: sums in another order differ a little
LEAST_ACTIVITY: Final = 1e-30  # what does not count is as good as free, and no case of its own
SCRAP: Final = 1e-5  # part of a resource: less that is left is not worth handing out
SAME: Final = 1e-9  # of the greatest value: what two plans or choices may differ by and be the same

# The price solver's dual (solvers/price/dual.py)
TOLERANCE: Final = 2e-5  # of the bound: prices that miss it by more have tasks choose in vain
ARMIJO: Final = 0.05  # part of the promised descent that makes a step a serious one
LEAST_TRUST: Final = 1e-4  # a trust region, in log prices, does not shrink below that at kinks
NEAR_CEILING: Final = 0.3  # part of the tolerance that is kept close to the ceiling
MISMATCH: Final = 4e-3  # of the worth of all room: use that is off by more is worth another evaluation ...
MISMATCH_TASKS: Final = 8.0  # ... beside what so many tasks take
SETTLED_USE: Final = 0.01  # part of the tolerance at which the use does not matter any more
DUAL_RIDGE: Final = 0.05  # of price x room added to the second derivative, which kinks leave unknown
FADED_PRICE: Final = 1e-8  # a price times room below this part of the bound is as good as nothing

# Warm prices
FAINT_PRICE: Final = 1e-6  # part of the worth of all room below which a warm price is as good as none
ZERO_WORTH: Final = 1e-9  # worth of all room at prices that stand for 0
WARM_WORTH: Final = 1e-6  # ... and, as part of the bound there, from which warm prices are only a direction
WARM_ASTRAY: Final = 2.0  # bill over worth of the room, or its inverse, from which warm prices are scaled first

# Whether a set of points fits (solvers/price/fit.py)
FIT_GOAL: Final = 1.0 - 1e-6  # part of the room that is aimed at, so that it is reached from within
CLOSE: Final = 1e-7  # part of the room by which the goal may be missed when shares are settled
BILL_ASTRAY: Final = 0.1  # part of the worth of all room that the bill of wide shares may be off
FIT_CALM: Final = 1e-5  # part of the dual's value: when a step of a set that fits gains less, it is settled
FADING: Final = 1e-3  # of the worth of all room: a price below it that still falls is on its way to 0
LEAST_WORTH: Final = 1e-7  # ... and below it no price falls: two phases at prices too far apart are beyond rounding
DUAL_SLIP: Final = 1e-9  # part of the dual's value that a step may lose to rounding
FIT_STIFF: Final = 1e-4  # of price x room, added to the second derivative: use that does not respond moves no price far
PROOF_GAIN: Final = 0.1  # a proof of no fit is sharpened until it gains less than this part of the excess

# From prices to a plan
COUNTS: Final = 1e-6  # weight from which an evaluation has a say
NEARLY: Final = 1e-6  # of the worth of the room: less than that need not be saved at once, see FIT_GOAL
TINY_EXCESS: Final = 1e-3  # part of what a change saves: an excess below it does not call for that change
GONE: Final = 1e-9  # part of the others' change by which a price has as good as gone

# Where resources are many (solvers/sparse)
SPARSE_ARMIJO: Final = 1e-4  # part of the promised descent that makes a step good enough
SPARSE_RIDGE: Final = 0.02  # of price x room added to the second derivative
SPARSE_FADED: Final = 1e-9  # a price times room below this part of the worth of all room is as good as nothing
SPARSE_CALM: Final = 2e-5  # of the dual: where a step gains less ...
MATCHED: Final = 3e-3  # of the worth of all room: use that is off by less is as good as right
ENOUGH: Final = 0.002  # part of the worth of all room: where less is left, nobody is asked to move
MOVE_SLIP: Final = 1e-11  # part of a resource that a move of all shares may overfill it by: rounding

# Whole steps (solvers/grid)
WHOLE: Final = 1e-9  # of a step: what is whole but for rounding
UNIT_SLIP: Final = 1e-6  # of a unit: what is whole but for rounding
GRID_TOLERANCE: Final = 5e-5  # of the bound: descent that is not worth another evaluation
GRID_LEAST_TRUST: Final = 1e-6  # the same on a grid, as LEAST_TRUST
GRID_FADED: Final = 1e-9  # of the bound: what a resource's room is worth at least
GRID_RIDGE: Final = 1e-6  # of the bound, added to the metric

# The second stage (solvers/objectives)
STAGE_GOAL: Final = 1.0 - 1e-8  # part of the room that is aimed at, so that it is reached from within
STAGE_CALM: Final = 1e-9  # part of the worth of all room: slopes below it are none
STAGE_STIFF: Final = 1e-6  # part of price x room added to the second derivative
STAGE_LEAST_PRICE: Final = 1e-200  # no price that was above 0 falls to 0
DEADLINE_SLIP: Final = 5e-10  # of a deadline: half of what solvers.check forgives
INNER_FINE: Final = 1e-13  # where a search in one number ends
BINDS: Final = 1e-9  # a latency nearer to its deadline than this answers prices as if it were there
TINY_MULTIPLIER: Final = 1e-200  # a multiplier to begin with where nothing has a weight
FLAT: Final = 1e-12  # a determinant below this part of its terms is 0
