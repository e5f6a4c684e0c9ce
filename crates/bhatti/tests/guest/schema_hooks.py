"""What schemathesis is told beside the description: a check, and how to send what is no JSON."""

import schemathesis


@schemathesis.check
def never_a_failure_of_ours(ctx, response, case):
    """500 is a defect of the server; the other 5xx say what stands in the way, and are promised."""
    assert response.status_code != 500, response.text


@schemathesis.serializer("application/octet-stream", "application/x-tar")
def as_bytes(ctx, value):
    return value if isinstance(value, bytes) else str(value).encode()
