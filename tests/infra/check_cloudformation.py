"""check_cloudformation.py --cache DIRECTORY

The templates under infra/cloudformation pass cfn-lint, which finds mistakes that are put in on purpose, and s3-backups.yaml makes the
same policies and lifecycle rules as the Terraform module.
"""

import argparse
import json
import re
import sys
import tempfile
from pathlib import Path

import policies
import yaml
from cfnlint.api import ManualArgs, lint
from terraform import INFRA, Terraform

BUCKET = "gamepulse-backups"
ARN = f"arn:aws:s3:::{BUCKET}"
KEY = "arn:aws:kms:eu-central-1:123456789012:key/0b1c"
NOTHING = object()
DEFAULTS = {"BucketName": BUCKET}

# What to replace by what, and the rule of cfn-lint that must find it.
MISTAKES = [
    ("BlockPublicAcls:", "BlockPublicAcl:", "E3002"),
    ("Status: Enabled\n      PublicAccess", "Status: On\n      PublicAccess", "E3030"),
    ("AWS::S3::BucketPolicy", "AWS::S3::BucketPolicies", "E3006"),
    ("!Ref NoncurrentVersionDays", "!Ref OldVersionDays", "E1020"),
    ("!If [Locks, true, false]", "!If [Locked, true, false]", "E1028"),
    ("StorageClass: !Ref TransitionStorageClass\n                    ", "", "E3003"),
    ("ExpirationInDays: 1\n", "ExpirationInDays: one\n", "E3012"),
    ("!GetAtt RestoreRole.Arn", "!GetAtt RestoreRole.Name", "E6101"),
]


class Loader(yaml.SafeLoader):
    """YAML with CloudFormation's short forms: `!Ref x` is {"Ref": "x"}."""


def short_form(loader, suffix, node):
    value = {yaml.ScalarNode: loader.construct_scalar, yaml.SequenceNode: lambda n: loader.construct_sequence(n, deep=True)}[type(node)](node)
    name = suffix if suffix in ("Ref", "Condition") else f"Fn::{suffix}"
    return {name: value.split(".", 1) if suffix == "GetAtt" else value}


Loader.add_multi_constructor("!", short_form)


class Stack:
    """A template with values for its parameters."""

    def __init__(self, template, **parameters):
        self.template = template
        self.values = {name: parameter.get("Default") for name, parameter in template["Parameters"].items()} | DEFAULTS | parameters
        self.values |= {"Bucket": BUCKET, "AWS::NoValue": NOTHING}

    def holds(self, name):
        return self.resolve(self.template["Conditions"][name])

    def resolve(self, value):
        if isinstance(value, list):
            return [item for item in map(self.resolve, value) if item is not NOTHING]
        if not isinstance(value, dict):
            return value
        if len(value) == 1:
            name, argument = next(iter(value.items()))
            if name in self.FUNCTIONS:
                return self.FUNCTIONS[name](self, argument)
        resolved = {name: self.resolve(item) for name, item in value.items()}
        return {name: item for name, item in resolved.items() if item is not NOTHING}

    def sub(self, text):
        return re.sub(r"\$\{([\w.]+)\}", lambda found: ARN if found[1] == "Bucket.Arn" else str(self.values[found[1]]), text)

    FUNCTIONS = {
        "Ref": lambda self, name: self.values[name],
        "Condition": holds,
        "Fn::Sub": sub,
        "Fn::GetAtt": lambda self, path: {("Bucket", "Arn"): ARN}[tuple(path)],
        "Fn::If": lambda self, a: self.resolve(a[1] if self.holds(a[0]) else a[2]),
        "Fn::Equals": lambda self, a: self.resolve(a[0]) == self.resolve(a[1]),
        "Fn::Not": lambda self, a: not self.resolve(a[0]),
        "Fn::And": lambda self, a: all(map(self.resolve, a)),
        "Fn::Or": lambda self, a: any(map(self.resolve, a)),
    }

    def properties(self, resource):
        return self.resolve(self.template["Resources"][resource]["Properties"])


def check_lint(text):
    found = lint(text, config=ManualArgs(regions=["eu-central-1"]))
    return [f"{match.rule.id} {match.message}" for match in found]


def check_mistakes(text):
    for right, wrong, _ in MISTAKES:
        if right not in text:
            raise AssertionError(f"the template has no {right!r} to replace")
        text = text.replace(right, wrong, 1)
    # All at once: cfn-lint takes a second.
    found = check_lint(text)
    for right, wrong, rule in MISTAKES:
        if not any(match.startswith(rule) for match in found):
            raise AssertionError(f"{wrong!r} for {right!r} isn't found by {rule}: {found}")
    print(f"{len(MISTAKES)} mistakes put in, {len(MISTAKES)} found")


