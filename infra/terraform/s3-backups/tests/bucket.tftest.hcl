# What the module makes of its variables. The provider is mocked; its schema is the real one (tests/infra/schema.py). Only plans: what is applied
# is destroyed at the end, which the bucket prevents.

mock_provider "aws" {
  override_during = plan

  mock_resource "aws_s3_bucket" {
    defaults = {
      id  = "gamepulse-backups"
      arn = "arn:aws:s3:::gamepulse-backups"
    }
  }
  mock_resource "aws_iam_policy" {
    defaults = { arn = "arn:aws:iam::123456789012:policy/made" }
  }
  mock_resource "aws_iam_role" {
    defaults = { arn = "arn:aws:iam::123456789012:role/made" }
  }
}

variables {
  bucket = "gamepulse-backups"
}

run "a_bucket_with_nothing_but_a_name" {
  command = plan
  assert {
    condition = alltrue([
      aws_s3_bucket_public_access_block.backups.block_public_acls,
      aws_s3_bucket_public_access_block.backups.block_public_policy,
      aws_s3_bucket_public_access_block.backups.ignore_public_acls,
      aws_s3_bucket_public_access_block.backups.restrict_public_buckets,
    ])
    error_message = "The bucket must be closed to the public."
  }
  assert {
    condition     = aws_s3_bucket_versioning.backups.versioning_configuration[0].status == "Enabled"
    error_message = "What is deleted must be recoverable."
  }
  assert {
    condition     = one(one(aws_s3_bucket_server_side_encryption_configuration.backups.rule).apply_server_side_encryption_by_default).sse_algorithm == "AES256"
    error_message = "Without a KMS key, S3's own keys encrypt."
  }
  assert {
    condition     = length(aws_s3_bucket_object_lock_configuration.backups) == 0
    error_message = "Object Lock must be asked for."
  }
  assert {
    condition     = !aws_s3_bucket.backups.force_destroy
    error_message = "Terraform must not delete a bucket with backups in it."
  }
  assert {
    condition     = jsondecode(aws_s3_bucket_policy.backups.policy).Statement[0].Condition.Bool["aws:SecureTransport"] == "false"
    error_message = "Only TLS may reach the bucket."
  }
  assert {
    condition     = [for rule in aws_s3_bucket_lifecycle_configuration.backups.rule : rule.id] == ["housekeeping", "doctors-probes", "leases-main"]
    error_message = "No rule may touch dumps unless it is asked for."
  }
  assert {
    condition     = aws_s3_bucket_lifecycle_configuration.backups.rule[0].noncurrent_version_expiration[0].noncurrent_days == 30
    error_message = "Deleted dumps go for good after 30 days."
  }
  assert {
    condition     = aws_s3_bucket_lifecycle_configuration.backups.rule[0].abort_incomplete_multipart_upload[0].days_after_initiation == 7
    error_message = "Parts of uploads that broke off must go."
  }
  assert {
    condition     = output.repository == "s3://gamepulse-backups/pgkeep"
    error_message = "The repository's URL is wrong."
  }
  assert {
    condition     = length(aws_iam_role.writer) + length(aws_iam_role.restore) + length(aws_iam_role.prune) == 0
    error_message = "No role unless somebody is trusted with it."
  }
}

run "thirty_days_kept_by_the_bucket_alone" {
  command = plan
  variables {
    expire_dumps_after_days = 30
    clusters                = { gamepulse = {}, reports = {} }
  }
  assert {
    condition = {
      for rule in aws_s3_bucket_lifecycle_configuration.backups.rule : rule.filter[0].prefix => rule.expiration[0].days if startswith(rule.id, "dumps-")
    } == { "pgkeep/gamepulse/dump/" = 30, "pgkeep/reports/dump/" = 30 }
    error_message = "Dumps, and only dumps, expire after 30 days."
  }
  assert {
    condition = alltrue([
      for rule in aws_s3_bucket_lifecycle_configuration.backups.rule : anytrue([
        for path in ["/dump/", "/lease/", "pgkeep-probe-"] : endswith(rule.filter[0].prefix, path)
      ]) if try(rule.expiration[0].days, null) != null
    ])
    error_message = "The repository's marker, identities, pins and evidence must not expire."
  }
}

