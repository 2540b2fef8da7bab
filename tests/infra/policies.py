"""The policies in infra/policies, rendered."""

import json
import string
from pathlib import Path

TOP = Path(__file__).resolve().parents[2]
FOLDER = TOP / "infra/policies"


def render(name, **values):
    """One policy. Its placeholders are Terraform's, `${bucket_arn}`, and have the same form in Python."""
    return json.loads(string.Template((FOLDER / f"{name}.json").read_text()).substitute(values))


def joined(*policies):
    return {"Version": "2012-10-17", "Statement": [statement for policy in policies for statement in policy["Statement"]]}


def roles(bucket_arn, prefix, cluster, kms_key_arn=None, records_verifications=False):
    """Every role's policy, as Terraform and CloudFormation must make them."""
    names = {"bucket_arn": bucket_arn, "prefix": prefix}
    read, write = [], []
    if kms_key_arn:
        read, write = [render("kms-read", kms_key_arn=kms_key_arn)], [render("kms-write", kms_key_arn=kms_key_arn)]
    evidence = [render("evidence", **names)] if records_verifications else []
    return {
        "writer": joined(render("writer", **names, cluster=cluster), *read, *write),
        "restore": joined(render("restore", **names), *evidence, *read, *(write if evidence else [])),
        "prune": joined(render("prune", **names), *read, *write),
    }


def listed(value):
    return value if isinstance(value, list) else [value]


def without(policy, action, resource):
    """The policy with this action not allowed on this resource any more."""
    statements = []
    for statement in policy["Statement"]:
        actions, resources = listed(statement["Action"]), listed(statement["Resource"])
        if action in actions and resource in resources:
            others = [other for other in actions if other != action]
            if others:
                statements.append({**statement, "Action": others})
            rest = [other for other in resources if other != resource]
            if rest:
                statements.append({**statement, "Action": action, "Resource": rest})
        else:
            statements.append(statement)
    return {**policy, "Statement": statements}


def permissions(policy):
    return [(action, resource) for statement in policy["Statement"]
            for action in listed(statement["Action"]) for resource in listed(statement["Resource"])]
