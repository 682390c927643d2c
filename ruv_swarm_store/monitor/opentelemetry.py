"""Operations and statements as OpenTelemetry's spans and histograms, by its conventions for database clients."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from ruv_swarm_store.errors import Unsupported

BOUNDS = [0.000_05, 0.000_1, 0.000_25, 0.000_5, 0.001, 0.002_5, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0]
"""The bounds of histograms' buckets that are asked for, in seconds."""
NAME = "ruv_swarm_store"


class Spans:
    """Makes spans, and records how long they were."""

    def __init__(self, address: str, tracer_provider: Any, meter_provider: Any) -> None:
        """Raises `Unsupported` where the library is not installed."""
        try:
            from opentelemetry import metrics, trace
        except ImportError as error:
            raise Unsupported("opentelemetry-api is not installed", hint="pip install 'ruv-swarm-store[telemetry]'") from error
        self._trace = trace
        self._tracer = trace.get_tracer(NAME, tracer_provider=tracer_provider)
        meter = metrics.get_meter(NAME, meter_provider=meter_provider)
        self._operations = meter.create_histogram(
            f"{NAME}.operation.duration", "s", "Seconds that verbs took.", explicit_bucket_boundaries_advisory=BOUNDS
        )
        self._statements = meter.create_histogram(
            "db.client.operation.duration", "s", "Seconds that statements took.", explicit_bucket_boundaries_advisory=BOUNDS
        )
        self._system = {"db.system.name": address.partition(":")[0].partition("+")[0]}

    @contextmanager
    def operation(self, name: str) -> Iterator[None]:
        """The span of an operation."""
        attributes: dict[str, str] = {**self._system, "db.operation.name": name}
        started = time.perf_counter()
        try:
            with self._tracer.start_as_current_span(name, attributes=attributes):
                yield
        except BaseException as error:
            attributes = {**attributes, "error.type": type(error).__name__}
            raise
        finally:
            self._operations.record(time.perf_counter() - started, attributes)

    def statement(self, sql: str, seconds: float, rows: int, error: BaseException | None) -> None:
        """The span of a statement that has just ended."""
        ended = time.time_ns()
        word = sql.split(maxsplit=1)[0]
        attributes: dict[str, Any] = {**self._system, "db.operation.name": word}
        if error is not None:
            attributes["error.type"] = type(error).__name__
        span = self._tracer.start_span(
            word,
            kind=self._trace.SpanKind.CLIENT,
            attributes={**attributes, "db.query.text": sql, "db.response.returned_rows": rows},
            start_time=ended - round(seconds * 1e9),
        )
        if error is not None:
            span.set_status(self._trace.Status(self._trace.StatusCode.ERROR))
        span.end(ended)
        self._statements.record(seconds, attributes)
