//! `pgkeep bucket`

use clap::{Args, Subcommand};
use pgkeep_repository::bucket::{Expiry, Lock, LockMode, Move};

/// `pgkeep bucket`
#[derive(Debug, Args)]
pub struct BucketArgs {
    /// What to do.
    #[command(subcommand)]
    pub action: BucketAction,
}

/// What to do with the bucket.
#[derive(Debug, Subcommand)]
pub enum BucketAction {
    /// Say what of the bucket isn't as it should be; changes nothing.
    Check {
        /// What it should be.
        #[command(flatten)]
        wanted: WantedArgs,
    },
    /// Set the bucket up: private, versioned, encrypted, with lifecycle rules.
    Setup {
        /// What it should be.
        #[command(flatten)]
        wanted: WantedArgs,
        /// Make the bucket if there is none; at Amazon's it takes --s3-region.
        #[arg(long)]
        create: bool,
        /// Only say what would be changed.
        #[arg(long)]
        dry_run: bool,
    },
}

/// What the bucket should be.
#[derive(Debug, Clone, Args)]
pub struct WantedArgs {
    /// When the store itself deletes dumps: days (30 for a plain thirty days, without keep and dump.incremental), or 'never'
    /// [default: as it is].
    #[arg(long, value_name = "DAYS", value_parser = parse_expiry)]
    pub expire_dumps_after: Option<Expiry>,
    /// Move dumps to a cheaper storage class at an age, such as GLACIER_IR:30; or 'never' [default: as it is].
    #[arg(long, value_name = "CLASS:DAYS", value_parser = parse_transition)]
    pub transition: Option<Move>,
    /// How long what was deleted can be brought back [default: 30, or longer where it is; for ever where old versions are kept
    /// and nothing ends them].
    #[arg(long, value_name = "DAYS", value_parser = parse_days)]
    pub noncurrent_days: Option<u32>,
    /// Lock new objects: governance:30, or compliance:30, which nobody can take back [default: as it is].
    #[arg(long, value_name = "MODE:DAYS", value_parser = parse_lock)]
    pub object_lock: Option<Lock>,
    /// KMS key to encrypt with [default: s3.kms_key_id, else any encryption will do].
    #[arg(long, value_name = "ARN")]
    pub kms_key: Option<String>,
}

/// S3 takes more; nobody means it.
const DAYS_MAX: u32 = 36_500;

fn parse_days(text: &str) -> Result<u32, String> {
    match text.trim().parse::<u32>() {
        Ok(days) if (1..=DAYS_MAX).contains(&days) => Ok(days),
        _ => Err(format!("write a number of days from 1 to {DAYS_MAX}")),
    }
}

fn parse_expiry(text: &str) -> Result<Expiry, String> {
    match text.trim() {
        "never" => Ok(Expiry::Never),
        days => parse_days(days)
            .map(Expiry::AfterDays)
            .map_err(|problem| format!("{problem}, or never")),
    }
}

fn parse_transition(text: &str) -> Result<Move, String> {
    if text.trim() == "never" {
        return Ok(Move::Never);
    }
    let Some((class, days)) = text.trim().split_once(':') else {
        return Err("write CLASS:DAYS such as GLACIER_IR:30, or never".to_owned());
    };
    Ok(Move::To {
        class: class.to_ascii_uppercase(),
        days: parse_days(days)?,
    })
}

fn parse_lock(text: &str) -> Result<Lock, String> {
    let form = || "write governance:DAYS or compliance:DAYS".to_owned();
    let (mode, days) = text.trim().split_once(':').ok_or_else(form)?;
    let mode = match mode.to_ascii_lowercase().as_str() {
        "governance" => LockMode::Governance,
        "compliance" => LockMode::Compliance,
        _ => return Err(form()),
    };
    Ok(Lock {
        mode,
        days: parse_days(days)?,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn days_classes_and_locks_are_read_as_people_write_them() {
        assert_eq!(parse_expiry("never"), Ok(Expiry::Never));
        assert_eq!(parse_expiry("30"), Ok(Expiry::AfterDays(30)));
        let class = "GLACIER_IR".to_owned();
        assert_eq!(
            parse_transition("glacier_ir:30"),
            Ok(Move::To { class, days: 30 })
        );
        assert_eq!(parse_transition("never"), Ok(Move::Never));
        let lock = Lock {
            mode: LockMode::Compliance,
            days: 7,
        };
        assert_eq!(parse_lock("COMPLIANCE:7"), Ok(lock));
        for bad in ["", "0", "-1", "30d", "1.5", "99999"] {
            assert!(parse_expiry(bad).is_err(), "{bad}");
            assert!(parse_transition(&format!("GLACIER_IR:{bad}")).is_err(), "{bad}");
            assert!(parse_lock(&format!("governance:{bad}")).is_err(), "{bad}");
        }
        for bad in ["GLACIER_IR", "30", "on"] {
            assert!(parse_transition(bad).is_err(), "{bad}");
            assert!(parse_lock(bad).is_err(), "{bad}");
        }
        // Which classes there are, others say.
        assert!(parse_lock("legal:3").is_err());
    }
}
