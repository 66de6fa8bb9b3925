"""Where training stands in its data, and how a new process gets there.

An epoch's order, and what its workers draw, follow from the random streams at a few moments: as the loaders
are made, as the epoch's iterator is, as its first batch is drawn, and as a shorter loader of several starts
again. Those are kept, and the batches used since are drawn once more and dropped. Loaders with
``state_dict`` and ``load_state_dict`` are put where they were by Lightning, without drawing.

Knows nothing about metrics, counters and saving.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from lightning.pytorch import Trainer
from lightning.pytorch.utilities.rank_zero import rank_zero_warn

from .loaders import (
    cycle_lengths,
    drawing,
    flattened,
    get_state,
    is_iterable_style,
    num_workers,
    set_epoch,
    set_generators,
    set_state,
)
from .plain import NotPlain, decode, encode
from .rng import get_global_rng, set_global_rng

_LOADERS_MADE, _ITERATOR_MADE = -2, -1  # keys of moments; the others are numbers of batches drawn
Moment = dict[str, Any]


class DataPosition:
    """Of one fit; its methods stand around those of Lightning's loops that touch the loaders.

    Nothing is touched where the module says that it ``owns_data_position``.
    """

    def __init__(self, trainer: Trainer) -> None:
        self._trainer = trainer
        self._moments: dict[int, Moment] = {}
        self._val_loaders_made: Moment | None = None
        self._cycles: list[int] = []
        self._pending: dict[str, Any] | None = None
        self._loader_states: list[Any] = []
        self._is_epoch_over = False
        self._streams_drawn: set[str] = set()

    def resume_from(self, state: dict[str, Any], loader_states: list[Any], is_epoch_over: bool) -> None:
        """The loaders made next continue from what `capture` gave, Lightning's own states beside it."""
        self._pending, self._loader_states, self._is_epoch_over = state, loader_states, is_epoch_over
        self._moments = dict(state["moments"])
        self._val_loaders_made = state["val_loaders_made"]

    # -- around Lightning's own -----------------------------------------------------------------

    def make_train_loaders(self, setup_data: Callable[[], None]) -> None:
        """Around the fit loop's ``setup_data``, which mostly finds nothing to do."""
        loop = self._trainer.fit_loop
        if self._is_ours and (loop._combined_loader is None or loop._should_reload_train_dl):
            if self._pending is not None:
                set_global_rng(self._moments[_LOADERS_MADE]["global"])
            else:
                self._moments = {_LOADERS_MADE: self._now()}
        setup_data()

    def make_val_loaders(self, setup_data: Callable[[], None]) -> None:
        """Around the validation loop's ``setup_data``."""
        loop = self._trainer.fit_loop.epoch_loop.val_loop
        if self._is_ours and (loop._combined_loader is None or loop._should_reload_val_dl):
            if self._pending is not None and self._val_loaders_made is not None:
                set_global_rng(self._val_loaders_made["global"])
            else:
                self._val_loaders_made = {"global": get_global_rng()}
        setup_data()

    def make_first_iterator(self, load_loader_states: Callable[[], None]) -> None:
        """Around what Lightning does last before the first ``iter``, and that of loaders made anew."""
        load_loader_states()
        if not self._is_ours:
            return
        if self._pending is None:
            self._moments[_ITERATOR_MADE] = self._now()
            return
        if self._is_epoch_over:
            return  # the next epoch makes another
        progress: Any = self._trainer.fit_loop.epoch_progress
        for loader in self._train_loaders:
            set_epoch(loader, progress.current.processed)
        self._put_back(self._moments[_ITERATOR_MADE])

    def start_epoch(self, on_run_start: Callable[[Any], None], fetcher: Any) -> None:
        """Around the epoch loop's ``on_run_start``, which makes the iterator of every later epoch."""
        if not self._is_ours:
            on_run_start(fetcher)
            return
        before, iterator = self._now(), fetcher.combined_loader._iterator
        on_run_start(fetcher)
        self._cycles = cycle_lengths(fetcher.combined_loader)
        if self._pending is not None:
            self._go_there(fetcher, self._pending)
            return
        if fetcher.combined_loader._iterator is iterator:
            before = self._moments[_ITERATOR_MADE]
        self._moments = {_LOADERS_MADE: self._moments[_LOADERS_MADE], _ITERATOR_MADE: before}
        self._moments[fetcher.fetched] = self._now()

    @property
    def has_cycles(self) -> bool:
        """Whether `note_cycle` is to be called at every boundary."""
        return bool(self._cycles)

    def note_cycle(self) -> None:
        """At a boundary: does a shorter loader start again with the next batch?"""
        fetcher = self._trainer.fit_loop._data_fetcher
        if fetcher is not None and any(fetcher.fetched % length == 0 for length in self._cycles):
            self._moments.setdefault(fetcher.fetched, self._now())

    # -- state ----------------------------------------------------------------------------------

    def capture(self) -> dict[str, Any] | None:
        """The moments, how much was drawn since, and where the loaders' own generators stand."""
        fetcher: Any = self._trainer.fit_loop._data_fetcher
        if not self._is_ours or fetcher is None:
            return None
        ahead = getattr(fetcher, "batches", [])
        return {
            "moments": dict(self._moments),
            "val_loaders_made": self._val_loaders_made,
            "num_drawn": fetcher.fetched,
            "num_ahead": len(ahead),
            "ahead": _encoded_or_none(ahead),
            "is_done": fetcher.done,
            "now": self.get_generators(),
        }

    def finish(self) -> None:
        """Last of all: generators of the loaders as at the boundary, where drawing has moved them."""
        if self._pending is not None:
            self.set_generators(self._pending["now"])
        self._pending, self._loader_states = None, []

    def get_generators(self) -> dict[str, Any]:
        """Those of all loaders and what is in them."""
        return get_state(self._all_loaders)

    def set_generators(self, state: dict[str, Any]) -> None:
        """Put back what `get_generators` gave."""
        set_generators(self._all_loaders, state)

    @property
    def _is_ours(self) -> bool:
        return not getattr(self._trainer.lightning_module, "owns_data_position", False)

    @property
    def _train_loaders(self) -> list[Any]:
        return flattened(self._trainer.fit_loop._combined_loader)

    @property
    def _all_loaders(self) -> list[Any]:
        return [*self._train_loaders, *flattened(self._trainer.fit_loop.epoch_loop.val_loop._combined_loader)]

    def _now(self) -> Moment:
        return {"global": get_global_rng(), **get_state(self._train_loaders)}

    def _put_back(self, moment: Moment) -> None:
        set_state(self._train_loaders, moment)
        set_global_rng(moment["global"])

    # -- going there ----------------------------------------------------------------------------

    def _go_there(self, fetcher: Any, state: dict[str, Any]) -> None:
        fetcher.fetched -= (
            self._trainer.fit_loop.epoch_loop.batch_progress.current.ready
        )  # added by Lightning
        if not self._loader_states:
            self._draw_again(fetcher, state["num_drawn"] - state["num_ahead"])
        elif state["num_ahead"]:
            _iterate_without_fetching(fetcher, self._loader_states)
        if state["ahead"] is not None and hasattr(fetcher, "batches"):
            fetcher.batches = decode(state["ahead"])
        fetcher.fetched, fetcher.done = state["num_drawn"], state["is_done"]

    def _draw_again(self, fetcher: Any, num_batches: int) -> None:
        fetcher.done = False
        draw, start = drawing(fetcher), get_global_rng()
        for index in range(num_batches):
            if fetcher.fetched in self._moments:
                self._put_back(self._moments[fetcher.fetched])
                start = get_global_rng()
            try:
                draw()
            except StopIteration:
                raise RuntimeError(
                    f"the data end after {index} batches of this epoch, but the run to be resumed had used "
                    f"{num_batches}; resume with the data it was started with"
                ) from None
        self._streams_drawn = _moved(start, get_global_rng())

    def warn_of_shared_streams(self, at_boundary: dict[str, Any]) -> None:
        """Drawing again follows an iterable dataset only where nothing else drew from its streams."""
        state = self._pending
        if state is None or self._loader_states or (state["is_done"] and not state["num_ahead"]):
            return
        shared = _moved(at_boundary, get_global_rng()) & self._streams_drawn
        if shared and any(is_iterable_style(one) and not num_workers(one) for one in self._train_loaders):
            rank_zero_warn(
                "the position in the data may be inexact: an iterable dataset draws from the same global "
                f"stream ({', '.join(sorted(shared))}) as the steps between; give it its own generator, or "
                "a state_dict"
            )


def _moved(before: dict[str, Any], after: dict[str, Any]) -> set[str]:
    """Names of the streams that stand elsewhere."""
    moved = {"python"} if before["python"] != after["python"] else set()
    (_, keys, *rest), (_, other_keys, *other_rest) = before["numpy"], after["numpy"]
    if rest != other_rest or not keys.equal(other_keys):
        moved.add("numpy")
    return moved if before["torch"].equal(after["torch"]) else moved | {"torch"}


def _encoded_or_none(batches: list[Any]) -> list[Any] | None:
    try:
        return encode(batches) if batches else []
    except NotPlain:
        return None


def _iterate_without_fetching(fetcher: Any, loader_states: list[Any]) -> None:
    """The batch fetched ahead is in the checkpoint, and the loaders' states stand behind it."""
    fetcher.combined_loader._load_state_dicts(loader_states)
    fetcher.prefetch_batches, num_ahead = 0, fetcher.prefetch_batches
    iter(fetcher)
    fetcher.prefetch_batches = num_ahead
