"""The monitor: what one engine waits for, how it is shown and exported, what it leaves alone, and forks."""

from __future__ import annotations

import gc
import re
import sys
import threading
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import suppress
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from crew import fork
from prometheus_client import CollectorRegistry
from prometheus_client.parser import text_string_to_metric_families
from sqlalchemy import literal_column, select

from ruv_swarm_store import Conflict, Store
from ruv_swarm_store.engines import metering
from ruv_swarm_store.engines.postgresql.metering import LOCKS, POOL
from ruv_swarm_store.engines.sqlite.connections import Reader, Writer
from ruv_swarm_store.engines.sqlite.metering import PROCESSES, THREADS
from ruv_swarm_store.errors import Unsupported
from ruv_swarm_store.monitor import PerformanceMonitor, Timing, verbs
from ruv_swarm_store.monitor.report import size, span
from ruv_swarm_store.store import Repositories

if TYPE_CHECKING:
    from pg_server import Databases


@pytest.fixture
def store(path: Path) -> Iterator[Store]:
    with Store.open(path, monitor=True) as store:
        store.agents.register("worker", id="worker")
        store.monitor.reset()
        yield store


def waits(store: Store) -> dict[str, Timing]:
    return {row.name: row for row in store.monitor.snapshot().waits}


def counts(store: Store) -> dict[str, int]:
    return {row.name: row.count for row in store.monitor.snapshot().operations}


# Waiting


def test_waiting_for_another_thread_s_write_is_told(store: Store) -> None:
    begun = threading.Event()

    def hold() -> None:
        with store.transaction() as work:
            work.config.set("a", 1)
            begun.set()
            time.sleep(0.05)

    thread = threading.Thread(target=hold)
    thread.start()
    begun.wait(10)
    store.config.set("b", 1)
    thread.join()
    found = waits(store)
    assert found.keys() == {THREADS}
    assert found[THREADS].count == 1
    assert 0.02 < found[THREADS].max < 5


def test_waiting_for_another_process_s_write_is_told(store: Store, path: Path) -> None:
    with Store.open(path) as other:
        for write in (lambda: store.config.set("b", 1), lambda: store.agents.register("scout")):  # of one statement, and of several
            begun = threading.Event()

            def hold() -> None:
                with other.transaction() as work:
                    work.config.set("a", 1)
                    begun.set()
                    time.sleep(0.04)

            thread = threading.Thread(target=hold)
            thread.start()
            begun.wait(10)
            write()
            thread.join()
    found = waits(store)
    assert found.keys() == {PROCESSES}
    assert found[PROCESSES].count == 2
    assert 0.03 < found[PROCESSES].total < 5


def test_waiting_for_what_another_transaction_holds_is_told(postgresql: Databases) -> None:
    address = postgresql.new(absent=True)
    try:
        with Store.open(address, monitor=True) as store:
            agent = store.agents.register("a")
            begun = threading.Event()

            def hold() -> None:
                with store.transaction() as work:
                    work.lock("plan")
                    work.agents.find_by_id(agent.id)
                    begun.set()
                    time.sleep(0.3)

            thread = threading.Thread(target=hold)
            thread.start()
            begun.wait(10)
            with store.transaction() as work:
                work.lock("plan")
            thread.join()
            assert waits(store)[LOCKS].max > 0.1
    finally:
        postgresql.drop(address)


def test_waiting_for_a_connection_is_told(postgresql: Databases) -> None:
    address = postgresql.new(absent=True)
    try:
        with Store.open(f"{address}&pool_size=1", monitor=True) as store:
            begun = threading.Event()

            def hold() -> None:
                with store.transaction() as work:
                    work.config.set("a", 1)
                    begun.set()
                    time.sleep(0.1)

            thread = threading.Thread(target=hold)
            thread.start()
            begun.wait(10)
            store.config.set("b", 1)
            thread.join()
            assert waits(store)[POOL].max > 0.03
            footprint = store.monitor.snapshot().footprint
            assert footprint is not None
            assert footprint.cache_hits is not None
            assert 0 <= footprint.cache_hits <= 1
            assert footprint.connections == 1
            with store.transaction() as work:
                work.tasks.find_by_id("nowhere")
            assert any("FOR NO KEY UPDATE" in row.name for row in store.monitor.snapshot().statements)
    finally:
        postgresql.drop(address)


