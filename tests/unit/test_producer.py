"""What the producer sends; the queue is a stand-in."""

import asyncio
import io
import json
import os
import time
from datetime import UTC, datetime
from typing import Any, cast

import pytest
from structlog.testing import capture_logs

from edw import message, producer
from edw.errors import ContentRefused, Unavailable
from edw.message import Unprocessable
from edw.option import SettingsError
from edw.producer import Pace, Producer, body_of_line
from edw.settings import ProducerSettings
from edw.stop import Stop
from standin import StandInQueue

NOON = datetime(2026, 11, 23, 12, tzinfo=UTC)


class Sender:
    """A producer in front of a queue."""

    def __init__(self, lines: bytes | None = None, **settings: Any) -> None:
        self.queue = StandInQueue()
        self.stop = Stop()
        known = {"storage_account_name": "acct", "queue_name": "work", "rate": 0.0}
        self.settings = ProducerSettings(**known | settings)
        self.lines = lines

    async def run(self) -> Producer:
        count = self.settings.count
        source = producer.generated(count)
        if self.lines is not None:
            source = producer.from_lines(cast(Any, io.BytesIO(self.lines)), count)
        self.producer = Producer(self.settings, cast(Any, self.queue), source, self.stop)
        async with asyncio.timeout(10):
            await self.producer.run()
        return self.producer

    def sent(self) -> list[Any]:
        return [json.loads(waiting.content) for waiting in self.queue.waiting]


async def test_messages_are_numbered_from_one_as_the_aws_producer_does() -> None:
    sender = Sender(count=3)
    await sender.run()
    assert sorted(body["msg"] for body in sender.sent()) == [f"Scale Test Message : COUNT {n}" for n in (1, 2, 3)]
    assert all(message.parse("8f1c", waiting.content) for waiting in sender.queue.waiting)


async def test_base64_and_time_to_live_are_as_the_settings_say() -> None:
    sender = Sender(count=1, message_encoding="base64", time_to_live=-1)
    await sender.run()
    assert message.decode(sender.queue.waiting[0].content, "base64").startswith('{"msg"')
    assert sender.queue.time_to_live == [-1]


async def test_the_rate_is_kept() -> None:
    sender = Sender(count=6, rate=50.0)
    began = time.monotonic()
    await sender.run()
    assert time.monotonic() - began >= 5 / 50


def test_turns_are_a_gap_apart_whatever_the_sending_takes() -> None:
    pace = Pace(rate=10)
    assert [round(pace.wait(now), 6) for now in (100.0, 100.0, 100.05, 100.3)] == [0.0, 0.1, 0.15, 0.0]


def test_a_long_delay_is_made_up_for_one_second_at_most() -> None:
    pace = Pace(rate=8)
    pace.wait(100.0)
    assert [pace.wait(500.0) for _ in range(10)] == [number / 8 - 1 for number in range(10)]


def test_no_rate_has_no_turns() -> None:
    assert [Pace(rate=0).wait(100.0) for _ in range(3)] == [0.0] * 3


async def test_no_more_than_the_concurrency_is_under_way() -> None:
    sender = Sender(count=20, concurrency=4)
    sender.queue.send_takes = 0.01
    await sender.run()
    assert sender.queue.most_sending == 4


async def test_a_fault_of_the_program_fails_one_message_alone() -> None:
    sender = Sender(count=3)
    sender.queue.faults.plan("send", RecursionError("nested too deep"))
    done = await sender.run()
    assert (done.sent, done.failed) == (2, 1)


async def test_a_stop_ends_the_sending_and_what_is_under_way_is_counted() -> None:
    sender = Sender(rate=1000.0)
    asyncio.get_running_loop().call_later(0.05, sender.stop.set)
    done = await sender.run()
    assert done.sent == len(sender.queue.waiting) > 0
    assert done.failed == 0


async def test_a_passing_fault_is_ridden_out() -> None:
    sender = Sender(count=1)
    sender.queue.faults.plan("send", Unavailable("503", "ServerBusy"), Unavailable("503", "ServerBusy"))
    done = await sender.run()
    assert (done.sent, done.failed) == (1, 0)


