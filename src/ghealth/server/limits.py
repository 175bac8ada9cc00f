"""What an untrusted client may use of this process: gRPC's options, and the limits of the guard.

Each limit that is announced in SETTINGS holds only once the client has acknowledged it. The guard
bounds what a client can do before.
"""

from contextlib import suppress
from pathlib import Path
from typing import Final

MAX_WATCHES_PER_CONNECTION: Final = 24
"""Maximum number of open watches on a connection."""

RESERVED_STREAMS: Final = 8
"""Calls that a connection may have open in addition to its watches."""

MAX_CALLS: Final = 256
"""Maximum number of open calls, not counting watches. A hundred load balancer nodes that check
every 5 s have 60 open calls while the gateway is slow."""

MAX_HEADERS: Final = 4 * 1024
"""Maximum number of bytes of a request's headers."""

MAX_PENDING: Final = 2000
"""Maximum number of calls that wait until Python accepts them."""

READ_BUFFER: Final = 8 * 1024
"""Maximum number of bytes of a connection that gRPC has received and not processed yet."""

KERNEL_BUFFER: Final = 16 * 1024
"""Bytes that the kernel buffers for each connection until gRPC reads them."""

SETTINGS_TIMEOUT: Final = 2.0
"""Seconds within which a client must complete the handshake, and as many to acknowledge SETTINGS.
Honest clients need one round trip."""

RECOMMENDED_MEMORY: Final = 192 << 20
"""The memory limit in deploy/, in bytes. Without a limit, ghealth may take as much more than it has
at the start: a program that serves inside itself may be larger."""

OPTIONS: Final = (
    # With SO_REUSEPORT a second server could listen on the same port, and each would get a part of
    # the calls. A port that is in use must be an error instead.
    ("grpc.so_reuseport", 0),
    # Closes connections that send nothing (default: 120 s).
    ("grpc.server_handshake_timeout_ms", int(SETTINGS_TIMEOUT * 1000)),
    # Closes connections on which SETTINGS are never acknowledged (default: 60 s). In milliseconds;
    # gRPC ignores `grpc.http2.settings_timeout_ms` silently.
    ("grpc.http2.settings_timeout", int(SETTINGS_TIMEOUT * 1000)),
    # Closes connections without calls. It is longer than the interval of any health check (an
    # ALB's: at most 300 s), so that Envoy can reuse its connection. An open Watch is a call.
    ("grpc.max_connection_idle_ms", 600_000),
    # Finds watchers that no longer exist after time + timeout; TCP would need more than two hours.
    # gRPC ignores `grpc.keepalive_timeout_ms` silently, and would wait 60 s.
    ("grpc.keepalive_time_ms", 45_000),
    ("grpc.http2.ping_timeout_ms", 10_000),
    ("grpc.keepalive_permit_without_calls", 1),
    # Minimum interval of a client's pings. grpc-go's clients use 10 s with jitter, so it is well
    # below 10 s. gRPC ignores `grpc.http2.min_recv_ping_interval_without_data_ms` silently.
    ("grpc.http2.min_ping_interval_without_data_ms", 5_000),
    ("grpc.http2.max_ping_strikes", 2),
    # A request contains only a service name (default: 4 MiB).
    ("grpc.max_receive_message_length", 16 * 1024),
    # An ALB sends 200 bytes of headers, a tracing proxy 1 to 2 KiB. Both limits are the same: for
    # sizes between two different limits, gRPC would refuse requests at random.
    ("grpc.max_metadata_size", MAX_HEADERS),
    ("grpc.absolute_max_metadata_size", MAX_HEADERS),
    ("grpc.max_concurrent_streams", MAX_WATCHES_PER_CONNECTION + RESERVED_STREAMS),
    # Limits the bytes of a connection that gRPC has received and not processed. Without the limit,
    # one connection that sends frames as fast as it can fills the memory in a second.
    ("grpc.experimental.tcp_max_read_buffer_size", READ_BUFFER),
    ("grpc.experimental.tcp_max_read_chunk_size", READ_BUFFER // 2),
    ("grpc.experimental.tcp_read_chunk_size", READ_BUFFER // 4),
    # Limits the calls that Python has not accepted yet. Above the limit, gRPC answers CANCELLED.
    # Both limits are the same: between two different limits, it would do so at random.
    ("grpc.server.max_pending_requests", MAX_PENDING),
    ("grpc.server.max_pending_requests_hard_limit", MAX_PENDING),
    # Prevents one connection from filling that queue at once (default: 32).
    ("grpc.http2.max_requests_per_read", 4),
    # Releases failed streams at once; by default gRPC keeps them for up to a second.
    ("grpc.http.tarpit", 0),
)
"""gRPC's options. They limit how much an untrusted client can use of this process, and for how
long."""

_UNLIMITED: Final = 1 << 60
"""Version 1 of control groups has a number near 2**63 where there is no limit."""


def memory_limit(
    memberships: Path = Path("/proc/self/cgroup"), mounted: Path = Path("/sys/fs/cgroup")
) -> int | None:
    """Return the smallest memory limit of the control groups that this process is in, in bytes.

    None without a limit.

    Args:
        memberships: The file with the process's control groups (cgroups(7)).
        mounted: Where they are mounted. In a container a path in `memberships` can be the host's,
            and then only its root exists here.
    """
    limits = [_UNLIMITED]
    with suppress(OSError):
        for line in memberships.read_text().splitlines():
            _, controllers, path = line.split(":", 2)
            if controllers not in ("", "memory"):
                continue
            name = "memory.limit_in_bytes" if controllers else "memory.max"
            group = mounted / controllers / path.lstrip("/")
            for place in (group, *group.parents):
                with suppress(OSError, ValueError):  # no such file, or "max"
                    limits.append(int((place / name).read_text()))
    found = min(limits)
    return None if found == _UNLIMITED else found
