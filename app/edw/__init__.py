"""The event-driven workflow: a producer, an Azure Storage Queue, consumers, an Azure Storage Table."""

__version__ = "0.1.0"
