"""From prices to a plan: repair what does not fit, then fill what is left (docs/model.md, section 4).

At good prices all but about as many tasks as there are resources are settled: with so many separate choices the gap
is about one task for each resource that is full. So only those that waver most between two choices are looked at,
each, if they are many, with the points that lose little against the bound. Repair takes what loses least for what it
saves, fill what gains most for what it costs; whether a set fits is not guessed from prices, but asked of fit.py.
"""

from __future__ import annotations

import math
from typing import Final, NamedTuple

import numpy as np
import numpy.typing as npt

from solvers.jit import inlined, lean, merged, nopython
from solvers.price.dual import Dual, worth
from solvers.price.fit import FIT, ROOT, Set, fit, put
from solvers.price.oracle import Evaluation
from solvers.price.point import Point, price_point
from solvers.price.screen import Screen, holds
from solvers.price.settle import balance
from solvers.price.tables import DEAD, HIGH, LOW, PLAIN, RIGID, WIDTH, Prices, Table, prices_of
from solvers.problem import Floats, Ints
from solvers.tolerances import EDGE, GONE, NEARLY, SAME, TINY_EXCESS

Bools = npt.NDArray[np.bool_]

FEW: Final = 256  # tasks: up to here all of them are looked at, with all their points that fit into the gap
WAVERING: Final = 160  # ... above, so many and ...
WAVERING_PART: Final = 0.02  # ... this part of all
BINS: Final = 256  # of margins, to find the least ones
SMALL: Final = 2000  # points: up to here all are looked at, above those of the screen's lists
SWITCH_ROUNDS: Final = 6  # rounds of repair that may change points; after them tasks are only dropped
ROUNDS: Final = 40  # of repair; towards the end it drops by halves
HALVINGS: Final = 30  # of the ratio below which tasks are dropped in bulk
FAILURES: Final = 12  # fillings that may fail before it stops, with up to 100 tasks
LEAST_FAILURES: Final = 1  # ... and with any number
FILL_ROUNDS: Final = 8  # of filling, with few tasks ...
LEAST_ROUNDS: Final = 1  # ... and with any number
ROUNDS_TASKS: Final = 8000  # ... in all rounds together, between these two


class SearchOptions(NamedTuple):
    """Choices of the tasks that are looked at."""

    task: Ints  # (D,)
    start: Ints  # (D + 1,)
    none: Floats  # (D,) what not admitting the task gives away against the bound: its net value
    point: Ints  # (O,)
    loss: Floats  # (O,) what choosing the point gives away
    cost: Floats  # (O,) at the prices of the moment
    tried: Ints  # (O,)


