"""The credential the programs sign in with where no connection string is given."""

from azure.core.credentials import AccessTokenInfo, TokenRequestOptions
from azure.identity.aio import DefaultAzureCredential

from edw.errors import NoToken


class Identity(DefaultAzureCredential):
    """The SDK's chain of credentials, without repetitions of its own.

    Raises NoToken whatever the reason. The errors of the SDK hold what the token endpoint answered, and the
    storage clients would take that for the answer of their service, a 400 for the refusal of a message.
    """

    def __init__(self) -> None:
        super().__init__(retry_total=0)

    async def get_token_info(self, *scopes: str, options: TokenRequestOptions | None = None) -> AccessTokenInfo:
        try:
            return await super().get_token_info(*scopes, options=options)
        except Exception as error:
            raise NoToken(str(getattr(error, "message", None) or error)) from error
