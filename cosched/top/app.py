"""The dashboard's screens and keys; what they say stands in view.py, where it comes from in watch.py."""

from __future__ import annotations

import time
from collections.abc import Callable, Coroutine
from typing import Any, ClassVar, Final

from rich.text import Text
from textual import work
from textual.app import App, ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import Horizontal, VerticalScroll
from textual.coordinate import Coordinate
from textual.screen import ModalScreen
from textual.widgets import DataTable, Footer, Input, Static

from cosched.api.async_client import AsyncClient
from cosched.api.messages import Status
from cosched.errors import CoschedError
from cosched.top import view
from cosched.top.watch import MOST_TASKS, Watch

HELP: Final = """\
s, S      sort by the next, the last column; a click on its head too
r         the other way round
/         filter: rows that contain a text; Esc clears it
Enter     why a task has what it has, or was refused
arrows    move; PageUp, PageDown, Home, End too
q         quit

ms/limit  predicted latency and deadline of the task's present phase: to
          its first token, then from token to token; or of a frame
slack     what is left between the two
PRBs      its part of the cell; node%: its part of the node
lease     ms for which its decision holds; it is renewed all the time
promise   'no promise': the plan does not hold its deadlines now
planned   what the plan counts on, of a cell or node
gap       how far the plan can be from the best one, at most
submit    ms, median/p99, from a submit to its decision; solve: of a
          solve; plan: of a plan, from its input to its leases

Refused tasks stay in the table for a minute.
"""


class Page(ModalScreen[None]):
    """A text over the dashboard, until Esc."""

    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("escape,enter,q,question_mark", "dismiss", "back"),
    ]

    def __init__(self, text: str, better: Coroutine[Any, Any, str] | None = None) -> None:
        """`better` brings the text that takes the place of the first."""
        super().__init__()
        self._text = text
        self._better = better

    def compose(self) -> ComposeResult:
        """Lay out."""
        with VerticalScroll(id="page"):
            yield Static(self._text, id="text", markup=False)
        yield Footer(show_command_palette=False)

    def on_mount(self) -> None:
        """Have the better text brought; it is given up when the page is closed."""
        if self._better is not None:
            self.run_worker(self._replace(self._better))

    async def _replace(self, better: Coroutine[Any, Any, str]) -> None:
        self.query_one("#text", Static).update(await better)


class Tasks(DataTable[Text]):
    """The table of tasks; Enter is said to be what it does here."""

    BINDINGS: ClassVar[list[BindingType]] = [Binding("enter", "select_cursor", "explain")]


