"""Stop strings across all borders of pieces."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from cosched.serve.stops import StopScan


def told(pieces: list[str], stops: list[str]) -> tuple[str, bool]:
    scan = StopScan(stops)
    out = "".join(scan.push(piece) for piece in pieces)
    return out + scan.end(), scan.stopped


@given(
    text=st.text("ab", max_size=30), stops=st.lists(st.text("ab", min_size=1, max_size=5), max_size=3), data=st.data()
)
def test_it_stops_where_the_first_stop_begins_wherever_text_is_cut(text: str, stops: list[str], data: st.DataObject):
    borders = sorted(data.draw(st.lists(st.integers(0, len(text)), max_size=6)))
    cut = [text[a:b] for a, b in zip([0, *borders], [*borders, len(text)], strict=True)]
    out, stopped = told(cut, stops)
    assert stopped == any(stop in text for stop in stops)
    if not stopped:
        assert out == text
    else:
        assert not any(stop in out for stop in stops)
        assert text.startswith(out)
        assert any(text[len(out) :].startswith(stop) for stop in stops)


def test_nothing_that_may_become_one_is_told_early():
    scan = StopScan(["\nUser:"])
    assert [scan.push(piece) for piece in ("Yes", "\n", "Us", "ual")] == ["Yes", "", "", "\nUsual"]
    assert [scan.push(piece) for piece in ("\nUser", ": more", "x")] == ["", "", ""]
    assert scan.stopped
    assert scan.end() == ""
