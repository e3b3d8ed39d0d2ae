"""kombu still has all that worker.transport overrides and uses: most of it is private and may change."""

from __future__ import annotations

from collections.abc import Iterator
from inspect import signature
from typing import Any

import pytest
from kombu import __version__ as version
from kombu.asynchronous import Hub
from kombu.connection import Connection
from kombu.transport import redis
from kombu.transport.virtual import Message

from serve.private_redis import PrivateRedis
from worker import transport

OVERRIDDEN = {
    "QoS": ("can_consume", "append", "ack", "reject", "restore_unacked"),
    "Channel": ("_brpop_start", "_brpop_read", "_create_client", "_connparams"),
    "Transport": ("register_with_event_loop",),
}
USED = {
    "QoS": (
        *("channel", "_delivered", "can_consume_max_estimate", "restore_by_tag", "pipe_or_acquire"),
        *("unacked_key", "unacked_index_key"),
    ),
    "Channel": (
        *("QoS", "from_transport_options", "_in_poll", "_brpop_sent_at", "_queue_cycle", "_q_for_pri", "sep"),
        *(
            "_flush_brpop_reauth",
            "_disconnect_pools",
            "active_queues",
            "brpop_timeout",
            "client",
            "conn_or_acquire",
            "connection",
        ),
        *("connection_class", "connection_errors", "global_keyprefix", "priority_steps", "qos"),
    ),
    "Transport": ("Channel", "channels", "_deliver"),
    "Hub": ("call_repeatedly", "call_soon"),
    "Message": ("_raw", "delivery_info"),
    "queue cycle": ("consume",),
}


@pytest.fixture(scope="module")
def parts(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Any]]:
    """kombu's own objects, by the names above."""
    server = PrivateRedis(tmp_path_factory.mktemp("redis"))
    server.start()
    with Connection(server.url) as connection:
        channel = connection.default_channel
        payload = {"body": "", "properties": {"delivery_tag": "1", "delivery_info": {}}}
        yield {
            "QoS": channel.qos,
            "Channel": channel,
            "Transport": connection.transport,
            "Hub": Hub(),
            "Message": Message(payload, channel=channel),
            "queue cycle": channel._queue_cycle,
        }
    server.stop()


@pytest.mark.parametrize("owner", USED)
def test_kombu_has_what_the_transport_uses(parts: dict[str, Any], owner: str) -> None:
    names = (*USED[owner], *OVERRIDDEN.get(owner, ()))
    missing = [name for name in names if not hasattr(parts[owner], name)]
    assert not missing, f"kombu {version}: its {owner} has no {missing}; see worker/transport.py"


@pytest.mark.parametrize(
    ("owner", "name"), [(owner, name) for owner in OVERRIDDEN for name in OVERRIDDEN[owner]]
)
def test_an_override_takes_what_kombu_gives_it(owner: str, name: str) -> None:
    theirs, ours = (
        list(signature(getattr(getattr(of, owner), name)).parameters) for of in (redis, transport)
    )
    assert ours == theirs, f"kombu {version}: {owner}.{name} takes {theirs}; see worker/transport.py"


def test_nothing_is_overridden_that_is_not_listed() -> None:
    for owner, names in OVERRIDDEN.items():
        ours, theirs = getattr(transport, owner), getattr(redis, owner)
        found = {name for name in vars(ours) if callable(getattr(ours, name)) and hasattr(theirs, name)}
        assert {name for name in found if not name.startswith("__")} - {"QoS", "Channel"} == set(names)
