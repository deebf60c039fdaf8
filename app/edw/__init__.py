"""The event-driven workflow: a producer, an Azure Storage Queue, consumers, an Azure Storage Table."""