@nopython
def _wavering(t: Table, look: Evaluation) -> Ints:
    """Tasks by id: all, or those with the least margins, half of them served and half not."""
    n_tasks = t.most.shape[0]
    if n_tasks <= FEW:
        return t.order
    taken, many = np.zeros(n_tasks, dtype=np.bool_), 0
    for served in (True, False):
        many += _closest(t, look, served, (WAVERING + int(WAVERING_PART * n_tasks)) // 2, taken)
    task, found = np.empty(many, dtype=np.int64), 0
    for i in t.order:
        if taken[i]:
            task[found] = i
            found += 1
    return task


@nopython
def _closest(t: Table, look: Evaluation, served: bool, enough: int, taken: Bools) -> int:
    """Mark the tasks, served or not, with the least margins, `enough` of them or all; returns how many."""
    n_tasks, widest = t.most.shape[0], 0.0
    for i in range(n_tasks):
        widest = max(widest, WIDTH * t.most[i])
    place, bins = np.full(n_tasks, BINS, dtype=np.int64), np.zeros(BINS + 1, dtype=np.int64)
    for i in range(n_tasks):
        if (look.pick[i] >= 0) == served and look.margin[i] < WIDTH * t.most[i]:
            place[i] = int(look.margin[i] / widest * BINS)
            bins[place[i]] += 1
    last, many = 0, 0
    while last < BINS and many + bins[last] <= enough:
        many += bins[last]
        last += 1
    rest = min(enough - many, bins[last]) if last < BINS else 0  # of the last bin, evenly spaced by id
    passed = 0
    for i in t.order:
        if place[i] == last and last < BINS:
            passed += rest
        if place[i] < last or (place[i] == last and last < BINS and passed >= bins[last]):
            passed -= bins[last] if place[i] == last else 0
            taken[i] = True
    return many + rest


@lean
def _list(t: Table, look: Evaluation, p: Prices, listed: bool, screen: Screen, opt: SearchOptions, o: Point) -> None:
    """Fill in all points of the wavering tasks, or those that are `listed`."""
    many = 0
    for place in range(opt.task.shape[0]):
        i = opt.task[place]
        net = look.net[i]
        opt.none[place] = net
        start, stop = (screen.start[i], screen.start[i + 1]) if listed else (t.first[i], t.first[i + 1])
        for m in range(start, stop):
            j = screen.point[m] if listed else m
            if t.mode[j] != DEAD:
                opt.point[many] = j
                opt.loss[many] = max(0.0, net - (t.value[j] - price_point(t, i, j, p, o)))
                many += 1
        opt.start[place + 1] = many


@nopython
def options(t: Table, d: Dual, screen: Screen, o: Point) -> SearchOptions:
    """Choices of wavering tasks with their losses at the prices of the bound."""
    task, p, most = _wavering(t, d.look), prices_of(t, d.price), 0
    listed = t.value.shape[0] > SMALL and holds(screen, d.price)
    for i in task:
        most += screen.start[i + 1] - screen.start[i] if listed else t.first[i + 1] - t.first[i]
    opt = SearchOptions(
        task,
        np.zeros(task.shape[0] + 1, dtype=np.int64),
        np.zeros(task.shape[0]),
        np.zeros(most, dtype=np.int64),
        np.zeros(most),
        np.zeros(most),
        np.zeros(most, dtype=np.int64),
    )
    _list(t, d.look, p, listed, screen, opt, o)
    return opt


@lean
def value_of(t: Table, chosen: Ints) -> float:
    """Value of a choice of points, summed in the order of task ids."""
    total = 0.0
    for i in t.order:
        if chosen[i] >= 0:
            total += t.value[chosen[i]]
    return total


@lean
def reprice(t: Table, opt: SearchOptions, p: Prices, o: Point) -> None:
    """Costs of all options at prices."""
    for place in range(opt.task.shape[0]):
        for m in range(opt.start[place], opt.start[place + 1]):
            opt.cost[m] = price_point(t, opt.task[place], opt.point[m], p, o)


@inlined
def _quick_bill(k: Set, i: int, p: Prices) -> float:
    """What the plain point of task i costs by k's copy of its row; -1: its shares meet a limit."""
    total, inside = 0.0, True
    for s in range(k.slot.shape[1]):
        total += k.row[i, ROOT, s] * p.root[k.slot[i, s]]
    for s in range(k.slot.shape[1]):
        counted = k.row[i, ROOT, s] * total * p.back[k.slot[i, s]]
        inside = inside and k.row[i, LOW, s] <= counted <= k.row[i, HIGH, s]
    return total * total if inside else -1.0


@lean
def _bills(t: Table, k: Set, p: Prices, paid: Floats, o: Point) -> float:
    """What the chosen points cost at prices, each into paid (N,); returns the sum less the worth of the room."""
    excess = 0.0
    for r in range(t.room.shape[0]):
        excess -= p.rigid[r] * t.room[r]
    for i in t.order:
        paid[i] = 0.0
        if k.chosen[i] >= 0:
            paid[i] = _quick_bill(k, i, p) if t.mode[k.chosen[i]] == PLAIN else -1.0
            if paid[i] < 0.0:
                paid[i] = price_point(t, i, k.chosen[i], p, o)
            excess += paid[i]
    return excess


@merged
def _chosen_option(k: Set, opt: SearchOptions, place: int) -> int:
    """Option that the task at a place has chosen, -1: none."""
    now = k.chosen[opt.task[place]]
    for m in range(opt.start[place], opt.start[place + 1]):
        if opt.point[m] == now:
            return m
    return -1


@lean
def _cheaper(opt: SearchOptions, place: int, now: int, switch: bool) -> tuple[float, int]:
    """Find the best way for a task to take less: (loss per cost saved, option or -1). Losses only grow: no cycles."""
    best, to = (opt.none[place] - opt.loss[now]) / max(opt.cost[now], 1e-300), -1
    if switch:
        for m in range(opt.start[place], opt.start[place + 1]):
            later = opt.loss[m] > opt.loss[now] or (opt.loss[m] == opt.loss[now] and m > now)
            if later and opt.cost[m] < opt.cost[now] * (1.0 - 1e-6):
                ratio = (opt.loss[m] - opt.loss[now]) / (opt.cost[now] - opt.cost[m])
                if ratio < best:
                    best, to = ratio, m
    return best, to


@lean
def _last(t: Table, opt: SearchOptions, now: Ints, ratio: Floats, excess: float, switch: bool) -> tuple[int, int]:
    """Find the change that alone takes the excess away and gives up least value: (place, option or -1 for none).

    Of equals, the one that loses least against the bound, then the one that saves most.
    """
    worth, loss, most, where, to = math.inf, math.inf, 0.0, -1, -1
    for place in range(now.shape[0]):
        if not ratio[place] < math.inf:
            continue
        held = now[place]
        for m in range(opt.start[place] - 1, opt.start[place + 1] if switch else opt.start[place]):
            none = m < opt.start[place]  # the first is to drop the task
            gives = t.value[opt.point[held]] - (0.0 if none else t.value[opt.point[m]])
            loses = (opt.none[place] if none else opt.loss[m]) - opt.loss[held]
            saved = opt.cost[held] - (0.0 if none else opt.cost[m])
            if saved < excess or not (none or loses > 0.0 or (loses == 0.0 and m > held)):
                continue
            if gives < worth - SAME or (gives < worth + SAME and (loses < loss or (loses == loss and saved > most))):
                worth, loss, most, where, to = gives, loses, saved, place, -1 if none else m
    return where, to


@lean
def _least(t: Table, k: Set, net: Floats, paid: Floats, excess: float) -> int:
    """Find the chosen task of the least value, of equals with the least net value, that costs the excess; -1: none."""
    least = -1
    for i in t.order:
        if k.chosen[i] < 0 or paid[i] < excess:
            continue
        more = t.value[k.chosen[i]] - t.value[k.chosen[least]] if least >= 0 else -math.inf
        if more < -SAME or (more < SAME and net[i] < net[least]):
            least = i
    return least


@lean
def _close(
    t: Table,
    k: Set,
    opt: SearchOptions,
    now: Ints,
    ratio: Floats,
    net: Floats,
    paid: Floats,
    excess: float,
    switch: bool,
) -> None:
    """Make the last change: the one that alone takes the excess away and gives up least value.

    An excess of 1e-6 must not cost a large task where a small one would do, wavering or not.
    """
    place, m = _last(t, opt, now, ratio, excess, switch)
    gives = t.value[opt.point[now[place]]] - (t.value[opt.point[m]] if m >= 0 else 0.0)
    i = _least(t, k, net, paid, excess)
    if i >= 0 and t.value[k.chosen[i]] < gives - SAME:
        put(t, k, i, -1)
    else:
        put(t, k, opt.task[place], opt.point[m] if m >= 0 else -1)


@nopython
def _lessen(
    t: Table, k: Set, opt: SearchOptions, net: Floats, paid: Floats, excess: float, least: float, switch: bool
) -> float:
    """Drop or switch wavering tasks, least loss per cost saved first; returns what is left of the excess.

    Where the last change saves a thousand times the excess, another one may give up less: `_close`. paid (N,): what the
    chosen points cost; least: less than it need not be saved by the last change.
    """
    many = opt.task.shape[0]
    ratio, to, now = np.full(many, math.inf), np.empty(many, dtype=np.int64), np.empty(many, dtype=np.int64)
    for place in range(many):
        now[place] = _chosen_option(k, opt, place)
        if now[place] >= 0:
            ratio[place], to[place] = _cheaper(opt, place, now[place], switch)
    while excess > 0.0:
        best = -1
        for place in range(many):
            if ratio[place] < math.inf and (best < 0 or ratio[place] < ratio[best]):
                best = place
        if best < 0:
            break
        m = to[best]
        saved = opt.cost[now[best]] - (opt.cost[m] if m >= 0 else 0.0)
        if TINY_EXCESS * saved >= excess and saved >= least:
            _close(t, k, opt, now, ratio, net, paid, max(excess, least), switch)
            return 0.0
        excess -= saved
        put(t, k, opt.task[best], opt.point[m] if m >= 0 else -1)
        ratio[best] = math.inf
    return excess


@lean
def _drop(t: Table, k: Set, net: Floats, paid: Floats, excess: float) -> None:
    """Drop chosen tasks of the least net value per cost until about the excess is gone, in bulk."""
    low, high = 0.0, 0.0
    for i in range(paid.shape[0]):
        if k.chosen[i] >= 0 and paid[i] > 0.0:
            high = max(high, net[i] / paid[i] * (1.0 + 1e-9))
    for _ in range(HALVINGS):
        middle, saved = 0.5 * (low + high), 0.0
        for i in t.order:
            if k.chosen[i] >= 0 and net[i] <= middle * paid[i]:
                saved += paid[i]
        if saved >= excess:
            high = middle
        else:
            low = middle
    for i in t.order:
        if excess > 0.0 and k.chosen[i] >= 0 and net[i] <= high * paid[i]:
            last = _least(t, k, net, paid, excess) if TINY_EXCESS * paid[i] >= excess else i
            excess -= paid[last]
            put(t, k, last, -1)


@nopython
def _revive(price: Floats, start: Floats) -> None:
    """Prices `start` again where a proof that the set does not fit has left some without a price."""
    least, most = math.inf, 0.0
    for r in range(price.shape[0]):
        if start[r] > 0.0:
            least, most = min(least, price[r] / start[r]), max(most, price[r] / start[r])
    if least < GONE * most:
        for r in range(price.shape[0]):
            price[r] = start[r]


@merged
def repair(t: Table, k: Set, opt: SearchOptions, net: Floats, price: Floats, o: Point) -> None:
    """Drop or switch tasks until the set fits by its tight shares at `price` (R,), which ends balanced."""
    paid, start = np.empty(t.most.shape[0]), price.copy()
    for tried in range(ROUNDS):
        _revive(price, start)
        if fit(t, k, price, True, o) == FIT:
            return
        excess = _bills(t, k, prices_of(t, price), paid, o)
        whole = worth(t, price)
        least = 1e-12 * whole
        if tried > SWITCH_ROUNDS:
            least *= 2.0 ** (tried - SWITCH_ROUNDS)
        reprice(t, opt, prices_of(t, price), o)
        excess = _lessen(t, k, opt, net, paid, max(excess, least), NEARLY * whole, tried < SWITCH_ROUNDS)
        if excess > 0.0:
            _bills(t, k, prices_of(t, price), paid, o)
            _drop(t, k, net, paid, excess)
    for i in t.order:
        put(t, k, i, -1)
    fit(t, k, price, False, o)


@lean
def _candidate(t: Table, k: Set, opt: SearchOptions, spare: float) -> tuple[int, int]:
    """Untried change of one task that adds value and may fit, most value per cost first: (place, option), -1: none."""
    best, where, option = 0.0, -1, -1
    for place in range(opt.task.shape[0]):
        now = _chosen_option(k, opt, place)
        value, paid = (t.value[opt.point[now]], opt.cost[now]) if now >= 0 else (0.0, 0.0)
        for m in range(opt.start[place], opt.start[place + 1]):
            gain, more = t.value[opt.point[m]] - value, opt.cost[m] - paid
            if opt.tried[m] == 0 and gain > SAME and more <= spare * (1.0 + EDGE) + EDGE:
                score = gain / max(more, 1e-3 * spare, 1e-300)
                if score > best:
                    best, where, option = score, place, m
    return where, option


@lean
def shift(t: Table, j: int, o: Point, sign: float, use: Floats) -> None:
    """Add what point j, which is in the scratch, takes to use (R + 1,)."""
    for s in range(o.y.shape[0]):
        use[o.slot[s]] += sign * (o.y[s] + t.cell[j, RIGID, s])
        for c in range(t.link.shape[0]):
            if t.link[c, 0] == o.slot[s]:
                use[t.link[c, 1]] += sign * t.kappa[c] * o.y[s]


@lean
def _fits_beside(t: Table, k: Set, i: int, j: int, p: Prices, use: Floats, after: Floats, o: Point) -> float:
    """Whether task i may change to point j at these prices while all others keep their shares: the room then left.

    Its worth, that is, and use (R + 1,) moves; -1: it may not.
    """
    for r in range(use.shape[0]):
        after[r] = use[r]
    if k.chosen[i] >= 0:
        price_point(t, i, k.chosen[i], p, o)
        shift(t, k.chosen[i], o, -1.0, after)
    price_point(t, i, j, p, o)
    shift(t, j, o, 1.0, after)
    for r in range(use.shape[0] - 1):
        if after[r] > t.room[r] * (1.0 + EDGE) and after[r] > use[r]:
            return -1.0
    left = 0.0
    for r in range(use.shape[0]):
        use[r] = after[r]
        left += p.rigid[r] * max(0.0, t.room[r] - use[r])
    return left


@nopython
def _pack(t: Table, k: Set, opt: SearchOptions, price: Floats, use: Floats, spare: float, o: Point) -> int:
    """Make every change that adds value and fits beside the others, most value per cost first; returns how many.

    What costs more than the spare room is worth cannot fit.
    """
    p, after, score = prices_of(t, price), use.copy(), np.zeros(opt.point.shape[0])
    owner, option, many, packed = np.empty_like(opt.point), np.empty_like(opt.point), 0, 0
    least = 1e-6 * worth(t, price)
    for place in range(opt.task.shape[0]):
        now = _chosen_option(k, opt, place)
        value, paid = (t.value[opt.point[now]], opt.cost[now]) if now >= 0 else (0.0, 0.0)
        for m in range(opt.start[place], opt.start[place + 1]):
            gain, more = t.value[opt.point[m]] - value, opt.cost[m] - paid
            if gain > SAME and more <= spare * (1.0 + EDGE) + EDGE:
                owner[many], option[many], score[many] = opt.task[place], m, gain / max(more, least, 1e-300)
                many += 1
    for m in np.argsort(-score[:many], kind="mergesort"):
        i, j = owner[m], opt.point[option[m]]
        now = k.chosen[i]
        if t.value[j] - (t.value[now] if now >= 0 else 0.0) <= SAME:
            continue
        if now < 0 and opt.cost[option[m]] > spare * (1.0 + EDGE) + EDGE:
            continue
        left = _fits_beside(t, k, i, j, p, use, after, o)
        if left >= 0.0:
            put(t, k, i, j)
            spare, packed = left, packed + 1
    return packed


@lean
def _spare(t: Table, k: Set, price: Floats, use: Floats) -> float:
    """Use of all resources, rigid demand too, into use (R + 1,) after a fit; returns the worth of what is left."""
    left = 0.0
    for r in range(price.shape[0]):
        use[r] = k.use[0, r] + t.room[r] - k.room[r]
        left += price[r] * (t.room[r] - use[r])
    return left


@merged
def fill(t: Table, k: Set, opt: SearchOptions, price: Floats, o: Point) -> None:
    """Admit the rejected and better the admitted while it fits; k fits by its tight shares at `price` (R,) always."""
    use, new, n_tasks = np.zeros(price.shape[0] + 1), price.copy(), t.most.shape[0]
    failures = max(LEAST_FAILURES, min(FAILURES, FAILURES * 100 // max(1, n_tasks)))
    rounds = max(LEAST_ROUNDS, min(FILL_ROUNDS, ROUNDS_TASKS // max(1, n_tasks)))
    for _ in range(rounds):
        balance(t, k, price, o)
        reprice(t, opt, prices_of(t, price), o)
        spare = _spare(t, k, price, use)
        if _pack(t, k, opt, price, use, spare, o) > 0:
            continue
        place, m = _candidate(t, k, opt, spare)
        while place >= 0 and failures > 0:
            opt.tried[m] = 1
            i = opt.task[place]
            now = k.chosen[i]
            put(t, k, i, opt.point[m])
            for r in range(price.shape[0]):
                new[r] = price[r]
            if fit(t, k, new, False, o) == FIT:
                for r in range(price.shape[0]):
                    price[r] = new[r]
                break
            put(t, k, i, now)
            failures -= 1
            place, m = _candidate(t, k, opt, spare)
        if place < 0 or failures == 0:
            break
