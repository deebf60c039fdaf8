"""What the README shows is what happens."""

import json
import re
from pathlib import Path

from workflow import Workflow

README = Path(__file__).parents[2] / "README.md"
STAMP = "2026-11-23 12:00:00"


async def test_the_handler_in_the_readme_charges_an_order_once_and_poisons_what_is_none(flow: Workflow) -> None:
    (source,) = re.findall(r"```python\n(.*?)```", README.read_text(), re.DOTALL)
    flow.handle_with(source)
    await flow.create()
    order = json.dumps({"msg": "two books", "srcStamp": STAMP, "order": {"id": "A-17", "cents": 4200}})
    await flow.put(order)
    await flow.put(json.dumps({"msg": "no order", "srcStamp": STAMP}))
    await flow.put(json.dumps({"msg": "no amount", "srcStamp": STAMP, "order": {"id": "A-18", "cents": -1}}))
    await flow.drained()
    (row,) = await flow.rows()
    assert (row["data"], row["order"], row["cents"].value) == ("two books", "A-17", 4200)
    assert [envelope["reason"] for envelope in await flow.envelopes()] == ["no order with an id and an amount"] * 2

    await flow.put(order)  # sent once more, by a producer that had no answer: the bank knows the order
    await flow.drained()
    receipts = [stored["receipt"] for stored in await flow.rows()]
    assert receipts == [row["receipt"]] * 2
