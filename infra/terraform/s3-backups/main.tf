# The bucket: private, versioned, encrypted, reached by TLS alone. Lifecycle rules are in lifecycle.tf, who may do what in access.tf.

resource "aws_s3_bucket" "backups" {
  bucket        = var.bucket
  force_destroy = false
  tags          = var.tags

  # Whatever a change asks for: a plan that would replace or destroy the bucket fails.
  lifecycle {
    prevent_destroy = true
  }
}

# Deleting only hides an object; the hidden version can be brought back until noncurrent_version_days have passed.
resource "aws_s3_bucket_versioning" "backups" {
  bucket = aws_s3_bucket.backups.id

  versioning_configuration {
    status = "Enabled"
  }
}

resource "aws_s3_bucket_public_access_block" "backups" {
  bucket = aws_s3_bucket.backups.id

  block_public_acls       = true
  block_public_policy     = true
  ignore_public_acls      = true
  restrict_public_buckets = true
}

resource "aws_s3_bucket_ownership_controls" "backups" {
  bucket = aws_s3_bucket.backups.id

  rule {
    object_ownership = "BucketOwnerEnforced"
  }
}

resource "aws_s3_bucket_server_side_encryption_configuration" "backups" {
  bucket = aws_s3_bucket.backups.id

  rule {
    bucket_key_enabled = var.kms_key_arn != null

    apply_server_side_encryption_by_default {
      sse_algorithm     = var.kms_key_arn == null ? "AES256" : "aws:kms"
      kms_master_key_id = var.kms_key_arn
    }
  }
}

# This alone enables Object Lock, of a new bucket and of one that is there. The bucket's own object_lock_enabled would replace the bucket when
# it changes.
resource "aws_s3_bucket_object_lock_configuration" "backups" {
  count = var.object_lock == null ? 0 : 1

  bucket = aws_s3_bucket.backups.id

  rule {
    default_retention {
      mode = var.object_lock.mode
      days = var.object_lock.days
    }
  }

  depends_on = [aws_s3_bucket_versioning.backups]
}

resource "aws_s3_bucket_policy" "backups" {
  bucket = aws_s3_bucket.backups.id
  policy = templatefile("${local.policies}/bucket.json", local.names)

  depends_on = [aws_s3_bucket_public_access_block.backups]
}