class Top(App[None]):
    """The dashboard of the daemon that `connect` reaches, refreshed every `every_s` seconds."""

    TITLE = "cosched top"
    ENABLE_COMMAND_PALETTE = False
    CSS = """
    #head, #alarms, #count { height: auto; }
    #alarms { text-style: bold; color: $text-warning; }
    #site { height: auto; max-height: 9; margin: 1 0; overflow-y: auto; }
    #cells { width: auto; margin-right: 4; }
    #nodes { width: auto; }
    #filter { height: 1; border: none; padding: 0; display: none; }
    #filter.open { display: block; }
    #tasks { height: 1fr; scrollbar-size: 1 1; }
    #page { border: round $primary; padding: 0 1; scrollbar-size: 1 1; }
    Page { align: center middle; }
    """
    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("s", "sort(1)", "sort"),
        Binding("S", "sort(-1)", "sort back", show=False),
        Binding("r", "reverse", "reverse"),
        Binding("slash", "filter", "filter", key_display="/"),
        Binding("escape", "clear", "clear filter", show=False),
        Binding("question_mark", "help", "help", key_display="?"),
        Binding("q", "quit", "quit"),
    ]

    def __init__(self, connect: Callable[[], AsyncClient], every_s: float) -> None:
        super().__init__()
        self.watch_daemon = Watch(connect, every_s, self._changed)
        self._sorted_by = view.COLUMNS[0]
        self._descending = False
        self._wanted = ""
        self._shown: list[view.TableRow] = []
        self._heard_s = 0.0

    def compose(self) -> ComposeResult:
        """Lay out."""
        yield Static(id="head", markup=False)
        yield Static(id="alarms", markup=False)
        with Horizontal(id="site"):
            yield Static(id="cells", markup=False)
            yield Static(id="nodes", markup=False)
        yield Static(id="count", markup=False)
        yield Input(placeholder="part of any column; Enter: back to the tasks, Esc: no filter", id="filter")
        yield Tasks(id="tasks", cursor_type="row", cell_padding=0)
        yield Footer(show_command_palette=False)

    def on_mount(self) -> None:
        """Begin to follow the daemon."""
        for name in view.COLUMNS:
            self._table.add_column(_cell(name, name), key=name)
        self._table.focus()
        self.query_one("#site").display = False
        self._follow()

    @work
    async def _follow(self) -> None:
        await self.watch_daemon.run()

    @property
    def _table(self) -> Tasks:
        return self.query_one(Tasks)

    # --- drawing ------------------------------------------------------------------------------------------------

    def _changed(self) -> None:
        """Draw what is known."""
        daemon = self.watch_daemon
        if not self.is_running:  # the app is ending
            return
        if not daemon.trouble:
            self._heard_s = time.monotonic()
        if daemon.status is not None:
            self._draw(daemon.status, daemon)
        if daemon.trouble:
            ago = f" for {view.span(time.monotonic() - self._heard_s)}; below: as it was" if daemon.status else ""
            self._say("#head", f"NO DAEMON{ago}")
            self._say("#alarms", f"trying again: {view.plain(daemon.trouble)}")

    def _draw(self, found: Status, daemon: Watch) -> None:
        self.query_one("#site").display = True
        self._say("#head", "\n".join(view.head(found)))
        self._say("#alarms", "\n".join(view.alarms(found)))
        self._say("#cells", "\n".join(view.cells(found)))
        self._say("#nodes", "\n".join(view.nodes(found)))
        rows = view.rows(daemon.tasks.tasks, daemon.turned_away)
        self._arrange(view.arranged(rows, self._sorted_by, self._wanted, descending=self._descending))
        self._say("#count", self._counted(len(rows), daemon.tasks.total))

    def _counted(self, n_rows: int, n_tasks: int) -> str:
        """What the table below shows, in words: order and filter are no colours."""
        order = f"by {self._sorted_by}, {'descending' if self._descending else 'ascending'}"
        some = f", {len(self._shown)} of {n_rows} contain '{view.plain(self._wanted)}'" if self._wanted else ""
        more = f", the first {MOST_TASKS} of {n_tasks}" if n_tasks > MOST_TASKS else ""
        return f"tasks {order}{some}{more}"

    def _say(self, where: str, text: str) -> None:
        widget = self.query_one(where, Static)
        widget.display = bool(text)
        widget.update(text)

    def _arrange(self, rows: list[view.TableRow]) -> None:
        """Bring the table to these rows, the cursor staying with its task; cells that are the same are left alone."""
        table, chosen = self._table, self._chosen()
        while table.row_count > len(rows):
            table.remove_row(table.coordinate_to_cell_key(Coordinate(table.row_count - 1, 0)).row_key)
        for i, row in enumerate(rows):
            texts = [cell.text for cell in row.cells]
            if i == table.row_count:
                table.add_row(*map(_cell, view.COLUMNS, texts))
                continue
            for j, (name, text, was) in enumerate(zip(view.COLUMNS, texts, self._shown[i].cells, strict=True)):
                if text != was.text:
                    table.update_cell_at(Coordinate(i, j), _cell(name, text), update_width=True)
        self._shown = rows
        at = next((i for i, row in enumerate(rows) if row.task == chosen), None)
        if at is not None and at != table.cursor_row:
            table.move_cursor(row=at)

    def _chosen(self) -> str:
        """Task under the cursor, "" where there is none."""
        row = self._table.cursor_row
        return self._shown[row].task if 0 <= row < len(self._shown) else ""

    # --- keys ---------------------------------------------------------------------------------------------------

    def action_sort(self, step: int) -> None:
        """Sort by another column."""
        at = (view.COLUMNS.index(self._sorted_by) + step) % len(view.COLUMNS)
        self._sort_by(view.COLUMNS[at])

    def on_data_table_header_selected(self, event: DataTable.HeaderSelected) -> None:
        """Sort by the column that was clicked on; a second click turns it round."""
        name = str(event.column_key.value)
        if name == self._sorted_by:
            self.action_reverse()
        else:
            self._sort_by(name)

    def _sort_by(self, name: str) -> None:
        self._sorted_by, self._descending = name, name in view.GREATEST_FIRST
        self._changed()

    def action_reverse(self) -> None:
        """Sort the other way round."""
        self._descending = not self._descending
        self._changed()

    def action_filter(self) -> None:
        """Open the filter."""
        box = self.query_one("#filter", Input)
        box.add_class("open")
        box.focus()

    def on_input_changed(self, event: Input.Changed) -> None:
        """Filter while it is typed."""
        self._wanted = event.value
        self._changed()

    def on_input_submitted(self) -> None:
        """Back to the table; the filter stays."""
        self._table.focus()

    def action_clear(self) -> None:
        """Close the filter."""
        box = self.query_one("#filter", Input)
        box.value = ""
        box.remove_class("open")
        self._table.focus()

    def action_help(self) -> None:
        """Say what the keys do."""
        self.push_screen(Page(HELP))

    def on_data_table_row_selected(self, _: DataTable.RowSelected) -> None:
        """Enter, or a click, on a task."""
        if task := self._chosen():
            self.push_screen(Page(f"{view.plain(task)}: asking why ...", self._why(task)))

    async def _why(self, task: str) -> str:
        try:
            return "\n".join(view.explanation(await self.watch_daemon.explain(task)))
        except CoschedError as error:
            return view.plain(f"{task}: {error}")


def _cell(column: str, text: str) -> Text:
    """One blank before each but the first keeps columns apart at no cost of width."""
    blank = "" if column == view.COLUMNS[0] else " "
    return Text(blank + text, justify="right" if column in view.NUMBERS else "left")
