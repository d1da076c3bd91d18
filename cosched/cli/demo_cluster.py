"""The cluster part of `cosched demo`: what a terminal or a pipe is shown of it, and whether all of it holds."""

from __future__ import annotations

import contextlib
import sys
import time
from collections.abc import Iterator
from typing import TYPE_CHECKING, Final

import typer

from cosched.demo.play import DemoCluster, DemoFailed, Played, PlayedSession, Show, play
from cosched.demo.stage import TOKENS, TPOT_S, TTFT_S

if TYPE_CHECKING:
    from rich.text import Text

LINES_S: Final = 2.5  # between two states on a pipe
SHOWN: Final = 8  # tokens on the screen
MS: Final = 1e3
CONSONANTS: Final = "bdfghklmnprstvwz"
RHYMES: Final = ("a", "e", "i", "o", "u", "ai", "au", "ei", "an ", "en ", "in ", "on ", "al ", "er ", "ir ", "us ")

INTRODUCTION: Final = f"""
2. Cluster: a daemon with a local Ray of two nodes, which serve a small model whose weights come from a seed. Four UEs,
   each a process, ask for {TOKENS} tokens: the first within {TTFT_S:g} s, then one every {TPOT_S:g} s or sooner.
   They run their layers at a phone's pace, and what they send takes as long as on their PRBs and the recorded channel.
   Half-way a node is killed. TTFT and TPOT: measured/asked. The model is not trained: a syllable stands for a token."""
HEAD: Final = (
    f"{'':6}{'b/s/Hz':>6}  {'on UE':<6}{'sent in':<8}{'to':<6}{'PRBs':>4}{'tokens':>7}{'per s':>6}"
    f"{'TTFT, ms':>10}{'TPOT, ms':>10}  latest tokens"
)


async def show_cluster(cluster: DemoCluster) -> None:
    """Play the part and say how it went. Raises DemoFailed, DaemonEnded, NoAnswer."""
    typer.echo(INTRODUCTION)
    with _screen() as show:
        played = await play(cluster, show)
    typer.echo("\n".join(summary(played)))
    if failures := list(what_fails(played)):
        raise DemoFailed("; ".join(failures))


def what_fails(played: Played) -> Iterator[str]:
    """Yield what should hold on any machine, and does not."""
    if not played.victim:
        yield "no node was killed: the sessions had ended before"
    for session in played.sessions.values():
        got = len(session.tokens)
        if session.ended is None or session.checked is None:
            why = session.ended.why if session.ended else "its process ended"
            yield f"{session.ue} was not served: {why}"
        elif session.ended.tokens != got or not (got == played.tokens or session.ended.why):
            yield f"{session.ue} has {got} tokens of {played.tokens} without a reason"
        elif session.checked.equal != got:
            yield f"{session.ue}: token {session.checked.equal + 1} is not the whole model's"


# --- words ----------------------------------------------------------------------------------------------------------


