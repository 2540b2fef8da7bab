variable "bucket" {
  description = "Name of the bucket. It holds pgkeep's backups and nothing else."
  type        = string

  validation {
    condition     = can(regex("^[a-z0-9][a-z0-9.-]{1,61}[a-z0-9]$", var.bucket))
    error_message = "A bucket's name has 3 to 63 small letters, digits, dots and hyphens, and begins and ends with a letter or digit."
  }
}

variable "prefix" {
  description = "Where the repository lies in the bucket: `pgkeep` for `repository = [\"s3://BUCKET/pgkeep\"]`. Empty for the bucket's top."
  type        = string
  default     = "pgkeep"

  validation {
    condition     = can(regex("^([A-Za-z0-9_.+=,@:-]+(/[A-Za-z0-9_.+=,@:-]+)*)?$", var.prefix))
    error_message = "The prefix has letters, digits and -_.+=,@: in parts separated by single slashes, without one at its beginning or end."
  }
}

variable "clusters" {
  description = <<-EOT
    The database clusters that are backed up here, by their names in pgkeep.toml (`[cluster.NAME]`; `main` when nobody named it).
    Each gets a write-only policy of its own. `attach_to_role`: an existing role that gets it, such as the machine's. `instance_profile`:
    make a role and an instance profile for an EC2 machine instead.
  EOT
  type = map(object({
    attach_to_role   = optional(string)
    instance_profile = optional(bool, false)
  }))
  default = { main = {} }

  validation {
    condition     = length(var.clusters) > 0 && alltrue([for name in keys(var.clusters) : can(regex("^[a-z0-9][a-z0-9._-]{0,62}$", name))])
    error_message = "A cluster's name has at most 63 small letters, digits, '.', '-' and '_', and there is at least one cluster."
  }

  validation {
    condition     = alltrue([for name, access in var.clusters : !access.instance_profile || length("${var.name}-writer-${name}") <= 64])
    error_message = "IAM takes at most 64 characters of a role's name, NAME-writer-CLUSTER: shorten name or the cluster's, or attach the policy to a role of your own (attach_to_role)."
  }
}

variable "name" {
  description = "What the names of IAM policies and roles begin with."
  type        = string
  default     = "pgkeep"

  validation {
    condition     = can(regex("^[A-Za-z0-9_+=,.@-]{1,32}$", var.name))
    error_message = "At most 32 letters, digits and _+=,.@-."
  }
}

variable "restore_role_trusts" {
  description = "ARNs of those who may take on the role that restores and verifies. None: only its policy is made."
  type        = list(string)
  default     = []
}

variable "restore_records_verifications" {
  description = "Let `pgkeep verify` under the restore policy record its outcome in the repository, which is all that it may write then."
  type        = bool
  default     = false
}

variable "prune_role_trusts" {
  description = "ARNs of those who may take on the role that prunes and pins. None: only its policy is made."
  type        = list(string)
  default     = []
}

variable "expire_dumps_after_days" {
  description = <<-EOT
    Let S3 itself expire dumps of this age, 30 for example. Null, the default: S3 expires none, and `pgkeep prune` decides. The rule goes by
    age alone: it knows nothing of pins and of `keep`, deletes the last good dump like any other when newer ones fail to come, and
    tears dumps that build on earlier ones apart.
  EOT
  type        = number
  default     = null

  validation {
    condition     = var.expire_dumps_after_days == null || try(var.expire_dumps_after_days >= 1 && floor(var.expire_dumps_after_days) == var.expire_dumps_after_days, false)
    error_message = "Whole days, at least 1; or null."
  }

  validation {
    condition     = var.expire_dumps_after_days == null || try(var.expire_dumps_after_days > local.longest_kept_days, false)
    error_message = "S3 would expire dumps that pgkeep's keep settings want to stay: make it more days than the longest of them (a week counts as 7 days, a month as 31, a year as 366), or null."
  }
}

