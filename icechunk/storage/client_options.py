"""The options of obstore's HTTP client, whichever service it is for."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import timedelta
from typing import Any, Final

from icechunk.config.storage_settings import EffectiveStorageSettings

__all__ = [
    "STREAM_TIMEOUT",
    "WRITE_STREAM_TIMEOUT",
    "client_options",
    "retry_options",
    "split_options",
]

#: Options that configure the HTTP client, for whichever service it is used.
_CLIENT_OPTIONS: Final = frozenset(
    {
        "allow_http",
        "allow_invalid_certificates",
        "connect_timeout",
        "default_content_type",
        "http1_only",
        "http2_keep_alive_interval",
        "http2_keep_alive_timeout",
        "http2_keep_alive_while_idle",
        "http2_only",
        "pool_idle_timeout",
        "pool_max_idle_per_host",
        "proxy_ca_certificate",
        "proxy_excludes",
        "proxy_url",
        "randomize_addresses",
        "read_timeout",
        "root_certificate",
        "timeout",
        "user_agent",
    }
)
#: Stop retrying after this long unless the settings say otherwise: reads, and writes, which
#: take their time on a slow line.
_RETRY_TIMEOUT: Final = timedelta(seconds=30)
_WRITE_RETRY_TIMEOUT: Final = timedelta(minutes=3)
#: No limit in practice: a large object over a slow line is not a failure. A line that has
#: gone silent is one, and `STREAM_TIMEOUT` finds it.
_TIMEOUT: Final = timedelta(hours=6)
#: In seconds. While something is sent the client waits for an answer already.
STREAM_TIMEOUT: Final = 10
WRITE_STREAM_TIMEOUT: Final = 60


def _milliseconds(value: int | None, default: timedelta) -> timedelta:
    return default if value is None else timedelta(milliseconds=value)


def client_options(
    settings: EffectiveStorageSettings,
    headers: Mapping[str, str],
    more: Mapping[str, Any],
    agent: str,
    stream_timeout: int = STREAM_TIMEOUT,
) -> Any:
    """Return the options of the HTTP client.

    Parameters
    ----------
    settings : EffectiveStorageSettings
    headers : mapping
        Sent with every request.
    more : mapping
        Other options, which win over these.
    agent : str
        Who makes the requests.
    stream_timeout : int
        Give up on a line that is silent for this many seconds; 0 means never.
    """
    timeouts = settings.timeouts
    options: dict[str, Any] = {
        "user_agent": agent,
        "timeout": _milliseconds(timeouts.operation_attempt_timeout_ms, _TIMEOUT),
    }
    if timeouts.connect_timeout_ms is not None:
        options["connect_timeout"] = timedelta(milliseconds=timeouts.connect_timeout_ms)
    silence = timedelta(seconds=stream_timeout)
    if timeouts.read_timeout_ms is not None:
        silence = timedelta(milliseconds=timeouts.read_timeout_ms)
    if silence:
        options["read_timeout"] = silence
    if headers:
        options["default_headers"] = dict(headers)
    return {**options, **more}


def retry_options(settings: EffectiveStorageSettings, *, write: bool = False) -> Any:
    """Return how the client retries: exponential backoff with jitter."""
    longest = _WRITE_RETRY_TIMEOUT if write else _RETRY_TIMEOUT
    retries = settings.retries
    return {
        "max_retries": retries.max_tries - 1,
        "backoff": {
            "init_backoff": timedelta(milliseconds=retries.initial_backoff_ms),
            "max_backoff": timedelta(milliseconds=retries.max_backoff_ms),
        },
        "retry_timeout": _milliseconds(settings.timeouts.operation_timeout_ms, longest),
    }


def split_options(config: Mapping[str, str]) -> tuple[dict[str, str], dict[str, str]]:
    """Return the options of the service and those of the HTTP client."""
    service = {k: v for k, v in config.items() if k.lower() not in _CLIENT_OPTIONS}
    return service, {k.lower(): v for k, v in config.items() if k.lower() in _CLIENT_OPTIONS}
