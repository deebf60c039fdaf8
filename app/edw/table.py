"""An Azure Storage Table, as a store of one entity per message."""

from typing import Any

from azure.core.exceptions import AzureError, ResourceExistsError
from azure.data.tables.aio import TableClient

from edw.errors import exists_or_forbidden, translated, unavailable


class Table:
    """Every method raises an error of edw.errors when the service does not do what it is asked."""

    def __init__(self, client: TableClient) -> None:
        self._client = client

    @property
    def name(self) -> str:
        return self._client.table_name

    async def create(self) -> bool:
        """Creates the table; False where it exists, or may exist but the role does not allow to create it."""
        try:
            await self._client.create_table()
        except AzureError as error:
            if exists_or_forbidden(error):
                return False
            raise unavailable(error, f"create table {self.name}") from error
        return True

    async def insert(self, entity: dict[str, Any]) -> bool:
        """Stores the entity; False where one of its keys is stored already."""
        try:
            await self._client.create_entity(entity)
        except ResourceExistsError:
            return False
        except AzureError as error:
            raise translated(error, f"insert into {self.name}") from error
        return True

    async def holds(self, message_id: str) -> bool:
        """Whether an entity is stored for the message."""
        try:
            found = self._client.query_entities(
                "PartitionKey eq @id", parameters={"id": message_id}, select=["RowKey"], results_per_page=1
            )
            async for _ in found:
                return True
        except AzureError as error:
            raise translated(error, f"look up in {self.name}") from error
        return False
