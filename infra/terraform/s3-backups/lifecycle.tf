locals {
  # The longest that pgkeep's own retention may want a dump to stay.
  longest_kept_days = max(
    var.keep.window_days,
    var.keep.daily,
    var.keep.weekly * 7,
    var.keep.monthly * 31,
    var.keep.yearly * 366,
  ) + var.keep.reuse_max_age_days

  dumps_have_rule = var.expire_dumps_after_days != null || var.transition != null

  # pgkeep commits no dump later than 72 hours after its start, so a lease of this age is nobody's.
  lease_days = 7
}

# No rule touches pgkeep.json, identities, pins and evidence.
resource "aws_s3_bucket_lifecycle_configuration" "backups" {
  bucket = aws_s3_bucket.backups.id

  rule {
    id     = "housekeeping"
    status = "Enabled"

    filter {}

    noncurrent_version_expiration {
      noncurrent_days = var.noncurrent_version_days
    }

    abort_incomplete_multipart_upload {
      days_after_initiation = var.abort_incomplete_multipart_upload_days
    }

    # Marks of deletion whose hidden versions are gone.
    expiration {
      expired_object_delete_marker = true
    }
  }

  rule {
    id     = "doctors-probes"
    status = "Enabled"

    filter {
      prefix = "${local.names.prefix}pgkeep-probe-"
    }

    expiration {
      days = 1
    }
  }

  dynamic "rule" {
    for_each = keys(var.clusters)

    content {
      id     = "leases-${rule.value}"
      status = "Enabled"

      filter {
        prefix = "${local.names.prefix}${rule.value}/lease/"
      }

      expiration {
        days = local.lease_days
      }
    }
  }

  dynamic "rule" {
    for_each = local.dumps_have_rule ? keys(var.clusters) : []

    content {
      id     = "dumps-${rule.value}"
      status = "Enabled"

      filter {
        prefix = "${local.names.prefix}${rule.value}/dump/"
      }

      dynamic "expiration" {
        for_each = var.expire_dumps_after_days == null ? [] : [var.expire_dumps_after_days]

        content {
          days = expiration.value
        }
      }

      dynamic "transition" {
        for_each = var.transition == null ? [] : [var.transition]

        content {
          days          = transition.value.days
          storage_class = transition.value.storage_class
        }
      }
    }
  }

  depends_on = [aws_s3_bucket_versioning.backups]
}
