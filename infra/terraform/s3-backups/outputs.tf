output "bucket" {
  description = "The bucket's name."
  value       = aws_s3_bucket.backups.bucket
}

output "bucket_arn" {
  description = "The bucket's ARN."
  value       = aws_s3_bucket.backups.arn
}

output "repository" {
  description = "What goes into pgkeep.toml: `repository = [\"...\"]`."
  value       = "s3://${trimsuffix("${aws_s3_bucket.backups.bucket}/${var.prefix}", "/")}"
}

output "policies" {
  description = "The policies' JSON: `writer` by cluster, `restore`, `prune`."
  value = {
    writer  = local.writer_policies
    restore = local.restore_policy
    prune   = local.prune_policy
  }
}

output "policy_arns" {
  description = "The policies' ARNs, to attach to roles and users of your own: `writer` by cluster, `restore`, `prune`."
  value = {
    writer  = { for cluster, policy in aws_iam_policy.writer : cluster => policy.arn }
    restore = aws_iam_policy.restore.arn
    prune   = aws_iam_policy.prune.arn
  }
}

output "instance_profiles" {
  description = "Instance profiles that were made, by cluster."
  value       = { for cluster, profile in aws_iam_instance_profile.writer : cluster => profile.name }
}

output "role_arns" {
  description = "Roles that were made: `restore` and `prune`, null where nobody was trusted with it."
  value = {
    restore = one(aws_iam_role.restore[*].arn)
    prune   = one(aws_iam_role.prune[*].arn)
  }
}