def test_the_log_of_a_file_has_a_size(store: Store) -> None:
    store.config.set("k", "x" * 10_000)
    footprint = store.monitor.snapshot().footprint
    assert footprint is not None
    assert footprint.log is not None
    assert footprint.log > 10_000


# Off


def test_while_it_is_off_nothing_is_in_the_way(path: Path) -> None:
    with Store.open(path) as store:
        store.tasks.count()
        engine: Any = store._engine
        plain = type(engine._writer), type(engine._lock), type(store), store._beginning.now.func, {**vars(store)}.keys()  # type: ignore[attr-defined]
        store.monitor.start()
        store.tasks.count()
        assert type(engine._writer) is not plain[0]
        store.monitor.stop()
        assert plain[0] is Writer
        assert (type(engine._writer), type(engine._lock), type(store), store._beginning.now.func) == plain[:4]  # type: ignore[attr-defined]
        assert {type(reader) for reader in engine._readers} == {Reader}
        assert type(store.tasks).claim is Store.tasks.func(store).claim.__func__  # type: ignore[attr-defined]


def test_every_verb_is_timed_but_those_that_only_begin(store: Store) -> None:
    nouns = {name: made for name, made in vars(Repositories).items() if isinstance(made, cached_property)}
    assert len(nouns) == 7
    lazy = set()
    for noun in nouns:
        kind = type(getattr(store, noun))._of
        public = {name for name in dir(kind) if not name.startswith("_") and callable(getattr(kind, name)) and name != "statements"}
        lazy |= {f"{name}" for name in public - verbs.timeable(kind).keys()}
    assert lazy == {"query", "where", "samples", "conversation", "pages", "walk", "walk_stream", "follow", "follow_async"}


def test_a_store_dropped_open_is_warned_of_as_ever(path: Path) -> None:
    store = Store.open(path, monitor=True)
    store.tasks.enqueue("t")
    gc.disable()
    try:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            del store
    finally:
        gc.enable()
    assert [warning.category for warning in caught] == [ResourceWarning]


# Bounds