run "a_repository_at_the_buckets_top" {
  command = plan
  variables {
    prefix                        = ""
    restore_records_verifications = true
  }
  assert {
    condition     = output.repository == "s3://gamepulse-backups"
    error_message = "The repository's URL is wrong."
  }
  assert {
    condition     = aws_s3_bucket_lifecycle_configuration.backups.rule[2].filter[0].prefix == "main/lease/"
    error_message = "Without a prefix there is no slash before the cluster's name."
  }
  assert {
    condition     = contains(jsondecode(output.policies.writer.main).Statement[0].Resource, "arn:aws:s3:::gamepulse-backups/main/dump/*")
    error_message = "Without a prefix there is no slash before the cluster's name."
  }
}

run "object_lock_transition_and_kms" {
  command = plan
  variables {
    object_lock = { mode = "GOVERNANCE", days = 14 }
    transition  = { days = 30, storage_class = "STANDARD_IA" }
    kms_key_arn = "arn:aws:kms:eu-central-1:123456789012:key/0b1c"
  }
  assert {
    # The provider can't change it in place.
    condition     = aws_s3_bucket.backups.object_lock_enabled != true
    error_message = "The bucket would be replaced when Object Lock is switched on."
  }
  assert {
    condition     = aws_s3_bucket_object_lock_configuration.backups[0].rule[0].default_retention[0].days == 14
    error_message = "Objects must be locked for 14 days."
  }
  assert {
    condition     = one(aws_s3_bucket_lifecycle_configuration.backups.rule[3].transition).storage_class == "STANDARD_IA"
    error_message = "Dumps must be moved."
  }
  assert {
    condition     = length(aws_s3_bucket_lifecycle_configuration.backups.rule[3].expiration) == 0
    error_message = "Dumps that are moved must not expire for that."
  }
  assert {
    condition     = one(one(aws_s3_bucket_server_side_encryption_configuration.backups.rule).apply_server_side_encryption_by_default).kms_master_key_id == var.kms_key_arn
    error_message = "The key must be the given one."
  }
  assert {
    condition = [for policy in [output.policies.writer.main, output.policies.prune, output.policies.restore] : [
      for statement in jsondecode(policy).Statement : statement.Action if try(startswith(statement.Action, "kms:"), false)
    ]] == [["kms:Decrypt", "kms:GenerateDataKey"], ["kms:Decrypt", "kms:GenerateDataKey"], ["kms:Decrypt"]]
    error_message = "Who writes needs the key's GenerateDataKey, who reads its Decrypt."
  }
}

run "roles" {
  command = plan
  variables {
    clusters            = { gamepulse = { attach_to_role = "gamepulse-ec2" }, reports = { instance_profile = true } }
    restore_role_trusts = ["arn:aws:iam::123456789012:user/ada"]
    prune_role_trusts   = ["arn:aws:iam::123456789012:role/scheduler"]
  }
  assert {
    condition     = { for cluster, attachment in aws_iam_role_policy_attachment.writer : cluster => attachment.role } == { gamepulse = "gamepulse-ec2" }
    error_message = "The machine's own role must get the write-only policy of its cluster."
  }
  assert {
    condition     = aws_iam_instance_profile.writer["reports"].role == aws_iam_role.writer["reports"].name && length(aws_iam_instance_profile.writer) == 1
    error_message = "The instance profile must carry the role."
  }
  assert {
    condition     = jsondecode(aws_iam_role.restore[0].assume_role_policy).Statement[0].Principal.AWS == "arn:aws:iam::123456789012:user/ada" || jsondecode(aws_iam_role.restore[0].assume_role_policy).Statement[0].Principal.AWS == ["arn:aws:iam::123456789012:user/ada"]
    error_message = "Only those who are named may restore."
  }
  assert {
    condition     = output.role_arns.prune == aws_iam_role.prune[0].arn
    error_message = "The role's ARN must come out."
  }
}
