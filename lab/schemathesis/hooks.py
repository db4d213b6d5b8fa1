"""What the schema cannot say of valid requests. Each correction gives the reason; invalid requests are left alone."""

import re
import uuid

import schemathesis
from urllib3.util.request import SKIP_HEADER

# As in the schema. For a pattern with alternatives Schemathesis also makes values that it does not match.
ENTITY_TAG = re.compile(r'\*|(W/)?"[0-9]{1,18}"')


def is_valid(case):
    return case.meta is None or case.meta.generation.mode.is_positive


def without_fractions(value):
    # JSON Schema takes 2.0 for an integer; the service takes integers as integers only.
    if isinstance(value, float) and value.is_integer():
        return int(value)
    if isinstance(value, dict):
        return {name: without_fractions(member) for name, member in value.items()}
    return value


@schemathesis.hook
def before_call(context, case, kwargs):
    # Values are made of constants in the code, too, and for this one the HTTP client raises an error instead of sending it.
    for name in [name for name, value in (case.headers or {}).items() if value == SKIP_HEADER]:
        del case.headers[name]
    if not is_valid(case):
        return
    # A key names one request: under a key that was used, another request is refused (422).
    if case.headers and "Idempotency-Key" in case.headers:
        case.headers["Idempotency-Key"] = str(uuid.uuid4())
    for name in ("If-Match", "If-None-Match"):
        if case.headers and name in case.headers and not ENTITY_TAG.fullmatch(case.headers[name]):
            del case.headers[name]
    # A page token cannot be made up (400).
    if case.query:
        case.query.pop("page_token", None)
    case.body = without_fractions(case.body)
