# Who may do what. The policies themselves are in infra/policies, for Terraform and CloudFormation alike.

locals {
  policies = "${path.module}/../../policies"

  names = {
    bucket_arn = aws_s3_bucket.backups.arn
    prefix     = var.prefix == "" ? "" : "${var.prefix}/"
  }

  statements = {
    for role in ["restore", "evidence", "prune"] : role => jsondecode(templatefile("${local.policies}/${role}.json", local.names)).Statement
  }

  evidence = [for statement in local.statements.evidence : statement if var.restore_records_verifications]

  # Both empty without a KMS key.
  kms = {
    for use in ["read", "write"] : use => [
      for statement in jsondecode(templatefile("${local.policies}/kms-${use}.json", { kms_key_arn = coalesce(var.kms_key_arn, "none") })).Statement :
      statement if var.kms_key_arn != null
    ]
  }

  writer_policies = {
    for cluster in keys(var.clusters) : cluster => jsonencode({
      Version = "2012-10-17"
      Statement = concat(
        jsondecode(templatefile("${local.policies}/writer.json", merge(local.names, { cluster = cluster }))).Statement,
        local.kms.read,
        local.kms.write,
      )
    })
  }

  restore_policy = jsonencode({
    Version = "2012-10-17"
    Statement = concat(
      local.statements.restore,
      local.evidence,
      local.kms.read,
      [for statement in local.kms.write : statement if var.restore_records_verifications],
    )
  })

  prune_policy = jsonencode({
    Version   = "2012-10-17"
    Statement = concat(local.statements.prune, local.kms.read, local.kms.write)
  })

  attached = { for cluster, access in var.clusters : cluster => access.attach_to_role if access.attach_to_role != null }
  profiles = toset([for cluster, access in var.clusters : cluster if access.instance_profile])
}

resource "aws_iam_policy" "writer" {
  for_each = local.writer_policies

  name        = "${var.name}-writer-${each.key}"
  description = "pgkeep on the host of cluster ${each.key}: takes dumps, can't read, replace or delete them"
  policy      = each.value
  tags        = var.tags
}

resource "aws_iam_policy" "restore" {
  name        = "${var.name}-restore"
  description = "pgkeep where dumps are restored and verified: reads everything, changes nothing"
  policy      = local.restore_policy
  tags        = var.tags
}

resource "aws_iam_policy" "prune" {
  name        = "${var.name}-prune"
  description = "pgkeep where dumps are pruned and pinned: deletes, but no old versions"
  policy      = local.prune_policy
  tags        = var.tags
}

resource "aws_iam_role_policy_attachment" "writer" {
  for_each = local.attached

  role       = each.value
  policy_arn = aws_iam_policy.writer[each.key].arn
}

# A role for an EC2 machine that has none yet.
resource "aws_iam_role" "writer" {
  for_each = local.profiles

  name = "${var.name}-writer-${each.key}"
  tags = var.tags

  assume_role_policy = jsonencode({
    Version   = "2012-10-17"
    Statement = [{ Effect = "Allow", Action = "sts:AssumeRole", Principal = { Service = "ec2.amazonaws.com" } }]
  })
}

resource "aws_iam_role_policy_attachment" "writer_profile" {
  for_each = local.profiles

  role       = aws_iam_role.writer[each.key].name
  policy_arn = aws_iam_policy.writer[each.key].arn
}

resource "aws_iam_instance_profile" "writer" {
  for_each = local.profiles

  name = aws_iam_role.writer[each.key].name
  role = aws_iam_role.writer[each.key].name
  tags = var.tags
}

resource "aws_iam_role" "restore" {
  count = length(var.restore_role_trusts) > 0 ? 1 : 0

  name = "${var.name}-restore"
  tags = var.tags

  assume_role_policy = jsonencode({
    Version   = "2012-10-17"
    Statement = [{ Effect = "Allow", Action = "sts:AssumeRole", Principal = { AWS = var.restore_role_trusts } }]
  })
}

resource "aws_iam_role_policy_attachment" "restore" {
  count = length(aws_iam_role.restore)

  role       = aws_iam_role.restore[0].name
  policy_arn = aws_iam_policy.restore.arn
}

resource "aws_iam_role" "prune" {
  count = length(var.prune_role_trusts) > 0 ? 1 : 0

  name = "${var.name}-prune"
  tags = var.tags

  assume_role_policy = jsonencode({
    Version   = "2012-10-17"
    Statement = [{ Effect = "Allow", Action = "sts:AssumeRole", Principal = { AWS = var.prune_role_trusts } }]
  })
}

resource "aws_iam_role_policy_attachment" "prune" {
  count = length(aws_iam_role.prune)

  role       = aws_iam_role.prune[0].name
  policy_arn = aws_iam_policy.prune.arn
}