variable "keep" {
  description = "pgkeep's own `keep` settings, when it prunes: only so that `expire_dumps_after_days` can't contradict them. `window_days = 30` for `window = \"30d\"`."
  type = object({
    window_days = optional(number, 0)
    daily       = optional(number, 0)
    weekly      = optional(number, 0)
    monthly     = optional(number, 0)
    yearly      = optional(number, 0)
    # With dump.incremental, dumps need objects that are older than they are by up to dump.reuse_max_age.
    reuse_max_age_days = optional(number, 0)
  })
  default = {}
}

variable "noncurrent_version_days" {
  description = "How long what was deleted, expired or replaced can still be brought back (by an administrator, as an old version)."
  type        = number
  default     = 30

  validation {
    condition     = var.noncurrent_version_days >= 1 && floor(var.noncurrent_version_days) == var.noncurrent_version_days
    error_message = "Whole days, at least 1."
  }
}

variable "abort_incomplete_multipart_upload_days" {
  description = "When parts of uploads that were never completed go. Repositories have none; `pgkeep dump --output s3://...` may leave some when it is killed."
  type        = number
  default     = 7

  validation {
    condition     = var.abort_incomplete_multipart_upload_days >= 1 && floor(var.abort_incomplete_multipart_upload_days) == var.abort_incomplete_multipart_upload_days
    error_message = "Whole days, at least 1."
  }
}

variable "transition" {
  description = "Move dumps of this age to a cheaper storage class. Small objects (below 128 KiB) stay where they are; each class has a shortest time that is paid for."
  type = object({
    days          = number
    storage_class = string
  })
  default = null

  validation {
    condition     = var.transition == null || try(contains(["STANDARD_IA", "ONEZONE_IA", "INTELLIGENT_TIERING", "GLACIER_IR"], var.transition.storage_class), false)
    error_message = "STANDARD_IA, ONEZONE_IA, INTELLIGENT_TIERING or GLACIER_IR. From GLACIER and DEEP_ARCHIVE nothing can be read, so nothing restored, before hours of waiting."
  }

  validation {
    condition     = var.transition == null || try(var.transition.days >= (endswith(var.transition.storage_class, "_IA") ? 30 : 0) && floor(var.transition.days) == var.transition.days, false)
    error_message = "Whole days; S3 moves nothing to STANDARD_IA or ONEZONE_IA before it is 30 days old."
  }

  validation {
    condition     = var.transition == null || var.expire_dumps_after_days == null || try(var.transition.days < var.expire_dumps_after_days, false)
    error_message = "Dumps would expire before they are moved: S3 refuses a transition that isn't earlier than the expiration."
  }
}

variable "object_lock" {
  description = <<-EOT
    Nobody can delete or replace an object's version for so many days after it was written. GOVERNANCE: but for those with
    s3:BypassGovernanceRetention. COMPLIANCE: not even the account's root, until the days have passed. Null: off.
  EOT
  type = object({
    mode = string
    days = number
  })
  default = null

  validation {
    condition     = var.object_lock == null || try(contains(["GOVERNANCE", "COMPLIANCE"], var.object_lock.mode), false)
    error_message = "The mode is GOVERNANCE or COMPLIANCE."
  }

  validation {
    condition     = var.object_lock == null || try(var.object_lock.days >= 1 && floor(var.object_lock.days) == var.object_lock.days, false)
    error_message = "Whole days, at least 1."
  }

  validation {
    condition     = var.object_lock == null || var.expire_dumps_after_days == null || try(var.object_lock.days <= var.expire_dumps_after_days + var.noncurrent_version_days, false)
    error_message = "Objects would be locked for longer than expire_dumps_after_days + noncurrent_version_days: S3 would keep, and charge, what the lifecycle rules promise to delete."
  }
}

variable "kms_key_arn" {
  description = "Encrypt with this KMS key; null: with S3's own keys (SSE-S3). pgkeep encrypts before it uploads either way."
  type        = string
  default     = null

  validation {
    condition     = var.kms_key_arn == null || can(regex("^arn:[a-z-]+:kms:[a-z0-9-]+:[0-9]{12}:key/.+$", var.kms_key_arn))
    error_message = "The ARN of a key (not of an alias): arn:aws:kms:REGION:ACCOUNT:key/ID."
  }
}

variable "tags" {
  description = "Tags of all that can have them."
  type        = map(string)
  default     = {}
}
