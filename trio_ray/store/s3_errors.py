"""What botocore and obstore raise, as the package's typed errors: the one place that knows S3's error codes."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator

from botocore.exceptions import (
    BotoCoreError,
    ClientError,
    ConnectTimeoutError,
    CredentialRetrievalError,
    EndpointConnectionError,
    HTTPClientError,
    IncompleteReadError,
    NoCredentialsError,
    PartialCredentialsError,
    ProfileNotFound,
    SSOError,
    TokenRetrievalError,
)
from obstore.exceptions import BaseError as ObstoreError
from obstore.exceptions import UnauthenticatedError
from urllib3.exceptions import HTTPError

from trio_ray.errors import AccessRefused, ObjectDamaged, ObjectMissing, StoreError

BROKEN_BODY = (HTTPClientError, IncompleteReadError, HTTPError, OSError)
"""What reading a body raises when the connection dies; botocore's own retries end with the headers."""

_REFUSED = {
    "403",
    "AccessDenied",
    "AccountProblem",
    "AllAccessDisabled",
    "ExpiredToken",
    "Forbidden",
    "InvalidAccessKeyId",
    "InvalidToken",
    "RequestTimeTooSkewed",
    "SignatureDoesNotMatch",
    "TokenRefreshRequired",
}
_MISSING = {"404", "NoSuchKey", "NotFound"}
_CHANGED = {"412", "PreconditionFailed"}
_BEYOND_THE_END = {"416", "InvalidRange"}
_WRONG_REGION = {
    "301",
    "AuthorizationHeaderMalformed",
    "IllegalLocationConstraintException",
    "PermanentRedirect",
}
_NO_CREDENTIALS = (
    NoCredentialsError,
    PartialCredentialsError,
    CredentialRetrievalError,
    TokenRetrievalError,
    SSOError,
)


_STATUS, _CODE, _MESSAGE = (
    re.compile(pattern) for pattern in (r"status code: (\d+)", "<Code>([^<]*)</Code>", "<Message>([^<]*)</Message>")
)
_CANNOT_CONNECT = "kind: Connect"
_REDIRECTED = "redirect without LOCATION"


@contextlib.contextmanager
def translated(uri: str) -> Iterator[None]:
    """Turn whatever boto3 or obstore raises about `uri` into the right `StoreError`: one sentence, no secrets."""
    try:
        yield
    except ClientError as error:
        message = str(error.response.get("Error", {}).get("Message", ""))
        raise _from_code(uri, error_code(error), message) from None
    except _NO_CREDENTIALS as error:
        raise _without_credentials(uri, str(error)) from None
    except UnauthenticatedError as error:
        raise _without_credentials(uri, _in_short(error)) from None
    except (ObstoreError, FileNotFoundError) as error:
        raise _from_text(uri, error) from None
    except ProfileNotFound as error:
        raise AccessRefused(uri, f"{error}; correct s3.profile or the AWS configuration files") from None
    except (EndpointConnectionError, ConnectTimeoutError) as error:
        raise StoreError(uri, f"the S3 endpoint cannot be reached ({error}); check s3.endpoint_url") from error
    except (BotoCoreError, HTTPError, OSError, ValueError) as error:
        raise StoreError(uri, f"S3 request failed: {' '.join(str(error).split())[:300]}") from error


def error_code(error: ClientError) -> str:
    """S3's error code, such as `NoSuchKey`; for HEAD requests the HTTP status as text."""
    return str(error.response.get("Error", {}).get("Code", ""))


def is_taken(error: ClientError) -> bool:
    """Whether a conditional write was refused because the object exists."""
    return error_code(error) in _CHANGED


def is_conflict(error: ClientError) -> bool:
    """Whether a conditional write met another one under way; S3 asks to try again."""
    return error_code(error) in {"409", "ConditionalRequestConflict", "OperationAborted"}


def _from_code(uri: str, code: str, message: str) -> StoreError:
    if code in _MISSING:
        return ObjectMissing(uri, "no such object")
    if code == "NoSuchBucket":
        return StoreError(uri, "the bucket does not exist; create it or correct its name")
    if code in _REFUSED:
        return AccessRefused(
            uri, f"S3 refused ({code}); check the credentials, their policy for this bucket, and the clock"
        )
    if code in _CHANGED:
        return ObjectDamaged(uri, "was replaced while it was being read; run this again")
    if code in _BEYOND_THE_END:
        return ObjectDamaged(uri, "ends before the requested range; it was truncated")
    if code in _WRONG_REGION:
        return StoreError(uri, f"the bucket is in another region ({code}); set s3.region")
    return StoreError(uri, f"S3 answered {code or 'an error'}: {message.strip() or 'no message'}")


def _from_text(uri: str, error: Exception) -> StoreError:
    """obstore has the server's answer in its text alone: the status, and S3's XML with code and message."""
    text = str(error)
    status, code, message = (pattern.search(text) for pattern in (_STATUS, _CODE, _MESSAGE))
    found = code or status
    if found:
        return _from_code(uri, found[1], message[1] if message else "")
    if _REDIRECTED in text:
        return _from_code(uri, "PermanentRedirect", "")
    if _CANNOT_CONNECT in text:
        return StoreError(uri, f"the S3 endpoint cannot be reached ({_in_short(error)}); check s3.endpoint_url")
    return StoreError(uri, f"S3 request failed: {_in_short(error)}")


def _without_credentials(uri: str, why: str) -> AccessRefused:
    remedy = "set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or s3.profile"
    return AccessRefused(uri, f"no usable AWS credentials ({why}); {remedy}")


def _in_short(error: Exception) -> str:
    """The first line of obstore's text without what it was about to do."""
    return str(error).partition("\n")[0].rpartition(" - ")[2][:200].strip()
