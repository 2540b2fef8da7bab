"""moto's S3 and IAM on a port of this machine, with what moto's enforcement of policies lacks.

moto checks signatures, and each S3 action and its resource against the policies of the user. Added here, by AWS's documentation:

- conditions: `s3:prefix`, `s3:if-none-match` (moto refuses every statement that has a condition);
- `DeleteObjects` is permitted key by key (moto asks for the bucket);
- a missing object is 404 for those who may list the bucket, else 403 (moto: always 404);
- requests with the signature in the URL (moto breaks off);
- one request at a time, so that conditional puts are atomic.

Not enforced: bucket policies, KMS, TLS, Object Lock's retention.
"""

import fnmatch
import json
import logging
import re
import threading
from urllib.parse import parse_qs

import boto3
from moto import settings
from moto.core.exceptions import ServiceException
from moto.iam import access_control
from moto.moto_server.werkzeug_app import DomainDispatcherApplication, create_backend_app
from moto.s3 import responses
from werkzeug.serving import make_server

ACCOUNT = "123456789012"
DENIED = b'<?xml version="1.0"?><Error><Code>AccessDenied</Code><Message>Access Denied</Message></Error>'
Result = access_control.PermissionResult
current = threading.local()


def listed(value):
    return value if isinstance(value, list) else [value]


def matches(pattern, value):
    return fnmatch.fnmatchcase(value, pattern.replace("[", "[[]"))


def holds(condition, context):
    """https://docs.aws.amazon.com/IAM/latest/UserGuide/reference_policies_elements_condition_operators.html"""
    for operator, keys in condition.items():
        for key, wanted in keys.items():
            found, wanted = context.get(key.lower()), listed(wanted)
            if operator == "Null":
                if (found is None) != (wanted == ["true"]):
                    return False
            elif operator in ("StringEquals", "StringLike"):
                if found is None or not any(matches(pattern, found) if operator == "StringLike" else pattern == found for pattern in wanted):
                    return False
            else:
                raise NotImplementedError(f"condition {operator}")
    return True


def is_action_permitted(self, action, resource="*", *_):
    statement = self._statement
    concerned = (any(matches(pattern, action) for pattern in listed(statement["Action"]))
                 and any(matches(pattern, resource) for pattern in listed(statement["Resource"]))
                 and holds(statement.get("Condition", {}), current.context))
    if not concerned:
        return Result.NEUTRAL
    return Result.PERMITTED if statement["Effect"] == "Allow" else Result.DENIED


def check_signature(self):
    if not current.signed_in_url:
        original_check_signature(self)


def delete_keys(self, bucket_name, authenticated=True):
    del authenticated
    permitted = True
    for key in re.findall(r"<Key>(.*?)</Key>", self.body.decode()):
        self.data["Action"] = "DeleteObject"
        try:
            self._authenticate_and_authorize_s3_action(bucket_name=bucket_name, key_name=key)
        except ServiceException:
            permitted = False
    return original_delete_keys(self, bucket_name, authenticated=permitted)


original_check_signature = access_control.IAMRequestBase.check_signature
original_delete_keys = responses.S3Response._bucket_response_delete_keys
access_control.IAMPolicyStatement.is_action_permitted = is_action_permitted
access_control.IAMRequestBase.check_signature = check_signature
responses.S3Response._bucket_response_delete_keys = delete_keys
responses.ACTION_MAP["BUCKET"]["GET"]["object-lock"] = "GetBucketObjectLockConfiguration"


class Gate:
    """The WSGI application around moto's."""

    def __init__(self):
        self.moto = DomainDispatcherApplication(create_backend_app)
        self.lock = threading.Lock()
        self.requests = []

    def __call__(self, environ, start_response):
        query = {name: values[0] for name, values in parse_qs(environ["QUERY_STRING"], keep_blank_values=True).items()}
        current.signed_in_url = "X-Amz-Credential" in query
        if current.signed_in_url:
            environ["HTTP_AUTHORIZATION"] = (f"AWS4-HMAC-SHA256 Credential={query['X-Amz-Credential']}, "
                                             f"SignedHeaders={query['X-Amz-SignedHeaders']}, Signature={query['X-Amz-Signature']}")
        context = {"s3:prefix": query.get("prefix"), "s3:if-none-match": environ.get("HTTP_IF_NONE_MATCH")}
        current.context = {key: value for key, value in context.items() if value is not None}
        answer = []
        with self.lock:
            body = b"".join(self.moto(environ, lambda status, headers, *_: answer.extend([status, headers])))
            status, headers = answer
            self.requests.append((environ["REQUEST_METHOD"], environ["PATH_INFO"], status[:3]))
            bucket, _, key = environ["PATH_INFO"].lstrip("/").partition("/")
            if status.startswith("404") and key and environ["REQUEST_METHOD"] in ("GET", "HEAD") and not self.may_list(environ, bucket):
                status, headers, body = "403 Forbidden", [("Content-Type", "application/xml"), ("Content-Length", str(len(DENIED)))], DENIED
        start_response(status, headers)
        return [b"" if environ["REQUEST_METHOD"] == "HEAD" else body]

    @staticmethod
    def may_list(environ, bucket):
        # Whether an object is there is asked without any prefix: https://docs.aws.amazon.com/AmazonS3/latest/API/API_GetObject.html
        current.context = {}
        key_id = environ["HTTP_AUTHORIZATION"].partition("Credential=")[2].partition("/")[0]
        policies = access_control.create_access_key(ACCOUNT, "aws", key_id, {}).collect_policies()
        results = {access_control.IAMPolicy(policy).is_action_permitted("s3:ListBucket", f"arn:aws:s3:::{bucket}") for policy in policies}
        return Result.PERMITTED in results and Result.DENIED not in results


class Emulator:
    """Runs until the process ends."""

    def __init__(self):
        logging.getLogger("werkzeug").setLevel(logging.ERROR)
        self.gate = Gate()
        server = make_server("127.0.0.1", 0, self.gate, threaded=True)
        threading.Thread(target=server.serve_forever, daemon=True).start()
        self.endpoint = f"http://127.0.0.1:{server.server_port}"
        self.keys = {}
        self.iam = self.client("iam", "nobody", "nothing")
        everything = {"Effect": "Allow", "Action": "*", "Resource": "*"}
        admin = self.user("admin", {"Version": "2012-10-17", "Statement": [everything]})
        self.iam, self.s3 = self.client("iam", *admin), self.client("s3", *admin)
        settings.INITIAL_NO_AUTH_ACTION_COUNT = 0

    def client(self, service, key_id, secret):
        return boto3.client(service, endpoint_url=self.endpoint, region_name="us-east-1", aws_access_key_id=key_id, aws_secret_access_key=secret)

    def user(self, name, policy):
        """A user with this policy and no other; its access key's id and secret."""
        if name not in self.keys:
            self.iam.create_user(UserName=name)
            key = self.iam.create_access_key(UserName=name)["AccessKey"]
            self.keys[name] = key["AccessKeyId"], key["SecretAccessKey"]
        self.iam.put_user_policy(UserName=name, PolicyName="policy", PolicyDocument=json.dumps(policy))
        return self.keys[name]