def test_beyond_a_number_of_statements_they_are_counted_together(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(metering, "MOST", 10)
    for n in range(30):
        assert store.execute(select(literal_column(str(n)))) == [(n,)]
        with store.monitor.track(f"own {n}"):
            pass
    rows = {row.name: row.count for row in store.monitor.snapshot().statements}
    assert len(rows) <= 11
    assert rows["(other statements)"] >= 20
    assert sum(rows.values()) == 30
    assert sum(counts(store).values()) == 60
    assert len(counts(store)) <= 11


def test_reset_forgets_names_too(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(metering, "MOST", 300)  # verbs have names from the start
    for round_ in range(2):
        for n in range(300):
            store.execute(select(literal_column(f"{round_} + {n}")))
            with store.monitor.track(f"own {round_} {n}"):
                store.tasks.count()
        store.monitor.reset()
    store.execute(select(literal_column("7")))
    store.tasks.count()
    with store.monitor.track("own"):
        pass
    assert sorted(row.name[:12] for row in store.monitor.snapshot().statements) == ["SELECT 7", "SELECT count"]
    assert counts(store) == {"own": 1, "execute": 1, "tasks.count": 1}


def test_threads_that_ask_at_the_same_time_get_one_monitor(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    both, plain, found = threading.Barrier(2), PerformanceMonitor.__init__, []

    def make(monitor: PerformanceMonitor, *given: Any) -> None:
        plain(monitor, *given)
        with suppress(threading.BrokenBarrierError):
            both.wait(0.2)  # in vain where only one gets here

    monkeypatch.setattr(PerformanceMonitor, "__init__", make)
    with Store.open(path) as store:
        threads = [threading.Thread(target=lambda: found.append(store.monitor)) for _ in range(2)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert [monitor is store.monitor for monitor in found] == [True, True]


# A child process


def test_a_forked_child_counts_for_itself(store: Store) -> None:
    store.tasks.enqueue("t")

    def job() -> Any:
        before = counts(store)
        store.tasks.enqueue("t")
        store.tasks.count()
        statements = [row.count for row in store.monitor.snapshot().statements]
        return before, sorted(counts(store)), statements, store.monitor.on

    join = fork(job)
    store.tasks.enqueue("t")
    assert join() == repr(({}, ["tasks.count", "tasks.enqueue"], [1, 1], True))
    assert counts(store) == {"tasks.enqueue": 2}


def test_a_forked_child_begins_at_nothing_though_it_was_off(store: Store) -> None:
    store.tasks.enqueue("t")
    store.monitor.stop()

    def job() -> Any:
        before = counts(store)
        store.monitor.start()
        store.tasks.enqueue("t")
        return before, counts(store)

    assert fork(job)() == repr(({}, {"tasks.enqueue": 1}))
    assert counts(store) == {"tasks.enqueue": 1}


# How it is shown


def test_the_report_is_a_table(store: Store) -> None:
    store.monitor.start(slow=0.0)
    for n in range(3):
        store.tasks.enqueue("t", n)
    with store.tasks.cached() as cached:
        for _ in range(4):
            cached.get(store.tasks.find_all()[0].id)
        report = store.monitor.report()
    lines = str(report).splitlines()
    assert f"{report}" == repr(report)
    [head] = [line for line in lines if line.startswith("operation")]
    [row] = [line for line in lines if line.startswith("tasks.enqueue ")]
    assert head.split()[:3] == ["operation", "count", "errors"]
    assert row.split()[1:3] == ["3", "0"]
    assert len(head) == len(row)
    assert re.search(r"^tasks +3 +1 +75\.0%", report, re.MULTILINE)
    assert re.search(r"^database \d.* kB, log \d.*, \d+ connections$", report, re.MULTILINE)
    assert re.search(r"^slow: .*\n    SELECT .*\n    SCAN tasks", report, re.MULTILINE)


def test_in_a_notebook_the_report_is_html(store: Store) -> None:
    with store.monitor.track("<b>&"):
        store.execute(select(literal_column("'<i>'")))
    html = store.monitor.report()._repr_html_()
    assert "&lt;b&gt;&amp;" in html
    assert "<b>" not in html
    assert "&lt;i&gt;" in html
    assert html.count("<table>") == html.count("</table>") == 2
    assert html.count("<tr>") == html.count("</tr>")


def test_a_report_of_nothing(path: Path) -> None:
    with Store.open(path) as store:
        assert store.monitor.report().splitlines()[0].endswith("timed for 0 µs")
        assert store.monitor.snapshot().operations == []
        assert repr(store.monitor).endswith("off>")


@pytest.mark.parametrize(
    ("seconds", "shown"),
    [(0.0, "0 µs"), (0.000_001_234, "1.23 µs"), (0.000_9996, "1e+03 µs"), (0.0123, "12.3 ms"), (1.5, "1.5 s"), (12_345.6, "12,346 s")],
)
def test_spans_are_shown_in_a_unit_that_suits_them(seconds: float, shown: str) -> None:
    assert span(seconds) == shown


@pytest.mark.parametrize(("count", "shown"), [(999, "999 bytes"), (12_345, "12.3 kB"), (5_000_000, "5.0 MB"), (7 * 10**12, "7.0 TB")])
def test_sizes_are_shown_in_a_unit_that_suits_them(count: int, shown: str) -> None:
    assert size(count) == shown


# Prometheus


def samples(text: str) -> Iterator[tuple[str, dict[str, str], float]]:
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            yield sample.name.removeprefix("ruv_swarm_store_"), sample.labels, sample.value


def test_prometheus_reads_what_was_counted(store: Store) -> None:
    for _ in range(5):
        store.groups.exists("g")
    store.groups.create("g")
    with pytest.raises(Conflict):
        store.groups.create("g")
    with store.groups.cached() as cached:
        cached.find_by_id("g")
        cached.find_by_id("g")
        text = store.monitor.prometheus()
    assert {labels.pop("store") for _, labels, _ in samples(text)} == {store.address}
    found = {(name, *labels.values()): value for name, labels, value in samples(text) if "le" not in labels and labels.pop("store")}
    buckets = [value for name, labels, value in samples(text) if "le" in labels and labels.get("operation") == "groups.exists"]
    assert found["operation_seconds_count", "groups.exists"] == 5
    assert 0 < found["operation_seconds_sum", "groups.exists"] < 5
    assert found["operation_errors_total", "groups.create"] == 1
    assert sum(value for (name, *_), value in found.items() if name == "statement_errors_total") == 1
    assert buckets == sorted(buckets)
    assert buckets[-1] == 5
    assert found["database_bytes",] > 4096
    assert found["cache_hits_total", "agent_groups"] == 1


def test_labels_tell_long_statements_apart(store: Store) -> None:
    for n in range(3):
        store.execute(select(literal_column(f"'{'x' * 200}'"), literal_column(str(n))))
    labels = [labels["statement"] for name, labels, _ in samples(store.monitor.prometheus()) if name == "statement_seconds_count"]
    assert len(labels) == len(set(labels)) == 3
    assert all(len(label) < 100 for label in labels)


def test_a_collector_is_registered_once_and_asked_again_and_again(store: Store) -> None:
    registry = CollectorRegistry()
    registry.register(store.monitor.collector())
    store.tasks.count()
    for count in (1, 2):
        labels = {"store": store.address, "operation": "tasks.count"}
        assert registry.get_sample_value("ruv_swarm_store_operation_seconds_count", labels) == count
        store.tasks.count()


def test_stores_in_one_registry_are_told_apart(store: Store, tmp_path: Path) -> None:
    registry = CollectorRegistry()
    with Store.open(tmp_path / "other.db", monitor=True) as other:
        for each, cached in ((store, store.groups.cached()), (other, other.groups.cached())):
            registry.register(each.monitor.collector())
            cached.find_by_id("g")
            each.tasks.count()
        series = [(sample.name, *sorted(sample.labels.items())) for family in registry.collect() for sample in family.samples]
    assert {dict(labels)["store"] for _, *labels in series} == {store.address, other.address}
    assert len(series) == len(set(series)) > 50


# OpenTelemetry


@pytest.fixture
def telemetry(store: Store) -> Iterator[tuple[Store, Callable[[], list[Any]], Callable[[], dict[str, Any]]]]:
    """A store that tells OpenTelemetry; what spans have ended, and what was recorded."""
    from opentelemetry.sdk.metrics import MeterProvider
    from opentelemetry.sdk.metrics.export import InMemoryMetricReader
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.sdk.trace.export import SimpleSpanProcessor
    from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

    spans, reader = InMemorySpanExporter(), InMemoryMetricReader()
    tracers, meters = TracerProvider(shutdown_on_exit=False), MeterProvider([reader], shutdown_on_exit=False)
    tracers.add_span_processor(SimpleSpanProcessor(spans))
    store.monitor.opentelemetry(tracers, meters)

    def recorded() -> dict[str, Any]:
        data: Any = reader.get_metrics_data()
        return {metric.name: metric.data.data_points for metric in data.resource_metrics[0].scope_metrics[0].metrics}

    yield store, lambda: list(spans.get_finished_spans()), recorded
    tracers.shutdown()
    meters.shutdown()


def test_operations_are_spans_with_their_statements_inside(telemetry: Any) -> None:
    store, spans, recorded = telemetry
    store.config.set("k", "a secret")
    statement, operation = spans()
    assert operation.name == "config.set"
    assert statement.parent.span_id == operation.context.span_id
    assert statement.attributes["db.query.text"].startswith("INSERT INTO swarm_config")
    assert statement.attributes["db.system.name"] == operation.attributes["db.system.name"] == "sqlite"
    assert operation.start_time <= statement.end_time <= operation.end_time + 1_000_000
    assert 0 < statement.end_time - statement.start_time <= operation.end_time - operation.start_time
    assert "secret" not in str(statement.attributes)
    [point] = recorded()["ruv_swarm_store.operation.duration"]
    assert (point.count, point.attributes["db.operation.name"]) == (1, "config.set")
    assert 0 < point.sum < 5
    assert [point.count for point in recorded()["db.client.operation.duration"]] == [1]
    assert counts(store) == {"config.set": 1}


def test_units_of_work_and_blocks_are_spans_around_what_is_done_in_them(telemetry: Any) -> None:
    store, spans, _ = telemetry
    with store.monitor.track("plan"), store.transaction() as work:
        work.tasks.count()
    names = {span.name: span for span in spans()}
    assert names["tasks.count"].parent.span_id == names["transaction"].context.span_id
    assert names["transaction"].parent.span_id == names["plan"].context.span_id
    assert {"BEGIN", "SELECT", "COMMIT"} <= names.keys()


def test_what_fails_is_an_error_in_its_span(telemetry: Any) -> None:
    store, spans, recorded = telemetry
    store.groups.create("g")
    with pytest.raises(Conflict):
        store.groups.create("g")
    statement, operation = spans()[-2:]
    assert not statement.status.is_ok
    assert not operation.status.is_ok
    assert statement.attributes["error.type"] == "Conflict"
    assert operation.events[0].attributes["exception.type"].endswith("Conflict")
    points = {point.attributes.get("error.type"): point.count for point in recorded()["ruv_swarm_store.operation.duration"]}
    assert points == {None: 1, "Conflict": 1}


def test_stopping_ends_the_spans_too(telemetry: Any) -> None:
    store, spans, _ = telemetry
    store.monitor.stop()
    store.tasks.count()
    store.monitor.start()
    store.tasks.count()
    assert spans() == []
    assert counts(store) == {"tasks.count": 1}


def test_an_exporter_that_fails_harms_no_statement(store: Store, caplog: pytest.LogCaptureFixture) -> None:
    from opentelemetry.sdk.trace import SpanProcessor, TracerProvider

    class Broken(SpanProcessor):
        def on_end(self, span: Any) -> None:
            if span.name == "INSERT":
                raise BrokenPipeError("nobody listens")

    tracers = TracerProvider(shutdown_on_exit=False)
    tracers.add_span_processor(Broken())
    store.monitor.opentelemetry(tracers)
    store.config.set("k", 1)
    assert store.config.get("k") == 1
    assert "who is told of statements failed" in caplog.text


# Without the libraries


@pytest.mark.parametrize("export", ["prometheus", "collector", "opentelemetry"])
def test_without_its_library_an_export_says_what_to_install(store: Store, monkeypatch: pytest.MonkeyPatch, export: str) -> None:
    for name in ("prometheus_client", "opentelemetry"):
        monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(Unsupported, match=r"ruv-swarm-store\[telemetry\]"):
        getattr(store.monitor, export)()
    store.tasks.count()
    assert counts(store) == {"tasks.count": 1}
    assert "tasks.count" in store.monitor.report()


def test_the_libraries_are_not_imported_before_they_are_needed(python: Callable[..., str]) -> None:
    code = """
import sys
from ruv_swarm_store import Store
with Store.open(monitor=True) as store:
    store.tasks.count()
    store.monitor.report()
print([name for name in ("prometheus_client", "opentelemetry") if name in sys.modules])
"""
    assert python(code).strip() == "[]"


def test_what_was_looked_up_while_it_was_on_works_on(path: Path) -> None:
    with Store.open(path, monitor=True) as store:
        execute, register = store.execute, store.agents.register
        store.monitor.stop()
        assert execute(select(literal_column("1"))) == [(1,)]
        assert register("worker").version == 1
