"""Every setting of the programs, with its variable, default and rule."""

import base64
import binascii
import re
from dataclasses import dataclass
from urllib.parse import urlsplit

from edw.option import SettingsError, argument, choice, integer, number, option, switch, text

QUEUE_NAME_MOST = 63  # learn.microsoft.com/rest/api/storageservices/naming-queues-and-metadata

IDENTITY_VARIABLES = """\
read by azure-identity where no connection string is given:
  AZURE_TOKEN_CREDENTIALS   which credential to use, e.g. WorkloadIdentityCredential, AzureCliCredential
                            (the SDK's chain when not set)
  AZURE_CLIENT_ID, AZURE_TENANT_ID, AZURE_FEDERATED_TOKEN_FILE, AZURE_AUTHORITY_HOST
                            injected by the workload identity webhook

A .env file in the working directory is read too; real variables win over it, flags over both.
Exit codes: 0 done or stopped gracefully, 2 wrong settings or usage, 1 anything else."""


def account_name(value: str) -> str:
    if not re.fullmatch(r"[a-z0-9]{3,24}", value):
        raise ValueError("is not a storage account name: 3 to 24 lowercase letters and digits")
    return value


def queue_name(value: str) -> str:
    if not 3 <= len(value) <= QUEUE_NAME_MOST or not re.fullmatch(r"[a-z0-9]+(-[a-z0-9]+)*", value):
        raise ValueError(
            "is not a queue name: 3 to 63 lowercase letters, digits and single hyphens, a letter or digit at each end"
        )
    return value


def table_name(value: str) -> str:
    # learn.microsoft.com/rest/api/storageservices/understanding-the-table-service-data-model
    if not re.fullmatch(r"[A-Za-z][A-Za-z0-9]{2,62}", value) or value.lower() == "tables":
        raise ValueError("is not a table name: 3 to 63 letters and digits, a letter first, and not 'tables'")
    return value


def endpoint(value: str) -> str:
    try:
        url = urlsplit(value)
        is_whole = bool(url.hostname) and (url.port is None or url.port > 0)
    except ValueError:  # no port, or one out of range
        is_whole = False
    if not is_whole or url.scheme not in ("http", "https") or url.username or url.query or url.fragment:
        raise ValueError("is not an endpoint like https://account.queue.core.windows.net")
    return value.rstrip("/")


def endpoint_suffix(value: str) -> str:
    if not re.fullmatch(r"[A-Za-z0-9-]+(\.[A-Za-z0-9-]+)+", value):
        raise ValueError("is not a suffix like core.windows.net")
    return value


def connection_string(value: str) -> str:
    if value.strip().lower().rstrip(";") == "usedevelopmentstorage=true":
        return "UseDevelopmentStorage=true"
    parts = dict(part.partition("=")[::2] for part in value.strip().strip(";").split(";"))
    keyed = {"AccountName", "AccountKey"} <= parts.keys()
    signed = "SharedAccessSignature" in parts
    if not (keyed or signed) or not all(parts.values()):
        raise ValueError(
            "is not a connection string: name=value pairs joined by semicolons, with AccountName and "
            "AccountKey or with SharedAccessSignature"
        )
    for name in ("QueueEndpoint", "TableEndpoint"):
        try:
            endpoint(parts.get(name, "https://derived"))
        except ValueError as error:
            raise ValueError(f"has a {name} that {error}") from None
    if keyed and not _is_base64(parts["AccountKey"]):
        raise ValueError("has an AccountKey that is not Base64: is it whole?")
    if signed and not keyed and "QueueEndpoint" not in parts:
        raise ValueError("has a SharedAccessSignature but no QueueEndpoint")
    return value.strip()


def _is_base64(value: str) -> bool:
    try:
        return bool(base64.b64decode(value, validate=True))
    except binascii.Error:
        return False


