"""What the values of options and settings look like, and how a setting is found: flag, environment, file, default."""

from __future__ import annotations

import math
import os
import re
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

import click
from click.core import ParameterSource

from pgvec_queue import settings
from pgvec_queue.embedders import KINDS

F = TypeVar("F", bound=Callable[..., Any])

_UNITS = {"": 1, "K": 2**10, "M": 2**20, "G": 2**30, "T": 2**40}


class Text(click.ParamType):  # type: ignore[type-arg]
    """A name, a column, a model: anything but nothing."""

    name = "text"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> str:
        if not str(value).strip():
            self.fail("it is empty", param, ctx)
        return str(value)


class NewName(Text):
    """A name that is given: it will stand in lines of output, so it has to stay in one."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> str:
        name = super().convert(value, param, ctx)
        if re.search(r"[\x00-\x1f\x7f-\x9f\u2028\u2029]", name):
            self.fail(f"{name!r} holds control characters", param, ctx)
        return name


class Whole(click.IntRange):
    """A whole number that PostgreSQL's ``integer`` holds."""

    name = "integer"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        number: int = super().convert(value, param, ctx)
        if abs(number) >= 2**31:
            self.fail(f"{number} is too large.", param, ctx)
        return number


class Number(click.FloatRange):
    """A number that is one: not NaN."""

    name = "number"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        number: float = super().convert(value, param, ctx)
        if math.isnan(number):
            self.fail(f"{value!r} is not a valid number.", param, ctx)
        return number


class Size(click.ParamType):  # type: ignore[type-arg]
    """Bytes, such as 800M or 1.5GB."""

    name = "size"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        found = re.fullmatch(r"([0-9]{1,18}(?:\.[0-9]{1,12})?) *([KMGT]?)i?B?", str(value).strip(), re.IGNORECASE)
        size = round(float(found[1]) * _UNITS[found[2].upper()]) if found else 0
        if not size:
            self.fail(f"{value!r} is no size; write it like 800M or 4G", param, ctx)
        return size


class CacheSize(Size):
    """Bytes, 0 for nothing at all, or auto."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int | None:  # type: ignore[override]
        text = str(value).strip().lower()
        if text in ("auto", "0"):
            return None if text == "auto" else 0
        if not re.fullmatch(r"[0-9].*", text):
            self.fail(f"{value!r} is neither auto, 0 nor a size such as 256M", param, ctx)
        return super().convert(value, param, ctx)


class Device(click.ParamType):  # type: ignore[type-arg]
    """Where a model runs; whether the machine has it is seen when a model is loaded."""

    name = "device"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> str:
        if not re.fullmatch(r"auto|cpu|mps|cuda(:[0-9]{1,3})?", value):
            self.fail(f"{value!r} is none of auto, cpu, mps, cuda, cuda:N", param, ctx)
        return str(value)


SETTINGS: Mapping[str, Any] = {
    "log_level": click.Choice(["debug", "info", "warning", "error"], case_sensitive=False),
    "log_format": click.Choice(["text", "json"]),
    "log_text": click.BOOL,
    "model": Text(),
    "embedder": click.Choice(KINDS),
    "endpoint": Text(),
    "tokenizer": Text(),
    "device": Device(),
    "dtype": click.Choice(["auto", "float32", "float16", "bfloat16"]),
    "runtime": click.Choice(["auto", "torch", "openvino"]),
    "lease": Number(1, 3600),
    "batch_tokens": Whole(16),
    "threads": Whole(1, 4096),
    "tokenizers": Whole(0, 256),
    "processes": Whole(1, 256),
    "memory": Size(),
    "cache": CacheSize(),
    "pool_size": Whole(1, 64),
    "metrics_port": Whole(0, 65_535),
    "metrics_host": Text(),
    "exporter_port": Whole(0, 65_535),
    "exporter_host": Text(),
    "gateway_host": Text(),
    "gateway_port": Whole(0, 65_535),
    "gateway_models": Text(),
    "gateway_body_bytes": Size(),
    "gateway_bodies_bytes": Size(),
    "gateway_texts": Whole(1, 1_000_000),
    "gateway_text_bytes": Size(),
    "gateway_requests": Whole(1, 100_000),
    "gateway_streams": Whole(0, 100_000),
    "gateway_per_minute": Whole(1, 100_000_000),
    "gateway_request_seconds": Number(0.1, 3600),
    "gateway_body_seconds": Number(0.1, 3600),
    "gateway_head_seconds": Number(0.1, 3600),
    "gateway_unread_seconds": Number(0.1, 3600),
    "gateway_connection_seconds": Number(0.1, 3600),
    "gateway_pool_size": Whole(1, 1_000),
    "gateway_queued_rows": Whole(1, 2_000_000_000),
    "gateway_keep_tasks_days": Number(0.001, 36_500),
    "listen": click.BOOL,
    "direct_dsn": Text(),
    "stall": Number(5, 86_400),
    "index": click.BOOL,
    "rows_per_job": Whole(1, 100_000_000),
    "chunk_size": Whole(4, 1_000_000),
    "chunk_overlap": Whole(0, 500_000),
    "search_limit": Whole(1, 10_000),
    "threshold": Number(-1, 1),
}
"""The type of every setting but the DSN."""


class _Setting(click.Option):
    """An option that may also stand in the environment or in the file; an error in its value says where it stands."""

    def __init__(self, *arguments: Any, key: str, **attributes: Any) -> None:
        self._key = key
        super().__init__(*arguments, **attributes)

    def resolve_envvar_value(self, ctx: click.Context) -> str | None:
        if self._key in settings.SECRETS:
            return settings.secret(self._key, os.environ)[0] or None
        return super().resolve_envvar_value(ctx)

    def get_error_hint(self, ctx: click.Context | None) -> str:
        source = ctx.get_parameter_source(self.name) if ctx and self.name else None
        if source is ParameterSource.ENVIRONMENT:
            return f"PGVEC_{self._key.upper()}"
        if source is ParameterSource.DEFAULT:
            return f"'{self._key}' in {settings.read_file().path}"
        return super().get_error_hint(ctx)


def setting(*names: str, key: str, **attributes: Any) -> Callable[[F], F]:
    """An option that may also be set by ``PGVEC_<KEY>`` and by ``key`` in ``pgvec.toml``."""

    def from_file() -> Any:
        return settings.read_file().values.get(key)

    return click.option(
        *names,
        cls=_Setting,
        key=key,
        type=SETTINGS[key],
        envvar=f"PGVEC_{key.upper()}",
        default=from_file,
        **attributes,
    )