def syllables(tokens: list[int]) -> str:
    """A word for a token: the model has learned none."""
    return "".join(CONSONANTS[token // 16 % 16] + RHYMES[token % 16] for token in tokens)


def line(session: PlayedSession) -> str:
    """A UE, what it was granted, and how it goes."""
    if not session.leases:
        return f"{session.ue:6}{'waits for a decision' if session.lease is None else session.lease.text}"
    lease, latest = session.leases[-1], session.latest
    ttft = f"{MS * latest.ttft_s:.0f}/{MS * TTFT_S:.0f}" if latest else ""
    tpot = f"{MS * latest.tpot_s:.0f}/{MS * TPOT_S:.0f}" if latest and latest.tpot_s else ""
    said = syllables(session.tokens[-SHOWN:])
    return (
        f"{session.ue:6}{lease.efficiency_bps_hz:6.2f}  {f'k={lease.split_layer}':<6}"
        f"{f'{lease.precision_bits} bit':<8}{lease.node:<6}{lease.weight_prb:4.0f}{len(session.tokens):7}"
        f"{session.tokens_per_s:6.1f}{ttft:>10}{tpot:>10}  {said}{_mark(session)}"
    )


def _mark(session: PlayedSession) -> str:
    """What is out of the ordinary."""
    if session.ended:
        return f" ended: {session.ended.why}" if session.ended.why else " (all)"
    if session.lease and not session.lease.point:
        return f" [{session.lease.reason.replace('_', ' ')}]"
    return ""


def news(played: Played) -> str:
    """What became of the node that was killed."""
    if not played.victim:
        return ""
    after_s = time.monotonic() - played.killed_s
    state = played.state_of(played.victim)
    if state == "up":
        state = "up again" if played.noticed else "not missed yet"
    moved = [s.ue for s in played.sessions.values() if any(lease.reason == "moved_node_lost" for lease in s.leases)]
    went = f"; {', '.join(moved)} moved, their KV made anew" if moved else ""
    return f"SIGKILL to the Ray node of {played.victim} {after_s:.1f} s ago: {state}{went}"


def summary(played: Played) -> Iterator[str]:
    """Yield what the part showed, UE by UE."""
    yield ""
    for session in played.sessions.values():
        if session.checked is None or session.latest is None:
            continue
        checked, (ttft_s, tpot_s) = session.checked, session.leases[0].predicted_s
        rounded = checked.equal - checked.unrounded
        yield (
            f"   {session.ue}: {len(session.tokens)} tokens; the first after {MS * session.latest.ttft_s:.0f} ms "
            f"(planned {_ms(ttft_s)}, asked {MS * TTFT_S:.0f}), then one every {MS * checked.tpot_s:.0f} ms "
            f"(planned {_ms(tpot_s)}, asked {MS * TPOT_S:.0f});"
        )
        yield f"         {', then '.join(_stays(session))};"
        if session.ended and session.ended.why:
            yield f"         ended early: {session.ended.why};"
        yield (
            f"         {checked.equal} equal to the unsplit model's with the same seed and the same rounding"
            + (f"; without rounding {rounded} would be others." if rounded else ", and to those without rounding.")
        )
    yield f"   {news(played)}."


def _ms(seconds: float | None) -> str:
    return "-" if seconds is None else f"{MS * seconds:.0f}"


def _stays(session: PlayedSession) -> Iterator[str]:
    """Yield each operating point that the session was at."""
    yield session.leases[0].point
    for move in session.moves:
        yield f"{move.point} from token {move.tokens + 1} ({move.how})"


# --- on a terminal, on a pipe ---------------------------------------------------------------------------------------


def picture(played: Played) -> str:
    """The state in lines."""
    return "\n".join(["", HEAD, *map(line, played.sessions.values()), "", news(played), ""])


def styled(played: Played) -> Text:
    """The state as a terminal shows it."""
    from rich.text import Text

    text = Text(picture(played), no_wrap=True, overflow="ellipsis")
    text.highlight_words([HEAD], "bold")
    text.highlight_regex(r"SIGKILL.*", "bold red")
    for session in played.sessions.values():
        text.highlight_words([syllables(session.tokens[-SHOWN:])] if session.tokens else [], "cyan")
    return text


@contextlib.contextmanager
def _screen() -> Iterator[Show]:
    """Yield what shows the state: a picture on a terminal, else lines now and then."""
    if not sys.stdout.isatty():
        yield _Lines().show
        return
    from rich.console import Console
    from rich.live import Live

    with Live(console=Console(), auto_refresh=False) as live:
        yield lambda _, played: live.update(styled(played), refresh=True)


class _Lines:
    """Prints the state at every event, and every LINES_S while tokens come."""

    def __init__(self) -> None:
        self._due_s = 0.0

    def show(self, event: bool, played: Played) -> None:
        """Print what there is to say."""
        now_s, over = time.monotonic(), all(session.ended for session in played.sessions.values())
        if event or (now_s >= self._due_s and not over):
            self._due_s = now_s + LINES_S
            typer.echo(picture(played).rstrip())