@dataclass(frozen=True, kw_only=True)
class ServiceSettings:
    """Where the queue is, and how a program writes its log."""

    queue_name: str = option("AZURE_QUEUE_NAME", "the queue", queue_name)
    storage_account_name: str | None = option(
        "AZURE_STORAGE_ACCOUNT_NAME",
        "the storage account; the endpoints are derived from it",
        account_name,
        default=None,
        default_text="required, unless a connection string or endpoints are given",
    )
    storage_connection_string: str | None = option(
        "AZURE_STORAGE_CONNECTION_STRING",
        "Azurite, or an account key; wins over account name and endpoints",
        connection_string,
        default=None,
        default_text="none",
        secret=True,
    )
    storage_queue_endpoint: str | None = option(
        "AZURE_STORAGE_QUEUE_ENDPOINT",
        "URL of the queue service: sovereign clouds, private endpoints, Azurite over HTTPS",
        endpoint,
        default=None,
        default_text="derived",
    )
    storage_endpoint_suffix: str = option(
        "AZURE_STORAGE_ENDPOINT_SUFFIX", "suffix of the cloud", endpoint_suffix, default="core.windows.net"
    )
    log_level: str = option(
        "EDW_LOG_LEVEL",
        "debug, info, warning or error; debug has a line for every message",
        choice("debug", "info", "warning", "error"),
        default="info",
    )
    log_format: str = option(
        "EDW_LOG_FORMAT", "text for people, json for collectors", choice("text", "json"), default="text"
    )

    def __post_init__(self) -> None:
        self._check_reachable("AZURE_STORAGE_QUEUE_ENDPOINT", self.queue_endpoint)

    def _check_reachable(self, variable: str, url: str) -> None:
        if self.storage_connection_string:
            return
        if not url:
            raise SettingsError(
                f"not set: AZURE_STORAGE_ACCOUNT_NAME (or AZURE_STORAGE_CONNECTION_STRING, or {variable}; "
                "--help explains every setting)"
            )
        if urlsplit(url).scheme == "http":
            raise SettingsError(f"{variable}: {url!r} is not https, and tokens are sent over https only")

    @property
    def queue_endpoint(self) -> str:
        return self.storage_queue_endpoint or self._derived("queue")

    def _derived(self, service: str) -> str:
        if not self.storage_account_name:
            return ""
        return f"https://{self.storage_account_name}.{service}.{self.storage_endpoint_suffix}"


@dataclass(frozen=True, kw_only=True)
class MessageSettings(ServiceSettings):
    """How messages are written into the queue and read from it."""

    message_encoding: str = option(
        "EDW_MESSAGE_ENCODING",
        "text, or base64 for peers that use it (Azure Functions, .NET)",
        choice("text", "base64"),
        default="text",
    )