async def test_a_message_that_the_service_refuses_is_counted_as_failed_and_the_rest_is_sent() -> None:
    sender = Sender(count=3, concurrency=1)
    sender.queue.faults.plan("send", ContentRefused("413"))
    done = await sender.run()
    assert (done.sent, done.failed) == (2, 1)


async def test_a_message_too_large_for_the_queue_is_not_tried() -> None:
    fits = b"x" * (65_536 - len(message.compose("", NOON)))
    sender = Sender(lines=fits + b"\n" + fits + b"x\n")
    done = await sender.run()
    assert (done.sent, done.failed) == (1, 1)


async def test_every_line_of_an_input_is_a_message_blank_ones_are_not() -> None:
    sender = Sender(lines=b'plain text\n\n{"msg": "a"}\r\nlast, without an end of line')
    await sender.run()
    assert sorted(body["msg"] for body in sender.sent()) == ["a", "last, without an end of line", "plain text"]


async def test_count_limits_an_input() -> None:
    sender = Sender(lines=b"1\n2\n3\n", count=2)
    done = await sender.run()
    assert done.sent == 2


async def test_a_line_that_is_not_utf8_is_counted_as_failed() -> None:
    with capture_logs() as logs:
        done = await Sender(lines=b"fine\n\n\xff\n").run()
    assert (done.sent, done.failed) == (1, 1)
    assert [entry["message"] for entry in logs if entry["event"] == "message not sent"] == ["line 3"]


async def test_a_byte_order_mark_is_no_part_of_the_first_line() -> None:
    sender = Sender(lines=b'\xef\xbb\xbf{"msg": "a"}\n\xef\xbb\xbfb\n')
    await sender.run()
    assert sorted(body["msg"] for body in sender.sent()) == ["a", "\ufeffb"]


async def test_an_input_that_breaks_off_is_a_failure() -> None:
    class Broken(io.BytesIO):
        def readline(self, size: int | None = -1, /) -> bytes:
            if line := super().readline(size):
                return line
            raise OSError(5, "Input/output error")

        def __next__(self) -> bytes:
            return self.readline()

    sender = Sender()
    source = producer.from_lines(cast(Any, Broken(b"one\n")), None)
    sending = Producer(sender.settings, cast(Any, sender.queue), source, sender.stop)
    async with asyncio.timeout(5):
        await sending.run()
    assert (sending.sent, sending.failed) == (1, 1)


async def test_an_input_that_never_ends_does_not_hold_up_a_stop() -> None:
    reading, writing = os.pipe()
    with os.fdopen(writing, "wb") as write_end:
        write_end.write(b"one\n")
        write_end.flush()
        sender = Sender()
        source = producer.from_lines(os.fdopen(reading, "rb"), None)
        sending = Producer(sender.settings, cast(Any, sender.queue), source, sender.stop)
        asyncio.get_running_loop().call_later(0.1, sender.stop.set)
        async with asyncio.timeout(5):
            await sending.run()
        assert sending.sent == 1


def test_a_json_line_with_msg_is_sent_as_it_is_and_stamped_where_it_has_no_stamp() -> None:
    stamped = {"msg": "a", "srcStamp": "2020-01-01 00:00:00", "color": "blue"}
    assert json.loads(body_of_line(json.dumps(stamped).encode(), NOON)) == stamped
    assert json.loads(body_of_line(b'{"msg": "a", "n": 1}', NOON)) == {
        "msg": "a",
        "n": 1,
        "srcStamp": "2026-11-23 12:00:00.000000",
    }


@pytest.mark.parametrize(
    "line",
    [
        '{"order": 7}',
        "[1, 2]",
        "42",
        '"quoted"',
        "{broken",
        "[" * 50_000,
        "  spaced  ",
        '{"msg": "a", "n": 1e400}',
        '{"msg": NaN}',
    ],
)
def test_any_other_line_becomes_the_msg_whole(line: str) -> None:
    assert message.parse("8f1c", body_of_line(line.encode(), NOON)).msg == line


def test_a_line_that_is_not_utf8_is_refused() -> None:
    with pytest.raises(Unprocessable, match="not UTF-8"):
        body_of_line(b"\xff", NOON)


def test_an_input_that_cannot_be_read_names_the_setting() -> None:
    with pytest.raises(SettingsError, match="EDW_INPUT: '/nowhere/at/all' cannot be read"):
        producer.open_input("/nowhere/at/all")
