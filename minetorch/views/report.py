"""What a page says of a run, as plain values and words. Reads no more than its record."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from minetorch.checkpoint.names import BEST
from minetorch.resumption.history import down_text, duration, lost_text
from minetorch.views.chart import make_chart
from minetorch.views.facts import rule_of
from minetorch.views.output import bytes_text, metrics_text, plural
from minetorch.views.page import render

if TYPE_CHECKING:
    from collections.abc import Sequence

    from minetorch.checkpoint.manifest import Manifest
    from minetorch.checkpoint.run import Item
    from minetorch.views.record import Episode, Record


def render_run(record: Record, *, back: str = "", live_s: float = 0) -> str:
    """The page of a run; `back` is where the list of all runs is, `live_s` as of `page.render`."""
    return render("run.html", run=facts_of_run(record), back=back, live_s=live_s)


def facts_of_run(record: Record) -> dict[str, Any]:
    """All that the page shows; raises StorageError where the storage cannot be read."""
    drawn, newest = record.drawn, record.newest
    seen = [episode.last_seen for episode in record.episodes if episode.last_seen is not None]
    began = [episode.began for episode in record.episodes if episode.began is not None]
    ends = (min(began), max([*seen, *began, *([record.now] if record.is_alive else [])])) if began else None
    return {
        "name": record.name,
        "url": record.url,
        "state": record.state,
        "now": record.now,
        "modified": record.run.modified,
        "figures": _figures(record),
        "problems": [f"An older checkpoint's curves are shown: {drawn.problem}"] if drawn.problem else [],
        "drawn_at": None if drawn.manifest is None else drawn.manifest.step,
        "charts": [
            make_chart(graph.name, graph.x_name, graph.curves, graph.resumes) for graph in drawn.graphs.values()
        ],
        "starts": [_start_facts(episode) for episode in record.episodes],
        "lane": [] if ends is None else lane(record.episodes, *ends, now=record.now),
        "began": None if ends is None else ends[0],
        "seen": None if ends is None else ends[1],
        "checkpoints": _checkpoints(record.items),
        "size": bytes_text(sum(item.size for item in record.items)),
        "settings": {} if newest is None else {name: _value(value) for name, value in newest.settings.items()},
        "origin": {} if newest is None else {**newest.code, **newest.versions},
        "log": record.log_tail(),
    }


def _figures(record: Record) -> list[tuple[str, str, str]]:
    newest, best = record.newest, record.best
    figures = []
    if newest is not None:
        last = newest.settings.get("max_epochs")
        figures.append(("Step", f"{newest.step:,}", ""))
        within = "" if newest.epoch_complete else f"{plural(newest.position, 'iteration')} into it"
        figures.append(("Epoch", f"{newest.epoch}{f' of {last}' if isinstance(last, int) else ''}", within))
    if best is not None and best.monitor in best.metrics:
        value = f"{best.metrics[best.monitor]:.5g}"
        figures.append((f"{BEST.capitalize()} {best.monitor}", value, f"{rule_of(best)}, epoch {best.epoch}"))
    if newest is not None and "samples_per_s" in newest.metrics:
        figures.append(("Throughput", f"{newest.metrics['samples_per_s']:,.5g}", "samples a second"))
    rates = [rate for rate in _rates(record.run.catalogue.manifests) if rate is not None]
    if rates:
        figures.append(("Speed", f"{rates[-1]:,.4g}", "steps a second, between the last two checkpoints"))
    count = record.items[-1].manifest if record.items else None
    workers = "" if count is None else plural(count.world_size, "worker")
    figures.append(("Starts", str(len(record.episodes)), workers))
    return figures


def lane(episodes: Sequence[Episode], began: float, seen: float, *, now: float) -> list[dict[str, Any]]:
    """When each start was at work, in percent of the time from the first to the last sign of life."""
    span = max(seen - began, 1e-9)
    bars = []
    for episode in episodes:
        if episode.began is None:
            continue
        end = now if episode.state == "running" else max(episode.last_seen or episode.began, episode.began)
        bars.append(
            {
                "state": episode.state,
                "left": round(100 * (episode.began - began) / span, 3),
                "width": round(100 * (end - episode.began) / span, 3),
                "title": f"start {episode.generation}: {episode.how or episode.state}, {duration(end - episode.began)}",
            }
        )
    return bars


def _start_facts(episode: Episode) -> dict[str, Any]:
    start = episode.start
    return {
        "generation": episode.generation,
        "began": episode.began,
        "host": episode.host or "?",
        "workers": episode.world_size or "?",
        "origin": "?" if start is None else "scratch" if start.checkpoint is None else f"step {start.step:,}",
        "lost": "?" if start is None else lost_text(start),
        "down": "?" if start is None else down_text(start),
        "loaded": "-" if start is None or start.checkpoint is None else f"{start.load_s:.2f} s",
        "step": "?" if episode.last_step is None else f"{episode.last_step:,}",
        "state": episode.state,
    }


def _checkpoints(items: Sequence[Item]) -> list[dict[str, Any]]:
    """Newest first."""
    manifests = [item.manifest for item in items if item.manifest is not None]
    rates = dict(zip([manifest.name for manifest in manifests], _rates(manifests), strict=True))
    return [
        {
            "file": item.name,
            "names": list(item.names),
            "status": item.status,
            "problem": item.problem,
            "size": bytes_text(item.size),
            "created": item.modified,
            "step": "-" if item.manifest is None else f"{item.manifest.step:,}",
            "epoch": "-" if item.manifest is None else _epoch(item.manifest),
            "metrics": "-" if item.manifest is None else metrics_text(item.manifest.metrics) or "-",
            "rate": "-" if (rate := rates.get(item.name)) is None else f"{rate:,.4g}",
        }
        for item in reversed(items)
    ]


def _epoch(manifest: Manifest) -> str:
    return f"{manifest.epoch}{'' if manifest.epoch_complete else ' (within)'}"


def _rates(manifests: Sequence[Manifest]) -> list[float | None]:
    """Steps a second since the checkpoint before, of the same start; None for its first."""
    rates: list[float | None] = []
    for before, manifest in zip([None, *manifests], manifests, strict=False):
        same = before is not None and before.generation == manifest.generation
        seconds = manifest.created - before.created if before is not None else 0.0
        steps = manifest.step - before.step if before is not None else 0
        rates.append(steps / seconds if same and seconds > 0 and steps > 0 else None)
    return rates


def _value(value: object) -> str:
    return "-" if value is None else f"{value:,}" if type(value) is int and value >= 10_000 else str(value)