@dataclass(frozen=True, kw_only=True)
class PoisonQueueSettings(ServiceSettings):
    """Queue and poison queue."""

    poison_queue_name: str = option(
        "EDW_POISON_QUEUE_NAME",
        "the queue for messages that can never succeed",
        queue_name,
        default="",
        default_text="the queue's name with -poison behind it",
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.poison_queue_name:
            object.__setattr__(self, "poison_queue_name", f"{self.queue_name}-poison")
        if len(self.poison_queue_name) > QUEUE_NAME_MOST:
            raise SettingsError(
                f"EDW_POISON_QUEUE_NAME: not set, and {self.poison_queue_name!r} would be longer than "
                f"{QUEUE_NAME_MOST} characters"
            )
        if self.poison_queue_name == self.queue_name:
            raise SettingsError("EDW_POISON_QUEUE_NAME: is the same as AZURE_QUEUE_NAME")


@dataclass(frozen=True, kw_only=True)
class WorkflowSettings(PoisonQueueSettings):
    """Queue, poison queue and table."""

    table_name: str = option("AZURE_TABLE_NAME", "the table", table_name)
    storage_table_endpoint: str | None = option(
        "AZURE_STORAGE_TABLE_ENDPOINT",
        "URL of the table service, Cosmos DB for Table included",
        endpoint,
        default=None,
        default_text="derived",
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        self._check_reachable("AZURE_STORAGE_TABLE_ENDPOINT", self.table_endpoint)

    @property
    def table_endpoint(self) -> str:
        return self.storage_table_endpoint or self._derived("table")


@dataclass(frozen=True, kw_only=True)
class ConsumerSettings(WorkflowSettings, MessageSettings):
    """Takes messages from the queue, stores one entity per message in the table, deletes the message."""

    concurrency: int = option("EDW_CONCURRENCY", "messages worked on at once", integer(1, 1000), default=64)
    visibility_timeout: int = option(
        "EDW_VISIBILITY_TIMEOUT",
        "seconds a received message is leased for: the wait before another consumer gets it after a crash",
        integer(5, 604_800),
        default=60,
    )
    max_dequeue_count: int = option(
        "EDW_MAX_DEQUEUE_COUNT",
        "deliveries without success before a message goes to the poison queue",
        integer(1, 1000),
        default=5,
    )
    poll_interval_min: float = option(
        "EDW_POLL_INTERVAL_MIN", "seconds between polls, first wait", number(0.01, 3600), default=0.1
    )
    poll_interval_max: float = option(
        "EDW_POLL_INTERVAL_MAX",
        "seconds between polls, longest wait of an idle consumer",
        number(0.01, 3600),
        default=5.0,
    )
    stop_timeout: float = option(
        "EDW_STOP_TIMEOUT",
        "seconds that messages in work have when the consumer is asked to stop; then they are given back. "
        "Three seconds and more below the pod's grace period",
        number(0, 86_400),
        default=6.0,
    )
    drain: bool = option(
        "EDW_DRAIN",
        "end when nothing can be received and nothing is in work here; what waits for another delivery stays",
        switch,
        default=False,
    )
    http_port: int = option("EDW_HTTP_PORT", "port of /livez and /readyz; 0 is none", integer(0, 65_535), default=0)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.poll_interval_min > self.poll_interval_max:
            raise SettingsError(
                f"EDW_POLL_INTERVAL_MIN: {self.poll_interval_min:g} is more than "
                f"EDW_POLL_INTERVAL_MAX ({self.poll_interval_max:g})"
            )


@dataclass(frozen=True, kw_only=True)
class ProducerSettings(MessageSettings):
    """Sends messages to the queue: one a second until stopped, or what count, rate, duration and input say."""

    count: int | None = option(
        "EDW_COUNT", "messages to send", integer(1, 1_000_000_000), default=None, default_text="no end"
    )
    rate: float | None = option(
        "EDW_RATE",
        "messages a second; 0 is as fast as it goes",
        number(0, 100_000),
        default=None,
        default_text="1; with an input 0",
    )
    duration: float | None = option(
        "EDW_DURATION",
        "seconds after which to stop",
        number(0.001, 31_536_000),
        default=None,
        default_text="no end",
    )
    concurrency: int = option("EDW_CONCURRENCY", "requests under way at once", integer(1, 1000), default=16)
    input: str | None = option(
        "EDW_INPUT",
        "file of messages, one a line, - for standard input: a JSON object with msg is sent as it is, "
        "srcStamp added where absent; any other line becomes the msg",
        text,
        default=None,
        default_text="generated messages",
    )
    time_to_live: int | None = option(
        "EDW_TIME_TO_LIVE",
        "seconds until an unread message expires; -1 is never",
        integer(-1, 2_147_483_647),
        default=None,
        default_text="the service's 7 days",
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.time_to_live == 0:
            raise SettingsError("EDW_TIME_TO_LIVE: 0 is neither -1 (never) nor a positive number of seconds")
        if self.rate is None:
            object.__setattr__(self, "rate", 0.0 if self.input else 1.0)


@dataclass(frozen=True, kw_only=True)
class PoisonSettings(PoisonQueueSettings):
    """Shows the messages of the poison queue, puts them back into the queue, or deletes them.

    requeue and purge say how many messages they are about to change, and ask. Everything is leased first, and
    what is not changed is given back at once; a message that somebody else has leased is left alone.
    Results are on standard output, all that is said besides on standard error. Exit code 1 means that not all
    was done: messages are left, the answer was no, Ctrl-C, or the service could not be reached for half a minute.
    """

    command: str = argument(
        "list|requeue|purge",
        "show the messages; put their original bodies back into the queue, then delete them; or only delete them",
        choice("list", "requeue", "purge"),
    )
    reason: str = argument(
        "--reason",
        "only the messages whose reason contains this text, in the same case",
        text,
        default="",
        default_text="every message",
    )
    message_id: str = argument(
        "--message-id",
        "only the message that had this id in the queue",
        text,
        default="",
        default_text="every message",
    )
    json: bool = argument(
        "--json",
        "one JSON object a line, with the whole body, for every message shown, put back or deleted",
        switch,
        default=False,
    )
    yes: bool = argument("--yes", "do not ask; needed where standard input is no terminal", switch, default=False)
