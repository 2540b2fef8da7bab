//! Choices that differ from run to run, and can be repeated.

use std::env;

/// The seed of a test's random choices: a new one each time, or `PGKEEP_TEST_SEED`. Printed, so that a failed run can be
/// repeated.
pub fn seed() -> u64 {
    let given = env::var("PGKEEP_TEST_SEED").ok();
    let seed = given.map_or_else(rand::random, |text| {
        text.parse().expect("PGKEEP_TEST_SEED is a number")
    });
    eprintln!("PGKEEP_TEST_SEED={seed}");
    seed
}
