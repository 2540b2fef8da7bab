"""check_terraform.py --cache DIRECTORY

Every module under infra/terraform: formatted, valid against the AWS provider's real schema, and its own tests pass. Mistakes that are
put in on purpose are found. The policies it makes are those of infra/policies.
"""

import argparse
import json
import sys
import tempfile

import policies
from terraform import Terraform

# File, what to replace by what, and what must be said: the kinds of mistakes that a provider's schema catches.
MISTAKES = [
    ("s3-backups/main.tf", "block_public_acls ", "block_public_acl ", 'argument named "block_public_acl" is not expected'),
    ("s3-backups/main.tf", '    status = "Enabled"\n', "", 'The argument "status" is required'),
    ("s3-backups/main.tf", 'resource "aws_s3_bucket_versioning"', 'resource "aws_s3_bucket_version"', 'does not support resource type'),
    ("s3-backups/lifecycle.tf", "days_after_initiation", "days_after_start", "days_after_start"),
    ("s3-backups/lifecycle.tf", "noncurrent_days = var.noncurrent_version_days", 'noncurrent_days = "thirty"', "a number is required"),
    ("s3-backups/lifecycle.tf", "noncurrent_version_expiration {", "old_version_expiration {", "Unsupported block type"),
    ("s3-backups/access.tf", "aws_iam_policy.restore.arn", "aws_iam_policy.restore.policy_arn", 'no argument, nested block, or exported attribute named "policy_arn"'),
    ("s3-backups/access.tf", "aws_iam_role.prune[0].name", "aws_iam_role.pruner[0].name", "Reference to undeclared resource"),
    ("s3-backups/outputs.tf", "aws_s3_bucket.backups.arn", "aws_s3_bucket.backup.arn", "Reference to undeclared resource"),
]

# The same for those that the module's own tests find, with the tests' file.
MISTAKES_OF_MEANING = [
    ("s3-backups/variables.tf", '"STANDARD_IA", "ONEZONE_IA"', '"DEEP_ARCHIVE", "ONEZONE_IA"', "a_storage_class_that_takes_hours_to_read", "refusals"),
    ("s3-backups/variables.tf", "var.expire_dumps_after_days > local.longest_kept_days", "var.expire_dumps_after_days > 0", "expiry_against_pgkeeps_own_retention", "refusals"),
    ("s3-backups/lifecycle.tf", "/dump/\"", "/\"", "only dumps, expire after 30 days", "bucket"),
    ("s3-backups/main.tf", "block_public_policy     = true", "block_public_policy     = false", "closed to the public", "bucket"),
    ("s3-backups/main.tf", '    status = "Enabled"', '    status = "Suspended"', "must be recoverable", "bucket"),
    ("s3-backups/main.tf", "  force_destroy = false", "  force_destroy = false\n  object_lock_enabled = var.object_lock != null", "replaced when Object Lock is switched on", "bucket"),
    ("s3-backups/variables.tf", '${name}") <= 64', '${name}") <= 640', "a_cluster_whose_role_would_need_too_long_a_name", "refusals"),
]


def check_modules(terraform):
    infra = terraform.copy()
    for module in sorted({file.parent for file in infra.glob("terraform/**/*.tf")}):
        code, said = terraform.run(module, "fmt", "-check", "-diff", "-recursive")
        if code != 0:
            raise AssertionError(f"{module.name} is not formatted (terraform fmt -recursive infra):\n{said}")
        for command in ("validate", "test"):
            code, said = terraform.run(module, command, "-no-color")
            if code != 0:
                raise AssertionError(f"{module.name}: terraform {command}:\n{said}")
            print(f"{module.name}: {said.strip().splitlines()[-1]}")


def check_mistake(terraform, file, right, wrong, complaint, *command):
    infra = terraform.copy("mistaken")
    path = infra / "terraform" / file
    text = path.read_text()
    if right not in text:
        raise AssertionError(f"{file} has no {right!r} to replace")
    path.write_text(text.replace(right, wrong))
    code, said = terraform.run(path.parent, *command, "-no-color")
    said = " ".join(said.replace("│", " ").split())
    if code == 0 or complaint not in said:
        raise AssertionError(f"{file} with {wrong!r} for {right!r} isn't found by {complaint!r}:\n{said}")


def check_mistakes(terraform):
    for mistake in MISTAKES:
        check_mistake(terraform, *mistake, "validate")
    for *mistake, tests in MISTAKES_OF_MEANING:
        check_mistake(terraform, *mistake, "test", f"-filter=tests/{tests}.tftest.hcl")
    number = len(MISTAKES) + len(MISTAKES_OF_MEANING)
    print(f"{number} mistakes put in, {number} found")


def check_policies(terraform):
    states = terraform.states(terraform.copy() / "terraform/s3-backups", "tests/bucket.tftest.hcl")
    arn = "arn:aws:s3:::gamepulse-backups"
    key = "arn:aws:kms:eu-central-1:123456789012:key/0b1c"
    for run, prefix, options in [
        ("a_bucket_with_nothing_but_a_name", "pgkeep/", {}),
        ("a_repository_at_the_buckets_top", "", {"records_verifications": True}),
        ("object_lock_transition_and_kms", "pgkeep/", {"kms_key_arn": key}),
    ]:
        expected = policies.roles(arn, prefix, "main", **options)
        for role, address in [("writer", 'aws_iam_policy.writer["main"]'), ("restore", "aws_iam_policy.restore"), ("prune", "aws_iam_policy.prune")]:
            made = json.loads(states[run][address]["policy"])
            if made != expected[role]:
                raise AssertionError(f"{run}: {role} is\n{made}\nand infra/policies say\n{expected[role]}")
        if json.loads(states[run]["aws_s3_bucket_policy.backups"]["policy"]) != policies.render("bucket", bucket_arn=arn):
            raise AssertionError(f"{run}: the bucket's policy isn't that of infra/policies")
    print("the policies are those of infra/policies")


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--cache", required=True)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="pgkeep-terraform-") as folder:
        with Terraform(arguments.cache, folder) as terraform:
            print(f"against the schema of AWS provider {terraform.version}")
            check_modules(terraform)
            check_mistakes(terraform)
            check_policies(terraform)


if __name__ == "__main__":
    try:
        main()
    except AssertionError as failure:
        sys.exit(f"{failure}")
