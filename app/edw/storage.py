"""The storage account's services: one credential and one client each for the life of the process."""

from contextlib import AsyncExitStack
from typing import TYPE_CHECKING, Any, Self

from azure.core.credentials_async import AsyncTokenCredential
from azure.storage.queue.aio import QueueClient, QueueServiceClient

from edw.option import SettingsError
from edw.settings import ServiceSettings, WorkflowSettings

if TYPE_CHECKING:
    from azure.data.tables.aio import TableClient

API_VERSION = "2020-12-06"
"""The service version both clients speak: the newest that both SDKs know. The queue SDK's own default is
newer than what emulators and sovereign clouds offer, and nothing the programs ask for came after this one."""


class Storage:
    """An asynchronous context manager that closes what it opened.

    The SDKs do not repeat requests by themselves: the programs do, because only they know how long a lease
    still lasts and when they are asked to stop.
    """

    def __init__(self, settings: ServiceSettings) -> None:
        self._settings = settings
        self._open = AsyncExitStack()
        self._credential: AsyncTokenCredential | None = None
        self._queues: QueueServiceClient | None = None

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._open.aclose()

    async def queue(self, name: str) -> QueueClient:
        if self._queues is None:
            self._queues = await self._service(QueueServiceClient, self._settings.queue_endpoint)
        return self._queues.get_queue_client(name)

    async def table(self, settings: WorkflowSettings) -> "TableClient":
        from azure.data.tables.aio import TableServiceClient  # noqa: PLC0415  the producer starts sooner without

        service: TableServiceClient = await self._service(TableServiceClient, settings.table_endpoint)
        return service.get_table_client(settings.table_name)

    async def _service(self, client: Any, endpoint: str) -> Any:
        """A service client of that class, open until this is closed."""
        options = {"api_version": API_VERSION, "retry_total": 0}
        connection_string = self._settings.storage_connection_string
        if not connection_string:
            service = client(endpoint, credential=await self._identity(), **options)
        else:
            try:
                service = client.from_connection_string(connection_string, **options)
            except ValueError as error:
                raise SettingsError(f"AZURE_STORAGE_CONNECTION_STRING: {error}") from None
        return await self._open.enter_async_context(service)

    async def _identity(self) -> AsyncTokenCredential:
        if self._credential is not None:
            return self._credential
        from edw.identity import Identity  # noqa: PLC0415  a connection string needs none of it

        try:
            credential = Identity()
        except ValueError as error:
            raise SettingsError(f"AZURE_TOKEN_CREDENTIALS or AZURE_AUTHORITY_HOST: {error}") from None
        self._credential = await self._open.enter_async_context(credential)
        return credential
