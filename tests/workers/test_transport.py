"""What messages are sent and taken by: the guarded transport, with one client for each channel."""

from __future__ import annotations

import pytest
from kombu.transport.redis import Channel
from redis import ConnectionPool, Redis

from workers.app import app
from workers.transport import GuardedChannel, GuardedConnection, GuardedTransport


def test_those_who_send_and_those_who_take_use_the_guarded_transport() -> None:
    with app.producer_pool.acquire(block=False) as producer:
        assert producer.connection.get_transport_cls() is GuardedTransport
    assert app.connection_for_read().get_transport_cls() is GuardedTransport


def test_a_pool_makes_no_more_connections_than_it_may() -> None:
    pool = GuardedConnection("redis://localhost").Pool(1)
    with pool.acquire() as connection, pytest.raises(pool.LimitExceeded):
        pool.acquire()
    assert pool.acquire() is connection


def test_another_broker_keeps_its_own_transport() -> None:
    with GuardedConnection("memory://").Pool(1).acquire() as connection:
        assert not issubclass(connection.get_transport_cls(), GuardedTransport)


def test_a_channel_has_one_client_for_as_long_as_its_pool_lives() -> None:
    channel = object.__new__(GuardedChannel)  # making one in full asks a Redis whether it is there
    channel.Client = Redis
    channel._pool = ConnectionPool()
    first = channel._create_client()
    assert channel._create_client() is first
    channel._pool = ConnectionPool()
    assert channel._create_client() is not first
    assert issubclass(GuardedTransport.Channel, Channel)