def check_policies(template):
    for parameters, options in [
        ({}, {}),
        ({"RestoreRecordsVerifications": "yes"}, {"records_verifications": True}),
        ({"KmsKeyArn": KEY}, {"kms_key_arn": KEY}),
        ({"KmsKeyArn": KEY, "RestoreRecordsVerifications": "yes"}, {"kms_key_arn": KEY, "records_verifications": True}),
    ]:
        stack = Stack(template, **parameters)
        for role, expected in policies.roles(ARN, "pgkeep/", "main", **options).items():
            made = stack.properties(f"{role.title()}Policy")["PolicyDocument"]
            if made != expected:
                raise AssertionError(f"{role} with {parameters} is\n{json.dumps(made)}\nand infra/policies say\n{json.dumps(expected)}")
        if stack.properties("BucketPolicy")["PolicyDocument"] != policies.render("bucket", bucket_arn=ARN):
            raise AssertionError("the bucket's policy isn't that of infra/policies")
    print("the policies are those of infra/policies")


def first(blocks, name=None):
    return None if not blocks else blocks[0] if name is None else blocks[0][name]


def terraform_rules(values):
    """Lifecycle rules as both sides can say them: what applies where."""
    return {
        rule["id"]: {
            "prefix": first(rule["filter"], "prefix") or "",
            "expires": first(rule["expiration"], "days"),
            "marks": bool(first(rule["expiration"], "expired_object_delete_marker")),
            "noncurrent": first(rule["noncurrent_version_expiration"], "noncurrent_days"),
            "abort": first(rule["abort_incomplete_multipart_upload"], "days_after_initiation"),
            "moves": [(move["storage_class"], move["days"]) for move in rule["transition"]],
        }
        for rule in values["rule"]
    }


def cloudformation_rules(properties):
    return {
        rule["Id"]: {
            "prefix": rule.get("Prefix", ""),
            "expires": rule.get("ExpirationInDays"),
            "marks": rule.get("ExpiredObjectDeleteMarker", False),
            "noncurrent": rule.get("NoncurrentVersionExpiration", {}).get("NoncurrentDays"),
            "abort": rule.get("AbortIncompleteMultipartUpload", {}).get("DaysAfterInitiation"),
            "moves": [(move["StorageClass"], move["TransitionInDays"]) for move in rule.get("Transitions", [])],
        }
        for rule in properties["LifecycleConfiguration"]["Rules"]
    }


def check_lifecycle(template, terraform):
    states = terraform.states(terraform.copy() / "terraform/s3-backups", "tests/bucket.tftest.hcl")
    for run, parameters in [
        ("a_bucket_with_nothing_but_a_name", {}),
        ("thirty_days_kept_by_the_bucket_alone", {"Cluster": "gamepulse", "ExpireDumpsAfterDays": 30}),
        ("object_lock_transition_and_kms", {"TransitionStorageClass": "STANDARD_IA", "TransitionDays": 30}),
    ]:
        made = cloudformation_rules(Stack(template, **parameters).properties("Bucket"))
        expected = terraform_rules(states[run]["aws_s3_bucket_lifecycle_configuration.backups"])
        # That run has a second cluster, and a stack has one.
        expected = {name: rule for name, rule in expected.items() if not name.endswith("-reports")}
        if made != expected:
            raise AssertionError(f"{run}: the lifecycle rules are\n{made}\nand Terraform's\n{expected}")
    print("the lifecycle rules are Terraform's")


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--cache", required=True)
    arguments = parser.parse_args()
    for file in sorted(INFRA.glob("cloudformation/*.yaml")):
        found = check_lint(file.read_text())
        if found:
            raise AssertionError(f"{file.name}:\n" + "\n".join(found))
        print(f"{file.name}: nothing for cfn-lint to say")
    text = Path(INFRA / "cloudformation/s3-backups.yaml").read_text()
    check_mistakes(text)
    template = yaml.load(text, Loader)
    check_policies(template)
    with tempfile.TemporaryDirectory(prefix="pgkeep-cloudformation-") as folder, Terraform(arguments.cache, folder) as terraform:
        check_lifecycle(template, terraform)


if __name__ == "__main__":
    try:
        main()
    except AssertionError as failure:
        sys.exit(f"{failure}")
