"""What the README shows is what happens."""

import json
import re
from pathlib import Path

from edw import message
from workflow import Workflow

README = Path(__file__).parents[2] / "README.md"
STAMP = "2026-11-23 12:00:00"


async def test_the_handler_in_the_readme_charges_an_order_once_and_poisons_what_is_none(flow: Workflow) -> None:
    (source,) = re.findall(r"```python\n(.*?)```", README.read_text(), re.DOTALL)
    flow.handle_with(source)
    await flow.create()
    await flow.put(json.dumps({"msg": "two books", "srcStamp": STAMP, "order": {"cents": 4200}}))
    await flow.put(json.dumps({"msg": "no order", "srcStamp": STAMP}))
    await flow.drained()
    (row,) = await flow.rows()
    assert (row["data"], row["cents"].value) == ("two books", 4200)
    (envelope,) = await flow.envelopes()
    assert envelope["reason"] == "no order with an amount in cents"

    # Its consumer dies before the entity is stored: the bank knows the key and gives the same receipt.
    await flow.table.delete_entity(row["PartitionKey"], row["RowKey"])
    parsed = message.parse(row["PartitionKey"], json.dumps({"msg": "x", "srcStamp": STAMP, "order": {"cents": 4200}}))
    namespace: dict[str, object] = {}
    exec(source, namespace)  # noqa: S102  the README's own
    handle = namespace["handle"]
    assert callable(handle)
    assert handle(parsed)["receipt"] == row["receipt"]
