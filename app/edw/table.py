"""An Azure Storage Table, as a store of one entity per message."""

from typing import Any

from azure.core.exceptions import AzureError
from azure.data.tables.aio import TableClient

from edw.entity import ROW_KEY
from edw.errors import code_of, exists_or_forbidden, unavailable
from edw.request import request


class Table:
    """Every method sends one request of at most `request_timeout` seconds, and raises an error of edw.errors
    when the service does not do what it is asked."""

    def __init__(self, client: TableClient, request_timeout: float) -> None:
        self._client = client
        self._request_timeout = request_timeout
        self.name = client.table_name

    async def create(self) -> bool:
        """Creates the table; False where it exists, or may exist but the role does not allow to create it."""
        async with request(f"create table {self.name}", self._request_timeout, unavailable):
            try:
                await self._client.create_table()
            except AzureError as error:
                if exists_or_forbidden(error):
                    return False
                raise
        return True

    async def insert(self, entity: dict[str, Any]) -> bool:
        """Stores the entity; False where its keys are stored already."""
        async with request(f"insert into {self.name}", self._request_timeout):
            try:
                await self._client.create_entity(entity)
            except AzureError as error:
                # By its code: a table that is being deleted answers 409 too, and has stored nothing.
                if code_of(error) == "EntityAlreadyExists":
                    return False
                raise
        return True

    async def probe(self) -> None:
        """Does nothing but find out whether the service answers."""
        async with request(f"look into {self.name}", self._request_timeout, unavailable):
            async for _ in self._client.query_entities("PartitionKey eq ''", results_per_page=1):
                break

    async def keep_one(self, message_id: str) -> bool:
        """Whether an entity is stored for the message. Of several one is kept: the same, whoever asks."""
        async with request(f"look up in {self.name}", self._request_timeout, unavailable):
            found = self._client.query_entities("PartitionKey eq @id", parameters={"id": message_id}, select=["RowKey"])
            row_keys = sorted([entity["RowKey"] async for entity in found if ROW_KEY.fullmatch(entity["RowKey"])])
            for double in row_keys[1:]:
                await self._client.delete_entity(message_id, double)
        return bool(row_keys)
