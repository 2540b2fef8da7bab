# Values that the provider would take, and S3 or pgkeep would not.

mock_provider "aws" {}

variables {
  bucket = "gamepulse-backups"
}

run "a_bucket_name_with_capitals" {
  command = plan
  variables {
    bucket = "GamePulse"
  }
  expect_failures = [var.bucket]
}

run "a_prefix_with_a_slash_at_its_end" {
  command = plan
  variables {
    prefix = "pgkeep/"
  }
  expect_failures = [var.prefix]
}

run "a_prefix_with_a_wildcard" {
  command = plan
  variables {
    prefix = "pg*"
  }
  expect_failures = [var.prefix]
}

run "a_cluster_name_with_a_slash" {
  command = plan
  variables {
    clusters = { "main/dump" = {} }
  }
  expect_failures = [var.clusters]
}

run "expiry_at_once" {
  command = plan
  variables {
    expire_dumps_after_days = 0
  }
  expect_failures = [var.expire_dumps_after_days]
}

run "expiry_against_pgkeeps_own_retention" {
  command = plan
  variables {
    expire_dumps_after_days = 30
    keep                    = { window_days = 30, daily = 7, weekly = 4, monthly = 6 }
  }
  expect_failures = [var.expire_dumps_after_days]
}

run "expiry_of_what_incremental_dumps_still_need" {
  command = plan
  variables {
    expire_dumps_after_days = 190
    keep                    = { window_days = 30, daily = 7, weekly = 4, monthly = 6, reuse_max_age_days = 7 }
  }
  expect_failures = [var.expire_dumps_after_days]
}

run "expiry_as_a_net_behind_pgkeeps_own_retention" {
  command = plan
  variables {
    expire_dumps_after_days = 190
    keep                    = { window_days = 30, daily = 7, weekly = 4, monthly = 6 }
  }
}

run "old_versions_gone_at_once" {
  command = plan
  variables {
    noncurrent_version_days = 0
  }
  expect_failures = [var.noncurrent_version_days]
}

run "half_a_day" {
  command = plan
  variables {
    abort_incomplete_multipart_upload_days = 0.5
  }
  expect_failures = [var.abort_incomplete_multipart_upload_days]
}

run "a_storage_class_that_takes_hours_to_read" {
  command = plan
  variables {
    transition = { days = 90, storage_class = "DEEP_ARCHIVE" }
  }
  expect_failures = [var.transition]
}

run "infrequent_access_before_30_days" {
  command = plan
  variables {
    transition = { days = 7, storage_class = "STANDARD_IA" }
  }
  expect_failures = [var.transition]
}

run "instant_retrieval_before_30_days_is_fine" {
  command = plan
  variables {
    transition = { days = 7, storage_class = "GLACIER_IR" }
  }
}

run "a_transition_after_the_expiry" {
  command = plan
  variables {
    transition              = { days = 30, storage_class = "STANDARD_IA" }
    expire_dumps_after_days = 30
  }
  expect_failures = [var.transition]
}

run "a_lock_of_no_such_mode" {
  command = plan
  variables {
    object_lock = { mode = "STRICT", days = 7 }
  }
  expect_failures = [var.object_lock]
}

run "a_lock_that_outlasts_what_is_promised" {
  command = plan
  variables {
    object_lock             = { mode = "COMPLIANCE", days = 90 }
    expire_dumps_after_days = 30
  }
  expect_failures = [var.object_lock]
}

run "an_alias_for_a_key" {
  command = plan
  variables {
    kms_key_arn = "arn:aws:kms:eu-central-1:123456789012:alias/backups"
  }
  expect_failures = [var.kms_key_arn]
}

run "a_cluster_whose_role_would_need_too_long_a_name" {
  command = plan
  variables {
    clusters = { "gamepulse-europe-west-production-database-of-the-players" = { instance_profile = true } }
  }
  expect_failures = [var.clusters]
}

run "the_same_cluster_without_a_role" {
  command = plan
  variables {
    clusters = { "gamepulse-europe-west-production-database-of-the-players" = {} }
  }
}
